"""The contract: a cross-modal retrieval system is four pure functions, and what surrounds them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array
Variables = Mapping[str, Any]
"""Linen collections: `params`, and mutable ones such as `batch_stats`."""
Batch = Mapping[str, Any]
"""Arrays that share their leading axis: per device inside a step, per host outside."""
Embedding = Any
"""A pytree whose leaves share the leading axis n: everything a score needs of an item."""


class Term(NamedTuple):
    """One part of the objective, unreduced: the objective is the sum of `weight * sum / count`.

    `sum` and `count` are those of this device; the train step adds them up over devices before it
    divides, so that masks, padding and uneven shards never bias a mean. A term of weight 0 is only
    reported.
    """

    sum: Array | float
    count: Array | float = 1.0
    weight: float = 1.0


Terms = Mapping[str, Term]


class Task(NamedTuple):
    """A retrieval system as four pure functions; trainer, evaluator and scorer know nothing else.

    `axis` is the name of the mapped device axis, or None on one device. `key` is the same on all
    devices; draw noise through `parallel.example_keys`, so that results do not depend on how many
    devices share a batch. Terms hold this device's share of the objective.
    """

    init: Callable[[Array, Batch], Variables]
    """(key, batch) -> variables."""
    loss: Callable[[Variables, Batch, Array, str | None], tuple[Terms, Mapping[str, Any]]]
    """(variables, batch, key, axis) -> (terms, new values of the mutable collections)."""
    encode: Mapping[str, Callable[[Variables, Batch], Embedding]]
    """modality -> (variables, inputs) -> embedding; computed once per item."""
    score: Callable[[Variables, Embedding, Embedding], Array]
    """(variables, query, gallery) -> scores [q, g], higher is better.

    Symmetric systems do not care which side is the query. Others are always called with the
    modality that `encode` lists first as `query`; the evaluator transposes.
    """


class RandomAccess(Protocol):
    """A sequence of examples that can be read in any order, each a dict of numpy arrays."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Example `index`; all examples have the same keys, shapes and dtypes."""
        ...


class Relevance(NamedTuple):
    """Which query matches which gallery item, computed tile by tile so that n x m is never held.

    `match(rows[i], columns[j])` is the boolean matrix of a tile; it is traced inside jit.
    """

    rows: np.ndarray
    columns: np.ndarray
    match: Callable[[Array, Array], Array]
    skip: Callable[[Array, Array], Array] | None = None
    """As `match`: pairs that are not compared at all, for instance an item with itself. They must
    not match."""


class RetrievalSplit(NamedTuple):
    """What an evaluator needs of a data split: two galleries and who matches whom.

    A single gallery is searched with its own items.
    """

    name: str
    items: Mapping[str, RandomAccess]
    """modality -> its items, in the order query modality (rows), gallery modality (columns)."""
    relevance: Mapping[str, Relevance]
    """name -> relation, for instance `own` (the caption was written for the image) or `exact`."""
    extras: Mapping[str, Any] = {}
    """What reports may use: raw captions, image ids, folds."""


Splits = RetrievalSplit | Sequence[RetrievalSplit]
"""One split, or several whose metrics belong together. Galleries that are the same object are
embedded once; where splits have the same name, their mean is reported under it as well."""


def split_list(splits: Splits) -> list[RetrievalSplit]:
    """The splits, also where there is only one."""
    return [splits] if isinstance(splits, RetrievalSplit) else list(splits)


class Source(Protocol):
    """A data set: its training examples and the splits to retrieve in."""

    info: Mapping[str, int]
    """Sizes that a model takes from the data (`vocab_size`, `feature_dim`, `num_classes`)."""
    train: RandomAccess

    def retrieval(self, split: str) -> Splits:
        """The galleries of `split` ("dev" or "test")."""
        ...


