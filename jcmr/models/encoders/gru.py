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

    Masked words are stepped over, so padding never changes a result. Parameters stack the two
    directions (0 forward, 1 backward) on the first axis and the gates r, z, n on the last.
    """

    features: int
    dtype: Any = None

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
        input_kernel = self.param("input_kernel", init, (2, x.shape[-1], 3 * size))
        input_bias = self.param("input_bias", init, (2, 3 * size))
        kernel = self.param("recurrent_kernel", init, (2, size, 3 * size))
        bias = self.param("recurrent_bias", init, (2, 3 * size))

        dtype = self.dtype or jnp.result_type(x, kernel)
        state_dtype = jnp.promote_types(dtype, jnp.float32)
        projected = jnp.einsum(
            "btd,zde->tzbe",
            x.astype(dtype),
            input_kernel.astype(dtype),
            preferred_element_type=state_dtype,
        )
        projected = flip_backward(projected + input_bias[:, None])
        real = jnp.stack([mask, mask[:, ::-1]]).transpose(2, 0, 1)[..., None]  # [t, 2, b, 1]

        def step(state: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            word, real = inputs
            recurrent = jnp.einsum(
                "zbh,zhe->zbe",
                state.astype(dtype),
                kernel.astype(dtype),
                preferred_element_type=state_dtype,
            )
            recurrent = recurrent + bias[:, None]
            gates = nn.sigmoid(word[..., : 2 * size] + recurrent[..., : 2 * size])
            reset, update = jnp.split(gates, 2, axis=-1)
            new = jnp.tanh(word[..., 2 * size :] + reset * recurrent[..., 2 * size :])
            state = jnp.where(real, new + update * (state - new), state)
            return state, state

        start = jnp.zeros_like(projected[0, ..., :size])
        ends, states = lax.scan(step, start, (projected, real))
        states = flip_backward(jnp.where(real, states, 0))
        return pair_directions(states.transpose(1, 2, 0, 3)), pair_directions(ends)


def flip_backward(x: Array) -> Array:
    """Reverses time for the second direction of [t, 2, ...]."""
    return jnp.stack([x[:, 0], x[::-1, 1]], axis=1)


def pair_directions(x: Array) -> Array:
    """[2, ..., d] -> [..., 2 d]."""
    return jnp.concatenate([x[0], x[1]], axis=-1)


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
