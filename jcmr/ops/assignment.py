"""Does a scene hold what a caption says? One object for each phrase."""

import itertools

from jax import numpy as jnp

from jcmr.core.types import Array


def injective_match(caption_code: Array, scene_code: Array) -> Array:
    """Whether distinct objects satisfy all phrases, broadcast over leading axes.

    Args:
      caption_code: int [..., p, a]. A phrase's attribute values, -1 where it says nothing of one; a
        phrase that is not there is all -2.
      scene_code: int [..., o, a], o >= p. An object's attribute values; one that is not there is
        all -1.

    Returns:
      bool [...].

    >>> scene = jnp.array([[0, 1], [2, 3]])  # two objects of two attributes
    >>> injective_match(jnp.array([[2, -1], [-2, -2]]), scene).item()  # there is a 2
    True
    """
    num_phrases, num_objects = caption_code.shape[-2], scene_code.shape[-2]
    phrase, thing = caption_code[..., :, None, :], scene_code[..., None, :, :]
    fits = jnp.all((phrase == -1) | (phrase == thing), axis=-1) & (thing[..., 0] >= 0)
    fits |= phrase[..., 0] == -2
    found = jnp.zeros((), bool)
    for objects in itertools.permutations(range(num_objects), num_phrases):
        one = jnp.ones((), bool)
        for p, o in enumerate(objects):
            one &= fits[..., p, o]
        found |= one
    return found
