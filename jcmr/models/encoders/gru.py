"""Bidirectional GRU: both directions in one scan, input projection outside of it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jcmr.core.types import Array
from jcmr.ops.attention import masked_mean


def uniform_init(bound: float):
    """U(-bound, bound), what torch starts recurrent and linear layers from."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class BiGRU(nn.Module):
    """Gated recurrent unit (Cho et al., 2014) in both directions, with torch's gates.

        r = sigmoid(Wir x + bir + Whr h + bhr),  z likewise
        n = tanh(Win x + bin + r * (Whn h + bhn)),  h' = (1 - z) n + z h

    Masked words are stepped over, so padding never changes a result. Kernels hold the gates r, z, n
    on the last axis; each direction has its own, as optimizers like AdamP look at whole tensors.
    """

    features: int
    dtype: Any = None
    directions: tuple[str, ...] = ("forward", "backward")
    """("forward",) reads from the first word to the last alone; then d below is `features`."""

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> tuple[Array, Array]:
        """Runs over the words.

        Args:
          x: [b, t, d].
          mask: [b, t], True = real.

        Returns:
          (states [b, t, 2 * features], forward then backward, 0 at masked words;
          ends [b, 2 * features]: the state of each direction after its last real word).
        """
        size = self.features
        init = uniform_init(size**-0.5)

        def both(name: str, *shape: int) -> list[Array]:
            return [self.param(f"{side}_{name}", init, shape) for side in self.directions]

        input_kernel = both("input_kernel", x.shape[-1], 3 * size)
        input_bias = both("input_bias", 3 * size)
        kernel = jnp.stack(both("recurrent_kernel", size, 3 * size))
        bias = jnp.stack(both("recurrent_bias", 3 * size))

        dtype = self.dtype or jnp.result_type(x, kernel)
        state_dtype = jnp.promote_types(dtype, jnp.float32)
        # Time-major, and the backward direction reads the words from the end.
        words = x.astype(dtype).swapaxes(0, 1)
        projected = tuple(
            jnp.matmul(inputs, weights.astype(dtype), preferred_element_type=state_dtype) + offset
            for inputs, weights, offset in zip((words, words[::-1]), input_kernel, input_bias)
        )
        masks = [mask, mask[:, ::-1]][: len(self.directions)]
        real = jnp.stack(masks).transpose(2, 0, 1)[..., None]  # [t, 2, b, 1]
        states = recur(projected, real, kernel.astype(dtype), bias)
        ends = pair_directions(states[-1])
        states = flip_backward(jnp.where(real, states, 0))
        return pair_directions(states.transpose(1, 2, 0, 3)), ends


@jax.custom_vjp
def recur(projected: tuple[Array, ...], real: Array, kernel: Array, bias: Array) -> Array:
    """The recurrence of `BiGRU`, both directions side by side.

    The gradient is written out so that the kernel's is one product over all steps, where the
    scan's own would be a small one at each.

    Args:
      projected: [t, b, 3h] of each direction, words times input kernel, plus its bias.
      real: [t, 2, b, 1], False steps keep the state.
      kernel: [2, h, 3h]; products are in its dtype and accumulate in that of `projected`.
      bias: [2, 3h].

    Returns:
      States [t, 2, b, h].
    """
    return forward(projected, real, kernel, bias)[0]


def product(x: Array, kernel: Array, dtype: Any) -> Array:
    """[2, b, d] times [2, d, e] in the kernel's dtype."""
    return jnp.einsum("zbd,zde->zbe", x.astype(kernel.dtype), kernel, preferred_element_type=dtype)


def forward(projected: tuple[Array, ...], real: Array, kernel: Array, bias: Array):
    """(states, what the backward pass needs)."""
    size = kernel.shape[1]

    def step(state: Array, inputs: tuple[tuple[Array, ...], Array]):
        word, real = jnp.stack(inputs[0]), inputs[1]
        recurrent = product(state, kernel, word.dtype) + bias[:, None]
        gates = nn.sigmoid(word[..., : 2 * size] + recurrent[..., : 2 * size])
        reset, update = gates[..., :size], gates[..., size:]
        inner = recurrent[..., 2 * size :]
        new = jnp.tanh(word[..., 2 * size :] + reset * inner)
        state = jnp.where(real, new + update * (state - new), state)
        return state, (state, gates, inner, new)

    start = jnp.zeros_like(jnp.stack([x[0, :, :size] for x in projected]))
    _, (states, *saved) = lax.scan(step, start, (projected, real))
    return states, (real, kernel, states, *saved)


def backward(saved: tuple[Array, ...], cotangent: Array):
    """Gradients of projected, real (none), kernel and bias."""
    real, kernel, states, gates, inner, new = saved
    size = kernel.shape[1]
    before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
    turned = kernel.swapaxes(1, 2)

    def step(later: Array, inputs: tuple[Array, ...]):
        cotangent, real, before, gates, inner, new = inputs
        reset, update = gates[..., :size], gates[..., size:]
        total = later + cotangent
        moved = jnp.where(real, total, 0)
        d_new = moved * (1 - update) * (1 - new * new)
        d_reset = d_new * inner * reset * (1 - reset)
        d_update = moved * (before - new) * update * (1 - update)
        d_recurrent = jnp.concatenate([d_reset, d_update, d_new * reset], axis=-1)
        earlier = moved * update + (total - moved) + product(d_recurrent, turned, moved.dtype)
        return earlier, (d_recurrent, d_new)

    inputs = (cotangent, real, before, gates, inner, new)
    start = jnp.zeros_like(cotangent[0])
    _, (d_recurrent, d_new) = lax.scan(step, start, inputs, reverse=True)
    d_kernel = jnp.stack(
        [
            jnp.matmul(
                before[:, i].reshape(-1, size).T.astype(kernel.dtype),
                d_recurrent[:, i].reshape(-1, 3 * size).astype(kernel.dtype),
                preferred_element_type=d_recurrent.dtype,
            )
            for i in range(len(kernel))
        ]
    )
    d_projected = tuple(
        jnp.concatenate([d_recurrent[:, i, :, : 2 * size], d_new[:, i]], axis=-1)
        for i in range(len(kernel))
    )
    return d_projected, None, d_kernel.astype(kernel.dtype), d_recurrent.sum((0, 2))


recur.defvjp(forward, backward)


def flip_backward(x: Array) -> Array:
    """Reverses time for the second direction of [t, 2, ...], if there is one."""
    return jnp.concatenate([x[:, :1], x[::-1, 1:]], axis=1)


def pair_directions(x: Array) -> Array:
    """[2, ..., d] -> [..., 2 d]."""
    return jnp.concatenate(list(x), axis=-1)


def read_out(states: Array, ends: Array, mask: Array, how: str) -> Array:
    """One vector per text from what `BiGRU` returned, [b, d].

    Args:
      states: [b, t, d].
      ends: [b, d].
      mask: [b, t].
      how: "ends", each direction after its last word; "mean" of the states; "last_word", both
        directions at the last word. The last is what PVSE and PCME do, although the backward half
        has seen nothing but one word there.

    Raises:
      ValueError: another `how`.
    """
    if how == "ends":
        return ends
    if how == "mean":
        return masked_mean(states, mask)
    if how == "last_word":
        last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
        return jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
    raise ValueError(f"readout is 'ends', 'mean' or 'last_word', not {how!r}.")
