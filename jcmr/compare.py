"""`python -m jcmr.compare runs/a runs/b ...`: several runs on the same data, side by side.

Prints a table and draws it: hits and recalls with 95 % intervals from a bootstrap over queries, how
many items are encoded and how many pairs are scored a second, the number of weights; and, as its
last column, the runs together: the mean of their scores, each brought to mean 0 and deviation 1.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from matplotlib.figure import Figure

from jcmr.core import parallel
from jcmr.core.types import Embedding, RetrievalSplit, Task, split_list
from jcmr.data import augment
from jcmr.eval import ensemble, retrieval
from jcmr.eval.embed import embed
from jcmr.eval.metrics import bootstrap_interval
from jcmr.serve.load import Run, load_run
from jcmr.serve.runs import build

KS = (1, 5, 10)
SAMPLE = 256
"""Items a side from whose scores a run's mean and deviation are taken."""


class Measured(NamedTuple):
    """A column of the table."""

    name: str
    hits: Mapping[str, tuple[float, float, float]]
    """`{direction}/hit@k` in percent: value, and the ends of its interval."""
    encode_rate: float
    """Items a second; 0 for an ensemble."""
    score_rate: float
    """Pairs a second."""
    size: int
    """Weights."""


class Member(NamedTuple):
    """A run and the items that it reads."""

    name: str
    run: Run
    splits: list[RetrievalSplit]


def check_same_data(first: Member, other: Member) -> None:
    """Raises ValueError where two runs are not tested on the same queries and galleries."""

    def facts(split: RetrievalSplit) -> dict[str, Any]:
        found: dict[str, Any] = {f"items of {m}": len(x) for m, x in split.items.items()}
        for name, relation in split.relevance.items():
            found[f"relation {name}"] = relation.rows.tobytes(), relation.columns.tobytes()
        return found | {"captions": list(split.extras.get("captions", ()))}

    theirs, ours = ([(s.name, facts(s)) for s in m.splits] for m in (other, first))
    names = [[name for name, _ in side] for side in (ours, theirs)]
    what = f"splits {', '.join(names[0])} and {', '.join(names[1])}" if names[0] != names[1] else ""
    for (split, mine), (_, its) in zip(ours, theirs):
        differing = [key for key in mine.keys() | its.keys() if mine.get(key) != its.get(key)]
        if differing and not what:
            what = f"{sorted(differing)[0]} of the split {split}"
    if what:
        raise ValueError(
            f"{first.name} and {other.name} are tested on different data ({what}); compare runs "
            f"with the same config.data."
        )


def open_member(path: str, mesh: Mesh) -> Member:
    """A run with the test split of its data."""
    run = load_run(path, mesh)
    source, _ = build(run.config)
    return Member(path, run, split_list(source.retrieval("test")))


def hits_of(results: Sequence[retrieval.Results], splits: Sequence[RetrievalSplit]):
    """`Measured.hits` of the first split's directions."""
    found = {}
    for direction, ranks in results[0].first_hit.items():
        modality = [*splits[0].items][[*results[0].first_hit].index(direction)]
        ranks = ranks[results[0].num_matches[modality] > 0]
        for k in KS:
            found[f"{direction}/hit@{k}"] = bootstrap_interval(100.0 * (ranks < k))
    return found


def evaluate(
    task: Task,
    variables: Any,
    config: Any,
    splits: Sequence[RetrievalSplit],
    embedded: Any,
    mesh: Mesh,
) -> tuple[Any, float]:
    """(hits, pairs scored a second) of embedded items."""
    prepare = augment.make_prepare(config.data)
    evaluator = retrieval.make_evaluator(task, splits[0], config.eval, prepare, mesh)
    results = evaluator(variables, embedded)  # compiles
    began = time.perf_counter()
    evaluator(variables, embedded)
    pairs = np.prod([len(items) for _, items in retrieval.sides_of(splits[0])])
    return hits_of([results], splits), float(pairs / (time.perf_counter() - began))


