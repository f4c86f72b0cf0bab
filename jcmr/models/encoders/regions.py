"""Frozen region or grid features as the image: projected, not computed."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jcmr.core.types import Array
from jcmr.models.encoders.norm import unit_length
from jcmr.models.encoders.pie import dropout


class Regions(nn.Module):
    """Scales each region to unit length if asked, drops entries, and projects it if asked.

    Detectors and classifiers give features of very different scales; without a projection
    (`features=0`) the regions go on as they are.
    """

    features: int = 0
    normalise: bool = False
    dropout_rate: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, regions: Array, keys: Array | None = None) -> Array:
        """Regions [b, r, d], keys [b] for dropout -> [b, r, features or d]."""
        if self.normalise:
            regions = unit_length(regions)
        regions = dropout(regions, self.dropout_rate, keys, site=1)
        if self.features:
            regions = nn.Dense(self.features, dtype=self.dtype, name="project")(regions)
        return regions


class WeightNormDense(nn.Module):
    """A linear layer whose weight is g V / |V|, one length g for all of V (Salimans and Kingma,
    NIPS 2016, as torch's weight_norm does it with dim=None).
    """

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., d] -> [..., features]."""
        init = nn.initializers.xavier_uniform()
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        length = jnp.sqrt(jnp.sum(kernel * kernel))
        scale = self.param("scale", lambda key: jnp.sqrt(jnp.sum(kernel * kernel)))
        kernel = (kernel * (scale / length)).astype(self.dtype or kernel.dtype)
        return x.astype(kernel.dtype) @ kernel + bias
