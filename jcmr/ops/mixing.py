"""Mixed samples: Mixup and CutMix of a batch with itself in reverse order."""

import jax
import jax.numpy as jnp
from jax import lax

from jcmr.core import parallel
from jcmr.core.types import Array


def reverse_rows(x: Array, axis: str | None) -> Array:
    """Row i of the global batch becomes row n - 1 - i; devices swap their rows with one another.

    >>> reverse_rows(jnp.arange(3), None).tolist()
    [2, 1, 0]
    """
    if axis is not None:
        devices = lax.axis_size(axis)
        x = lax.ppermute(x, axis, [(i, devices - 1 - i) for i in range(devices)])
    return x[::-1]


def draw_mix(
    keys: Array, height: int, width: int, rate: float, beta: float, cutmix_rate: float
) -> tuple[Array, Array]:
    """Draws how each image is mixed with its partner.

    Args:
      keys: [b], one per example.
      height: of the images.
      width: of the images.
      rate: share of images that are mixed at all.
      beta: the share kept of a mixed image is drawn from Beta(beta, beta).
      cutmix_rate: share of mixed images that get a box of the partner (CutMix, Yun et al., ICCV
        2019); the others are blended (Mixup, Zhang et al., ICLR 2018).

    Returns:
      (own share of each pixel [b, h, w, 1], own share of the label [b]); the label share of a box
      is that of its area inside the image.

    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> [x.shape for x in draw_mix(keys, 4, 4, rate=1.0, beta=2.0, cutmix_rate=0.5)]
    [(2, 4, 4, 1), (2,)]
    """

    def draw(key: Array) -> tuple[Array, Array]:
        mixed, cut, share, row, column = jax.random.split(key, 5)
        own = jax.random.beta(share, beta, beta)
        side = jnp.sqrt(1 - own)
        box_height, box_width = jnp.floor(height * side), jnp.floor(width * side)
        top = jax.random.randint(row, (), 0, height) - box_height // 2
        left = jax.random.randint(column, (), 0, width) - box_width // 2
        rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
        inside = (rows >= top) & (rows < top + box_height)
        inside &= (columns >= left) & (columns < left + box_width)
        is_cut = jax.random.bernoulli(cut, cutmix_rate)
        pixels = jnp.where(is_cut, jnp.where(inside, 0.0, 1.0), own)
        is_mixed = jax.random.bernoulli(mixed, rate)
        own = jnp.where(is_mixed, pixels.mean(), 1.0)
        return jnp.where(is_mixed, pixels, 1.0)[..., None], own

    return jax.vmap(draw)(keys)


def mix_images(
    images: Array,
    key: Array,
    axis: str | None,
    rate: float,
    beta: float = 2.0,
    cutmix_rate: float = 0.5,
) -> tuple[Array, Array]:
    """Mixes some images of the global batch with the image in the mirrored row.

    Args:
      images: [b, h, w, c] of this device.
      key: the same on all devices.
      axis: device axis, or None.
      rate: share of images that are mixed.
      beta: see `draw_mix`.
      cutmix_rate: see `draw_mix`.

    Returns:
      (mixed images [b, h, w, c], own share [b]: 1 where an image is not mixed). The label of row
      i is own * i + (1 - own) * (n - 1 - i), with n rows in the global batch.

    >>> mixed, own = mix_images(jnp.ones((2, 4, 4, 3)), jax.random.key(0), None, rate=0.0)
    >>> mixed.shape, own.tolist()
    ((2, 4, 4, 3), [1.0, 1.0])
    """
    keys = parallel.example_keys(key, images.shape[0], axis)
    height, width = images.shape[1:3]
    own_pixels, own = draw_mix(keys, height, width, rate, beta, cutmix_rate)
    return images * own_pixels + reverse_rows(images, axis) * (1 - own_pixels), own
