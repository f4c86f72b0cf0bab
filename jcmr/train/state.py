"""The state of a run and one training step."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from flax import struct
from jax import lax
from jax import numpy as jnp

from jcmr.core import parallel
from jcmr.core.types import Array, Batch, Task, Terms, Variables

Augment = Callable[[Batch, Array, str | None], Batch]


class TrainState(struct.PyTreeNode):
    """All that a run needs to go on: nothing else influences the next step but its batch."""

    step: Array
    params: Any
    mutables: Mapping[str, Any]
    opt_state: Any
    key: Array

    @property
    def variables(self) -> Variables:
        """What the model's functions take."""
        return {"params": self.params, **self.mutables}


def init_state(variables: Variables, optimizer: optax.GradientTransformation, key: Array):
    """The state before the first step of a run that starts from `variables`."""
    mutables = dict(variables)
    params = mutables.pop("params")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        mutables=mutables,
        opt_state=optimizer.init(params),
        key=key,
    )


def ratio(total: Array, count: Array) -> Array:
    """The quotient, and 0 where nothing was counted."""
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0.0)


def objective(terms: Terms, axis: str | None) -> Array:
    """This device's share of sum over terms of weight * sum / count, counts over all devices."""
    shares = [
        term.weight * ratio(jnp.asarray(term.sum, jnp.float32), count)
        for term in terms.values()
        if term.weight
        for count in [parallel.psum(jnp.asarray(term.count, jnp.float32), axis)]
    ]
    return sum(shares, start=jnp.zeros(()))


Gradient = Callable[[Any, Any, Batch, Array, str | None], tuple[tuple[Any, dict], Any]]
"""(params, mutables, batch, key, axis) -> ((this device's gradient, values to log), mutables)."""


def make_gradient(task: Task, frozen: Callable[[Any], Any]) -> Gradient:
    """The gradient of a batch; parameters that `frozen(params)` marks have none and cost none."""

    def gradient(params: Any, mutables: Any, batch: Batch, key: Array, axis: str | None):
        def share(params: Any):
            held = jax.tree.map(
                lambda p, still: lax.stop_gradient(p) if still else p, params, frozen(params)
            )
            terms, new = task.loss({"params": held, **mutables}, batch, key, axis)
            return objective(terms, axis), (terms, new)

        grads, (terms, new) = jax.grad(share, has_aux=True)(params)
        sums = {n: jnp.asarray(t.sum, jnp.float32) for n, t in terms.items()}
        counts = {n: jnp.asarray(t.count, jnp.float32) for n, t in terms.items()}
        sums, counts = parallel.psum((sums, counts), axis)
        logs = {name: ratio(sums[name], counts[name]) for name in terms}
        logs["loss"] = sum((terms[n].weight * logs[n] for n in terms), start=jnp.zeros(()))
        # What the loss does not return, such as a graph of words, stays.
        return (grads, logs), {**mutables, **parallel.pmean(dict(new), axis)}

    return gradient


def accumulated(gradient: Gradient, parts: int) -> Gradient:
    """The mean of `gradient` over `parts` equal parts of a device's batch, one after the other.

    Items are compared within their part alone. Where a loss should compare the whole batch, and
    its towers do not fit, see `ops.chunks.map_over_chunks`.
    """

    def run(params: Any, mutables: Any, batch: Batch, key: Array, axis: str | None):
        size = jax.tree.leaves(batch)[0].shape[0]
        if size % parts:
            raise ValueError(
                f"The {size} examples of a device cannot be cut into {parts} equal parts; choose "
                f"config.train.accumulate as a divisor."
            )
        split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        inputs = split, jax.random.split(key, parts)
        first = jax.tree.map(lambda x: x[0], inputs)
        shapes, _ = jax.eval_shape(lambda b, k: gradient(params, mutables, b, k, axis), *first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(carry: Any, part: tuple[Batch, Array]):
            total, mutables = carry
            found, mutables = gradient(params, mutables, *part, axis)
            return (jax.tree.map(lambda t, x: t + x / parts, total, found), mutables), None

        start = (parallel.varying(zeros[0], axis), zeros[1]), dict(mutables)
        return lax.scan(add, start, inputs)[0]

    return run


def none_frozen(params: Any) -> Any:
    """Marks no parameter."""
    return jax.tree.map(lambda _: False, params)


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    augment: Augment,
    frozen: Callable[[Any], Any] = none_frozen,
    accumulate: int = 1,
) -> Callable[[TrainState, Batch, str | None], tuple[TrainState, dict[str, Array]]]:
    """The per-device body of a step: (state, batch, axis) -> (state, values to log).

    Args:
      task: whose loss is minimised.
      optimizer: of the parameters.
      augment: from stored items to inputs.
      frozen: marks parameters that the optimizer leaves alone: their gradients are not computed.
      accumulate: parts that a device's batch is cut into, see `accumulated`.
    """
    gradient = make_gradient(task, frozen)
    if accumulate > 1:
        gradient = accumulated(gradient, accumulate)

    def step(state: TrainState, batch: Batch, axis: str | None):
        key_augment, key_loss = jax.random.split(jax.random.fold_in(state.key, state.step))
        batch = augment(batch, key_augment, axis)
        params = parallel.varying(state.params, axis)
        (grads, logs), mutables = gradient(params, state.mutables, batch, key_loss, axis)
        grads = parallel.psum(grads, axis)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        logs["grad_norm"] = optax.tree.norm(grads)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            mutables=mutables,
            opt_state=opt_state,
        )
        return state, logs

    return step
