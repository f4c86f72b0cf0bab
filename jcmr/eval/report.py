"""The pictures of a run: learning curves, retrievals, and what its uncertainty is worth."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from jcmr.core.types import RetrievalSplit
from jcmr.eval.occlusion import Occlusion
from jcmr.eval.report_cells import GREEN, RED, Cells
from jcmr.eval.retrieval import Results
from jcmr.eval.uncertainty import binned, spearman

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#718096"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
NUM_QUERIES, NUM_SHOWN = 4, 5


def save(figure: Any, path: Path) -> None:
    """Writes and closes a figure."""
    figure.savefig(path, dpi=130)
    plt.close(figure)


def is_first_hit(name: str) -> bool:
    """Whether a metric says how often the top item matches."""
    return name.endswith(("hit@1", "r@1"))


def draw_curves(
    records: Sequence[Mapping[str, Any]],
    path: Path,
    wanted: Callable[[str], bool] = is_first_hit,
) -> None:
    """The objective in training, and the first wanted metrics on the dev split, by step."""
    train = [r for r in records if r["split"] == "train"]
    dev = [r for r in records if r["split"] == "dev"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    left.plot([r["step"] for r in train], [r["loss"] for r in train], color=BLUE)
    left.set(title="training objective", xlabel="step", yscale="log")
    names = [n for n in dev[0] if wanted(n)] if dev else []
    exact = [n for n in names if n.endswith("/hit@1")]
    for name, colour in zip(exact or names, (BLUE, ORANGE, GREEN, RED)):
        right.plot([r["step"] for r in dev], [r[name] for r in dev], "o-", ms=3, label=name)
        right.lines[-1].set_color(colour)
    right.set(title="dev split", xlabel="step")
    if names:
        right.legend()
    save(figure, path)


def draw_retrievals(split: RetrievalSplit, results: Results, path: Path) -> None:
    """The five best captions of some images, and the five best images of some captions.

    Queries are spread evenly over the split; a green frame is a match, a red one is none.
    """
    captions, images = split.extras["captions"], split.items["image"]
    picture: Callable[[int], np.ndarray] = lambda i: images[int(i)]["image"]
    cells = Cells(2 * NUM_QUERIES, 1 + NUM_SHOWN)
    for row in range(NUM_QUERIES):
        image = row * len(images) // NUM_QUERIES
        text = row * len(captions) // NUM_QUERIES
        below = NUM_QUERIES + row
        cells.image(row, 0, picture(image))
        cells.text(below, 0, captions[text])
        for place in range(NUM_SHOWN):
            found, hit = (of["i2t"][image, place] for of in (results.top, results.hits))
            cells.text(row, 1 + place, captions[found], bool(hit))
            found, hit = (of["t2i"][text, place] for of in (results.top, results.hits))
            cells.image(below, 1 + place, picture(found), bool(hit))
    for row, query, found in ((0, "image", "captions"), (NUM_QUERIES, "caption", "images")):
        cells.title(row, 0, f"{query} query")
        cells.title(row, 1, f"best {found}")
    cells.save(path)


def draw_occlusion(occlusion: Occlusion, path: Path) -> None:
    """Uncertainty of images against how much of what they show is hidden."""
    figure, axis = plt.subplots(figsize=(4.5, 3.4))
    axis.plot(occlusion.shares, occlusion.uncertainty, color=GREY, alpha=0.06, lw=0.8)
    label = f"mean (Spearman per image {occlusion.correlation:+.2f})"
    axis.plot(occlusion.shares, occlusion.uncertainty.mean(1), "o-", color=BLUE, label=label)
    axis.set(
        title="uncertainty of images (mean log variance)", xlabel="hidden share of the objects"
    )
    axis.legend()
    save(figure, path)


def draw_uncertainty(results: Results, path: Path) -> None:
    """Uncertainty against the number of matches, and against whether the top item is one."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    directions = dict(zip(results.uncertainty, results.first_hit))
    for (name, values), colour in zip(results.uncertainty.items(), (BLUE, ORANGE)):
        matches = np.maximum(results.num_matches[name], 1)
        label = f"{name} (Spearman {spearman(values, matches):+.2f})"
        axes[0].plot(matches, values, ".", ms=2, alpha=0.25, color=colour)
        x, y = binned(np.log(matches.astype(float)), values)
        axes[0].plot(np.exp(x), y, "o-", color=colour, label=label)
        hit = results.first_hit[directions[name]] == 0
        x, y = binned(values, hit.astype(float))
        axes[1].plot(np.arange(len(y)) + 1, y, "o-", color=colour, label=f"{name} query")
    axes[0].set(title="uncertainty (mean log variance)", xlabel="items that match", xscale="log")
    axes[1].set(title="share of queries whose top item matches", ylim=(0, 1))
    axes[1].set_xlabel("tenth of the queries, from the most certain to the least")
    for axis in axes:
        axis.legend()
    save(figure, path)


def draw_extremes(split: RetrievalSplit, results: Results, path: Path, num: int = 6) -> None:
    """The items that the system is most and least certain of."""
    cells = Cells(4, 1 + num)
    captions, images = split.extras["captions"], split.items["image"]
    for row, (name, least) in enumerate(
        (name, least) for name in ("image", "text") for least in (False, True)
    ):
        cells.text(row, 0, f"{'least' if least else 'most'} certain {name}s")
        order = np.argsort(results.uncertainty[name], kind="stable")
        for column, item in enumerate((order[::-1] if least else order)[:num], start=1):
            if name == "image":
                cells.image(row, column, images[int(item)]["image"])
            else:
                cells.text(row, column, captions[item])
            number = results.num_matches[name][item]
            cells.title(row, column, f"{number} {'match' if number == 1 else 'matches'}")
    cells.save(path)


def draw(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    split: RetrievalSplit,
    results: Results,
    occlusion: Occlusion | None = None,
) -> None:
    """All pictures that the split and the system allow, as PNG files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    has_pixels = "image" in split.items and "image" in split.items["image"][0]
    with plt.rc_context(STYLE):
        draw_curves(records, folder / "curves.png")
        if has_pixels:
            draw_retrievals(split, results, folder / "retrievals.png")
        if len(results.uncertainty) == 2:
            draw_uncertainty(results, folder / "uncertainty.png")
            if has_pixels:
                draw_extremes(split, results, folder / "certain.png")
        if occlusion:
            draw_occlusion(occlusion, folder / "occlusion.png")
