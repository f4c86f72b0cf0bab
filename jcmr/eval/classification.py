"""What a classifier beside a retrieval system is worth: embeddings with `logits`."""

import numpy as np

from jcmr.core.types import Embedding, RetrievalSplit


def logits_of(embedding: Embedding) -> np.ndarray | None:
    """The logits [n, c] of embedded items; None for systems without a classifier."""
    logits = getattr(embedding, "logits", None)
    return None if logits is None else np.asarray(logits)


def labels_of(split: RetrievalSplit, side: int) -> np.ndarray | None:
    """Class labels [n] of a gallery, from the relation `class`; None where there are none."""
    relation = split.relevance.get("class")
    if relation is None:
        return None
    labels = np.asarray(relation.columns if side else relation.rows)
    return labels if labels.ndim == 1 else None


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of items [n] whose largest logit [n, c] is that of their class."""
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def mean_by_class(values: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Label -> mean of values [n] over the items of that class."""
    return {int(c): float(values[labels == c].mean()) for c in np.unique(labels)}
