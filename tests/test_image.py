"""Decoding on the host, augmentation on the device."""

import io

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from PIL import Image

from jcmr.core import parallel
from jcmr.data import augment
from jcmr.data.image import (
    aspect_of,
    crop_and_resize,
    crop_box,
    decode_image,
    erase,
    make_augment,
    make_prepare,
    resize_for_evaluation,
    resize_for_training,
)

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}


def picture(height: int = 24, width: int = 36) -> np.ndarray:
    """A smooth picture, red growing to the right and green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, 0 * x + 40], -1).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_colour_files_of_every_kind_decode_to_the_same_rgb():
    plain = Image.fromarray(picture())
    alpha = plain.convert("RGBA")
    alpha.putalpha(90)
    np.testing.assert_array_equal(decode_image(encoded(plain, "PNG")), picture())
    np.testing.assert_array_equal(decode_image(encoded(alpha, "PNG")), picture())
    jpeg = {"quality": 95, "subsampling": 0}
    for content in (
        encoded(plain, "JPEG", **jpeg),
        encoded(plain.convert("CMYK"), "JPEG", **jpeg),
        encoded(
            plain.convert("P", palette=Image.Palette.ADAPTIVE), "PNG", transparency=b"\x00\x7f"
        ),
        encoded(plain, "WEBP", quality=100),
    ):
        found = decode_image(content)
        assert found.dtype == np.uint8 and found.shape == (24, 36, 3)
        assert np.abs(found.astype(int) - picture()).mean() < 8


def test_grey_files_decode_to_three_equal_channels():
    grey = picture()[:, :, 0]
    sixteen = grey.astype(np.uint16) * 257
    for image, form in (
        (Image.fromarray(grey), "PNG"),
        (Image.fromarray(grey).convert("LA"), "PNG"),
        (Image.fromarray(sixteen), "PNG"),
        (Image.fromarray(sixteen.astype(np.int32)), "TIFF"),
        (Image.fromarray(grey.astype(np.float32)), "TIFF"),
    ):
        np.testing.assert_array_equal(
            decode_image(encoded(image, form)), grey[:, :, None].repeat(3, 2)
        )
    black = Image.fromarray(grey > 128)
    assert set(np.unique(decode_image(encoded(black, "PNG")))) == {0, 255}


def test_exif_rotation_is_undone(tmp_path):
    turned = Image.fromarray(np.rot90(picture()))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    found = decode_image(tmp_path / "turned.jpg")
    assert found.shape == (24, 36, 3) and aspect_of(tmp_path / "turned.jpg") == 36 / 24
    assert np.abs(found.astype(int) - picture()).mean() < 3
    broken = encoded(Image.fromarray(picture()), "PNG", exif=b"Exif\x00\x00II*\x00garbage")
    np.testing.assert_array_equal(decode_image(broken), picture())


def test_unreadable_images_are_named(tmp_path):
    good = encoded(Image.fromarray(picture(200, 200)), "JPEG")
    for content in (b"", b"no image", good[: len(good) // 2], good[:20]):
        (tmp_path / "cat.jpg").write_bytes(content)
        with pytest.raises(ValueError, match=r"image .*cat.jpg cannot be read"):
            decode_image(tmp_path / "cat.jpg")
    with pytest.raises(ValueError, match="image shard 3, record 7 cannot be read"):
        decode_image(b"no image", name="shard 3, record 7")
    with pytest.raises(FileNotFoundError, match=r"dog.jpg"):
        decode_image(tmp_path / "dog.jpg")


def test_large_jpegs_may_be_decoded_smaller():
    content = encoded(Image.fromarray(picture(400, 600)), "JPEG")
    assert decode_image(content).shape == (400, 600, 3)
    assert decode_image(content, at_least=90).shape == (100, 150, 3)
    assert decode_image(content, at_least=500).shape == (400, 600, 3)
    smaller = decode_image(content, at_least=240)
    assert smaller.shape == (250, 375, 3)
    whole = Image.fromarray(picture(400, 600)).resize((375, 250), Image.Resampling.BOX)
    assert np.abs(smaller.astype(int) - np.asarray(whole)).mean() < 3


def test_jpegs_are_decoded_as_pillow_does_it():
    """Also where the faster decoder takes no part, or will not."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    grey = Image.fromarray(noise[:, :, 0])
    for content in (
        encoded(Image.fromarray(noise), "JPEG"),
        encoded(Image.fromarray(noise), "JPEG", subsampling=0, progressive=True),
        encoded(grey, "JPEG"),
        encoded(grey.convert("CMYK"), "JPEG"),
        encoded(Image.fromarray(noise), "JPEG").replace(b"\xff\xd9", b"xx\xff\xd9"),
    ):
        want = Image.open(io.BytesIO(content)).convert("RGB")
        np.testing.assert_array_equal(decode_image(content), np.asarray(want))


