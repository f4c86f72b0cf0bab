"""IMRAM scoring as published code is structured: a loop over captions, attended vectors, gates.

For each caption its words are repeated for all images; each step makes the attended vectors of all
query fragments, concatenates them with the memory, and gates the result, after the last step too.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def unit(x: Tensor, dim: int) -> Tensor:
    """X / (|x| + 1e-8)."""
    return x / (x.pow(2).sum(dim=dim, keepdim=True).sqrt() + 1e-8)


def attend(query: Tensor, context: Tensor, smooth: float) -> Tensor:
    """Attended vectors [n, q, d] of query [n, q, d] in context [n, c, d]."""
    logits = torch.bmm(context, query.transpose(1, 2))
    logits = unit(F.leaky_relu(logits, 0.1), 2)
    weights = torch.softmax(logits.transpose(1, 2).contiguous() * smooth, dim=2)
    return torch.bmm(weights, context)


def gated(memory: Tensor, attended: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """The memory of the next step."""
    both = torch.cat([memory, attended], dim=2)
    new = torch.tanh(F.linear(both, weights["linear"], weights["linear_bias"]))
    kept = torch.sigmoid(F.linear(both, weights["gate"], weights["gate_bias"]))
    return kept * memory + (1 - kept) * new


@torch.no_grad()
def score(
    images: Tensor,
    captions: Sequence[Tensor],
    weights: Mapping[str, Mapping[str, Tensor]],
    steps: int,
    smooth: float,
) -> Tensor:
    """Scores [n, m] of images [n, r, d] with m captions [t, d]; directions are those of weights."""
    columns = []
    for words in captions:
        repeated = words.unsqueeze(0).repeat(len(images), 1, 1)
        total = torch.zeros(len(images))
        for direction, gate in weights.items():
            query, context = (repeated, images) if direction == "t2i" else (images, repeated)
            memory = query
            for _ in range(steps):
                attended = attend(memory, context, smooth)
                total = total + F.cosine_similarity(query, attended, dim=2).mean(dim=1)
                memory = gated(memory, attended, gate)
        columns.append(total)
    return torch.stack(columns, dim=1)
