"""Chebyshev propagation over a vocabulary that all documents share, value and gradient.

Sparse as it is, as a dense matrix, and replicated: the same edges once for each document, which is
what batching a graph per document costs.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp

from benchmarks.suite import main
from benchmarks.timing import Case, Scale, baseline, jitted
from jcmr.core.work import bytes_of

SIZES = {"dry": (60, 4), "cpu": (10_000, 128), "gpu": (10_000, 128)}
"""(words, documents)."""
NEIGHBOURS, TAPS = 8, 3
SPARSE = "sparse matrix in torch"


class Edges(NamedTuple):
    """The edges of a scaled Laplacian, both directions of each, sorted by receiver."""

    senders: np.ndarray
    receivers: np.ndarray
    edges: np.ndarray


def make_words(num: int) -> Edges:
    """A random graph in which every word has at least `NEIGHBOURS` edges."""
    rng = np.random.default_rng(0)
    first = np.repeat(np.arange(num), NEIGHBOURS)
    second = rng.integers(0, num, len(first))
    kept = first != second
    pairs = np.concatenate([np.stack([first, second], 1), np.stack([second, first], 1)])
    receivers, senders = np.unique(pairs[np.tile(kept, 2)], axis=0).T
    degree = np.bincount(receivers, minlength=num)
    weights = -1 / np.sqrt(degree[receivers] * degree[senders])
    return Edges(senders.astype(np.int32), receivers.astype(np.int32), weights.astype(np.float32))


def replicate(words: Edges, num: int, copies: int) -> Edges:
    """The graph once for each of `copies` documents."""
    offset = np.repeat(np.arange(copies, dtype=np.int32) * num, len(words.edges))
    senders, receivers = (np.tile(x, copies) + offset for x in words[:2])
    return Edges(senders, receivers, np.tile(words.edges, copies))


def step(x: Any, operator: Any) -> Any:
    """The sum of the squares of the taps, and its gradient."""
    from jcmr.ops.graph import chebyshev

    return jax.value_and_grad(lambda x: jnp.sum(chebyshev(operator, x, TAPS) ** 2))(x)


def cases(scale: Scale) -> Iterator[Case]:
    """The three layouts; the sparse one against torch's."""
    num, documents = SIZES[scale]
    words = make_words(num)
    x = np.random.default_rng(1).standard_normal((num, documents)).astype(np.float32)
    dense = np.zeros((num, num), np.float32)
    dense[words.receivers, words.senders] = words.edges
    column = np.ascontiguousarray(x.T).reshape(-1, 1)
    torch_side = baseline("chebyshev")
    for layout, signal, operator in (
        ("sparse", x, words),
        ("dense", x, dense),
        ("sparse, replicated", column, replicate(words, num, documents)),
    ):
        case = Case(
            f"Chebyshev propagation, {layout}",
            f"{num} words, {documents} documents, {TAPS} taps",
            **jitted(step, signal, operator),
        )
        case.notes = {"graph MB": bytes_of(operator) / 1e6}
        if torch_side and layout == "sparse":
            case.baselines = {SPARSE: torch_side.make(*words, x, TAPS)}
        yield case


if __name__ == "__main__":
    main("chebyshev")
