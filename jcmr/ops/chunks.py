"""Sums over many rows in little memory."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jcmr.core.types import Array


def sum_over_chunks(function: Callable[[Any], Any], rows: Any, chunk: int = 0) -> Any:
    """Sum of `function(block)` over blocks of at most `chunk` rows; 0 takes all rows at once.

    Blocks are computed one after the other, and again for the gradient, so that the memory is that
    of one block. The value and the gradient are those of `function(rows)` but for rounding, if
    `function` is a sum over rows.

    Args:
      function: from some of the rows to a pytree of sums.
      rows: a pytree whose leaves share their leading axis.
      chunk: rows a block; the last block may have fewer.

    >>> float(sum_over_chunks(lambda x: (x**2).sum(), jax.numpy.arange(5.0), chunk=2))
    30.0
    """
    size = jax.tree.leaves(rows)[0].shape[0]
    if chunk <= 0 or chunk >= size:
        return function(rows)
    function = jax.checkpoint(function)
    whole = size - size % chunk

    def blocks(x: Array) -> Array:
        return x[:whole].reshape(whole // chunk, chunk, *x.shape[1:])

    total = jax.tree.map(lambda x: x.sum(0), lax.map(function, jax.tree.map(blocks, rows)))
    if whole == size:
        return total
    rest = function(jax.tree.map(lambda x: x[whole:], rows))
    return jax.tree.map(lambda a, b: a + b, total, rest)
