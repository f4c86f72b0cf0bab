"""Many rows in little memory: sums over them, and towers that see some of them at a time."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp

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


def map_over_chunks(function: Callable[[Any], tuple[Any, Any]], rows: Any, chunk: int = 0) -> Any:
    """`function(block) -> (rows, averages)` of blocks of `chunk` rows; 0 takes all at once.

    Blocks are computed one after the other, and again for the gradient, so that the memory is that
    of one block and of the results. With towers inside and a loss of all results outside, that is
    GradCache (Gao et al., 2021, https://arxiv.org/abs/2101.06983): the negatives of a large batch
    in the memory of a small one, for one more forward pass.

    Args:
      function: from some rows to (a pytree with as many rows for each, or a multiple of them; a
        pytree of what is averaged over blocks, such as running statistics).
      rows: a pytree whose leaves share their leading axis.
      chunk: rows a block.

    Raises:
      ValueError: the blocks are not equal.

    >>> x = jax.numpy.arange(4.0)
    >>> doubled, mean = map_over_chunks(lambda x: (2 * x, x.mean()), x, 2)
    >>> doubled.tolist(), float(mean)
    ([0.0, 2.0, 4.0, 6.0], 1.5)
    """
    size = jax.tree.leaves(rows)[0].shape[0]
    if chunk <= 0 or chunk >= size:
        return function(rows)
    if size % chunk:
        raise ValueError(
            f"The {size} examples of a device cannot be cut into blocks of {chunk}; choose "
            f"config.model.tower_chunk as a divisor."
        )
    blocks = jax.tree.map(lambda x: x.reshape(size // chunk, chunk, *x.shape[1:]), rows)
    outputs, averages = lax.map(jax.checkpoint(function), blocks)
    joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
    return joined, jax.tree.map(lambda x: x.mean(0), averages)


def in_blocks(items: Any, size: int) -> Any:
    """Leaves [n, ...] as [k, b, ...], b <= size, blocks of one size filled up with the last item.

    >>> in_blocks(jax.numpy.arange(5), 3).tolist()
    [[0, 1, 2], [3, 4, 4]]
    """
    num = len(jax.tree.leaves(items)[0])
    blocks = -(-num // size)
    each = -(-num // blocks)

    def fill(x: Array) -> Array:
        missing = [(0, blocks * each - num)] + [(0, 0)] * (x.ndim - 1)
        filled = jnp.pad(x, missing, mode="edge") if blocks * each > num else x
        return filled.reshape(blocks, each, *x.shape[1:])

    return jax.tree.map(fill, items)
