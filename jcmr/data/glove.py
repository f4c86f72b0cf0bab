"""Word vectors from a GloVe text file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np


def spellings(word: str) -> tuple[str, str]:
    """The word as it is, and as PCME looks it up when the file does not have it.

    The second has no '-', '.' and "'" and ends before the first '/'.
    """
    stripped = word.replace("-", "").replace(".", "").replace("'", "")
    return word, stripped.split("/")[0]


def load_glove(
    path: str | Path, vocabulary: Mapping[str, int], dim: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the words of `vocabulary`, read in one pass; nothing else is kept.

    Args:
      path: lines `word value ... value`, such as glove.840B.300d.txt.
      vocabulary: word -> id.
      dim: number of values in a line; None takes it from the first line.

    Returns:
      (vectors float32 [v, d], found bool [v]); rows that were not found are 0 and keep their own
      starting values.

    Raises:
      ValueError: a line of a wanted word that is cut off or holds no numbers; names file and line.
    """
    wanted = {form.encode() for word in vocabulary for form in spellings(word) if form}
    known: dict[bytes, np.ndarray] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            word, _, rest = line.partition(b" ")
            dim = dim or len(rest.split())
            if word not in wanted:
                continue
            values = rest.split()
            if len(values) > dim:  # a "word" with spaces in it, which no caption token is
                continue
            try:
                known[word] = np.array(values, dtype=np.float32)
            except ValueError:
                known[word] = np.empty(0)
            if len(known[word]) != dim:
                raise ValueError(
                    f"{path}, line {number}: expected {dim} numbers after {word.decode()!r}; the "
                    f"file is damaged or cut off, fetch it again."
                )
    vectors = np.zeros((len(vocabulary), dim or 0), np.float32)
    found = np.zeros(len(vocabulary), bool)
    for word, index in vocabulary.items():
        for form in spellings(word):
            if form.encode() in known:
                vectors[index], found[index] = known[form.encode()], True
                break
    return vectors, found
