"""From ranks to the numbers of the papers: numpy in, dict of floats out.

Recalls and medians are what COCO and Flickr papers print (in percent there); R-Precision, mAP@R and
hits are fractions.
"""

from collections.abc import Mapping, Sequence

import numpy as np


def recall_metrics(ranks: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """`r@k` in percent, `medr` and `meanr` (1 = top) of the ranks [n] of best matches, 0 = top.

    The median is floor(median of 0-based ranks) + 1, as in the official code of VSE++ and PCME.
    """
    values = {f"r@{k}": 100.0 * float(np.mean(ranks < k)) for k in ks}
    values["medr"] = float(np.floor(np.median(ranks)) + 1)
    values["meanr"] = float(np.mean(ranks) + 1)
    return values


def rsum(*directions: Mapping[str, float], ks: Sequence[int] = (1, 5, 10)) -> float:
    """Sum of the recalls of all directions."""
    return sum(values[f"r@{k}"] for values in directions for k in ks)


def mean_over_folds(
    ranks: np.ndarray, folds: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """`recall_metrics` of each fold's queries, averaged over folds."""
    each = [recall_metrics(ranks[folds == fold], ks) for fold in np.unique(folds)]
    return {name: float(np.mean([values[name] for values in each])) for name in each[0]}


def ranking_metrics(
    ranking: Mapping[str, np.ndarray], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Means over the queries that have a match: `hit@k`, `p@k`, `r_precision`, `map@r`, `map`.

    `oracle_r@1` is what a perfect matcher would reach as R@1 when only one of a query's matches
    counts: the mean of 1 / matches.
    """
    some = ranking["num_matches"] > 0
    if not some.any():
        return {}
    first = ranking["first_hit"][some]
    values = {f"hit@{k}": float(np.mean(first < k)) for k in ks}
    values |= {f"p@{k}": float(p) for k, p in zip(ks, ranking["precision"][some].mean(axis=0))}
    values["r_precision"] = float(np.mean(ranking["r_precision"][some]))
    values["map@r"] = float(np.mean(ranking["map_at_r"][some]))
    values["map"] = float(np.mean(ranking["average_precision"][some]))
    values["oracle_r@1"] = float(np.mean(1 / ranking["num_matches"][some]))
    return values


def pmrp(r_precisions: Sequence[np.ndarray]) -> float:
    """Plausible-match R-Precision in percent: the mean over queries and over zeta = 0, 1, 2.

    PCME (Chun et al. 2021). The package eccv_caption gives the same name to zeta = 2 alone; here
    that is called `eccv_pmrp`.
    """
    return 100.0 * float(np.mean([np.mean(values) for values in r_precisions]))
