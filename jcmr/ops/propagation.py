"""Propagation of signals along the edges of a graph, and Chebyshev polynomials of its Laplacian."""

from typing import Any

import jax
import jax.numpy as jnp

from jcmr.core.dtypes import HIGHEST
from jcmr.core.types import Array


@jax.custom_vjp
def symmetric_sum(graph: Any, x: Array) -> Array:
    """Sum over incoming edges of weight * sender's row, [v, n] -> [v, n].

    For graphs whose edges come in both directions with one weight: the matrix is symmetric, so the
    gradient of x is the same sum again, over sorted segments too. Weights get no gradient.
    """
    weighted = graph.edges.astype(x.dtype)[:, None] * x[graph.senders]
    return jax.ops.segment_sum(weighted, graph.receivers, len(x), indices_are_sorted=True)


def _forward(graph: Any, x: Array):
    return symmetric_sum(graph, x), graph


def _backward(graph: Any, cotangent: Array):
    return None, symmetric_sum(graph, cotangent)


symmetric_sum.defvjp(_forward, _backward)


def propagate(operator: Any, x: Array) -> Array:
    """Applies a symmetric operator to a signal x [v, ...].

    Args:
      operator: a graph of `ops.graph` (for large sparse vocabularies, and on CPU) or a matrix
        [v, v] (for small ones, and on TPU); equal in result.
      x: any trailing axes.
    """
    flat = x.reshape(len(x), -1)
    if hasattr(operator, "senders"):
        return symmetric_sum(operator, flat).reshape(x.shape)
    return jnp.matmul(operator.astype(x.dtype), flat, precision=HIGHEST).reshape(x.shape)


def chebyshev(operator: Any, x: Array, num_taps: int) -> Array:
    """T_0 x, ..., T_{k-1} x of the scaled Laplacian, [k, v, ...], for every k >= 1.

    T_0 = x, T_1 = Lx, T_k = 2 L T_{k-1} - T_{k-2}. The official code of SCKR computes 2 L T_1 - T_0
    for every k > 2; up to its own three taps that is the same.
    """
    taps = [x]
    if num_taps > 1:
        taps.append(propagate(operator, x))
    while len(taps) < num_taps:
        taps.append(2 * propagate(operator, taps[-1]) - taps[-2])
    return jnp.stack(taps)
