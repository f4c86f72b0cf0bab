"""Evaluates a retrieval split: every item is encoded once, then scores are swept tile by tile.

Neither the scores nor the relevance of all pairs are ever held: ranks of best matches come from
counting, in one sweep for both directions and all protocols; measures of the whole ranking come
from blocks of queries that are sorted on the device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.stats import rankdata

from jcmr.core.parallel import AXIS
from jcmr.core.types import (
    Array,
    Batch,
    Embedding,
    RandomAccess,
    Relevance,
    RetrievalSplit,
    Task,
    Variables,
)
from jcmr.eval import metrics
from jcmr.ops import ranks

Prepare = Callable[[Batch], Batch]
Score = Callable[[Variables, Embedding, Embedding], Array]
Folds = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Protocol -> folds of rows [n] and of columns [m]: an item's gallery is what shares its fold;
items of fold -1 take no part."""
KS = (1, 5, 10)
NUM_TOP = 10
VAGUE = 100
"""A retrieved caption that matches more images than this says next to nothing."""
PLAUSIBLE = ("pm0", "pm1", "pm2")
"""Relations by the Hamming distance of category vectors (PMRP)."""


class Results(NamedTuple):
    """What an evaluation found."""

    metrics: dict[str, float]
    top: dict[str, np.ndarray]
    """direction -> [queries, 10] best items."""
    hits: dict[str, np.ndarray]
    """direction -> [queries, 10] which of them match."""
    num_matches: dict[str, np.ndarray]
    """modality -> [items] how many of the other modality match each."""
    first_hit: dict[str, np.ndarray]
    """direction -> [queries] rank of the best match, 0 = top."""
    uncertainty: dict[str, np.ndarray]
    """modality -> [items], of systems that have one."""


