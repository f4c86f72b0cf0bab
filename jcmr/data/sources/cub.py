"""CUB-200-2011 with ten captions an image, from the folder of `python -m jcmr.prepare cub`.

Train: images of 150 classes; dev: images of these classes that were held out (1,764 in the split of
PCME); test: all images of 50 other classes. A text matches all images of its class.

An epoch is a sequence of rounds, each of which has one example of every class. With a batch size
that is the number of classes, as in the official code, or divides it, no class is twice in a batch.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jcmr.core.types import RetrievalSplit, same_id
from jcmr.data import text
from jcmr.data.captions import CaptionPairs, CaptionSource, caption_split
from jcmr.data.options import unpack
from jcmr.data.prepared import open_prepared, owners, split_tokens
from jcmr.data.records import Images

ORIGIN = (
    "CUB-200-2011 comes from https://www.vision.caltech.edu/datasets/cub_200_2011, the captions "
    "text_c10 with https://github.com/reedscot/cvpr2016, the lists of classes from "
    "https://github.com/naver-ai/pcme (datasets/annotations/cub). Then run `python -m jcmr.prepare "
    "cub --images=CUB_200_2011 --captions=text_c10 --splits=... --out=...` and set "
    "--config.data.dir to its --out."
)


class CubOptions(NamedTuple):
    """The data section of a config for this source."""

    dir: str
    image_size: int = 256
    """Side of the square images that are read; the device crops `crop_size` out of them."""
    whole_image: bool = False
    """Training images keep the whole picture, for a random crop; else the centre, as in PCME."""
    max_words: int = 48
    vocabulary: str = ""
    """A vocabulary file; empty builds one from the training captions."""
    min_count: int = 4
    strict: bool = False
    """An image that cannot be read ends the run, instead of being skipped."""


def class_rounds(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """One epoch of examples, round after round of one example of each class, int [rounds * c].

    There are as many rounds as fit into the number of examples. A class goes through a permutation
    of its examples before it repeats one; small classes repeat within an epoch.

    Args:
      labels: class of each example, int [n].
      seed: of the run.
      epoch: another one has another order.
    """
    rng = np.random.default_rng([seed, epoch])
    classes = np.unique(labels)
    rounds = max(len(labels) // len(classes), 1)
    chosen = np.empty((rounds, len(classes)), int)
    for column, label in enumerate(classes):
        own = np.flatnonzero(labels == label)
        repeats = -(-rounds // len(own))
        drawn = np.concatenate([rng.permutation(own) for _ in range(repeats)])
        chosen[:, column] = drawn[:rounds]
    return rng.permuted(chosen, axis=1).reshape(-1)


def make(cfg: Mapping[str, Any]) -> CaptionSource:
    """Opens the prepared folder `cfg.dir`; images are read when they are used.

    Examples are "image" uint8 [image_size, image_size, 3], "id" and "text".

    Raises:
      FileNotFoundError: says where the data comes from and how it is prepared.
      ValueError: an unknown option, or data that is not whole.
    """
    config = unpack(CubOptions, cfg)
    prepared = open_prepared(config.dir, "cub", ORIGIN)
    train = prepared.index("train")
    tokens = split_tokens(train)
    vocabulary = text.get_vocabulary(config.vocabulary, tokens, config.min_count)

    def make_split(split: str) -> RetrievalSplit:
        index = prepared.index(split)
        images = Images(
            prepared.images(split), index.names, config.image_size, blank=not config.strict
        )
        ids = text.encode_all(split_tokens(index), vocabulary, config.max_words)
        labels, owner = np.asarray(index.columns["labels"]), owners(index)
        extras = {"captions": index.captions, "names": index.names}
        made = caption_split(split, images, ids, owner, extras)
        return made._replace(relevance={"class": same_id(labels, labels[owner])})

    images = Images(
        prepared.images("train"), train.names, config.image_size, whole=config.whole_image
    )
    ids = text.encode_all(tokens, vocabulary, config.max_words)
    pairs = CaptionPairs(images, ids, owners(train), strict=config.strict)
    labels = np.asarray(train.columns["labels"])[pairs.image_of]
    return CaptionSource(
        {"vocab_size": len(vocabulary)},
        pairs,
        vocabulary,
        config.max_words,
        make_split,
        order=functools.partial(class_rounds, labels),
    )