class Knowledge(NamedTuple):
    """Captions that a reader may look up: one state of what an index holds."""

    captions: Sequence[str]
    owner: np.ndarray
    """int64 [m], id of the picture that a caption was written for, -1 for none: a question about
    that picture must not find it."""
    pictures: RandomAccess | None = None
    """The picture of each caption, where there are any."""


class QuestionSplit(NamedTuple):
    """What an evaluator needs of a data split of visual questions."""

    name: str
    examples: RandomAccess
    """Each with "question" [t] and a picture ("image", or "regions"). Where captions have owners it
    has an attribute `picture_ids`, int [n]."""
    kinds: np.ndarray
    """Type of each question, str [n]."""
    groups: Mapping[str, np.ndarray]
    """name -> bool [n], the questions whose accuracy is reported under that name."""
    truths: Mapping[str, RandomAccess]
    """Knowledge -> its answers, each {"answer": [v]}, what an answer is worth in 0 to 1. The first
    also holds where nothing else is said."""
    oracle: Mapping[str, np.ndarray] = {}
    """Knowledge -> int [n, k], rows of its captions that answer each question, -1 for none."""
    texts: Sequence[str] = ()
    """The questions as they read."""


class QuestionSource(Protocol):
    """A data set of visual questions, with or without captions to look up."""

    info: Mapping[str, int]
    train: RandomAccess
    """As `QuestionSplit.examples`, with "answer"."""
    answers: Sequence[str]
    """The v answers that can be given."""
    answer_text: np.ndarray
    """Their word ids, int32 [v, a], 0 = pad."""
    vocabulary: Mapping[str, int]
    train_knowledge: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """Knowledge -> (rows of `train` that look up in it, their oracle as in `QuestionSplit`)."""

    def questions(self, split: str) -> QuestionSplit:
        """The questions of `split` ("dev" or "test")."""
        ...

    def knowledge(self, name: str) -> Knowledge:
        """The captions of a state of knowledge."""
        ...

    def tokenize(self, captions: Sequence[str]) -> np.ndarray:
        """Word ids of captions, int32 [n, t]."""
        ...


# Functions of the module, as programs are compiled for each function that they are given.


def equal(rows: Array, columns: Array) -> Array:
    """Which of rows [n] equal which of columns [m]."""
    return rows[:, None] == columns[None, :]


def same_row(rows: Array, columns: Array) -> Array:
    """Which of rows [n, 2] and columns [m, 2], label and row number, are the same item."""
    return equal(rows[:, 1], columns[:, 1])


def same_label(rows: Array, columns: Array) -> Array:
    """Which have the same label without being the same item."""
    return equal(rows[:, 0], columns[:, 0]) & ~same_row(rows, columns)


def entries(rows: Array, columns: Array) -> Array:
    """Columns [m] of the rows [n, ...] of a matrix, [n, m]."""
    return rows[:, columns]


def same_id(row_ids: Sequence[int] | np.ndarray, column_ids: Sequence[int] | np.ndarray):
    """Relevance by equal integer ids: own pairs (image ids) or classes (labels)."""
    return Relevance(np.asarray(row_ids, np.int32), np.asarray(column_ids, np.int32), equal)


def same_class(row_labels: np.ndarray, column_labels: np.ndarray, self_match: bool = True):
    """Relevance by equal labels; without `self_match` equal row numbers are not compared.

    That is for the items of one data set in two galleries, where item i is the same object in both.
    """
    if self_match:
        return same_id(row_labels, column_labels)

    def keys(labels: np.ndarray) -> np.ndarray:
        return np.stack([labels, np.arange(len(labels))], axis=1).astype(np.int32)

    return Relevance(keys(row_labels), keys(column_labels), same_label, same_row)


def by_matrix(matrix: np.ndarray) -> Relevance:
    """Relevance given as a boolean matrix [n, m]."""
    return Relevance(np.asarray(matrix, bool), np.arange(matrix.shape[1], dtype=np.int32), entries)
