"""A data set that lies on the devices: of each batch only the indices travel.

COCO's 123,000 images at 256 x 256 are 24 GB of bytes, which one accelerator holds; no decoding and
no transfer is then left of the input, and augmentation runs inside the step as always.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jcmr.core import parallel
from jcmr.core.types import Batch, RandomAccess
from jcmr.data.records import take

READ_AT_ONCE = 1024


class Rows:
    """Numbers 0 to n - 1 as examples: what a loader reads in place of the records."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        """Number of examples."""
        return self.size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The index itself."""
        return {"row": np.asarray(index, np.int32)}


def make_put(records: RandomAccess, mesh: Mesh, how: str) -> Callable[[Batch], Batch]:
    """Places all `records` on every device of `mesh` and builds `put(batch of Rows) -> batch`.

    `put` gives what `parallel.put_batch` gives for the same examples.

    Raises:
      ValueError: the run has several processes.
    """
    if jax.process_count() > 1:
        raise ValueError(
            "config.data.resident keeps the data of one process; set it to False for several."
        )
    starts = range(0, len(records), READ_AT_ONCE)
    read = [take(records, np.arange(s, min(s + READ_AT_ONCE, len(records)))) for s in starts]
    columns = {name: np.concatenate([part[name] for part in read]) for name in read[0]}
    placed = parallel.replicate(columns, mesh)
    split = NamedSharding(mesh, PartitionSpec(parallel.AXIS))
    pick = jax.jit(
        lambda columns, rows: {n: x[rows] for n, x in columns.items()}, out_shardings=split
    )
    return lambda batch: pick(placed, parallel.put_batch(batch, mesh, how)["row"])
