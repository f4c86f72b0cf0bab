"""Norms and distances that have no NaN in their gradients."""

import jax.numpy as jnp

from jcmr.core.types import Array


def safe_norm(x: Array) -> Array:
    """Euclidean norm along the last axis, in at least float32; its gradient at 0 is 0.

    >>> safe_norm(jnp.array([3.0, 4.0])).item()
    5.0
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squared = jnp.sum(x * x, axis=-1)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
