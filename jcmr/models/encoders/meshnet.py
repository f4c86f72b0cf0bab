"""MeshNet: features of a mesh from its faces and their neighbours (Feng et al., AAAI 2019)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jcmr.core.types import Array
from jcmr.models.encoders.edges import EdgeBatchNorm
from jcmr.models.encoders.gru import uniform_init
from jcmr.models.encoders.norm import BatchNorm
from jcmr.models.encoders.pie import torch_dense
from jcmr.ops.neighbors import gather_neighbors

NUM_NEIGHBORS = 3
AGGREGATIONS = ("concat", "max", "average")


class Faces(NamedTuple):
    """A batch of meshes of f faces each."""

    centers: Array
    """[b, f, 3]."""
    corners: Array
    """[b, f, 9], the three corners minus the centre."""
    normals: Array
    """[b, f, 3], unit length."""
    neighbors: Array
    """int [b, f, 3], the faces across the three edges; a face's own index where there is none."""


class MLP(nn.Module):
    """Linear layers, each with BatchNorm and ReLU, on every face alone."""

    widths: Sequence[int]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False, axis: str | None = None) -> Array:
        """[..., d] -> [..., widths[-1]]."""
        for layer, width in enumerate(self.widths, start=1):
            x = torch_dense(width, x.shape[-1], self.dtype, f"dense{layer}")(x)
            x = nn.relu(BatchNorm(name=f"bn{layer}")(x, train, axis))
        return x


class FaceRotate(nn.Module):
    """Shape of a face, whichever corner comes first: mean over its three pairs of corners."""

    widths: Sequence[int] = (32, 64)
    dtype: Any = None

    @nn.compact
    def __call__(self, corners: Array, train: bool = False, axis: str | None = None) -> Array:
        """[b, f, 9] -> [b, f, widths[1]].

        As officially, the three pairs pass in three calls with batch statistics of their own.
        """
        first, second, third = jnp.split(corners, 3, axis=-1)
        rotate = MLP((self.widths[0],) * 2, self.dtype, name="rotate")
        pairs = (first, second), (second, third), (third, first)
        parts = [rotate(jnp.concatenate(pair, axis=-1), train, axis) for pair in pairs]
        x = (parts[0] + parts[1] + parts[2]) / 3
        return MLP((self.widths[1],) * 2, self.dtype, name="fuse")(x, train, axis)


def kernel_responses(normals: Array, alpha: Array, beta: Array, sigma: float) -> Array:
    """Sum over its unit vectors w of exp(-|n - w|^2 / (2 sigma^2)) of each kernel.

    Args:
      normals: n [b, f, 3].
      alpha: polar angles of the vectors, [c, j].
      beta: azimuths, [c, j].
      sigma: width of the kernels.

    Returns:
      [b, f, c].
    """
    sine = jnp.sin(alpha)
    vectors = sine * jnp.cos(beta), sine * jnp.sin(beta), jnp.cos(alpha)
    parts = [(normals[..., i, None, None] - vectors[i]) ** 2 for i in range(3)]
    return jnp.exp((parts[0] + parts[1] + parts[2]) * (-0.5 / sigma**2)).sum(axis=-1)


class FaceKernel(nn.Module):
    """Correlation of the normals of a face and its neighbours with learned sets of directions.

    A normal's response depends on nothing but its face: it is computed once per face and then
    summed over the face and its neighbours, a quarter of the official exponentials.
    """

    num_kernels: int = 64
    num_vectors: int = 4
    sigma: float = 0.2

    @nn.compact
    def __call__(
        self, normals: Array, neighbors: Array, train: bool = False, axis: str | None = None
    ) -> Array:
        """Normals [b, f, 3], neighbours [b, f, 3] -> [b, f, num_kernels]."""
        shape = (self.num_kernels, self.num_vectors)
        alpha = self.param("alpha", lambda key: jnp.pi * jax.random.uniform(key, shape))
        beta = self.param("beta", lambda key: 2 * jnp.pi * jax.random.uniform(key, shape))
        response = kernel_responses(normals, alpha, beta, self.sigma)
        response = response + gather_neighbors(response, neighbors).sum(axis=2)
        count = (1 + neighbors.shape[-1]) * self.num_vectors
        return nn.relu(BatchNorm(name="bn")(response / count, train, axis))


