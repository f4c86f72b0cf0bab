"""Made data kept in the user's cache folder, named by all that decides its content."""

import hashlib
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

Columns = dict[str, np.ndarray]


def cache_folder(kind: str, chosen: str = "") -> Path:
    """Where data of a kind is kept: the chosen folder, or one in the user's cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(chosen) if chosen else home / "jcmr" / kind


def make_in_chunks(
    make: Callable[..., Columns], arguments: Sequence[Any], num: int, workers: int, chunk: int
) -> Columns:
    """`make(first, last, *arguments)` for chunks of 0..num, joined; workers do not change it."""
    spans = [(start, min(start + chunk, num), *arguments) for start in range(0, num, chunk)]
    if workers <= 1 or len(spans) < 4:
        parts: list[Columns] = list(itertools.starmap(make, spans))
    else:
        # JAX runs threads: a forked child could inherit a lock that nobody will release.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            parts = list(pool.map(make, *zip(*spans)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def load_or_make(
    folder: Path, name: str, key: Any, what: str, make: Callable[[], Columns]
) -> Columns:
    """The arrays of `<folder>/<name>-<hash of key>.npz`, made and written where they are not there.

    A damaged file is made again. `what` is for the log.
    """
    path = folder / f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}.npz"
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {column: file[column] for column in file.files}
    except FileNotFoundError:
        pass
    except Exception as error:  # a damaged file fails in many ways; making anew mends them all
        logging.warning("%s is damaged (%s); making %s again.", path, error, what)
    began = time.monotonic()
    columns = make()
    logging.info("made %s in %.0f s", what, time.monotonic() - began)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **columns)
    partial.replace(path)
    return columns
