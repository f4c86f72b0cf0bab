"""Graphs of words: built right, and propagated alike along edges, by a matrix and by jraph."""

from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import PartitionSpec

from jcmr.core import parallel
from jcmr.ops import graph, propagation

WORDS = 30
CLOSE = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def words():
    vectors = np.random.default_rng(0).normal(size=(WORDS, 8))
    vectors[7] = 0  # a word of which nothing is known
    return graph.undirected(WORDS, graph.knn_pairs(vectors, 3))


@pytest.fixture(scope="module")
def laplacian(words):
    return graph.scaled_laplacian(words)


def signal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_word_without_a_vector_is_isolated(words, laplacian):
    assert 7 not in words.senders and 7 not in words.receivers
    matrix = np.asarray(graph.to_dense(laplacian, WORDS))
    assert not matrix[7].any() and not matrix[:, 7].any()
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.abs(np.linalg.eigvalsh(matrix)).max() <= 1 + 1e-6


def test_fewer_words_than_neighbours():
    assert graph.nearest(np.eye(3)[:, :2], 8).tolist()[2] == [-1, -1, -1]
    assert len(graph.knn_pairs(np.ones((3, 2)), 8)) == 6


def test_edges_are_sorted_once_each_and_checked():
    made = graph.make_graph(4, [3, 1, 1, 0], [0, 2, 2, 3], [1.0, 2.0, 5.0, 1.0])
    assert made.receivers.tolist() == [0, 2, 3] and made.edges.tolist() == [1.0, 2.0, 1.0]
    with pytest.raises(ValueError, match="vertex 4; the graph has 0 to 3"):
        graph.make_graph(4, [4], [0])


def test_cooccurrence():
    counts = np.array([[1, 2, 0], [3, 1, 0], [0, 1, 1]])
    assert graph.cooccurrence_pairs(counts, 2).tolist() == [[0, 1]]
    assert sorted(graph.cooccurrence_pairs(counts, 1).tolist()) == [[0, 1], [1, 2]]


def test_layouts_are_equal_in_value_and_gradient(laplacian):
    x = signal(WORDS, 2, 3)
    up = signal(5, WORDS, 2, 3)

    def run(operator):
        total = lambda x: jnp.vdot(propagation.chebyshev(operator, x, 5), up)
        return jax.jit(jax.value_and_grad(total))(x)

    jax.tree.map(CLOSE, run(laplacian), run(graph.to_dense(laplacian, WORDS)))


def test_chebyshev_is_the_polynomial_for_every_order(laplacian):
    matrix = np.asarray(graph.to_dense(laplacian, WORDS), np.float64)
    values, basis = np.linalg.eigh(matrix)
    x = signal(WORDS, 1)
    taps = jax.jit(lambda x: propagation.chebyshev(laplacian, x, 7))(x)
    for order, tap in enumerate(taps):
        polynomial = np.cos(order * np.arccos(np.clip(values, -1, 1)))
        CLOSE(tap, basis * polynomial @ basis.T @ x, atol=1e-5)


def test_kipf_by_jraph_is_its_formula(words, laplacian):
    x = signal(WORDS, 2, 2)
    CLOSE(graph.kipf(words, x, self_edges=False), -propagation.propagate(laplacian, x))
    adjacency = np.asarray(graph.to_dense(words, WORDS)) + np.eye(WORDS)
    scale = 1 / np.sqrt(adjacency.sum(1))
    CLOSE(graph.kipf(words, x).reshape(WORDS, -1),
          (scale[:, None] * adjacency * scale) @ x.reshape(WORDS, -1))  # fmt: skip


def documents(words, sizes, seed=2):
    rng = np.random.default_rng(seed)
    chosen = [np.sort(rng.choice(WORDS, size, replace=False)) for size in sizes]
    return chosen, [graph.scaled_laplacian(graph.subgraph(words, c)) for c in chosen]


def test_graphs_of_documents(words):
    """Padded to a bucket, garbage on padding: every document as if alone."""
    chosen, parts = documents(words, (5, 9, 1))
    batched = graph.batch_graphs(parts)
    total = graph.num_vertices(batched)
    assert total == 16 and len(batched.n_node) == 4
    assert len(batched.edges) & (len(batched.edges) - 1) == 0
    x = signal(total, 2)
    x[15:] = np.nan
    found = jax.jit(lambda x: propagation.chebyshev(batched, x, 4))(x)
    start = 0
    for some, part in zip(chosen, parts):
        rows = slice(start, start + len(some))
        CLOSE(found[:, rows], propagation.chebyshev(part, x[rows], 4))
        start += len(some)


def test_graphs_of_documents_are_vmapped_and_sharded(words):
    """Each device convolves a padded batch of its own."""
    mesh = parallel.make_mesh()
    # The last document holds all words, so that every batch falls into the same bucket.
    batches = [
        graph.batch_graphs(documents(words, (3, 4, WORDS), seed)[1]) for seed in range(mesh.size)
    ]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *batches)
    x = signal(mesh.size, graph.num_vertices(batches[0]), 2)
    run = lambda g, x: jnp.sum(propagation.chebyshev(g, x, 3) ** 2)
    grads = jax.vmap(jax.grad(run, 1))
    spec = PartitionSpec(parallel.AXIS)
    sharded = jax.jit(jax.shard_map(grads, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    found = sharded(stacked, x)
    alone = jax.jit(jax.grad(run, 1))
    for index, single in enumerate(batches):
        CLOSE(found[index], alone(single, x[index]), rtol=1e-4)


def test_subgraph_and_hops(words):
    words_of_query = np.array([0, 12])
    distance = graph.hops(words, words_of_query, 2)
    matrix = np.asarray(graph.to_dense(words, WORDS)) > 0
    near = matrix[words_of_query].any(0)
    near[words_of_query] = False
    np.testing.assert_array_equal(distance == 1, near)
    assert (distance[words_of_query] == 0).all() and distance[7] == -1
    chosen = np.flatnonzero(distance >= 0)
    part = graph.subgraph(words, chosen)
    np.testing.assert_array_equal(graph.to_dense(part, len(chosen)) > 0, matrix[chosen][:, chosen])
