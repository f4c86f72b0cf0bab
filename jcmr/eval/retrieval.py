"""Evaluates a retrieval split: items are embedded once, scored in tiles, and measured on device.

What a relation is called decides what is measured; `{split}/{i2t or t2i}/` comes before each name:

- `own`, the caption was written for the image: r@k, medr, meanr, and `{split}/rsum`.
- `class`, same class: the same, with p@k, r_precision, map@r; `map` over the whole ranking and
  `map@k_found` where config.eval asks for them. The gallery is the split's other modality.
- `exact`, the text truly describes the image: hit@k, p@k, r_precision, map@r; `vague_top1`, the
  share of first-ranked texts that match more than `vague_matches` images; beside `own` also
  `oracle_r@1`, the r@1 of one who knows all matches and guesses the own one among them.
- `pm0`, `pm1`, `pm2`, category vectors at most 0, 1, 2 apart: pmrp and pmr@1 (means over the
  three), eccv_pmrp (of pm2 alone), in percent. Items outside split.extras["annotated"] are left
  out of queries and galleries.
- any other, such as `eccv` or `cxc`: as `class`, with the relation's name in front: eccv_map@r.

A split of one gallery is searched with its own items, in one direction ("i2i"). Beside `class`,
embeddings with `logits` give `{split}/{modality}/accuracy`.

Queries without a match are left out, and where split.extras["queries"] has a relation (bool of each
row and of each column), so are others. Units and ties: see `metrics` and `ops.ranks`.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jcmr.core import parallel
from jcmr.core.types import Embedding, RandomAccess, RetrievalSplit, Task, Variables
from jcmr.eval import metrics
from jcmr.eval.classification import accuracy, labels_of, logits_of, mean_by_class
from jcmr.eval.counting import count_matches, count_sweep
from jcmr.eval.embed import Prepare, embed
from jcmr.eval.ranking import Ranking, rank_sweep
from jcmr.eval.tiles import Counts, Galleries, Top, make_side
from jcmr.eval.uncertainty import spearman, uncertainty_of

PLAUSIBLE = ("pm0", "pm1", "pm2")
READ_BY_LAUNCH = ("best_metric", "checkpoint", "ensemble")


class Options(NamedTuple):
    """The keys of config.eval that the evaluator reads."""

    batch_size: int = 256
    """Items embedded at a time."""
    tile: tuple[int, int] = (256, 1024)
    """Rows and columns scored at a time; with all columns also what is ranked at a time."""
    relations: tuple[str, ...] = ()
    """Those to measure; empty is all that the split has."""
    ks: tuple[int, ...] = (1, 5, 10)
    """Cut-offs of recalls and hits."""
    precision_ks: tuple[int, ...] = (5, 10)
    num_top: int = 10
    """How many of the best of each query are kept for the report."""
    vague_matches: int = 100
    full_map: bool = False
    """Also `map`, over the whole ranking, and `map_chance`, what a random order is expected to
    reach."""
    map_ks: tuple[int, ...] = ()
    """Cut-offs of `map@k_found`, whose denominator is the number of matches found in the first k,
    as several papers and their code have it."""
    official_pmrp: bool = False
    """Ranks for PMRP without each query's last item, as the official code does by mistake."""


Embedded = dict[tuple[str, int], Embedding]
"""(modality, identity of the items) -> their embedding by one set of variables."""


class Results(NamedTuple):
    """What an evaluation found. Directions are "i2t", "t2i"; arrays are per query of one."""

    metrics: dict[str, float]
    top: dict[str, np.ndarray]
    """direction -> int [n, k], ids of the best, best first; -1 where the gallery is smaller."""
    hits: dict[str, np.ndarray]
    """direction -> bool [n, k], which of them match by the relation `exact` if the split has it,
    else `class`, else its first."""
    first_hit: dict[str, np.ndarray]
    """direction -> int [n], rank of the best match by that relation, 0 = top."""
    num_matches: dict[str, np.ndarray]
    """modality -> int [n], how many match each item by that relation."""
    uncertainty: dict[str, np.ndarray]
    """modality -> [n], for systems that have one."""
    embedding: dict[str, Embedding]
    """modality -> embedding of its items, leaves [n, ...]."""
    map_by_class: dict[str, dict[int, float]]
    """direction -> label of the query -> mean `map`, with `full_map` and a relation `class`."""


