"""Targets of pairs by hand: duplicates, true matches that are not own pairs, mixed images."""

import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.losses.targets import Side, pair_targets

IMAGES = Side(jnp.arange(3), jnp.array([7, 8, 7]))
CAPTIONS = Side(jnp.repeat(jnp.arange(3), 2), jnp.repeat(IMAGES.id, 2))
OWN = np.repeat(np.eye(3), 2, axis=1)
AGAIN = np.array([[0, 0, 0, 0, 1, 1], [0] * 6, [1, 1, 0, 0, 0, 0]])


def test_duplicates():
    positive, valid = pair_targets(IMAGES, CAPTIONS, "negative")
    np.testing.assert_array_equal(positive, OWN)
    assert valid.all()
    positive, valid = pair_targets(IMAGES, CAPTIONS, "positive")
    np.testing.assert_array_equal(positive, OWN + AGAIN)
    assert valid.all()
    positive, valid = pair_targets(IMAGES, CAPTIONS, "masked")
    np.testing.assert_array_equal(positive, OWN)
    np.testing.assert_array_equal(valid, AGAIN == 0)


def test_true_positives_are_masked_and_own_pairs_are_not():
    scenes = jnp.array([[[0, 1], [2, 3]], [[0, 1], [-1, -1]], [[4, 1], [2, 3]]])
    says = jnp.array([[[0, -1], [-2, -2]], [[0, 1], [2, -1]], [[-1, 1], [-2, -2]]])
    images = Side(jnp.arange(3), code=scenes)
    captions = Side(jnp.arange(3), code=says)
    _, valid = pair_targets(images, captions, mask_true_positives=True)
    # The first caption is true of images 0 and 1, the second of image 0, the third of all.
    np.testing.assert_array_equal(valid, [[1, 0, 0], [0, 1, 0], [1, 1, 1]])
    with pytest.raises(ValueError, match="scene_code"):
        pair_targets(IMAGES, CAPTIONS, mask_true_positives=True)


def test_mixed_images_share_their_label_with_the_mirrored_row():
    own_share = jnp.array([0.75, 1.0, 1.0])
    positive, _ = pair_targets(IMAGES, CAPTIONS, "positive", own_share=own_share, num_rows=3)
    expected = OWN + AGAIN
    expected[0] = [0.75, 0.75, 0, 0, 0.25, 0.25]
    np.testing.assert_allclose(positive, expected)
    smooth, _ = pair_targets(IMAGES, CAPTIONS, "negative", label_smoothing=0.1)
    np.testing.assert_allclose(smooth, np.where(OWN > 0, 0.9, 0.1), rtol=1e-6)