def blocks(num: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(indices, valid), both [size], of consecutive blocks; the last one repeats item 0."""
    for start in range(0, num, size):
        indices = np.arange(start, start + size)
        valid = indices < num
        yield np.where(valid, indices, 0), valid


def size_of(embedding: Embedding) -> int:
    """Number of items of an embedding."""
    return len(jax.tree.leaves(embedding)[0])


def rows(embedding: Embedding, indices: np.ndarray) -> Embedding:
    """Items of an embedding."""
    return jax.tree.map(lambda x: x[indices], embedding)


def join(parts: Sequence[Any]) -> Any:
    """Trees of arrays, one after the other."""
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def take(items: RandomAccess, indices: np.ndarray) -> Batch:
    """Items as a batch, in one read where they can be read so."""
    vectorized = getattr(items, "take", None)
    if vectorized is not None:
        return vectorized(indices)
    read = {int(i): items[int(i)] for i in np.unique(indices)}
    names = read[int(indices[0])]
    return {name: np.stack([read[int(i)][name] for i in indices]) for name in names}


def make_embed(
    task: Task, modality: str, prepare: Prepare, mesh: Mesh, batch_size: int
) -> Callable[[Variables, RandomAccess], Embedding]:
    """Builds `embed(variables, items)`: the embedding of all items, as numpy arrays.

    Each item is encoded once, in batches of one shape, on all devices of `mesh`.
    """
    batch_size = -(-batch_size // mesh.size) * mesh.size
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    encode = jax.jit(lambda variables, batch: task.encode[modality](variables, prepare(batch)))

    def embed(variables: Variables, items: RandomAccess) -> Embedding:
        parts = []
        for indices, valid in blocks(len(items), batch_size):
            batch = jax.device_put(take(items, indices), sharding)
            parts.append(rows(jax.device_get(encode(variables, batch)), valid))
        return join(parts)

    return embed


def same_fold(row_fold: Mapping[str, Array], column_fold: Mapping[str, Array]) -> dict[str, Array]:
    """Protocol -> bool [n, m], who is in whose gallery."""
    return {
        name: (fold[:, None] == column_fold[name][None, :]) & (fold >= 0)[:, None]
        for name, fold in row_fold.items()
    }


def make_counter(
    score: Score, relevance: Relevance, protocols: Folds, tile: tuple[int, int]
) -> Callable[[Variables, Embedding, Embedding], dict[str, list[np.ndarray]]]:
    """Builds `count(variables, row, column)`: protocol -> ranks of best matches, [n] and [m].

    One sweep over all tiles serves both directions and all protocols, after one over the tiles
    that hold a match. Both take scores from one program, so that they are equal to the bit.
    """
    score_tile = jax.jit(lambda *args: ranks.in_float32(score(*args)))

    @jax.jit
    def any_match(keys: Any, inside: Array) -> Array:
        return jnp.any(relevance.match(*keys) & inside)

    @jax.jit
    def thresholds(scores: Array, keys: Any, folds: Any, inside: Array):
        relevant = relevance.match(*keys) & inside
        return {
            name: [
                ranks.best_positive(scores, relevant & valid),
                ranks.best_positive(scores.T, (relevant & valid).T),
            ]
            for name, valid in same_fold(*folds).items()
        }

    @jax.jit
    def ahead_of(best: Any, scores: Array, keys: Any, folds: Any, inside: Array):
        relevant = relevance.match(*keys)
        return {
            name: [
                ranks.count_ahead(scores, relevant, valid & inside, best[name][0]),
                ranks.count_ahead(scores.T, relevant.T, (valid & inside).T, best[name][1]),
            ]
            for name, valid in same_fold(*folds).items()
        }

    def count(variables: Variables, row: Embedding, column: Embedding) -> dict[str, Any]:
        sizes = size_of(row), size_of(column)
        best = {p: [np.full(size, -np.inf, np.float32) for size in sizes] for p in protocols}
        ahead = {p: [np.zeros(size, np.int64) for size in sizes] for p in protocols}

        def tiles():
            for i, i_valid in blocks(sizes[0], tile[0]):
                row_block = rows(row, i)
                for j, j_valid in blocks(sizes[1], tile[1]):
                    keys = relevance.rows[i], relevance.columns[j]
                    folds = [
                        {p: f[s][k] for p, f in protocols.items()} for s, k in enumerate((i, j))
                    ]
                    inside = i_valid[:, None] & j_valid[None, :]
                    pair = row_block, rows(column, j)
                    yield pair, keys, folds, inside, ((i, i_valid), (j, j_valid))

        for pair, keys, folds, inside, sides in tiles():
            if not any_match(keys, inside):
                continue
            found = thresholds(score_tile(variables, *pair), keys, folds, inside)
            for name, values in jax.device_get(found).items():
                for side, (k, ok) in enumerate(sides):
                    known = best[name][side]
                    known[k[ok]] = np.maximum(known[k[ok]], values[side][ok])
        for pair, keys, folds, inside, sides in tiles():
            here = {p: [b[s][k] for s, (k, _) in enumerate(sides)] for p, b in best.items()}
            found = ahead_of(here, score_tile(variables, *pair), keys, folds, inside)
            for name, values in jax.device_get(found).items():
                for side, (k, ok) in enumerate(sides):
                    ahead[name][side][k[ok]] += values[side][ok]
        return ahead

    return count


def make_ranker(
    score: Score,
    relevance: Mapping[str, Relevance],
    protocols: Folds,
    transpose: bool,
    tile: tuple[int, int],
) -> Callable[[Variables, Embedding, Embedding], dict[str, Any]]:
    """Builds `rank(variables, row, column)`: relation -> protocol -> fields of `ranks.Ranking`.

    Queries are the rows, or with `transpose` the columns. One block of queries at a time is scored
    against the whole gallery, sorted and measured.
    """
    side = int(transpose)
    query_size, gallery_size = tile[side], tile[1 - side]

    @jax.jit
    def score_tile(variables: Variables, query: Embedding, item: Embedding) -> Array:
        if transpose:
            return ranks.in_float32(score(variables, item, query)).T
        return ranks.in_float32(score(variables, query, item))

    def make_measure(match: Callable[[Array, Array], Array]):
        @jax.jit
        def measure(scores: Array, query_key: Array, item_key: Array, folds: Any):
            relevant = match(item_key, query_key).T if transpose else match(query_key, item_key)
            num_top = min(NUM_TOP, scores.shape[1])
            return {
                name: ranks.rank(scores, relevant, valid, KS, num_top)._asdict()
                for name, valid in same_fold(*folds).items()
            }

        return measure

    measures = {name: make_measure(relation.match) for name, relation in relevance.items()}
    keys = {name: (r.rows, r.columns)[:: -1 if transpose else 1] for name, r in relevance.items()}
    item_fold = {p: f[1 - side] for p, f in protocols.items()}

    def rank(variables: Variables, row: Embedding, column: Embedding) -> dict[str, Any]:
        queries, gallery = (column, row) if transpose else (row, column)
        parts: dict[str, list[Any]] = {name: [] for name in relevance}
        for i, valid in blocks(size_of(queries), query_size):
            query = rows(queries, i)
            found = [
                score_tile(variables, query, rows(gallery, j))[:, : int(ok.sum())]
                for j, ok in blocks(size_of(gallery), gallery_size)
            ]
            scores = jnp.concatenate(found, axis=1)
            folds = {p: f[side][i] for p, f in protocols.items()}, item_fold
            for name, measure in measures.items():
                query_key, item_key = keys[name]
                result = jax.device_get(measure(scores, query_key[i], item_key, folds))
                parts[name].append(rows(result, valid))
        return {name: join(results) for name, results in parts.items()}

    return rank


def recall_table(
    ahead: Mapping[str, Sequence[np.ndarray]], protocols: Folds, directions: Sequence[str]
) -> dict[str, float]:
    """Metrics `protocol/direction/r@k`, medr, meanr and `protocol/rsum` of the ranks of matches."""
    values: dict[str, float] = {}
    for name, sides in ahead.items():
        each = [
            metrics.mean_over_folds(found[fold >= 0], fold[fold >= 0], KS)
            for found, fold in zip(sides, protocols[name])
        ]
        for direction, found in zip(directions, each):
            values |= {f"{name}/{direction}/{metric}": value for metric, value in found.items()}
        values[f"{name}/rsum"] = metrics.rsum(*each, ks=KS)
    return values


def ranking_table(
    relation: str, direction: str, by_protocol: Mapping[str, Any]
) -> dict[str, float]:
    """Metrics of one relation and direction; relations other than `exact` are in the name."""
    values = {}
    for protocol, ranking in by_protocol.items():
        prefix = protocol if relation == "exact" else f"{protocol}/{relation}"
        found = metrics.ranking_metrics(ranking, KS)
        values |= {f"{prefix}/{direction}/{name}": value for name, value in found.items()}
    return values


def plausible_table(rankings: Mapping[str, Any], direction: str) -> dict[str, float]:
    """PMRP by both definitions, `protocol/direction/pmrp` and `.../eccv_pmrp`."""
    values = {}
    for protocol in rankings["pm0"]:
        per_zeta = [rankings[zeta][protocol] for zeta in PLAUSIBLE]
        each = [r["r_precision"][r["num_matches"] > 0] for r in per_zeta]
        values[f"{protocol}/{direction}/pmrp"] = metrics.pmrp(each)
        values[f"{protocol}/{direction}/eccv_pmrp"] = metrics.pmrp(each[2:])
    return values


def uncertainty_of(embedding: Embedding) -> np.ndarray | None:
    """Mean log variance of each item, [n]; None for systems of points."""
    log_var = getattr(embedding, "log_var", None)
    if log_var is None or np.ptp(log_var) == 0:
        return None
    return np.asarray(log_var).mean(axis=-1)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, 0 where either is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def make_evaluator(
    task: Task, split: RetrievalSplit, cfg: Mapping[str, Any], prepare: Prepare, mesh: Mesh
) -> Callable[[Variables], Results]:
    """Builds `evaluate(variables)`, which compiles once however often it is called.

    `own` gives r@k, medr, meanr and rsum; `exact` and other relations give hit@k, p@k, r_precision,
    map@r and map; pm0, pm1 and pm2 give pmrp and eccv_pmrp.

    Args:
      task: what is evaluated.
      split: galleries and relations. extras["protocols"] (name -> folds of rows and of columns)
        replaces the protocol "all items", which has the name of the split.
      cfg: `batch_size` of encoding, `tile` = (rows, columns) of scoring.
      prepare: what makes inputs of stored items.
      mesh: devices to encode on.
    """
    names = list(split.items)
    sizes = [len(items) for items in split.items.values()]
    everything = {split.name: (np.zeros(sizes[0], np.int32), np.zeros(sizes[1], np.int32))}
    protocols: Folds = split.extras.get("protocols", everything)
    directions = (f"{names[0][0]}2{names[1][0]}", f"{names[1][0]}2{names[0][0]}")
    tile = (min(cfg["tile"][0], sizes[0]), min(cfg["tile"][1], sizes[1]))
    graded = {name: r for name, r in split.relevance.items() if name != "own"} or split.relevance
    embeds = [make_embed(task, name, prepare, mesh, cfg["batch_size"]) for name in names]
    rankers = [make_ranker(task.score, graded, protocols, t, tile) for t in (False, True)]
    count = None
    if "own" in split.relevance:
        count = make_counter(task.score, split.relevance["own"], protocols, tile)

    def evaluate(variables: Variables) -> Results:
        row, column = (embed(variables, split.items[n]) for embed, n in zip(embeds, names))
        values: dict[str, float] = {}
        if count is not None:
            values |= recall_table(count(variables, row, column), protocols, directions)
        shown = {}
        for direction, rank in zip(directions, rankers):
            rankings = rank(variables, row, column)
            shown[direction] = next(iter(next(iter(rankings.values())).values()))
            for relation in rankings:
                if relation not in (*PLAUSIBLE, "own"):
                    values |= ranking_table(relation, direction, rankings[relation])
            if set(PLAUSIBLE) <= set(rankings):
                values |= plausible_table(rankings, direction)
        num_matches = {n: shown[d]["num_matches"] for n, d in zip(names, directions)}
        if "exact" in split.relevance:
            for direction, other in zip(directions, names[::-1]):
                vague = num_matches[other][shown[direction]["top"][:, 0]] > VAGUE
                values[f"{split.name}/{direction}/vague_top1"] = float(vague.mean())
        uncertainty = {}
        for name, embedding in zip(names, (row, column)):
            found = uncertainty_of(embedding)
            if found is not None:
                uncertainty[name] = found
                values[f"{split.name}/{name}/log_var"] = float(found.mean())
                value = spearman(found, num_matches[name])
                values[f"{split.name}/{name}/uncertainty_vs_matches"] = value
        return Results(
            values,
            {direction: ranking["top"] for direction, ranking in shown.items()},
            {direction: ranking["top_hits"] for direction, ranking in shown.items()},
            num_matches,
            {direction: ranking["first_hit"] for direction, ranking in shown.items()},
            uncertainty,
        )

    return evaluate
