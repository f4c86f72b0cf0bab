"""Cross-modal center loss (Jing et al., CVPR 2021): one center per class, for all modalities."""

from collections.abc import Sequence
from itertools import combinations

import jax
import jax.numpy as jnp
from jax import lax

from jcmr.core import parallel
from jcmr.core.types import Array


def center_loss(features: Array, centers: Array, labels: Array) -> tuple[Array, int]:
    """(sum, count) of the squared distances of features to the centers of their classes.

    No half and no mean over d, as in the official code, which computes all c distances and keeps
    one; here only that one is computed.

    Args:
      features: [n, d], those of several modalities one after another.
      centers: [c, d].
      labels: int [n], in 0 to c - 1.

    >>> features = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> centers = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    >>> total, count = center_loss(features, centers, jnp.array([0, 1]))
    >>> float(total), count
    (4.0, 2)
    """
    wide = jnp.promote_types(features.dtype, jnp.float32)
    difference = features.astype(wide) - centers[labels].astype(wide)
    return jnp.sum(difference * difference), len(labels)


def scale_gradient(x: Array, scale: Array | float) -> Array:
    """x, exactly, with `scale` times its gradient.

    >>> float(jax.grad(lambda x: scale_gradient(x, 10.0) ** 2)(3.0))
    60.0
    """
    fixed = lax.stop_gradient(x)
    return fixed + scale * (x - fixed)


def with_official_update(centers: Array, weight: float) -> Array:
    """Centers whose gradient does not depend on the weight of the center loss.

    Plain gradient descent then moves a center by rate * 2 / n * sum over its n_j features of
    (f - c): a class moves the more the more of its features are in a batch of n.

    >>> moved = jax.grad(lambda c: with_official_update(c, 10.0).sum() * 10.0)(jnp.zeros((1, 2)))
    >>> moved.tolist()
    [[1.0, 1.0]]
    """
    return scale_gradient(centers, 1.0 / weight)


def with_normalised_update(
    centers: Array, weight: float, labels: Array, axis: str | None = None
) -> Array:
    """Centers whose gradient is sum(c - f) / (1 + n_j) over the n_j features of each class.

    The rule of Wen et al., ECCV 2016, eq. 4: plain gradient descent moves every center that has
    features by the same share of the way to their mean, whatever their number.

    Args:
      centers: [c, d].
      weight: of the center loss in the objective, not 0.
      labels: of the features that enter `center_loss`, int [n].
      axis: device axis over which they are shared.

    >>> centers, labels = jnp.zeros((1, 1)), jnp.array([0, 0, 0])
    >>> def loss(c):
    ...     c = with_normalised_update(c, 1.0, labels)
    ...     total, count = center_loss(jnp.ones((3, 1)), c, labels)
    ...     return total / count
    ...
    >>> float(jax.grad(loss)(centers)[0, 0])  # 3 features, each 1 away: -3 / (1 + 3)
    -0.75
    """
    ones = jnp.ones(len(labels), centers.dtype)
    counts = jax.ops.segment_sum(ones, labels, num_segments=len(centers))
    counts = parallel.psum(counts, axis)
    return scale_gradient(centers, (counts.sum() / (2 * weight * (1 + counts)))[:, None])


def pairwise_mse(features: Sequence[Array]) -> tuple[Array, int]:
    """(sum, count) of the squared differences between the modalities of each object.

    sum / count is the sum over pairs of modalities of the mean over objects and dimensions.

    Args:
      features: one [n, d] for each modality.

    >>> total, count = pairwise_mse([jnp.ones((2, 3)), jnp.zeros((2, 3))])
    >>> float(total / count)
    1.0
    """
    wide = jnp.promote_types(features[0].dtype, jnp.float32)
    wider = [x.astype(wide) for x in features]
    total = sum((jnp.sum((x - y) ** 2) for x, y in combinations(wider, 2)), jnp.zeros((), wide))
    return total, features[0].size