def encode_all(member: Member, mesh: Mesh) -> tuple[dict[Any, Embedding], float]:
    """(embeddings as an evaluator keeps them, items a second) of a run's first split."""
    run, split = member.run, member.splits[0]
    prepare = augment.make_prepare(run.config.data)
    size = run.config.eval.batch_size
    kept, items_done, seconds = {}, 0, 0.0
    for modality, items in split.items.items():
        for measured in (False, True):
            began = time.perf_counter()
            made = embed(run.task, run.variables, items, modality, size, prepare, mesh)
            if measured:
                seconds, items_done = seconds + time.perf_counter() - began, items_done + len(items)
        kept[modality, id(items)] = made
    return kept, items_done / seconds


def standardised(run: Run, embedded: Mapping[Any, Embedding], split: RetrievalSplit) -> Task:
    """The run's task with scores of mean 0 and deviation 1 on a sample of the split."""
    first = [
        jax.tree.map(lambda x: x[:SAMPLE], embedded[modality, id(items)])
        for modality, items in retrieval.sides_of(split)
    ]
    sample = np.asarray(jax.jit(run.task.score)(run.variables, *first), np.float64)
    mean, deviation = float(sample.mean()), float(sample.std()) or 1.0

    def score(*args: Any) -> jax.Array:
        return (run.task.score(*args) - mean) / deviation

    return run.task._replace(score=score)


def compare(paths: Sequence[str], mesh: Mesh) -> list[Measured]:
    """Measures each run, and where there are several also all of them together.

    Raises:
      FileNotFoundError: a folder holds no run.
      ValueError: the runs are on different data.
    """
    members = [open_member(path, mesh) for path in paths]
    for other in members[1:]:
        check_same_data(members[0], other)
    columns, tasks, parts = [], [], []
    splits = members[0].splits
    for member in members:
        run = member.run
        embedded, rate = encode_all(member, mesh)
        hits, score_rate = evaluate(
            run.task, run.variables, run.config, member.splits, embedded, mesh
        )
        size = sum(x.size for x in jax.tree.leaves(run.variables["params"]))
        columns.append(Measured(member.name, hits, rate, score_rate, size))
        tasks.append(standardised(run, embedded, member.splits[0]))
        parts.append(embedded)
    if len(members) > 1:
        together = {
            (modality, id(items)): tuple(
                part[modality, id(member.splits[0].items[modality])]
                for part, member in zip(parts, members)
            )
            for modality, items in splits[0].items.items()
        }
        variables = tuple(member.run.variables for member in members)
        config = members[0].run.config
        task = ensemble.mean_of(tasks)
        hits, score_rate = evaluate(task, variables, config, splits, together, mesh)
        columns.append(Measured("all", hits, 0.0, score_rate, sum(c.size for c in columns)))
    return columns


def table_of(columns: Sequence[Measured]) -> str:
    """The columns as text, a line a measure."""
    lines = [["", *(column.name for column in columns)]]
    for name in columns[0].hits:
        cells = ["{:.1f} ({:.1f} to {:.1f})".format(*column.hits[name]) for column in columns]
        lines.append([name, *cells])
    rates = (f"{c.encode_rate:,.0f}" if c.encode_rate else "" for c in columns)
    lines.append(["items encoded a second", *rates])
    lines.append(["pairs scored a second", *(f"{c.score_rate:,.0f}" for c in columns)])
    lines.append(["weights", *(f"{c.size:,}" for c in columns)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    )


def draw(columns: Sequence[Measured], path: Path) -> None:
    """Bars of the hits with their intervals."""
    names = [*columns[0].hits]
    figure = Figure(figsize=(1.5 + 1.2 * len(names), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(columns)
    for i, column in enumerate(columns):
        value, low, high = np.array([column.hits[name] for name in names]).T
        place = np.arange(len(names)) + (i - (len(columns) - 1) / 2) * width
        axes.bar(place, value, width, yerr=[value - low, high - value], label=column.name)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("%")
    axes.legend()
    figure.savefig(path)


def main(argv: Sequence[str]) -> None:
    """Prints and draws; an error is a sentence on stderr and status 1."""
    parser = argparse.ArgumentParser(prog="python -m jcmr.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", help="--workdir folders of runs on the same data")
    parser.add_argument("--out", type=Path, default=Path("comparison.png"), help="the picture")
    args = parser.parse_args(argv)
    try:
        columns = compare(args.runs, parallel.make_mesh())
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(table_of(columns))
    draw(columns, args.out)
    print(f"\nPicture: {args.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
