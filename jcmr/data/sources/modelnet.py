"""ModelNet40 and ModelNet10: points in HDF5, meshes as MeshNet reads them, folders of views.

The layout is that of the official downloads, or of `python -m jcmr.prepare modelnet`:

    <points_dir>/ply_data_train0.h5 ... and ply_data_train_0_id2file.json ...
    <mesh_dir>/<class>/<object>.npz, or <mesh_dir>/<class>/<train or test>/<object>.npz
    <image_dir>/<class>/<object>/<object>.<0, 1, ...>.png
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from jcmr.core.types import RetrievalSplit
from jcmr.data.image import decode_image, resize_for_evaluation
from jcmr.data.mesh import pad_faces
from jcmr.data.objects import NUM_DRAWS, draw_of, draw_order, retrieval_splits, spread
from jcmr.data.options import unpack
from jcmr.data.points import choose


class ModelNetOptions(NamedTuple):
    """The data section of a config for this source."""

    dir: str = ""
    points_dir: str = "points"
    mesh_dir: str = "mesh"
    image_dir: str = "images"
    modalities: tuple[str, ...] = ("image", "points", "mesh")
    """Those to read; folders of others need not exist."""
    num_points: int = 1024
    num_faces: int = 1024
    num_views: int = 2
    """Views of a training example."""
    eval_views: tuple[int, ...] = (1, 2, 4)
    dev_views: tuple[int, ...] = (2,)
    image_size: int = 128
    """Shorter side of views as they are handed over; config.data.crop_size is what is seen."""
    missing: str = "refuse"
    """Objects without a mesh or views: "refuse", or "drop" with a warning. The official code puts
    another object in their place without a word."""
    parity: bool = False
    """Draws points with replacement as the official code does, also in evaluation."""


class Object(NamedTuple):
    """Where the parts of an object are."""

    name: str
    label: int
    mesh: Path | None
    views: Path | None


def read_points(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Points [n, p, 3], labels [n] and names "class/object" of a part, files in numeric order.

    Raises:
      FileNotFoundError: no files of that part, or no list of names beside one.
      ValueError: a file and its list of names differ in length, or it is damaged; names it.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("ModelNet's points need `pip install 'jcmr[mesh]'`.") from error
    numbered = {
        int(found[1]): path
        for path in folder.glob(f"ply_data_{part}*.h5")
        if (found := re.fullmatch(rf"ply_data_{part}_?(\d+)\.h5", path.name))
    }
    if not numbered:
        raise FileNotFoundError(
            f"{folder} holds no ply_data_{part}0.h5; set config.data.dir and points_dir to the "
            f"unpacked modelnet40_ply_hdf5_2048, or make it: python -m jcmr.prepare modelnet."
        )
    clouds, labels, names = [], [], []
    for number, path in sorted(numbered.items()):
        listed = folder / f"ply_data_{part}_{number}_id2file.json"
        if not listed.is_file():
            raise FileNotFoundError(f"{listed} does not exist; it names the objects of {path}.")
        try:
            with h5py.File(path, "r") as file:
                data, label = np.asarray(file["data"]), np.asarray(file["label"]).reshape(-1)
        except (OSError, KeyError) as error:
            raise ValueError(f"{path} is no whole HDF5 file of points: {error}.") from error
        found = ["/".join(Path(name).with_suffix("").parts[-2:]) for name in read_json(listed)]
        if not len(data) == len(label) == len(found):
            raise ValueError(
                f"{path} holds {len(data)} objects and {listed.name} names {len(found)}; they do "
                f"not belong together."
            )
        clouds.append(data.astype(np.float32))
        labels.append(label.astype(np.int32))
        names += found
    return np.concatenate(clouds), np.concatenate(labels), names


def read_json(path: Path) -> list[str]:
    """A JSON list of names.

    Raises:
      ValueError: something else; names the file.
    """
    try:
        names = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}.") from error
    if not isinstance(names, list) or not all(isinstance(n, str) and "/" in n for n in names):
        raise ValueError(f'{path} is no list of names such as "airplane/airplane_0001.ply".')
    return names


def read_mesh(path: Path, num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(faces [num, 15], neighbours [num, 3]) of a MeshNet file, padded.

    Raises:
      ValueError: neither spelling of the keys, wrong shapes, or too many faces; names the file.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        faces = arrays["faces" if "faces" in arrays else "face"]
        neighbors = arrays["neighbors" if "neighbors" in arrays else "neighbor_index"]
    except Exception as error:  # damaged archives raise nearly anything
        raise ValueError(
            f"{path} is no MeshNet file: expected the arrays faces [f, 15] and neighbors [f, 3] "
            f"(or face and neighbor_index), found {error}."
        ) from error
    if faces.ndim != 2 or faces.shape[1] != 15 or neighbors.shape != (len(faces), 3):
        raise ValueError(
            f"{path} has faces {faces.shape} and neighbors {neighbors.shape}; expected [f, 15] "
            f"and [f, 3]."
        )
    if neighbors.size and not 0 <= neighbors.min() <= neighbors.max() < len(faces):
        raise ValueError(f"{path} names neighbours that are no faces of it.")
    try:
        return pad_faces(faces, neighbors, num, rng)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_views(folder: Path, numbers: Sequence[int], size: int) -> np.ndarray:
    """Views of an object, uint8 [v, size, size, 3].

    Raises:
      FileNotFoundError, ValueError: a view is missing or damaged; names the file.
    """
    paths = [folder / f"{folder.name}.{number}.png" for number in numbers]
    return np.stack([resize_for_evaluation(decode_image(path), size) for path in paths])


def count_views(folder: Path) -> int:
    """How many views 0, 1, ... a folder has without a gap."""
    count = 0
    while (folder / f"{folder.name}.{count}.png").is_file():
        count += 1
    return count


class Part:
    """The objects of "train" or "test"; views and meshes stay on disk.

    Raises:
      FileNotFoundError: objects lack a mesh or views, and options.missing is "refuse".
    """

    def __init__(self, part: str, options: ModelNetOptions):
        self.options, root = options, Path(options.dir)
        self.points, labels, names = read_points(root / options.points_dir, part)
        meshes, views = root / options.mesh_dir, root / options.image_dir
        self.objects = [
            Object(
                name,
                int(label),
                find_mesh(meshes, name, part) if "mesh" in options.modalities else None,
                views / name if "image" in options.modalities else None,
            )
            for name, label in zip(names, labels)
        ]
        self.num_views = [count_views(o.views) if o.views else 0 for o in self.objects]
        self.drop_incomplete(part)
        self.labels = np.asarray([o.label for o in self.objects], np.int32)

    def drop_incomplete(self, part: str) -> None:
        """Refuses or leaves out objects that lack a mesh or views."""
        needed = max(self.options.num_views, *self.options.eval_views, *self.options.dev_views)
        lacking = {}
        for i, (found, num) in enumerate(zip(self.objects, self.num_views)):
            if found.mesh is not None and not found.mesh.is_file():
                lacking[i] = f"{found.name} has no mesh {found.mesh}"
            elif found.views is not None and num < needed:
                lacking[i] = f"{found.name} has {num} of {needed} views in {found.views}"
        if not lacking:
            return
        first = "; ".join(list(lacking.values())[:3])
        if self.options.missing != "drop":
            raise FileNotFoundError(
                f"{len(lacking)} of {len(self.objects)} {part} objects are incomplete: {first}. "
                f"Add the files, leave the modality out of config.data.modalities, or set "
                f"config.data.missing to 'drop'."
            )
        logging.warning("left out %d incomplete %s objects: %s ...", len(lacking), part, first)
        kept = [i for i in range(len(self.objects)) if i not in lacking]
        self.points = self.points[kept]
        self.objects = [self.objects[i] for i in kept]
        self.num_views = [self.num_views[i] for i in kept]

    def read(
        self, item: int, modalities: Sequence[str], views: Sequence[int], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The asked-for parts of object `item`."""
        found, options, example = self.objects[item], self.options, {}
        if "image" in modalities and found.views is not None:
            example["image"] = read_views(found.views, views, options.image_size)
        if "points" in modalities:
            stored = self.points[item]
            example["points"] = stored[choose(len(stored), options.num_points, rng, options.parity)]
        if "mesh" in modalities and found.mesh is not None:
            faces, neighbors = read_mesh(found.mesh, options.num_faces, rng)
            example |= {"faces": faces, "neighbors": neighbors}
        return example


