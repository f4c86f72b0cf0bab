"""Batch normalisation as in torch, over the batch of all devices."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jcmr.core import parallel
from jcmr.core.types import Array


class BatchNorm(nn.Module):
    """Normalises the last axis by statistics of all others (Ioffe and Szegedy, 2015).

    As torch and unlike flax: `momentum` weighs the new value, and the running variance takes the
    unbiased variance while the batch is normalised with the biased one. Statistics are float32.
    """

    eps: float = 1e-5
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: Array, train: bool = False, axis: str | None = None) -> Array:
        """[..., c] -> [..., c] in the dtype of x; `train` uses and records batch statistics."""
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (width,))
        mean, var = running_mean.value, running_var.value
        if train:
            wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            others = tuple(range(x.ndim - 1))
            # One pass and one collective; the shift keeps E[x^2] - E[x]^2 from cancelling.
            shift = lax.stop_gradient(mean)
            centred = wide - shift
            moments = jnp.stack([centred.mean(others), (centred * centred).mean(others)])
            first, second = parallel.pmean(moments, axis)
            mean, var = first + shift, jnp.maximum(second - first * first, 0.0)
            if not self.is_initializing():
                size = (x.size // width) * (1 if axis is None else lax.axis_size(axis))
                unbiased = var * (size / max(size - 1, 1))
                keep = 1.0 - self.momentum
                running_mean.value = keep * running_mean.value + self.momentum * mean
                running_var.value = keep * running_var.value + self.momentum * unbiased
        factor = scale * lax.rsqrt(var + self.eps)
        offset = bias - mean * factor
        return (x * factor + offset).astype(x.dtype)


def unit_length(x: Array) -> Array:
    """X / max(|x|, 1e-12) along the last axis, in at least float32; 0 at 0."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    positive = squared > 1e-24
    return jnp.where(positive, x * lax.rsqrt(jnp.where(positive, squared, 1.0)), 0.0)
