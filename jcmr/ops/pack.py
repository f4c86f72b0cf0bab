"""Sets that are padded in the middle, without their padding."""

import jax.numpy as jnp

from jcmr.core.types import Array


def pack(x: Array, mask: Array, size: int) -> tuple[Array, Array]:
    """The first `size` real items of each set, in their order; what comes after them is lost.

    Args:
      x: [b, t, d].
      mask: [b, t], True = real, anywhere.
      size: at most t.

    Returns:
      ([b, size, d], [b, size]): real ones first.

    >>> x, mask = jnp.arange(4.0).reshape(1, 4, 1), jnp.array([[False, True, False, True]])
    >>> items, real = pack(x, mask, 3)
    >>> items[0, :2, 0].tolist(), real.tolist()
    ([1.0, 3.0], [[True, True, False]])
    """
    order = jnp.argsort(~mask, axis=1, stable=True)[:, :size]
    return (
        jnp.take_along_axis(x, order[..., None], axis=1),
        jnp.take_along_axis(mask, order, axis=1),
    )