def find_mesh(folder: Path, name: str, part: str) -> Path:
    """The MeshNet file of "class/object"."""
    kind, stem = name.split("/")
    nested = folder / kind / part / f"{stem}.npz"
    return nested if nested.is_file() else folder / kind / f"{stem}.npz"


class TrainObjects:
    """Training examples, of which views and points are drawn; index them with `draw_order`."""

    def __init__(self, part: Part):
        self.part = part

    def __len__(self) -> int:
        """Number of objects times number of draws."""
        return len(self.part.objects) * NUM_DRAWS

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Example `index`."""
        item, rng = draw_of(int(index))
        options = self.part.options
        views = rng.permutation(max(self.part.num_views[item], 1))[: options.num_views]
        example = self.part.read(item, options.modalities, [*map(int, views)], rng)
        label = np.asarray(self.part.labels[item])
        return example | {"label": label, "id": np.asarray(item, np.int32)}


class Gallery:
    """One modality of a part, the same at every reading."""

    def __init__(self, part: Part, modality: str, num_views: int = 0):
        self.part, self.modality, self.num_views = part, modality, num_views

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.part.objects)

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Item `index`."""
        views = spread(self.part.num_views[index], self.num_views)
        rng = np.random.default_rng([29, index])
        return self.part.read(index, (self.modality,), [*map(int, views)], rng)


