"""EdgeConv (with its search for neighbours), value and gradient; and the search alone."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.suite import main
from benchmarks.timing import Case, Scale, baseline, jitted
from jcmr.models.encoders.dgcnn import EdgeConv
from jcmr.ops.neighbors import nearest

SIZES = {"dry": (2, 32, 4), "cpu": (4, 1024, 20), "gpu": (96, 1024, 20)}
"""(clouds, points, neighbours)."""
LAYERS = ((3, 64), (64, 64), (64, 128), (128, 256))
EDGES = "a tensor of edges in torch"


def cases(scale: Scale) -> Iterator[Case]:
    """The four layers of DGCNN, then the neighbours of the widest input."""
    batch, points, k = SIZES[scale]
    torch_side = baseline("edgeconv")
    for width, features in LAYERS if scale != "dry" else LAYERS[:1]:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(batch, points, width)).astype(np.float32)
        kernel = (rng.normal(size=(2 * width, features)) * (2 * width) ** -0.5).astype(np.float32)
        cotangent = rng.normal(size=(batch, points, features)).astype(np.float32)
        module = EdgeConv(features, k)
        variables: Any = module.init(jax.random.key(0), x)

        def run(x: Any, kernel: Any, cotangent: Any, module=module, variables=variables):
            def value(x: Any, kernel: Any):
                params = {**variables["params"], "kernel": kernel}
                out: Any = module.apply(
                    {**variables, "params": params}, x, True, mutable=["batch_stats"]
                )
                return (out[0] * cotangent).sum(), out[0]

            grads, out = jax.grad(value, (0, 1), has_aux=True)(x, kernel)
            return out, *grads

        case = Case(
            f"EdgeConv {width} to {features}, value and gradient",
            f"{batch} x {points} points, k={k}",
            **jitted(run, x, kernel, cotangent),
        )
        case.tolerance = 1e-3
        if torch_side:
            case.baselines = {EDGES: torch_side.make(x, kernel, cotangent, k)}
            case.bars = {EDGES: 4.0}
        yield case
    x = np.random.default_rng(0).normal(size=(batch, points, 128)).astype(np.float32)
    yield Case(
        "nearest neighbours",
        f"{batch} x {points} points, D=128, k={k}",
        **jitted(nearest, x, k=k),
    )


if __name__ == "__main__":
    main("edgeconv")