def read_options(cfg: Mapping[str, Any]) -> Options:
    """Checks config.eval.

    Raises:
      ValueError: an option nobody reads.
    """
    known = (*Options._fields, *READ_BY_LAUNCH)
    for name in cfg:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
            raise ValueError(f"config.eval has no option {name!r}; {hint}")
    options = Options(**{name: cfg[name] for name in cfg if name in Options._fields})
    return options._replace(
        tile=tuple(options.tile),
        relations=tuple(options.relations),
        ks=tuple(options.ks),
        precision_ks=tuple(options.precision_ks),
        map_ks=tuple(options.map_ks),
    )


def pick_relations(split: RetrievalSplit, wanted: Sequence[str]) -> tuple[str, ...]:
    """The relations to measure.

    Raises:
      ValueError: the split has none of that name.
    """
    for name in wanted:
        if name not in split.relevance:
            raise ValueError(
                f"config.eval.relations names {name!r}; the split {split.name} of this data has "
                f"{', '.join(split.relevance)}."
            )
    return tuple(wanted or split.relevance)


def sides_of(split: RetrievalSplit) -> list[tuple[str, RandomAccess]]:
    """(modality, items) of the queries and of the gallery; one gallery is both."""
    sides = [*split.items.items()]
    return sides * 2 if len(sides) == 1 else sides


def views_of(
    split: RetrievalSplit, relations: Sequence[str]
) -> tuple[tuple[str, ...], list[dict[str, list[np.ndarray]]]]:
    """Names of the protocols, and for rows and columns relation -> groups in each of them.

    Raises:
      ValueError: folds or masks that do not fit the items.
    """
    sizes = [len(items) for _, items in sides_of(split)]
    whole = {split.name: tuple(np.zeros(size, np.int32) for size in sizes)}
    protocols = split.extras.get("protocols", whole)
    annotated = split.extras.get("annotated", tuple(np.ones(size, bool) for size in sizes))
    for what, pair in (*protocols.items(), ("annotated", annotated)):
        if [len(part) for part in pair] != sizes:
            raise ValueError(
                f"{what} of the split {split.name} describes {len(pair[0])} and {len(pair[1])} "
                f"items; the split has {sizes[0]} and {sizes[1]}."
            )
    groups: list[dict[str, list[np.ndarray]]] = []
    for side in (0, 1):
        folds = [np.asarray(pair[side]) for pair in protocols.values()]
        known = [np.where(np.asarray(annotated[side]), fold, -1) for fold in folds]
        groups.append({name: known if name in PLAUSIBLE else folds for name in relations})
    return tuple(protocols), groups


def ranked_values(ranking: Ranking, q: np.ndarray, options: Options) -> metrics.Values:
    """Metrics that need the ranks of all matches, of queries q."""
    cuts = zip(options.precision_ks, ranking.hits_at[q].mean(axis=0))
    values = {f"p@{k}": float(hits / k) for k, hits in cuts}
    values["r_precision"] = float(np.mean(ranking.hits_in_r[q] / ranking.num_matches[q]))
    values["map@r"] = float(np.mean(ranking.map_at_r[q], dtype=np.float64))
    if options.full_map:
        values["map"] = float(np.mean(ranking.average_precision[q], dtype=np.float64))
        chance = metrics.chance_map(ranking.num_matches[q], ranking.num_ranked[q])
        values["map_chance"] = float(np.mean(chance))
    for k, found in zip(options.map_ks, ranking.average_precision_at[q].T):
        values[f"map@{k}_found"] = float(np.mean(found, dtype=np.float64))
    return values


def plausible_values(rankings: Mapping[str, Ranking], q: np.ndarray) -> metrics.Values:
    """`pmrp`, `pmr@1` and `eccv_pmrp` of queries q."""
    precisions, first = [], []
    for ranking in (rankings[zeta] for zeta in PLAUSIBLE):
        some = q[ranking.num_matches[q] > 0]
        precisions.append(ranking.hits_in_r[some] / ranking.num_matches[some])
        first.append(ranking.rank[some] == 0)
    return {
        "pmrp": metrics.pmrp(precisions),
        "pmr@1": metrics.pmrp(first),
        "eccv_pmrp": metrics.pmrp(precisions[2:]),
    }


