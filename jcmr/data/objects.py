"""Objects with views, points and meshes: draws in training, and what to retrieve in evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jcmr.core.types import RandomAccess, RetrievalSplit, same_class
from jcmr.data.points import choose
from jcmr.data.records import Arrays

NUM_DRAWS = 1 << 16
"""An index of training is object * NUM_DRAWS + draw: views and points follow from it alone."""
PAIRS = (
    ("image", "image"), ("points", "points"), ("mesh", "mesh"),
    ("image", "points"), ("image", "mesh"), ("mesh", "points"),
)  # fmt: skip


def draw_order(num: int, seed: int, epoch: int) -> np.ndarray:
    """Every object once, in random order, each with a new draw, int64 [num]."""
    rng = np.random.default_rng([seed, epoch])
    return rng.permutation(num) * NUM_DRAWS + rng.integers(NUM_DRAWS, size=num)


def draw_of(index: int) -> tuple[int, np.random.Generator]:
    """The object of an index, and the generator of what is drawn of it."""
    return index // NUM_DRAWS, np.random.default_rng([17, index])


def rgb(views: np.ndarray) -> np.ndarray:
    """Grey pictures [..., h, w] with three channels."""
    return np.repeat(views[..., None], 3, axis=-1)


class DrawnObjects:
    """Training examples of stored objects: some of their views, some of their points.

    Args:
      columns: "label" and any of "image" [n, v, h, w], "points" [n, p, 3], "faces", "neighbors".
      num_views: views drawn of each, without replacement.
      num_points: points drawn of each, without replacement.
    """

    def __init__(self, columns: Mapping[str, np.ndarray], num_views: int, num_points: int):
        self.columns, self.num_views, self.num_points = dict(columns), num_views, num_points

    def __len__(self) -> int:
        """Number of objects times number of draws."""
        return len(self.columns["label"]) * NUM_DRAWS

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Example `index`."""
        item, rng = draw_of(int(index))
        example = {name: np.asarray(column[item]) for name, column in self.columns.items()}
        example["id"] = np.asarray(item, np.int32)
        if "image" in example:
            views = rng.permutation(len(example["image"]))[: self.num_views]
            example["image"] = rgb(example["image"][views])
        if "points" in example:
            example["points"] = example["points"][
                choose(len(example["points"]), self.num_points, rng)
            ]
        return example


def spread(num_stored: int, num: int) -> np.ndarray:
    """Indices of `num` of `num_stored` views, evenly spread, int [num]."""
    return np.arange(num) * num_stored // num


def gallery_cloud(points: np.ndarray, num: int, item: int, parity: bool = False) -> np.ndarray:
    """The stored cloud [p, 3] of object `item` as evaluated, [num, 3]: a draw fixed by `item`.

    With `parity` the draw is with replacement, as the official code's, but seeded.
    """
    return points[choose(len(points), num, np.random.default_rng([29, item]), parity)]


def gallery_points(points: np.ndarray, num: int, parity: bool = False) -> np.ndarray:
    """Stored clouds [n, p, 3] as evaluated, [n, num, 3]."""
    return np.stack([gallery_cloud(x, num, i, parity) for i, x in enumerate(points)])


def retrieval_splits(
    name: str,
    labels: np.ndarray,
    images: Mapping[int, RandomAccess],
    others: Mapping[str, RandomAccess],
    extras: Mapping[str, Any],
) -> Sequence[RetrievalSplit]:
    """A split for each pair of modalities and each number of views, `<name>/views<v>`.

    The relation `class` counts an object as its own match, as the papers do; within a modality
    there is also `others`, which leaves it out.

    Args:
      name: of the split.
      labels: classes of the n objects.
      images: number of views -> their items; empty without pictures.
      others: "points" and "mesh" -> their items, as far as there are any.
      extras: for reports, "class_names" among them.
    """
    splits = []
    for num_views, image in (images or {0: None}).items():
        galleries = {**({"image": image} if image is not None else {}), **others}
        label = f"{name}/views{num_views}" if images else name
        for first, second in PAIRS:
            if first not in galleries or second not in galleries:
                continue
            relevance = {"class": same_class(labels, labels)}
            if first == second:
                relevance["others"] = same_class(labels, labels, self_match=False)
            items = {modality: galleries[modality] for modality in (first, second)}
            splits.append(RetrievalSplit(label, items, relevance, extras))
    return splits


def stored_splits(
    name: str,
    columns: Mapping[str, np.ndarray],
    views: Sequence[int],
    num_points: int,
    class_names: Sequence[str],
    parity: bool = False,
) -> Sequence[RetrievalSplit]:
    """`retrieval_splits` of objects whose arrays are in memory; see `DrawnObjects`."""
    images, others = {}, {}
    if "image" in columns:
        stored = columns["image"].shape[1]
        images = {v: Arrays({"image": rgb(columns["image"][:, spread(stored, v)])}) for v in views}
    if "points" in columns:
        others["points"] = Arrays({"points": gallery_points(columns["points"], num_points, parity)})
    if "faces" in columns:
        others["mesh"] = Arrays({n: columns[n] for n in ("faces", "neighbors")})
    extras = {"class_names": tuple(class_names)}
    return retrieval_splits(name, columns["label"], images, others, extras)
