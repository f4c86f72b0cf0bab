"""Places of the largest entries of many rows at once, as `lax.top_k` gives them."""

import jax
import jax.numpy as jnp
from jax import lax

from jcmr.core.types import Array

GROUP = 1 << 4
"""Scores of a row whose maximum is kept: what is looked at again when it is taken."""
FEW, MANY = 1 << 4, 1 << 8
"""With up to FEW entries of at least MANY rows it pays on a CPU."""


def first_largest(x: Array) -> Array:
    """`argmax` along the first axis, int32, in vector instructions on a CPU; the last of NaNs.

    >>> first_largest(jnp.array([[1.0, 0.0], [1.0, 2.0]])).tolist()
    [0, 1]
    """
    place = lax.broadcasted_iota(jnp.int32, x.shape, 0)
    return jnp.min(jnp.where(x == x.max(axis=0), place, len(x) - 1), axis=0)


def largest(scores: Array, k: int) -> Array:
    """Places of the k largest of each row, int32 [n, k], in the order of `lax.top_k`.

    For a CPU, where that sorts row by row. Here all rows take their largest k times: from the
    maxima of groups, of which each time that of a single group changes.

    Args:
      scores: [n, m].
      k: at most m.

    >>> largest(jnp.array([[0.0, 2.0, 1.0, 2.0]]), 3).tolist()
    [[1, 3, 2]]
    """
    n, m = scores.shape
    scores = jnp.pad(scores, ((0, 0), (0, -m % GROUP)), constant_values=-jnp.inf)
    scores = scores.reshape(n, -1, GROUP)
    row = jnp.arange(n, dtype=jnp.int32)

    def take(left: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        scores, best = left  # [n, groups, GROUP] and [groups, n]: rows are the lanes of vectors
        group = first_largest(best)
        members = scores.at[row, group].get(mode="promise_in_bounds").T
        place = first_largest(members)
        others = jnp.where(jnp.arange(GROUP)[:, None] == place, -jnp.inf, members)
        scores = scores.at[row, group, place].set(-jnp.inf, mode="promise_in_bounds")
        best = best.at[group, row].set(others.max(axis=0), mode="promise_in_bounds")
        return (scores, best), group * GROUP + place

    places = lax.scan(take, (scores, scores.max(axis=-1).T), length=k)[1]
    return jnp.minimum(places.T, m - 1)  # NaNs could lead to what was padded


def top_k(scores: Array, k: int) -> tuple[Array, Array]:
    """`lax.top_k`, values and int32 places [n, k] of [n, m], for a third of its time on a CPU.

    >>> [x.tolist() for x in top_k(jnp.array([[0.0, 2.0, -jnp.inf, 2.0]]), 3)]
    [[[2.0, 2.0, 0.0]], [[1, 3, 0]]]
    """
    n = scores.shape[0]  # no number in an exported program
    if jax.default_backend() == "cpu" and k <= FEW and isinstance(n, int) and n >= MANY:
        # What is taken becomes -inf, which must not be there before.
        places = largest(jnp.maximum(scores, jnp.finfo(scores.dtype).min), k)
        return jnp.take_along_axis(scores, places, axis=1), places
    values, places = lax.top_k(scores, k)
    return values, places
