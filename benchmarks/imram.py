"""Scoring of full IMRAM against a caption loop in torch, on the same inputs.

python -m benchmarks.imram [--images=32] [--captions=8] [--rounds=3]

Times are of scoring alone, alternating between both; what is computed once per item (and makes 5000
scores in a test set) is timed on its own. Scores are compared first.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import record
from benchmarks.baselines import imram as baseline
from jcmr.ops import cross_attention as ca

WORDS, REGIONS, DIM = 14, 36, 1024
SMOOTH, CHUNK = 9.0, 8
BARS = {1: 20.0, 2: 20.0, 3: 8.0}


def pair_flops(steps: int, reduced: bool) -> float:
    """Multiply-adds x 2 of the products of one pair, both directions; see `ops.cross_attention`."""
    n, r, d = WORDS, REGIONS, DIM
    if not reduced:
        return steps * (2 * 4 * n * r * d + 8 * (n + r) * d * d)
    once = 2 * n * r * d
    norms = steps * (2 * n * r * r + 2 * r * n * n)
    attended = (steps - 1) * 2 * (4 * n * r * d + 2 * n * r * d)
    return once + norms + attended + max(steps - 2, 0) * 4 * (n + r) * d * d


def make_inputs(num_images: int, num_captions: int) -> dict[str, Any]:
    """Unit fragments and gates, as numpy."""
    rng = np.random.default_rng(0)

    def fragments(n: int, t: int) -> np.ndarray:
        x = rng.normal(size=(n, t, DIM)).astype(np.float32)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def gate() -> dict[str, np.ndarray]:
        bound = (2 * DIM) ** -0.5
        shapes = {"linear": (DIM, 2 * DIM), "gate": (DIM, 2 * DIM)}
        shapes |= {"linear_bias": (DIM,), "gate_bias": (DIM,)}
        return {n: rng.uniform(-bound, bound, s).astype(np.float32) for n, s in shapes.items()}

    return {
        "images": fragments(num_images, REGIONS),
        "captions": fragments(num_captions, WORDS),
        "weights": {"t2i": gate(), "i2t": gate()},
    }


def our_gates(inputs: dict[str, Any], steps: int) -> ca.Gates:
    """The gates of both directions, or their names where there is one step."""
    gates: dict[str, ca.Gate | None] = {}
    for name, w in inputs["weights"].items():
        kernel = jnp.concatenate([w["linear"].T, w["gate"].T], axis=1)
        bias = jnp.concatenate([w["linear_bias"], w["gate_bias"]])
        gates[name] = ca.Gate(kernel[:DIM], kernel[DIM:], bias) if steps > 1 else None
    return gates


def seconds(run: Callable[[], Any]) -> float:
    """Of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measure(inputs: dict[str, Any], steps: int, rounds: int) -> dict[str, Any]:
    """Both scorers for K = `steps`.

    Raises:
      AssertionError: their scores differ.
    """
    how, gates = ca.Matching(steps, SMOOTH), our_gates(inputs, steps)
    tokens = [jnp.asarray(inputs[name]) for name in ("images", "captions")]

    @jax.jit
    def prepare_all(tokens: list[jax.Array], gates: ca.Gates) -> list[ca.Fragments]:
        return [
            ca.make_fragments(x, jnp.ones(x.shape[:2], bool), gates[query], gates[context])
            for x, query, context in zip(tokens, ("i2t", "t2i"), ("t2i", "i2t"))
        ]

    prepare = lambda: jax.block_until_ready(prepare_all(tokens, gates))
    images, captions = prepare()
    program = jax.jit(ca.score_tile, static_argnames=("how", "chunk"))
    compiled = program.lower(images, captions, gates, how=how, chunk=CHUNK).compile()
    at_once = jax.jit(ca.score_pairs, static_argnames="how")
    whole = at_once.lower(images, captions, gates, how=how).compile()
    ours = lambda: jax.block_until_ready(compiled(images, captions, gates))

    theirs_images = torch.from_numpy(inputs["images"])
    theirs_captions = list(torch.from_numpy(inputs["captions"]))
    weights = {
        name: {part: torch.from_numpy(x) for part, x in w.items()}
        for name, w in inputs["weights"].items()
    }
    theirs = lambda: baseline.score(theirs_images, theirs_captions, weights, steps, SMOOTH)
    difference = float(np.abs(np.asarray(ours()) - theirs().numpy()).max())
    assert difference < 1e-4, f"K={steps}: scores differ by {difference}"

    times = [(seconds(theirs), seconds(ours)) for _ in range(rounds)]
    pairs = len(inputs["images"]) * len(inputs["captions"])
    ratios = [a / b for a, b in times]
    cost: Any = whole.cost_analysis()
    memory: Any = compiled.memory_analysis()
    return {
        "steps": steps,
        "pairs": pairs,
        "largest_difference": difference,
        "baseline_ms_per_pair": 1e3 * float(np.median([a for a, _ in times])) / pairs,
        "ms_per_pair": 1e3 * float(np.median([b for _, b in times])) / pairs,
        "ratio": float(np.median(ratios)),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "bar": BARS[steps],
        "baseline_mflop_per_pair": pair_flops(steps, reduced=False) / 1e6,
        "mflop_per_pair": pair_flops(steps, reduced=True) / 1e6,
        "xla_bytes_per_pair": float(cost["bytes accessed"]) / pairs,
        "temp_bytes": memory.temp_size_in_bytes,
        "prepare_ms_per_item": 1e3
        * min(seconds(prepare) for _ in range(2))
        / (len(inputs["images"]) + len(inputs["captions"])),
    }


def main() -> None:
    """Measures K = 1, 2, 3, prints a line each and records them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--captions", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    inputs = make_inputs(args.images, args.captions)
    print(f"full IMRAM, {WORDS} words, {REGIONS} regions, d = {DIM}")
    for steps in BARS:
        found = measure(inputs, steps, args.rounds)
        record.append("imram_scoring", found)
        print(
            f"K={steps}: {found['baseline_ms_per_pair']:.3f} -> {found['ms_per_pair']:.3f} ms a "
            f"pair, {found['ratio']:.1f}x ({found['ratio_min']:.1f} to {found['ratio_max']:.1f}, "
            f"bar {found['bar']:.0f}x); {found['baseline_mflop_per_pair']:.1f} -> "
            f"{found['mflop_per_pair']:.2f} MFLOP; {found['xla_bytes_per_pair'] / 1e6:.2f} MB; "
            f"temp {found['temp_bytes'] / 1e6:.0f} MB; per item {found['prepare_ms_per_item']:.2f} "
            f"ms; scores agree to {found['largest_difference']:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
