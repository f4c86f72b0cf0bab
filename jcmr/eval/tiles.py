"""Two galleries cut into tiles on the devices; the scores of all pairs are never held.

Pairs fall into views: an item takes part in a view with a group, and its gallery there are the
items of the same group. A view with one group is the whole gallery; the folds of COCO are groups of
another view. All views are measured on the same tiles of scores.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jcmr.core import parallel
from jcmr.core.parallel import AXIS
from jcmr.core.types import Array, Embedding, Variables
from jcmr.ops.topk import TopK

Score = Callable[[Variables, Embedding, Embedding], Array]
OUTSIDE = -1
"""Group of an item that takes no part in a view."""


class Side(NamedTuple):
    """One gallery on the devices: n items in t tiles of r."""

    size: int
    embedding: Embedding
    """Leaves [t, r, ...]; the last tile is filled up with the last item."""
    groups: Mapping[str, Array]
    """relation -> [v, t, r], group of each item in each of v views."""
    keys: Mapping[str, Array]
    """relation -> [t, r, ...], what `Relevance.match` compares."""

    @property
    def tiles(self) -> range:
        """Indices of the tiles."""
        return range(jax.tree.leaves(self.embedding)[0].shape[0])


def tiled(x: np.ndarray, tile: int, fill: int | None = None) -> np.ndarray:
    """[n, ...] as [t, r, ...], filled up with `fill` or else with the last item."""
    missing = -len(x) % tile
    rest = np.repeat(x[-1:], missing, axis=0) if fill is None else np.full(missing, fill, x.dtype)
    return np.concatenate([x, rest]).reshape(-(-len(x) // tile), tile, *x.shape[1:])


def make_side(
    embedding: Embedding,
    groups: Mapping[str, Sequence[np.ndarray]],
    keys: Mapping[str, np.ndarray],
    tile: int,
    mesh: Mesh,
) -> Side:
    """Cuts a gallery of n items into tiles and puts it on every device.

    Args:
      embedding: leaves [n, ...].
      groups: relation -> for each view the items' groups, int [n]; negative takes no part.
      keys: relation -> [n, ...].
      tile: most items of a tile, rounded up to a multiple of the number of devices. Tiles are as
        many as that needs and of one size, so that the last is not mostly filled up.
      mesh: the devices.
    """
    size = len(jax.tree.leaves(embedding)[0])
    tile = -(-tile // mesh.size) * mesh.size
    tile = -(-size // -(-size // tile) // mesh.size) * mesh.size

    def cut(views: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([tiled(np.asarray(g, np.int32), tile, OUTSIDE) for g in views])

    parts = (
        jax.tree.map(lambda x: tiled(np.asarray(x), tile), embedding),
        {name: cut(views) for name, views in groups.items()},
        {name: tiled(np.asarray(key), tile) for name, key in keys.items()},
    )
    return Side(size, *parallel.replicate(parts, mesh))


def pin(tree: Any, mesh: Mesh, *spec: str | None) -> Any:
    """Fixes how values lie on the devices, so that every call finds them as the last one did."""
    return lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(*spec)))


def inside(row_groups: Array, column_groups: Array) -> Array:
    """Pairs that a view compares, bool [v, n, m], from groups [v, n] and [v, m]."""
    rows, columns = row_groups[:, :, None], column_groups[:, None, :]
    return (rows == columns) & (rows >= 0)


@partial(jax.jit, static_argnames=("score", "flipped", "mesh"))
def score_tile(
    score: Score,
    flipped: bool,
    mesh: Mesh,
    variables: Variables,
    outer: Embedding,
    inner: Embedding,
    i: int,
    j: int,
) -> Array:
    """Scores [r, c] of outer tile i against inner tile j, rows spread over devices.

    Not a number counts as the lowest score. The inner side is the query when `flipped`. Compiled
    alone: every use of a pair's score sees the same bits.
    """
    queries = jax.tree.map(lambda x: pin(x[i], mesh, AXIS), outer)
    items = jax.tree.map(lambda x: x[j], inner)
    scores = score(variables, items, queries).T if flipped else score(variables, queries, items)
    if scores.dtype != jnp.float64:
        scores = scores.astype(jnp.float32)
    return pin(jnp.where(jnp.isnan(scores), -jnp.inf, scores), mesh, AXIS, None)


@partial(jax.jit, static_argnames=("match", "flipped", "mesh"))
def match_tile(match, flipped: bool, mesh: Mesh, outer: Array, inner: Array, i: int, j: int):
    """Which pairs of outer tile i and inner tile j match, bool [r, c]."""
    found = match(inner[j], outer[i]).T if flipped else match(outer[i], inner[j])
    return pin(found, mesh, AXIS, None)


@partial(jax.jit, static_argnames="mesh")
def join(tiles: list[Array], mesh: Mesh) -> Array:
    """Tiles [r, c] of the same rows side by side, [r, m]; an array alone is left as it is.

    Compiled alone: to what uses them, XLA would give an element at a time.
    """
    return pin(jnp.concatenate(tiles, axis=1), mesh, AXIS, None)


class Galleries(NamedTuple):
    """All that a sweep needs."""

    score: Score
    variables: Variables
    rows: Side
    columns: Side
    matches: Mapping[str, Callable[[Array, Array], Array]]
    """relation -> `Relevance.match`."""
    mesh: Mesh
    skips: Mapping[str, Callable[[Array, Array], Array]] = {}
    """relation -> `Relevance.skip`, where it has one."""

    def scores(self, i: int, j: int) -> Array:
        """Of row tile i and column tile j."""
        rows, columns = self.rows.embedding, self.columns.embedding
        return score_tile(self.score, False, self.mesh, self.variables, rows, columns, i, j)

    def score_dtype(self) -> Any:
        """Of a tile, without computing one."""
        rows, columns = self.rows.embedding, self.columns.embedding
        arguments = self.score, False, self.mesh, self.variables, rows, columns, 0, 0
        return score_tile.eval_shape(*arguments).dtype

    def match(self, relation: str, i: int, j: int) -> Array:
        """Of row tile i and column tile j."""
        rows, columns = self.rows.keys[relation], self.columns.keys[relation]
        return match_tile(self.matches[relation], False, self.mesh, rows, columns, i, j)

    def groups(self, relation: str) -> tuple[Array, Array]:
        """Of rows [v, t, r] and columns [v, s, c]."""
        return self.rows.groups[relation], self.columns.groups[relation]

    def per_item(self, relation: str, value: float, dtype: Any) -> tuple[Array, Array]:
        """A value for each row and each column in each view."""
        made = tuple(np.full(g.shape, value, dtype) for g in self.groups(relation))
        return parallel.replicate(made, self.mesh)

    def flat(self, pair: tuple[Any, Any]) -> tuple[Any, Any]:
        """Arrays [v, t, r] of rows and columns as numpy [v, n]."""
        return tuple(
            np.asarray(x).reshape(len(x), -1)[:, : side.size]
            for x, side in zip(pair, (self.rows, self.columns))
        )  # pyright: ignore[reportReturnType]


class Counts(NamedTuple):
    """What counting says of each row [v, n] or column [v, m]."""

    num_matches: np.ndarray
    rank: np.ndarray
    """Of the best match, 0 = top; the gallery's size without one."""


class Top(NamedTuple):
    """The best of the first view's gallery for each of n queries; ids are -1 where it is smaller
    than k.
    """

    ids: np.ndarray
    """int [n, k], best first; of equal scores the lower id first."""
    hits: np.ndarray
    """bool [n, k], which of them match."""


def make_top(best: TopK, size: int) -> Top:
    """`Top` of the first `size` queries of [t, r, k]."""
    scores, ids, hits = (np.asarray(x) for x in (best.scores, *best.payload))
    found = scores > -np.inf
    parts = np.where(found, ids, -1), hits & found
    return Top(*(np.concatenate(x)[:size] for x in parts))
