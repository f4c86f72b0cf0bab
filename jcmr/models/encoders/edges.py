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
        dtype = p.dtype
        p, q = (x.astype(jnp.promote_types(dtype, jnp.float32)) for x in (p, q))
        sign = jnp.where(scale >= 0, 1.0, -1.0)
        if train:  # E[(p_j + q_i)^2] with p centred: large offsets of p and q cancel.
            center = lax.stop_gradient(p.mean((0, 1)))
            p, q = p - center, q + center
        near = p * sign
        total, best = sum_and_max(near, index)

        def moments(shift: Array) -> Moments:
            # What is one for a channel stands outside of the sums, or a CPU fills arrays with it.
            own, k, count = q - shift, index.shape[-1], index.size
            weighted = in_degrees(index)[..., None] * near
            first = sign * weighted.sum((0, 1)) + k * own.sum((0, 1))
            of_near, of_own = (weighted * near).sum((0, 1)), (own * own).sum((0, 1))
            second = of_near + 2 * sign * (own * total).sum((0, 1)) + k * of_own
            return Moments(first / count, second / count, count)

        factor, offset = self.affine((scale, bias), moments, train, axis)
        return ((best * sign + q) * factor + offset).astype(dtype)