def direction_values(
    counted: Mapping[str, Counts],
    ranked: Mapping[str, Ranking],
    folds: Mapping[str, np.ndarray],
    queries: Mapping[str, np.ndarray],
    options: Options,
) -> metrics.Values:
    """All metrics of the queries of one direction in one protocol.

    Args:
      counted: relation -> ranks of best matches.
      ranked: relation -> ranks of all matches, for all but `own`.
      folds: relation -> fold of each query.
      queries: relation -> bool of each query, False if it is left out; others keep all.
      options: cut-offs.
    """
    values: metrics.Values = {}

    def add(relation: str, prefix: str, measure: Callable[[np.ndarray], metrics.Values]) -> None:
        matched = counted[relation].num_matches > 0
        matched &= np.asarray(queries.get(relation, True))
        found = metrics.mean_over_folds(measure, folds[relation], matched)
        values.update({f"{prefix}{name}": value for name, value in found.items()})

    for relation, counts in counted.items():
        if relation in PLAUSIBLE:
            continue
        alone = relation == "class" and "own" not in counted
        prefix = "" if relation in ("own", "exact") or alone else f"{relation}_"
        count = metrics.hit_values if relation == "exact" else metrics.recall_values
        add(relation, prefix, lambda q, c=counts, count=count: count(c.rank[q], options.ks))
        if relation in ranked:
            add(
                relation,
                prefix,
                lambda q, r=ranked[relation]: ranked_values(r, q, options),
            )
    if set(PLAUSIBLE) <= set(counted):
        add("pm2", "", lambda q: plausible_values(ranked, q))
    if {"own", "exact"} <= set(counted):
        own, exact = counted["own"].num_matches, counted["exact"].num_matches
        share = 100 * own / np.maximum(exact, 1)
        add("own", "", lambda q: {"oracle_r@1": float(share[q].mean())})
    return values


def vague_share(top: Top, num_matches: np.ndarray, threshold: int) -> float:
    """Share of queries whose first-ranked item matches more than `threshold` queries."""
    first = top.ids[:, 0]
    return float(np.mean((first >= 0) & (num_matches[first] > threshold)))


def sweep(
    galleries: Galleries, relations: Sequence[str], shown: str, options: Options, num_sides: int
) -> tuple[list[dict[str, Counts]], list[dict[str, Ranking]], Sequence[Top]]:
    """Scores everything as seldom as the relations allow.

    For `own` alone one sweep serves both directions, as counting is enough. The rankings of other
    relations take one sweep a direction, in which `own` is counted too.

    Returns:
      (relation -> counts, relation -> ranking, best items), each for rows and, with two sides, for
      columns.
    """
    if set(relations) == {"own"} and not galleries.skips:
        own, tops = count_sweep(galleries, "own", options.num_top)
        return [{"own": counts} for counts in own], [{}, {}], tops
    most = {name: count_matches(galleries, name)[0] for name in relations}
    drop_last = PLAUSIBLE if options.official_pmrp else ()
    counts, rankings, tops = [], [], []
    for side in range(num_sides):
        largest = {name: int(number[side].max()) for name, number in most.items()}
        cuts = options.precision_ks
        found, top = rank_sweep(
            galleries, largest, bool(side), cuts, shown, options.num_top, drop_last, options.map_ks
        )
        counts.append({name: Counts(r.num_matches, r.rank) for name, r in found.items()})
        rankings.append({name: r for name, r in found.items() if name != "own"})
        tops.append(top)
    return counts, rankings, tops


