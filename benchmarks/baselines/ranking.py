"""Retrieval metrics as published code computes them: a sort and a loop for each query."""

import numpy as np


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


def mean_average_precision(scores: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> float:
    """Class mAP over whole rankings, from labels of rows [n] and columns [m]."""
    total = 0.0
    for row, label in zip(scores, rows):
        order = np.argsort(row)[::-1]
        hits, precision = 0, 0.0
        for place in range(len(order)):
            if columns[order[place]] == label:
                hits += 1
                precision += hits / (place + 1)
        total += precision / max(hits, 1)
    return total / len(scores)
