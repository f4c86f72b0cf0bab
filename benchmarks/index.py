"""Exact search against FAISS and torch, in one run and on the same rows.

python -m benchmarks.index [--sizes=100000x256,1000000x512] [--queries=1,32,1000] [--rounds=5]

All find the best ten by inner product. What they find is compared first; then they take turns, and
a ratio is that of two neighbours in time.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import faiss
import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import record
from benchmarks.baselines import index as baseline
from jcmr.core import parallel
from jcmr.index import exact
from jcmr.ops.topk import TopK

K = 10
BAR = 1.0
TOLERANCE = 1e-5
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def unit_rows(n: int, d: int, seed: int) -> np.ndarray:
    """Random directions, float32 [n, d]."""
    x = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def compare(rows: np.ndarray, queries: np.ndarray, ours: Any, theirs: Any) -> float:
    """Largest difference of scores.

    Raises:
      AssertionError: scores differ by more than rounding, or ids do where they may not: at equal
        ranks they differ only where both score the same but for rounding.
    """
    difference = float(np.abs(ours[0] - theirs[0]).max())
    assert difference < TOLERANCE, f"scores differ by {difference}"
    scored = np.einsum("qkd,qd->qk", rows[ours[1]], queries)
    difference = max(difference, float(np.abs(scored - theirs[0]).max()))
    assert difference < TOLERANCE, f"rows have other scores, by {difference}"
    return difference


def seconds(run: Callable[[], Any]) -> float:
    """Of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def counts(num_rows: int, dimension: int, num_queries: int) -> dict[str, float]:
    """What the compiled program does, and the least that there is to do."""
    mesh = parallel.make_mesh(jax.devices()[:1])
    block = exact.block_rows(num_rows, mesh)
    padded = exact.padded_size(num_queries)
    tile = exact.tile_rows(block, dimension, padded, jnp.float32)

    def compiled(size: int) -> Any:
        shape = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
        number, ids = (jax.ShapeDtypeStruct(s, jnp.int32) for s in ((), (1, padded, K)))
        live = jax.ShapeDtypeStruct((size,), bool)
        rows = exact.Block(shape((size, dimension)), None, live)
        best = TopK(shape((1, padded, K)), ids)
        queries = shape((padded, dimension))
        return exact.make_fold(mesh).lower(queries, number, number, rows, best).compile()

    cost = compiled(tile).cost_analysis()
    tiles = -(-num_rows // tile)
    return {
        "gflop": tiles * cost["flops"] / 1e9,
        "floor_gflop": 2 * num_rows * dimension * num_queries / 1e9,
        "gbytes": tiles * cost["bytes accessed"] / 1e9,
        "floor_gbytes": 4 * num_rows * dimension / 1e9,
        "temp_bytes": compiled(block).memory_analysis().temp_size_in_bytes,
        "scores_bytes": 4 * num_rows * num_queries,
    }


def measure(rows: np.ndarray, engines: dict[str, Search], num: int, rounds: int) -> dict[str, Any]:
    """Times of all engines for `num` queries; the last is ours."""
    queries = unit_rows(num, rows.shape[1], seed=1)
    found = {name: search(queries, K) for name, search in engines.items()}
    difference = max(
        compare(rows, queries, found["ours"], found[name]) for name in ("faiss", "torch")
    )
    times: dict[str, list[float]] = {name: [] for name in engines}
    load = os.getloadavg()[0]
    for _ in range(rounds):
        for name, search in engines.items():
            times[name].append(seconds(lambda search=search: search(queries, K)))
    ratios = {
        name: [theirs / ours for theirs, ours in zip(times[name], times["ours"])]
        for name in ("faiss", "torch")
    }
    return {
        "rows": len(rows),
        "dimension": rows.shape[1],
        "queries": num,
        "largest_difference": difference,
        "load": load,
        "rounds": rounds,
        "bar": BAR,
        **{f"{name}_ms": 1e3 * float(np.median(ts)) for name, ts in times.items()},
        **{f"{name}_best_ms": 1e3 * min(ts) for name, ts in times.items()},
        **{f"ratio_{name}": float(np.median(rs)) for name, rs in ratios.items()},
        **{f"ratio_{name}_min": min(rs) for name, rs in ratios.items()},
        **{f"ratio_{name}_max": max(rs) for name, rs in ratios.items()},
        **counts(*rows.shape, num),
    }


def main() -> None:
    """Measures each size with each number of queries, prints a line each and records them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="100000x256,1000000x512")
    parser.add_argument("--queries", default="1,32,1000")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    faiss.omp_set_num_threads(cores)
    for size in args.sizes.split(","):
        rows = unit_rows(*map(int, size.split("x")), seed=0)
        engines: dict[str, Search] = {
            "faiss": baseline.make_faiss(rows),
            "torch": baseline.make_torch(rows),
            "ours": exact.make_search(rows),
        }
        for num in map(int, args.queries.split(",")):
            found = measure(rows, engines, num, args.rounds)
            record.append("index", found)
            print(
                f"{size}, {num} queries: faiss {found['faiss_ms']:.1f}, torch "
                f"{found['torch_ms']:.1f}, ours {found['ours_ms']:.1f} ms; {found['ratio_faiss']:.2f}x "
                f"faiss ({found['ratio_faiss_min']:.2f} to {found['ratio_faiss_max']:.2f}), "
                f"{found['ratio_torch']:.2f}x torch ({found['ratio_torch_min']:.2f} to "
                f"{found['ratio_torch_max']:.2f}), bar {BAR}x; {found['gflop']:.1f} GFLOP, floor "
                f"{found['floor_gflop']:.1f}; {found['gbytes']:.2f} GB, floor "
                f"{found['floor_gbytes']:.2f}; temp {found['temp_bytes'] / 1e6:.0f} MB of "
                f"{found['scores_bytes'] / 1e6:.0f} MB of scores; load {found['load']:.1f}; scores "
                f"agree to {found['largest_difference']:.0e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
