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

    >>> best = TopK(jnp.array([[0.9, 0.1]]), jnp.array([[4, 7]]))
    >>> merge_topk(best, jnp.array([[0.5]]), jnp.array([[8]])).payload.tolist()
    [[4, 8]]
    """
    both = jnp.concatenate([best.scores, scores], axis=1)
    top, index = lax.top_k(both, best.scores.shape[1])

    def pick(old: Array, new: Array) -> Array:
        return jnp.take_along_axis(jnp.concatenate([old, new], axis=1), index, axis=1)

    return TopK(top, jax.tree.map(pick, best.payload, payload))
