"""What feeds a training step: JPEG files, and a data set that lies on the device."""

import io
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks.suite import main
from benchmarks.timing import Case, Scale
from jcmr.core import parallel
from jcmr.data.augment import make_augment
from jcmr.data.image import decode_image, resize_for_training
from jcmr.data.records import Arrays
from jcmr.data.resident import make_put

SIZES = {"dry": (2, 64, 8, 16), "cpu": (8, 640, 64, 96), "gpu": (16, 640, 256, 256)}
"""(JPEG files, their width, images a batch, stored pixels)."""
PILLOW = "Pillow, whole decode"
HOST = "host rows, sent each step"


def make_jpegs(num: int, width: int) -> list[bytes]:
    """Smooth pictures with grain, as photographs are, quality 92."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(num):
        coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
        size = (width, width * 3 // 4)
        smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=92)
        files.append(buffer.getvalue())
    return files


def pillow(file: bytes, size: int) -> np.ndarray:
    """Decoded whole, then resized."""
    whole = Image.open(io.BytesIO(file)).convert("RGB")
    return np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR))


def mean_pixel_difference(ours: Any, theirs: Any) -> float:
    """As a share of 255: scaled decoding is not the same arithmetic."""
    return float(np.mean(np.abs(np.asarray(ours, np.float32) - np.asarray(theirs)))) / 255


def cases(scale: Scale) -> Iterator[Case]:
    """Decoding on one core, then batches with augmentation on the device."""
    num, width, batch, stored = SIZES[scale]
    files, size = make_jpegs(num, width), 256 if scale != "dry" else 32

    def ours() -> np.ndarray:
        decoded = (decode_image(file, at_least=size) for file in files)
        return np.stack([resize_for_training(image, size) for image in decoded])

    yield Case(
        "JPEG files to pixels, one thread",
        f"{num} x {width} x {width * 3 // 4} to {size} x {size}",
        ours,
        {PILLOW: lambda: np.stack([pillow(file, size) for file in files])},
        {PILLOW: 1.8},
        compare=mean_pixel_difference,
        tolerance=0.03,
        examples=num,
    )

    shape = (8 * batch, stored, stored, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    records, mesh = Arrays({"image": pixels}), parallel.make_mesh(jax.devices()[:1])
    put = make_put(records, mesh, "shard_map")
    cfg = {"crop_size": stored * 7 // 8, "random_resized_crop": False, "flip": True}
    augment = jax.jit(lambda x: make_augment(cfg)(x, jax.random.key(0), None)["image"])
    rows = np.random.default_rng(1).permutation(len(pixels))[:batch]
    chosen = {"row": rows.astype(np.int32)}

    def host() -> Any:
        return augment(parallel.put_batch(records.take(rows), mesh, "shard_map"))

    yield Case(
        "a batch from the device's copy of the data, augmented",
        f"{batch} x {stored} x {stored}",
        lambda: augment(put(chosen)),
        {HOST: host},
        bytes=float(batch * stored * stored * 3 * 2 + batch * cfg["crop_size"] ** 2 * 12),
        examples=batch,
    )


if __name__ == "__main__":
    main("input")
