"""Graphs of words, `jraph.GraphsTuple`s, and propagation along edges; the only jraph import.

One graph over the vocabulary is shared by all documents and never replicated; a document is a
signal on its vertices. jraph is archived upstream: only what works on today's JAX is used here
(GraphsTuple, batch_np, pad_with_graphs, segment_sum, GraphConvolution).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import scipy.sparse

from jcmr.core.dtypes import HIGHEST
from jcmr.core.types import Array

if TYPE_CHECKING:
    Graph = Any
else:
    Graph = jraph.GraphsTuple
"""Edges [e] are weights, sorted by receiver; a graph of words has both directions of each edge."""
BLOCK = 1024
"""Rows of similarities held at a time."""


def make_graph(
    num_nodes: int, senders: Any, receivers: Any, weights: Any = None, dtype: Any = np.float32
) -> Graph:
    """A graph from its directed edges; an edge that is listed twice counts once.

    Args:
      num_nodes: v.
      senders: int [e].
      receivers: int [e].
      weights: [e]; 1 when None.
      dtype: of the weights.

    Raises:
      ValueError: an edge names a vertex that is not there.

    >>> make_graph(3, [0, 1, 1], [1, 2, 2]).n_edge.tolist()
    [2]
    """
    senders, receivers = np.asarray(senders, np.int64), np.asarray(receivers, np.int64)
    ends = np.concatenate([senders, receivers])
    if ends.size and not 0 <= ends.min() <= ends.max() < num_nodes:
        bad = int(ends[(ends < 0) | (ends >= num_nodes)][0])
        raise ValueError(f"An edge names vertex {bad}; the graph has 0 to {num_nodes - 1}.")
    _, first = np.unique(receivers * num_nodes + senders, return_index=True)
    weights = np.ones(len(senders)) if weights is None else np.asarray(weights)
    sizes: Any = np.asarray([num_nodes], np.int32), np.asarray([len(first)], np.int32)
    return jraph.GraphsTuple(
        nodes=None,
        edges=weights[first].astype(dtype),
        receivers=receivers[first].astype(np.int32),
        senders=senders[first].astype(np.int32),
        globals=None,
        n_node=sizes[0],
        n_edge=sizes[1],
    )


def from_arrays(senders: Array, receivers: Array, weights: Array, num_nodes: int) -> Graph:
    """The graph of edges that `make_graph` has put in order, also inside jit.

    >>> edges = jnp.array([0]), jnp.array([1]), jnp.ones(1)
    >>> num_vertices(from_arrays(*edges, num_nodes=2))
    2
    """
    sizes = jnp.asarray([num_nodes]), jnp.asarray([len(senders)])
    return jraph.GraphsTuple(None, weights, receivers, senders, None, *sizes)


def num_vertices(graph: Graph) -> int:
    """Vertices of a graph that is not traced.

    >>> num_vertices(make_graph(3, [0], [1]))
    3
    """
    return int(np.sum(graph.n_node))


def undirected(num_nodes: int, pairs: np.ndarray) -> Graph:
    """The union of the edges `pairs` [e, 2] and their reverses, each of weight 1.

    >>> to_dense(undirected(2, np.array([[0, 1]])), 2).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    ends = np.asarray(pairs, np.int64).reshape(-1, 2)
    return make_graph(
        num_nodes,
        np.concatenate([ends[:, 0], ends[:, 1]]),
        np.concatenate([ends[:, 1], ends[:, 0]]),
    )


def nearest(vectors: np.ndarray, k: int) -> np.ndarray:
    """The k most similar other words of each word by cosine, int [v, k]; of equal ones the first.

    -1 where there are fewer. A word whose vector is 0 has no neighbours and is nobody's.

    >>> nearest(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), k=1).tolist()
    [[1], [0], [1]]
    """
    vectors = np.asarray(vectors, np.float64)
    norm = np.linalg.norm(vectors, axis=1)
    unit = vectors / np.where(norm > 0, norm, 1)[:, None]
    found = []
    for start in range(0, len(unit), BLOCK):
        similarity = unit[start : start + BLOCK] @ unit.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf
        similarity[:, norm == 0] = -np.inf
        similarity[norm[start : start + BLOCK] == 0] = -np.inf
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        known = np.isfinite(np.take_along_axis(similarity, order, axis=1))
        found.append(np.where(known, order, -1))
    return np.concatenate(found)


