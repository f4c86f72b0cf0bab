"""ModelNet10 as voxels of 30^3: meshes by marching cubes, points on them, rendered views.

Not the official meshes and views, so numbers are not those of the papers' protocol. Everything is
made once and kept in the user's cache folder.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from jcmr.core.types import RetrievalSplit
from jcmr.data.cache import Columns, cache_folder, load_or_make, make_in_chunks
from jcmr.data.mesh import Mesh, mesh_features, surface_points, unit_box_centered
from jcmr.data.objects import DrawnObjects, draw_order, stored_splits
from jcmr.data.options import unpack
from jcmr.data.rasterize import render
from jcmr.data.records import stack
from jcmr.data.simplify import EXTRA, simplified

SIDE = 30
VERSION = 1
CHUNK = 100


class Look(NamedTuple):
    """Sizes of what is stored of an object."""

    image_size: int = 48
    stored_views: int = 8
    stored_points: int = 1024
    num_faces: int = 256


class VoxelOptions(NamedTuple):
    """The data section of a config for this source; fields of `Look` may be overridden too."""

    file: str = ""
    """modelnet10.npz: x_train and x_test, bits [n, 3375] uint8; y_train, y_test; class_names."""
    num_train: int = 0
    """Training objects, evenly taken; 0 is all."""
    num_test: int = 0
    num_views: int = 2
    num_points: int = 512
    eval_views: tuple[int, ...] = (1, 2, 4)
    dev_views: tuple[int, ...] = (2,)
    cache_dir: str = ""
    make_workers: int = 2


def surface(voxels: np.ndarray) -> Mesh:
    """The boundary of filled cells, bool [30, 30, 30], second axis up.

    Raises:
      ImportError: no scikit-image.
    """
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise ImportError(f"Marching cubes: {EXTRA}.") from error
    vertices, triangles = marching_cubes(np.pad(voxels, 1).astype(np.float32), 0.5)[:2]
    upright = vertices[:, [0, 2, 1]] * [1, 1, -1]
    return unit_box_centered(np.asarray(upright, np.float64)), triangles.astype(np.int32)


def blank(look: Look) -> Columns:
    """An object of an empty grid: white views, and all points and faces at 0."""
    shape = look.stored_views, look.image_size, look.image_size
    return {
        "image": np.full(shape, 255, np.uint8),
        "points": np.zeros((look.stored_points, 3), np.float32),
        "faces": np.zeros((look.num_faces, 15), np.float32),
        "neighbors": np.zeros((look.num_faces, 3), np.int16),
    }


def make_object(voxels: np.ndarray, seed: Sequence[int], look: Look) -> Columns:
    """Views, points and faces of a grid; `blank` where it is empty."""
    if not voxels.any():
        return blank(look)
    rng = np.random.default_rng(list(seed))
    vertices, triangles = surface(voxels)
    points = surface_points(vertices, triangles, look.stored_points, rng)
    faces, neighbors = mesh_features(
        *simplified((vertices, triangles), look.num_faces), look.num_faces, rng
    )
    azimuths = 2 * np.pi * np.arange(look.stored_views) / look.stored_views
    elevations = np.full(look.stored_views, np.pi / 6)
    return {
        "image": render(vertices[triangles], azimuths, elevations, look.image_size),
        "points": points.astype(np.float32),
        "faces": faces,
        "neighbors": neighbors.astype(np.int16),
    }


def make_objects(first: int, last: int, bits: np.ndarray, stream: int, look: Look) -> Columns:
    """Objects first..last of packed grids [n, 3375]."""
    filled = np.unpackbits(bits[first:last], axis=1, count=SIDE**3).astype(bool)
    grids = filled.reshape(-1, SIDE, SIDE, SIDE)
    return stack([make_object(g, (stream, first + i), look) for i, g in enumerate(grids)])


def thinned(num: int, wanted: int) -> np.ndarray:
    """Indices of `wanted` of `num` objects, evenly spread over the classes they are sorted by."""
    return np.arange(num) if not wanted else np.unique(np.linspace(0, num - 1, wanted).astype(int))


@dataclasses.dataclass(frozen=True)
class VoxelSource:
    """The official split; "dev" is every tenth training object, which "train" then lacks."""

    options: VoxelOptions
    look: Look

    @functools.cached_property
    def file(self) -> dict[str, np.ndarray]:
        """The arrays of the file.

        Raises:
          FileNotFoundError: there is none.
          ValueError: it holds something else.
        """
        path = Path(self.options.file)
        if not path.is_file():
            raise FileNotFoundError(
                f"config.data.file is {str(path)!r}, which does not exist; set it to the file "
                f"modelnet10.npz."
            )
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except Exception as error:  # damaged archives raise nearly anything
            raise ValueError(f"{path} is no whole npz file: {error}.") from error
        for name in ("x_train", "x_test", "y_train", "y_test", "class_names"):
            if name not in arrays:
                raise ValueError(f"{path} lacks the array {name}.")
        if arrays["x_train"].shape[1:] != (SIDE**3 // 8,):
            raise ValueError(
                f"x_train of {path} has the shape {arrays['x_train'].shape}; expected packed grids "
                f"of {SIDE}^3, [n, {SIDE**3 // 8}]."
            )
        return arrays

    def items(self, part: str) -> Columns:
        """All that is stored of "train" or "test", from the cache or made first."""
        options, look = self.options, self.look
        wanted = options.num_train if part == "train" else options.num_test
        kept = thinned(len(self.file[f"x_{part}"]), wanted)
        bits, labels = self.file[f"x_{part}"][kept], self.file[f"y_{part}"][kept]
        arguments = bits, int(part == "test"), look
        columns = load_or_make(
            cache_folder("voxels", options.cache_dir),
            f"modelnet10-{part}",
            (VERSION, part, len(kept), look, bits[:: max(len(bits) // 50, 1)].tobytes()),
            f"{len(kept)} {part} objects of voxels",
            lambda: make_in_chunks(make_objects, arguments, len(kept), options.make_workers, CHUNK),
        )
        filled = np.asarray(bits.any(axis=1))
        return {**columns, "label": labels.astype(np.int32), "filled": filled}

    @functools.cached_property
    def parts(self) -> dict[str, Columns]:
        """The splits. Empty grids teach nothing; in the test split they stay and count."""
        train = self.items("train")
        filled = train.pop("filled")
        if not filled.all():
            logging.warning("left out %d empty grids of the training part", (~filled).sum())
        number = np.cumsum(filled) - 1
        dev = filled & (number % 10 == 9)
        test = self.items("test")
        if not test.pop("filled").all():
            logging.warning("empty grids in the test part count as blank objects")
        return {
            "train": {name: x[filled & ~dev] for name, x in train.items()},
            "dev": {name: x[dev] for name, x in train.items()},
            "test": test,
        }

    @property
    def train(self) -> DrawnObjects:
        """The training objects; index them with `order`."""
        options = self.options
        return DrawnObjects(self.parts["train"], options.num_views, options.num_points)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Indices of an epoch: each object once, with new views and points."""
        return draw_order(len(self.parts["train"]["label"]), seed, epoch)

    @property
    def info(self) -> dict[str, int]:
        """Sizes a model takes from the data."""
        return {"num_classes": len(self.file["class_names"])}

    def retrieval(self, split: str) -> Sequence[RetrievalSplit]:
        """All nine directions between views, points and meshes, for each number of views."""
        options = self.options
        views = options.dev_views if split == "dev" else options.eval_views
        names = [str(name) for name in self.file["class_names"]]
        return stored_splits(split, self.parts[split], views, options.num_points, names)


def make(cfg: Mapping[str, Any]) -> VoxelSource:
    """The source of `config.data`.

    Raises:
      ValueError: an unknown key, or more views or points than are stored.
    """
    options = unpack(VoxelOptions, cfg, also=Look._fields)
    look = Look(**{name: cfg[name] for name in cfg if name in Look._fields})
    most = max(options.num_views, *options.eval_views, *options.dev_views)
    if most > look.stored_views or options.num_points > look.stored_points:
        raise ValueError(
            f"config.data asks for {most} views and {options.num_points} points of an object, of "
            f"which {look.stored_views} and {look.stored_points} are stored; raise stored_views or "
            f"stored_points."
        )
    return VoxelSource(options, look)
