"""Several systems as one: the mean of their score matrices."""

from collections.abc import Sequence

import jax.numpy as jnp

from jcmr.core.types import Array, Batch, Embedding, Task, Variables


def mean_of(tasks: Sequence[Task]) -> Task:
    """A task to evaluate whose score is the mean of those of `tasks`, as ensembles are in SCAN.

    Its variables and embeddings are tuples, one part per member; `init` and `loss` are those of the
    first. All members embed the same items.
    """

    def encode(name: str):
        def embed(variables: Sequence[Variables], inputs: Batch) -> tuple[Embedding, ...]:
            return tuple(task.encode[name](part, inputs) for task, part in zip(tasks, variables))

        return embed

    def score(variables: Sequence[Variables], query: tuple, gallery: tuple) -> Array:
        parts = zip(tasks, variables, query, gallery)
        return jnp.mean(jnp.stack([task.score(*rest) for task, *rest in parts]), axis=0)

    first = tasks[0]
    modalities = {name: encode(name) for name in first.encode}
    return Task(first.init, first.loss, modalities, score)  # pyright: ignore[reportArgumentType]