def knn_pairs(vectors: np.ndarray, k: int = 8) -> np.ndarray:
    """Edges [e, 2] from each word to its k nearest; made `undirected` they are the graph of Yu et
    al. (arXiv 1802.00985): words joined where either is among the other's nearest, k = 8.

    >>> knn_pairs(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), k=1).tolist()
    [[0, 1], [1, 0], [2, 1]]
    """
    neighbours = nearest(vectors, k)
    word = np.repeat(np.arange(len(neighbours)), neighbours.shape[1])
    pairs = np.stack([word, neighbours.reshape(-1)], axis=1)
    return pairs[pairs[:, 1] >= 0]


def cooccurrence_pairs(counts: Any, min_documents: int) -> np.ndarray:
    """Edges [e, 2] of words that at least `min_documents` documents have in common.

    Args:
      counts: [n, v], dense or sparse; what is not 0 occurs.
      min_documents: at least 1.

    >>> cooccurrence_pairs(np.array([[1, 1, 0], [1, 1, 1]]), min_documents=2).tolist()
    [[0, 1]]
    """
    occurs: Any = scipy.sparse.csr_matrix(counts).astype(bool).astype(np.float64)
    together = scipy.sparse.triu(occurs.T @ occurs, k=1).tocoo()
    enough = together.data >= min_documents
    return np.stack([together.row[enough], together.col[enough]], axis=1)


def scaled_laplacian(graph: Graph) -> Graph:
    """The Laplacian I - D^-1/2 A D^-1/2 less I: edges -a_uv / sqrt(d_u d_v).

    That is the Laplacian rescaled to [-1, 1] for a largest eigenvalue of 2 (Defferrard et al.,
    2016). An isolated vertex has a row of zeros.

    >>> to_dense(scaled_laplacian(undirected(2, np.array([[0, 1]]))), 2).tolist()
    [[0.0, -1.0], [-1.0, 0.0]]
    """
    degree = np.bincount(graph.receivers, graph.edges, num_vertices(graph))
    scale = degree[graph.receivers] * degree[graph.senders]
    edges = -np.asarray(graph.edges, np.float64) / np.sqrt(np.where(scale > 0, scale, 1.0))
    return graph._replace(edges=edges.astype(graph.edges.dtype))


def to_dense(graph: Graph, num_nodes: int) -> Array:
    """The matrix [v, v] with the weight of the edge from u to w at [w, u].

    >>> to_dense(make_graph(2, [0], [1]), 2).tolist()
    [[0.0, 0.0], [1.0, 0.0]]
    """
    empty = jnp.zeros((num_nodes, num_nodes), graph.edges.dtype)
    return empty.at[graph.receivers, graph.senders].add(graph.edges)


@jax.custom_vjp
def symmetric_sum(graph: Graph, x: Array) -> Array:
    """Sum over incoming edges of weight * sender's row, [v, n] -> [v, n].

    For graphs whose edges come in both directions with one weight: the matrix is symmetric, so the
    gradient of x is the same sum again, over sorted segments too. Weights get no gradient.

    >>> symmetric_sum(undirected(2, np.array([[0, 1]])), jnp.array([[1.0], [5.0]])).tolist()
    [[5.0], [1.0]]
    """
    weighted = graph.edges.astype(x.dtype)[:, None] * x[graph.senders]
    return jraph.segment_sum(weighted, graph.receivers, len(x), indices_are_sorted=True)


def _forward(graph: Graph, x: Array):
    return symmetric_sum(graph, x), graph


def _backward(graph: Graph, cotangent: Array):
    return None, symmetric_sum(graph, cotangent)


symmetric_sum.defvjp(_forward, _backward)


