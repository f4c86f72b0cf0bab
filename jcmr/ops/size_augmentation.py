"""Sets of random size: words and regions left out in training (Chen et al., CVPR 2021, 3.3)."""

import jax
import jax.numpy as jnp

from jcmr.core.types import Array

MASKED, REPLACED = 0.5, 0.6
"""Of words that are hit, the first half become the mask word, the next tenth random words, and the
others are deleted."""


def keep_regions(keys: Array, num_regions: int, rate: float) -> Array:
    """Which regions stay when each is dropped with probability `rate`, bool [b, r]; at least one.

    Args:
      keys: [b], one per example.
      num_regions: r.
      rate: in [0, 1).

    >>> keep_regions(jax.random.split(jax.random.key(0), 1), 3, rate=0.0).tolist()
    [[True, True, True]]
    """
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, (num_regions,)))(keys)
    return kept.at[:, 0].set(kept[:, 0] | ~kept.any(axis=1))


def drop_words(keys: Array, text: Array, rate: float, num_words: int, mask_id: int) -> Array:
    """Captions of which each word but the first and last (start and end) is hit with `rate`.

    Args:
      keys: [b], one per caption.
      text: word ids int [b, t], 0 = pad.
      rate: in [0, 1).
      num_words: random words have ids from 4 (the special ones come first) to `num_words` - 1.
      mask_id: id of the mask word.

    Returns:
      int [b, t], words that were deleted closed up and padded with 0.

    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> drop_words(keys, jnp.array([[1, 5, 2, 0]]), 0.0, num_words=9, mask_id=9).tolist()
    [[1, 5, 2, 0]]
    """

    def one(key: Array, ids: Array) -> Array:
        hit_key, kind_key, word_key = jax.random.split(key, 3)
        position = jnp.arange(len(ids))
        inner = (position > 0) & (position < jnp.sum(ids > 0) - 1)
        hit = inner & jax.random.bernoulli(hit_key, rate, ids.shape)
        kind = jax.random.uniform(kind_key, ids.shape)
        other = jax.random.randint(word_key, ids.shape, 4, num_words, ids.dtype)
        ids = jnp.where(hit & (kind < MASKED), mask_id, ids)
        ids = jnp.where(hit & (kind >= MASKED) & (kind < REPLACED), other, ids)
        ids = jnp.where(hit & (kind >= REPLACED), 0, ids)
        return ids[jnp.argsort(ids == 0, stable=True)]

    return jax.vmap(one)(keys, text)
