"""Region features of bottom-up attention as {split}_ims.npy, for config.data.source = "precomp"."""

import argparse
import base64
import binascii
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jcmr.core.progress import Progress, printer
from jcmr.data.prepare.files import read_names, require

COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
ORIGIN = (
    "Features of COCO come from https://github.com/peteanderson80/bottom-up-attention (the fixed "
    "36 regions, karpathy_{train,val,test}_*.tsv); those of Flickr30k and the lists "
    "{train,dev,test}_ids.txt with SCAN (https://github.com/kuanghuei/SCAN)."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --out."""
    parser.add_argument(
        "--features", type=Path, nargs="+", required=True,
        help="tab-separated files with the columns " + ", ".join(COLUMNS) + " (base64 float32)",
    )  # fmt: skip
    parser.add_argument(
        "--ids", type=Path, required=True,
        help="one image id a line, in the order to write; an id that repeats in consecutive lines "
        "(once a caption) is written once",
    )  # fmt: skip
    parser.add_argument("--split", required=True, help="train, dev, test or testall")


def read_rows(path: Path) -> Iterator[tuple[int, str, np.ndarray]]:
    """(line, image id, features float32 [regions, width]) of each line of a file.

    Raises:
      ValueError: a line is cut off or malformed.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            cells = line.rstrip(b"\r\n").split(b"\t")
            try:
                _, _, num_boxes, _, features = cells[1:]
                values = np.frombuffer(base64.b64decode(features, validate=True), np.float32)
                values = values.reshape(int(num_boxes), -1)
            except (ValueError, binascii.Error) as error:
                raise ValueError(
                    f"{path}, line {number}: expected {', '.join(COLUMNS)} ({error}); the file is "
                    f"damaged or cut off, fetch it again."
                ) from None
            yield number, cells[0].decode("ascii", "replace").strip(), values


def reserve(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A new memory-mapped float32 .npy file, whose place on the disk is taken.

    Raises:
      OSError: the disk is too small. A map without a place would end the process instead.
    """
    array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            size = array.nbytes / 2**30
            del array
            path.unlink()
            raise OSError(
                error.errno,
                f"{path} needs {size:.1f} GiB: {os.strerror(error.errno or 0)}. Free some space or "
                f"choose another --out.",
            ) from None
    return array


def write_features(paths: Sequence[Path], ids: Sequence[str], out: Path) -> None:
    """Writes the features of the images `ids`, in that order, as float32 [n, regions, width].

    Raises:
      ValueError: an image is missing, or has another number of regions than the first.
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(ids):
        places.setdefault(name, []).append(place)
    wanted = set(places)
    partial = out.with_name(out.name + ".partial")
    array = np.empty((0, 0, 0), np.float32)
    counter = Progress("images", len(wanted), printer())
    for path in paths:
        for number, name, values in read_rows(path):
            if name not in wanted:
                continue
            if not array.size:
                array = reserve(partial, (len(ids), *values.shape))
            if values.shape != array.shape[1:]:
                raise ValueError(
                    f"{path}, line {number}: image {name} has features {values.shape}, others have "
                    f"{array.shape[1:]}; use the features of a fixed number of regions."
                )
            array[places[name]] = values
            wanted.remove(name)
            counter.step()
    if wanted:
        raise ValueError(
            f"{', '.join(map(str, paths))} have no features of {len(wanted)} of the {len(places)} "
            f"images, for instance {min(wanted)}. {ORIGIN}"
        )
    if isinstance(array, np.memmap):
        array.flush()
    os.replace(partial, out)


def run(args: argparse.Namespace) -> None:
    """Writes {split}_ims.npy of the files that the command line names.

    Raises:
      FileNotFoundError: names the file that is missing.
      ValueError: files are damaged or do not belong together.
    """
    for path in (*args.features, args.ids):
        require(path, ORIGIN)
    ids = [name for name, _ in itertools.groupby(read_names(args.ids))]
    if not ids:
        raise ValueError(f"{args.ids} lists no images.")
    args.out.mkdir(parents=True, exist_ok=True)
    write_features(args.features, ids, args.out / f"{args.split}_ims.npy")
