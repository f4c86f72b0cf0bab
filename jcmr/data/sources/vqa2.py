"""VQA 2.0 in its official files, with precomputed regions or grid features of the COCO pictures.

    <dir>/v2_OpenEnded_mscoco_{train,val}2014_questions.json
    <dir>/v2_mscoco_{train,val}2014_annotations.json
    <features>/{train,val}2014.npy        float [n, r, d]
    <features>/{train,val}2014_ids.txt    the COCO id of each row's picture, one a line
    <captions>                            optional: COCO captions json files, what is looked up

Trains on train2014 without the pictures held out as dev, and tests on val2014, as the answers of
the test set are with the challenge's server. Answers are the most frequent ones of train2014.
Pictures of VQA are pictures of COCO: a question never finds the captions of its own.
"""

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jcmr.core.types import Knowledge, QuestionSplit
from jcmr.data.options import unpack
from jcmr.data.questions import Answers, Asked, answer_words, encode_questions, hold_out, read_json
from jcmr.data.text import build_vocabulary, read_lines, tokenize

ORIGIN = (
    "Questions and annotations of VQA 2.0 come from https://visualqa.org/download.html; unzip "
    "them into one folder and set config.data.dir."
)
FEATURES = (
    "Features come from a detector such as https://github.com/peteranderson80/bottom-up-attention "
    "or a grid network; write one .npy [n, r, d] and one file of picture ids a split, and set "
    "config.data.features."
)
CAPTIONS = (
    "Captions of COCO come from https://cocodataset.org (annotations_trainval2014); set "
    "config.data.captions to the captions_*.json files to look up."
)
PARTS = {"train": "train2014", "test": "val2014"}
STATE = "captions"


class VQA2Options(NamedTuple):
    """The data section of a config for this source."""

    dir: str = ""
    features: str = ""
    captions: tuple[str, ...] = ()
    """Files of captions that may be looked up."""
    num_answers: int = 3129
    min_count: int = 1
    """How often a word must occur in the training questions."""
    max_words: int = 16
    """Tokens of a question, start and end included."""
    caption_words: int = 20
    dev_rate: float = 0.05
    """Share of the training pictures that are held out."""
    dev_seed: int = 0


class Regions:
    """Rows of a file of features, {"regions": [r, d]}."""

    def __init__(self, features: np.ndarray):
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Picture `index`."""
        return {"regions": self.features[index].astype(np.float32)}

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Pictures `indices`."""
        return {"regions": self.features[indices].astype(np.float32)}


class Part(NamedTuple):
    """The questions of a file."""

    pictures: Regions
    rows: np.ndarray
    """int [n], of each question's picture."""
    ids: np.ndarray
    """int [n], the COCO id of that picture."""
    texts: list[str]
    kinds: np.ndarray
    """str [n], the official answer types."""
    said: list[list[str]]
    """What ten people answered."""
    chosen: list[str]
    """The most frequent answer, as the annotations give it."""


def plain(answer: str) -> str:
    """An answer as it is compared: lower case, single spaces."""
    return " ".join(answer.lower().split())


