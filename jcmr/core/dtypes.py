"""Numeric policy: parameters and losses in float32, towers optionally in bfloat16."""

import jax.numpy as jnp
from jax import lax

from jcmr.core.types import Array

HIGHEST = lax.Precision.HIGHEST
"""For products whose equality with a reference matters; accelerators round f32 inputs otherwise."""


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype of the towers' matrix products, from the config's `dtype`.

    Raises:
      ValueError: neither "float32" nor "bfloat16" (float16 would need loss scaling).
    """
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is 'float32' or 'bfloat16', not {name!r}.")
    return jnp.dtype(name)


def at_least_float32(x: Array) -> Array:
    """Casts to float32, unless x is float64: what norms, distances and sums are computed in."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
