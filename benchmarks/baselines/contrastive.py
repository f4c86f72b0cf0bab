"""The contrastive loss in torch, from the matrix of all similarities."""

import torch
from torch import Tensor
from torch.nn import functional as F


def loss(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of rows and of columns, summed; row i belongs to column i."""
    logits = scale * (x @ y.T)
    own = torch.arange(len(x), device=x.device)
    return F.cross_entropy(logits, own, reduction="sum") + F.cross_entropy(
        logits.T, own, reduction="sum"
    )
