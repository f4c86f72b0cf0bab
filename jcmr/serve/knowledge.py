"""What a retriever finds for questions: captions in an index that is swapped while it is used.

A retriever is the folder of a run of any system whose embeddings are one vector an item and whose
score is their inner product. It embeds the captions of a state of knowledge once, as a snapshot of
the index, and the pictures of questions once. What a reader then gets are the words of the captions
that were found: a swap changes the index and nothing else.
"""

import functools
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jax.sharding import Mesh

from jcmr.core.types import Knowledge, QuestionSource, QuestionSplit, RandomAccess, Variables
from jcmr.data import augment
from jcmr.data.cache import load_or_make
from jcmr.data.questions import picture_ids
from jcmr.data.records import Arrays, stack, take
from jcmr.data.text import SPECIAL
from jcmr.eval.embed import embed
from jcmr.index.live import Index, open_index, refresh
from jcmr.index.snapshot import make_snapshot, unit_rows
from jcmr.index.store import Store
from jcmr.models import reader
from jcmr.serve.items import make_read
from jcmr.serve.load import Config, load_run

ALIAS = "live"
MODES = ("retrieved", "none", "random", "oracle")


class Lookup(NamedTuple):
    """The section config.lookup."""

    num: int = 8
    """K, captions a question."""
    mode: str = "retrieved"
    """What a reader learns from: captions "retrieved", "none", those of "random" other questions,
    or from an "oracle"."""
    pictures: bool = False
    """Whether a reader also gets the embeddings of the captions' pictures."""
    question_weight: float = 0.0
    """What the question counts beside the picture in what is looked up: the unit vectors of both
    are added, that of the question times this."""
    share_tower: bool = False
    """Whether the reader's image tower starts from that of the retriever."""
    batch_size: int = 256
    """Items embedded at a time."""


class Hits(NamedTuple):
    """What was found for n questions."""

    rows: np.ndarray
    """int32 [n, k], rows of the captions, -1 where there are fewer."""
    scores: np.ndarray
    """float32 [n, k]."""


