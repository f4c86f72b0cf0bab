"""PCME's matching loss, value and gradient."""

from collections.abc import Iterator

import jax
import numpy as np
from jax import numpy as jnp

from benchmarks.suite import main
from benchmarks.timing import Case, Scale, baseline, jitted
from jcmr.losses.probabilistic import soft_contrastive
from jcmr.losses.targets import Targets
from jcmr.ops.chunks import sum_over_chunks

SIZES = {
    "dry": ((8, 3, 16, 0),),
    "cpu": ((64, 7, 256, 0), (256, 7, 256, 0), (256, 7, 256, 32)),
    "gpu": ((128, 7, 1024, 0), (1024, 7, 1024, 0), (8192, 7, 1024, 128)),
}
"""(batch, samples, dimensions, rows at a time; 0 = all)."""
OFFICIAL = "official structure"
REWRITE = "best rewrite in torch"
PARAMETERS = np.float32(5.0), np.float32(4.0)


def loss(x, y, shift, scale, chunk):
    """Both directions, as in the official code; image i belongs to caption i."""
    n = len(x)
    targets = Targets(jnp.eye(n), jnp.ones((n, n), bool))

    def block(rows):
        return soft_contrastive(rows[0], y, shift, scale, rows[1], rows[2])

    return 2 * sum_over_chunks(block, (x, targets, jnp.arange(n)[:, None]), chunk)


def make_samples(n: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples around unit vectors, those of a pair near each other."""
    rng = np.random.default_rng(0)
    center = rng.standard_normal((n, 1, d))
    center /= np.linalg.norm(center, axis=-1, keepdims=True)
    draw = lambda: (center + rng.standard_normal((n, k, d)) * 0.5 / d**0.5).astype(np.float32)
    return draw(), draw()


def cases(scale: Scale) -> Iterator[Case]:
    """One for each size; differences too large for memory are left out of the baselines."""
    torch_side = baseline("pcme")
    for n, k, d, chunk in SIZES[scale]:
        x, y = make_samples(n, k, d)
        arguments = (x, y, *PARAMETERS)
        fields = jitted(jax.value_and_grad(loss, (0, 1, 2, 3)), *arguments, chunk=chunk)
        case = Case("PCME loss, value and gradient", f"B={n}, K={k}, D={d}", **fields)
        case.tolerance = 1e-3
        if chunk:
            case.size += f", {chunk} rows at a time"
        if torch_side and n <= 1024:
            from benchmarks.baselines.device import compiled, value_and_grads

            make = lambda f, arguments=arguments: value_and_grads(f, *arguments)
            calls = {REWRITE: (torch_side.rewritten_loss, make)}
            if n <= 64:
                calls = {OFFICIAL: (torch_side.official_loss, make), **calls}
            case.baselines = compiled(**calls)
        if (n, k, d) == (64, 7, 256):
            case.bars = {OFFICIAL: 100.0, REWRITE: 0.9}
        yield case


if __name__ == "__main__":
    main("pcme_loss")