class Structural(nn.Module):
    """What a face looks like: its shape, the directions around it, its normal."""

    features: int = 131
    rotate_widths: Sequence[int] = (32, 64)
    num_kernels: int = 64
    num_vectors: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(self, faces: Faces, train: bool = False, axis: str | None = None) -> Array:
        """Faces -> [b, f, features]; the centres play no part."""
        rotate = FaceRotate(self.rotate_widths, self.dtype, name="rotate")
        kernel = FaceKernel(self.num_kernels, self.num_vectors, name="kernel")
        parts = (
            rotate(faces.corners, train, axis),
            kernel(faces.normals, faces.neighbors, train, axis),
            faces.normals,
        )
        x = jnp.concatenate(parts, axis=-1)
        return MLP((self.features,) * 2, self.dtype, name="mlp")(x, train, axis)


class MeshConv(nn.Module):
    """New spatial features from both kinds, new structural ones from the neighbourhood."""

    spatial: int
    structural: int
    aggregation: str = "concat"
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        spatial: Array,
        structural: Array,
        neighbors: Array,
        train: bool = False,
        axis: str | None = None,
    ) -> tuple[Array, Array]:
        """([b, f, s], [b, f, t], [b, f, 3]) -> ([b, f, spatial], [b, f, structural]).

        Raises:
          ValueError: an unknown aggregation.
        """
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(
                f"aggregation is {self.aggregation!r}; it can be {', '.join(AGGREGATIONS)}."
            )
        both = jnp.concatenate([spatial, structural], axis=-1)
        spatial = MLP((self.spatial,), self.dtype, name="combine")(both, train, axis)
        if self.aggregation == "concat":
            structural = PairMax(self.dtype, name="pair")(structural, neighbors, train, axis)
        else:
            around = gather_neighbors(structural, neighbors)
            around = jnp.concatenate([structural[:, :, None], around], axis=2)
            structural = around.max(axis=2) if self.aggregation == "max" else around.mean(axis=2)
        return spatial, MLP((self.structural,), self.dtype, name="aggregate")(
            structural, train, axis
        )


class PairMax(nn.Module):
    """max over the neighbours j of ReLU(BatchNorm(W [x_i ; x_j] + b)), one product per face."""

    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array, neighbors: Array, train: bool = False, axis: str | None = None
    ) -> Array:
        """[b, f, d], neighbours [b, f, 3] -> [b, f, d]."""
        width = x.shape[-1]
        init = uniform_init((2 * width) ** -0.5)
        kernel = self.param("kernel", init, (2 * width, width))
        bias = self.param("bias", init, (width,))
        x = x if self.dtype is None else x.astype(self.dtype)
        own, near = jnp.split(kernel.astype(x.dtype), 2)
        q = x @ own + bias.astype(x.dtype)
        return nn.relu(EdgeBatchNorm(name="bn")(x @ near, q, neighbors, train, axis))


class MeshNet(nn.Module):
    """Descriptors of faces, two mesh convolutions, the maximum over faces, a linear layer."""

    structural: int = 131
    rotate_widths: Sequence[int] = (32, 64)
    num_kernels: int = 64
    num_vectors: int = 4
    spatial: int = 64
    convolutions: Sequence[tuple[int, int]] = ((256, 256), (512, 512))
    """(spatial, structural) features of each."""
    fused: int = 1024
    joined: int = 1024
    features: int = 512
    aggregation: str = "concat"
    dtype: Any = None

    @nn.compact
    def __call__(self, faces: Faces, train: bool = False, axis: str | None = None) -> Array:
        """Faces -> [b, features]."""
        structural = Structural(
            self.structural,
            self.rotate_widths,
            self.num_kernels,
            self.num_vectors,
            self.dtype,
            name="structural",
        )(faces, train, axis)
        spatial = MLP((self.spatial,) * 2, self.dtype, name="spatial")(faces.centers, train, axis)
        outputs = []
        for layer, widths in enumerate(self.convolutions, start=1):
            conv = MeshConv(*widths, self.aggregation, self.dtype, name=f"conv{layer}")
            spatial, structural = conv(spatial, structural, faces.neighbors, train, axis)
            outputs.append(spatial)
        both = jnp.concatenate([spatial, structural], axis=-1)
        outputs.append(MLP((self.fused,), self.dtype, name="fuse")(both, train, axis))
        x = jnp.concatenate(outputs, axis=-1)
        x = MLP((self.joined,), self.dtype, name="join")(x, train, axis).max(axis=1)
        init = uniform_init(x.shape[-1] ** -0.5)
        x = nn.Dense(self.features, False, self.dtype, kernel_init=init, name="out")(x)
        return nn.relu(BatchNorm(name="out_bn")(x, train, axis))
