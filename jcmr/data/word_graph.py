"""The graph of a vocabulary's words, made from the training texts."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from absl import logging

from jcmr.core.types import Source
from jcmr.data.glove import load_glove
from jcmr.data.options import unpack
from jcmr.data.text import SPECIAL
from jcmr.ops import graph


class GraphOptions(NamedTuple):
    """`config.model.graph`."""

    neighbours: int = 8
    """Edges from each word to its most similar ones, in either direction; 0 is none."""
    vectors: str = "ppmi"
    """Where similarity comes from: "ppmi", vectors learned from the training texts; "columns", the
    weights of a word in the training documents; or a text file of pre-trained vectors."""
    dim: int = 50
    """Of vectors that are learned."""
    cooccurrence: int = 0
    """Also joins words that this many training documents have in common; 0 joins none."""


class WordGraph(NamedTuple):
    """What a model takes of it."""

    words: graph.Graph
    """Edges of weight 1."""
    graph: graph.Graph
    """The same edges as scaled Laplacian."""
    idf: np.ndarray
    """[v], log((1 + n) / (1 + documents with the word)) + 1."""


def ppmi_vectors(weights: Any, dim: int) -> np.ndarray:
    """Word vectors learned from documents: PPMI of words in one document, and its SVD.

    Levy and Goldberg (2014): the factors of positive pointwise mutual information stand in for
    word2vec where no vectors are given. Words that share no document with another have 0.

    Args:
      weights: [n, v], sparse; what is not 0 occurs.
      dim: at most v - 1 are kept.

    Returns:
      float64 [v, dim].
    """
    occurs: Any = scipy.sparse.csr_matrix(weights).astype(bool).astype(np.float64)
    together = (occurs.T @ occurs).tolil()
    together.setdiag(0)
    together = together.tocoo()
    total = together.sum()
    frequency = np.asarray(together.sum(axis=1)).ravel()
    expected = frequency[together.row] * frequency[together.col]
    real = (together.data > 0) & (expected > 0)
    ppmi = np.zeros(len(together.data))
    ppmi[real] = np.maximum(np.log(together.data[real] * total / expected[real]), 0)
    num_words = occurs.shape[1]
    matrix: Any = scipy.sparse.csr_matrix((ppmi, (together.row, together.col)), 2 * (num_words,))
    dim = min(dim, num_words - 1)
    start = np.random.default_rng(0).standard_normal(num_words)
    u, s, _ = scipy.sparse.linalg.svds(matrix, k=dim, v0=start)
    vectors = u * np.sqrt(s)
    vectors[np.asarray(matrix.sum(axis=1)).ravel() == 0] = 0
    return vectors


def document_weights(texts: np.ndarray, num_words: int) -> Any:
    """Sparse weights [n, v] of word ids [n, t] (counts), or of the weights themselves [n, v]."""
    if np.issubdtype(texts.dtype, np.floating):
        texts = texts if texts.ndim == 2 else np.abs(texts).sum(axis=2)
        return scipy.sparse.csr_matrix(texts)
    ids = texts.reshape(len(texts), -1)
    row, column = np.repeat(np.arange(len(ids)), ids.shape[1]), ids.reshape(-1)
    kept = column >= len(SPECIAL)
    shape = len(ids), num_words
    return scipy.sparse.csr_matrix((np.ones(kept.sum()), (row[kept], column[kept])), shape)


def build(source: Source, cfg: Mapping[str, Any]) -> WordGraph:
    """The graph of a source's words from `source.train.text`, word ids or weights of words.

    Words without an edge are counted in a warning; they keep their own counts and nothing else.

    Raises:
      ValueError: an unknown option, pre-trained vectors for words without names, or training texts
        in which no word occurs.
    """
    options = unpack(GraphOptions, cfg, section="config.model.graph")
    texts: Any = getattr(source.train, "text")  # noqa: B009
    num_words = source.info["vocab_size"]
    weights = document_weights(texts, num_words)
    if not weights.nnz:
        raise ValueError(
            "The training texts hold no known word, so there is no graph of words: check the "
            "vocabulary and config.data.min_count."
        )
    pairs = [np.zeros((0, 2), int)]
    if options.neighbours:
        pairs.append(graph.knn_pairs(word_vectors(source, weights, options), options.neighbours))
    if options.cooccurrence:
        pairs.append(graph.cooccurrence_pairs(weights, options.cooccurrence))
    words = graph.undirected(num_words, np.concatenate(pairs))
    isolated = num_words - len(np.unique(words.receivers))
    if isolated:
        logging.warning(
            "%d of %d words have no neighbour in the graph of words; they are used as they are.",
            isolated,
            num_words,
        )
    documents = np.bincount(weights.indices, minlength=num_words)
    idf = np.log((1 + weights.shape[0]) / (1 + documents)) + 1
    return WordGraph(words, graph.scaled_laplacian(words), idf.astype(np.float32))


def word_vectors(source: Source, weights: Any, options: GraphOptions) -> np.ndarray:
    """Vectors [v, d] by which words are similar."""
    if options.vectors == "ppmi":
        return ppmi_vectors(weights, options.dim)
    if options.vectors == "columns":
        return weights.T.toarray()
    vocabulary = getattr(source, "vocabulary", {})
    if not vocabulary:
        raise ValueError(
            f"config.model.graph.vectors names {options.vectors}, but the words of this data have "
            f"no names to look up: use 'ppmi' or 'columns', or add 'words' to the file."
        )
    vectors, found = load_glove(options.vectors, vocabulary)
    logging.info("%d of %d words have a vector in %s", found.sum(), len(found), options.vectors)
    return vectors