def make_evaluator(
    task: Task, split: RetrievalSplit, cfg: Mapping[str, Any], prepare: Prepare, mesh: Mesh
) -> Callable[..., Results]:
    """Builds `evaluate(variables)`, which measures all that the relations of `split` allow.

    What is measured is listed at the top of this file. Calls share their compiled programs, and
    evaluators that are called with the same dict as `embedded` share embeddings of the same items.

    Args:
      task: the system.
      split: one or two galleries. extras["protocols"] (name -> fold of each row and of each
        column, int, negative takes no part) replaces the one protocol of all items, which is named
        after the split; metrics of several folds are averaged. extras["annotated"] (bool of each
        row and of each column) says who has category vectors, extras["queries"] (relation -> the
        same) whose matches are all known.
      cfg: config.eval, see `Options`.
      prepare: from stored items to inputs.
      mesh: devices.

    Raises:
      ValueError: options, folds or masks that fit neither the code nor the data.
    """
    options = read_options(cfg)
    relations = pick_relations(split, options.relations)
    protocols, groups = views_of(split, relations)
    queries = split.extras.get("queries", {})
    sides = sides_of(split)
    num_sides = len(split.items)
    names = [name for name, _ in sides][:num_sides]
    letters = [name[0] for name, _ in sides]
    directions = (f"{letters[0]}2{letters[1]}", f"{letters[1]}2{letters[0]}")[:num_sides]
    matches = {name: split.relevance[name].match for name in relations}
    keys = (
        {name: split.relevance[name].rows for name in relations},
        {name: split.relevance[name].columns for name in relations},
    )
    skips = {n: skip for n in relations if (skip := split.relevance[n].skip) is not None}
    shown = next((name for name in ("exact", "class") if name in relations), relations[0])

    def evaluate(variables: Variables, embedded: Embedded | None = None) -> Results:
        variables = parallel.replicate(variables, mesh)
        embedded = {} if embedded is None else embedded
        embeddings = []
        for name, items in sides:
            key = name, id(items)
            if key not in embedded:
                embedded[key] = embed(
                    task, variables, items, name, options.batch_size, prepare, mesh
                )
            embeddings.append(embedded[key])
        rows, columns = (
            make_side(embeddings[side], groups[side], keys[side], options.tile[side], mesh)
            for side in (0, 1)
        )
        galleries = Galleries(task.score, variables, rows, columns, matches, mesh, skips)
        counts, rankings, tops = sweep(galleries, relations, shown, options, num_sides)
        values: metrics.Values = {}
        for side, direction in enumerate(directions):
            for view, protocol in enumerate(protocols):
                found = direction_values(
                    {name: Counts(*(x[view] for x in c)) for name, c in counts[side].items()},
                    {name: Ranking(*(x[view] for x in r)) for name, r in rankings[side].items()},
                    {name: g[view] for name, g in groups[side].items()},
                    {name: pair[side] for name, pair in queries.items()},
                    options,
                )
                values |= {f"{protocol}/{direction}/{name}": v for name, v in found.items()}
        for protocol in protocols:
            both = [f"{protocol}/{d}/r@{k}" for d in directions for k in options.ks]
            if all(name in values for name in both):
                values[f"{protocol}/rsum"] = sum(values[name] for name in both)
        if "exact" in relations:
            matching = counts[-1]["exact"].num_matches[0]
            vague = vague_share(tops[0], matching, options.vague_matches)
            values[f"{protocols[0]}/{directions[0]}/vague_top1"] = vague
        shown_counts = [each[shown] for each in counts]
        uncertainty = {}
        for side, name in enumerate(names):
            found = uncertainty_of(embeddings[side])
            if found is not None:
                uncertainty[name] = found
                matching = shown_counts[side].num_matches[0]
                values[f"{split.name}/{name}/log_var"] = float(found.mean())
                values[f"{split.name}/{name}/uncertainty_vs_matches"] = spearman(found, matching)
        by_class = {}
        for side, name in enumerate(names):
            labels, logits = labels_of(split, side), logits_of(embeddings[side])
            if labels is not None and logits is not None:
                values[f"{split.name}/{name}/accuracy"] = accuracy(logits, labels)
            if labels is not None and options.full_map and "class" in rankings[side]:
                found = rankings[side]["class"].average_precision[0]
                by_class[directions[side]] = mean_by_class(found, labels)
        return Results(
            metrics=values,
            top={direction: top.ids for direction, top in zip(directions, tops)},
            hits={direction: top.hits for direction, top in zip(directions, tops)},
            first_hit={d: counts.rank[0] for d, counts in zip(directions, shown_counts)},
            num_matches={name: c.num_matches[0] for name, c in zip(names, shown_counts)},
            uncertainty=uncertainty,
            embedding=dict(zip(names, embeddings)),
            map_by_class=by_class,
        )

    return evaluate


def merge_metrics(splits: Sequence[RetrievalSplit], results: Sequence[Results]) -> metrics.Values:
    """The metrics of all splits, and the means over directions of splits that share a name.

    Those are `{split}/map` and `{split}/map_chance`, over all directions of all of its pairs.
    """
    values = {name: value for each in results for name, value in each.metrics.items()}
    names = [split.name for split in splits]
    for name in dict.fromkeys(n for n in names if names.count(n) > 1):
        for metric in ("map", "map_chance"):
            pattern = re.compile(rf"{re.escape(name)}/\w2\w/{metric}")
            each = [value for n, value in values.items() if pattern.fullmatch(n)]
            if each:
                values[f"{name}/{metric}"] = float(np.mean(each))
        values.pop(f"{name}/rsum", None)  # that of one pair alone
    return values
