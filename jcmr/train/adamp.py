"""AdamP: Adam that does not grow the weights which a normalisation makes scale-free."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax import numpy as jnp

from jcmr.core.types import Array

ChannelAxis = Callable[[str], int]


class AdamPState(NamedTuple):
    """Moments of the gradient and the number of steps taken."""

    count: Array
    mu: Any
    nu: Any


def path_name(path: tuple[Any, ...]) -> str:
    """The keys that lead to a parameter, joined by "/"."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def flax_channel_axis(path: str) -> int:
    """Where Linen keeps output channels: last, except in an embedding's table of rows."""
    return 0 if path.endswith("embedding") else -1


def project(
    param: Array, grad: Array, update: Array, axis: int, delta: float, wd_ratio: float, eps: float
) -> tuple[Array, Array]:
    """Takes the part of `update` along `param` out where the gradient is nearly orthogonal to it.

    Checked channel by channel, then for the tensor as a whole (Heo et al. 2021, algorithm 2).

    Returns:
      The update, and the factor of the weight decay: `wd_ratio` where it was projected, else 1.
    """

    def orthogonal(w: Array, g: Array) -> Array:
        norms = jnp.maximum(jnp.linalg.norm(w, axis=1), eps), jnp.linalg.norm(g, axis=1)
        cosine = jnp.abs(jnp.sum(w * g, axis=1)) / (norms[0] * jnp.maximum(norms[1], eps))
        return jnp.max(cosine) < delta / w.shape[1] ** 0.5

    def without_radial(w: Array, u: Array) -> Array:
        direction = w / (jnp.linalg.norm(w, axis=1, keepdims=True) + eps)
        return u - direction * jnp.sum(direction * u, axis=1, keepdims=True)

    moved = jnp.moveaxis(param, axis, 0).shape

    def view(x: Array, layer: bool) -> Array:
        return jnp.moveaxis(x, axis, 0).reshape(1 if layer else moved[0], -1)

    result, factor = update, jnp.ones((), param.dtype)
    for layer in (True, False):  # the channels' verdict comes last and wins
        w, g, u = (view(x, layer) for x in (param, grad, update))
        hit = orthogonal(w, g)
        projected = jnp.moveaxis(without_radial(w, u).reshape(moved), 0, axis)
        result = jnp.where(hit, projected, result)
        factor = jnp.where(hit, wd_ratio, factor)
    return result, factor


def scale_by_adamp(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    channel_axis: ChannelAxis = flax_channel_axis,
) -> optax.GradientTransformation:
    """The direction of AdamP, decay included, to be scaled by minus the learning rate.

    Heo et al., ICLR 2021, https://arxiv.org/abs/2006.08217; equal to the package adamp 0.3.0.

    Args:
      b1: decay of the first moment.
      b2: decay of the second.
      eps: added to the denominator, and the least norm in cosines.
      weight_decay: decoupled, weakened by `wd_ratio` where the update is projected.
      delta: how nearly orthogonal gradient and weights must be.
      wd_ratio: see above.
      channel_axis: parameter path -> axis of its output channels.
    """

    def init(params: Any) -> AdamPState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        return AdamPState(jnp.zeros((), jnp.int32), zeros(), zeros())

    def update(updates: Any, state: Any, params: Any = None):
        if params is None:
            raise ValueError("AdamP projects updates off the parameters: pass them to update().")
        count = jnp.asarray(optax.safe_increment(state.count))
        grads = updates
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)

        def direction(path: tuple[Any, ...], p: Array, g: Array, m: Array, v: Array) -> Array:
            step = count.astype(p.dtype)
            # The order of operations is the official one; float32 results agree to its rounding.
            u = m / (jnp.sqrt(v) / jnp.sqrt(1 - b2**step) + eps)
            factor = jnp.ones((), p.dtype)
            if p.ndim > 1:
                axis = channel_axis(path_name(path))
                u, factor = project(p, g, u, axis, delta, wd_ratio, eps)
            return u / (1 - b1**step) + weight_decay * factor * p

        directions = jax.tree_util.tree_map_with_path(direction, params, grads, mu, nu)
        return directions, AdamPState(count, mu, nu)

    return optax.GradientTransformation(init, update)
