"""An index that is searched while it is swapped."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jcmr.index import exact
from jcmr.index.exact import Search
from jcmr.index.snapshot import Snapshot, check_vectors, refuse_foreign, unit_rows
from jcmr.index.store import Store

MakeSearch = Callable[[np.ndarray], Search]


class Found(NamedTuple):
    """What a search gives back."""

    scores: np.ndarray
    """float32 [q, k], best first; -inf where there is none."""
    ids: np.ndarray
    """The snapshot's ids [q, k]; where there is none -1 or ""."""
    valid: np.ndarray
    """bool [q, k], False where filters left fewer than k."""
    generation: int
    """Of the snapshot that all of this comes from."""


class Live(NamedTuple):
    """One snapshot ready to be searched; never changes, so that what it says stays consistent."""

    snapshot: Snapshot
    engine: Search
    generation: int

    def search(
        self,
        queries: Any,
        k: int,
        allowed: Any = None,
        exclude: Sequence[Sequence[Any]] | None = None,
        encoder: str | None = None,
    ) -> Found:
        """The best k items of each query, by the largest inner product (or cosine).

        Args:
          queries: numbers [q, d].
          k: how many, at most the number of items.
          allowed: bool [n] in the order of the snapshot's ids: the items to choose from.
          exclude: for each query ids that it must not find; those that are not there are no error.
          encoder: fingerprint of what made the queries; None is not checked.

        Raises:
          ValueError: k, the dimension, the encoder or the length of a filter does not fit, or a
            query is not a number.
        """
        snapshot = self.snapshot
        queries = check_vectors(queries, "Queries")
        check_search(snapshot, queries, k, encoder)
        if allowed is not None:
            allowed = np.asarray(allowed)
            if allowed.dtype != bool or allowed.shape != (len(snapshot),):
                raise ValueError(
                    f"A filter is bool [{len(snapshot)}], one for each item; this one is "
                    f"{allowed.dtype}{list(allowed.shape)}."
                )
        if snapshot.metric == "cosine":
            queries = unit_rows(queries)
        if exclude is None:
            scores, rows = self.engine(queries, k, allowed)
        else:
            scores, rows = self._search_without(queries, k, allowed, exclude)
        valid = rows >= 0
        none = -1 if snapshot.ids.dtype.kind == "i" else ""
        return Found(scores, np.where(valid, snapshot.ids[rows], none), valid, self.generation)

    def _search_without(
        self, queries: np.ndarray, k: int, allowed: Any, exclude: Sequence[Sequence[Any]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds as many more as may have to go, and lets those go."""
        if len(exclude) != len(queries):
            raise ValueError(f"There are {len(queries)} queries and {len(exclude)} exclusions.")
        lists = [self.snapshot.rows_of(ids) for ids in exclude]
        most = max((len(rows) for rows in lists), default=0)
        more = 1 << (most - 1).bit_length() if most else 0  # few programs
        scores, rows = self.engine(queries, min(k + more, len(self.snapshot)), allowed)
        for i, gone in enumerate(lists):
            out = np.isin(rows[i], gone[gone >= 0])
            order = np.argsort(out, kind="stable")
            scores[i] = np.where(out, -np.inf, scores[i])[order]
            rows[i] = np.where(out, -1, rows[i])[order]
        return scores[:, :k], rows[:, :k]


def check_search(snapshot: Snapshot, queries: np.ndarray, k: int, encoder: str | None) -> None:
    """Raises ValueError where a search cannot be answered."""
    if queries.shape[1] != snapshot.dimension:
        raise ValueError(
            f"Queries have {queries.shape[1]} dimensions, the index has {snapshot.dimension}."
        )
    if not 1 <= k <= len(snapshot):
        raise ValueError(f"k is 1 to {len(snapshot)}, the size of the index, not {k}.")
    if not len(queries):
        raise ValueError("There are no queries.")
    if encoder is not None and snapshot.encoder not in ("", encoder):
        raise ValueError(
            f"The index was made by encoder {snapshot.encoder!r}, the queries by {encoder!r}: "
            f"their scores mean nothing. Build the index with this encoder."
        )


class Index:
    """The one thing that changes: which snapshot is live. Safe to use from many threads.

    A search takes the live snapshot once, at its start; a swap makes the new one ready beside it
    and then exchanges one reference. A swap that fails leaves the old one live.
    """

    def __init__(
        self, snapshot: Snapshot, make_search: MakeSearch = exact.make_search, generation: int = 0
    ):
        """Makes `snapshot` ready with an engine such as `partial(make_search, storage="int8")`."""
        self._make_search = make_search
        self._writer = threading.Lock()
        self._live = Live(snapshot, make_search(snapshot.vectors), generation)

    @property
    def live(self) -> Live:
        """What is searched now: take it once where search and payloads must agree."""
        return self._live

    def search(
        self,
        queries: Any,
        k: int,
        allowed: Any = None,
        exclude: Sequence[Sequence[Any]] | None = None,
        encoder: str | None = None,
    ) -> Found:
        """`Live.search` of what is live now."""
        return self._live.search(queries, k, allowed, exclude, encoder)

    def swap(
        self, snapshot: Snapshot, engine: Search | None = None, generation: int | None = None
    ) -> int:
        """Makes `snapshot` live.

        Args:
          snapshot: what is searched from now on.
          engine: what searches its vectors, where that was made beforehand: then a swap costs no
            more than exchanging a reference.
          generation: its number; by default the next.

        Returns:
          The generation that results carry from now on.

        Raises:
          ValueError: it has another dimension, metric, encoder or kind of ids.
        """
        with self._writer:
            old = self._live
            refuse_foreign(old.snapshot, snapshot)
            engine = engine or self._make_search(snapshot.vectors)
            generation = old.generation + 1 if generation is None else generation
            self._live = Live(snapshot, engine, generation)
            return generation


def open_index(
    store: Store,
    alias: str,
    make_search: MakeSearch = exact.make_search,
    mmap: bool = True,
    verify: bool = True,
) -> Index:
    """The index that `alias` stands for; errors as those of `Store.read_alias` and `Store.load`."""
    name, generation = store.read_alias(alias)
    return Index(store.load(name, mmap, verify), make_search, generation)


def refresh(index: Index, store: Store, alias: str) -> bool:
    """Follows `alias` on disk, which another process may have swapped; whether it had.

    Raises:
      FileNotFoundError, ValueError: what it stands for now cannot be used; the old one stays live.
    """
    name, generation = store.read_alias(alias)
    if generation == index.live.generation:
        return False
    index.swap(store.load(name), generation=generation)
    return True
