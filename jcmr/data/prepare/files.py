"""Reading what the user has downloaded, with messages that say where it comes from."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jcmr.data.text import read_lines


def require(path: Path, origin: str) -> Path:
    """The path, if it exists.

    Raises:
      FileNotFoundError: names it, and says where it comes from.
    """
    if path.exists():
        return path
    raise FileNotFoundError(f"There is no {path}. {origin}")


def read_json(path: Path, object_hook: Callable[[dict], Any] | None = None) -> Any:
    """The content of a JSON file.

    Raises:
      ValueError: it is not UTF-8 or no JSON, for instance because it is cut off.
    """
    try:
        return json.loads(path.read_bytes(), object_hook=object_hook)
    except ValueError as error:
        raise ValueError(
            f"{path} is not whole UTF-8 JSON ({error}); fetch or unpack it again."
        ) from None


def read_names(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without the space around them."""
    return [line.strip() for line in read_lines(path) if line.strip()]


def check_images(folder: Path, names: Iterable[str], origin: str) -> list[Path]:
    """Paths of the image files `names` of a folder; each folder is listed once.

    Raises:
      FileNotFoundError: one is missing.
    """
    listed: dict[Path, set[str]] = {}
    paths = [folder / name for name in names]
    for path in paths:
        if path.parent not in listed:
            require(path.parent, origin)
            listed[path.parent] = {file.name for file in path.parent.iterdir()}
        if path.name not in listed[path.parent]:
            require(path, origin)
    return paths
