"""Ranks of all matches: blocks of queries against a whole gallery, on the devices."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jcmr.core.parallel import AXIS
from jcmr.core.progress import Progress
from jcmr.core.types import Array
from jcmr.eval.tiles import Galleries, Top, inside, join, make_top, match_tile, pin, score_tile
from jcmr.ops import ranks
from jcmr.ops.topk import TopK


class Ranking(NamedTuple):
    """What the ranks of all matches say of each query, arrays [v, n]."""

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
    num_ranked: Any
    """Items of the gallery that were compared."""
    average_precision_at: Any
    """[v, n, k] of the first of each of k cut-offs, over the matches found there."""


@partial(jax.jit, static_argnames=("num_top", "mesh"))
def top_of_block(scores: Array, match: Array, groups, i: int, num_top: int, mesh: Mesh) -> TopK:
    """The best inner items of outer tile i against all inner items, [r, k] of [r, m]."""
    if num_top == 0:  # a search for none would take as long
        return TopK(scores[:, :0], (jnp.zeros((len(scores), 0), jnp.int32), match[:, :0]))
    taken = inside(groups[0][:1, i], groups[1].reshape(len(groups[1]), -1)[:1])[0]
    best, ids = lax.top_k(jnp.where(taken, scores, -jnp.inf), num_top)
    hits = jnp.take_along_axis(match, ids, axis=1)
    return pin(TopK(best, (ids.astype(jnp.int32), hits)), mesh)


@partial(jax.jit, static_argnames=("most", "cuts", "map_cuts", "drop_last", "mesh"))
def measure_block(
    scores: Array,
    match: Array,
    skip: Array | None,
    groups: tuple[Array, Array],
    i: int,
    num_inner: int,
    most: int,
    cuts: tuple[int, ...],
    map_cuts: tuple[int, ...],
    drop_last: bool,
    mesh: Mesh,
) -> Ranking:
    """Ranks outer tile i against all inner items ([r, m]) and measures it, [v, r].

    `skip` is None where every pair is compared.
    """
    present = jnp.broadcast_to(jnp.arange(match.shape[1]) < num_inner, match.shape)
    rows = PartitionSpec(AXIS)
    rank_rows = jax.shard_map(
        partial(ranks.match_ranks, most=most), mesh=mesh, in_specs=rows, out_specs=rows
    )

    def one_view(view: tuple[Array, Array]) -> Ranking:
        row_groups, column_groups = view
        taken = inside(row_groups[None], column_groups[None])[0]
        if skip is not None:
            taken &= ~skip
        if drop_last:
            taken &= ranks.without_last(scores, present)
        found, num_misses = rank_rows(scores, match & taken, taken & ~match)
        number = ranks.hits_within(found, ranks.ABSENT)

        def at(measure: Callable[[Array, int], Array], ks: tuple[int, ...]) -> Array:
            each = [measure(found, k) for k in ks]
            return jnp.stack(each, axis=1) if ks else jnp.zeros((len(number), 0))

        return Ranking(
            number,
            jnp.where(number > 0, found[:, 0], num_misses),
            ranks.hits_within(found, number),
            at(ranks.hits_within, cuts),
            ranks.map_at_r(found, number),
            ranks.average_precision(found, number),
            number + num_misses,
            at(ranks.average_precision_found, map_cuts),
        )

    views = groups[0][:, i], groups[1].reshape(len(groups[1]), -1)
    return pin(lax.map(one_view, views), mesh)


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
    """Ranks the gallery of each row, or with `flipped` of each column, a block at a time.

    Args:
      galleries: what to compare.
      relations: relation -> the largest number of matches of an item.
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
    progress = Progress("ranking, queries", outer.size)

    def block(tile: Callable[[int, int], Array], i: int) -> Array:
        return join([tile(i, j) for j in inner.tiles], mesh)

    score = partial(score_tile, galleries.score, flipped, mesh, galleries.variables, *embeddings)
    for i in outer.tiles:
        scores = block(score, i)
        for relation, most in relations.items():
            pairs = flipped, mesh, outer.keys[relation], inner.keys[relation]
            match = block(partial(match_tile, galleries.matches[relation], *pairs), i)
            skips = galleries.skips.get(relation)
            skip = block(partial(match_tile, skips, *pairs), i) if skips else None
            groups = outer.groups[relation], inner.groups[relation]
            found = measure_block(
                scores,
                match,
                skip,
                groups,
                i,
                inner.size,
                1 << max(most - 1, 0).bit_length(),  # so that splits of like size share a program
                tuple(cuts),
                tuple(map_cuts),
                relation in drop_last,
                mesh,
            )
            parts[relation].append(found)
            if relation == shown:
                k = min(num_top, inner.size)
                tops.append(top_of_block(scores, match, groups, i, k, mesh))
        jax.block_until_ready(parts)  # one block at a time
        progress((i + 1) * scores.shape[0])
    rankings = {
        relation: Ranking(*(np.concatenate(x, axis=1)[:, : outer.size] for x in zip(*blocks)))
        for relation, blocks in jax.device_get(parts).items()
    }
    best = jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(tops))
    return rankings, make_top(best, outer.size)
