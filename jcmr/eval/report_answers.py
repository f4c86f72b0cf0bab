"""The pictures of a run on questions: curves, accuracies, and what was read for some questions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from jcmr.core.types import QuestionSplit
from jcmr.eval.report import BLUE, GREY, ORANGE, STYLE, draw_curves, save
from jcmr.eval.report_cells import GREEN, RED, Cells
from jcmr.eval.vqa import BACK, Results

NUM_SHOWN, NUM_CAPTIONS = 6, 4
WIDTH = 3.4
"""Of an answer with its captions, in cells."""


def draw_accuracies(metrics: Mapping[str, float], path: Path) -> None:
    """A bar for each state of each group of questions."""
    bars = {name: v for name, v in metrics.items() if name.endswith("/accuracy")}
    labels = [name.removesuffix("/accuracy") for name in bars]
    groups = list(dict.fromkeys(label.split("/")[0] for label in labels))
    colours = [(BLUE, ORANGE, GREEN, RED)[groups.index(x.split("/")[0]) % 4] for x in labels]
    figure, axis = plt.subplots(figsize=(6.5, 0.6 + 0.24 * len(bars)))
    axis.barh(labels, list(bars.values()), color=colours)
    for place, value in enumerate(bars.values()):
        axis.text(min(value, 0.93) + 0.01, place, f"{value:.3f}", va="center", size=7)
    axis.set(title="share of right answers", xlim=(0, 1))
    axis.invert_yaxis()
    save(figure, path)


def caption_lines(source: Any, results: Results, state: str, row: int) -> list[str]:
    """The first captions that question `row` got in a state, each with its score."""
    hits = getattr(results.answered[state].examples, "hits", None)
    if hits is None:
        return []
    captions = source.captions(state)
    shown = zip(hits.rows[row, :NUM_CAPTIONS], hits.scores[row, :NUM_CAPTIONS])
    return [f"{score:.2f}  {captions[i]}" for i, score in shown if i >= 0]


def chosen_rows(split: QuestionSplit) -> np.ndarray:
    """Questions to show: as many of each group, spread evenly."""
    groups = [np.flatnonzero(chosen) for chosen in split.groups.values() if chosen.any()]
    each = -(-NUM_SHOWN // len(groups))
    picked = [rows[np.linspace(0, len(rows) - 1, each).astype(int)] for rows in groups]
    return np.unique(np.concatenate(picked))


def draw_answers(source: Any, split: QuestionSplit, results: Results, path: Path) -> None:
    """Picture, question, what was found, and the answer in each state of knowledge."""
    rows = chosen_rows(split)
    states = [name for name in split.truths if name in results.answered and name != BACK]
    cells = Cells(len(rows), 1 + WIDTH * len(states), size=1.15, heading="question")
    for line, row in enumerate(rows):
        item = split.examples[int(row)]
        if "image" in item:
            cells.image(line, 0, item["image"])
        cells.title(line, 0, split.texts[int(row)], size=8)
        for place, state in enumerate(states):
            found = results.answered[state]
            said, worth = source.answers[found.best[row]], found.worth[state][row]
            left, top = cells.corner(line, 1 + WIDTH * place)
            colour = GREEN if worth > 0.5 else RED
            cells.axis.text(left, top, said, size=11, weight="bold", va="top", color=colour)
            lines = "\n".join(caption_lines(source, results, state, row))
            cells.axis.text(left, top + 0.24, lines, size=7, va="top", color=GREY)
    for place, state in enumerate(states):
        cells.head(1 + WIDTH * place, state or "answer")
    cells.save(path)


def draw(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    source: Any,
    split: QuestionSplit,
    results: Results,
) -> None:
    """All pictures, as PNG files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        draw_curves(records, folder / "curves.png", lambda name: name.endswith("/accuracy"))
        draw_accuracies(results.metrics, folder / "accuracy.png")
        draw_answers(source, split, results, folder / "answers.png")
