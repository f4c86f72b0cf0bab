"""Pictures of cross-attention: where each word looks in the image, at every step."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib import pyplot as plt

from jcmr.core.types import Batch, RetrievalSplit, Task, Variables
from jcmr.data.records import take
from jcmr.eval.report import STYLE
from jcmr.eval.report_cells import Cells
from jcmr.eval.retrieval import Results

Attention = Callable[[Variables, Any, Any], jax.Array]
"""(variables, images [n], captions [n]) -> [n, steps, words, regions] of aligned pairs."""
MAX_WORDS = 16


def draw_grids(
    pixels: np.ndarray, words: Sequence[str], attention: np.ndarray, title: str, path: Path
) -> None:
    """Attention over one image: a row for each step, a column for each word that looks at it.

    Args:
      pixels: [h, w, 3] uint8.
      words: t words, or names of what else attends.
      attention: [steps, t, side, side], of each word over a grid that covers the image.
      title: of the figure.
      path: the PNG file.
    """
    steps, num = attention.shape[:2]
    num = min(num, MAX_WORDS)
    cells = Cells(steps, num + 1, size=1.1, heading=title)
    grey = pixels.mean(axis=-1, keepdims=True).repeat(3, -1) / 255
    for step in range(steps):
        cells.image(step, 0, pixels)
        if steps > 1:
            cells.title(step, 0, f"step {step + 1}")
        for column, (word, weights) in enumerate(zip(words[:num], attention[step]), start=1):
            cells.image(step, column, grey)
            cells.image(step, column, weights, cmap="inferno", alpha=0.65, vmin=0)
            cells.title(step, column, word if step == 0 else f"{weights.max():.2f}", size=8)
    cells.save(path)


def draw(
    folder: Path,
    task: Task,
    attention: Attention,
    variables: Variables,
    split: RetrievalSplit,
    results: Results,
    prepare: Callable[[Batch], Batch],
    vocabulary: Mapping[str, int],
    num_pairs: int = 4,
) -> bool:
    """`attention_<i>.png` for captions spread over the split and the image found first for each.

    Only where the split has pixels and the regions are a square grid over them; says whether.

    Args:
      folder: where the files go.
      task: the system.
      attention: of pairs of embedded items.
      variables: of the system.
      split: what was retrieved in.
      results: of the evaluation.
      prepare: from stored items to inputs.
      vocabulary: word -> id.
      num_pairs: how many.
    """
    images, texts = split.items["image"], split.items["text"]
    if "image" not in images[0]:
        return False
    chosen = np.arange(num_pairs) * len(texts) // num_pairs
    found = results.top["t2i"][chosen, 0]
    inputs = take(images, found), take(texts, chosen)

    @jax.jit
    def run(variables: Variables, image: Batch, text: Batch) -> jax.Array:
        parts = (
            task.encode["image"](variables, prepare(image)),
            task.encode["text"](variables, text),
        )
        return attention(variables, *parts)

    weights = np.asarray(run(variables, *inputs))
    side = math.isqrt(weights.shape[-1])
    if side * side != weights.shape[-1]:
        return False
    names = {index: word for word, index in vocabulary.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for i, ids in enumerate(inputs[1]["text"]):
            words = [names[int(index)] for index in ids if index > 0]
            grid = weights[i, :, : len(words)].reshape(weights.shape[1], len(words), side, side)
            hit = "a match" if results.hits["t2i"][chosen[i], 0] else "no match"
            title = f"where each word looks in the image found first ({hit}), step by step"
            draw_grids(inputs[0]["image"][i], words, grid, title, folder / f"attention_{i}.png")
    return True
