"""BatchNorm and the maximum over edges p_j + q_i that are never built.

A linear layer on [x_j - x_i ; x_i] or on [x_i ; x_j] splits into one product per point for the
neighbour (p) and one for the point itself (q). The statistics over edges follow from sums over
neighbours, and as a monotone function of p_j the normalised value is largest where p_j is largest,
or where it is smallest if the channel's scale is negative.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jcmr.core.types import Array
from jcmr.models.encoders.norm import BatchNorm, Moments
from jcmr.ops.neighbors import in_degrees, sum_and_max


class EdgeBatchNorm(BatchNorm):
    """max over j of BatchNorm(p_j + q_i), with statistics over all edges."""

    @nn.compact
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        p: Array,
        q: Array,
        index: Array,
        train: bool = False,
        axis: str | None = None,
    ) -> Array:
        """Normalises and takes the maximum.

        Args:
          p: the neighbours' part [b, n, c].
          q: the points' own part [b, n, c].
          index: neighbours int [b, n, k].
          train: use and record batch statistics.
          axis: device axis over which the batch is shared.

        Returns:
          [b, n, c].
        """
        scale, bias = self.weights(p.shape[-1])
        sign = jnp.where(scale >= 0, 1.0, -1.0).astype(p.dtype)
        total, best = sum_and_max(p * sign, index)
        total, best = total * sign, best * sign

        def moments(shift: Array) -> Moments:
            # Centred by the means of p and q apart: their offsets may be large and cancel.
            wide = jnp.promote_types(p.dtype, jnp.float32)
            center = lax.stop_gradient(p.astype(wide).mean((0, 1)))
            k = index.shape[-1]
            near, own = p.astype(wide) - center, q.astype(wide) + center - shift
            near_sum = total.astype(wide) - k * center
            degrees = in_degrees(index)[..., None]
            count = index.size
            first = (degrees * near).sum((0, 1)) + k * own.sum((0, 1))
            second = (degrees * near * near + 2 * own * near_sum + k * own * own).sum((0, 1))
            return Moments(first / count, second / count, count)

        factor, offset = self.affine((scale, bias), moments, train, axis)
        return ((best + q) * factor + offset).astype(p.dtype)
