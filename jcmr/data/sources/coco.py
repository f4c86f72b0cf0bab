"""MS-COCO captions in the split of VSE++ and PCME, from what `python -m jcmr.prepare coco` writes.

Train: 113,287 images with five captions each; dev: the first 1,000 of Karpathy's validation images,
as PCME validates; test: his 5,000 test images, all at once (`coco_5k`) and as the mean of five
consecutive folds (`coco_1k`).
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp

from jcmr.core.types import Array, Relevance, RetrievalSplit, by_matrix
from jcmr.data import text
from jcmr.data.captions import CaptionPairs, CaptionSource, caption_split
from jcmr.data.eccv_caption import NAMES, load_matches
from jcmr.data.options import unpack
from jcmr.data.prepared import Index, open_prepared, owners, split_tokens
from jcmr.data.records import Images
from jcmr.data.wordpiece import encode_captions

ORIGIN = (
    "COCO comes from https://cocodataset.org/#download (2014 train and val images, annotations), "
    "the split dataset_coco.json from "
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip. Then run "
    "`python -m jcmr.prepare coco --images=... --annotations=... --out=...` and set "
    "--config.data.dir to its --out."
)
NUM_CATEGORIES = 90
NUM_DEV = 1000
NUM_FOLDS = 5


class CocoOptions(NamedTuple):
    """The data section of a config for this source."""

    dir: str
    image_size: int = 256
    """Side of the square images that are read; the device crops `crop_size` out of them."""
    max_words: int = 32
    captions_per_item: int = 1
    vocabulary: str = ""
    """A vocabulary file or the vocab.txt of a BERT; empty builds one from the training captions."""
    min_count: int = 4
    eccv_dir: str = ""
    """Folder of the json files of eccv-caption; empty does without the relations eccv and cxc."""
    strict: bool = False
    """An image that cannot be read ends the run, instead of being skipped."""


def category_vectors(categories: Sequence[Sequence[int]]) -> np.ndarray:
    """Which categories are in each image, uint8 [n, 90]."""
    vectors = np.zeros((len(categories), NUM_CATEGORIES), np.uint8)
    for row, present in enumerate(categories):
        vectors[row, np.asarray(present, int) - 1] = 1
    return vectors


def at_most(zeta: int, rows: Array, columns: Array) -> Array:
    """Which category vectors [n, c] and [m, c] differ in at most `zeta` places, bool [n, m]."""
    x, y = rows.astype(jnp.float32), columns.astype(jnp.float32)
    both = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    return x.sum(1)[:, None] + y.sum(1)[None, :] - 2 * both <= zeta


MATCHES = {f"pm{zeta}": functools.partial(at_most, zeta) for zeta in (0, 1, 2)}


def plausible_matches(vectors: np.ndarray, owner: np.ndarray) -> dict[str, Relevance]:
    """The relations of PMRP: a caption has the categories of its image."""
    return {name: Relevance(vectors, vectors[owner], match) for name, match in MATCHES.items()}


def with_test_protocols(split: RetrievalSplit, index: Index, eccv_dir: str) -> RetrievalSplit:
    """Adds what is measured on the test split alone: folds, plausible matches, ECCV Caption."""
    num, owner = len(index.names), owners(index)
    vectors = category_vectors(index.columns["categories"])
    known = vectors.sum(axis=1) > 0
    fold = np.arange(num) * NUM_FOLDS // num
    whole = np.zeros(num, int), np.zeros(len(owner), int)
    relevance = {**split.relevance, **plausible_matches(vectors, owner)}
    extras = {
        **split.extras,
        "protocols": {"coco_5k": whole, "coco_1k": (fold, fold[owner])},
        "annotated": (known, known[owner]),
    }
    if eccv_dir:
        ids = index.columns["image_ids"], index.caption_ids
        matches = {name: load_matches(Path(eccv_dir), name, *ids) for name in NAMES}
        relevance |= {name: by_matrix(found.matrix) for name, found in matches.items()}
        extras["queries"] = {name: (m.images, m.captions) for name, m in matches.items()}
    return RetrievalSplit(split.name, split.items, relevance, extras)


def first_images(index: Index, num: int) -> Index:
    """The first `num` images of a split, with their captions; owners are in ascending order."""
    kept = sum(owner < num for owner in index.owner)
    return Index(
        index.names[:num],
        index.captions[:kept],
        index.tokens[:kept],
        index.owner[:kept],
        index.caption_ids[:kept],
        {name: column[:num] for name, column in index.columns.items()},
    )


def make(cfg: Mapping[str, Any]) -> CaptionSource:
    """Opens the prepared folder `cfg.dir`; images are read when they are used.

    Examples are "image" uint8 [image_size, image_size, 3], "id", "text", and "aspect" in training.

    Raises:
      FileNotFoundError: says where the data comes from and how it is prepared.
      ValueError: an unknown option, or data that is not whole.
    """
    config = unpack(CocoOptions, cfg)
    prepared = open_prepared(config.dir, "coco", ORIGIN)
    train = prepared.index("train")
    tokens = split_tokens(train)
    vocabulary = text.get_vocabulary(config.vocabulary, tokens, config.min_count)

    def make_split(split: str) -> RetrievalSplit:
        index = prepared.index(split)
        if split == "dev":
            index = first_images(index, NUM_DEV)
        images = Images(
            prepared.images(split), index.names, config.image_size, blank=not config.strict
        )
        ids = encode_captions(index.captions, split_tokens(index), vocabulary, config.max_words)
        extras = {"captions": index.captions, "names": index.names}
        made = caption_split(split, images, ids, owners(index), extras)
        return with_test_protocols(made, index, config.eccv_dir) if split == "test" else made

    images = Images(prepared.images("train"), train.names, config.image_size, whole=True)
    ids = encode_captions(train.captions, tokens, vocabulary, config.max_words)
    pairs = CaptionPairs(images, ids, owners(train), config.captions_per_item, config.strict)
    info = {"vocab_size": len(vocabulary)}
    return CaptionSource(info, pairs, vocabulary, config.max_words, make_split)
