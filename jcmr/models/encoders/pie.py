"""PIE-Net and the uncertainty heads (Song and Soleymani, CVPR 2019; Chun et al., CVPR 2021)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jcmr.core.types import Array
from jcmr.models.encoders.gru import BiGRU, read_out, uniform_init
from jcmr.ops.attention import attention_pool

XAVIER = nn.initializers.xavier_uniform()


def dropout(x: Array, rate: float, keys: Array | None, site: int) -> Array:
    """Zeroes entries of x [b, ...] with probability `rate` by one key per example, [b].

    Args:
      x: activations.
      rate: in [0, 1).
      keys: from `parallel.example_keys`, so that the number of devices does not matter; None
        leaves x as it is.
      site: tells the places apart that share the keys.
    """
    if keys is None or rate == 0.0:
        return x

    def drop(key: Array, row: Array) -> Array:
        kept = jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - rate, row.shape)
        return jnp.where(kept, row / (1.0 - rate), 0)

    return jax.vmap(drop)(keys, x)


def torch_dense(features: int, fan_in: int, dtype: Any, name: str) -> nn.Dense:
    """A linear layer that starts as torch's: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    init = uniform_init(fan_in**-0.5)
    return nn.Dense(features, dtype=dtype, kernel_init=init, bias_init=init, name=name)


def scale_dense(features: int, start: float, dtype: Any) -> nn.Dense:
    """The linear layer "fc" of an uncertainty head, with the bias that it starts from."""
    init = nn.initializers.constant(start)
    return nn.Dense(features, dtype=dtype, kernel_init=XAVIER, bias_init=init, name="fc")


class SelfAttention(nn.Module):
    """Attention of a set with itself: softmax over t of w2 tanh(w1 x) (Lin et al., ICLR 2017)."""

    num_heads: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> tuple[Array, Array]:
        """X [b, t, d], mask [b, t] -> (means [b, k, d], weights [b, t, k])."""
        hidden = nn.Dense(
            x.shape[-1] // 2, use_bias=False, dtype=self.dtype, kernel_init=XAVIER, name="w_1"
        )(x)
        logits = nn.Dense(
            self.num_heads, use_bias=False, dtype=self.dtype, kernel_init=XAVIER, name="w_2"
        )(jnp.tanh(hidden))
        return attention_pool(logits, x, mask)


class PIENet(nn.Module):
    """Adds what attention finds in a set to its global feature.

    LayerNorm(g + sigmoid(W a + b)), a the attention-weighted mean; one output per head.
    """

    features: int
    num_heads: int = 1
    dropout_rate: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, g: Array, x: Array, mask: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """Combines the global feature g [b, features] with the set x [b, t, d].

        Args:
          g: global feature.
          x: local features.
          mask: [b, t], True = real.
          keys: [b], for dropout; None when evaluating.

        Returns:
          (outputs [b, k, features], attention [b, t, k], residual [b, k, features]).
        """
        pooled, attention = SelfAttention(self.num_heads, self.dtype, name="attention")(x, mask)
        residual = nn.Dense(self.features, dtype=self.dtype, kernel_init=XAVIER, name="fc")(pooled)
        residual = dropout(nn.sigmoid(residual), self.dropout_rate, keys, site=0)
        norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="layer_norm")
        return norm(g[:, None] + residual), attention, residual


class ImageUncertainty(nn.Module):
    """U(x) = fc(attention-weighted mean) + fc2(mean): an unbounded log scale per dimension.

    `start` is the first bias, the log scale that training starts from.
    """

    features: int
    start: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, pooled: Array, x: Array, mask: Array | None = None) -> tuple[Array, Array]:
        """Pooled [b, d], x [b, t, d] -> (log scale [b, features], attention [b, t, 1])."""
        mean, attention = SelfAttention(dtype=self.dtype, name="attention")(x, mask)
        out = scale_dense(self.features, self.start, self.dtype)(mean[:, 0])
        out = out + torch_dense(self.features, pooled.shape[-1], self.dtype, "fc2")(pooled)
        return out, attention


class TextUncertainty(nn.Module):
    """U(x) = fc(attention-weighted mean of the words) + the readout of a GRU of its own."""

    features: int
    readout: str = "ends"
    start: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> tuple[Array, Array]:
        """X [b, t, d], mask [b, t] -> (log scale [b, features], attention [b, t, 1])."""
        mean, attention = SelfAttention(dtype=self.dtype, name="attention")(x, mask)
        out = scale_dense(self.features, self.start, self.dtype)(mean[:, 0])
        states, ends = BiGRU(self.features // 2, self.dtype, name="rnn")(x, mask)
        return out + read_out(states, ends, mask, self.readout), attention
