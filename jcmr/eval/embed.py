"""Every item of a gallery encoded once, on all devices."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jcmr.core import parallel
from jcmr.core.progress import Progress
from jcmr.core.types import Batch, Embedding, RandomAccess, Task, Variables
from jcmr.data.records import take

Prepare = Callable[[Batch], Batch]


@partial(jax.jit, static_argnames=("encode", "prepare", "mesh"))
def encode_batch(encode, prepare: Prepare, mesh: Mesh, variables: Variables, batch: Batch):
    """The embedding of a batch of stored items, whole on every device."""
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.lax.with_sharding_constraint(encode(variables, prepare(batch)), replicated)


def embed(
    task: Task,
    variables: Variables,
    items: RandomAccess,
    modality: str,
    batch_size: int,
    prepare: Prepare,
    mesh: Mesh,
) -> Embedding:
    """Encodes all items in batches of one shape, so that the tower is compiled once.

    Args:
      task: whose `encode[modality]` is used.
      variables: its variables, on the devices of `mesh`.
      items: n items; with `take(indices)` they are read a batch at a time.
      modality: one of `task.encode`.
      batch_size: items a batch, rounded up to a multiple of the number of devices.
      prepare: from stored items to inputs; runs on the device.
      mesh: devices that share a batch. Each host of several reads its own part of it.

    Returns:
      Numpy arrays that share the leading axis n.

    Raises:
      ValueError: there are no items.
    """
    num = len(items)
    if not num:
        raise ValueError(f"There is no {modality} to embed: the split's gallery is empty.")
    batch_size = -(-batch_size // mesh.size) * mesh.size
    progress = Progress(f"embedding {modality}", num)
    parts = []
    for start in range(0, num, batch_size):
        # The last batch is filled up with the last item.
        indices = np.minimum(np.arange(start, start + batch_size), num - 1)
        batch = take(items, parallel.host_part(indices, mesh))
        batch = parallel.put_batch(batch, mesh, "shard_map")
        parts.append(encode_batch(task.encode[modality], prepare, mesh, variables, batch))
        progress(min(start + batch_size, num))
    return jax.tree.map(lambda *xs: np.concatenate(xs)[:num], *jax.device_get(parts))
