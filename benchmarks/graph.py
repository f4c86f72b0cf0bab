"""Chebyshev propagation over a shared vocabulary, sparse, dense, and replicated for each document.

python -m benchmarks.graph [--words=10000 --documents=128 --taps=3]

Time is the median of interleaved rounds; bytes are XLA's temporaries plus what holds the graph. The
replicated form is what batching a graph per document costs: the same edges once for each document.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record
from jcmr.losses.graph_pattern import graph_pattern
from jcmr.ops import graph
from jcmr.train.state import objective


def make_words(num_words: int, seed: int = 0) -> graph.Graph:
    """The scaled Laplacian of a union 8-nearest graph of random vectors."""
    vectors = np.random.default_rng(seed).standard_normal((num_words, 32)).astype(np.float32)
    return graph.scaled_laplacian(graph.undirected(num_words, graph.knn_pairs(vectors)))


def size_of(tree: Any) -> int:
    """Bytes of all arrays."""
    return sum(np.asarray(x).nbytes for x in jax.tree.leaves(tree))


def replicate(words: graph.Graph, num_words: int, copies: int) -> graph.Graph:
    """The graph once for each of `copies` documents, as one graph of copies * v vertices."""
    offset = np.repeat(np.arange(copies, dtype=np.int32) * num_words, len(words.edges))
    return words._replace(
        edges=np.tile(words.edges, copies),
        senders=np.tile(words.senders, copies) + offset,
        receivers=np.tile(words.receivers, copies) + offset,
    )


def compile_step(num_taps: int, operator: Any, x: Any) -> Any:
    """Value and gradient of the taps of x, compiled; the operator is an argument."""

    def value(x: Any, operator: Any) -> Any:
        return jnp.sum(graph.chebyshev(operator, x, num_taps) ** 2)

    return jax.jit(jax.value_and_grad(value)).lower(x, operator).compile()


def pattern_bytes(size: int = 512, reps: int = 8, dim: int = 256) -> int:
    """Temporaries of the graph pattern loss, value and gradient, without running it."""
    shape = jax.ShapeDtypeStruct((size, reps, dim), jnp.float32)
    step = jax.jit(jax.value_and_grad(lambda v, t: objective(graph_pattern(v, t), None), (0, 1)))
    analysis: Any = step.lower(shape, shape).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def main() -> None:
    """Measures all layouts and records them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=int, default=10_000)
    parser.add_argument("--documents", type=int, default=128)
    parser.add_argument("--taps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    own = parser.parse_args()
    words = make_words(own.words)
    x = np.random.default_rng(1).standard_normal((own.words, own.documents)).astype(np.float32)
    forms = {
        "sparse, shared": (words, x),
        "dense, shared": (np.asarray(graph.to_dense(words, own.words)), x),
        "sparse, replicated": (
            replicate(words, own.words, own.documents),
            np.ascontiguousarray(x.T).reshape(-1, 1),
        ),
    }
    steps, seconds, values = {}, {}, {}
    for name, (operator, signal) in forms.items():
        steps[name] = compile_step(own.taps, operator, signal)
        values[name] = float(steps[name](signal, operator)[0])
        seconds[name] = []
    for _ in range(own.rounds):
        for name, (operator, signal) in forms.items():
            began = time.perf_counter()
            jax.block_until_ready(steps[name](signal, operator))
            seconds[name].append(time.perf_counter() - began)
    for name, (operator, _) in forms.items():
        result = {
            "case": f"{own.words} words x {own.documents} documents, {own.taps} taps",
            "layout": name,
            "median_ms": round(1e3 * statistics.median(seconds[name]), 2),
            "min_ms": round(1e3 * min(seconds[name]), 2),
            "graph_bytes": size_of(operator),
            "temp_bytes": steps[name].memory_analysis().temp_size_in_bytes,
            "relative_difference": abs(values[name] / values["sparse, shared"] - 1),
        }
        record.append("graph", result)
        print(result, flush=True)
    result = {"case": "graph pattern loss, 512 items, 8 representations, 256 dimensions",
              "layout": "rows in blocks", "temp_bytes": pattern_bytes()}  # fmt: skip
    record.append("graph", result)
    print(result)


if __name__ == "__main__":
    main()
