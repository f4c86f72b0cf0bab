"""DGCNN: convolutions over the edges of nearest-neighbour graphs (Wang et al., TOG 2019)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jcmr.core.types import Array
from jcmr.models.encoders.edges import EdgeBatchNorm
from jcmr.models.encoders.gru import uniform_init
from jcmr.models.encoders.norm import BatchNorm
from jcmr.models.encoders.pie import dropout, torch_dense
from jcmr.ops.neighbors import nearest

WIDTHS = (64, 64, 128, 256)
SLOPE = 0.2


def leaky(x: Array) -> Array:
    """LeakyReLU with the paper's slope."""
    return nn.leaky_relu(x, SLOPE)


class EdgeConv(nn.Module):
    """max over the neighbours j of LeakyReLU(BatchNorm(W [x_j - x_i ; x_i])).

    W = [A B] is applied once per point, as A x_j + (B - A) x_i, and not once per edge: 1/k of the
    products, and nothing of size n x k x 2 d in memory.
    """

    features: int
    k: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False, axis: str | None = None) -> Array:
        """[b, n, d] -> [b, n, features]; neighbours are looked for in the space of x.

        Raises:
          ValueError: fewer points than k.
        """
        width = x.shape[-1]
        init = uniform_init((2 * width) ** -0.5)
        kernel = self.param("kernel", init, (2 * width, self.features))
        index = nearest(x, self.k)
        x = x if self.dtype is None else x.astype(self.dtype)
        difference, own = jnp.split(kernel.astype(x.dtype), 2)
        points = x.reshape(-1, width)  # of clouds, a CPU copies what their gradients multiply
        p, q = (
            (points @ part).reshape(*x.shape[:2], -1) for part in (difference, own - difference)
        )
        return leaky(EdgeBatchNorm(name="bn")(p, q, index, train, axis))


class DGCNN(nn.Module):
    """Four EdgeConvs, their outputs fused, maximum and mean over points, a linear layer.

    `slope` 0 is the ReLU of the cross-modal center loss; the paper has 0.2.
    """

    k: int = 20
    embed_dim: int = 1024
    """Channels of the fused feature; unknown in the official cross-modal release."""
    widths: Sequence[int] = WIDTHS
    features: int = 512
    slope: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, points: Array, train: bool = False, axis: str | None = None) -> Array:
        """[b, n, 3] -> [b, features].

        Raises:
          ValueError: fewer points than k.
        """
        x, outputs = points, []
        for layer, width in enumerate(self.widths, start=1):
            x = EdgeConv(width, self.k, self.dtype, name=f"edge{layer}")(x, train, axis)
            outputs.append(x)
        x = jnp.concatenate(outputs, axis=-1)
        init = uniform_init(x.shape[-1] ** -0.5)
        x = nn.Dense(self.embed_dim, False, self.dtype, kernel_init=init, name="fuse")(x)
        x = leaky(BatchNorm(name="fuse_bn")(x, train, axis))
        x = jnp.concatenate([x.max(axis=1), x.mean(axis=1)], axis=-1)
        init = uniform_init(x.shape[-1] ** -0.5)
        x = nn.Dense(self.features, False, self.dtype, kernel_init=init, name="out")(x)
        return nn.leaky_relu(BatchNorm(name="out_bn")(x, train, axis), self.slope)


class Classifier(nn.Module):
    """The head of the paper's classification network, on top of DGCNN(slope=0.2)."""

    num_classes: int
    dropout_rate: float = 0.5
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, axis: str | None = None, keys: Array | None = None
    ) -> Array:
        """Features [b, d], dropout keys [b] -> logits [b, c]."""
        x = dropout(x, self.dropout_rate, keys, site=0)
        x = torch_dense(256, x.shape[-1], self.dtype, "hidden")(x)
        x = leaky(BatchNorm(name="hidden_bn")(x, train, axis))
        x = dropout(x, self.dropout_rate, keys, site=1)
        return torch_dense(self.num_classes, 256, self.dtype, "out")(x)
