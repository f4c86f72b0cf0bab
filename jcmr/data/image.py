"""Pictures: decoding and resizing on the host; cropping, erasing and normalising on the device.

uint8 travels, float32 is made where it is used.
"""

import contextlib
import functools
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import simplejpeg
from jax import numpy as jnp
from PIL import ExifTags, Image, ImageOps

from jcmr.core import parallel
from jcmr.core.types import Array, Batch
from jcmr.data.options import ImageOptions, pick

ATTEMPTS = 10


def decode_image(source: bytes | str | Path, name: str = "", at_least: int = 0) -> np.ndarray:
    """Any picture as RGB, uint8 [h, w, 3]: grey, alpha (dropped), palette, CMYK, 16 bit, rotated.

    Args:
      source: a path, or the bytes of a file.
      name: what error messages call the bytes.
      at_least: when positive, a JPEG may be decoded at some eighths of its size as long as no side
        falls below this, which takes less time.

    Raises:
      ValueError: the content cannot be decoded; names the file.
      FileNotFoundError: there is no such file.
    """
    name = name or ("the image bytes" if isinstance(source, bytes) else str(source))
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as image:
            if is_plain_jpeg(image):
                with contextlib.suppress(ValueError):  # Pillow forgives more, or says what is wrong
                    return simplejpeg.decode_jpeg(
                        content, "RGB", min_height=at_least, min_width=at_least, min_factor=1
                    )
            if at_least:
                image.draft("RGB", (at_least, at_least))
            image.load()
            return to_rgb(image)
    except Exception as error:  # decoders of broken files raise nearly anything
        raise ValueError(f"The image {name} cannot be read ({error}); replace the file.") from error


def orientation(image: Image.Image) -> int:
    """How EXIF says that an opened picture is to be turned, 1 (not at all) to 8."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block does not make the pixels unusable
        return 1


def is_plain_jpeg(image: Image.Image) -> bool:
    """Whether an opened picture is a JPEG in colour or grey that is to be shown as it is stored."""
    return image.format == "JPEG" and image.mode in ("RGB", "L") and orientation(image) == 1


def aspect_of(source: bytes | str | Path) -> float:
    """Width / height of a readable picture as it is meant to be seen, from the head of its file."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        width, height = image.size
        return height / width if orientation(image) > 4 else width / height


