"""The state of a run and one training step."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from flax import struct
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


def make_train_step(
    task: Task, optimizer: optax.GradientTransformation, augment: Augment
) -> Callable[[TrainState, Batch, str | None], tuple[TrainState, dict[str, Array]]]:
    """The per-device body of a step: (state, batch, axis) -> (state, values to log)."""

    def step(state: TrainState, batch: Batch, axis: str | None):
        key_augment, key_loss = jax.random.split(jax.random.fold_in(state.key, state.step))
        batch = augment(batch, key_augment, axis)

        def share(params: Any):
            variables = {"params": params, **state.mutables}
            terms, mutables = task.loss(variables, batch, key_loss, axis)
            return objective(terms, axis), (terms, mutables)

        params = parallel.varying(state.params, axis)
        grads, (terms, mutables) = jax.grad(share, has_aux=True)(params)
        grads = parallel.psum(grads, axis)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        sums = {n: jnp.asarray(t.sum, jnp.float32) for n, t in terms.items()}
        counts = {n: jnp.asarray(t.count, jnp.float32) for n, t in terms.items()}
        sums, counts = parallel.psum((sums, counts), axis)
        logs = {name: ratio(sums[name], counts[name]) for name in terms}
        logs["loss"] = sum((terms[n].weight * logs[n] for n in terms), start=jnp.zeros(()))
        logs["grad_norm"] = optax.tree.norm(grads)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            # What the loss does not return, such as a graph of words, stays.
            mutables={**state.mutables, **parallel.pmean(dict(mutables), axis)},
            opt_state=opt_state,
        )
        return state, logs

    return step
