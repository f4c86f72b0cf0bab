"""Point clouds: sampling on the host, augmentation inside jit."""

import jax
import jax.numpy as jnp
import numpy as np

from jcmr.core.types import Array


def choose(
    num_stored: int, num: int, rng: np.random.Generator, replace: bool = False
) -> np.ndarray:
    """Indices of `num` of `num_stored` points, int [num].

    Without replacement, unless there are fewer than `num`: then all of them, and some again. The
    official code draws with replacement even where there are enough, so that a fifth repeats.

    Raises:
      ValueError: a cloud without points.
    """
    if not num_stored:
        raise ValueError("A point cloud has no points.")
    if replace:
        return rng.integers(num_stored, size=num)
    rounds = -(-num // num_stored)
    return np.concatenate([rng.permutation(num_stored) for _ in range(rounds)])[:num]


def unit_sphere(points: np.ndarray) -> np.ndarray:
    """Points [p, 3] moved to their mean and scaled to a largest distance of 1, float32."""
    points = np.asarray(points, np.float64)
    points = points - points.mean(axis=0)
    radius = np.sqrt((points**2).sum(axis=1).max())
    return (points / max(radius, 1e-12)).astype(np.float32)


def translate(points: Array, scale: Array, shift: Array) -> Array:
    """Points [p, 3] * scale + shift, each [3]."""
    return points * scale + shift


def rotate(points: Array, angle: Array) -> Array:
    """Points [p, 3] turned about the second axis; the official convention of signs."""
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    x, y, z = points[:, 0], points[:, 1], points[:, 2]
    return jnp.stack([cosine * x + sine * z, y, cosine * z - sine * x], axis=1)


def jitter(points: Array, noise: Array, clip: float) -> Array:
    """Points plus noise cut off at `clip`, both [p, 3]."""
    return points + jnp.clip(noise, -clip, clip)


def augment_points(points: Array, key: Array, turn: bool = True) -> Array:
    """The official augmentation of a training cloud [p, 3], in its order.

    Each axis times U(2/3, 3/2) plus U(-0.2, 0.2), a turn about the vertical by U(0, 2 pi) if asked,
    and normal noise of 0.01 that is cut off at 0.02.
    """
    scale_key, shift_key, turn_key, noise_key = jax.random.split(key, 4)
    scale = jax.random.uniform(scale_key, (3,), minval=2 / 3, maxval=3 / 2)
    shift = jax.random.uniform(shift_key, (3,), minval=-0.2, maxval=0.2)
    points = translate(points, scale, shift)
    if turn:
        points = rotate(points, jax.random.uniform(turn_key, maxval=2 * jnp.pi))
    return jitter(points, 0.01 * jax.random.normal(noise_key, points.shape), 0.02)
