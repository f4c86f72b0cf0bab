"""Data parallelism: the only file that maps a step over devices.

One per-device body serves both mappers. Three rules keep it right under either of them: replicated
parameters are made `varying` before they are differentiated (under `shard_map` gradients would
otherwise arrive already summed), losses return sums and counts, and what leaves the step has been
reduced with `psum` or `pmean`.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jcmr.core.types import Array, Batch

AXIS = "data"
PROCESS_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SCHEDULERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
"""Variables of schedulers that JAX understands: processes of the run that this one belongs to."""


def join_processes() -> None:
    """Joins the other processes of a run, before anything asks for devices; alone it does nothing.

    They are told by `PROCESS_VARIABLES` ("host:port", their number, the place of this one), or
    found by JAX itself under Slurm, Open MPI, and on TPU pods.

    Raises:
      ValueError: some of the variables are set and others are not.
    """
    found = [os.environ.get(name, "") for name in PROCESS_VARIABLES]
    if all(found):
        address, number, place = found
        jax.distributed.initialize(address, int(number), int(place))
    elif any(found):
        missing = [name for name, value in zip(PROCESS_VARIABLES, found) if not value]
        raise ValueError(
            f"To start several processes set {', '.join(PROCESS_VARIABLES)} in each; "
            f"{', '.join(missing)} is missing."
        )
    elif any(int(os.environ.get(name) or 1) > 1 for name in SCHEDULERS) or (
        "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    ):
        jax.distributed.initialize()


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
        several = jax.process_count() > 1
        mapped = jax.pmap(
            between_raw(body) if several else body,
            axis_name=AXIS,
            in_axes=(None, 0),
            out_axes=None,  # pyright: ignore[reportArgumentType]
            devices=list(mesh.devices.flat),
            donate_argnums=donated,
        )
        return between_processes(mapped, mesh) if several else mapped
    if how == "shard_map":
        mapped = jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(),
        )
        return jax.jit(mapped, donate_argnums=donated)
    raise ValueError(f"parallel is 'pmap' or 'shard_map', not {how!r}.")


class RawKey(NamedTuple):
    """A key as the numbers that it holds: pmap does not take keys from one process to another."""

    data: Array


def raw(tree: Any) -> Any:
    """`tree` without typed keys."""

    def one(x: Array) -> Any:
        return RawKey(jax.random.key_data(x)) if is_key(x) else x

    return jax.tree.map(one, tree)


def typed(tree: Any) -> Any:
    """Undoes `raw`."""

    def one(x: Any) -> Any:
        return jax.random.wrap_key_data(x.data) if isinstance(x, RawKey) else x

    return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, RawKey))


def is_key(x: Array) -> bool:
    """Whether x holds random keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def between_raw(body: Callable[[Any, Batch], Any]) -> Callable[[Any, Batch], Any]:
    """`body` without typed keys in its arguments and results."""
    return lambda state, batch: raw(body(typed(state), batch))


def between_processes(mapped: Callable[[Any, Batch], Any], mesh: Mesh) -> Callable[..., Any]:
    """A pmapped function whose results are arrays of all processes, as those of `shard_map` are."""

    def run(state: Any, batch: Batch) -> Any:
        found = mapped(raw(state), batch)
        return typed(multihost_utils.host_local_array_to_global_array(found, mesh, PartitionSpec()))

    return run


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
        if how == "pmap":  # whose arguments are those of this process
            x = np.asarray(x).reshape(local, len(x) // local, *x.shape[1:])
            return jax.device_put(x, NamedSharding(mesh.local_mesh, PartitionSpec(AXIS)))
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(put, batch)


def host_part(rows: np.ndarray, mesh: Mesh) -> np.ndarray:
    """Those of a batch's `rows` that this host reads, where the devices of several share it."""
    if not mesh.is_multi_process:
        return rows
    return np.split(rows, jax.process_count())[jax.process_index()]


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Places `tree` on every device of `mesh`; every process has the same one."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place(x: Any) -> Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        if is_key(x):
            return jax.random.wrap_key_data(place(jax.random.key_data(x)))
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, tree)


def own_folder(folder: Path) -> Path:
    """Where this process writes what all of them know: `folder` for the first, else a new one."""
    return folder if jax.process_index() == 0 else Path(tempfile.mkdtemp(prefix="jcmr-"))


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
