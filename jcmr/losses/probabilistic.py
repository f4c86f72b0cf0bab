"""Losses of probabilistic embeddings: PCME, PCME++, and the InfoNCE of their deterministic twins.

Pure functions of arrays that return sums, so that masks and uneven shards never bias a mean. Chun
et al., CVPR 2021 (https://arxiv.org/abs/2101.05068); Chun, ICLR 2024
(https://arxiv.org/abs/2305.18171). Letters: n images, m captions, k and l samples, d features.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jcmr.core import dtypes
from jcmr.core.types import Array
from jcmr.losses.targets import Targets
from jcmr.ops.distances import paired_squared_distances, squared_distances

MAX_UNIFORM_SAMPLES = 128
"""Of the uniformity loss: the official code compares at most 128^2 pairs."""


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def log_mean_sigmoids(logits: Array, axes: tuple[int, int]) -> tuple[Array, Array]:
    """(log p, log(1 - p)) where p is the mean of sigmoid(logits) over `axes`.

    In log space, so that a p that float32 cannot hold neither ties nor gives a NaN. The gradient is
    written out, as it needs the logits and the result alone: a third of the memory.

    >>> log_p, log_not_p = log_mean_sigmoids(jnp.zeros((1, 2, 2)), (1, 2))
    >>> float(jnp.exp(log_p)[0]), float(jnp.exp(log_not_p)[0])
    (0.5, 0.5)
    """
    count = jnp.log(logits.shape[axes[0]] * logits.shape[axes[1]])
    # sigmoid(z) = exp(min(z, 0)) / (1 + exp(-|z|)): three exponentials serve both sums, and no
    # logarithm is taken of anything but a sum.
    share = 1 / (1 + jnp.exp(-jnp.abs(logits)))

    def log_sum(z: Array) -> Array:
        low = jnp.minimum(z, 0.0)
        top = jnp.max(low, axis=axes, keepdims=True)
        return jnp.log(jnp.sum(jnp.exp(low - top) * share, axis=axes)) + jnp.squeeze(top, axes)

    return log_sum(logits) - count, log_sum(-logits) - count


def _forward(logits: Array, axes: tuple[int, int]):
    logs = log_mean_sigmoids(logits, axes)
    return logs, (logits, logs)


def _backward(axes: tuple[int, int], saved, cotangents):
    logits, logs = saved
    # The slope of a sigmoid, exp(-|z|) / (1 + exp(-|z|))^2, over p and the number of logits is at
    # most 1, although neither can be held alone.
    far = -jnp.abs(logits)
    share = 1 / (1 + jnp.exp(far))
    far -= jnp.log(logits.shape[axes[0]] * logits.shape[axes[1]])
    (of_p, of_q), (p, q) = ([jnp.expand_dims(x, axes) for x in pair] for pair in (cotangents, logs))
    return ((of_p * jnp.exp(far - p) - of_q * jnp.exp(far - q)) * share * share,)


log_mean_sigmoids.defvjp(_forward, _backward)


def log_mean_probabilities(
    squared: Array, shift: Array, scale: Array, axes: tuple[int, int]
) -> tuple[Array, Array]:
    """(log p, log(1 - p)), p the mean of sigmoid(2 (shift - scale * distance)) over `axes`.

    The distance is the root of the squared one plus 1e-6, as in the official code; its gradient is
    finite at 0.

    >>> zero = jnp.zeros((1, 1, 1))
    >>> log_p, _ = log_mean_probabilities(zero, jnp.array(0.0), jnp.array(1.0), (1, 2))
    >>> bool(jnp.isclose(jnp.exp(log_p)[0], 0.4995, atol=1e-4))
    True
    """
    return log_mean_sigmoids(2 * (shift - scale * jnp.sqrt(squared + 1e-6)), axes)


def log_match_probability(x: Array, y: Array, shift: Array, scale: Array) -> tuple[Array, Array]:
    """(log p, log(1 - p)) of pairs [n, m] from samples x [n, k, d] and y [m, l, d] (PCME).

    A pair's value depends on nothing but the pair: good for scores. Memory O(n k m l).

    >>> x = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])  # two items, one sample each
    >>> log_p, _ = log_match_probability(x, x, jnp.array(5.0), jnp.array(10.0))
    >>> (jnp.exp(log_p) > 0.5).tolist()
    [[True, False], [False, True]]
    """
    # Items last: a CPU takes exponentials in vectors along the last axis, which samples are too few
    # to fill.
    (n, k, d), (m, l, _) = x.shape, y.shape
    x, y = x.swapaxes(0, 1).reshape(k * n, d), y.swapaxes(0, 1).reshape(l * m, d)
    squared = squared_distances(x, y).reshape(k, n, l, m)
    return log_mean_probabilities(squared, shift, scale, (0, 2))


def soft_contrastive(
    x: Array, y: Array, shift: Array, scale: Array, targets: Targets, own: Array | None = None
) -> Array:
    """Sum over the pairs that count of the soft contrastive loss (PCME).

    -log p of a match, -log(1 - p) of a mismatch, and between them for a target between 1 and 0.
    The official code adds up the same sum twice, as image to text and as text to image.

    Args:
      x: samples [n, k, d] of the rows.
      y: samples [m, l, d] of the columns.
      shift: of the logit, a scalar.
      scale: of the distance in the logit (`negative_scale`), a scalar.
      targets: [n, m]. What rows and columns without a valid pair hold does not matter.
      own: [n, c], the columns of each row that may come very close to it, none twice. Their
        distances are taken by difference: at a distance of 0.01 in 1024 dimensions the matrix
        product is off by 5e-5, the difference by 1e-9.

    >>> x = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> targets = Targets(jnp.eye(2), jnp.ones((2, 2)))
    >>> float(soft_contrastive(x, x, jnp.array(5.0), jnp.array(10.0), targets)) < 0.01
    True
    """
    x = jnp.where(targets.valid.any(1)[:, None, None], dtypes.at_least_float32(x), 0.0)
    y = jnp.where(targets.valid.any(0)[:, None, None], dtypes.at_least_float32(y), 0.0)
    # Distances do not change with the origin, their rounding does.
    center = lax.stop_gradient(y.mean((0, 1)))
    x, y = x - center, y - center
    log_match, log_mismatch = log_match_probability(x, y, shift, scale)
    if own is not None:
        squared = paired_squared_distances(x[:, None], y[own])
        near = log_mean_probabilities(squared, shift, scale, (2, 3))
        at = jnp.arange(len(x))[:, None], own
        log_match, log_mismatch = log_match.at[at].set(near[0]), log_mismatch.at[at].set(near[1])
    losses = -(targets.positive * log_match + (1 - targets.positive) * log_mismatch)
    return pair_sum(losses, targets)


def binary_cross_entropy(logits: Array, targets: Targets) -> Array:
    """Sum over the pairs that count of the loss of logits [n, m] (PCME++).

    >>> targets = Targets(jnp.eye(2), jnp.ones((2, 2)))
    >>> round(float(binary_cross_entropy(jnp.zeros((2, 2)), targets)), 4)  # 4 log 2
    2.7726
    """
    return pair_sum(optax.sigmoid_binary_cross_entropy(logits, targets.positive), targets)


def pair_sum(losses: Array, targets: Targets) -> Array:
    """Sum of losses [n, m] over the pairs that count.

    >>> float(pair_sum(jnp.ones((2, 2)), Targets(jnp.eye(2), 1 - jnp.eye(2))))
    2.0
    """
    return jnp.sum(jnp.where(targets.valid, losses, 0.0))


def pseudo_positives(logits: Array, targets: Targets) -> Targets:
    """Columns that score at least as high as the row's own become as positive as it is (PCME++).

    The own column of a row is its most positive one.

    >>> logits = jnp.array([[1.0, 2.0], [0.0, 1.0]])
    >>> pseudo_positives(logits, Targets(jnp.eye(2), jnp.ones((2, 2)))).positive.tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    own = jnp.argmax(targets.positive, axis=1)[:, None]
    own_logit = jnp.take_along_axis(logits, own, axis=1)
    own_target = jnp.take_along_axis(targets.positive, own, axis=1)
    return targets._replace(positive=jnp.where(logits >= own_logit, own_target, targets.positive))


