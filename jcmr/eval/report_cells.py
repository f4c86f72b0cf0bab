"""A table of pictures and words. All is drawn in one pair of axes: one pair a cell would take ten
times as long.
"""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.patches import Rectangle

matplotlib.use("Agg")
from matplotlib import pyplot as plt

GREEN, RED = "#2f855a", "#c53030"
INSIDE = 0.92
"""The part of a cell's width that is filled; a cell is 1 wide."""
TITLE, HEADING = 0.24, 0.26
"""Inches for the title above each cell, and for that of the figure."""


class Cells:
    """Cells by row and column. A green frame is a match, a red one is none; a query has none."""

    def __init__(self, num_rows: int, num_columns: float, size: float = 1.45, heading: str = ""):
        """An empty table of cells `size` inches wide, below a heading."""
        self.title_height = TITLE / size
        above = HEADING / size if heading else 0.0
        height = num_rows * (1 + self.title_height) + above
        self.figure = plt.figure(figsize=(num_columns * size, height * size), layout="none")
        self.axis = self.figure.add_axes((0, 0, 1, 1))
        self.axis.set(xlim=(0, num_columns), ylim=(height - above, -above))
        self.axis.axis("off")
        self.head(0, heading)

    def corner(self, row: int, column: float) -> tuple[float, float]:
        """Left and upper edge of what a cell holds, in cells."""
        return column + (1 - INSIDE) / 2, row * (1 + self.title_height) + self.title_height

    def head(self, column: float, words: str) -> None:
        """Words in the heading, above a column."""
        self.axis.text(self.corner(0, column)[0], 0, words, size=9, va="bottom")

    def frame(self, row: int, column: float, hit: bool | None) -> None:
        """Says whether what is inside matches."""
        if hit is not None:
            colour = GREEN if hit else RED
            corner = self.corner(row, column)
            self.axis.add_patch(
                Rectangle(corner, INSIDE, INSIDE, fill=False, linewidth=2.5, color=colour)
            )

    def title(self, row: int, column: float, words: str, size: float = 9) -> None:
        """Words above a cell."""
        left, top = self.corner(row, column)
        self.axis.text(left, top - 0.04, words, size=size, va="bottom")

    def text(
        self, row: int, column: float, words: str, hit: bool | None = None, width: int = 20
    ) -> None:
        """Words in a cell, `width` letters a line."""
        x, y = np.add(self.corner(row, column), INSIDE / 2)
        colour = "black" if hit is None else GREEN if hit else RED
        words = textwrap.fill(words, width)
        self.axis.text(x, y, words, ha="center", va="center", size=8, color=colour)
        self.frame(row, column, hit)

    def image(
        self, row: int, column: float, pixels: np.ndarray, hit: bool | None = None, **style: Any
    ) -> None:
        """A picture [h, w, 3], or [h, w] for a colour map, as large as fits."""
        height, width = pixels.shape[:2]
        x, y = np.add(self.corner(row, column), INSIDE / 2)
        half_x, half_y = np.array([width, height]) * INSIDE / 2 / max(height, width)
        box = (x - half_x, x + half_x, y + half_y, y - half_y)
        smooth = "nearest" if len(pixels) < 128 else "antialiased"
        limits = self.axis.get_xlim(), self.axis.get_ylim()
        self.axis.imshow(pixels, extent=box, aspect="auto", interpolation=smooth, **style)
        self.axis.set(xlim=limits[0], ylim=limits[1])
        self.frame(row, column, hit)

    def points(
        self, row: int, column: float, points: np.ndarray, hit: bool | None = None, **style: Any
    ) -> None:
        """Points [p, 2] between -1 and 1, y upwards."""
        center = np.add(self.corner(row, column), INSIDE / 2)
        placed = center + points * (INSIDE / 2.1, -INSIDE / 2.1)
        self.axis.scatter(placed[:, 0], placed[:, 1], **style)
        self.frame(row, column, hit)

    def save(self, path: Path) -> None:
        """Writes and closes the figure."""
        self.figure.savefig(path, dpi=130)
        plt.close(self.figure)
