"""Retrieval metrics as published code computes them: a sort and a loop for each query.

And class mAP without loops, as numpy does it best.
"""

import numpy as np
from scipy.spatial.distance import cdist


def metrics(scores: np.ndarray, match: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rank of the best match, R-Precision, mAP@R) of each row of scores [n, m]."""
    found = []
    for row, own in zip(scores, match):
        order = np.argsort(row)[::-1]
        matches = np.flatnonzero(own)
        rank = len(row)
        for column in matches:
            rank = min(rank, int(np.where(order == column)[0][0]))
        number, hits, precision = len(matches), 0, 0.0
        for place, column in enumerate(order[:number]):
            if own[column]:
                hits += 1
                precision += hits / (place + 1)
        found.append((rank, hits / max(number, 1), precision / max(number, 1)))
    ranks, r_precision, map_at_r = zip(*found)
    return np.asarray(ranks), np.asarray(r_precision), np.asarray(map_at_r)


def official_map(x: np.ndarray, y: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> float:
    """Class mAP over whole rankings by cosine, from labels of rows [n] and columns [m].

    As the code of the center loss is structured: SciPy's distances, a sort of each query, and a
    loop over all of its ranking.
    """
    order = cdist(x, y, "cosine").argsort()
    found = []
    for i in range(len(x)):
        ranking, hits, precision = order[i], 0.0, 0.0
        for j in range(len(ranking)):
            if rows[i] == columns[ranking[j]]:
                hits += 1
                precision += hits / (j + 1)
        found.append(precision / hits if hits else 0.0)
    return float(np.mean(found))


def sorted_map(x: np.ndarray, y: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> float:
    """The same without a loop over ranks: a product, a sort and a prefix sum for all queries."""
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    hits = columns[np.argsort(-(x @ y.T), axis=1)] == rows[:, None]
    precision = np.cumsum(hits, axis=1) / np.arange(1, len(y) + 1)
    return float(((precision * hits).sum(1) / np.maximum(hits.sum(1), 1)).mean())