def cross_entropy(logits: Array, targets: Targets) -> Array:
    """Sum over rows of the cross-entropy of columns (InfoNCE); matches share a row's target.

    >>> targets = Targets(jnp.eye(2), jnp.ones((2, 2)))
    >>> round(float(cross_entropy(jnp.zeros((2, 2)), targets)), 4)  # 2 log 2
    1.3863
    """
    logits = jnp.where(targets.valid, dtypes.at_least_float32(logits), -jnp.inf)
    share = jnp.where(targets.valid, targets.positive, 0.0)
    share = share / jnp.maximum(share.sum(1, keepdims=True), 1e-12)
    log_probability = jax.nn.log_softmax(logits, axis=1)
    return -jnp.sum(jnp.where(targets.valid, share * log_probability, 0.0))


def divergence(mean: Array, log_var: Array) -> Array:
    """Sum over items of KL(N(mean, exp(log_var)) || N(0, I)), of arrays [n, d].

    >>> float(divergence(jnp.ones((1, 2)), jnp.zeros((1, 2))))
    1.0
    """
    mean, log_var = dtypes.at_least_float32(mean), dtypes.at_least_float32(log_var)
    return -0.5 * jnp.sum(1 + log_var - mean**2 - jnp.exp(log_var))


def uniform_rows(key: Array, num: int, replace: bool = False) -> Array | None:
    """Which of `num` samples the uniformity loss compares: None, for all, up to 128 of them.

    Args:
      key: of the draw.
      num: samples of both modalities.
      replace: draws with replacement, as the official code does. A sample drawn twice repels
        itself: a constant that the loss can do nothing about.

    >>> print(uniform_rows(jax.random.key(0), 100))
    None
    >>> uniform_rows(jax.random.key(0), 1000).shape
    (128,)
    """
    if num <= MAX_UNIFORM_SAMPLES:
        return None
    return jax.random.choice(key, num, (MAX_UNIFORM_SAMPLES,), replace)


def uniformity(samples: Array) -> Array:
    """Log mean over pairs i < j of exp(-2 |x_i - x_j|^2), of samples [n, d]; at most 0.

    Wang and Isola, ICML 2020 (https://arxiv.org/abs/2005.10242).

    >>> float(uniformity(jnp.array([[0.0, 0.0], [1.0, 0.0]])))
    -2.0
    """
    samples = dtypes.at_least_float32(samples)
    samples -= lax.stop_gradient(samples.mean(0))
    first, second = jnp.triu_indices(len(samples), 1)
    squared = squared_distances(samples, samples)[first, second]
    return jax.nn.logsumexp(-2 * squared) - jnp.log(len(first))
