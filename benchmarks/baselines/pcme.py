"""PCME in torch: as published code is structured, and the best rewrite.

Both are written from the paper's formulas (Chun et al., CVPR 2021): the logit of two samples is
shift - scale * distance, the matching probability of a pair the mean of sigmoid(2 * logit) over its
samples, the loss minus the log likelihood of match and mismatch. The official structure holds the
differences of all samples of all pairs, and computes the loss in both directions although it is
symmetric.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.baselines.device import DEVICE


def signs(x: Tensor) -> Tensor:
    """+1 for pairs of equal index, -1 for others, [n, n, 1]."""
    return 2 * torch.eye(len(x), device=x.device)[:, :, None] - 1


def official_loss(x: Tensor, y: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Of samples x, y [n, k, d]; item i belongs to item i."""
    total = torch.zeros((), device=x.device)
    for a, b in ((x, y), (y, x)):
        difference = a[:, None, :, None, :] - b[None, :, None, :, :]
        distance = (difference.pow(2).sum(-1) + 1e-6).sqrt().flatten(2)
        logits = shift - scale * distance
        normaliser = torch.logsumexp(torch.stack([logits, -logits]), dim=0)
        log_share = torch.logsumexp(logits * signs(a) - normaliser, dim=2)
        total = total + (np.log(logits.shape[2]) - log_share).sum()
    return total


def rewritten_loss(x: Tensor, y: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The same by one matrix product, computed once."""
    n, k, d = x.shape
    a, b = x.reshape(-1, d), y.reshape(-1, d)
    squared = a.pow(2).sum(-1)[:, None] + b.pow(2).sum(-1) - 2 * a @ b.T
    logits = shift - scale * (squared.clamp_min(0) + 1e-6).sqrt()
    logits = logits.view(n, k, n, k) * signs(x)[:, None]
    log_share = torch.logsumexp(F.logsigmoid(2 * logits), dim=(1, 3))
    return 2 * (2 * np.log(k) - log_share).sum()


def ranks_of(scores: Tensor, match: np.ndarray) -> np.ndarray:
    """Rank of the best match of each row, by a sort of each and a look-up of each match."""
    order = torch.argsort(scores, dim=1, descending=True).cpu().numpy()
    found = []
    for row, own in zip(order, match):
        found.append(min(int(np.where(row == column)[0][0]) for column in np.flatnonzero(own)))
    return np.asarray(found)


def official_scores(x: np.ndarray, y: np.ndarray, shift: float, scale: float) -> Tensor:
    """Matching probabilities [n, m] in float64, the differences of one query at a time."""
    queries, items = (torch.tensor(z, dtype=torch.float64, device=DEVICE) for z in (x, y))
    rows = []
    for query in queries:
        difference = query[None, :, None, :] - items[:, None, :, :]
        distance = (difference.pow(2).sum(-1) + 1e-6).sqrt()
        rows.append(torch.sigmoid(2 * (shift - scale * distance)).mean((1, 2)))
    return torch.stack(rows)


@torch.no_grad()
def official_evaluation(
    x: np.ndarray,
    y: np.ndarray,
    shift: float,
    scale: float,
    match: np.ndarray,
    mode: str,
    every: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the best matches of rows and of columns, each direction scored anew.

    `mode` is "matching_prob", or "matmul": the sum of the products of all pairs of samples. Of both
    sides one query in `every` is searched for, the others are in the galleries only.
    """
    found = []
    for queries, items, own in ((x[::every], y, match[::every]), (y[::every], x, match.T[::every])):
        if mode == "matching_prob":
            scores = official_scores(queries, items, shift, scale)
        else:
            a, b = (torch.tensor(z, dtype=torch.float64, device=DEVICE) for z in (queries, items))
            scores = torch.zeros(len(a), len(b), dtype=torch.float64, device=DEVICE)
            for k in range(a.shape[1]):
                for l in range(b.shape[1]):
                    scores += a[:, k] @ b[:, l].T
        found.append(ranks_of(scores, own))
    return found[0], found[1]
