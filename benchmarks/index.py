"""Exact search against FAISS and torch, in one run and on the same rows.

python -m benchmarks.index [--sizes=100000x256,1000000x512] [--queries=1,32,1000] [--rounds=5]

All find the best ten by inner product. What they find is compared first; then they take turns, and
a ratio is that of two neighbours in time. Where other work shares the cores, the processor's clock
is the one to believe.
"""

import argparse
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record, timing
from jcmr.core import parallel
from jcmr.index import exact

K = 10
BAR = 1.0
TOLERANCE = 1e-5
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
SIZES = {"dry": (2000, 32, 8), "cpu": (100_000, 256, 1000), "gpu": (1_000_000, 512, 1000)}
"""(rows, dimensions, queries) in the suite."""


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


def cases(scale: timing.Scale) -> Iterator[timing.Case]:
    """One size, for the suite."""
    num, dimension, num_queries = SIZES[scale]
    rows, queries = unit_rows(num, dimension, seed=0), unit_rows(num_queries, dimension, seed=1)
    search = exact.make_search(rows)
    case = timing.Case(
        f"exact search, best {K}",
        f"{num} x {dimension}, {num_queries} queries",
        lambda: search(queries, K),
        flops=2.0 * num * dimension * num_queries,
        bytes=float(rows.nbytes + queries.nbytes),
        compare=lambda ours, theirs: compare(rows, queries, ours, theirs),
        tolerance=TOLERANCE,
    )
    others: dict[str, Search] = {}
    if scale != "gpu" and (theirs := timing.baseline("index")):
        others["matmul and topk in torch"] = theirs.make_torch(rows)
        if importlib.util.find_spec("faiss"):
            others["FAISS IndexFlatIP"] = theirs.make_faiss(rows)
    case.baselines = {name: lambda run=run: run(queries, K) for name, run in others.items()}
    case.bars = dict.fromkeys(others, BAR)
    yield case


def seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """(by the wall clock, by the processor's clock over all threads) of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def counts(num_rows: int, dimension: int, num_queries: int) -> dict[str, float]:
    """What the compiled program does, and the least that there is to do."""
    mesh = parallel.make_mesh(jax.devices()[:1])
    block = exact.block_rows(num_rows, mesh)
    padded = exact.padded_size(num_queries)
    tile = exact.tile_rows(block, dimension, padded, jnp.float32)

    cost = exact.compile_fold(mesh, padded, tile, dimension, K).cost_analysis()
    memory = exact.compile_fold(mesh, padded, block, dimension, K).memory_analysis()
    tiles = -(-num_rows // tile)
    return {
        "gflop": tiles * cost["flops"] / 1e9,
        "floor_gflop": 2 * num_rows * dimension * num_queries / 1e9,
        "gbytes": tiles * cost["bytes accessed"] / 1e9,
        "floor_gbytes": 4 * num_rows * dimension / 1e9,
        "temp_bytes": memory.temp_size_in_bytes,
        "scores_bytes": 4 * num_rows * num_queries,
    }


def measure(rows: np.ndarray, engines: dict[str, Search], num: int, rounds: int) -> dict[str, Any]:
    """Times of all engines for `num` queries, and theirs over ours."""
    queries = unit_rows(num, rows.shape[1], seed=1)
    found = {name: search(queries, K) for name, search in engines.items()}
    difference = max(
        compare(rows, queries, found["ours"], found[name]) for name in ("faiss", "torch")
    )
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    load = os.getloadavg()[0]
    for _ in range(rounds):
        for name, search in engines.items():
            times[name].append(seconds(lambda search=search: search(queries, K)))
    result: dict[str, Any] = {
        "rows": len(rows),
        "dimension": rows.shape[1],
        "queries": num,
        "largest_difference": difference,
        "load": load,
        "rounds": rounds,
        "bar": BAR,
        **counts(len(rows), rows.shape[1], num),
    }
    for name, both in times.items():
        for clock, ours, theirs in zip(("ms", "cpu_ms"), zip(*times["ours"]), zip(*both)):
            result[f"{name}_{clock}"] = 1e3 * float(np.median(theirs))
            ratios = [a / b for a, b in zip(theirs, ours)]
            result[f"{name}_{clock}_ratio"] = float(np.median(ratios))
            result[f"{name}_{clock}_ratio_min"] = min(ratios)
            result[f"{name}_{clock}_ratio_max"] = max(ratios)
    return result


def line(found: dict[str, Any]) -> str:
    """A measurement for the terminal."""

    def against(name: str) -> str:
        low, high = (found[f"{name}_cpu_ms_ratio_{end}"] for end in ("min", "max"))
        return f"{found[f'{name}_cpu_ms_ratio']:.2f}x {name} ({low:.2f} to {high:.2f})"

    times = [
        f"{name} {found[f'{name}_ms']:.1f} ({found[f'{name}_cpu_ms']:.1f})"
        for name in ("faiss", "torch", "ours")
    ]
    return (
        f"{found['rows']} x {found['dimension']}, {found['queries']} queries: ms (of processor) "
        f"{', '.join(times)}; by processor time {against('faiss')}, {against('torch')}, bar "
        f"{BAR}x; {found['gflop']:.1f} GFLOP, floor {found['floor_gflop']:.1f}; "
        f"{found['gbytes']:.2f} GB, floor {found['floor_gbytes']:.2f}; temporaries "
        f"{found['temp_bytes'] / 1e6:.0f} MB, all scores {found['scores_bytes'] / 1e6:.0f} MB; "
        f"load {found['load']:.1f}; scores agree to {found['largest_difference']:.0e}"
    )


def main() -> None:
    """Measures each size with each number of queries, prints a line each and records them."""
    import faiss
    import torch

    from benchmarks.baselines import index as baseline

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
            print(line(found), flush=True)


if __name__ == "__main__":
    main()
