"""Squared distances of points, as one matrix product or by difference."""

import jax.numpy as jnp

from jcmr.core import dtypes
from jcmr.core.types import Array


def squared_distances(x: Array, y: Array) -> Array:
    """|x_i - y_j|^2 of all pairs, [n, m], of points x [n, d] and y [m, d]; never negative.

    As |x|^2 + |y|^2 - 2 xy in float32 or better: no [n, m, d] is made. Rounding costs some 1e-7 of
    |x|^2 + |y|^2, whatever the distance. Move the origin between the points first if they lie far
    from it, and take `paired_squared_distances` of pairs that may be closer than 0.1 of their norm.

    >>> squared_distances(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0]])).tolist()
    [[25.0]]
    """
    x, y = dtypes.at_least_float32(x), dtypes.at_least_float32(y)
    product = jnp.matmul(x, y.T, precision=dtypes.HIGHEST)
    norms = jnp.sum(x * x, -1)[:, None] + jnp.sum(y * y, -1)
    return jnp.maximum(norms - 2 * product, 0.0)


def paired_squared_distances(x: Array, y: Array) -> Array:
    """|x_k - y_l|^2 within each pair of sets, [..., k, l], of x [..., k, d] and y [..., l, d].

    By difference, so that the relative error is that of one rounding however close two points are.

    >>> paired_squared_distances(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0]])).tolist()
    [[25.0]]
    """
    x, y = dtypes.at_least_float32(x), dtypes.at_least_float32(y)
    return jnp.sum((x[..., :, None, :] - y[..., None, :, :]) ** 2, -1)
