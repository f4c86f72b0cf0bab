"""Ranks without sorting where counting suffices, and rankings where it does not.

Ties are pessimistic everywhere: an item that does not match ranks ahead of one that matches with
the same score, so that a constant score is worth nothing.
"""

from typing import NamedTuple

import jax
from jax import numpy as jnp

from jcmr.core.types import Array


def best_positive(scores: Array, relevant: Array) -> Array:
    """Score of each row's best match, [n]; -inf without one. Scores and relevant are [n, m]."""
    return jnp.max(jnp.where(relevant, scores, -jnp.inf), axis=1)


def count_ahead(scores: Array, relevant: Array, valid: Array, threshold: Array) -> Array:
    """How many items of each row rank ahead of its best match, int [n].

    Args:
      scores: [n, m]; a tile of the row's items is enough, counts add up over tiles.
      relevant: [n, m] matches. They are never ahead of the best of them.
      valid: [n, m] False for padding and items outside the row's gallery.
      threshold: [n] from `best_positive`, computed by the same program as `scores`: a reduction in
        another order differs in the last bit, and an item would outrank itself.
    """
    return jnp.sum(valid & ~relevant & (scores >= threshold[:, None]), axis=1)


class Ranking(NamedTuple):
    """What the sorted gallery says about each of n queries."""

    num_matches: Array
    """[n] matching items in the gallery, R."""
    first_hit: Array
    """[n] rank of the best match, 0 is the top; the gallery's size without one."""
    r_precision: Array
    """[n] share of matches among the first R."""
    map_at_r: Array
    """[n] mean over the first R places of the precision at each hit (Musgrave et al. 2020)."""
    average_precision: Array
    """[n] mean over all matches of the precision at their place."""
    precision: Array
    """[n, len(ks)] share of matches among the first k."""
    top: Array
    """[n, k] items with the highest scores, best first."""
    top_hits: Array
    """[n, k] which of them match."""


def rank(
    scores: Array,
    relevant: Array,
    valid: Array,
    ks: tuple[int, ...] = (1, 5, 10),
    num_top: int = 10,
) -> Ranking:
    """Sorts each row of scores [n, m] and measures where its matches stand.

    Args:
      scores: [n, m], higher is better.
      relevant: [n, m] matches.
      valid: [n, m] items that belong to the row's gallery; the others rank last and never match.
      ks: cut-offs of `precision`.
      num_top: how many of the best items to return; at most m.
    """
    relevant = relevant & valid
    scores = jnp.where(valid, scores, -jnp.inf)
    order = jnp.lexsort((relevant, -scores), axis=1)
    hits = jnp.take_along_axis(relevant, order, axis=1)
    place = jnp.arange(1, scores.shape[1] + 1)
    total = jnp.sum(hits, axis=1)
    found = jnp.cumsum(hits, axis=1)
    at_hits = jnp.where(hits, found / place, 0.0)
    within = place <= total[:, None]
    share = 1 / jnp.maximum(total, 1)
    top = order[:, :num_top]
    return Ranking(
        num_matches=total,
        first_hit=jnp.sum(found == 0, axis=1),
        r_precision=jnp.sum(hits & within, axis=1) * share,
        map_at_r=jnp.sum(at_hits * within, axis=1) * share,
        average_precision=jnp.sum(at_hits, axis=1) * share,
        precision=jnp.stack([jnp.sum(hits[:, :k], axis=1) / k for k in ks], axis=1),
        top=top,
        top_hits=hits[:, :num_top],
    )


def in_float32(x: Array) -> Array:
    """Scores as they are compared: float32, or float64 where they come in it."""
    return x if x.dtype == jnp.float64 else jax.lax.convert_element_type(x, jnp.float32)
