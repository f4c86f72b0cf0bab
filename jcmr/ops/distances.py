"""Squared distances of points, as one matrix product or by difference."""

import jax
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
    pairs = jnp.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    return differences_squared(*(jnp.broadcast_to(z, (*pairs, *z.shape[-2:])) for z in (x, y)))


@jax.custom_vjp
def differences_squared(x: Array, y: Array) -> Array:
    """`paired_squared_distances` of as many sets x as y. No difference is kept for the gradient.

    >>> differences_squared(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0]])).tolist()
    [[25.0]]
    """
    return jnp.sum((x[..., :, None, :] - y[..., None, :, :]) ** 2, -1)


def _forward(x: Array, y: Array):
    return differences_squared(x, y), (x, y)


def _backward(saved: tuple[Array, Array], cotangent: Array):
    x, y = saved
    # sum_l g_kl (x_k - y_l) as products, around the middle of a pair: their rounding is that of its
    # spread, not of its distance from the origin.
    center, g = y.mean(-2, keepdims=True), 2 * cotangent
    x, y = x - center, y - center
    by_x = x * g.sum(-1)[..., None] - jnp.matmul(g, y, precision=dtypes.HIGHEST)
    by_y = y * g.sum(-2)[..., None] - jnp.matmul(g.mT, x, precision=dtypes.HIGHEST)
    return by_x, by_y


differences_squared.defvjp(_forward, _backward)