def propagate(operator: Graph | Array, x: Array) -> Array:
    """Applies a symmetric operator to a signal x [v, ...].

    Args:
      operator: a graph (for large sparse vocabularies, and on CPU) or a matrix [v, v] (for small
        ones, and on TPU); equal in result.
      x: any trailing axes.

    >>> propagate(jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([[1.0], [5.0]])).tolist()
    [[5.0], [1.0]]
    """
    flat = x.reshape(len(x), -1)
    if hasattr(operator, "senders"):
        return symmetric_sum(operator, flat).reshape(x.shape)
    return jnp.matmul(operator.astype(x.dtype), flat, precision=HIGHEST).reshape(x.shape)


def chebyshev(operator: Graph | Array, x: Array, num_taps: int) -> Array:
    """T_0 x, ..., T_{k-1} x of the scaled Laplacian, [k, v, ...], for every k >= 1.

    T_0 = x, T_1 = Lx, T_k = 2 L T_{k-1} - T_{k-2}. The official code of SCKR computes 2 L T_1 - T_0
    for every k > 2; up to its own three taps that is the same.

    >>> chebyshev(jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([[1.0], [5.0]]), 2).shape
    (2, 2, 1)
    """
    taps = [x]
    if num_taps > 1:
        taps.append(propagate(operator, x))
    while len(taps) < num_taps:
        taps.append(2 * propagate(operator, taps[-1]) - taps[-2])
    return jnp.stack(taps)


def kipf(graph: Graph, x: Array, self_edges: bool = True) -> Array:
    """D^-1/2 A D^-1/2 x by jraph's GraphConvolution (Kipf and Welling, 2017), x [v, ...].

    Weights are ignored; `self_edges` adds one to each vertex. Without them it is -L x.

    >>> x = kipf(undirected(2, np.array([[0, 1]])), jnp.array([[1.0], [5.0]]))
    >>> [round(value, 3) for value in x[:, 0].tolist()]
    [3.0, 3.0]
    """
    flat = x.reshape(len(x), -1)
    convolve = jraph.GraphConvolution(
        lambda nodes: nodes, add_self_edges=self_edges, symmetric_normalization=True
    )
    return jnp.asarray(convolve(graph._replace(nodes=flat)).nodes).reshape(x.shape)


def subgraph(graph: Graph, words: np.ndarray) -> Graph:
    """The graph of some vertices, int [m], renumbered 0 to m - 1, and the edges among them.

    >>> num_vertices(subgraph(undirected(3, np.array([[0, 1]])), np.array([0, 1])))
    2
    """
    place = np.full(num_vertices(graph), -1)
    place[words] = np.arange(len(words))
    senders, receivers = place[graph.senders], place[graph.receivers]
    kept = (senders >= 0) & (receivers >= 0)
    weights = np.asarray(graph.edges)[kept]
    return make_graph(len(words), senders[kept], receivers[kept], weights, weights.dtype)


def next_power(number: int) -> int:
    """The smallest power of two that is at least `number`.

    >>> next_power(5)
    8
    """
    return 1 << (max(number, 1) - 1).bit_length()


def batch_graphs(graphs: Sequence[Graph]) -> Graph:
    """Graphs of single documents as one, padded to powers of two so that few shapes occur.

    Padding belongs to further graphs; its edges weigh 0 and join the first padding vertex to
    itself, so nothing of it reaches a real vertex, and edges stay sorted.

    >>> graph = undirected(2, np.array([[0, 1]]))
    >>> num_vertices(batch_graphs([graph, graph]))
    8
    """
    batch = jraph.batch_np(graphs)
    sizes = num_vertices(batch) + 1, int(sum(batch.n_edge)) + 1, len(graphs) + 1
    return jraph.pad_with_graphs(batch, *map(next_power, sizes))


def hops(graph: Graph, words: np.ndarray, steps: int) -> np.ndarray:
    """Distance of every vertex from the nearest of `words`, int [v]; -1 beyond `steps`.

    >>> hops(undirected(3, np.array([[0, 1]])), np.array([0]), steps=2).tolist()
    [0, 1, -1]
    """
    distance = np.full(num_vertices(graph), -1)
    distance[words] = 0
    for step in range(1, steps + 1):
        reached = graph.receivers[distance[graph.senders] == step - 1]
        distance[reached[distance[reached] < 0]] = step
    return distance
