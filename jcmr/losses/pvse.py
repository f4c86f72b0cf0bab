"""The losses of PVSE: the best pair of representations, their diversity, and MMD of modalities.

Song and Soleymani, CVPR 2019 (https://github.com/yalesong/pvse). Each function returns (sum, count)
over this device's rows; `reduction="sum"` of the official code is the sum alone.
"""

import jax.numpy as jnp

from jcmr.core import parallel
from jcmr.core.dtypes import HIGHEST
from jcmr.core.types import Array
from jcmr.ops.similarity import safe_norm


def cosine_pairs(x: Array, y: Array) -> Array:
    """Dot products of all representations, x [n, k, d] and y [m, k, d], [n, m, k, k].

    >>> x = jnp.eye(2)[None]  # one item, two representations
    >>> cosine_pairs(x, x).squeeze().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return jnp.einsum("nkd,mld->nmkl", x, y, precision=HIGHEST)


def order_pairs(x: Array, y: Array) -> Array:
    """Minus the norm of max(y - x, 0) of all representations (order embeddings), [n, m, k, k].

    >>> order_pairs(jnp.array([[[1.0, 0.0]]]), jnp.array([[[1.0, 2.0]]])).item()
    -2.0
    """
    above = jnp.maximum(y[None, :, None, :, :] - x[:, None, :, None, :], 0.0)
    return -safe_norm(above)


def mil_scores(x: Array, y: Array, order: bool = False) -> Array:
    """Score of the best of the k^2 pairs of representations, [n, m] (multiple instance learning).

    Args:
      x: [n, k, d], unit rows; images.
      y: [m, k, d], texts.
      order: compare by `order_pairs`.

    >>> x = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    >>> mil_scores(x, jnp.array([[[0.0, 1.0], [0.6, 0.8]]])).tolist()
    [[1.0]]
    """
    return jnp.max((order_pairs if order else cosine_pairs)(x, y), axis=(2, 3))


def triplet(
    scores: Array, own: Array, margin: float, hardest: bool, valid: Array | None = None
) -> tuple[Array, Array]:
    """Hinge max(0, margin + s_ij - s_ii) of this device's rows against all columns.

    Args:
      scores: [n, m], rows are queries.
      own: bool [n, m], exactly one match a row.
      margin: of scores.
      hardest: only each row's worst mismatch counts; else the mean over all m columns, as
        officially, the match included with 0.
      valid: bool [n, m]; pairs that count. All when None.

    >>> scores, own = jnp.array([[0.5, 0.5], [0.0, 1.0]]), jnp.eye(2, dtype=bool)
    >>> total, count = triplet(scores, own, margin=0.2, hardest=True)
    >>> round(float(total / count), 4)
    0.1
    """
    valid = jnp.ones(scores.shape, bool) if valid is None else valid
    match = jnp.sum(jnp.where(own, scores, 0.0), axis=1, keepdims=True)
    losses = jnp.where(valid & ~own, jnp.maximum(margin + scores - match, 0.0), 0.0)
    if hardest:
        return jnp.sum(jnp.max(losses, axis=1)), jnp.sum(jnp.any(valid, axis=1))
    return jnp.sum(losses), jnp.sum(valid)


def diversity(residuals: Array) -> tuple[Array, Array]:
    """Norm of the off-diagonal cosines among an item's residuals [b, k, d], over k^2.

    >>> total, count = diversity(jnp.eye(2)[None])
    >>> float(total / count)
    0.0
    """
    num_reps = residuals.shape[1]
    norm = safe_norm(residuals)[..., None]
    unit = residuals / jnp.where(norm > 0, norm, 1.0)
    gram = jnp.einsum("bkd,bld->bkl", unit, unit, precision=HIGHEST)
    others = jnp.where(jnp.eye(num_reps, dtype=bool), 0.0, gram)
    norms = safe_norm(others.reshape(len(gram), -1))
    return jnp.sum(norms) / num_reps**2, jnp.asarray(len(gram), norms.dtype)


def laplace_kernel(x: Array, y: Array, gamma: float) -> Array:
    """Exp(-gamma |x - y|), [n, m]; the norm is not squared, as in the official code.

    >>> laplace_kernel(jnp.zeros((1, 2)), jnp.zeros((1, 2)), 1.0).tolist()
    [[1.0]]
    """
    squared = (
        jnp.sum(x * x, -1)[:, None]
        + jnp.sum(y * y, -1)[None, :]
        - 2 * jnp.matmul(x, y.T, precision=HIGHEST)
    )
    # Cancellation leaves about 1e-7 of equal rows, whose distance and gradient are 0.
    positive = squared > 4 * jnp.finfo(squared.dtype).eps
    return jnp.exp(-gamma * jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0))


def mmd(
    x: Array, y: Array, gamma: float | None = None, axis: str | None = None
) -> tuple[Array, Array]:
    """Maximum mean discrepancy of x [n, d] and y [n, d]: mean k(x, x) - 2 k(x, y) + k(y, y).

    Args:
      x: rows of this device.
      y: as many.
      gamma: of `laplace_kernel`; 1 / d when None.
      axis: name of the device axis; columns are those of all devices.

    >>> total, count = mmd(jnp.ones((3, 2)), jnp.ones((3, 2)))
    >>> float(total / count)
    0.0
    """
    gamma = 1.0 / x.shape[-1] if gamma is None else gamma
    all_x, all_y = parallel.all_gather((x, y), axis)
    kernels = laplace_kernel(x, all_x, gamma) + laplace_kernel(y, all_y, gamma)
    kernels = kernels - 2 * laplace_kernel(x, all_y, gamma)
    return jnp.sum(kernels), jnp.asarray(kernels.size, kernels.dtype)
