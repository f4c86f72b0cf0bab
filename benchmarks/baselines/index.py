"""Exact search as others do it on CPU: FAISS IndexFlatIP, and torch's matmul and topk."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from jcmr.index import ann

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
SCORES = 1 << 26
"""Scores that torch holds at a time: a quarter of a gigabyte."""


def make_faiss(vectors: np.ndarray) -> Search:
    """IndexFlatIP."""
    return ann.make_search(vectors, "flat")


def make_torch(vectors: np.ndarray) -> Search:
    """Matmul and topk over chunks of rows, and topk over what the chunks gave."""
    rows = torch.from_numpy(vectors)

    @torch.no_grad()
    def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        x = torch.from_numpy(queries)
        size = max(SCORES // len(x), k)
        parts: list[Any] = []
        for start in range(0, len(rows), size):
            top, index = (x @ rows[start : start + size].T).topk(min(k, len(rows) - start))
            parts.append((top, index + start))
        scores, found = (torch.cat(part, dim=1) for part in zip(*parts))
        top, place = scores.topk(k)
        return top.numpy(), found.gather(1, place).numpy()

    return search
