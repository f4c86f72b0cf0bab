"""The graph pattern loss, value and gradient."""

from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.suite import main
from benchmarks.timing import Case, Scale, baseline, jitted
from jcmr.losses.graph_pattern import graph_pattern
from jcmr.train.state import objective

SIZES = {
    "dry": ((6, 3, 8),),
    "cpu": ((64, 4, 256), (256, 4, 128), (512, 8, 64)),
    "gpu": ((128, 4, 1024), (1024, 8, 1024)),
}
"""(items, representations, dimensions)."""
WHOLE = "all distances at once, in torch"


def cases(scale: Scale) -> Iterator[Case]:
    """One for each size."""
    torch_side = baseline("graph_pattern")
    value = lambda images, texts: objective(graph_pattern(images, texts), None)
    for b, k, d in SIZES[scale]:
        rng = np.random.default_rng(0)
        raw = rng.standard_normal((2, b, k, d))
        images, texts = (raw / np.linalg.norm(raw, axis=-1, keepdims=True)).astype(np.float32)
        case = Case(
            "graph pattern loss, value and gradient",
            f"B={b}, K={k}, D={d}",
            **jitted(jax.value_and_grad(value, (0, 1)), images, texts),
        )
        case.tolerance = 1e-3
        if torch_side:
            from benchmarks.baselines.device import compiled, value_and_grads

            make = lambda f, args=(images, texts): value_and_grads(f, *args)
            case.baselines = compiled(**{WHOLE: (torch_side.loss, make)})
        yield case


if __name__ == "__main__":
    main("graph_pattern")
