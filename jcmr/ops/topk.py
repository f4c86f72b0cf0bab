"""The best k of a gallery that passes by in tiles."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcmr.core.types import Array
from jcmr.ops.largest import top_k


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
    top, index = top_k(both, best.scores.shape[1])

    def pick(old: Array, new: Array) -> Array:
        return jnp.take_along_axis(jnp.concatenate([old, new], axis=1), index, axis=1)

    return TopK(top, jax.tree.map(pick, best.payload, payload))


GROUP = 32
"""Columns that are looked at through their maximum."""
SHARES = (8, 2, 1)
"""An eighth, a half or all of the rows look into a tile."""


def merge_tile(best: TopK, scores: Array, allowed: Array, first: Array | int) -> TopK:
    """`merge_topk` of a tile whose column j is item first + j, for a fraction of its sorting.

    Columns are taken in groups. A row whose k-th best no maximum exceeds has nothing to gain and is
    left alone, which is most rows once many tiles have passed. Another one looks into the k groups
    with the largest maxima: an item elsewhere has k groups before it, each with an item at least as
    good, and an earlier one where they are equal. So all is as exact as sorting everything.

    Args:
      best: [n, k], the payload int32 item numbers below `first`.
      scores: [n, c].
      allowed: bool [c], the columns to choose from.
      first: item number of column 0.

    >>> best = TopK(jnp.array([[0.9, 0.1]]), jnp.array([[0, 1]]))
    >>> merge_tile(best, jnp.array([[0.5, 0.7]]), jnp.array([True, False]), 2).payload.tolist()
    [[0, 2]]
    """
    num, size = scores.shape
    k = best.scores.shape[1]

    def mask(scores: Array) -> Array:
        return jnp.where(allowed, scores, -jnp.inf)

    def group_maxima(scores: Array) -> Array:
        return jnp.max(scores.reshape(num, size // GROUP, GROUP), axis=2)

    if size % GROUP or size // GROUP <= k:
        items = jnp.broadcast_to(first + jnp.arange(size), scores.shape)
        return merge_topk(best, mask(scores), items)
    # A mask is another pass over the tile, and so is a maximum of maxima that XLA makes one of.
    maxima = lax.cond(
        jnp.all(allowed), group_maxima, lambda scores: group_maxima(mask(scores)), scores
    )
    gains = jnp.max(maxima, axis=1) > best.scores[:, -1]

    def merge_some(count: int) -> Callable[[TopK], TopK]:
        def merge(best: TopK) -> TopK:
            rows = jnp.nonzero(gains, size=count, fill_value=num)[0]
            inside = jnp.minimum(rows, num - 1)
            groups = jnp.sort(top_k(maxima[inside], k)[1], axis=1)
            columns = (groups[:, :, None] * GROUP + jnp.arange(GROUP)).reshape(count, k * GROUP)
            # Masked again, for keeping the masked tile would cost another pass over it.
            kept = jnp.where(allowed[columns], scores[inside[:, None], columns], -jnp.inf)
            new = merge_topk(jax.tree.map(lambda x: x[inside], best), kept, first + columns)
            return jax.tree.map(lambda x, y: x.at[rows].set(y, mode="drop"), best, new)

        return merge

    counts = [num // share for share in SHARES if share == 1 or num >= 2 * share]
    wanted = jnp.sum(gains)
    level = sum((wanted > limit).astype(jnp.int32) for limit in [0, *counts[:-1]])
    return lax.switch(level, [lambda best: best, *map(merge_some, counts)], best)
