"""Mixup and CutMix: shares are true of the pixels, on any number of devices."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.core import parallel
from jcmr.ops.mixing import mix_images


@pytest.mark.parametrize("cutmix_rate", [0.0, 1.0])
def test_share_of_pixels_is_share_of_label(cutmix_rate):
    size = 64
    images = np.broadcast_to(np.arange(size)[:, None, None, None], (size, 8, 8, 1)) * 1.0
    mixed, own = mix_images(images, jax.random.key(0), None, 0.5, cutmix_rate=cutmix_rate)
    row = np.arange(size)
    expected = own * row + (1 - own) * (size - 1 - row)
    np.testing.assert_allclose(np.asarray(mixed).mean((1, 2, 3)), expected, atol=1e-3)
    kept = np.asarray(own) == 1
    assert 0.25 < kept.mean() < 0.75
    np.testing.assert_array_equal(np.asarray(mixed)[kept], images[kept])


def test_devices_do_not_matter():
    images = np.random.default_rng(0).normal(size=(16, 4, 4, 3)).astype(np.float32)

    def gathered(state, batch, axis):
        # A sum over placed rows, so that the result is known to be equal on all devices.
        mixed, own = mix_images(batch["image"], jax.random.key(1), axis, 1.0)
        rows = parallel.first_row(len(own), axis) + np.arange(len(own))
        whole = jnp.zeros((16, *mixed.shape[1:])).at[rows].set(mixed)
        return parallel.psum((whole, jnp.zeros(16).at[rows].set(own)), axis)

    one = gathered(None, {"image": images}, None)
    mesh = parallel.make_mesh()
    for how in ("pmap", "shard_map"):
        batch = parallel.put_batch({"image": images}, mesh, how)
        many = parallel.data_parallel(gathered, mesh, how, donate=False)({}, batch)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-6), many, one)
