"""What is searched, as a value: vectors, the user's ids and a payload each; never changed."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

METRICS = ("dot", "cosine")


class Payloads(Sequence[Any]):
    """n JSON values as the lines of one buffer, parsed when looked at; maps from disk."""

    def __init__(self, text: np.ndarray, ends: np.ndarray):
        """`text` uint8 [bytes] is JSON lines, `ends` int64 [n] where each of them ends."""
        self.text, self.ends = text, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: Any) -> Any:
        start = self.ends[row - 1] if row else 0
        return json.loads(self.text[start : self.ends[row]].tobytes())


def make_payloads(values: Sequence[Any]) -> Payloads:
    """Payloads of JSON values.

    Raises:
      ValueError: a value has no JSON form; says which.
    """
    lines = []
    for row, value in enumerate(values):
        try:
            lines.append(json.dumps(value, allow_nan=False).encode() + b"\n")
        except (TypeError, ValueError) as error:
            raise ValueError(f"The payload of row {row} has no JSON form: {error}.") from error
    ends = np.cumsum([len(line) for line in lines], dtype=np.int64)
    return Payloads(np.frombuffer(b"".join(lines), np.uint8), ends)


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """n vectors to search; make it with `make_snapshot`, which checks them."""

    vectors: np.ndarray
    """float32 [n, d]; of unit length under the metric "cosine". May be a map of a file."""
    ids: np.ndarray
    """[n], int64 or str; unique."""
    payloads: Payloads
    metric: str = "dot"
    """"dot" or "cosine": whether queries are brought to unit length."""
    encoder: str = ""
    """Fingerprint of what made the vectors; only its queries are comparable. Empty: unknown."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """Numbers of a vector, d."""
        return self.vectors.shape[1]

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.ids, kind="stable")

    def rows_of(self, ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Row of each of `ids`, int64; -1 where the snapshot does not have it."""
        wanted = as_ids(ids) if len(ids) else self.ids[:0]
        if wanted.dtype.kind != self.ids.dtype.kind:
            return np.full(len(wanted), -1)
        place = np.searchsorted(self.ids, wanted, sorter=self._order)
        rows = self._order[np.minimum(place, len(self) - 1)]
        return np.where(self.ids[rows] == wanted, rows, -1)

    def payloads_of(self, ids: Sequence[Any] | np.ndarray) -> list[Any]:
        """Payload of each of `ids` [k].

        Raises:
          ValueError: an id is unknown.
        """
        rows = known_rows(self, ids)
        return [self.payloads[row] for row in rows]


