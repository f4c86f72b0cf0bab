"""Generalized pooling operator of VSE-infinity (Chen et al., CVPR 2021)."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jcmr.core.types import Array
from jcmr.models.encoders.gru import BiGRU, uniform_init
from jcmr.ops.attention import masked_softmax

TEMPERATURE = 0.1


def rank_encoding(num_ranks: int, dim: int) -> np.ndarray:
    """Sines (even) and cosines (odd) of ranks 0 .. n - 1, float32 [n, dim] (Vaswani et al., 2017).

    `dim` is even.
    """
    rates = np.exp(np.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    angles = np.arange(num_ranks)[:, None] * rates
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(num_ranks, dim).astype("f4")


class GPO(nn.Module):
    """Pools a set by weights of ranks: each dimension is sorted on its own, largest first.

    The weights come from a GRU over encodings of the ranks and depend on nothing but the size of
    the set, so one row per size is computed and the sets look theirs up.
    """

    dim: int = 32
    """Of the encoding of a rank."""
    hidden: int = 32

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> tuple[Array, Array]:
        """X [b, t, d], mask [b, t] -> (pooled [b, d], weights of ranks [b, t])."""
        num = x.shape[1]
        sizes = jnp.arange(num + 1)
        present = jnp.arange(num) < sizes[:, None]
        ranks = jnp.where(present[..., None], rank_encoding(num, self.dim), 0.0)
        states, _ = BiGRU(self.hidden, name="gru")(ranks, present)
        states = states.reshape(*states.shape[:2], 2, self.hidden).mean(axis=2)
        init = uniform_init(self.hidden**-0.5)
        logits = nn.Dense(1, use_bias=False, kernel_init=init, name="linear")(states)[..., 0]
        weights = masked_softmax(logits / TEMPERATURE, present)[mask.sum(axis=1)]
        lowest = jnp.finfo(x.dtype).min
        ordered = -jnp.sort(-jnp.where(mask[..., None], x, lowest), axis=1)
        ordered = jnp.where(ordered > lowest, ordered, 0.0)
        return jnp.einsum("btd,bt->bd", ordered, weights), weights