@pytest.mark.parametrize("height, width", [(24, 36), (36, 24), (41, 33), (20, 20), (7, 90)])
def test_evaluation_resize_is_that_of_torchvision(height, width):
    size = 16
    image = picture(height, width)
    found = resize_for_evaluation(image, size)
    # Written out again: Resize(16) keeps the long side's integer part, CenterCrop rounds.
    short, long = min(height, width), max(height, width)
    sides = (size, int(size * long / short)) if height < width else (int(size * long / short), size)
    resized = np.asarray(Image.fromarray(image).resize(sides[::-1], Image.Resampling.BILINEAR))
    top, left = round((sides[0] - size) / 2.0), round((sides[1] - size) / 2.0)
    np.testing.assert_array_equal(found, resized[top : top + size, left : left + size])
    assert resize_for_training(image, size).shape == (size, size, 3)


def test_crop_and_resize_is_pillows_antialiased_bilinear():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    resize = jax.jit(crop_and_resize, static_argnums=2)
    for box, size in (((0, 0, 40, 40), 16), ((0, 0, 40, 40), 64), ((8, 4, 20, 32), 10)):
        top, left, height, width = box
        found = resize(image, np.asarray(box, np.float32) / 40, size)
        expected = Image.fromarray(image).resize(
            (size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
        )
        inner = slice(2, -2)  # Pillow does not look beyond the box
        error = np.abs(np.asarray(found) - np.asarray(expected, np.float32))[inner, inner]
        assert error.max() <= 1.0


boxes_of = jax.jit(
    lambda keys, aspect: jax.vmap(lambda key: crop_box(key, (0.08, 1.0), aspect))(keys)
)


@pytest.mark.parametrize("aspect", [0.2, 0.75, 1.0, 1.5, 6.0])
def test_crop_boxes_have_the_area_and_aspect_of_random_resized_crop(aspect):
    keys = jax.random.split(jax.random.key(0), 500)
    boxes = np.asarray(boxes_of(keys, np.float32(aspect)))
    top, left, height, width = boxes.T
    assert (
        (boxes >= 0).all() and (top + height <= 1 + 1e-6).all() and (left + width <= 1 + 1e-6).all()
    )
    ratio = width * aspect / height
    assert (ratio > 0.75 - 1e-4).all() and (ratio < 4 / 3 + 1e-4).all()
    area = height * width
    assert area.min() >= 0.08 - 1e-4 and area.std() > 0.02
    if aspect == 1.0:
        assert area.max() > 0.9 and 0.4 < area.mean() < 0.6
        assert top.std() > 0.05 and left.std() > 0.05


def test_erasing_has_the_rate_and_area_of_random_erasing():
    keys = jax.random.split(jax.random.key(1), 2000)
    image = jnp.ones((20, 30, 3))
    some = jax.jit(jax.vmap(lambda key: erase(key, image, 0.2)))(keys)
    erased = np.asarray(some)[..., 0] == 0
    area = erased.mean((1, 2))
    assert abs((area > 0).mean() - 0.2) < 0.03
    assert area[area > 0].min() > 0.01 and 0.28 < area.max() < 0.36
    one = erased[np.argmax(area)]
    rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
    assert one.sum() == len(rows) * len(columns)  # a rectangle
    corner = erased.any(0)
    assert corner[0, 0] and corner[-1, -1] and corner[0, -1]


def test_augment_flips_normalises_and_keeps_other_keys():
    cfg = {"crop_size": 8, "random_resized_crop": False, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    augment = jax.jit(make_augment(cfg), static_argnums=2)
    image = np.random.default_rng(0).integers(0, 256, (16, 12, 10, 3), np.uint8)
    batch = {"image": image, "text": np.ones((16, 3), np.int32), "aspect": np.ones(16, np.float32)}
    found = augment(batch, jax.random.key(0), None)
    assert set(found) == {"image", "text"} and found["image"].dtype == jnp.float32
    straight = (image[:, 2:10, 1:9] / 255.0 - 0.5) / 0.25
    flipped = [
        np.allclose(x, y[:, ::-1], atol=1e-5) for x, y in zip(found["image"], straight, strict=True)
    ]
    same = [np.allclose(x, y, atol=1e-5) for x, y in zip(found["image"], straight, strict=True)]
    assert all(np.logical_xor(flipped, same)) and 3 < sum(flipped) < 13


def test_batches_without_images_pass():
    batch = {"regions": np.ones((2, 3, 4), np.float32)}
    assert make_augment({})(batch, jax.random.key(0), None) is batch
    assert make_prepare({})(batch) is batch


def test_equal_options_prepare_by_one_function():
    """So that the programs made with it are compiled once."""
    cfg = {"crop_size": 8, "mean": (0.5, 0.5, 0.5), "flip": True}
    for make in (make_prepare, augment.make_prepare):
        assert make(cfg) is make({**cfg, "flip": False, "mean": [0.5, 0.5, 0.5]})
        assert make(cfg) is not make({**cfg, "crop_size": 4})


def test_prepare_takes_the_centre_and_other_options_are_ignored():
    cfg = PLAIN | {"crop_size": 4, "source": "scenes", "dir": "x"}
    image = np.random.default_rng(0).integers(0, 256, (2, 9, 6, 3), np.uint8)
    found = jax.jit(make_prepare(cfg))({"image": image})["image"]
    np.testing.assert_allclose(found, image[:, 2:6, 1:5].astype(np.float32), atol=1e-3)
    with pytest.raises(ValueError, match="9 x 6 pixels are smaller than crop_size 8"):
        make_prepare({"crop_size": 8})({"image": image})


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_noise_does_not_depend_on_the_number_of_devices(how):
    augment = make_augment({"crop_size": 8, "erasing_rate": 0.5})
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (16, 12, 12, 3), np.uint8),
        "aspect": rng.uniform(0.5, 2.0, 16).astype(np.float32),
    }
    key = jax.random.key(3)
    expected = jax.jit(lambda batch: augment(batch, key, None)["image"])(batch)
    assert len(np.unique(np.asarray(expected).sum((1, 2, 3)))) == 16

    def gathered(key, batch, axis):
        # psum of what each device holds in its place: equal on all devices for both mappers.
        mine = augment(batch, key, axis)["image"]
        start = parallel.first_row(len(mine), axis)
        rows = jnp.zeros((16, *mine.shape[1:])) + 0 * mine.sum()
        return parallel.psum(jax.lax.dynamic_update_slice_in_dim(rows, mine, start, 0), axis)

    mesh = parallel.make_mesh()
    mapped = parallel.data_parallel(gathered, mesh, how, donate=False)
    found = mapped(key, parallel.put_batch(batch, mesh, how))
    np.testing.assert_allclose(found, expected, atol=2e-5)
