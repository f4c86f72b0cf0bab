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
        """Questions `indices`, in the shape of these."""
        v, people = self.num_answers, self.people[indices]
        worth = soft_targets(people.reshape(-1, people.shape[-1]), v + 1, unknown=v)[:, :v]
        return {"answer": worth.reshape(*people.shape[:-1], v)}


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
        """Questions `indices` [b] as a batch; of groups [b, q] the picture is that of the first."""
        indices = np.asarray(indices)
        more = {} if self.answers is None else take(self.answers, indices)
        return {
            **take(self.pictures, self.rows[indices.reshape(len(indices), -1)[:, 0]]),
            "question": self.text[indices],
            **more,
        }


def picture_ids(examples: Any) -> np.ndarray:
    """The picture of each question, int [n].

    Raises:
      ValueError: the examples are no questions.
    """
    ids = getattr(examples, "picture_ids", None)
    if ids is None:
        raise ValueError(
            "config.data.group makes examples of a picture and its questions, which this data does "
            "not have; set it to 0."
        )
    return ids


def draw_groups(ids: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """An epoch's order of pictures, each with `size` of its questions, int [pictures, size].

    Pictures and questions are drawn anew in each epoch; who has fewer questions repeats them.

    Args:
      ids: int [n], the picture of each question.
      size: q.
      seed: decides the order, with `epoch`.
      epoch: counts from 0.

    Raises:
      ValueError: a size below one.
    """
    if size < 1:
        raise ValueError(f"config.data.group is {size}; a picture has at least one question.")
    rng = np.random.default_rng([seed, epoch])
    mixed = rng.permutation(len(ids))
    rows, starts, counts = by_picture(ids, mixed)
    places = starts[:, None] + np.arange(size) % counts[:, None]
    return rng.permutation(rows[places])


def all_groups(ids: np.ndarray, size: int) -> np.ndarray:
    """All questions in groups about one picture, int [g, q], with q = `size` or all it has if less.

    The last group of a picture repeats its last question.

    >>> all_groups(np.array([7, 5, 7, 7]), 2).tolist()
    [[1, 1], [0, 2], [3, 3]]
    """
    rows, starts, counts = by_picture(ids, np.arange(len(ids)))
    size = min(size, int(counts.max()))
    groups = -(-counts // size)
    first = np.concatenate([size * np.arange(num) for num in groups])
    starts, counts = np.repeat(starts, groups), np.repeat(counts, groups)
    places = np.minimum(first[:, None] + np.arange(size), counts[:, None] - 1)
    return rows[starts[:, None] + places]


def by_picture(ids: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Questions picture by picture, each picture's as in `order`; where it starts; how many."""
    rows = order[np.argsort(ids[order], kind="stable")]
    _, starts, counts = np.unique(ids[rows], return_index=True, return_counts=True)
    return rows, starts, counts


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
