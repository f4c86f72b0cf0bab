"""The pairwise global loss: scores of matches and of mismatches, each close together, far apart.

Kumar, Carneiro and Reid, CVPR 2016, as in the code of SCKR (Yu et al., arXiv 1810.13151):
var+ + var- + lambda * max(0, mu - (mean+ - mean-)), with the variances of all scores of matches and
of all scores of mismatches (divided by their numbers).
"""

import jax.numpy as jnp
from jax import lax

from jcmr.core import parallel
from jcmr.core.types import Array, Term, Terms


def pairwise_global(
    scores: Array,
    positive: Array,
    valid: Array | None = None,
    gap_weight: float = 0.35,
    margin: float = 0.8,
    axis: str | None = None,
) -> Terms:
    """The loss as terms `variance_positive`, `variance_negative` and `gap`.

    Means are those of all devices. As a variance does not change to first order with the mean it is
    taken around, and the hinge is linear where it is active, each device needs only its own scores
    to have its share of value and gradient.

    Args:
      scores: any shape; this device's pairs, for instance its rows against all columns.
      positive: bool, the same shape: matches.
      valid: bool, the same shape; pairs that count. All when None.
      gap_weight: lambda; 0.35 in the official code.
      margin: mu; 0.8 in the official code, 0.6 recalled from the paper.
      axis: name of the device axis.

    Returns:
      Terms; without a match or without a mismatch anywhere the missing variance and the gap are 0.

    >>> scores = jnp.array([[2.0, 0.0], [0.0, 2.0]])
    >>> terms = pairwise_global(scores, jnp.eye(2, dtype=bool))
    >>> {name: float(term.sum) for name, term in terms.items()}
    {'variance_positive': 0.0, 'variance_negative': 0.0, 'gap': 0.0}
    """
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    valid = jnp.ones(scores.shape, bool) if valid is None else valid
    masks = jnp.stack([valid & positive, valid & ~positive])
    counts = jnp.sum(masks, axis=tuple(range(1, masks.ndim)), dtype=scores.dtype)
    sums = jnp.sum(jnp.where(masks, scores, 0.0), axis=tuple(range(1, masks.ndim)))
    totals, all_counts = parallel.psum((lax.stop_gradient(sums), counts), axis)
    means = totals / jnp.maximum(all_counts, 1)
    centre = jnp.where(positive, means[0], means[1])
    squares = (scores - centre) ** 2
    active = (margin - (means[0] - means[1]) > 0) & jnp.all(all_counts > 0)
    share = 1.0 / (1 if axis is None else lax.axis_size(axis))  # adds up to 1 over devices
    own = sums / jnp.maximum(all_counts, 1)
    gap = jnp.where(active, margin * share - (own[0] - own[1]), 0.0)
    return {
        "variance_positive": Term(jnp.sum(jnp.where(masks[0], squares, 0.0)), counts[0]),
        "variance_negative": Term(jnp.sum(jnp.where(masks[1], squares, 0.0)), counts[1]),
        "gap": Term(gap, share, gap_weight),
    }
