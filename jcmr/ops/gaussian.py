"""Similarities of diagonal Gaussians in closed form, [n, m], higher = more alike.

The nine forms that the official PCME code offers on CUB, with its signs and constants. Each takes
means [n, d] and log variances [n, d] of the queries, then those [m, d] of the gallery. The pairs'
values [n, m, d] are summed up as they are made; call them on tiles. `csd`, of PCME++, is a distance
and one matrix product.
"""

import jax.numpy as jnp

from jcmr.core import dtypes
from jcmr.core.types import Array
from jcmr.ops.distances import squared_distances


def squared_differences(x: Array, y: Array) -> Array:
    """(x - y)^2 of all pairs, [n, m, d]."""
    return (x[:, None] - y[None]) ** 2


def negative_l2(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """Minus the squared distance of the means."""
    del x_log_var, y_log_var
    return -squared_differences(x, y).sum(-1)


def negative_min(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """Minus the smallest squared difference of the means over dimensions."""
    del x_log_var, y_log_var
    return -squared_differences(x, y).min(-1)


def negative_max(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """Minus the largest squared difference of the means over dimensions."""
    del x_log_var, y_log_var
    return -squared_differences(x, y).max(-1)


def expected_likelihood(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """Log of the expected likelihood kernel, without its constant: the log density at 0 of the
    difference of the two.
    """
    total = jnp.exp(x_log_var)[:, None] + jnp.exp(y_log_var)[None]
    return -0.5 * (squared_differences(x, y) / total + jnp.log(total)).sum(-1)


def negative_wasserstein(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """Minus the squared 2-Wasserstein distance."""
    stds = squared_differences(jnp.exp(x_log_var / 2), jnp.exp(y_log_var / 2))
    return -(squared_differences(x, y) + stds).sum(-1)


def negative_kl(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """`kl` of the official code: -sum(vx/vy + (x - y)^2/vy - log(vy/vx)).

    It is no divergence: in KL(query || gallery) the logarithm has the other sign.
    """
    log_ratio = x_log_var[:, None] - y_log_var[None]
    scaled = squared_differences(x, y) * jnp.exp(-y_log_var)
    return -(jnp.exp(log_ratio) + scaled + log_ratio).sum(-1)


def negative_reverse_kl(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """`negative_kl` with the sides exchanged."""
    return negative_kl(y, y_log_var, x, x_log_var).T


def negative_js(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """`js` of the official code: the sum of both `kl`, whose logarithms cancel.

    That is minus twice Jeffreys' divergence less a constant, not Jensen and Shannon's.
    """
    return negative_kl(x, x_log_var, y, y_log_var) + negative_reverse_kl(x, x_log_var, y, y_log_var)


def negative_bhattacharyya(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """Minus the Bhattacharyya distance."""
    total = jnp.exp(x_log_var)[:, None] + jnp.exp(y_log_var)[None]
    log_mean = (x_log_var[:, None] + y_log_var[None]) / 2
    overlap = jnp.log(total / 2) - log_mean
    return -(0.25 * squared_differences(x, y) / total + 0.5 * overlap).sum(-1)


def csd(x: Array, x_log_var: Array, y: Array, y_log_var: Array) -> Array:
    """Closed-form sampled distance: the expected squared distance of samples (PCME++)."""
    variances = (jnp.exp(dtypes.at_least_float32(v)).sum(-1) for v in (x_log_var, y_log_var))
    x_variance, y_variance = variances
    return squared_distances(x, y) + x_variance[:, None] + y_variance


def max_dot(x: Array, y: Array) -> Array:
    """Largest product of any two samples, [n, m], of samples [n, k, d] and [m, k, d]."""
    return jnp.einsum("nkd,mld->nmkl", x, y).max((2, 3))
