"""A small image tower that is fast on a CPU and still tells shapes and textures apart."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jcmr.core.types import Array
from jcmr.models.encoders.norm import BatchNorm


def space_to_depth(x: Array, block: int) -> Array:
    """[b, h, w, c] -> [b, h / block, w / block, block^2 c], nothing lost."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // block, block, w // block, block, c).swapaxes(2, 3)
    return x.reshape(b, h // block, w // block, block * block * c)


def patches(x: Array, size: int, stride: int, pad: tuple[int, int]) -> Array:
    """The windows of a convolution as rows: [b, h', w', size^2 c], zeros outside."""
    x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
    height = (x.shape[1] - size) // stride + 1
    width = (x.shape[2] - size) // stride + 1
    rows, columns = stride * (height - 1) + 1, stride * (width - 1) + 1
    windows = [
        x[:, i : i + rows : stride, j : j + columns : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(windows, axis=-1)


class Convolution(nn.Module):
    """A convolution and BatchNorm; with a stride, one matrix product over its windows.

    Measured on two CPU cores, forward and backward: XLA's strided convolutions are slower than the
    product, those of stride 1 faster.
    """

    features: int
    size: int
    stride: int
    pad: tuple[int, int]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False, axis: str | None = None) -> Array:
        """[b, h, w, c] -> [b, h', w', features]."""
        shared = {"use_bias": False, "dtype": self.dtype, "name": "weights"}
        init = nn.initializers.he_normal()
        if self.stride == 1:
            around = [self.pad, self.pad]
            size = (self.size, self.size)
            x = nn.Conv(self.features, size, padding=around, kernel_init=init, **shared)(x)
        else:
            x = patches(x, self.size, self.stride, self.pad)
            x = nn.Dense(self.features, kernel_init=init, **shared)(x)
        return BatchNorm()(x, train, axis)


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False, axis: str | None = None) -> Array:
        """[b, h, w, c] -> the same."""
        width = x.shape[-1]
        y = nn.relu(Convolution(width, 3, 1, (1, 1), self.dtype)(x, train, axis))
        return nn.relu(x + Convolution(width, 3, 1, (1, 1), self.dtype)(y, train, axis))


class CompactNet(nn.Module):
    """Space-to-depth, a 4x4/2 stem, and residual stages: an eighth of the resolution.

    48 px become 6 x 6 x 256.
    """

    widths: tuple[int, int] = (48, 128)
    features: int = 256
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False, axis: str | None = None) -> Array:
        """Runs the tower.

        Args:
          x: [b, h, w, 3], normalised pixels.
          train: normalise by the statistics of the batch and record them.
          axis: device axis over which the batch is shared.

        Returns:
          [b, h / 8, w / 8, features].

        Raises:
          ValueError: sides that are no multiple of 8.
        """
        if x.shape[1] % 8 or x.shape[2] % 8:
            raise ValueError(
                f"The compact tower takes images whose sides are multiples of 8, not "
                f"{x.shape[1]}x{x.shape[2]}; change config.data.image_size."
            )
        x = space_to_depth(x, 2)
        x = nn.relu(Convolution(self.widths[0], 4, 2, (1, 1), self.dtype)(x, train, axis))
        x = Residual(self.dtype)(x, train, axis)
        x = nn.relu(Convolution(self.widths[1], 3, 2, (0, 1), self.dtype)(x, train, axis))
        x = Residual(self.dtype)(x, train, axis)
        return nn.relu(nn.Dense(self.features, dtype=self.dtype)(x))
