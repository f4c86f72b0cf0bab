"""Questions about pictures that several may share, and what their answers are worth."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jcmr.core.types import RandomAccess
from jcmr.data.records import take
from jcmr.data.text import PAD, encode_all, tokenize
from jcmr.losses.answers import soft_targets


class Answers:
    """What each answer is worth to n questions, {"answer": [v]}."""

    def __init__(self, people: np.ndarray, num_answers: int):
        """`people` int [n, a] are ids of what people answered; v those outside the table."""
        self.people, self.num_answers = people, num_answers

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Question `index`."""
        return {"answer": self.take(np.asarray([index]))["answer"][0]}

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Questions `indices`."""
        v = self.num_answers
        return {"answer": soft_targets(self.people[indices], v + 1, unknown=v)[:, :v]}


class Asked:
    """Questions, each with its picture."""

    def __init__(
        self,
        pictures: RandomAccess,
        rows: np.ndarray,
        ids: np.ndarray,
        text: np.ndarray,
        answers: RandomAccess | None = None,
    ):
        """N questions with the word ids `text` [n, t].

        Args:
          pictures: without an "id".
          rows: int [n], row of each question's picture.
          ids: int [n], what that picture is called elsewhere, so that its captions are not found.
          text: int32 [n, t].
          answers: come along in training.
        """
        self.pictures, self.rows, self.picture_ids = pictures, rows, ids
        self.text, self.answers = text, answers

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Question `index`."""
        return {name: column[0] for name, column in self.take(np.asarray([index])).items()}

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Questions `indices` as a batch."""
        indices = np.asarray(indices)
        more = {} if self.answers is None else take(self.answers, indices)
        return {
            **take(self.pictures, self.rows[indices]),
            "question": self.text[indices],
            **more,
        }


def read_json(path: Path, origin: str) -> Any:
    """The content of a JSON file.

    Raises:
      FileNotFoundError: there is none; says where it comes from.
      ValueError: it is no JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. {origin}")
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no whole JSON file ({error}); copy it again.") from None


def encode_questions(
    texts: Sequence[str], vocabulary: dict[str, int], max_words: int
) -> np.ndarray:
    """Token ids of questions, int32 [n, max_words]; equal ones are tokenised once."""
    distinct, which = np.unique(np.asarray(texts, object), return_inverse=True)
    words = [tokenize(text) or ["?"] for text in distinct]
    return encode_all(words, vocabulary, max_words)[which]


def answer_words(answers: Sequence[str], vocabulary: dict[str, int]) -> np.ndarray:
    """Word ids of answers, int32 [v, a], 0 = pad."""
    ids = [[vocabulary[w] for w in tokenize(answer) if w in vocabulary] for answer in answers]
    text = np.full((len(ids), max(map(len, ids))), PAD, np.int32)
    for row, words in zip(text, ids):
        row[: len(words)] = words
    return text


def hold_out(ids: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Bool [n], the questions about a random share of the pictures `ids` [n]."""
    pictures = np.unique(ids)
    chosen = np.random.default_rng([seed, 7]).permutation(pictures)[: round(rate * len(pictures))]
    return np.isin(ids, chosen)