def to_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an opened picture as it is meant to be seen, uint8 [h, w, 3]."""
    with contextlib.suppress(Exception):  # a broken EXIF block does not make the pixels unusable
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips these on conversion. Integers are 16 bit data; floats are taken as 0..255.
        values = np.asarray(image, np.float32) / (1.0 if image.mode == "F" else 257.0)
        grey = np.clip(np.round(values), 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P":  # a palette with transparency needs the detour
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def resize_for_training(image: np.ndarray, size: int) -> np.ndarray:
    """The whole picture squeezed to a square, uint8 [size, size, 3].

    The random crop on the device undoes the change of aspect when the batch holds `aspect`.
    """
    bilinear = Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((size, size), bilinear))


def resize_shorter_side(image: np.ndarray, size: int) -> np.ndarray:
    """The whole picture with its shorter side of `size` pixels, uint8 [h, w, 3].

    The arithmetic of torchvision's Resize (bilinear with antialiasing).
    """
    height, width = image.shape[:2]
    short = min(height, width)
    height, width = int(size * height / short), int(size * width / short)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def shrink_file(path: str | Path, size: int) -> tuple[bytes, str]:
    """An image file at a smaller size.

    Args:
      path: any picture.
      size: what becomes of its shorter side; 0, or more than it has, keeps the file as it is.

    Returns:
      (bytes of a JPEG file of quality 95, ""), or (the file as it is, why it cannot be read).
    """
    content = Path(path).read_bytes()
    if not size:
        return content, ""
    try:
        image = decode_image(content, str(path), at_least=size)
    except ValueError as error:
        return content, str(error)
    if min(image.shape[:2]) < size:
        return content, ""
    buffer = io.BytesIO()
    Image.fromarray(resize_shorter_side(image, size)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue(), ""


def resize_for_evaluation(image: np.ndarray, size: int) -> np.ndarray:
    """Shorter side to `size`, then the centre, uint8 [size, size, 3].

    The arithmetic of torchvision's Resize and CenterCrop (bilinear with antialiasing). The centre
    224 of this at size 256 is Resize(256) + CenterCrop(224).
    """
    resized = resize_shorter_side(image, size)
    height, width = resized.shape[:2]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resized[top : top + size, left : left + size]


def normalize(image: Array, cfg: ImageOptions) -> Array:
    """(x / 255 - mean) / std, uint8 or float [..., 3] -> float32."""
    mean, std = jnp.asarray(cfg.mean, jnp.float32), jnp.asarray(cfg.std, jnp.float32)
    return (image.astype(jnp.float32) / 255.0 - mean) / std


def center_crop(image: Array, size: int) -> Array:
    """The centre of [b, h, w, 3], [b, size, size, 3]."""
    height, width = image.shape[1:3]
    if min(height, width) < size:
        raise ValueError(
            f"Images of {height} x {width} pixels are smaller than crop_size {size}; raise the "
            f"image size of the data set or lower crop_size."
        )
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image[:, top : top + size, left : left + size]


def crop_box(key: Array, scale: tuple[float, float], aspect: Array) -> Array:
    """A random box (top, left, height, width) as fractions of a picture, [4].

    torchvision's RandomResizedCrop: an area within `scale`, an aspect within 3/4 to 4/3 of true
    pixels, ten attempts to fit, else the largest centre box of an allowed aspect.
    """
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    low, high = math.log(3 / 4), math.log(4 / 3)
    area = jax.random.uniform(area_key, (ATTEMPTS,), minval=scale[0], maxval=scale[1]) * aspect
    ratio = jnp.exp(jax.random.uniform(ratio_key, (ATTEMPTS,), minval=low, maxval=high))
    heights, widths = jnp.sqrt(area / ratio), jnp.sqrt(area * ratio) / aspect
    fits = (heights <= 1) & (widths <= 1)
    first, found = jnp.argmax(fits), jnp.any(fits)
    allowed = jnp.clip(aspect, 3 / 4, 4 / 3)
    height = jnp.where(found, heights[first], jnp.minimum(1.0, aspect / allowed))
    width = jnp.where(found, widths[first], jnp.minimum(1.0, allowed / aspect))
    place = jnp.where(found, jax.random.uniform(place_key, (2,)), 0.5)
    return jnp.stack([place[0] * (1 - height), place[1] * (1 - width), height, width])


def crop_and_resize(image: Array, box: Array, size: int) -> Array:
    """The box of fractions (top, left, height, width) of [h, w, 3] as float32 [size, size, 3].

    Bilinear with antialiasing, as two matrix products.
    """
    extent = jnp.asarray(image.shape[:2], jnp.float32)
    scale = size / (box[2:] * extent)
    shape = (size, size, image.shape[2])
    return jax.image.scale_and_translate(
        image.astype(jnp.float32), shape, (0, 1), scale, -box[:2] * extent * scale, method="linear"
    )


def erase(key: Array, image: Array, rate: float) -> Array:
    """Sets a random rectangle of [h, w, 3] to 0 with probability `rate`.

    RandomErasing (Zhong et al. 2020): area 0.02 to 1/3, aspect 0.3 to 1/0.3, ten attempts to fit.
    """
    happens_key, area_key, ratio_key, place_key = jax.random.split(key, 4)
    height, width = image.shape[:2]
    area = jax.random.uniform(area_key, (ATTEMPTS,), minval=0.02, maxval=1 / 3) * height * width
    bound = math.log(1 / 0.3)
    ratio = jnp.exp(jax.random.uniform(ratio_key, (ATTEMPTS,), minval=-bound, maxval=bound))
    tall, wide = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (tall < height) & (wide < width)
    first = jnp.argmax(fits)
    room = jnp.stack([height - tall[first], width - wide[first]])
    top, left = jnp.floor(jax.random.uniform(place_key, (2,)) * (room + 1))
    row, column = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    inside = (row >= top) & (row < top + tall[first])
    inside &= (column >= left) & (column < left + wide[first])
    happens = jax.random.bernoulli(happens_key, rate) & jnp.any(fits)
    return jnp.where((inside & happens)[:, :, None], 0.0, image)


def crop_scale(cfg: ImageOptions) -> tuple[float, float] | None:
    """Smallest and largest area of a random crop; None is a centre crop."""
    if isinstance(cfg.random_resized_crop, bool):
        return (0.08, 1.0) if cfg.random_resized_crop else None
    low, high = cfg.random_resized_crop
    return low, high


def make_augment(
    cfg: Mapping[str, Any],
) -> Callable[[Batch, Array, str | None], Batch]:
    """Builds `augment(batch, key, axis)`: crop, flip, normalise, erase, all inside jit.

    "image" uint8 [b, h, w, 3] becomes float32 [b, crop_size, crop_size, 3]; "aspect" float32 [b]
    (width / height before the picture was squeezed) is used and taken out. Batches without "image"
    pass unchanged. An example gets the same noise whatever the number of devices.
    """
    config = pick(ImageOptions, cfg)
    scale = crop_scale(config)

    def augment_one(image: Array, aspect: Array, key: Array) -> Array:
        crop_key, flip_key, erase_key = jax.random.split(key, 3)
        if scale:
            image = crop_and_resize(image, crop_box(crop_key, scale, aspect), config.crop_size)
        if config.flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        image = normalize(image, config)
        return erase(erase_key, image, config.erasing_rate) if config.erasing_rate else image

    def augment(batch: Batch, key: Array, axis: str | None) -> Batch:
        if "image" not in batch:
            return batch
        image = batch["image"] if scale else center_crop(batch["image"], config.crop_size)
        aspect = batch.get("aspect", jnp.ones(len(image), jnp.float32))
        keys = parallel.example_keys(key, len(image), axis)
        rest = {name: value for name, value in batch.items() if name != "aspect"}
        return rest | {"image": jax.vmap(augment_one)(image, aspect, keys)}

    return augment


def make_prepare(cfg: Mapping[str, Any]) -> Callable[[Batch], Batch]:
    """Builds `prepare(batch)` for evaluation: centre crop and normalise "image", if any.

    Equal options give the same function, so that programs made with it are compiled once.
    """
    options = pick(ImageOptions, cfg)
    return prepare_by(tuple(options.mean), tuple(options.std), options.crop_size)


@functools.cache
def prepare_by(mean: tuple, std: tuple, crop_size: int) -> Callable[[Batch], Batch]:
    """`make_prepare` of the options that it reads."""
    config = ImageOptions(mean, std, crop_size)

    def prepare(batch: Batch) -> Batch:
        if "image" not in batch:
            return batch
        image = center_crop(jnp.asarray(batch["image"]), config.crop_size)
        rest = {name: value for name, value in batch.items() if name != "aspect"}
        return rest | {"image": normalize(image, config)}

    return prepare