class WithCaptions:
    """Examples, each with the words and scores of the captions that were found for it."""

    def __init__(
        self,
        examples: RandomAccess,
        hits: Hits,
        columns: Mapping[str, np.ndarray],
        which: np.ndarray,
    ):
        """N examples.

        Args:
          examples: questions.
          hits: what was found for them.
          columns: "retrieved" int32 [states, m, t], the words of all captions, and others that are
            to come along, [states, m, ...].
          which: [n], the state of each example.
        """
        self.examples, self.hits, self.columns, self.which = examples, hits, columns, which

    @property
    def picture_ids(self) -> np.ndarray:
        """Those of the questions."""
        return picture_ids(self.examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Example `index`."""
        return {name: column[0] for name, column in self.take(np.asarray([index])).items()}

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Examples `indices` [b], or groups of them [b, q], as a batch."""
        rows, scores = (x[indices] for x in self.hits)
        there = rows >= 0
        states, rows = self.which[indices][..., None], np.maximum(rows, 0)
        found = {name: column[states, rows] for name, column in self.columns.items()}
        return {
            **take(self.examples, indices),
            **{name: np.where(there[..., None], x, 0) for name, x in found.items()},
            "retrieved_score": np.where(there, scores, 0).astype(np.float32),
        }


class Retriever:
    """A trained system that embeds pictures and captions."""

    def __init__(self, folder: Path, batch_size: int, mesh: Mesh):
        """Loads the run in `folder`; its data need not be there.

        Raises:
          FileNotFoundError: there is no run.
          ValueError: its embeddings are not one vector an item.
        """
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} is no --workdir of a run of a retriever. Set config.retriever to one; "
                f"left empty, a small one is trained first by --mode=train."
            )
        self.run = load_run(folder, mesh)
        self.fingerprint = f"{self.run.config.task}-{self.run.fingerprint}"
        self.prepare = augment.make_prepare(self.run.config.data)
        self.read_text, _ = make_read(self.run, "text")
        self.batch_size, self.mesh, self.folder = batch_size, mesh, folder

    def vectors(self, items: RandomAccess, modality: str) -> np.ndarray:
        """Embeddings float32 [n, d] of items."""
        size = self.batch_size
        task, variables = self.run.task, self.run.variables
        found = embed(task, variables, items, modality, size, self.prepare, self.mesh)
        found = getattr(found, "mean", found)  # a Gaussian's
        if not isinstance(found, np.ndarray) or found.ndim != 2:
            raise ValueError(
                f"The run in {self.folder} embeds a {modality} as more than one vector; an index "
                f"takes systems such as dxr, vse or a deterministic pcme."
            )
        return found

    def captions(self, captions: Sequence[str]) -> np.ndarray:
        """Embeddings of captions."""
        texts = stack([self.read_text(caption, i) for i, caption in enumerate(captions)])
        return self.vectors(Arrays({**texts, "id": np.arange(len(captions))}), "text")

    def questions(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of questions, equal ones embedded once."""
        distinct, which = np.unique(np.asarray(texts, object), return_inverse=True)
        return self.captions(distinct.tolist())[which]

    def pictures(self, examples: RandomAccess) -> np.ndarray:
        """Embeddings of the pictures of questions, each picture embedded once."""
        ids = np.asarray(getattr(examples, "picture_ids", np.arange(len(examples))))
        _, first, which = np.unique(ids, return_index=True, return_inverse=True)
        return self.vectors(Pictures(examples, first), "image")[which]


class Pictures:
    """What a retriever takes of some questions."""

    def __init__(self, examples: RandomAccess, rows: np.ndarray):
        self.examples, self.rows = examples, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Picture `index`."""
        return {name: column[0] for name, column in self.take(np.asarray([index])).items()}

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Pictures `indices`."""
        batch = take(self.examples, self.rows[indices])
        kept = {name: batch[name] for name in ("image", "regions") if name in batch}
        return {**kept, "id": np.asarray(indices, np.int32)}


def read_options(cfg: Mapping[str, Any]) -> Lookup:
    """Checks config.lookup.

    Raises:
      ValueError: an unknown key or mode.
    """
    known = Lookup._fields
    for name in cfg:
        if name not in known:
            raise ValueError(f"config.lookup has no option {name!r}; known are {', '.join(known)}.")
    options = Lookup(**cfg)
    if options.mode not in MODES:
        raise ValueError(f"config.lookup.mode is {options.mode!r}; it can be {', '.join(MODES)}.")
    return options


class Library:
    """Questions and what is found for them in each state of knowledge, by one index.

    `swaps` are the seconds that the swaps of the live index took, in order.
    """

    def __init__(
        self, config: Config, retriever: Path, folder: Path, source: QuestionSource, mesh: Mesh
    ):
        """Opens the retriever's run, and the index in `folder`."""
        self.options = read_options(config.get("lookup", {}))
        self.source, self.folder = source, folder
        self.retriever = Retriever(retriever, self.options.batch_size, mesh)
        self.store = Store(folder / "index")
        self.index: Index | None = None
        self.swaps: list[float] = []
        self.of_pictures: dict[RandomAccess, np.ndarray] = {}
        self.embedded: dict[int, tuple[RandomAccess, np.ndarray]] = {}

    def captions(self, state: str) -> Sequence[str]:
        """The captions of a state of knowledge, by the rows of hits."""
        return self.source.knowledge(state).captions

    @functools.cache  # noqa: B019
    def snapshot_name(self, state: str) -> str:
        """What the snapshot of a state of knowledge is called: by its captions and its encoder."""
        told = "\n".join(self.captions(state)).encode()
        return f"{state}.{hashlib.sha256(told).hexdigest()[:16]}.{self.retriever.fingerprint}"

    def ensure(self, state: str) -> None:
        """Writes the snapshot of a state of knowledge, if it is not there yet."""
        name = self.snapshot_name(state)
        if name not in self.store.names():
            known = self.source.knowledge(state)
            vectors = self.retriever.captions(known.captions)
            ids, payloads = np.arange(len(vectors)), list(known.captions)
            made = self.retriever.fingerprint
            self.store.save(name, make_snapshot(ids, vectors, payloads, encoder=made))
            logging.info("indexed %d captions of %s", len(vectors), state)

    def swap(self, state: str) -> Index:
        """Makes a state of knowledge the live one."""
        self.ensure(state)
        began = time.perf_counter()
        self.store.swap(ALIAS, self.snapshot_name(state))
        if self.index is None:
            self.index = open_index(self.store, ALIAS)
        else:
            refresh(self.index, self.store, ALIAS)
            self.swaps.append(time.perf_counter() - began)
        return self.index

    def find(self, examples: RandomAccess, state: str, rows: np.ndarray | None = None) -> Hits:
        """The K captions nearest to each question, but none of its picture's own; see `queries`.

        Args:
          examples: the questions.
          state: of knowledge.
          rows: those of `examples` that ask; all when None.
        """
        key = id(examples)
        if key not in self.embedded:
            self.embedded[key] = examples, self.queries(examples)
        rows = np.arange(len(examples)) if rows is None else rows
        queries = self.embedded[key][1][rows]
        index = self.swap(state)
        own = own_captions(examples, rows, self.source.knowledge(state))
        made, num = self.retriever.fingerprint, min(self.options.num, len(index.live.snapshot))
        found = index.search(queries, num, exclude=own, encoder=made)
        width = ((0, 0), (0, self.options.num - num))
        ids = np.where(found.valid, found.ids, -1).astype(np.int32)
        scores = np.where(found.valid, found.scores, 0).astype(np.float32)
        return Hits(
            np.pad(ids, width, constant_values=-1), np.pad(scores, width, constant_values=0)
        )

    def queries(self, examples: RandomAccess) -> np.ndarray:
        """What is looked up for questions, float32 [n, d]: their pictures, or what both say."""
        pictures, weight = self.retriever.pictures(examples), self.options.question_weight
        if not weight:
            return pictures
        names = {index: word for word, index in self.vocabulary.items()}
        ids: np.ndarray = getattr(examples, "text")  # noqa: B009
        said = [" ".join(names[i] for i in row.tolist() if i >= len(SPECIAL)) for row in ids]
        questions = unit_rows(self.retriever.questions(said))
        return unit_rows(unit_rows(pictures) + weight * questions)

    def with_tower(self, variables: Variables) -> Variables:
        """A reader's fresh variables, with the retriever's image tower if config.lookup says so."""
        if not self.options.share_tower:
            return variables
        return reader.with_tower(variables, self.retriever.run.variables)

    @property
    def info(self) -> Mapping[str, int]:
        """Sizes of the data."""
        return self.source.info

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Word -> id."""
        return self.source.vocabulary

    @property
    def answers(self) -> Sequence[str]:
        """All answers."""
        return self.source.answers

    @functools.cache  # noqa: B019
    def questions(self, split: str) -> QuestionSplit:
        """The questions of a split, without captions."""
        return self.source.questions(split)

    @functools.cached_property
    def train(self) -> WithCaptions:
        """The training examples, with what config.lookup.mode says."""
        source, num = self.source, len(self.source.train)
        states = list(source.train_knowledge)
        which = np.zeros(num, np.int32)
        hits = Hits(
            np.full((num, self.options.num), -1, np.int32),
            np.zeros((num, self.options.num), np.float32),
        )
        for number, state in enumerate(states):
            rows, oracle = source.train_knowledge[state]
            which[rows] = number
            if self.options.mode == "oracle":
                found = from_oracle(oracle, self.options.num)
            elif self.options.mode == "none":
                continue
            else:
                found = self.cached(state, rows)
            if self.options.mode == "random":
                found = Hits(*(np.roll(x, 1, axis=0) for x in found))
            for mine, theirs in zip(hits, found):
                mine[rows] = theirs
        return WithCaptions(source.train, hits, self.columns(states), which)

    def cached(self, state: str, rows: np.ndarray) -> Hits:
        """What training questions find, kept in the folder."""
        name, num = f"train-{state}", self.options.num
        found = load_or_make(
            self.folder / "lookups",
            name,
            (self.snapshot_name(state), num, len(rows), self.options.question_weight),
            f"the captions of {len(rows)} questions",
            lambda: self.find(self.source.train, state, rows)._asdict(),
        )
        return Hits(**found)

    def look_up(self, split: QuestionSplit, state: str) -> WithCaptions:
        """The questions of a split as a reader gets them.

        Args:
          split: of questions.
          state: of knowledge; or with the first one, "no_retrieval" without any caption, "random"
            with those of another question, "oracle" with the captions that answer it.
        """
        first = next(iter(split.truths))
        num, k = len(split.examples), self.options.num
        known = first if state in ("no_retrieval", "random", "oracle") else state
        if state == "no_retrieval":
            hits = Hits(np.full((num, k), -1, np.int32), np.zeros((num, k), np.float32))
        elif state == "oracle":
            hits = from_oracle(split.oracle[first], k)
        else:
            hits = self.find(split.examples, known)
        if state == "random":
            order = np.random.default_rng(0).permutation(num)
            hits = Hits(*(x[order] for x in hits))
        return WithCaptions(split.examples, hits, self.columns([known]), np.zeros(num, np.int32))

    def columns(self, states: Sequence[str]) -> dict[str, np.ndarray]:
        """What a reader gets of the captions of some states of knowledge, [states, m, ...]."""
        known = [self.source.knowledge(state) for state in states]
        columns = {"retrieved": np.stack([self.source.tokenize(k.captions) for k in known])}
        if self.options.pictures:
            vectors = [self.picture_vectors(k.pictures) for k in known]
            columns["retrieved_vector"] = np.stack(vectors)
        return columns

    def picture_vectors(self, pictures: RandomAccess | None) -> np.ndarray:
        """Embeddings of the pictures of captions; equal ones are embedded once.

        Raises:
          ValueError: the data has none.
        """
        if pictures is None:
            raise ValueError(
                "config.lookup.pictures is True, but the captions of this data have no pictures."
            )
        if pictures not in self.of_pictures:
            self.of_pictures[pictures] = self.retriever.vectors(pictures, "image")
        return self.of_pictures[pictures]


def from_oracle(rows: np.ndarray, num: int) -> Hits:
    """Rows int [n, j] of captions that answer, as if they had been found with score 1."""
    rows = rows[:, :num].astype(np.int32)
    rows = np.pad(rows, ((0, 0), (0, num - rows.shape[1])), constant_values=-1)
    return Hits(rows, (rows >= 0).astype(np.float32))


def own_captions(
    examples: RandomAccess, rows: np.ndarray, known: Knowledge
) -> list[list[int]] | None:
    """For each question the captions that were written for its own picture; None without any."""
    if (known.owner < 0).all():
        return None
    order = np.argsort(known.owner, kind="stable")
    owner = known.owner[order]
    picture = np.asarray(getattr(examples, "picture_ids"))[rows]  # noqa: B009
    starts, ends = (np.searchsorted(owner, picture, side) for side in ("left", "right"))
    return [order[start:end].tolist() for start, end in zip(starts, ends)]
