"""easy-VQA: questions about one shape on a 64 px picture, in the layout of its public repository.

    answers.txt                     one answer a line
    {train,test}/questions.json     [[question, answer, image id], ...]
    {train,test}/images/<id>.png

A share of the training pictures is held out as dev, as the data has none.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jcmr.core.types import Knowledge, QuestionSplit
from jcmr.data.image import decode_image
from jcmr.data.options import unpack
from jcmr.data.questions import Answers, Asked, answer_words, encode_questions, hold_out, read_json
from jcmr.data.records import Arrays
from jcmr.data.text import build_vocabulary, read_lines, tokenize

ORIGIN = (
    "easy-VQA is MIT-licensed: `git clone https://github.com/vzhou842/easy-VQA`, and set "
    "config.data.dir to the folder in it that holds answers.txt."
)


class EasyOptions(NamedTuple):
    """The data section of a config for this source."""

    dir: str = ""
    dev_rate: float = 0.1
    """Share of the training pictures that are held out."""
    dev_seed: int = 0
    max_words: int = 16
    """Tokens of a question, start and end included."""


class Part(NamedTuple):
    """The questions of a folder."""

    images: np.ndarray
    """uint8 [m, h, w, 3]."""
    rows: np.ndarray
    """int [n], of each question's picture."""
    questions: list[str]
    answers: np.ndarray
    """int [n, 1]."""


def read_answers(root: Path) -> list[str]:
    """The answers that can be given.

    Raises:
      FileNotFoundError: there is no answers.txt.
      ValueError: it is empty, or an answer is there twice.
    """
    path = root / "answers.txt"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. {ORIGIN}")
    answers = [line.strip() for line in read_lines(path) if line.strip()]
    if not answers or len(set(answers)) < len(answers):
        raise ValueError(f"{path} must hold every answer once, one a line.")
    return answers


def read_part(folder: Path, answers: Sequence[str]) -> Part:
    """The questions and pictures of a folder.

    Raises:
      FileNotFoundError: the questions or a picture are missing.
      ValueError: the questions have another form, an answer is unknown, or sizes differ.
    """
    path = folder / "questions.json"
    content = read_json(path, ORIGIN)
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path} must be a list of [question, answer, image id].")
    known = {answer: number for number, answer in enumerate(answers)}
    for number, entry in enumerate(content):
        kinds = [type(x) for x in entry] if isinstance(entry, list) else []
        if kinds != [str, str, int]:
            raise ValueError(
                f"{path}, entry {number}: expected [question, answer, image id], found {entry!r}."
            )
        if entry[1] not in known:
            raise ValueError(f"{path}, entry {number}: {entry[1]!r} is not in answers.txt.")
    ids, rows = np.unique([entry[2] for entry in content], return_inverse=True)
    images = [read_picture(folder / "images" / f"{i}.png") for i in ids]
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"The pictures in {folder / 'images'} are not all of one size.")
    numbers = np.asarray([[known[entry[1]]] for entry in content])
    return Part(np.stack(images), rows, [entry[0] for entry in content], numbers)


def read_picture(path: Path) -> np.ndarray:
    """uint8 [h, w, 3]; FileNotFoundError where it is missing."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}, though questions are asked about it.")
    return np.asarray(decode_image(path, str(path)))


@dataclasses.dataclass(frozen=True)
class EasyVQA:
    """Questions that the picture alone answers."""

    options: EasyOptions

    @functools.cached_property
    def answers(self) -> list[str]:
        """All answers."""
        return read_answers(Path(self.options.dir))

    @functools.cached_property
    def parts(self) -> dict[str, Part]:
        """The folders of the data set."""
        root = Path(self.options.dir)
        return {name: read_part(root / name, self.answers) for name in ("train", "test")}

    @functools.cached_property
    def vocabulary(self) -> dict[str, int]:
        """Word -> id, of the training questions and the answers."""
        return build_vocabulary(map(tokenize, {*self.parts["train"].questions, *self.answers}))

    @property
    def answer_text(self) -> np.ndarray:
        """The words of the answers, int32 [v, a]."""
        return answer_words(self.answers, self.vocabulary)

    @property
    def info(self) -> dict[str, int]:
        """Sizes a model takes from the data."""
        return {"vocab_size": len(self.vocabulary), "num_answers": len(self.answers)}

    @property
    def train_knowledge(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """None."""
        return {}

    def knowledge(self, name: str) -> Knowledge:
        """There is none."""
        raise ValueError(f"easy-VQA has no captions to look up, neither {name!r} nor others.")

    def tokenize(self, captions: Sequence[str]) -> np.ndarray:
        """Token ids of free text, int32 [n, max_words]."""
        return encode_questions(captions, self.vocabulary, self.options.max_words)

    def select(self, name: str, held_out: bool) -> tuple[Part, np.ndarray]:
        """A folder, and which of its questions belong to a split."""
        part = self.parts["test" if name == "test" else "train"]
        if name == "test":
            return part, np.arange(len(part.rows))
        chosen = hold_out(part.rows, self.options.dev_rate, self.options.dev_seed)
        return part, np.flatnonzero(chosen == held_out)

    def asked(self, part: Part, rows: np.ndarray, answers: Answers | None = None) -> Asked:
        """The questions `rows` of a folder."""
        text = self.tokenize([part.questions[i] for i in rows])
        ids = part.rows[rows]
        return Asked(Arrays({"image": part.images}), ids, ids, text, answers)

    @functools.cached_property
    def train(self) -> Asked:
        """Questions about the training pictures that are not held out."""
        part, rows = self.select("train", held_out=False)
        return self.asked(part, rows, Answers(part.answers[rows], len(self.answers)))

    def questions(self, split: str) -> QuestionSplit:
        """All questions of a split as one group."""
        part, rows = self.select(split, held_out=True)
        texts = [part.questions[i] for i in rows]
        said = [self.answers[i] for i in part.answers[rows, 0]]
        kinds = [
            "yes_no" if answer in ("yes", "no") else "colour" if "color" in text else "shape"
            for text, answer in zip(texts, said)
        ]
        return QuestionSplit(
            split,
            self.asked(part, rows),
            np.asarray(kinds),
            {split: np.ones(len(rows), bool)},
            {"": Answers(part.answers[rows], len(self.answers))},
            texts=texts,
        )


def make(cfg: Mapping[str, Any]) -> EasyVQA:
    """The source of `config.data`.

    Raises:
      FileNotFoundError, ValueError: the files are missing or damaged, or an unknown key.
    """
    options = unpack(EasyOptions, cfg)
    if not options.dir:
        raise FileNotFoundError(f"config.data.dir is not set. {ORIGIN}")
    source = EasyVQA(options)
    _ = source.parts
    return source
