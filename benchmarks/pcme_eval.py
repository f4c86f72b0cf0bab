"""PCME's evaluation: scores of all pairs and the ranks of best matches, in both directions."""

from collections.abc import Iterator
from functools import partial

import jax
import numpy as np
from jax import numpy as jnp

from benchmarks.pcme_loss import OFFICIAL, PARAMETERS
from benchmarks.suite import main
from benchmarks.timing import Case, Scale, baseline
from jcmr.core import parallel
from jcmr.core.types import Variables, same_id
from jcmr.core.work import count_work
from jcmr.eval.counting import count_sweep
from jcmr.eval.tiles import Galleries, make_side
from jcmr.losses.probabilistic import log_match_probability

SIZES = {
    "dry": ((6, 30, 3, 16, "matching_prob", 1), (6, 30, 3, 16, "matmul", 3)),
    "cpu": ((200, 1000, 7, 256, "matching_prob", 10), (1000, 5000, 7, 256, "matmul", 10)),
    "gpu": ((5000, 25_000, 7, 1024, "matching_prob", 500), (5000, 25_000, 7, 1024, "matmul", 50)),
}
"""(images, captions, samples, dimensions, score, one in how many queries the baseline searches)."""
TILE = 1000


def matching_prob(variables, images, captions):
    """As in `models.pcme`."""
    return log_match_probability(images, captions, variables["shift"], variables["scale"])[0]


def matmul(variables, images, captions):
    """As in `models.pcme`: the sums of the samples hold all that their products need."""
    del variables
    return images.sum(1) @ captions.sum(1).T


def make_gallery(n: int, m: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples of images [n, k, d] and captions [m, k, d], and each caption's image [m]."""
    rng = np.random.default_rng(0)
    center = rng.standard_normal((n, d)) / d**0.5
    owner = np.arange(m) % n
    around = lambda c, s: (c[:, None] + s * rng.standard_normal((len(c), k, d)) / d**0.5).astype(
        "f"
    )
    return around(center, 0.3), around(center[owner], 0.8), owner


def cases(scale: Scale) -> Iterator[Case]:
    """Both scores; ranks must be equal, but for pairs that float32 cannot tell apart."""
    torch_side = baseline("pcme")
    mesh = parallel.make_mesh(jax.devices()[:1])
    for n, m, k, d, how, every in SIZES[scale]:
        x, y, owner = make_gallery(n, m, k, d)
        relation = same_id(np.arange(n), owner)
        first, second = [
            make_side(z, {"own": [np.zeros(len(z))]}, {"own": keys}, TILE, mesh)
            for z, keys in ((x, relation.rows), (y, relation.columns))
        ]
        score = matching_prob if how == "matching_prob" else matmul
        weights: Variables = dict(zip(("shift", "scale"), map(jnp.asarray, PARAMETERS)))
        galleries = Galleries(score, weights, first, second, {"own": relation.match}, mesh)

        def ours(galleries=galleries):
            (rows, columns), _ = count_sweep(galleries, "own", 0)
            return rows.rank[0], columns.rank[0]

        case = Case(f"PCME evaluation, {how}, both directions", f"{n} x {m}, K={k}, D={d}", ours)
        case.flops = count_work(score, weights, x, y).flops
        case.bytes = float(x.nbytes + y.nbytes)
        case.compare = partial(share_of_other_ranks, every)
        case.tolerance = 0.02
        if torch_side:
            match = np.arange(n)[:, None] == owner[None, :]
            arguments = (x, y, *map(float, PARAMETERS), match, how, every)
            name = f"{OFFICIAL}, one query in {every}" if every > 1 else OFFICIAL
            case.baselines = {name: lambda args=arguments: torch_side.official_evaluation(*args)}
            case.bars, case.shares = {name: 50.0}, {name: 1 / every}
        yield case


def share_of_other_ranks(every: int, ours, theirs) -> float:
    """Of the queries that both have, those whose rank is another one."""
    pairs = zip((x[::every] for x in ours), theirs)
    return float(np.mean(np.concatenate([np.asarray(a) != np.asarray(b) for a, b in pairs])))


if __name__ == "__main__":
    main("pcme_eval")
