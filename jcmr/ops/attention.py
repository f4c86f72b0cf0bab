"""Softmax attention over a set, with masks that leave no NaN behind."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from jcmr.core.types import Array


def masked_softmax(logits: Array, mask: Array | None = None, axis: int = -1) -> Array:
    """Softmax over the real entries of `axis`; others get weight 0 and no gradient.

    Args:
      logits: any shape; reduced in at least float32.
      mask: broadcastable to logits, True = real; None = all are.
      axis: the axis that sums to 1, or to 0 where nothing is real.

    Returns:
      Weights in [0, 1], of at least float32.

    >>> masked_softmax(jnp.zeros(3), jnp.array([True, True, False])).tolist()
    [0.5, 0.5, 0.0]
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    real = jnp.ones(logits.shape, bool) if mask is None else jnp.broadcast_to(mask, logits.shape)
    lowest = jnp.finfo(logits.dtype).min
    top = jnp.max(jnp.where(real, logits, lowest), axis=axis, keepdims=True)
    weights = jnp.where(real, jnp.exp(jnp.where(real, logits - lax.stop_gradient(top), 0.0)), 0.0)
    total = jnp.sum(weights, axis=axis, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def attention_pool(logits: Array, values: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """Weighted means of a set, one per head.

    Args:
      logits: [b, t, k], one attention per head k.
      values: [b, t, d].
      mask: [b, t], True = real.

    Returns:
      (means [b, k, d] in the dtype of `values`, weights [b, t, k]).

    >>> means, weights = attention_pool(jnp.zeros((1, 2, 1)), jnp.array([[[1.0], [3.0]]]))
    >>> means.tolist()
    [[[2.0]]]
    """
    weights = masked_softmax(logits, None if mask is None else mask[..., None], axis=1)
    return jnp.einsum("btk,btd->bkd", weights.astype(values.dtype), values), weights


def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    drop: Callable[[Array], Array] = lambda weights: weights,
) -> Array:
    """Scaled dot-product attention in heads h (Vaswani et al., 2017); 0 where nothing is real.

    Args:
      query: [b, t, h, d].
      key: [b, s, h, d].
      value: [b, s, h, d].
      mask: [b, s], True = real.
      drop: applied to the weights [b, h, t, s].

    Returns:
      [b, t, h, d] in the dtype of `value`.

    >>> one = jnp.ones((1, 2, 1, 4))
    >>> attend(one, one, 3 * one).shape, float(attend(one, one, 3 * one)[0, 0, 0, 0])
    ((1, 2, 1, 4), 3.0)
    """
    logits = jnp.einsum("bthd,bshd->bhts", query, key) * query.shape[-1] ** -0.5
    weights = drop(masked_softmax(logits, None if mask is None else mask[:, None, None]))
    return jnp.einsum("bhts,bshd->bthd", weights.astype(value.dtype), value)


def masked_mean(values: Array, mask: Array | None = None) -> Array:
    """Mean of [b, t, d] over the real t, [b, d]; 0 where nothing is real.

    >>> masked_mean(jnp.array([[[1.0], [9.0]]]), jnp.array([[True, False]])).tolist()
    [[1.0]]
    """
    if mask is None:
        return jnp.mean(values, axis=1)
    real = mask[..., None].astype(values.dtype)
    return jnp.sum(jnp.where(mask[..., None], values, 0), axis=1) / jnp.maximum(real.sum(axis=1), 1)
