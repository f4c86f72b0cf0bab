"""The folder that `python -m jcmr.prepare coco` and `cub` write and their sources read.

`images/` holds the pictures (see `tfds_builder`), `{split}.json` what is known of them, and
`prepared.json`, which is written last, every file with its size. The folder appears whole or not at
all; a copy that is not whole is told by the sizes.
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jcmr.data.tfds_builder import Encode, StoredImages, write_images

MANIFEST = "prepared.json"
VERSION = 1


class Index(NamedTuple):
    """What is known of the images of a split, in the order of its pictures."""

    names: list[str]
    captions: list[str]
    tokens: list[str]
    """Of each caption, separated by spaces."""
    owner: list[int]
    """Position of each caption's image."""
    caption_ids: list[int]
    """What a caption is called where it comes from."""
    columns: dict[str, list]
    """More about each image."""


def write_prepared(
    out: Path,
    kind: str,
    files: Mapping[str, Sequence[Path]],
    indices: Mapping[str, Index],
    encode: Encode,
) -> None:
    """Writes the folder `out`.

    Args:
      out: where it will be; must not exist, or be empty.
      kind: who can read it, for instance "coco".
      files: split -> the image files.
      indices: split -> what is known of them.
      encode: image files -> what is stored of each.

    Raises:
      FileExistsError: `out` is there already.
      OSError: the disk is full.
    """
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        write_images(part / "images", files, encode)
        for split, index in indices.items():
            (part / f"{split}.json").write_text(json.dumps(index._asdict()), "utf-8")
        written = sorted(path for path in part.rglob("*") if path.is_file())
        sizes = {str(path.relative_to(part)): path.stat().st_size for path in written}
        manifest = {"kind": kind, "version": VERSION, "files": sizes}
        (part / MANIFEST).write_text(json.dumps(manifest, indent=2), "utf-8")
        os.replace(part, out)
    except (OSError, RuntimeError) as error:
        # array_record reports the file system's errors as RuntimeError.
        if getattr(error, "errno", 0) != errno.ENOSPC and "No space left" not in str(error):
            raise
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(
            errno.ENOSPC,
            f"The disk is full: {out} was not written, and what there was of it is removed. Free "
            f"some space, choose another --out or a smaller --size, and run the command again.",
        ) from error


def check_free(out: Path) -> None:
    """Raises FileExistsError where `write_prepared` would not write."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty; give --out another folder.")


class Prepared(NamedTuple):
    """A prepared folder that was found whole."""

    root: Path

    def index(self, split: str) -> Index:
        """What is known of the images of a split.

        Raises:
          ValueError: there is no such split.
        """
        path = self.root / f"{split}.json"
        if not path.is_file():
            names = sorted(path.stem for path in self.root.glob("*.json") if path.name != MANIFEST)
            raise ValueError(f"{self.root} has no split {split!r}; it has {', '.join(names)}.")
        return Index(**json.loads(path.read_text("utf-8")))

    def images(self, split: str) -> StoredImages:
        """The pictures of a split, as bytes."""
        return StoredImages(self.root / "images", split)


def open_prepared(folder: str, kind: str, origin: str) -> Prepared:
    """Opens a prepared folder after looking at its file sizes.

    Args:
      folder: config.data.dir.
      kind: what it must be, for instance "coco".
      origin: a sentence for who does not have it: where the data comes from, how to prepare it.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: it was prepared for another source or another version, or is not whole.
    """
    root = Path(folder)
    path = root / MANIFEST
    if not folder or not path.is_file():
        where = f"There is no {path}." if folder else "config.data.dir is not set."
        part = root.with_name(root.name + ".part") if root.name else root
        stopped = folder and part.is_dir()
        left = f" {part} is what a prepare command left that was stopped." if stopped else ""
        raise FileNotFoundError(f"{where}{left} {origin}")
    try:
        manifest: Any = json.loads(path.read_text("utf-8"))
        found = manifest["kind"], manifest["version"]
        sizes = dict(manifest["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); prepare the data again.") from None
    if found != (kind, VERSION):
        raise ValueError(
            f"{root} holds prepared {found[0]!r} data of version {found[1]}; this source reads "
            f"{kind!r} of version {VERSION}. {origin}"
        )
    for name, size in sizes.items():
        file = root / name
        there = file.stat().st_size if file.is_file() else 0
        if there != size:
            raise ValueError(
                f"{file} has {there} of {size} bytes: {root} is not whole. Copy it again, or "
                f"prepare it again."
            )
    return Prepared(root)


def split_tokens(index: Index) -> list[list[str]]:
    """The tokens of each caption."""
    return [tokens.split(" ") for tokens in index.tokens]


def owners(index: Index) -> np.ndarray:
    """Position of each caption's image, int32 [m]."""
    return np.asarray(index.owner, np.int32)
