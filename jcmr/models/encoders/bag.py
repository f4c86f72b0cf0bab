"""A text as its words, whatever their order."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jcmr.core.types import Array
from jcmr.models.encoders.pie import dropout


class BagOfWords(nn.Module):
    """Weighted sum of word vectors over the norm of the weights, plus a bias.

    With inverse document frequencies as weights it is linear in the unit tf-idf vector, and so can
    start as any linear model of words.
    """

    vocab_size: int
    features: int
    dropout_rate: float = 0.0
    start: float = 0.0
    """What the bias begins as."""
    dtype: Any = None

    @nn.compact
    def __call__(self, text: Array, keys: Array | None = None) -> Array:
        """Word ids text [b, t], 0 = pad, dropout keys [b] -> [b, features]."""
        init = nn.initializers.normal(self.features**-0.5)
        vectors = nn.Embed(
            self.vocab_size, self.features, dtype=self.dtype, embedding_init=init, name="embed"
        )(text)
        ones = nn.initializers.ones
        weights = self.param("weights", ones, (self.vocab_size,))[text] * (text > 2)
        weights = dropout(weights[..., None], self.dropout_rate, keys, site=4)
        norm = jnp.sqrt(jnp.sum(weights**2, axis=1) + 1e-12)
        bias = self.param("bias", nn.initializers.constant(self.start), (self.features,))
        return jnp.sum(vectors * weights, axis=1) / norm + bias
