"""Does the uncertainty of an embedding mean something: does it follow ambiguity and error?"""

import numpy as np

from jcmr.core.types import Embedding


def uncertainty_of(embedding: Embedding) -> np.ndarray | None:
    """Mean log variance of each item, [n], larger = less certain; None for systems of points."""
    log_var = getattr(embedding, "log_var", None)
    if log_var is None or np.ptp(log_var) == 0:
        return None
    return np.asarray(log_var, np.float64).mean(axis=-1)


def average_ranks(x: np.ndarray) -> np.ndarray:
    """Ranks of x [n] from 1, equal values sharing their mean; scipy.stats would take as long to
    import as JAX.
    """
    _, group, size = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(size) - (size - 1) / 2)[group]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation of two [n], -1 to 1, ties averaged; 0 where either is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(average_ranks(x), average_ranks(y))[0, 1])


def binned(x: np.ndarray, y: np.ndarray, num_bins: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Mean x [b] and mean y [b] of equally filled bins of x [n], ordered by x; b <= n."""
    groups = np.array_split(np.argsort(x, kind="stable"), min(num_bins, len(x)))
    return np.asarray([x[g].mean() for g in groups]), np.asarray([y[g].mean() for g in groups])
