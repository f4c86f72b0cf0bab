"""Metrics of retrieval from embeddings: ranks, R-Precision and mAP@R in one pass; class mAP."""

from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.baselines import ranking
from benchmarks.suite import main
from benchmarks.timing import Case, Scale
from jcmr.core import parallel
from jcmr.core.types import same_id
from jcmr.eval.ranking import rank_sweep
from jcmr.eval.tiles import Galleries, make_side

SIZES = {
    "dry": ((30, 60, 8, 5), (40, 8, 4)),
    "cpu": ((1000, 5000, 64, 200), (2400, 64, 40)),
    "gpu": ((5000, 25_000, 512, 1000), (40_000, 512, 40)),
}
"""(queries, items, dimensions, classes) of the metrics, (items, dimensions, classes) of mAP."""
LOOPS = "sorts and loops in numpy"
SORTS = "sorts without loops in numpy"
OFFICIAL = "official structure"
TILE = 1024


def inner(variables, query, gallery):
    """Inner products, of vectors of length 1: cosines."""
    del variables
    return query @ gallery.T


def make_galleries(n: int, m: int, d: int, classes: int) -> tuple[Galleries, tuple]:
    """Embeddings of length 1 around class centers, in tiles; and (x, y, row labels, column
    labels).
    """
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((classes, d))
    labels = np.arange(n) % classes, np.arange(m) % classes
    x, y = (centers[c] + 2 * rng.standard_normal((len(c), d)) for c in labels)
    x, y = ((z / np.linalg.norm(z, axis=1, keepdims=True)).astype("f") for z in (x, y))
    relation = same_id(*labels)
    mesh = parallel.make_mesh(jax.devices()[:1])
    first, second = [
        make_side(z, {"class": [np.zeros(len(z))]}, {"class": keys}, TILE, mesh)
        for z, keys in ((x, relation.rows), (y, relation.columns))
    ]
    return Galleries(inner, {}, first, second, {"class": relation.match}, mesh), (x, y, *labels)


def cases(scale: Scale) -> Iterator[Case]:
    """Both directions of the metrics, then mAP over whole rankings."""
    (n, m, d, classes), (items, width, kinds) = SIZES[scale]
    galleries, (x, y, rows, columns) = make_galleries(n, m, d, classes)

    def ours() -> list[np.ndarray]:
        found = []
        for flipped, most in ((False, np.bincount(columns)), (True, np.bincount(rows))):
            r, _ = rank_sweep(galleries, {"class": int(most.max())}, flipped, (), "class", 0)
            number = np.maximum(r["class"].num_matches, 1)
            found += [r["class"].rank, r["class"].hits_in_r / number, r["class"].map_at_r]
        return [x[0] for x in found]

    case = Case(
        "ranks, R-Precision and mAP@R, both directions", f"{n} x {m}, D={d}", ours, tolerance=2e-3
    )
    case.flops, case.bytes = 2.0 * 2 * n * m * d, 2.0 * (x.nbytes + y.nbytes)
    if scale != "gpu":
        match = rows[:, None] == columns

        def loops() -> list[np.ndarray]:
            scores = x @ y.T
            return [*ranking.metrics(scores, match), *ranking.metrics(scores.T, match.T)]

        case.baselines, case.bars, case.compare = {LOOPS: loops}, {LOOPS: 8.0}, mean_difference
    yield case

    all_items, own = make_galleries(items, items, width, kinds)
    labels = own[2]

    def ours_map() -> float:
        r, _ = rank_sweep(
            all_items, {"class": int(np.bincount(labels).max())}, False, (), "class", 0
        )
        return float(r["class"].average_precision.mean())

    case = Case("class mAP over whole rankings", f"{items} x {items}, D={width}", ours_map)
    case.flops, case.bytes = 2.0 * items * items * width, 2.0 * own[0].nbytes
    if scale != "gpu":
        case.baselines = {
            OFFICIAL: lambda: ranking.official_map(*own),
            SORTS: lambda: ranking.sorted_map(*own),
        }
        case.bars = {OFFICIAL: 100.0}
    yield case


def mean_difference(ours, theirs) -> float:
    """Of the means over queries: a single pair that rounding turns around must not matter."""
    return max(
        abs(float(np.mean(a) - np.mean(b))) / max(abs(float(np.mean(b))), 1e-9)
        for a, b in zip(ours, theirs)
    )


if __name__ == "__main__":
    main("ranks")
