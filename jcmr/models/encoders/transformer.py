"""The layer of BERT and of torch's TransformerEncoder: attention, then two linear layers."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from jcmr.core.types import Array
from jcmr.models.encoders.pie import XAVIER, dropout
from jcmr.ops.attention import attend

SITES = 4
"""Places of dropout in a layer."""


def gelu(x: Array) -> Array:
    """X times the normal distribution function of x, exactly (BERT)."""
    return nn.gelu(x, approximate=False)


class Attention(nn.Module):
    """Attention of tokens over a set, their own or another, in heads of equal width."""

    num_heads: int
    dropout_rate: float = 0.0
    """Of the attention weights."""
    kernel_init: Callable = XAVIER
    site: int = 0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array, context: Array, mask: Array | None = None, keys: Array | None = None
    ) -> Array:
        """Attends.

        Args:
          x: [b, t, d].
          context: [b, s, e].
          mask: of the context [b, s], True = real.
          keys: [b], for dropout; None when evaluating.

        Returns:
          [b, t, d].

        Raises:
          ValueError: d is no multiple of the number of heads.
        """
        width, heads = x.shape[-1], self.num_heads
        if width % heads:
            raise ValueError(f"A width of {width} cannot be split into {heads} heads.")

        def dense(name: str) -> nn.Dense:
            return nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init, name=name)

        def split(name: str, y: Array) -> Array:
            return dense(name)(y).reshape(*y.shape[:2], heads, width // heads)

        out = attend(
            split("query", x),
            split("key", context),
            split("value", context),
            mask,
            lambda weights: dropout(weights, self.dropout_rate, keys, self.site),
        )
        return dense("out")(out.reshape(x.shape))


class Layer(nn.Module):
    """x = norm(x + attention(x)), x = norm(x + linear(activation(linear(x)))).

    Norms are in float32, and so is what goes from layer to layer.
    """

    num_heads: int
    hidden: int
    """Width between the linear layers."""
    activation: Callable[[Array], Array] = nn.relu
    eps: float = 1e-5
    dropout_rate: float = 0.0
    inner_dropout_rate: float = 0.0
    """Between the linear layers."""
    kernel_init: Callable = XAVIER
    site: int = 0
    """The first of `SITES` places that tell dropout's noise apart."""
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, keys: Array | None = None) -> Array:
        """X [b, t, d], mask [b, t], dropout keys [b] -> [b, t, d]."""

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, kernel_init=self.kernel_init, name=name)

        def add(x: Array, y: Array, name: str, site: int) -> Array:
            norm = nn.LayerNorm(epsilon=self.eps, use_fast_variance=False, name=name)
            return norm(x + dropout(y, self.dropout_rate, keys, site))

        attention = Attention(
            self.num_heads, self.dropout_rate, self.kernel_init, self.site, self.dtype,
            name="attention",
        )  # fmt: skip
        x = add(x, attention(x, x, mask, keys), "attention_norm", self.site + 1)
        y = self.activation(dense(self.hidden, "first")(x))
        y = dense(x.shape[-1], "second")(dropout(y, self.inner_dropout_rate, keys, self.site + 2))
        return add(x, y, "norm", self.site + 3)
