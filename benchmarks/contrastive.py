"""The contrastive loss of a large batch, value and gradient, whole and in blocks of rows."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from benchmarks.suite import main
from benchmarks.timing import Case, Scale, baseline, jitted
from jcmr.core.dtypes import HIGHEST
from jcmr.losses.probabilistic import cross_entropy
from jcmr.losses.targets import Targets
from jcmr.ops.chunks import sum_over_chunks

SIZES = {
    "dry": ((8, 4, 0), (8, 4, 3)),
    "cpu": ((2048, 256, 0), (2048, 256, 128)),
    "gpu": ((8192, 768, 0), (32_768, 768, 1024)),
}
"""(batch, dimensions, rows at a time; 0 = all)."""
WHOLE = "all similarities at once, in torch"


def loss(x: Any, y: Any, scale: Any, chunk: int) -> Any:
    """Of unit rows [n, d] in both directions."""
    columns = jnp.arange(len(x))

    def direction(queries: Any, items: Any) -> Any:
        def block(rows: Any) -> Any:
            own = rows[1][:, None] == columns
            logits = scale * jnp.matmul(rows[0], items.T, precision=HIGHEST)
            return cross_entropy(logits, Targets(own.astype(x.dtype), jnp.ones_like(own)))

        return sum_over_chunks(block, (queries, columns), chunk)

    return direction(x, y) + direction(y, x)


def cases(scale: Scale) -> Iterator[Case]:
    """One for each size."""
    torch_side = baseline("contrastive")
    for n, d, chunk in SIZES[scale]:
        raw = np.random.default_rng(0).standard_normal((2, n, d))
        x, y = (raw / np.linalg.norm(raw, axis=-1, keepdims=True)).astype(np.float32)
        arguments = (x, y, np.float32(20.0))
        fields = jitted(jax.value_and_grad(loss, (0, 1, 2)), *arguments, chunk=chunk)
        case = Case("contrastive loss, value and gradient", f"B={n}, D={d}", **fields)
        case.tolerance = 1e-3
        if chunk:
            case.size += f", {chunk} rows at a time"
        if torch_side:
            from benchmarks.baselines.device import compiled, value_and_grads

            make = lambda f, arguments=arguments: value_and_grads(f, *arguments)
            case.baselines = compiled(**{WHOLE: (torch_side.loss, make)})
        yield case


if __name__ == "__main__":
    main("contrastive")