def as_ids(ids: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Ids as int64 or str [n].

    Raises:
      ValueError: neither all whole numbers nor all strings.
    """
    kinds = {"whole" if isinstance(x, int | np.integer) else type(x).__name__ for x in ids}
    array = np.asarray(ids)
    if array.ndim == 1 and array.dtype.kind in "iu" and kinds <= {"whole"}:
        return array.astype(np.int64)
    if array.ndim == 1 and array.dtype.kind == "U" and kinds <= {"str", "str_"}:
        return array
    raise ValueError(f"Ids are all whole numbers or all strings; these are {', '.join(kinds)}.")


def known_rows(snapshot: Snapshot, ids: Sequence[Any] | np.ndarray) -> np.ndarray:
    """`rows_of`, where none may be missing.

    Raises:
      ValueError: an id is unknown; names the first.
    """
    rows = snapshot.rows_of(ids)
    if (rows < 0).any():
        missing = [x for x, row in zip(ids, rows) if row < 0]
        raise ValueError(
            f"The index has no id {missing[0]!r} ({len(missing)} of {len(rows)} are unknown); it "
            f"holds {len(snapshot)} ids such as {snapshot.ids[0].item()!r}."
        )
    return rows


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows at unit length; zero rows stay zero."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)


def check_vectors(x: Any, what: str) -> np.ndarray:
    """`x` as float32 [n, d].

    Raises:
      ValueError: another rank, or a number that is not finite; says in which row.
    """
    x = np.asarray(x)
    if x.ndim != 2 or x.dtype.kind not in "fiu":
        raise ValueError(
            f"{what} are a table of numbers [n, d]; these are {x.dtype}{list(x.shape)}."
        )
    x = np.ascontiguousarray(x, np.float32)
    finite = np.isfinite(x.sum(axis=1)) if len(x) else np.ones(0, bool)
    bad = [row for row in np.flatnonzero(~finite) if not np.isfinite(x[row]).all()]
    if bad:
        raise ValueError(
            f"{what} have {len(bad)} rows with NaN or infinity, the first is row {bad[0]}."
        )
    return x


def make_snapshot(
    ids: Sequence[Any] | np.ndarray,
    vectors: Any,
    payloads: Sequence[Any] | None = None,
    metric: str = "dot",
    encoder: str = "",
) -> Snapshot:
    """A snapshot of n items.

    Args:
      ids: n whole numbers or n strings, unique.
      vectors: numbers [n, d].
      payloads: n JSON values; None where there are none.
      metric: "dot", or "cosine" under which vectors are brought to unit length.
      encoder: fingerprint of what made the vectors.

    Raises:
      ValueError: no items, lengths that differ, an id twice, NaN, or an unknown metric.
    """
    if metric not in METRICS:
        raise ValueError(f"The metric is 'dot' or 'cosine', not {metric!r}.")
    vectors = check_vectors(vectors, "Vectors")
    if not len(vectors):
        raise ValueError("There are no vectors; an index holds at least one.")
    ids = as_ids(ids)
    payloads = make_payloads([None] * len(ids) if payloads is None else payloads)
    if not len(ids) == len(vectors) == len(payloads):
        raise ValueError(
            f"There are {len(ids)} ids, {len(vectors)} vectors and {len(payloads)} payloads; it "
            f"takes one of each per item."
        )
    refuse_duplicates(ids)
    vectors = unit_rows(vectors) if metric == "cosine" else vectors
    return Snapshot(vectors, ids, payloads, metric, encoder)


def refuse_duplicates(ids: np.ndarray) -> None:
    """Raises ValueError where an id is there twice; names the first."""
    found, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        twice = found[counts > 1]
        raise ValueError(
            f"{len(twice)} ids are there more than once, such as {twice[0].item()!r}; ids are "
            f"unique. To replace items, remove them first."
        )


def merge(*snapshots: Snapshot) -> Snapshot:
    """All items of several snapshots, in order.

    Raises:
      ValueError: dimension, metric, encoder or kind of ids differ, or an id is in two of them.
    """
    first = snapshots[0]
    for other in snapshots[1:]:
        refuse_foreign(first, other)
    ids = np.concatenate([s.ids for s in snapshots])
    refuse_duplicates(ids)
    starts = np.cumsum([0] + [len(s.payloads.text) for s in snapshots])
    text = np.concatenate([s.payloads.text for s in snapshots])
    ends = np.concatenate([s.payloads.ends + start for s, start in zip(snapshots, starts)])
    vectors = np.concatenate([s.vectors for s in snapshots])
    return Snapshot(vectors, ids, Payloads(text, ends), first.metric, first.encoder)


def refuse_foreign(old: Snapshot, new: Snapshot) -> None:
    """Raises ValueError where vectors or ids of `new` cannot stand beside, or in for, `old`'s."""
    for what in ("dimension", "metric", "encoder"):
        ours, theirs = getattr(old, what), getattr(new, what)
        if ours != theirs:
            raise ValueError(
                f"The index has {what} {ours!r}, the new vectors have {theirs!r}; embed them with "
                f"the encoder of the index, or build another index."
            )
    if old.ids.dtype.kind != new.ids.dtype.kind:
        kinds = {"i": "whole numbers", "U": "strings"}
        raise ValueError(
            f"The ids of the index are {kinds[old.ids.dtype.kind]}, the new ones "
            f"{kinds[new.ids.dtype.kind]}."
        )


def add(
    snapshot: Snapshot,
    ids: Sequence[Any] | np.ndarray,
    vectors: Any,
    payloads: Sequence[Any] | None = None,
    encoder: str | None = None,
) -> Snapshot:
    """`snapshot` and n more items, with arguments like those of `make_snapshot`.

    Raises:
      ValueError: as `make_snapshot` and `merge`.
    """
    encoder = snapshot.encoder if encoder is None else encoder
    return merge(snapshot, make_snapshot(ids, vectors, payloads, snapshot.metric, encoder))


def remove(snapshot: Snapshot, ids: Sequence[Any] | np.ndarray) -> Snapshot:
    """`snapshot` without some items.

    Raises:
      ValueError: an id is unknown, or no item would be left.
    """
    keep = np.ones(len(snapshot), bool)
    keep[known_rows(snapshot, ids)] = False
    if not keep.any():
        raise ValueError("This would remove every item; an index holds at least one.")
    text = snapshot.payloads.text
    lengths = np.diff(snapshot.payloads.ends, prepend=0)
    kept = Payloads(np.asarray(text)[np.repeat(keep, lengths)], np.cumsum(lengths[keep]))
    return dataclasses.replace(
        snapshot, vectors=snapshot.vectors[keep], ids=snapshot.ids[keep], payloads=kept
    )


def chunks(x: np.ndarray, size: int = 1 << 26) -> Iterator[np.ndarray]:
    """Rows of `x` in pieces of about `size` bytes."""
    rows = max(1, size // max(1, x[:1].nbytes))
    for start in range(0, len(x), rows):
        yield x[start : start + rows]
