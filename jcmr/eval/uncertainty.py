"""Does the uncertainty of an embedding mean something: does it follow ambiguity and error?"""

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

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
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


class Binned(NamedTuple):
    """Means of two values over b bins of equal size, ordered by the first."""

    uncertainty: np.ndarray
    """[b]."""
    value: np.ndarray
    """[b]."""
    error: np.ndarray
    """[b] standard error of the value's mean."""
    count: np.ndarray
    """[b] items."""


def bin_by_uncertainty(uncertainty: np.ndarray, value: np.ndarray, num_bins: int = 10) -> Binned:
    """Sorts n items by uncertainty into bins of n / b and averages `value` [n] in each.

    For a recall give 1.0 where a query's best match is found and 0.0 elsewhere. Bins of fewer than
    one item are left out.
    """
    order = np.argsort(uncertainty, kind="stable")
    bins = [b for b in np.array_split(order, num_bins) if len(b)]
    value = np.asarray(value, np.float64)
    return Binned(
        np.array([uncertainty[b].mean() for b in bins]),
        np.array([value[b].mean() for b in bins]),
        np.array([value[b].std() / np.sqrt(len(b)) for b in bins]),
        np.array([len(b) for b in bins]),
    )


def uncertainty_values(
    uncertainty: np.ndarray, num_matches: np.ndarray, ranks: np.ndarray
) -> dict[str, float]:
    """How uncertainty [n] goes along with ambiguity and with failure.

    Args:
      uncertainty: of n queries.
      num_matches: how many items match each; the vaguer a query, the more.
      ranks: of each query's best match, 0 = top.

    Returns:
      `mean` and `spread` of the uncertainty; `vs_matches`, its rank correlation with the number of
      matches; `vs_rank`, that with the rank.
    """
    return {
        "mean": float(np.mean(uncertainty)),
        "spread": float(np.std(uncertainty)),
        "vs_matches": spearman(uncertainty, num_matches),
        "vs_rank": spearman(uncertainty, ranks),
    }
