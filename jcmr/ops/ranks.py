"""Ranks by counting: where a match is found is how many items are ahead of it.

Ties are pessimistic everywhere: an item that does not match ranks ahead of one that matches with
the same score, so that a constant score is worth nothing. Ranks count from 0, the top.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jcmr.core.types import Array

ABSENT = 1 << 30
"""Rank of a match that is not there."""
MOST = 1 << 10
"""With more matches a row than that, sorting its misses costs less than counting them."""
ROWS = 1 << 5
"""Rows at a time on a CPU: so they stay in its cache."""
WORD = 32
"""Columns that are looked at as the bits of a word."""
LANES = 96
"""Counts that are kept side by side, in int8."""


def best_positive(scores: Array, positive: Array) -> Array:
    """Highest score among each row's matches, [n]; -inf without one.

    Args:
      scores: [n, m].
      positive: bool [n, m], matches.

    >>> best_positive(jnp.array([[0.9, 0.5]]), jnp.array([[False, True]])).tolist()
    [0.5]
    """
    return jnp.max(jnp.where(positive, scores, -jnp.inf), axis=1)


def count_ahead(scores: Array, negative: Array, best: Array) -> Array:
    """How many items rank ahead of each row's best match, int32 [n]: its rank.

    Counts of tiles of one row add up. `best` must come from the same compiled product as `scores`:
    a sum in another order differs in the last bit, and equal pairs change places.

    Args:
      scores: [n, m].
      negative: bool [n, m], the gallery's items that do not match.
      best: [n], from `best_positive`.

    >>> scores, negative = jnp.array([[0.9, 0.5]]), jnp.array([[True, False]])
    >>> count_ahead(scores, negative, jnp.array([0.5])).tolist()
    [1]
    """
    return jnp.sum(negative & (scores >= best[:, None]), axis=1, dtype=jnp.int32)


def by_rows(function: Callable[..., Any], *rows: Array) -> Any:
    """`function` of each row of arrays [n, ...].

    >>> by_rows(lambda row: row.max(), jnp.array([[1, 3], [2, 0]])).tolist()
    [3, 2]
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(function)(*rows)
    return lax.map(lambda row: function(*row), rows, batch_size=ROWS)


def sortable(x: Array) -> Array:
    """Integers in the order of floats, which are faster to sort; both zeros are one.

    >>> sortable(jnp.array([-0.0, 0.0, 1.0, -jnp.inf])).argsort().tolist()
    [3, 0, 1, 2]
    """
    kind = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
    bits = lax.bitcast_convert_type(jnp.where(x == 0, 0, x), kind)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(kind).max, bits)


