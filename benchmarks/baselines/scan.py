"""SCAN's text-to-image score as published code is structured: captions in a loop, attended vectors.

Lee et al., ECCV 2018: words attend to regions, clipped and normalised over words, softmax over
regions; the score is the mean cosine of a word with what it attends to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.baselines.imram import attend


@torch.no_grad()
def score(images: Tensor, captions: Sequence[Tensor], smooth: float) -> Tensor:
    """Scores [n, m] of images [n, r, d] with m captions [t, d]."""
    columns = []
    for words in captions:
        repeated = words.unsqueeze(0).repeat(len(images), 1, 1)
        attended = attend(repeated, images, smooth)
        columns.append(F.cosine_similarity(repeated, attended, dim=2).mean(dim=1))
    return torch.stack(columns, dim=1)
