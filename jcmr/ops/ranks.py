"""Ranks without sorting where counting suffices, and rankings where it does not.

Ties are pessimistic everywhere: an item that does not match ranks ahead of one that matches with
the same score, so that a constant score is worth nothing. Ranks count from 0, the top.
"""

import jax.numpy as jnp
from jax import lax

from jcmr.core.types import Array


def best_positive(scores: Array, positive: Array) -> Array:
    """Highest score among each row's matches, [n]; -inf without one.

    Args:
      scores: [n, m].
      positive: bool [n, m], matches.

    >>> best_positive(jnp.array([[0.9, 0.5]]), jnp.array([[False, True]])).tolist()
    [0.5]
    """
    return jnp.max(jnp.where(positive, scores, -jnp.inf), axis=1)


def count_ahead(scores: Array, negative: Array, best: Array) -> Array:
    """How many items rank ahead of each row's best match, int32 [n]: its rank.

    Counts of tiles of one row add up. `best` must come from the same compiled product as `scores`:
    a sum in another order differs in the last bit, and equal pairs change places.

    Args:
      scores: [n, m].
      negative: bool [n, m], the gallery's items that do not match.
      best: [n], from `best_positive`.

    >>> scores, negative = jnp.array([[0.9, 0.5]]), jnp.array([[True, False]])
    >>> count_ahead(scores, negative, jnp.array([0.5])).tolist()
    [1]
    """
    return jnp.sum(negative & (scores >= best[:, None]), axis=1, dtype=jnp.int32)


def ordered_hits(scores: Array, positive: Array, depth: int) -> Array:
    """Whether the items at ranks 0 to depth - 1 of each row match, bool [n, depth].

    Args:
      scores: [n, m], -inf for what is not in the gallery.
      positive: bool [n, m], matches.
      depth: at most m. Far below m this costs a fraction of a sort.

    >>> ordered_hits(jnp.array([[0.1, 0.9, 0.5]]), jnp.array([[True, False, True]]), 2).tolist()
    [[False, True]]
    """
    if depth == scores.shape[1]:  # one sort of both: misses come first among equal scores
        return lax.sort((-scores, positive), num_keys=2)[1]
    top, index = lax.top_k(scores, depth)
    hits = jnp.take_along_axis(positive, index, axis=1)
    below, hits = lax.sort((-top, hits), num_keys=2)
    # The last group of equal scores may go on beyond depth; all of its misses come first.
    last = -below[:, -1:]
    misses = jnp.sum((scores == last) & ~positive, axis=1, keepdims=True)
    start = jnp.sum(below < below[:, -1:], axis=1, keepdims=True)
    place = jnp.arange(depth) - start
    return jnp.where(place >= 0, place >= misses, hits)


def without_last(scores: Array, valid: Array) -> Array:
    """`valid` [n, m] without each row's last-ranked item (of equal ones that with the highest
    index), which the official PMRP code loses by slicing its rankings to [:-1].

    >>> without_last(jnp.array([[0.1, 0.9]]), jnp.ones((1, 2), bool)).tolist()
    [[False, True]]
    """
    ascending = jnp.where(valid, scores, jnp.inf)[:, ::-1]
    last = scores.shape[1] - 1 - jnp.argmin(ascending, axis=1)
    return valid & (jnp.arange(scores.shape[1]) != last[:, None])


def hits_within(hits: Array, count: Array) -> Array:
    """Matches among the first `count` [n] of ordered hits [n, depth], int32 [n].

    >>> hits_within(jnp.array([[True, False, True]]), jnp.array([2])).tolist()
    [1]
    """
    return jnp.sum(hits & (jnp.arange(hits.shape[1]) < count[:, None]), axis=1, dtype=jnp.int32)


def r_precision(hits: Array, num_matches: Array) -> Array:
    """Share of matches among the first R, [n], where R = `num_matches` [n]; 0 without a match.

    Args:
      hits: bool [n, depth] from `ordered_hits`; depth at least the largest R.
      num_matches: int [n].

    >>> r_precision(jnp.array([[True, False, True]]), jnp.array([2])).tolist()
    [0.5]
    """
    return hits_within(hits, num_matches) / jnp.maximum(num_matches, 1)


def average_precision(hits: Array, num_matches: Array) -> Array:
    """1/R * sum over hits of the precision at their rank, [n]; arguments as in `r_precision`.

    With hits over the whole gallery this is AP; mAP is its mean over queries.

    >>> average_precision(jnp.array([[True, False, False]]), jnp.array([1])).tolist()
    [1.0]
    """
    precision = jnp.cumsum(hits, axis=1) / jnp.arange(1, hits.shape[1] + 1)
    return jnp.sum(jnp.where(hits, precision, 0.0), axis=1) / jnp.maximum(num_matches, 1)


def map_at_r(hits: Array, num_matches: Array) -> Array:
    """`average_precision` of the first R alone, [n] (Musgrave et al., ECCV 2020).

    >>> map_at_r(jnp.array([[False, True]]), jnp.array([2])).tolist()
    [0.25]
    """
    inside = jnp.arange(hits.shape[1]) < num_matches[:, None]
    return average_precision(hits & inside, num_matches)


def average_precision_found(hits: Array, k: int) -> Array:
    """Mean of the precision at the hits among the first k, [n]; 0 without one.

    Its denominator is the number of matches found there, not that of all: the "MAP@50" and
    "MAP@100" of several papers and of the code of SCKR.

    Args:
      hits: bool [n, depth] from `ordered_hits`, depth at least k or the whole gallery.
      k: cut-off.

    >>> average_precision_found(jnp.array([[False, True]]), 2).tolist()
    [0.5]
    """
    inside = hits & (jnp.arange(hits.shape[1]) < k)
    return average_precision(inside, jnp.sum(inside, axis=1))
