"""Ranks of all matches: blocks of queries against a whole gallery, sorted on the devices."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from jcmr.core.progress import make_progress
from jcmr.core.types import Array
from jcmr.eval.tiles import Galleries, Top, inside, make_top, match_tile, pin, score_tile
from jcmr.ops import ranks
from jcmr.ops.topk import TopK


class Ranking(NamedTuple):
    """What sorted galleries say of each query, arrays [v, n]."""

    num_matches: Any
    """R."""
    rank: Any
    """Of the best match, 0 = top; the gallery's size without one."""
    hits_in_r: Any
    """Matches among the first R."""
    hits_at: Any
    """[v, n, k] matches among the first of each of k cut-offs."""
    map_at_r: Any
    average_precision: Any
    """Up to the depth of the sort only."""
    num_ranked: Any
    """Items of the gallery that were compared."""
    average_precision_at: Any
    """[v, n, k] of the first of each of k cut-offs, over the matches found there."""


@partial(jax.jit, static_argnames=("num_top", "mesh"))
def top_of_block(
    scores: list[Array], matches: list[Array], groups, i: int, num_top: int, mesh: Mesh
) -> TopK:
    """The best inner items of outer tile i against all inner tiles (lists of [r, c]), [r, k]."""
    taken = inside(groups[0][:1, i], groups[1].reshape(len(groups[1]), -1)[:1])[0]
    best, ids = lax.top_k(jnp.where(taken, jnp.concatenate(scores, axis=1), -jnp.inf), num_top)
    hits = jnp.take_along_axis(jnp.concatenate(matches, axis=1), ids, axis=1)
    return pin(TopK(best, (ids.astype(jnp.int32), hits)), mesh)


@partial(jax.jit, static_argnames=("depth", "cuts", "map_cuts", "drop_last", "mesh"))
def measure_block(
    scores: list[Array],
    matches: list[Array],
    skips: list[Array],
    groups: tuple[Array, Array],
    i: int,
    num_inner: int,
    depth: int,
    cuts: tuple[int, ...],
    map_cuts: tuple[int, ...],
    drop_last: bool,
    mesh: Mesh,
) -> Ranking:
    """Sorts outer tile i against all inner tiles (lists of [r, c]) and measures it, [v, r].

    `skips` is empty where every pair is compared.
    """
    scores_all = jnp.concatenate(scores, axis=1)
    match = jnp.concatenate(matches, axis=1)
    skip = jnp.concatenate(skips, axis=1) if skips else False
    present = jnp.broadcast_to(jnp.arange(match.shape[1]) < num_inner, match.shape)

    def one_view(row_groups: Array, column_groups: Array) -> Ranking:
        taken = inside(row_groups[None], column_groups[None])[0] & ~jnp.asarray(skip)
        if drop_last:
            taken &= ranks.without_last(scores_all, present)
        positive = match & taken
        number = positive.sum(1, dtype=jnp.int32)
        hits = ranks.ordered_hits(jnp.where(taken, scores_all, -jnp.inf), positive, depth)
        at = [hits[:, :k].sum(1, dtype=jnp.int32) for k in cuts]
        best = ranks.best_positive(scores_all, positive)
        return Ranking(
            number,
            ranks.count_ahead(scores_all, taken & ~match, best),
            ranks.hits_within(hits, number),
            jnp.stack(at, axis=1) if cuts else jnp.zeros((len(number), 0), jnp.int32),
            ranks.map_at_r(hits, number),
            ranks.average_precision(hits, number),
            taken.sum(1, dtype=jnp.int32),
            jnp.stack([ranks.average_precision_found(hits, k) for k in map_cuts], axis=1)
            if map_cuts
            else jnp.zeros((len(number), 0)),
        )

    columns = groups[1].reshape(len(groups[1]), -1)
    found = [one_view(*pair) for pair in zip(groups[0][:, i], columns)]
    return pin(jax.tree.map(lambda *xs: jnp.stack(xs), *found), mesh)


def rank_sweep(
    galleries: Galleries,
    relations: Mapping[str, int],
    flipped: bool,
    cuts: Sequence[int],
    shown: str,
    num_top: int,
    drop_last: Sequence[str] = (),
    map_cuts: Sequence[int] = (),
) -> tuple[dict[str, Ranking], Top]:
    """Sorts the gallery of each row, or with `flipped` of each column, a block at a time.

    Args:
      galleries: what to compare.
      relations: relation -> the largest number of matches of an item, so how deep to sort.
      flipped: columns are the queries.
      cuts: cut-offs of `Ranking.hits_at`.
      shown: the relation that decides which of the best are hits.
      num_top: how many of the best to keep.
      drop_last: relations whose galleries lose the last-ranked item; see `ranks.without_last`.
      map_cuts: cut-offs of `Ranking.average_precision_at`.

    Returns:
      (relation -> Ranking, best items) of all queries.
    """
    mesh = galleries.mesh
    outer, inner = galleries.rows, galleries.columns
    if flipped:
        outer, inner = inner, outer
    embeddings = outer.embedding, inner.embedding
    parts: dict[str, list[Ranking]] = {relation: [] for relation in relations}
    tops = []
    progress = make_progress("ranking, queries", outer.size)
    for i in outer.tiles:
        scores = [
            score_tile(galleries.score, flipped, mesh, galleries.variables, *embeddings, i, j)
            for j in inner.tiles
        ]
        width = scores[0].shape[1] * len(scores)
        for relation, most in relations.items():
            match, keys = galleries.matches[relation], (outer.keys[relation], inner.keys[relation])
            matches = [match_tile(match, flipped, mesh, *keys, i, j) for j in inner.tiles]
            skip = galleries.skips.get(relation)
            tiles = inner.tiles if skip else ()
            skips = [match_tile(skip, flipped, mesh, *keys, i, j) for j in tiles]
            groups = outer.groups[relation], inner.groups[relation]
            # A power of two, so that splits of like size share a program.
            depth = min(1 << (max(most, *cuts, *map_cuts, 1) - 1).bit_length(), width)
            drop = relation in drop_last
            found = measure_block(
                scores,
                matches,
                skips,
                groups,
                i,
                inner.size,
                depth,
                tuple(cuts),
                tuple(map_cuts),
                drop,
                mesh,
            )
            parts[relation].append(found)
            if relation == shown:
                k = min(num_top, inner.size)
                tops.append(top_of_block(scores, matches, groups, i, k, mesh))
        jax.block_until_ready(tops[-1])  # one block at a time
        progress((i + 1) * scores[0].shape[0])
    rankings = {
        relation: Ranking(*(np.concatenate(x, axis=1)[:, : outer.size] for x in zip(*blocks)))
        for relation, blocks in jax.device_get(parts).items()
    }
    best = jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(tops))
    return rankings, make_top(best, outer.size)
