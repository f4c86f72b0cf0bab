"""The best k of a gallery that passes by in tiles."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcmr.core.types import Array


class TopK(NamedTuple):
    """The best so far of each of n rows, best first."""

    scores: Array
    """[n, k], -inf where there is none."""
    payload: Any
    """Pytree of [n, k]: what came along with the scores, such as ids."""


def merge_topk(best: TopK, scores: Array, payload: Any) -> TopK:
    """The best k of `best` and a tile of candidates; of equal scores the earlier comes first.

    Tiles in the order of their ids therefore give the same as one `lax.top_k` of everything.

    Args:
      best: [n, k].
      scores: [n, c].
      payload: pytree like that of `best`, of [n, c].
    """
    both = jnp.concatenate([best.scores, scores], axis=1)
    top, index = lax.top_k(both, best.scores.shape[1])

    def pick(old: Array, new: Array) -> Array:
        return jnp.take_along_axis(jnp.concatenate([old, new], axis=1), index, axis=1)

    return TopK(top, jax.tree.map(pick, best.payload, payload))


GROUP = 32


def topk_rows(scores: Array, k: int) -> tuple[Array, Array]:
    """The best k rows of each column, exactly as `lax.top_k` of the transpose but far cheaper.

    Rows are looked at in groups of 32. The k groups with the largest maxima hold the best k rows:
    a row in another group has k groups before it, each with a row at least as good, and where they
    are equal an earlier one. So a maximum, which costs one pass, leaves few rows to sort.

    Args:
      scores: [m, q].
      k: at most m.

    Returns:
      (scores [q, k], rows int32 [q, k]), best first, of equal scores the earlier row first.
    """
    size, columns = scores.shape
    if size % GROUP or size // GROUP <= 2 * k:
        top, rows = lax.top_k(scores.T, k)
        return top, rows.astype(jnp.int32)
    maxima = jnp.max(scores.reshape(size // GROUP, GROUP, columns), axis=1)
    groups = jnp.sort(lax.top_k(maxima.T, k)[1], axis=1)
    rows = (groups[:, :, None] * GROUP + jnp.arange(GROUP)).reshape(columns, k * GROUP)
    kept = jnp.take_along_axis(scores, rows.T, axis=0).T
    top, place = lax.top_k(kept, k)
    return top, jnp.take_along_axis(rows, place, axis=1).astype(jnp.int32)
