"""A snapshot of items that an encoder has yet to see."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jcmr.core.progress import make_progress
from jcmr.index.snapshot import Snapshot, make_snapshot


def embed_snapshot(
    encode: Callable[[Sequence[Any]], Any],
    items: Sequence[Any],
    ids: Sequence[Any] | np.ndarray,
    payloads: Sequence[Any] | None = None,
    metric: str = "cosine",
    encoder: str = "",
    batch_size: int = 256,
) -> Snapshot:
    """Encodes n items a batch at a time and makes a snapshot of them.

    Args:
      encode: items [b] -> vectors [b, d].
      items: what it takes.
      ids: as all others those of `make_snapshot`, which also says what it raises.
      payloads: see there.
      metric: see there.
      encoder: see there.
      batch_size: items a batch; the last one is smaller.
    """
    progress = make_progress("embedding", len(items))
    parts = []
    for start in range(0, len(items), batch_size):
        parts.append(np.asarray(encode(items[start : start + batch_size]), np.float32))
        progress(start + len(parts[-1]))
    vectors = np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
    return make_snapshot(ids, vectors, payloads, metric, encoder)
