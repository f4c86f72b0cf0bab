"""The embedded data set of solids: twelve procedural families as views, points and meshes.

Nothing is downloaded. Objects are made once and kept in the user's cache folder.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jcmr.core.types import RetrievalSplit
from jcmr.data.cache import cache_folder, load_or_make, make_in_chunks
from jcmr.data.objects import DrawnObjects, draw_order, stored_splits
from jcmr.data.options import unpack
from jcmr.data.records import stack
from jcmr.data.shapes.solid import CLASSES, PRESETS, Preset, make_item

STREAMS = {"train": 100, "dev": 101, "test": 102}
VERSION = 1
"""Part of the cache's name: raise it when the same options give other solids."""
CHUNK = 100


class ShapesOptions(NamedTuple):
    """The data section of a config for this source; fields of `Preset` may be overridden too."""

    preset: str = "demo"
    num_train: int = 2400
    num_test: int = 600
    """Objects in the dev split and in the test split, each."""
    num_views: int = 2
    """Views of a training example."""
    num_points: int = 256
    eval_views: tuple[int, ...] = (1, 2, 4)
    dev_views: tuple[int, ...] = (2,)
    seed: int = 0
    cache_dir: str = ""
    """Where made objects are kept; empty is the user's cache folder."""
    make_workers: int = 2


def make_items(first: int, last: int, seed: int, stream: int, look: Preset):
    """Objects first..last as arrays."""
    return stack([make_item(seed, stream, index, look) for index in range(first, last)])


@dataclasses.dataclass(frozen=True)
class ShapesSource:
    """Solids in three independent streams."""

    options: ShapesOptions
    look: Preset

    def items(self, split: str) -> dict[str, np.ndarray]:
        """All that is stored of a split, from the cache or made first."""
        options, look = self.options, self.look
        num = options.num_train if split == "train" else options.num_test
        arguments = options.seed, STREAMS[split], look
        return load_or_make(
            cache_folder("shapes", options.cache_dir),
            f"{options.preset}-{split}",
            (VERSION, options.seed, split, num, look),
            f"{num} {split} solids",
            lambda: make_in_chunks(make_items, arguments, num, options.make_workers, CHUNK),
        )

    @functools.cached_property
    def train(self) -> DrawnObjects:
        """The training objects; index them with `order`."""
        return DrawnObjects(self.items("train"), self.options.num_views, self.options.num_points)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Indices of an epoch: each object once, with new views and points."""
        return draw_order(self.options.num_train, seed, epoch)

    @property
    def info(self) -> dict[str, int]:
        """Sizes a model takes from the data."""
        return {"num_classes": len(CLASSES)}

    def retrieval(self, split: str) -> Sequence[RetrievalSplit]:
        """All nine directions between views, points and meshes, for each number of views."""
        options = self.options
        views = options.dev_views if split == "dev" else options.eval_views
        return stored_splits(split, self.items(split), views, options.num_points, CLASSES)


def make(cfg: Mapping[str, Any]) -> ShapesSource:
    """The source of `config.data`.

    Raises:
      ValueError: an unknown key or preset, or more views or points than are stored.
    """
    options = unpack(ShapesOptions, cfg, also=Preset._fields)
    if options.preset not in PRESETS:
        raise ValueError(
            f"config.data.preset is {options.preset!r}; it can be {' or '.join(PRESETS)}."
        )
    overrides = {name: cfg[name] for name in cfg if name in Preset._fields}
    look = PRESETS[options.preset]._replace(**overrides)
    most = max(options.num_views, *options.eval_views, *options.dev_views)
    if most > look.stored_views or options.num_points > look.stored_points:
        raise ValueError(
            f"config.data asks for {most} views and {options.num_points} points of an object, of "
            f"which {look.stored_views} and {look.stored_points} are stored; raise stored_views or "
            f"stored_points."
        )
    return ShapesSource(options, look)
