"""A set as one vector: means weighted by what a small network thinks of each token."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jcmr.core.types import Array
from jcmr.models.encoders.pie import dropout, torch_dense
from jcmr.ops.attention import attention_pool, masked_mean

SITE = 1000
"""Of dropout; transformers count from 0."""


class AttentionPool(nn.Module):
    """Softmax over tokens of linear(relu(linear(x))), one weighted mean for each attention.

    The official AttnPool1d gives a set with nothing real uniform weights; here they are 0.
    """

    num_heads: int = 1
    dropout_rate: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array, mask: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        """X [b, t, d], mask [b, t], dropout keys [b] -> (means [b, k, d], weights [b, t, k])."""
        width = x.shape[-1]
        hidden = nn.relu(torch_dense(width // 2, width, self.dtype, "first")(x))
        hidden = dropout(hidden, self.dropout_rate, keys, SITE)
        logits = torch_dense(self.num_heads, width // 2, self.dtype, "second")(hidden)
        return attention_pool(logits, x, mask)


class MultiHeadPool(nn.Module):
    """Every attention sees the whole tokens and weighs its own share of the channels.

    The plain mean is added, so that no token is without influence at the start.
    """

    num_heads: int
    dropout_rate: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array, mask: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        """As `AttentionPool`, with means [b, 1, d]."""
        pool = AttentionPool(self.num_heads, self.dropout_rate, self.dtype, name="attention")
        means, weights = pool(x, mask, keys)
        parts = means.reshape(x.shape[0], self.num_heads, self.num_heads, -1)
        own = jnp.einsum("bkkd->bkd", parts).reshape(x.shape[0], -1)
        return (own + masked_mean(x, mask))[:, None], weights
