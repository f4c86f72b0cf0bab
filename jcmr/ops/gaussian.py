"""Similarities of diagonal Gaussians in closed form, [n, m], higher = more alike.

The nine forms that the official PCME code offers on CUB, with its signs and constants. Each takes
means [n, d] and log variances [n, d] of the queries, then those [m, d] of the gallery. The pairs'
values [n, m, d] are summed up as they are made; call them on tiles. `csd`, of PCME++, is a distance
and one matrix product.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jcmr.core import dtypes
from jcmr.core.types import Array
from jcmr.ops.distances import squared_distances


def squared_differences(x: Array, y: Array) -> Array:
    """(x - y)^2 of all pairs, [n, m, d].

    >>> squared_differences(jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2))).tolist()
    [[[1.0, 4.0]]]
    """
    return (x[:, None] - y[None]) ** 2


def negative_l2(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """Minus the squared distance of the means.

    >>> x, y, wide = jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)), jnp.zeros((1, 2))
    >>> negative_l2(x, wide, y, wide).round(4).tolist()
    [[-5.0]]
    """
    del x_log_var, y_log_var
    return -squared_differences(x, y).sum(-1)


def negative_min(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """Minus the smallest squared difference of the means over dimensions.

    >>> x, y, wide = jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)), jnp.zeros((1, 2))
    >>> negative_min(x, wide, y, wide).round(4).tolist()
    [[-1.0]]
    """
    del x_log_var, y_log_var
    return -squared_differences(x, y).min(-1)


def negative_max(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """Minus the largest squared difference of the means over dimensions.

    >>> x, y, wide = jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)), jnp.zeros((1, 2))
    >>> negative_max(x, wide, y, wide).round(4).tolist()
    [[-4.0]]
    """
    del x_log_var, y_log_var
    return -squared_differences(x, y).max(-1)


def expected_likelihood(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """Log of the expected likelihood kernel, without its constant: the log density at 0 of the
    difference of the two (Jebara et al., JMLR 2004).

    A wide item is near everything and most likely nothing: its distances count less, and its
    density is spread thin. Differentiable in O(n m + m d) memory.

    >>> x, y, wide = jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)), jnp.zeros((1, 2))
    >>> round(expected_likelihood(x, wide, y, wide).item(), 4)
    -1.9431
    """
    return likelihood(x, jnp.exp(x_log_var), y, jnp.exp(y_log_var))


def spherical_likelihood(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """`expected_likelihood` of Gaussians that are equally wide in all directions, [n, m].

    One matrix product. Log variances are [n] and [m].

    >>> x, y, wide = jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)), jnp.zeros(1)
    >>> round(spherical_likelihood(x, wide, y, wide).item(), 4)
    -1.9431
    """
    variances = (jnp.exp(dtypes.at_least_float32(v)) for v in (x_log_var, y_log_var))
    x_variance, y_variance = variances
    total = x_variance[:, None] + y_variance
    return -0.5 * (squared_distances(x, y) / total + x.shape[-1] * jnp.log(total))


@jax.custom_vjp
def likelihood(x: Array, x_var: Array, y: Array, y_var: Array) -> Array:
    """`expected_likelihood` of variances, a row at a time; see its gradient below.

    >>> x, y, one = jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)), jnp.ones((1, 2))
    >>> round(likelihood(x, one, y, one).item(), 4)
    -1.9431
    """

    def row(side: tuple[Array, Array]) -> Array:
        mean, var = side
        total = var + y_var
        return -0.5 * ((mean - y) ** 2 / total + jnp.log(total)).sum(-1)

    return lax.map(row, (x, x_var))


def likelihood_forward(x: Array, x_var: Array, y: Array, y_var: Array):
    """(value, what the gradient needs)."""
    return likelihood(x, x_var, y, y_var), (x, x_var, y, y_var)


def likelihood_backward(saved: tuple[Array, ...], cotangent: Array):
    """Written out: five times faster on a CPU than what differentiation makes of the forward pass,
    which holds [n, m, d].
    """
    x, x_var, y, y_var = saved

    def row(sums: tuple[Array, Array], inputs: tuple[Array, Array, Array]):
        mean, var, weight = inputs
        precision = 1 / (var + y_var)
        weighted = weight[:, None] * precision
        pull = weighted * (mean - y)
        widen = 0.5 * (pull * (mean - y) * precision - weighted)
        return (sums[0] + pull, sums[1] + widen), (-pull.sum(0), widen.sum(0))

    zeros = jnp.zeros_like(y), jnp.zeros_like(y_var)
    (d_y, d_y_var), (d_x, d_x_var) = lax.scan(row, zeros, (x, x_var, cotangent))
    return d_x, d_x_var, d_y, d_y_var


likelihood.defvjp(likelihood_forward, likelihood_backward)


def negative_wasserstein(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """Minus the squared 2-Wasserstein distance.

    >>> x, y, wide = jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)), jnp.zeros((1, 2))
    >>> negative_wasserstein(x, wide, y, wide).round(4).tolist()
    [[-5.0]]
    """
    stds = squared_differences(jnp.exp(x_log_var / 2), jnp.exp(y_log_var / 2))
    return -(squared_differences(x, y) + stds).sum(-1)


def negative_kl(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """`kl` of the official code: -sum(vx/vy + (x - y)^2/vy - log(vy/vx)).

    It is no divergence: in KL(query || gallery) the logarithm has the other sign.

    >>> x, y, wide = jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)), jnp.zeros((1, 2))
    >>> negative_kl(x, wide, y, wide).round(4).tolist()
    [[-7.0]]
    """
    log_ratio = x_log_var[:, None] - y_log_var[None]
    scaled = squared_differences(x, y) * jnp.exp(-y_log_var)
    return -(jnp.exp(log_ratio) + scaled + log_ratio).sum(-1)


def negative_reverse_kl(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """`negative_kl` with the sides exchanged.

    >>> x, y, wide = jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)), jnp.zeros((1, 2))
    >>> negative_reverse_kl(x, wide, y, wide).round(4).tolist()
    [[-7.0]]
    """
    return negative_kl(y, y_log_var, x, x_log_var).T


def negative_js(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """`js` of the official code: the sum of both `kl`, whose logarithms cancel.

    That is minus twice Jeffreys' divergence less a constant, not Jensen and Shannon's.

    >>> x, y, wide = jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)), jnp.zeros((1, 2))
    >>> negative_js(x, wide, y, wide).round(4).tolist()
    [[-14.0]]
    """
    return negative_kl(x, x_log_var, y, y_log_var) + negative_reverse_kl(x, x_log_var, y, y_log_var)


def negative_bhattacharyya(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """Minus the Bhattacharyya distance.

    >>> x, y, wide = jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)), jnp.zeros((1, 2))
    >>> negative_bhattacharyya(x, wide, y, wide).round(4).tolist()
    [[-0.625]]
    """
    total = jnp.exp(x_log_var)[:, None] + jnp.exp(y_log_var)[None]
    log_mean = (x_log_var[:, None] + y_log_var[None]) / 2
    overlap = jnp.log(total / 2) - log_mean
    return -(0.25 * squared_differences(x, y) / total + 0.5 * overlap).sum(-1)


def csd(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """Closed-form sampled distance: the expected squared distance of samples (PCME++).

    >>> x, y, wide = jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)), jnp.zeros((1, 2))
    >>> csd(x, wide, y, wide).round(4).tolist()
    [[9.0]]
    """
    variances = (jnp.exp(dtypes.at_least_float32(v)).sum(-1) for v in (x_log_var, y_log_var))
    x_variance, y_variance = variances
    return squared_distances(x, y) + x_variance[:, None] + y_variance


def max_dot(x: Array, y: Array) -> Array:
    """Largest product of any two samples, [n, m], of samples [n, k, d] and [m, k, d].

    >>> max_dot(jnp.array([[[1.0], [3.0]]]), jnp.array([[[2.0], [-1.0]]])).tolist()
    [[6.0]]
    """
    return jnp.einsum("nkd,mld->nmkl", x, y).max((2, 3))