@dataclasses.dataclass(frozen=True)
class ModelNetSource:
    """The official split; there is no dev split, and "dev" is the test split as in the papers."""

    options: ModelNetOptions

    @functools.cached_property
    def parts(self) -> dict[str, Part]:
        """Both parts, read when first used."""
        return {part: Part(part, self.options) for part in ("train", "test")}

    @property
    def train(self) -> TrainObjects:
        """The training objects; index them with `order`."""
        return TrainObjects(self.parts["train"])

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Indices of an epoch: each object once, with new views and points."""
        return draw_order(len(self.parts["train"].objects), seed, epoch)

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by label.

        Raises:
          ValueError: objects of one label have names of two classes.
        """
        names: dict[int, str] = {}
        for part in self.parts.values():
            for found in part.objects:
                kind = found.name.split("/")[0]
                if names.setdefault(found.label, kind) != kind:
                    raise ValueError(
                        f"Label {found.label} stands for {names[found.label]} and for {kind} "
                        f"({found.name}): labels and lists of names do not belong together."
                    )
        return tuple(names.get(label, f"class {label}") for label in range(max(names) + 1))

    @property
    def info(self) -> dict[str, int]:
        """Sizes a model takes from the data."""
        return {"num_classes": len(self.class_names)}

    def retrieval(self, split: str) -> Sequence[RetrievalSplit]:
        """All directions between the modalities, for each number of views."""
        options, part = self.options, self.parts["test"]
        views = options.dev_views if split == "dev" else options.eval_views
        images = {v: Gallery(part, "image", v) for v in views}
        others = {m: Gallery(part, m) for m in ("points", "mesh") if m in options.modalities}
        extras = {"class_names": self.class_names}
        images = images if "image" in options.modalities else {}
        return retrieval_splits(split, part.labels, images, others, extras)


def make(cfg: Mapping[str, Any]) -> ModelNetSource:
    """The source of `config.data`.

    Raises:
      ValueError: an unknown key or value.
    """
    options = unpack(ModelNetOptions, cfg)
    if options.missing not in ("refuse", "drop"):
        raise ValueError(f"config.data.missing is {options.missing!r}; it can be refuse or drop.")
    if not options.dir:
        raise ValueError(
            "config.data.dir is empty; set it to the folder of ModelNet's points, meshes and views."
        )
    return ModelNetSource(options)
