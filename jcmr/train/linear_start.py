"""A closed-form start for small data: towers whose first embeddings are those of linear CCA.

On a few hundred images a neural tower that starts from noise stays behind regularised canonical
correlation analysis; one that starts there can only be refined.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from jcmr.core.types import RandomAccess


class LinearStart(NamedTuple):
    """Both towers as linear maps: mean region -> embedding, weighted words -> embedding."""

    image_kernel: np.ndarray
    """[r, d]."""
    image_bias: np.ndarray
    """[d]."""
    word_vectors: np.ndarray
    """[v, d]."""
    word_weights: np.ndarray
    """[v], inverse document frequencies; a text's vector is the weighted sum of its words' over the
    norm of their weights."""
    text_bias: np.ndarray
    """[d]."""


def cca(x: np.ndarray, y: np.ndarray, dim: int, reg_x: float, reg_y: float):
    """Regularised canonical correlation analysis of centred rows.

    Args:
      x: [n, p], mean 0.
      y: [n, q], mean 0.
      dim: directions to keep.
      reg_x: ridge on the covariance of x, relative to its mean variance.
      reg_y: the same of y.

    Returns:
      Projections [p, dim] and [q, dim] and the canonical correlations [dim], largest first.
    """

    def factor(z: np.ndarray, reg: float) -> np.ndarray:
        covariance = z.T @ z / len(z)
        covariance[np.diag_indices(len(covariance))] += reg * np.trace(covariance) / len(covariance)
        return scipy.linalg.cholesky(covariance, lower=True)

    left, right = factor(x, reg_x), factor(y, reg_y)
    cross = scipy.linalg.solve_triangular(left, x.T @ y / len(x), lower=True)
    cross = scipy.linalg.solve_triangular(right, cross.T, lower=True).T
    u, s, vt = np.linalg.svd(cross, full_matrices=False)
    a = scipy.linalg.solve_triangular(left.T, u[:, :dim])
    return a, scipy.linalg.solve_triangular(right.T, vt[:dim].T), s[:dim]


def count_words(text: np.ndarray, vocab_size: int) -> Any:
    """Word counts of texts [n, t] of ids, sparse [n, v]; padding, start and end do not count."""
    row = np.repeat(np.arange(len(text)), text.shape[1])
    column = text.reshape(-1)
    kept = column > 2
    ones = np.ones(kept.sum())
    shape = (len(text), vocab_size)
    return scipy.sparse.csr_matrix((ones, (row[kept], column[kept])), shape)


def unit_rows(x: Any) -> Any:
    """Rows of a sparse matrix at unit length; empty ones stay."""
    norm = np.sqrt(np.asarray(x.multiply(x).sum(axis=1)).ravel())
    return scipy.sparse.diags(1 / np.where(norm > 0, norm, 1)) @ x


def read_all(records: RandomAccess) -> Mapping[str, np.ndarray]:
    """All training examples, one array a key."""
    vectorized = getattr(records, "take", None)
    if vectorized is not None:
        return vectorized(np.arange(len(records)))
    examples = [records[i] for i in range(len(records))]
    return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


def fit(records: RandomAccess, vocab_size: int, dim: int, cfg: Mapping[str, Any]) -> LinearStart:
    """Fits CCA between mean regions and the latent topics (LSA of tf-idf) of captions.

    Args:
      records: training examples with "regions" [r, p], "text" [t] or [c, t] and "id" of the image.
      vocab_size: v.
      dim: d, width of the embedding.
      cfg: `topics` of LSA, `reg_image` and `reg_text` of CCA.

    Raises:
      ValueError: the examples hold no regions, or they, their width or the topics are too few for
        so many dimensions.
    """
    data = read_all(records)
    if "regions" not in data:
        raise ValueError(
            "config.train.init_from = 'cca' needs frozen features ('regions'): use the source "
            "precomp, or leave init_from empty."
        )
    image = data["regions"].mean(axis=1).astype(np.float64)
    text = data["text"].reshape(len(image), -1, data["text"].shape[-1])
    image = np.repeat(image, text.shape[1], axis=0)
    owner = np.repeat(data["id"], text.shape[1])
    counts = count_words(text.reshape(len(image), -1), vocab_size)
    _, document = np.unique(owner, return_inverse=True)
    grouping = scipy.sparse.csr_matrix((np.ones(len(owner)), (document, np.arange(len(owner)))))
    documents: Any = grouping @ counts
    num_documents = int(documents.shape[0])
    num_words = int((np.asarray(counts.sum(axis=0)) > 0).sum())
    if min(num_documents, num_words) <= cfg["topics"]:
        raise ValueError(
            f"{num_documents} images and {num_words} words are too few for {cfg['topics']} "
            f"topics: lower config.train.cca.topics."
        )
    if min(cfg["topics"], image.shape[1]) < dim:
        raise ValueError(
            f"CCA of {cfg['topics']} topics and features of width {image.shape[1]} has no {dim} "
            f"dimensions: lower config.model.embed_dim, or raise config.train.cca.topics."
        )
    idf = np.log((1 + num_documents) / (1 + (documents > 0).sum(axis=0))) + 1
    idf = np.where(np.asarray(counts.sum(axis=0)) > 0, np.asarray(idf), 0.0).ravel()
    documents.data = 1 + np.log(documents.data)
    weighted: Any = unit_rows(documents @ scipy.sparse.diags(idf))
    start = np.random.default_rng(0).standard_normal(min(weighted.shape))
    topics: Any = scipy.sparse.linalg.svds(weighted, k=cfg["topics"], v0=start)[2]
    captions = unit_rows(counts @ scipy.sparse.diags(idf)) @ topics.T
    mean_x, mean_y = image.mean(axis=0), captions.mean(axis=0)
    a, b, correlation = cca(
        image - mean_x, captions - mean_y, dim, cfg["reg_image"], cfg["reg_text"]
    )
    a, b = a * correlation, b * correlation
    return LinearStart(a, -mean_x @ a, topics.T @ b, idf, -mean_y @ b)
