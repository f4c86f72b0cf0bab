"""The scorer: what it costs beside the bare model, and one query beside faiss.

python -m benchmarks.scorer [--items=100000] [--queries=200] [--calls=1000] [--rounds=15]

Encoding is that of the demo's system at full batches, alternating with its jitted encoder alone.
One query is searched in vectors of 512 numbers, alternating with faiss-cpu's flat index; both are
exact, and their results are compared first. Recompilations are counted over calls of mixed sizes.
"""

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import record
from jcmr.core import parallel
from jcmr.core.types import Task
from jcmr.data import augment
from jcmr.serve.embeddings import Embeddings
from jcmr.serve.load import Run
from jcmr.serve.scorer import Scorer

DIM = 512
CONFIG = Path(__file__).parents[1] / "configs" / "pcme_scenes.py"


def seconds(run: Callable[[], Any]) -> float:
    """Of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def demo_run(mesh: Any) -> Run:
    """The demo's system with random weights; no data is needed."""
    spec: Any = importlib.util.spec_from_file_location("demo", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    vocabulary = {f"word{i}": i for i in range(100)}
    config.model.vocab_size = len(vocabulary)
    task = importlib.import_module("jcmr.models.pcme").make(config.model)
    batch = {
        "image": jnp.zeros((1, 48, 48, 3), jnp.uint8),
        "text": jnp.ones((1, 30), jnp.int32),
        "id": jnp.zeros(1, jnp.int32),
    }
    variables = task.init(jax.random.key(0), augment.make_prepare(config.data)(batch))
    example = {n: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for n, x in batch.items()}
    variables = parallel.replicate(variables, mesh)
    return Run(config, task, variables, example, vocabulary, 0, "benchmark")


def vector_run(mesh: Any) -> Run:
    """A system of plain vectors, whose score is their product."""

    def encoder(name: str) -> Any:
        return lambda variables, inputs: inputs[name] * variables["params"]["one"]

    def score(variables: Any, query: Any, gallery: Any) -> Any:
        del variables
        return jnp.matmul(query, gallery.T, precision=jax.lax.Precision.HIGHEST)

    encode = {"image": encoder("features"), "text": encoder("text")}
    task = Task(None, None, encode, score)  # pyright: ignore
    config = ConfigDict({"task": "vse", "model": {}, "data": {"source": "features"}})
    config.eval = ConfigDict({"tile": (64, 1024), "batch_size": 64})
    variables = parallel.replicate({"params": {"one": np.ones((), np.float32)}}, mesh)
    example = {n: jax.ShapeDtypeStruct((DIM,), np.dtype(np.float32)) for n in ("text", "features")}
    return Run(config, task, variables, example, {}, 0, "benchmark")


def measure_encoding(scorer: Scorer, batches: int, rounds: int) -> dict[str, Any]:
    """Images a second by the scorer and by its jitted encoder alone."""
    run, size = scorer.run, scorer.sizes[-1]
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batches * size, 48, 48, 3), dtype=np.uint8)
    prepare = augment.make_prepare(run.config.data)

    @jax.jit
    def encode(variables: Any, batch: Any) -> Any:
        return run.task.encode["image"](variables, prepare(batch))

    def bare() -> None:
        for start in range(0, len(pixels), size):
            batch = {"image": pixels[start : start + size], "id": np.zeros(size, np.int32)}
            jax.block_until_ready(encode(run.variables, batch))

    def ours() -> None:
        scorer.encode("image", pixels)

    bare()
    ours()
    times = [(seconds(bare), seconds(ours)) for _ in range(rounds)]
    ratios = [a / b for a, b in times]
    return {
        "batch_size": size,
        "bare_images_per_second": len(pixels) / float(np.median([a for a, _ in times])),
        "images_per_second": len(pixels) / float(np.median([b for _, b in times])),
        "ratio": float(np.median(ratios)),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "bar": 0.95,
    }


def measure_search(scorer: Scorer, num: int, num_queries: int) -> dict[str, Any]:
    """Latency of one query, k = 10.

    Raises:
      AssertionError: the two find other items.
    """
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(num, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[rng.integers(num, size=num_queries)] + 0.1 * rng.normal(
        size=(num_queries, DIM)
    ).astype(np.float32)
    gallery = Embeddings("image", scorer.fingerprint, vectors)
    asked = Embeddings("text", scorer.fingerprint, queries)
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors)  # pyright: ignore
    theirs_ids = index.search(queries[:8], 10)[1]  # pyright: ignore
    ours_ids = scorer.search(asked[:8], gallery).ids
    agreement = float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ours_ids, theirs_ids)]))
    assert agreement > 0.98, f"the results of faiss differ: {agreement}"
    scorer.search(asked[:1], gallery)
    times: dict[str, list[float]] = {"ours": [], "faiss": []}
    for i in range(num_queries):
        one = asked[i : i + 1]
        times["ours"].append(seconds(lambda one=one: scorer.search(one, gallery)))
        row = queries[i : i + 1]
        times["faiss"].append(seconds(lambda row=row: index.search(row, 10)))  # pyright: ignore
    found: dict[str, Any] = {"items": num, "dim": DIM, "queries": num_queries}
    for name, values in times.items():
        found[f"{name}_p50_ms"] = 1e3 * float(np.quantile(values, 0.5))
        found[f"{name}_p99_ms"] = 1e3 * float(np.quantile(values, 0.99))
    return found | {"agreement": agreement}


def count_compilations(scorer: Scorer, calls: int) -> int:
    """Programs compiled by calls of mixed sizes after warming up."""
    rng = np.random.default_rng(0)
    gallery = scorer.encode("text", [{"text": row} for row in rng.normal(size=(500, DIM))])
    vectors = rng.normal(size=(200, DIM)).astype(np.float32)
    images = Embeddings("image", scorer.fingerprint, vectors)
    scorer.warm_up([gallery])
    compiled: list[str] = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    for _ in range(calls):
        texts = [{"text": row} for row in vectors[: int(rng.integers(1, 150))]]
        made = scorer.encode("text", texts)
        scorer.score(made, images[: int(rng.integers(1, 200))])
        scorer.search(images[: int(rng.integers(1, 100))], gallery)
    return len(compiled)


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    mesh = parallel.make_mesh(jax.devices()[:1])
    encoding = measure_encoding(Scorer(demo_run(mesh), mesh), 8, args.rounds)
    print(
        f"encoding: {encoding['images_per_second']:,.0f} images a second, "
        f"{encoding['ratio']:.3f} of the bare model ({encoding['ratio_min']:.3f} to "
        f"{encoding['ratio_max']:.3f}, bar {encoding['bar']})",
        flush=True,
    )
    scorer = Scorer(vector_run(mesh), mesh)
    search = measure_search(scorer, args.items, args.queries)
    print(
        f"one query in {args.items:,} x {DIM}: p50 {search['ours_p50_ms']:.1f} ms, p99 "
        f"{search['ours_p99_ms']:.1f}; faiss p50 {search['faiss_p50_ms']:.1f}, p99 "
        f"{search['faiss_p99_ms']:.1f}",
        flush=True,
    )
    compilations = count_compilations(scorer, args.calls)
    print(f"recompilations over {args.calls} calls: {compilations}")
    found = {**encoding, **search, "calls": args.calls, "recompilations": compilations}
    record.append("scorer", found)


if __name__ == "__main__":
    main()
