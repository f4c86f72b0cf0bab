"""Programs that are compiled ahead of time, one for each of few sizes."""

import math
import threading
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from jcmr.core.types import Array, Embedding, Variables
from jcmr.eval.tiles import Score, score_tile
from jcmr.ops.topk import TopK, merge_tile

VECTOR_PAIRS = 1 << 20
"""Scores that are held at a time where an embedding is a few vectors."""


class Programs:
    """Compiled programs by key; several threads may ask, each program is compiled once."""

    def __init__(self):
        self.made: dict[Hashable, Any] = {}
        self.lock = threading.Lock()

    def get(self, key: Hashable, lower: Callable[[], Any]) -> Any:
        """The program of `key`, compiled from what `lower` gives where there is none yet."""
        if key not in self.made:
            with self.lock:
                if key not in self.made:
                    self.made[key] = lower().compile()
        return self.made[key]


def buckets(most: int, unit: int, factor: int) -> tuple[int, ...]:
    """Sizes unit, unit * factor, unit * factor^2, ... below `most`, and `most` as multiple of unit.

    >>> buckets(20, unit=1, factor=2)
    (1, 2, 4, 8, 16, 20)
    """
    most, sizes = -(-most // unit) * unit, [unit]
    while sizes[-1] * factor < most:
        sizes.append(sizes[-1] * factor)
    return tuple(dict.fromkeys((*sizes, most)))


def bucket(sizes: Sequence[int], count: int) -> int:
    """The least of `sizes` that holds `count` items.

    >>> bucket((1, 2, 4), 3)
    4
    """
    return next(size for size in sizes if size >= count)


def parts_of(num: int, most: int) -> list[slice]:
    """0..num in slices of at most `most`.

    >>> parts_of(5, 3)
    [slice(0, 3, None), slice(3, 5, None)]
    """
    return [slice(start, min(start + most, num)) for start in range(0, num, most)]


def padded(tree: Any, size: int) -> Any:
    """Leaves [n, ...] as [size, ...]; the last row is repeated.

    >>> padded(np.arange(2), 4).tolist()
    [0, 1, 1, 1]
    """

    def pad(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x)
        missing = size - len(x)
        return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing else x

    return jax.tree.map(pad, tree)


def search_tiles(
    score: Score,
    flipped: bool,
    mesh: Mesh,
    k: int,
    variables: Variables,
    queries: Embedding,
    tiles: Embedding,
    size: Array,
) -> TopK:
    """The best k of a gallery for each query, tile by tile: [q, k], ids -1 where it is smaller.

    Args:
      score: `Task.score`.
      flipped: the gallery is what `score` takes first.
      mesh: devices that share the queries.
      k: how many to keep.
      variables: of the task.
      queries: leaves [1, q, ...].
      tiles: the gallery, leaves [t, r, ...].
      size: items of the gallery, int; tiles after them are padding and cost nothing.
    """
    num = jax.tree.leaves(queries)[0].shape[1]
    if all(x.ndim == 3 for x in jax.tree.leaves(tiles)):
        # A loop copies each tile that it takes, which for few queries costs more than their scores.
        tiles = jax.tree.map(partial(merged, most=VECTOR_PAIRS // num), tiles)
    width = jax.tree.leaves(tiles)[0].shape[1]

    def step(j: Array, best: TopK) -> TopK:
        scores = score_tile(score, flipped, mesh, variables, queries, tiles, 0, j)
        first = j * width
        return merge_tile(best, scores, first + jnp.arange(width) < size, first)

    start = TopK(jnp.full((num, k), -jnp.inf), jnp.full((num, k), -1, jnp.int32))
    best = lax.fori_loop(0, -(-size // width), step, start)
    return best._replace(payload=jnp.where(best.scores > -jnp.inf, best.payload, -1))


def merged(x: Array, most: int) -> Array:
    """Tiles [t, r, ...] as fewer and wider ones, of at most `most` items where r is not more.

    >>> merged(jnp.zeros((12, 2)), 24).shape, merged(jnp.zeros((12, 2)), 15).shape
    ((1, 24), (3, 8))
    """
    num, width, *rest = x.shape
    together = min(max(most // width, 1), num)
    if together < num:
        together = math.gcd(num, 1 << (together.bit_length() - 1))
    return x.reshape(num // together, together * width, *rest)


def dot(variables: Variables, query: Array, gallery: Array) -> Array:
    """A first stage: products of one vector an item, [q, g]."""
    del variables
    return jnp.matmul(query, gallery.T, precision=lax.Precision.HIGHEST)
