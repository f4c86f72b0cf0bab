"""Nearest neighbours, and sums and maxima over neighbours that hold no value per edge."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jcmr.core.dtypes import HIGHEST
from jcmr.core.types import Array
from jcmr.ops.largest import largest

SCORES_AT_ONCE = 1 << 24
"""Pairs of points that are compared at a time: 64 MiB in float32, 16 clouds of 1,024 points."""


def nearness(x: Array) -> Array:
    """Minus the squared distances of the points of each cloud, [b, n, d] -> [b, n, n].

    Centred first, in float32 with exact products: rounded inputs swap neighbours in deep layers.

    >>> nearness(jnp.array([[[0.0], [2.0]]])).tolist()
    [[[0.0, -4.0], [-4.0, 0.0]]]
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = x - x.mean(axis=1, keepdims=True)
    squared = jnp.sum(x * x, axis=-1)
    dot = jnp.einsum("bnd,bmd->bnm", x, x, precision=HIGHEST)
    return 2 * dot - squared[:, None, :] - squared[:, :, None]


def nearest(x: Array, k: int) -> Array:
    """Indices of the k nearest points of each point, itself among them, int32 [b, n, k].

    Nearest first; of equally near ones the lower index first. No gradient flows through.

    Args:
      x: clouds [b, n, d].
      k: at most n.

    Raises:
      ValueError: the clouds have fewer points than k.

    >>> nearest(jnp.array([[[0.0], [1.0], [5.0]]]), k=2).tolist()
    [[[0, 1], [1, 0], [2, 1]]]
    """
    if x.shape[1] < k:
        raise ValueError(
            f"A cloud of {x.shape[1]} points has no {k} nearest neighbours; lower config.model.k "
            f"or raise config.data.num_points."
        )

    def nearest_of(clouds: Array) -> Array:
        return lax.top_k(nearness(clouds), k)[1].astype(jnp.int32)

    x, clouds_at_once = lax.stop_gradient(x), max(1, SCORES_AT_ONCE // x.shape[1] ** 2)
    if jax.default_backend() == "cpu":  # its cache holds the scores of one cloud
        return lax.map(lambda cloud: largest(nearness(cloud[None])[0], k), x)
    known = isinstance(x.shape[0], int)  # an exported program takes batches of any size
    if known and x.shape[0] <= clouds_at_once:
        return nearest_of(x)
    batch_size = clouds_at_once if known else None
    return lax.map(lambda cloud: nearest_of(cloud[None])[0], x, batch_size=batch_size)


def neighbor_rows(index: Array) -> Array:
    """Neighbours [b, n, k] as rows of all b * n points, [k, b * n].

    >>> neighbor_rows(jnp.array([[[0, 1], [1, 0]]])).tolist()
    [[0, 1], [1, 0]]
    """
    b, n, k = index.shape
    rows = index + n * jnp.arange(b, dtype=index.dtype)[:, None, None]
    return rows.reshape(b * n, k).T


def pick(x: Array, rows: Array) -> Array:
    """Rows of x [r, c]; they are known to lie inside.

    >>> pick(jnp.array([[1.0], [2.0]]), jnp.array([1, 1])).tolist()
    [[2.0], [2.0]]
    """
    return x.at[rows].get(mode="promise_in_bounds")


def gather_neighbors(x: Array, index: Array) -> Array:
    """The neighbours' values, [b, n, c] and [b, n, k] -> [b, n, k, c].

    >>> gather_neighbors(jnp.array([[[1.0], [2.0]]]), jnp.array([[[0, 1], [1, 0]]])).shape
    (1, 2, 2, 1)
    """
    return jax.vmap(pick)(x, index)


@jax.custom_vjp
def sum_and_max(x: Array, index: Array) -> tuple[Array, Array]:
    """Sum and maximum over each point's neighbours, without a value per edge in memory.

    Args:
      x: [b, n, c].
      index: neighbours, int [b, n, k]; an index may come up more than once.

    Returns:
      (sum, maximum), each [b, n, c]. The gradient of a maximum goes to the first of equal values,
      as in torch.

    >>> total, largest = sum_and_max(jnp.array([[[1.0], [2.0]]]), jnp.array([[[0, 1], [1, 1]]]))
    >>> total.tolist(), largest.tolist()
    ([[[3.0], [4.0]]], [[[2.0], [2.0]]])
    """
    return _sum_and_max(x, index)[:2]


def _sum_and_max(x: Array, index: Array) -> tuple[Array, Array, Array]:
    """Also the place among the neighbours of each maximum, int8 or int32 [b, n, c]."""
    place_type = jnp.int8 if index.shape[-1] < 128 else jnp.int32
    if jax.default_backend() == "cpu":
        return _sum_and_max_of_clouds(x, index, place_type)
    flat, rows = x.reshape(-1, x.shape[-1]), neighbor_rows(index)
    first = pick(flat, rows[0])

    def add(j: Array, found: tuple[Array, Array, Array]):
        total, best, place = found
        value = pick(flat, rows[j])
        larger = value > best
        place = jnp.where(larger, j.astype(place_type), place)
        return total + value, jnp.where(larger, value, best), place

    start = first, first, jnp.zeros_like(first, place_type)
    found = lax.fori_loop(1, len(rows), add, start)
    total, best, place = (part.reshape(x.shape) for part in found)
    return total, best, place


def _sum_and_max_of_clouds(x: Array, index: Array, place_type: Any) -> tuple[Array, Array, Array]:
    """The same for a CPU, whose compiler fuses all neighbours of a result into one loop if nothing
    else needs them: so each result has a loop over clouds of its own.
    """

    def values(x: Array, index: Array) -> list[Array]:
        return [pick(x, rows) for rows in index.T]

    def first(of_cloud: tuple[Array, Array, Array]) -> Array:
        x, index, best = of_cloud
        place = jnp.zeros_like(best, place_type)
        for j, value in reversed(list(enumerate(values(x, index)))):
            place = jnp.where(value == best, jnp.asarray(j, place_type), place)
        return place

    total = lax.map(lambda of_cloud: sum(values(*of_cloud)), (x, index))
    best = lax.map(lambda of_cloud: functools.reduce(jnp.maximum, values(*of_cloud)), (x, index))
    return total, best, lax.map(first, (x, index, best))


def _forward(x: Array, index: Array):
    total, best, place = _sum_and_max(x, index)
    return (total, best), (index, place)


def _backward(kept: tuple[Array, Array], cotangents: tuple[Array, Array]):
    index, place = kept
    shape, width = cotangents[0].shape, cotangents[0].shape[-1]
    of_sum, of_max = cotangents[0].reshape(-1, width), cotangents[1].reshape(-1)
    rows, place = neighbor_rows(index), place.reshape(-1, width).astype(jnp.int32)
    best = jnp.take_along_axis(rows.T, place, axis=1, mode="promise_in_bounds")
    at = (best * width + jnp.arange(width, dtype=best.dtype)).reshape(-1)
    gradient = jnp.zeros_like(of_max).at[at].add(of_max, mode="promise_in_bounds")

    def add(j: Array, gradient: Array) -> Array:
        return gradient.at[rows[j]].add(of_sum, mode="promise_in_bounds")

    gradient = lax.fori_loop(0, len(rows), add, gradient.reshape(-1, width))
    return gradient.reshape(shape), np.zeros(index.shape, jax.dtypes.float0)


sum_and_max.defvjp(_forward, _backward)


def in_degrees(index: Array) -> Array:
    """How often each point is a neighbour, float32 [b, n], of neighbours [b, n, k].

    >>> in_degrees(jnp.array([[[0, 1], [1, 1]]])).tolist()
    [[1.0, 3.0]]
    """
    b, n, _ = index.shape
    counts = jnp.zeros(b * n, jnp.float32).at[neighbor_rows(index)].add(1.0)
    return counts.reshape(b, n)
