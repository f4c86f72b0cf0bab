"""A text as its words, whatever their order."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jcmr.core.types import Array
from jcmr.models.encoders.pie import dropout


def is_word(text: Array) -> Array:
    """What of the ids text [b, t] is a word, and not padding, start or end."""
    return jnp.greater(text, 2)


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

    def setup(self) -> None:
        """Names the parts."""
        init = nn.initializers.normal(self.features**-0.5)
        self.embed = nn.Embed(self.vocab_size, self.features, dtype=self.dtype, embedding_init=init)
        self.weights = self.param("weights", nn.initializers.ones, (self.vocab_size,))
        self.bias = self.param("bias", nn.initializers.constant(self.start), (self.features,))

    def apart(self, text: Array, keys: Array | None = None) -> Array:
        """The addends of the sum, [b, t, features], 0 where there is no word."""
        weights = self.weights[text] * is_word(text)
        weights = dropout(weights[..., None], self.dropout_rate, keys, site=4)
        norm = jnp.sqrt(jnp.sum(weights**2, axis=1, keepdims=True) + 1e-12)
        return self.embed(text) * (weights / norm)

    def __call__(self, text: Array, keys: Array | None = None) -> Array:
        """Word ids text [b, t], 0 = pad, dropout keys [b] -> [b, features]."""
        return jnp.sum(self.apart(text, keys), axis=1) + self.bias
