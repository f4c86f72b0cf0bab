"""One training step of a ResNet (gradient descent on the mean square of its last map)."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from benchmarks.suite import main
from benchmarks.timing import Case, Scale, baseline, jitted, largest_difference
from jcmr.models.encoders.resnet import ResNet

SIZES = {
    "dry": (18, 4, 64, "float32"),
    "cpu": (18, 8, 112, "float32"),
    "gpu": (50, 256, 224, "bfloat16"),
}
"""(layers, images, pixels, dtype)."""
RATE = 0.01


def cases(scale: Scale) -> Iterator[Case]:
    """One size."""
    depth, batch, pixels, dtype = SIZES[scale]
    narrow = dtype == "bfloat16"
    x = np.random.default_rng(0).standard_normal((batch, pixels, pixels, 3)).astype(np.float32)
    module = ResNet(depth, jnp.bfloat16 if narrow else None)
    variables: Any = jax.jit(module.init)(jax.random.key(0), x[:1])

    def step(variables: Any, x: Any):
        def value(params: Any):
            given = {**variables, "params": params}
            (last, _), stats = module.apply(given, x, True, mutable=["batch_stats"])
            return jnp.mean(last.astype(jnp.float32) ** 2), stats

        (loss, stats), grads = jax.value_and_grad(value, has_aux=True)(variables["params"])
        new = jax.tree.map(lambda p, g: p - RATE * g, variables["params"], grads)
        return loss, grads["conv1"]["kernel"], new, stats

    case = Case(
        f"ResNet-{depth}, training step",
        f"B={batch}, {pixels} pixels, {dtype}",
        **jitted(step, variables, x),
    )
    case.examples, case.dtype = batch, dtype
    case.compare = lambda ours, theirs: largest_difference(list(ours[:2]), list(theirs))
    case.tolerance = 0.1 if narrow else 1e-2
    torch_side = baseline("resnet")
    if torch_side:
        name = "torch, torch.compile" if jax.default_backend() == "gpu" else "torch"
        made = torch_side.make(depth, variables["params"], x, RATE, narrow)
        case.baselines, case.bars = {name: made}, {name: 1.0 if narrow else 0.8}
    yield case


if __name__ == "__main__":
    main("resnet")
