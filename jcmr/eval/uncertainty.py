"""Does the uncertainty of an embedding mean something: does it follow ambiguity and error?"""

import numpy as np

from jcmr.core.types import Embedding


def uncertainty_of(embedding: Embedding) -> np.ndarray | None:
    """Mean log variance of each item, [n], larger = less certain; None for systems of points."""
    log_var = getattr(embedding, "log_var", None)
    if log_var is None or np.ptp(log_var) == 0:
        return None
    return np.asarray(log_var, np.float64).mean(axis=-1)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation of two [n], -1 to 1, ties averaged; 0 where either is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    from scipy.stats import rankdata  # takes as long to import as JAX

    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def binned(x: np.ndarray, y: np.ndarray, num_bins: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Mean x [b] and mean y [b] of equally filled bins of x [n], ordered by x; b <= n."""
    groups = np.array_split(np.argsort(x, kind="stable"), min(num_bins, len(x)))
    return np.asarray([x[g].mean() for g in groups]), np.asarray([y[g].mean() for g in groups])
