"""Where a token of a grid is, as sines."""

import numpy as np

EPS = 1e-6


def sine_positions(
    height: int, width: int, dim: int, normalise: bool = True, temperature: float = 10_000.0
) -> np.ndarray:
    """Sines and cosines of rows and columns (DETR, Carion et al., ECCV 2020).

    Rows and columns count from 1. The first half of the channels tells the row, the second the
    column; even channels are sines, odd ones cosines of the same rate.

    Args:
      height: rows of the grid.
      width: its columns.
      dim: channels, a multiple of 4.
      normalise: the last row and column are at 2 pi, whatever the size of the grid.
      temperature: ratio of the slowest to the fastest wave length, about.

    Returns:
      float64 [height, width, dim].

    >>> sine_positions(2, 3, 8).shape
    (2, 3, 8)
    """
    half = dim // 2
    rates = temperature ** (-2 * (np.arange(half) // 2) / half)

    def wave(size: int) -> np.ndarray:
        place = np.arange(1, size + 1, dtype=np.float64)
        if normalise:
            place = place / (size + EPS) * 2 * np.pi
        angles = place[:, None] * rates
        return np.where(np.arange(half) % 2, np.cos(angles), np.sin(angles))

    rows = np.broadcast_to(wave(height)[:, None], (height, width, half))
    columns = np.broadcast_to(wave(width)[None], (height, width, half))
    return np.concatenate([rows, columns], axis=-1)