def load_features(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, r, d], mapped from disk, and the picture ids [n].

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: shapes or ids do not fit together.
    """
    path, names = folder / f"{name}.npy", folder / f"{name}_ids.txt"
    for file in (path, names):
        if not file.is_file():
            raise FileNotFoundError(f"There is no {file}. {FEATURES}")
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises several kinds
        raise ValueError(f"{path} is no whole .npy file ({error}); copy it again.") from error
    lines = read_lines(names)
    for number, line in enumerate(lines, 1):
        if not line.strip().isdigit():
            raise ValueError(f"{names}, line {number}: {line!r} is no picture id.")
    ids = np.asarray([int(line) for line in lines])
    if features.ndim != 3 or len(features) != len(ids):
        raise ValueError(
            f"{path} is {features.dtype}{list(features.shape)} and {names} has {len(ids)} ids; "
            f"expected [n, r, d] and n ids."
        )
    return features, ids


def field(entry: Any, name: str, kind: type, path: Path, number: int) -> Any:
    """A field of an entry of a file; ValueError where it is missing or of another kind."""
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        raise ValueError(f"{path}, entry {number}: {name!r} is {value!r}, not {kind.__name__}.")
    return value


def entries(path: Path, key: str) -> list[Any]:
    """The list under `key` of a file; errors say what is wrong with it."""
    content = read_json(path, ORIGIN)
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not found:
        raise ValueError(f"{path} has no list {key!r}; is it the official file?")
    return found


def read_part(options: VQA2Options, name: str) -> Part:
    """The questions of train2014 or val2014, joined with their answers and features.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file has another form, or they do not fit together.
    """
    folder = Path(options.dir)
    asked_path = folder / f"v2_OpenEnded_mscoco_{name}_questions.json"
    path = folder / f"v2_mscoco_{name}_annotations.json"
    texts, pictures = {}, {}
    for number, entry in enumerate(entries(asked_path, "questions")):
        key = field(entry, "question_id", int, asked_path, number)
        texts[key] = field(entry, "question", str, asked_path, number)
        pictures[key] = field(entry, "image_id", int, asked_path, number)
    ids, kinds, said, chosen, order = [], [], [], [], []
    for number, entry in enumerate(entries(path, "annotations")):
        key = field(entry, "question_id", int, path, number)
        if key not in texts:
            raise ValueError(f"{path}, entry {number}: {asked_path} has no question {key}.")
        people = field(entry, "answers", list, path, number)
        order.append(texts[key])
        ids.append(pictures[key])
        kinds.append(field(entry, "answer_type", str, path, number))
        chosen.append(plain(field(entry, "multiple_choice_answer", str, path, number)))
        said.append([plain(field(each, "answer", str, path, number)) for each in people])
    features, known = load_features(Path(options.features), name)
    place = np.argsort(known)
    found = np.minimum(np.searchsorted(known, ids, sorter=place), len(known) - 1)
    rows = place[found]
    missing = np.flatnonzero(known[rows] != ids)
    if len(missing):
        raise ValueError(
            f"{options.features}/{name}.npy lacks {len(missing)} pictures that questions are asked "
            f"about, the first is {ids[missing[0]]}."
        )
    return Part(Regions(features), rows, np.asarray(ids), order, np.asarray(kinds), said, chosen)


@dataclasses.dataclass(frozen=True)
class VQA2:
    """Questions of people about photographs."""

    options: VQA2Options

    @functools.cached_property
    def parts(self) -> dict[str, Part]:
        """The official parts."""
        return {name: read_part(self.options, part) for name, part in PARTS.items()}

    @functools.cached_property
    def answers(self) -> list[str]:
        """The most frequent answers; of equally frequent ones the first in the alphabet."""
        counts = collections.Counter(self.parts["train"].chosen)
        ordered = sorted(counts, key=lambda answer: (-counts[answer], answer))
        return ordered[: self.options.num_answers]

    @functools.cached_property
    def vocabulary(self) -> dict[str, int]:
        """Word -> id, of training questions, answers and captions."""
        asked = build_vocabulary(map(tokenize, self.parts["train"].texts), self.options.min_count)
        captions = self.knowledge(STATE).captions if self.options.captions else []
        return build_vocabulary(map(tokenize, [*self.answers, *captions, *asked]))

    @property
    def answer_text(self) -> np.ndarray:
        """The words of the answers, int32 [v, a]."""
        return answer_words(self.answers, self.vocabulary)

    @property
    def info(self) -> dict[str, int]:
        """Sizes a model takes from the data."""
        return {"vocab_size": len(self.vocabulary), "num_answers": len(self.answers)}

    def tokenize(self, captions: Sequence[str]) -> np.ndarray:
        """Token ids of captions, int32 [n, caption_words]."""
        return encode_questions(captions, self.vocabulary, self.options.caption_words)

    @functools.cache  # noqa: B019
    def knowledge(self, name: str) -> Knowledge:
        """The captions that may be looked up."""
        captions, owner = [], []
        for file in map(Path, self.options.captions):
            if not file.is_file():
                raise FileNotFoundError(f"There is no {file}. {CAPTIONS}")
            for number, entry in enumerate(entries(file, "annotations")):
                captions.append(field(entry, "caption", str, file, number).strip())
                owner.append(field(entry, "image_id", int, file, number))
        if not captions:
            raise FileNotFoundError(f"There is nothing to look up as {name!r}. {CAPTIONS}")
        return Knowledge(captions, np.asarray(owner, np.int64))

    def people(self, part: Part, rows: np.ndarray) -> Answers:
        """What the answers of the questions `rows` are worth."""
        number = {answer: i for i, answer in enumerate(self.answers)}
        v = len(number)
        ids = [[number.get(answer, v) for answer in part.said[i]] for i in rows]
        most = max(map(len, ids))
        return Answers(np.asarray([row + [-1] * (most - len(row)) for row in ids]), v)

    def select(self, split: str, held_out: bool) -> tuple[Part, np.ndarray]:
        """A part, and which of its questions belong to a split."""
        part = self.parts["test" if split == "test" else "train"]
        if split == "test":
            return part, np.arange(len(part.rows))
        chosen = hold_out(part.ids, self.options.dev_rate, self.options.dev_seed)
        return part, np.flatnonzero(chosen == held_out)

    def asked(self, part: Part, rows: np.ndarray, answers: Answers | None = None) -> Asked:
        """The questions `rows` of a part."""
        texts = [part.texts[i] for i in rows]
        text = encode_questions(texts, self.vocabulary, self.options.max_words)
        return Asked(part.pictures, part.rows[rows], part.ids[rows], text, answers)

    @functools.cached_property
    def train(self) -> Asked:
        """Questions about the training pictures that are not held out."""
        part, rows = self.select("train", held_out=False)
        return self.asked(part, rows, self.people(part, rows))

    @property
    def train_knowledge(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """All training questions look up in the same captions; none is known to answer."""
        num = len(self.train)
        return {STATE: (np.arange(num), np.zeros((num, 0), np.int32))}

    def questions(self, split: str) -> QuestionSplit:
        """All questions of a split as one group."""
        part, rows = self.select(split, held_out=True)
        return QuestionSplit(
            split,
            self.asked(part, rows),
            part.kinds[rows],
            {split: np.ones(len(rows), bool)},
            {STATE: self.people(part, rows)},
            texts=[part.texts[i] for i in rows],
        )


def make(cfg: Mapping[str, Any]) -> VQA2:
    """The source of `config.data`.

    Raises:
      FileNotFoundError, ValueError: the files are missing or damaged, or an unknown key.
    """
    options = unpack(VQA2Options, cfg)
    if not options.dir:
        raise FileNotFoundError(f"config.data.dir is not set. {ORIGIN}")
    source = VQA2(options)
    _ = source.parts
    return source
