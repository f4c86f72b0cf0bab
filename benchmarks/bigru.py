"""Bidirectional GRU over word vectors, value and gradient."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.suite import main
from benchmarks.timing import Case, Scale, baseline, jitted, largest_difference
from jcmr.models.encoders.gru import BiGRU

SIZES = {"dry": (3, 4, 5, 6), "cpu": (64, 20, 300, 512), "gpu": (128, 32, 300, 512)}
"""(texts, words, word vector, features of a direction)."""
TORCH = "torch.nn.GRU"


def cases(scale: Scale) -> Iterator[Case]:
    """Texts without padding, so that both compute the same number of steps."""
    b, t, d, h = SIZES[scale]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((b, t, d)).astype(np.float32)
    cotangent = rng.standard_normal((b, t, 2 * h)).astype(np.float32)
    module, mask = BiGRU(h), np.ones((b, t), bool)
    variables: Any = module.init(jax.random.key(0), x, mask)

    def run(params: Any, x: Any, mask: Any, cotangent: Any):
        def value(params: Any, x: Any):
            states: Any = module.apply({"params": params}, x, mask)
            return (states[0] * cotangent).sum(), states[0]

        grads, out = jax.grad(value, (0, 1), has_aux=True)(params, x)
        return out, *grads

    case = Case(
        "bidirectional GRU, value and gradient",
        f"B={b}, T={t}, {d} to 2 x {h}",
        **jitted(run, variables["params"], x, mask, cotangent),
    )
    case.tolerance, case.compare = 1e-3, compare
    torch_side = baseline("gru")
    if torch_side:
        params = {name: np.asarray(p) for name, p in variables["params"].items()}
        case.baselines, case.bars = {TORCH: torch_side.make(x, params, cotangent)}, {TORCH: 0.7}
    yield case


def compare(ours: Any, theirs: Any) -> float:
    """Outputs, gradient of the words and of the forward recurrent kernel."""
    out, of_params, of_x = ours
    return largest_difference([out, of_x, of_params["forward_recurrent_kernel"]], list(theirs))


if __name__ == "__main__":
    main("bigru")
