"""Several representations of an item that look at each other (the projector of GPLDAN).

Only the abstract of the paper (arXiv 2106.13552) could be read: "a diversified attention feature
projector by considering the interaction between different representations". What follows is this
project's specification: PIE-Net's attention, then attention among the representations.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jcmr.core.types import Array
from jcmr.models.encoders.norm import unit_length
from jcmr.models.encoders.pie import XAVIER, PIENet, dropout
from jcmr.ops.attention import masked_softmax


class Projected(NamedTuple):
    """An item's k representations."""

    raw: Array
    """[b, k, d], before they were scaled; what the modality classifier reads."""
    reps: Array
    """[b, k, d], unit length."""
    residual: Array
    """[b, k, d], what attention added to the global feature."""
    attention: Array
    """[b, t, k], of each representation over the tokens."""
    fused: Array
    """[b, d], unit length: the representations weighted by attention over them."""
    shares: Array
    """[b, k], those weights."""


class Tokens(nn.Module):
    """A flat feature as tokens, by one dense layer [p] -> [num_tokens * width]."""

    num_tokens: int = 8
    width: int = 256
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[b, p] -> [b, num_tokens, width]."""
        size = self.num_tokens * self.width
        made = nn.Dense(size, dtype=self.dtype, kernel_init=XAVIER, name="fc")(x)
        return nn.relu(made).reshape(x.shape[0], self.num_tokens, self.width)


class Projector(nn.Module):
    """PIE-Net with k heads, attention among the k, and their fusion."""

    features: int
    num_reps: int = 4
    interaction: bool = True
    num_heads: int = 4
    """Of the attention among representations; divides `features`."""
    dropout_rate: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, g: Array, x: Array, mask: Array | None = None, keys: Array | None = None
    ) -> Projected:
        """Global feature g [b, p], tokens x [b, t, q], mask [b, t], dropout keys [b]."""
        out = nn.Dense(self.features, dtype=self.dtype, kernel_init=XAVIER, name="global")(g)
        pie = PIENet(self.features, self.num_reps, self.dropout_rate, self.dtype, name="pie_net")
        raw, attention, residual = pie(out, x, mask, keys)
        if self.interaction:
            norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")
            # Begins as no interaction: one of random weights blurs the representations, and
            # learning starts late.
            among = nn.MultiHeadDotProductAttention(
                self.num_heads,
                dtype=self.dtype,
                deterministic=True,
                out_kernel_init=nn.initializers.zeros,
                name="among",
            )
            raw = raw + dropout(among(norm(raw)), self.dropout_rate, keys, site=5)
        reps = unit_length(raw)
        hidden = jnp.tanh(nn.Dense(self.features, use_bias=False, name="fuse_1")(raw))
        logits = nn.Dense(1, use_bias=False, name="fuse_2")(hidden)[..., 0]
        shares = masked_softmax(logits)
        fused = unit_length(jnp.einsum("bk,bkd->bd", shares, reps))
        return Projected(raw, reps, residual, attention, fused, shares)
