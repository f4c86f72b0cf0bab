"""The graph pattern loss in torch with all distances held at once, from the formulas of ours."""

import torch
from torch import Tensor

from jcmr.losses.graph_pattern import MARGINS, WEIGHTS


def loss(images: Tensor, texts: Tensor) -> Tensor:
    """Of unit representations [b, k, d] of matching items."""
    b, k, _ = images.shape
    distances = lambda x, y: 1 - torch.einsum("ikd,jld->ijkl", x, y)
    cross, among_images, among_texts = (
        distances(images, texts),
        distances(images, images),
        distances(texts, texts),
    )
    other = ~torch.eye(b, dtype=torch.bool, device=images.device)
    slots = torch.triu(torch.ones(k, k, dtype=torch.bool, device=images.device), 1)
    at = torch.arange(b, device=images.device)
    own = cross[at, at]
    mean_of_others = lambda x: (x.mean((2, 3)) * other).sum() / (b - 1)
    rank = mean_of_others(torch.relu(MARGINS.rank + own[:, None] - cross))
    rank = rank + mean_of_others(torch.relu(MARGINS.rank + own[None] - cross))
    apart = [torch.relu(MARGINS.apart - x)[other].sum() for x in (among_images, among_texts)]
    band = torch.zeros((), device=images.device)
    for x in (among_images, among_texts):
        d = x[at, at][:, slots]
        band = band + torch.relu(MARGINS.diverse - d).sum() + torch.relu(d - MARGINS.coherent).sum()
    edges = k * k
    return (
        WEIGHTS["pos"] * torch.relu(own - MARGINS.match).sum() / (b * edges)
        + WEIGHTS["rank"] * rank / b
        + WEIGHTS["intra"] * (apart[0] + apart[1]) / (2 * b * (b - 1) * edges)
        + WEIGHTS["div"] * band / (b * k * (k - 1))
        + WEIGHTS["pat"] * (among_images - among_texts).pow(2).sum() / (b * b * edges)
    )
