"""Examples in memory or in image files, and whole batches of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from absl import logging

from jcmr.core.types import RandomAccess
from jcmr.data.image import aspect_of, decode_image, resize_for_evaluation, resize_for_training


def stack(examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Examples of equal keys and shapes as one batch."""
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def take(records: RandomAccess, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The examples `indices` of `records` as a batch, in one read where records have `take`."""
    vectorized = getattr(records, "take", None)
    if vectorized is not None:
        return vectorized(np.asarray(indices))
    return stack([records[int(index)] for index in indices])


class Arrays:
    """Arrays that share their leading axis, as random access examples."""

    def __init__(self, columns: Mapping[str, np.ndarray]):
        self.columns = dict(columns)

    def __len__(self) -> int:
        """Number of examples."""
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Row `index` of every array."""
        return {name: np.asarray(column[index]) for name, column in self.columns.items()}

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Rows `indices` of every array."""
        return {name: column[indices] for name, column in self.columns.items()}


class Stored(Protocol):
    """Image files by position, as paths or as bytes."""

    def __getitem__(self, index: int, /) -> str | bytes:
        """File `index`."""
        ...


class Images:
    """Stored pictures as square uint8 images, `{"image": [size, size, 3], "id": []}`.

    Args:
      stored: the files.
      names: what error messages call them.
      size: side of the images returned.
      whole: keep the whole picture, squeezed to a square, and add its `aspect` (width / height),
        for a random crop on the device. Otherwise the centre, as evaluation has it.
      blank: return a black image in place of one that cannot be read (with a warning); otherwise
        that is a ValueError which names the file.
    """

    def __init__(
        self,
        stored: Stored,
        names: Sequence[str],
        size: int,
        whole: bool = False,
        blank: bool = False,
    ):
        self.stored, self.names, self.size = stored, names, size
        self.whole, self.blank = whole, blank
        self.blanks: set[int] = set()

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Reads picture `index`."""
        stored, name = self.stored[index], self.names[index]
        example = {"id": np.asarray(index, np.int32)}
        if self.whole:
            image = decode_image(stored, name, at_least=self.size)
            image = resize_for_training(image, self.size)
            return example | {"image": image, "aspect": np.asarray(aspect_of(stored), np.float32)}
        try:
            image = resize_for_evaluation(decode_image(stored, name), self.size)
        except ValueError as error:
            if not self.blank:
                raise
            if index not in self.blanks:
                self.blanks.add(index)
                logging.warning(
                    "%s It counts as a black image (%d so far).", error, len(self.blanks)
                )
            image = np.zeros((self.size, self.size, 3), np.uint8)
        return example | {"image": image}


def image_files(folder: Path, names: Sequence[str], size: int, **options: bool) -> Images:
    """`Images` of the files `names` of a folder."""
    paths = [str(folder / name) for name in names]
    return Images(paths, paths, size, **options)
