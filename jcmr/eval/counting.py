"""Ranks of best matches by counting: one sweep for both directions and all views, no sort."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jcmr.core import parallel
from jcmr.core.progress import Progress
from jcmr.core.types import Array
from jcmr.eval.tiles import Counts, Galleries, Side, Top, inside, make_top, pin
from jcmr.ops import ranks
from jcmr.ops.topk import TopK, merge_topk

KEPT = 1 << 24
"""Scores that are kept from the first pass to the second, 64 MB: all of 1,000 x 5,000."""


@partial(jax.jit, static_argnames="mesh", donate_argnames="counts")
def add_matches(counts, match: Array, groups: tuple[Array, Array], i: int, j: int, mesh: Mesh):
    """Adds a tile to the number of matches of each row [v, t, r] and column; did it hold any?"""
    found = inside(groups[0][:, i], groups[1][:, j]) & match
    rows = counts[0].at[:, i].add(found.sum(2, dtype=jnp.int32))
    columns = counts[1].at[:, j].add(found.sum(1, dtype=jnp.int32))
    return pin((rows, columns), mesh), pin(found.any(), mesh)


@partial(jax.jit, static_argnames="mesh", donate_argnames="best")
def raise_best(best, scores: Array, match: Array, groups, i: int, j: int, mesh: Mesh):
    """Raises the score of the best match of each row [v, t, r] and column to those of a tile."""
    found = inside(groups[0][:, i], groups[1][:, j]) & match
    rows = jax.vmap(ranks.best_positive, (None, 0))(scores, found)
    columns = jax.vmap(ranks.best_positive, (None, 0))(scores.T, found.mT)
    return pin((best[0].at[:, i].max(rows), best[1].at[:, j].max(columns)), mesh)


@partial(jax.jit, static_argnames="mesh", donate_argnames="ahead")
def add_ahead(ahead, best, scores: Array, match: Array, groups, i: int, j: int, mesh: Mesh):
    """Adds a tile's items to those that rank ahead of the best match of each row and column."""
    misses = inside(groups[0][:, i], groups[1][:, j]) & ~match
    count = jax.vmap(ranks.count_ahead, (None, 0, 0))
    rows = count(scores, misses, best[0][:, i])
    columns = count(scores.T, misses.mT, best[1][:, j])
    return pin((ahead[0].at[:, i].add(rows), ahead[1].at[:, j].add(columns)), mesh)


@partial(jax.jit, static_argnames="mesh", donate_argnames="top")
def merge_tops(top, scores: Array, match: Array, groups, i: int, j: int, mesh: Mesh):
    """Merges a tile into the best columns of each row, [t, r, k], and rows of each column."""
    taken = inside(groups[0][:1, i], groups[1][:1, j])[0]
    scores = jnp.where(taken, scores, -jnp.inf)

    def merge(best: TopK, i: int, j: int, scores: Array, match: Array) -> TopK:
        ids = j * scores.shape[1] + jnp.arange(scores.shape[1], dtype=jnp.int32)
        payload = (jnp.broadcast_to(ids, scores.shape), match)
        merged = merge_topk(jax.tree.map(lambda x: x[i], best), scores, payload)
        return jax.tree.map(lambda x, new: x.at[i].set(new), best, merged)

    return pin((merge(top[0], i, j, scores, match), merge(top[1], j, i, scores.T, match.T)), mesh)


def count_matches(
    galleries: Galleries, relation: str
) -> tuple[tuple[np.ndarray, np.ndarray], list[tuple[int, int]]]:
    """Matches of each row [v, n] and column [v, m], and the tiles that hold any. No scores."""
    counts, held = galleries.per_item(relation, 0, jnp.int32), {}
    groups = galleries.groups(relation)
    for i in galleries.rows.tiles:
        for j in galleries.columns.tiles:
            match = galleries.match(relation, i, j)
            counts, held[i, j] = add_matches(counts, match, groups, i, j, galleries.mesh)
    held = jax.device_get(held)
    return galleries.flat(counts), [tile for tile, any_match in held.items() if any_match]


def start_top(galleries: Galleries, num_top: int) -> tuple[TopK, TopK]:
    """The best of nothing, for rows [t, r, k] and columns."""

    def start(side: Side, other: Side, dtype: Any) -> TopK:
        t, r = jax.tree.leaves(side.embedding)[0].shape[:2]
        shape = (t, r, min(num_top, other.size))
        payload: Any = np.full(shape, -1, np.int32), np.zeros(shape, bool)
        best: Any = np.full(shape, -np.inf, dtype)
        return TopK(best, payload)

    dtype = galleries.score_dtype()
    made = (
        start(galleries.rows, galleries.columns, dtype),
        start(galleries.columns, galleries.rows, dtype),
    )
    return parallel.replicate(made, galleries.mesh)


def count_sweep(
    galleries: Galleries, relation: str, num_top: int
) -> tuple[tuple[Counts, Counts], tuple[Top, Top]]:
    """Ranks of best matches of rows and columns by counting, and the best few of each.

    First the score of each item's best match is looked for, then all that scores as high is
    counted. So tiles that hold a match are scored twice, but for KEPT scores, all others once.

    Args:
      galleries: what to compare.
      relation: what counts as a match.
      num_top: how many of the best to keep.

    Returns:
      (counts of rows and of columns, best of rows and of columns).
    """
    mesh, groups = galleries.mesh, galleries.groups(relation)
    numbers, holding = count_matches(galleries, relation)
    top = start_top(galleries, num_top)
    best = galleries.per_item(relation, -jnp.inf, top[0].scores.dtype)
    ahead = galleries.per_item(relation, 0, jnp.int32)
    kept: dict[tuple[int, int], Array] = {}
    for i, j in holding:
        scores, match = galleries.scores(i, j), galleries.match(relation, i, j)
        best = raise_best(best, scores, match, groups, i, j, mesh)
        if (len(kept) + 1) * scores.size <= KEPT:
            kept[i, j] = scores
    progress = Progress("scoring, rows", galleries.rows.size)
    for i in galleries.rows.tiles:
        for j in galleries.columns.tiles:
            scores = kept.pop((i, j)) if (i, j) in kept else galleries.scores(i, j)
            match = galleries.match(relation, i, j)
            ahead = add_ahead(ahead, best, scores, match, groups, i, j, mesh)
            if num_top:
                top = merge_tops(top, scores, match, groups, i, j, mesh)
        jax.block_until_ready(ahead)
        progress((i + 1) * scores.shape[0])
    of_rows, of_columns = map(Counts, numbers, galleries.flat(ahead))
    tops = make_top(top[0], galleries.rows.size), make_top(top[1], galleries.columns.size)
    return (of_rows, of_columns), tops
