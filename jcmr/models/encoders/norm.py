"""Batch normalisation as in torch, over the batch of all devices."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jcmr.core import parallel
from jcmr.core.types import Array


class Moments(NamedTuple):
    """What a batch says of the values to normalise, on this device."""

    first: Array
    """[c], mean of x - shift."""
    second: Array
    """[c], mean of (x - shift)^2."""
    count: int
    """Values per channel that the means are over."""


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

        def moments(shift: Array) -> Moments:
            others = tuple(range(x.ndim - 1))
            centred = x.astype(jnp.promote_types(x.dtype, jnp.float32)) - shift
            count = x.size // x.shape[-1]
            return Moments(centred.mean(others), (centred * centred).mean(others), count)

        factor, offset = self.affine(self.weights(x.shape[-1]), moments, train, axis)
        return (x * factor + offset).astype(x.dtype)

    def weights(self, width: int) -> tuple[Array, Array]:
        """The learned (scale, bias), each [c]."""
        scale = self.param("scale", nn.initializers.ones, (width,))
        return scale, self.param("bias", nn.initializers.zeros, (width,))

    def affine(
        self,
        weights: tuple[Array, Array],
        moments: Callable[[Array], Moments],
        train: bool,
        axis: str | None,
    ) -> tuple[Array, Array]:
        """(factor, offset), each [c]: x * factor + offset is normalised; records statistics.

        Args:
          weights: from `weights`.
          moments: called in training with a shift [c] near the mean, which keeps
            E[x^2] - E[x]^2 from cancelling.
          train: use and record batch statistics.
          axis: device axis over which the batch is shared.
        """
        scale, bias = weights
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, scale.shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, scale.shape)
        mean, var = running_mean.value, running_var.value
        if train:
            shift = lax.stop_gradient(mean)
            found = moments(shift)
            # One pass and one collective.
            first, second = parallel.pmean(jnp.stack([found.first, found.second]), axis)
            mean, var = first + shift, jnp.maximum(second - first * first, 0.0)
            if not self.is_initializing():
                size = found.count * (1 if axis is None else lax.axis_size(axis))
                unbiased = var * (size / max(size - 1, 1))
                keep = 1.0 - self.momentum
                running_mean.value = keep * running_mean.value + self.momentum * mean
                running_var.value = keep * running_var.value + self.momentum * unbiased
        factor = scale * lax.rsqrt(var + self.eps)
        return factor, bias - mean * factor


def unit_length(x: Array) -> Array:
    """X / max(|x|, 1e-12) along the last axis, in at least float32; 0 at 0."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    positive = squared > 1e-24
    return jnp.where(positive, x * lax.rsqrt(jnp.where(positive, squared, 1.0)), 0.0)
