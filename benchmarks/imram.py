"""Scoring of full IMRAM against a caption loop in torch, on the same inputs.

Times are of scoring alone: what is computed once per item makes 5000 scores in a test set.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.scan import LOOP
from benchmarks.suite import main
from benchmarks.timing import Case, Scale, baseline, jitted
from jcmr.ops import cross_attention as ca

WORDS, REGIONS = 14, 36
SMOOTH, CHUNK = 9.0, 8
BARS = {1: 20.0, 2: 20.0, 3: 8.0}
"""Steps -> how many times the speed of the loop."""
SIZES = {"dry": (3, 2, 16), "cpu": (16, 8, 1024), "gpu": (1000, 5000, 1024)}
"""(images, captions, dimensions)."""


def loop_flops(steps: int, d: int) -> float:
    """Of the products of one pair in the loop, both directions."""
    return steps * (2 * 4 * WORDS * REGIONS * d + 8 * (WORDS + REGIONS) * d * d)


def make_inputs(num_images: int, num_captions: int, dim: int) -> dict[str, Any]:
    """Unit fragments and gates, as numpy."""
    rng = np.random.default_rng(0)

    def fragments(n: int, t: int) -> np.ndarray:
        x = rng.normal(size=(n, t, dim)).astype(np.float32)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def gate() -> dict[str, np.ndarray]:
        bound = (2 * dim) ** -0.5
        shapes = {"linear": (dim, 2 * dim), "gate": (dim, 2 * dim)}
        shapes |= {"linear_bias": (dim,), "gate_bias": (dim,)}
        return {n: rng.uniform(-bound, bound, s).astype(np.float32) for n, s in shapes.items()}

    return {
        "images": fragments(num_images, REGIONS),
        "captions": fragments(num_captions, WORDS),
        "weights": {"t2i": gate(), "i2t": gate()},
    }


def our_gates(inputs: dict[str, Any], steps: int, dim: int) -> ca.Gates:
    """The gates of both directions, or their names where there is one step."""
    gates: dict[str, ca.Gate | None] = {}
    for name, w in inputs["weights"].items():
        kernel = jnp.concatenate([w["linear"].T, w["gate"].T], axis=1)
        bias = jnp.concatenate([w["linear_bias"], w["gate_bias"]])
        gates[name] = ca.Gate(kernel[:dim], kernel[dim:], bias) if steps > 1 else None
    return gates


def cases(scale: Scale) -> Iterator[Case]:
    """K = 1, 2, 3."""
    n, m, dim = SIZES[scale]
    inputs = make_inputs(n, m, dim)
    torch_side = baseline("imram")
    for steps, bar in BARS.items():
        how, gates = ca.Matching(steps, SMOOTH), our_gates(inputs, steps, dim)

        @jax.jit
        def prepare(images: Any, captions: Any, gates: ca.Gates = gates) -> list[ca.Fragments]:
            return [
                ca.make_fragments(x, jnp.ones(x.shape[:2], bool), gates[query], gates[context])
                for x, query, context in ((images, "i2t", "t2i"), (captions, "t2i", "i2t"))
            ]

        fragments = prepare(inputs["images"], inputs["captions"])
        fields = jitted(ca.score_tile, *fragments, gates, how=how, chunk=CHUNK)
        size = f"K={steps}, {n} x {m}, {WORDS} words, {REGIONS} regions, D={dim}"
        case = Case("full IMRAM, scoring", size, **fields)
        case.notes = {"MFLOP a pair": fields["flops"] / n / m / 1e6}
        case.notes |= {"of the loop": loop_flops(steps, dim) / 1e6}
        if torch_side and scale != "gpu":
            from benchmarks.baselines.device import tensor

            weights = {
                name: {part: tensor(x) for part, x in w.items()}
                for name, w in inputs["weights"].items()
            }
            placed = tensor(inputs["images"]), list(tensor(inputs["captions"])), weights
            case.baselines = {
                LOOP: lambda steps=steps, placed=placed: torch_side.score(*placed, steps, SMOOTH)
            }
            case.bars = {LOOP: bar}
        yield case


if __name__ == "__main__":
    main("imram")
