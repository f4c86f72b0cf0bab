"""Frozen region or grid features with captions, in the file layout of SCAN and VSE++.

`{split}_ims.npy` (or `{split}_feat.npy`) float [n, r, d] or [n, d], memory-mapped;
`{split}_caps.txt` one caption a line; `{split}_ids.txt` (optional) one image name a line. Captions
are 5 an image, in image order, or one a row; rows that repeat each image 5 times are seen as such.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from jcmr.core.types import RetrievalSplit
from jcmr.data import text
from jcmr.data.captions import CaptionPairs, CaptionSource, caption_split
from jcmr.data.options import unpack
from jcmr.data.wordpiece import encode_captions


class PrecompOptions(NamedTuple):
    """The data section of a config for this source."""

    dir: str
    max_words: int = 32
    captions_per_item: int = 1
    captions_per_image: int = 5
    """What the files hold for each image."""
    vocabulary: str = ""
    """A vocabulary file or the vocab.txt of a BERT; empty builds one from the training captions."""
    min_count: int = 1
    stem: bool = False
    """Cuts the endings of words off, which small data needs."""
    test_files: str = "test"
    """Which files the test split reads; COCO's are "testall"."""
    test_protocols: tuple[tuple[str, int], ...] = ()
    """(name, number of folds) of each protocol of the test split: its images are cut into so many
    equal folds in their order, and metrics are averaged over them. Empty is all of them at once."""


def missing(path: Path) -> FileNotFoundError:
    """The error for a file that is not there."""
    return FileNotFoundError(
        f"There is no {path}. This source reads {{train,dev,test}}_ims.npy and _caps.txt, as "
        f"published with SCAN (https://github.com/kuanghuei/SCAN) or made from your own features; "
        f"see `python -m jcmr.prepare precomp --help`, or set config.data.dir."
    )


def features_path(root: Path, split: str) -> Path:
    """The file of image features of `split`."""
    names = (f"{split}_ims.npy", f"{split}_feat.npy")
    found = [root / name for name in names if (root / name).is_file()]
    if not found:
        raise missing(root / names[0])
    return found[0]


def open_features(path: Path) -> np.ndarray:
    """The memory-mapped array, [n, r, d]; [n, d] counts as one region.

    Raises:
      ValueError: the file is cut off, is no .npy file, or holds something else.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is cut off or no .npy file ({error}); copy it "
            f"again."
        ) from None
    if array.ndim not in (2, 3) or array.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(
            f"{path} holds {array.dtype} {array.shape}; expected float features [images, regions, "
            f"width] or [images, width]."
        )
    return array[:, None] if array.ndim == 2 else array


class Regions:
    """Rows of a feature file, `{"regions": float32 [r, d], "id": []}`.

    Regions that are all zero are kept, and named once in a warning.

    Args:
      path: the .npy file.
      step: every how many rows an image begins (rows may repeat each image).
    """

    def __init__(self, path: Path, step: int = 1):
        self.path, self.step, self.warned = path, step, False

    @functools.cached_property
    def array(self) -> np.ndarray:
        """The memory map."""
        return open_features(self.path)[:: self.step]

    def __getstate__(self) -> dict[str, Any]:
        """Workers open the file themselves; a pickled memory map would be all of its content."""
        return {name: value for name, value in self.__dict__.items() if name != "array"}

    def __len__(self) -> int:
        """Number of images."""
        return len(self.array)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Image `index`."""
        return {name: column[0] for name, column in self.take(np.asarray([index])).items()}

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Images `indices` as a batch.

        Raises:
          ValueError: a value is not finite; names file and row.
        """
        regions = np.asarray(self.array[indices], np.float32)
        if not np.isfinite(regions.sum()):
            bad = ~np.isfinite(regions).all(axis=(1, 2))
            if bad.any():
                row = int(np.asarray(indices)[bad][0]) * self.step
                raise ValueError(f"{self.path}, row {row}: a feature is NaN or infinite.")
        # Few columns rule out nearly every region, the rest is looked at in full.
        suspects = np.argwhere(~regions[:, :, :16].any(axis=-1))
        zero = [(i, r) for i, r in suspects if not regions[i, r].any()]
        if zero and not self.warned:
            self.warned = True
            image, region = zero[0]
            row = int(np.asarray(indices)[image]) * self.step
            logging.warning(
                "%s, row %d: region %d is all zero; it and others like it are kept as they are.",
                self.path,
                row,
                region,
            )
        return {"regions": regions, "id": np.asarray(indices, np.int32)}


class Split(NamedTuple):
    """The checked files of a split."""

    images: Regions
    captions: list[str]
    tokens: list[list[str]]
    owner: np.ndarray
    names: list[str]


def read_split(root: Path, split: str, captions_per_image: int, stem: bool = False) -> Split:
    """Opens a split and checks that its files belong together.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: counts do not fit, or a caption is empty or not UTF-8.
    """
    path, captions_path = features_path(root, split), root / f"{split}_caps.txt"
    if not captions_path.is_file():
        raise missing(captions_path)
    array = open_features(path)
    captions = text.read_lines(captions_path)
    tokens = text.tokenize_captions(captions, captions_path, stem=stem)
    rows, k = len(array), captions_per_image
    if len(captions) not in (rows, k * rows):
        raise ValueError(
            f"{path} has {rows} rows and {captions_path} has {len(captions)} captions; expected "
            f"{k * rows} ({k} an image) or {rows}. Set config.data.captions_per_image, or fetch "
            f"the shorter file again."
        )
    repeated = len(captions) == rows and rows % k == 0 and (array[1:k] == array[:1]).all() and k > 1
    step = k if repeated else 1
    images = Regions(path, step)
    names = read_names(root, split, len(images), (rows, len(captions)))
    owner = np.arange(len(captions), dtype=np.int32) // (len(captions) // len(images))
    return Split(images, captions, tokens, owner, names)


def fold_protocols(
    split: Split, protocols: Sequence[tuple[str, int]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Protocol -> fold of each image and of each caption; folds are contiguous and equal.

    Raises:
      ValueError: the images cannot be shared equally.
    """
    num, found = len(split.images), {}
    for name, folds in protocols:
        if folds < 1 or num % folds:
            raise ValueError(
                f"config.data.test_protocols cuts the {num} images of {split.images.path} into "
                f"{folds} folds ({name}); they cannot be shared equally."
            )
        fold = np.arange(num, dtype=np.int32) // (num // folds)
        found[name] = fold, fold[split.owner]
    return found


