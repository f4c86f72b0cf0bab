"""SCAN scoring (words attend to regions) against a caption loop in torch."""

from collections.abc import Iterator

import numpy as np
from jax import numpy as jnp

from benchmarks.suite import main
from benchmarks.timing import Case, Scale, baseline, jitted
from jcmr.ops import cross_attention as ca

SIZES = {
    "dry": (4, 6, 5, 16),
    "cpu": (100, 500, 36, 256),
    "gpu": (1000, 5000, 36, 1024),
}
"""(images, captions, regions, dimensions)."""
WORDS = (8, 16)
"""Fewest and most words of a caption."""
HOW = ca.Matching(steps=1)
LOOP = "caption loop in torch"


def make_sets(n: int, m: int, regions: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit regions [n, r, d], unit words [m, t, d] and how many of them are real [m]."""
    rng = np.random.default_rng(0)
    unit = lambda x: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    lengths = rng.integers(WORDS[0], WORDS[1] + 1, m)
    images = unit(rng.standard_normal((n, regions, d)))
    return images, unit(rng.standard_normal((m, WORDS[1], d))), lengths


def score(images, words, mask):
    """Everything from the fragments on, so also what is made once per item."""
    regions = ca.make_fragments(images, jnp.ones(images.shape[:2], bool))
    return ca.score_tile(regions, ca.make_fragments(words, mask), {"t2i": None}, HOW, chunk=50)


def cases(scale: Scale) -> Iterator[Case]:
    """One size."""
    n, m, regions, d = SIZES[scale]
    images, words, lengths = make_sets(n, m, regions, d)
    mask = np.arange(WORDS[1]) < lengths[:, None]
    case = Case(
        "SCAN scoring",
        f"{n} x {m}, {WORDS[0]} to {WORDS[1]} words, {regions} regions, D={d}",
        **jitted(score, images, words, mask),
    )
    torch_side = baseline("scan")
    if torch_side:
        from benchmarks.baselines.device import tensor

        placed = tensor(images), [tensor(w[:t]) for w, t in zip(words, lengths)]
        case.baselines = {LOOP: lambda: torch_side.score(*placed, HOW.smooth)}
        case.bars = {LOOP: 5.0}
    yield case


if __name__ == "__main__":
    main("scan")