def true_columns(mask: Array, most: int) -> Array:
    """Where bool `mask` [m] is true, int32 [most] in no order; m from the last one on.

    A prefix sum over words of bits finds each word, and halving it the bit: a tenth of a sort.

    >>> true_columns(jnp.array([False, True, True]), 3).tolist()
    [1, 2, 3]
    """
    num_words = -(-len(mask) // WORD)
    bits = jnp.pad(mask, (0, WORD * num_words - len(mask))).reshape(WORD, num_words)
    shifts = jnp.arange(WORD, dtype=jnp.uint32)[:, None]
    words = jnp.sum(bits.astype(jnp.uint32) << shifts, axis=0, dtype=jnp.uint32)
    ends = jnp.cumsum(lax.population_count(words).astype(jnp.int32))
    place = jnp.arange(most, dtype=jnp.int32)
    column = jnp.searchsorted(ends, place, side="right").astype(jnp.int32)
    left = place - jnp.where(column > 0, ends[column - 1], 0)
    word = words[jnp.minimum(column, num_words - 1)]
    bit = jnp.zeros_like(left)
    for half in (16, 8, 4, 2, 1):
        low = lax.population_count(word & jnp.uint32((1 << half) - 1)).astype(jnp.int32)
        above = left >= low
        word = jnp.where(above, word >> half, word)
        left = jnp.where(above, left - low, left)
        bit = bit + jnp.where(above, half, 0)
    return jnp.where(column < num_words, bit * num_words + column, len(mask))


def count_at_least(keys: Array, limits: Array) -> Array:
    """How many of `keys` [m] are as large as each of `limits` [p], int32 [p].

    >>> count_at_least(jnp.array([3, 1, 2]), jnp.array([2, 4])).tolist()
    [2, 0]
    """
    if len(limits) > MOST:
        return len(keys) - jnp.searchsorted(jnp.sort(keys), limits).astype(jnp.int32)
    # Up to 127 comparisons are added up in int8, four times as many at once as in int32.
    lines = len(keys) // LANES
    parts = max(-(-lines // 127), 1)
    whole = lines // parts * parts * LANES
    lanes = keys[:whole].reshape(parts, -1, LANES) if whole else keys[:0].reshape(1, 0, LANES)
    some = jnp.sum(lanes >= limits[:, None, None, None], axis=2, dtype=jnp.int8)
    rest = jnp.sum(keys[whole:, None] >= limits, axis=0, dtype=jnp.int32)
    return jnp.sum(some, axis=(1, 2), dtype=jnp.int32) + rest


def match_ranks(scores: Array, positive: Array, negative: Array, most: int) -> tuple[Array, Array]:
    """Ranks of each row's matches, and how many misses it has.

    The rank of a match is its place among the matches and the number of misses that score as high.
    No row is sorted for that, only its matches are.

    Args:
      scores: [n, m].
      positive: bool [n, m], matches.
      negative: bool [n, m], items of the gallery that do not match.
      most: at least the largest number of matches of a row.

    Returns:
      (ranks int32 [n, most], best first, ABSENT from the last match on; misses int32 [n]).

    >>> scores, positive = jnp.array([[0.1, 0.9, 0.5]]), jnp.array([[True, False, True]])
    >>> found, num_misses = match_ranks(scores, positive, ~positive, 2)
    >>> found.tolist(), num_misses.tolist()
    ([[1, 2]], [1])
    """
    keys = sortable(scores)
    lowest = jnp.iinfo(keys.dtype).min  # below that of -inf
    columns = by_rows(lambda row: true_columns(row, most), positive)
    own = jnp.take_along_axis(keys, columns, axis=1, mode="fill", fill_value=lowest)
    own = jnp.sort(own, axis=1)[:, ::-1]
    limits = jnp.pad(own, ((0, 0), (0, 1)), constant_values=lowest + 1)
    ahead = by_rows(count_at_least, jnp.where(negative, keys, lowest), limits)
    return jnp.where(own > lowest, jnp.arange(most) + ahead[:, :-1], ABSENT), ahead[:, -1]


def without_last(scores: Array, valid: Array) -> Array:
    """`valid` [n, m] without each row's last-ranked item (of equal ones that with the highest
    index), which the official PMRP code loses by slicing its rankings to [:-1].

    >>> without_last(jnp.array([[0.1, 0.9]]), jnp.ones((1, 2), bool)).tolist()
    [[False, True]]
    """
    ascending = jnp.where(valid, scores, jnp.inf)[:, ::-1]
    last = scores.shape[1] - 1 - jnp.argmin(ascending, axis=1)
    return valid & (jnp.arange(scores.shape[1]) != last[:, None])


def hits_within(found: Array, count: Array | int) -> Array:
    """Matches among the first `count` (of each row [n], or of all), int32 [n].

    Args:
      found: int [n, p] from `match_ranks`.
      count: less than ABSENT.

    >>> hits_within(jnp.array([[0, 2]]), 2).tolist()
    [1]
    """
    return jnp.sum(found < jnp.asarray(count)[..., None], axis=1, dtype=jnp.int32)


def r_precision(found: Array, num_matches: Array) -> Array:
    """Share of matches among the first R, [n], where R = `num_matches` [n]; 0 without a match.

    Args:
      found: int [n, p] from `match_ranks`.
      num_matches: int [n].

    >>> r_precision(jnp.array([[0, 2]]), jnp.array([2])).tolist()
    [0.5]
    """
    return hits_within(found, num_matches) / jnp.maximum(num_matches, 1)


def average_precision(found: Array, num_matches: Array, within: Array | int = ABSENT) -> Array:
    """1/R * sum over matches of the precision at their rank, [n]; arguments as in `r_precision`.

    This is AP; mAP is its mean over queries. Matches that are not among the first `within` add
    nothing.

    >>> average_precision(jnp.array([[0]]), jnp.array([1])).tolist()
    [1.0]
    """
    precision = jnp.arange(1, found.shape[1] + 1) / (found + 1)
    inside = found < jnp.asarray(within)[..., None]
    return jnp.sum(jnp.where(inside, precision, 0.0), axis=1) / jnp.maximum(num_matches, 1)


def map_at_r(found: Array, num_matches: Array) -> Array:
    """`average_precision` of the first R alone, [n] (Musgrave et al., ECCV 2020).

    >>> map_at_r(jnp.array([[1, 2]]), jnp.array([2])).tolist()
    [0.25]
    """
    return average_precision(found, num_matches, num_matches)


def average_precision_found(found: Array, k: int) -> Array:
    """Mean of the precision at the matches among the first k, [n]; 0 without one.

    Its denominator is the number of matches found there, not that of all: the "MAP@50" and
    "MAP@100" of several papers and of the code of SCKR.

    Args:
      found: int [n, p] from `match_ranks`.
      k: cut-off.

    >>> average_precision_found(jnp.array([[1, 2]]), 2).tolist()
    [0.5]
    """
    return average_precision(found, hits_within(found, k), k)
