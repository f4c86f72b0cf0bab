"""What a user hands over for an index: vectors, ids and payloads in plain files."""

import json
from pathlib import Path
from typing import Any

import numpy as np


def read_vectors(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """(vectors, ids or None) of a .npy file, or of a .npz file with `vectors` and maybe `ids`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is neither, or has no `vectors`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        content = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no whole .npy or .npz file of numbers ({error}).") from error
    if isinstance(content, np.ndarray):
        return content, None
    with content:
        if "vectors" not in content:
            raise ValueError(f"{path} has {', '.join(content)}, but no array named vectors.")
        return content["vectors"], content.get("ids")


def read_ids(path: Path) -> list[Any] | np.ndarray:
    """Ids of a .npy file, of a .json list, or else of a text file with one a line.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the .json is no list.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    text = path.read_text()
    if path.suffix == ".json":
        ids = json.loads(text)
        if not isinstance(ids, list):
            raise ValueError(f"{path} is a {type(ids).__name__}, not a list of ids.")
        return ids
    return text.splitlines()


def read_payloads(path: Path) -> list[Any]:
    """The values of a JSON lines file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is not JSON; says which.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    values = []
    with path.open() as file:
        for number, line in enumerate(file, 1):
            try:
                values.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}.") from error
    return values
