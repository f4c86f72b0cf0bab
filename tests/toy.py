"""A dual encoder small enough to train in a test, and batches with a position."""

from functools import partial

import jax
import numpy as np
import optax
from jax import numpy as jnp

from jcmr.core import parallel
from jcmr.core.types import Task, Term

DIM = 6


def make_toy(noise: float = 0.1, explode_at: float = np.inf) -> Task:
    """Two linear towers, InfoNCE over the global batch, a running mean as mutable state."""

    def init(key, batch):
        keys = jax.random.split(key)
        shape = (batch["x"].shape[-1], DIM)
        params = {n: jax.random.normal(k, shape) * 0.3 for n, k in zip("xy", keys)}
        return {"params": params, "stats": {"mean": jnp.zeros(shape[0])}}

    def encode(name, variables, inputs):
        return inputs[name] @ variables["params"][name]

    def loss(variables, batch, key, axis):
        keys = parallel.example_keys(key, len(batch["x"]), axis)
        jitter = noise * jax.vmap(lambda k: jax.random.normal(k, (DIM,)))(keys)
        x = encode("x", variables, batch) + jitter
        y = parallel.all_gather(encode("y", variables, batch), axis)
        own = parallel.first_row(len(x), axis) + jnp.arange(len(x))
        losses = optax.softmax_cross_entropy_with_integer_labels(x @ y.T, own)
        blow = jnp.where(jnp.max(batch["x"]) > explode_at, jnp.nan, 1.0)
        mean = parallel.pmean(jnp.mean(batch["x"], 0), axis)
        stats = {"mean": 0.9 * variables["stats"]["mean"] + 0.1 * mean}
        mask = batch["mask"]
        terms = {
            "nce": Term(jnp.sum(losses * mask) * blow, jnp.sum(mask)),
            "norm": Term(jnp.sum(x**2), len(x), weight=0.0),
        }
        return terms, {"stats": stats}

    def score(variables, query, gallery):
        return query @ gallery.T

    return Task(init, loss, {n: partial(encode, n) for n in "xy"}, score)


def make_batch(seed: int, size: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, 5)).astype(np.float32)
    y = x + 0.1 * rng.normal(size=(size, 5)).astype(np.float32)
    return {"x": x, "y": y, "mask": (rng.random(size) < 0.7).astype(np.float32)}


class ToyBatches:
    """Batch i is a function of i alone."""

    def __init__(self, mesh, how="pmap", spike_at=-1, on_batch=lambda i: None):
        self.i, self.mesh, self.how = 0, mesh, how
        self.spike_at, self.on_batch = spike_at, on_batch

    def __next__(self):
        batch = make_batch(self.i)
        if self.i == self.spike_at:
            batch["x"][0] = 100.0
        self.on_batch(self.i)
        self.i += 1
        return parallel.put_batch(batch, self.mesh, self.how)

    def get_state(self):
        return {"i": self.i}

    def set_state(self, state):
        self.i = state["i"]
