"""BERT in Linen (Devlin et al., NAACL 2019), equal to the published weights' own code."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jcmr.core.types import Array
from jcmr.models.encoders.pie import dropout
from jcmr.models.encoders.transformer import SITES, Layer, gelu

INIT = nn.initializers.normal(0.02)


class Size(NamedTuple):
    """How large a BERT is."""

    num_layers: int
    width: int
    num_heads: int
    hidden: int
    positions: int = 512
    """Tokens of the longest text."""
    eps: float = 1e-12


SIZES = {
    "tiny": Size(2, 128, 2, 512),
    "mini": Size(4, 256, 4, 1024),
    "small": Size(4, 512, 8, 2048),
    "medium": Size(8, 512, 8, 2048),
    "base": Size(12, 768, 12, 3072),
    "large": Size(24, 1024, 16, 4096),
}
"""Those of https://github.com/google-research/bert."""


class Bert(nn.Module):
    """States of all tokens of a text."""

    vocab_size: int
    size: Size
    dropout_rate: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        text: Array,
        mask: Array | None = None,
        keys: Array | None = None,
        types: Array | None = None,
    ) -> Array:
        """Runs all layers.

        Args:
          text: WordPiece ids [b, t].
          mask: [b, t], True = real; None = all are.
          keys: [b], for dropout; None when evaluating.
          types: segment of each token [b, t], 0 or 1; None = 0.

        Returns:
          [b, t, width]; what masked tokens hold is without meaning.

        Raises:
          ValueError: the text is longer than the position embeddings reach.
        """
        size, length = self.size, text.shape[1]
        if length > size.positions:
            raise ValueError(
                f"A text of {length} tokens is longer than this BERT's {size.positions} positions; "
                f"lower config.data.max_words."
            )

        def table(rows: int, name: str) -> nn.Embed:
            return nn.Embed(rows, size.width, embedding_init=INIT, name=name)

        types = jnp.zeros_like(text) if types is None else types
        x = table(self.vocab_size, "words")(text) + table(2, "types")(types)
        x = x + table(size.positions, "positions")(jnp.arange(length))
        x = nn.LayerNorm(epsilon=size.eps, use_fast_variance=False, name="norm")(x)
        x = dropout(x, self.dropout_rate, keys, site=0)
        for index in range(size.num_layers):
            x = Layer(
                size.num_heads,
                size.hidden,
                gelu,
                size.eps,
                self.dropout_rate,
                kernel_init=INIT,
                site=1 + SITES * index,
                dtype=self.dtype,
                name=f"layer_{index}",
            )(x, mask, keys)
        return x


class Pooler(nn.Module):
    """What BERT was pretrained to say of a whole text: tanh of a linear map of its first token."""

    @nn.compact
    def __call__(self, states: Array) -> Array:
        """[b, t, d] -> [b, d]."""
        return jnp.tanh(nn.Dense(states.shape[-1], kernel_init=INIT, name="fc")(states[:, 0]))
