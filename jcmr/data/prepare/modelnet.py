"""OFF files to what the source `modelnet` reads: sampled points, faces of meshes, rendered views.

The input has the layout of ModelNet: <off>/<class>/<train or test>/<object>.off. Points and views
stand on the second axis as in the published HDF5 files, faces keep the axes of the OFF file as
MeshNet's do.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from jcmr.data.mesh import mesh_features, surface_points, unit_box_centered
from jcmr.data.points import unit_sphere
from jcmr.data.rasterize import render
from jcmr.data.simplify import load_mesh, simplified

ORIGIN = (
    "ModelNet10 and ModelNet40 come from https://modelnet.cs.princeton.edu; unpack the zip and "
    "give its folder as --off."
)
PARTS = ("train", "test")
ROWS_PER_FILE = 2048
ELEVATION = np.pi / 6


class Sizes(NamedTuple):
    """What is made of each object."""

    num_points: int = 2048
    num_faces: int = 1024
    num_views: int = 12
    image_size: int = 224


def find_objects(folder: Path) -> dict[str, list[Path]]:
    """Part -> its files, by class and name.

    Raises:
      FileNotFoundError: no folder, or no .off files where they are expected.
    """
    found = {part: sorted(folder.glob(f"*/{part}/*.off")) for part in PARTS}
    if not found["train"] and not found["test"]:
        raise FileNotFoundError(
            f"{folder} holds no <class>/train/<object>.off or <class>/test/<object>.off. {ORIGIN}"
        )
    return found


def prepare_object(path: Path, out: Path, sizes: Sizes) -> np.ndarray:
    """Writes the mesh and the views of a file; its points, float32 [p, 3].

    Random numbers depend on the file's name alone.

    Raises:
      ValueError: the file is damaged; names it.
    """
    name, kind = path.stem, path.parts[-3]
    digest = hashlib.sha256(f"{kind}/{name}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    vertices, triangles = load_mesh(path)
    vertices = unit_box_centered(vertices)
    points = unit_sphere(surface_points(vertices, triangles, sizes.num_points, rng))
    small = simplified((vertices, triangles), sizes.num_faces)
    faces, neighbors = mesh_features(*small, sizes.num_faces, rng)
    (out / "mesh" / kind).mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "mesh" / kind / f"{name}.npz", faces=faces, neighbors=neighbors)
    azimuths = 2 * np.pi * np.arange(sizes.num_views) / sizes.num_views
    elevations = np.full(sizes.num_views, ELEVATION)
    folder = out / "images" / kind / name
    folder.mkdir(parents=True, exist_ok=True)
    # ModelNet stands on the third axis.
    upright = vertices[:, [0, 2, 1]] * [1, 1, -1]
    for i in range(sizes.num_views):
        picture = render(
            upright[triangles], azimuths[i : i + 1], elevations[i : i + 1], sizes.image_size
        )
        Image.fromarray(picture[0]).save(folder / f"{name}.{i}.png")
    return points[:, [0, 2, 1]] * np.asarray([1, 1, -1], np.float32)


def write_points(folder: Path, part: str, points: np.ndarray, names: list[str], labels) -> None:
    """ply_data_<part><i>.h5 and its list of names, as ModelNet40's."""
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    for i, start in enumerate(range(0, len(names), ROWS_PER_FILE)):
        rows = slice(start, start + ROWS_PER_FILE)
        with h5py.File(folder / f"ply_data_{part}{i}.h5", "w") as file:
            file["data"] = points[rows]
            file["label"] = np.asarray(labels[rows], np.uint8)[:, None]
        listed = json.dumps([f"{name}.ply" for name in names[rows]])
        (folder / f"ply_data_{part}_{i}_id2file.json").write_text(listed)


def prepare(off: Path, out: Path, sizes: Sizes, workers: int) -> None:
    """Makes the whole folder `out`; it appears when it is complete.

    Raises:
      FileExistsError: `out` is there already.
      FileNotFoundError, ValueError: as `find_objects` and `prepare_object`.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already; give --out a new folder.")
    objects = find_objects(off)
    classes = sorted({path.parts[-3] for paths in objects.values() for path in paths})
    part_folder = out.with_name(f"{out.name}.part")
    shutil.rmtree(part_folder, ignore_errors=True)
    part_folder.mkdir(parents=True)
    for part, paths in objects.items():
        if not paths:
            continue
        arguments = paths, [part_folder] * len(paths), [sizes] * len(paths)
        if workers <= 1:
            made = list(map(prepare_object, *arguments))
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, mp_context=context) as pool:
                made = list(pool.map(prepare_object, *arguments, chunksize=8))
        names = [f"{path.parts[-3]}/{path.stem}" for path in paths]
        labels = [classes.index(path.parts[-3]) for path in paths]
        write_points(part_folder / "points", part, np.stack(made), names, labels)
        logging.info("%d %s objects", len(paths), part)
    (part_folder / "points" / "shape_names.txt").write_text("\n".join(classes) + "\n")
    os.replace(part_folder, out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --out."""
    default = Sizes()
    parser.add_argument("--off", required=True, type=Path, help="folder of ModelNet's OFF files")
    parser.add_argument("--num-points", type=int, default=default.num_points)
    parser.add_argument("--num-faces", type=int, default=default.num_faces)
    parser.add_argument("--num-views", type=int, default=default.num_views)
    parser.add_argument("--image-size", type=int, default=default.image_size)
    parser.add_argument("--workers", type=int, default=2)


def run(args: argparse.Namespace) -> None:
    """Prepares what the command line names.

    Raises:
      ValueError, OSError, ImportError: sentences for people; see `prepare`.
    """
    sizes = Sizes(args.num_points, args.num_faces, args.num_views, args.image_size)
    prepare(args.off, args.out, sizes, args.workers)