def read_names(root: Path, split: str, images: int, repeated: tuple[int, int]) -> list[str]:
    """Names of the images of a split; their numbers where there is no file of names.

    The file has a name for each image, or for each row of features or each caption (`repeated`).
    """
    path = root / f"{split}_ids.txt"
    if not path.is_file():
        return [str(index) for index in range(images)]
    names = text.read_lines(path)
    if len(names) not in (images, *repeated):
        raise ValueError(f"{path} has {len(names)} names for {repeated[0]} rows of features.")
    return names[:: len(names) // images]


def make(cfg: Mapping[str, Any]) -> CaptionSource:
    """Opens the training split of `cfg.dir`; the others are opened when they are asked for.

    Examples are "regions" float32 [r, d], "id" and "text". `retrieval` takes any split that has
    files, for instance "testall".
    """
    config = unpack(PrecompOptions, cfg)
    root = Path(config.dir)
    train = read_split(root, "train", config.captions_per_image, config.stem)
    shape = train.images.array.shape[1:]
    vocabulary = text.get_vocabulary(config.vocabulary, train.tokens, config.min_count)

    def make_split(name: str) -> RetrievalSplit:
        files = config.test_files if name == "test" else name
        split = read_split(root, files, config.captions_per_image, config.stem)
        found = split.images.array.shape[1:]
        if found != shape:
            raise ValueError(
                f"{split.images.path} holds features [regions, width] {found}, {train.images.path} "
                f"holds {shape}; both must come from one extractor."
            )
        ids = encode_captions(split.captions, split.tokens, vocabulary, config.max_words)
        extras: dict[str, Any] = {"captions": split.captions, "names": split.names}
        if name == "test" and config.test_protocols:
            extras["protocols"] = fold_protocols(split, config.test_protocols)
        return caption_split(name, split.images, ids, split.owner, extras)

    ids = encode_captions(train.captions, train.tokens, vocabulary, config.max_words)
    pairs = CaptionPairs(train.images, ids, train.owner, config.captions_per_item)
    info = {"vocab_size": len(vocabulary), "num_regions": shape[0], "feature_dim": shape[1]}
    return CaptionSource(info, pairs, vocabulary, config.max_words, make_split, config.stem)
