"""Checkpoints: the only file that knows Orbax.

A checkpoint holds the state, the loader's position, the configuration and the metrics of its step.
It is written in the background, becomes visible only when complete, and can be restored on another
number of devices.
"""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import checkpoint_managers

from jcmr.core.types import Variables
from jcmr.train.state import TrainState


class Checkpoints:
    """The checkpoints of one run: the last ones, and the best by `best_metric`."""

    def __init__(self, folder: str | Path, keep: int = 2, best_metric: str = ""):
        """Opens (or creates) `folder`; keeps the last `keep` steps and the best one."""
        self.folder = Path(folder).absolute()
        self.best_metric = best_metric
        policies: list[Any] = [checkpoint_managers.LatestN(n=keep)]
        if best_metric:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics[best_metric],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=("state", "loader", "config"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                best_fn=(lambda metrics: metrics[best_metric]) if best_metric else None,
                create=True,
            ),
        )

    def save(
        self,
        state: TrainState,
        loader: Mapping[str, Any],
        config: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to write the state of step `state.step`; returns before it is on disk.

        Raises:
          OSError: the disk is full; names the last good checkpoint.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        metrics = metrics if metrics and self.best_metric in metrics else None
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    loader=ocp.args.JsonSave(dict(loader)),
                    config=ocp.args.JsonSave(dict(config)),
                ),
                metrics=dict(metrics) if metrics else None,
                force=True,
            )
        except OSError as error:
            raise self._explain(error, step) from error

    def wait(self) -> None:
        """Returns when everything is on disk; raises what went wrong in the background."""
        try:
            self._manager.wait_until_finished()
        except OSError as error:
            raise self._explain(error, None) from error

    def close(self) -> None:
        """Finishes pending writes and releases the folder."""
        self.wait()
        self._manager.close()

    def _explain(self, error: OSError, step: int | None) -> OSError:
        what = "A checkpoint" if step is None else f"The checkpoint of step {step}"
        why = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        last = self._manager.latest_step()
        good = "There is no earlier one." if last is None else f"The last good one is step {last}."
        return OSError(error.errno, f"{what} could not be written to {self.folder}: {why}. {good}")

    def latest(self) -> int | None:
        """Step of the last complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Step of the best complete checkpoint by the best metric, else the latest."""
        if not self.best_metric:
            return self.latest()
        metrics = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        scored = [(values[self.best_metric], step) for step, values in metrics.items() if values]
        return max(scored)[1] if scored else self.latest()

    def reached_preemption(self, step: int) -> bool:
        """Whether the cluster has announced that this run is about to be stopped."""
        return self._manager.reached_preemption(step)

    def restore(self, step: int, like: TrainState, mesh: Mesh) -> tuple[TrainState, dict[str, Any]]:
        """(state, loader position) of `step`, placed on the devices of `mesh`.

        `like` has the structure, shapes and dtypes that are expected (arrays or their shapes).

        Raises:
          ValueError: the checkpoint is damaged or was made by another model.
        """
        sharding = NamedSharding(mesh, PartitionSpec())
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
        )
        args = ocp.args.StandardRestore(target)
        restored = self._restore(step, state=args, loader=ocp.args.JsonRestore())
        return restored["state"], restored["loader"]

    def restore_variables(self, step: int, like: Variables, mesh: Mesh) -> Variables:
        """The variables of `step`: what it takes to use a model, without the optimizer's.

        Raises:
          ValueError: the checkpoint is damaged or was made by another model.
        """
        mutables = dict(like)
        item = {"params": mutables.pop("params"), "mutables": mutables}
        sharding = NamedSharding(mesh, PartitionSpec())
        item = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), item
        )
        places = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item, restore_args=places, partial_restore=True)
        state = self._restore(step, state=args)["state"]
        return {"params": state["params"], **state["mutables"]}

    def shapes(self, step: int) -> Variables:
        """Shapes and dtypes of the variables of `step`, read without a model.

        Raises:
          ValueError: the checkpoint is damaged.
        """
        try:
            with ocp.PyTreeCheckpointer() as reader:
                stored: Any = reader.metadata(self.folder / str(step) / "state")
            tree = stored.item_metadata.tree
            found = {"params": tree["params"], **(tree.get("mutables") or {})}
        except Exception as error:
            raise ValueError(
                f"The checkpoint {self.folder / str(step)} is damaged "
                f"({str(error).splitlines()[0][:200]})."
            ) from error
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), found)

    def config(self, step: int) -> dict[str, Any]:
        """The configuration that `step` was saved with; read alone it costs nothing.

        Raises:
          ValueError: the checkpoint is damaged.
        """
        return self._restore(step, config=ocp.args.JsonRestore())["config"]

    def restore_arrays(self, step: int) -> dict[str, np.ndarray]:
        """Every array of the state of `step` by its path, whatever model it belongs to."""
        # Orbax warns of arrays whose place it has to guess, so it is told one.
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        with ocp.PyTreeCheckpointer() as reader:
            stored: Any = reader.metadata(self.folder / str(step) / "state")
        tree = stored.item_metadata.tree
        places = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=place), tree)
        restored = self._restore(step, state=ocp.args.PyTreeRestore(restore_args=places))
        leaves = jax.tree_util.tree_leaves_with_path(restored["state"])

        def numbers(x: Any) -> np.ndarray:
            return np.asarray(
                jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
            )

        return {jax.tree_util.keystr(path): numbers(x) for path, x in leaves}

    def _restore(self, step: int, **items: Any) -> Any:
        others = [s for s in self._manager.all_steps() if s != step]
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            hint = f"resume from step {max(others)}" if others else "start again"
            raise ValueError(
                f"The checkpoint {self.folder / str(step)} cannot be restored: it is damaged or "
                f"belongs to another model ({str(error).splitlines()[0][:200]}). Check the config, "
                f"or delete that folder to {hint}."
            ) from error
