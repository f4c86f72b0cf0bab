"""Data parallelism: the only file that maps a step over devices.

One per-device body serves both mappers. Three rules keep it right under either of them: replicated
parameters are made `varying` before they are differentiated (under `shard_map` gradients would
otherwise arrive already summed), losses return sums and counts, and what leaves the step has been
reduced with `psum` or `pmean`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jcmr.core.types import Array, Batch

AXIS = "data"


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A one-dimensional mesh over `devices` (all of them when None)."""
    devices = jax.devices() if devices is None else list(devices)
    # jax.make_mesh defaults to Explicit axes, under which `x @ x.T` of a sharded x is an error.
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def data_parallel(
    step: Callable[..., Any], mesh: Mesh, how: str = "pmap", donate: bool = True
) -> Callable[[Any, Batch], Any]:
    """Maps `step(state, batch, axis) -> replicated outputs` over the devices of `mesh`.

    Args:
      step: the per-device body. Its outputs must be equal on all devices.
      mesh: from `make_mesh`.
      how: "pmap" or "shard_map"; equal in numbers.
      donate: lets the step reuse the buffers of `state`.

    Returns:
      A compiled function of `(state, batch)`, where batch comes from `put_batch`.
    """
    donated = (0,) if donate else ()

    def body(state: Any, batch: Batch) -> Any:
        return step(state, batch, AXIS)

    if how == "pmap":
        return jax.pmap(
            body,
            axis_name=AXIS,
            in_axes=(None, 0),
            out_axes=None,  # pyright: ignore[reportArgumentType]
            devices=list(mesh.devices.flat),
            donate_argnums=donated,
        )
    if how == "shard_map":
        mapped = jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(),
        )
        return jax.jit(mapped, donate_argnums=donated)
    raise ValueError(f"parallel is 'pmap' or 'shard_map', not {how!r}.")


def put_batch(batch: Batch, mesh: Mesh, how: str = "pmap") -> Batch:
    """Places this host's `batch` on its devices, split along the leading axis.

    Raises:
      ValueError: the batch size is not a multiple of the number of local devices.
    """
    local = len(mesh.local_devices)
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def put(x: np.ndarray) -> Array:
        if len(x) % local:
            raise ValueError(
                f"A batch of {len(x)} cannot be split over {local} devices; choose "
                f"config.train.batch_size as a multiple of the number of devices."
            )
        if how == "pmap":
            x = x.reshape(local, len(x) // local, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(put, batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Places `tree` on every device of `mesh`."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def varying(tree: Any, axis: str | None) -> Any:
    """Marks replicated values as different per device, so that gradients stay per device."""
    if axis is None:
        return tree

    return jax.tree.map(lambda x: lax.pcast(x, axis, to="varying"), tree)


def all_gather(tree: Any, axis: str | None) -> Any:
    """Rows of all devices, [b, ...] -> [devices * b, ...], in device order; differentiable."""
    if axis is None:
        return tree
    return jax.tree.map(lambda x: lax.all_gather(x, axis, tiled=True), tree)


def psum(tree: Any, axis: str | None) -> Any:
    """Sum over devices."""
    return tree if axis is None else lax.psum(tree, axis)


def pmean(tree: Any, axis: str | None) -> Any:
    """Mean over devices."""
    return tree if axis is None else lax.pmean(tree, axis)


def first_row(num_rows: int, axis: str | None) -> Array | int:
    """Global index of this device's first row when each device holds `num_rows`."""
    return 0 if axis is None else lax.axis_index(axis) * num_rows


def example_keys(key: Array, num_rows: int, axis: str | None) -> Array:
    """One key per example, [num_rows], the same for an example whatever the number of devices."""
    rows = first_row(num_rows, axis) + jnp.arange(num_rows)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
