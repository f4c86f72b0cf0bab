"""From ranks to the numbers that papers print: arrays of one value per query in, floats out.

Recalls and PMRP are in percent, as in the papers on COCO and Flickr; hits, precisions, R-Precision
and average precisions are fractions. Ranks count from 0 (the top) and come from `ops.ranks`, where
ties are pessimistic.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Values = dict[str, float]


def recall(ranks: np.ndarray, k: int) -> float:
    """R@k in percent: queries whose best match [n] is among the first k.

    >>> recall(np.array([0, 3, 7, 1]), k=5)
    75.0
    """
    return 100 * hit_rate(ranks, k)


def hit_rate(ranks: np.ndarray, k: int) -> float:
    """Share of queries whose best match [n] is among the first k; hit@1: the top one matches.

    >>> hit_rate(np.array([0, 3, 7, 1]), k=1)
    0.25
    """
    return float(np.mean(np.asarray(ranks) < k))


def median_rank(ranks: np.ndarray) -> float:
    """floor(median) + 1 of ranks [n], as in the official code of VSE++ and its successors.

    >>> median_rank(np.array([0, 3, 7]))
    4.0
    """
    return float(np.floor(np.median(ranks)) + 1)


def mean_rank(ranks: np.ndarray) -> float:
    """Mean of ranks [n], counted from 1.

    >>> mean_rank(np.array([0, 3, 6]))
    4.0
    """
    return float(np.mean(ranks) + 1)


def recall_values(ranks: np.ndarray, ks: Sequence[int]) -> Values:
    """`r@k`, `medr` and `meanr` of the ranks [n] of best matches.

    >>> recall_values(np.array([0, 3, 6]), ks=(1,))['medr']
    4.0
    """
    values = {f"r@{k}": recall(ranks, k) for k in ks}
    return values | {"medr": median_rank(ranks), "meanr": mean_rank(ranks)}


def hit_values(ranks: np.ndarray, ks: Sequence[int]) -> Values:
    """`hit@k` of the ranks [n] of best matches.

    >>> hit_values(np.array([0, 3]), ks=(1, 5))
    {'hit@1': 0.5, 'hit@5': 1.0}
    """
    return {f"hit@{k}": hit_rate(ranks, k) for k in ks}


def rsum(*directions: Mapping[str, float]) -> float:
    """Sum of all recalls `r@k` of one direction or several; 600 is perfect for k = 1, 5, 10.

    >>> rsum({'r@1': 50.0, 'medr': 2.0}, {'r@1': 25.0})
    75.0
    """
    return sum(v for values in directions for name, v in values.items() if name.startswith("r@"))


def pmrp(r_precisions: Sequence[np.ndarray]) -> float:
    """Plausible-match R-Precision in percent: mean over zeta of the mean over queries.

    With zeta = 0, 1, 2 it is PMRP as in PCME (Chun et al., CVPR 2021). The package eccv_caption
    gives the same name to zeta = 2 alone, about 1.6 times as much; here that is `eccv_pmrp`.

    Args:
      r_precisions: for each zeta, [n] of the queries that have a match.

    >>> pmrp([np.array([1.0, 0.0]), np.array([0.5, 0.5]), np.array([1.0, 1.0])]).__round__(2)
    66.67
    """
    return 100 * float(np.mean([np.mean(values) for values in r_precisions]))


def mean_over_folds(
    measure: Callable[[np.ndarray], Values], folds: np.ndarray, counts: np.ndarray
) -> Values:
    """Mean over folds of what `measure` says of the queries of each, given as indices.

    Args:
      measure: indices of queries -> values.
      folds: int [n], the fold of each query, -1 if it takes no part.
      counts: bool [n], False for queries without a match, which are left out.

    Returns:
      Empty if no query is left.

    >>> folds, matched = np.array([0, 0, 1]), np.array([True, True, True])
    >>> mean_over_folds(lambda q: {'queries': len(q)}, folds, matched)
    {'queries': 1.5}
    """
    taken = np.asarray(counts) & (folds >= 0)
    each = [measure(np.flatnonzero(taken & (folds == fold))) for fold in np.unique(folds[taken])]
    if not each:
        return {}
    return {name: float(np.mean([values[name] for values in each])) for name in each[0]}


def chance_map(num_matches: np.ndarray, num_ranked: np.ndarray) -> np.ndarray:
    """Expected average precision of a ranking in random order, [n].

    Position k holds a match with probability R / m, and then (k - 1)(R - 1) / (m - 1) more are
    expected before it; the precisions add up to H_m / m * (1 - a) + a with a = (R - 1) / (m - 1).

    Args:
      num_matches: R of each query, [n], at least 1.
      num_ranked: m, how many items are ranked for each, [n].

    >>> chance_map(np.array([1]), np.array([2])).tolist()  # first or second, equally likely
    [0.75]
    """
    harmonic = np.cumsum(1.0 / np.arange(1, np.max(num_ranked) + 1))[num_ranked - 1]
    others = (num_matches - 1) / np.maximum(num_ranked - 1, 1)
    return harmonic / num_ranked * (1 - others) + others


def bootstrap_interval(
    values: np.ndarray, share: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """A mean over queries and the ends of its interval: (mean, low, high).

    The percentile bootstrap (Efron, 1979): means of queries drawn again with replacement.

    Args:
      values: [n], one a query.
      share: of the means that lie between the ends, 0 to 1.
      draws: how many means.
      seed: of the draws.

    >>> bootstrap_interval(np.ones(10))
    (1.0, 1.0, 1.0)
    """
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(values.mean()), float(low), float(high)
