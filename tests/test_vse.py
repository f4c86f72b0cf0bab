"""VSE++ and VSE-infinity as Tasks, and the augmentation of set sizes."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.models import vse
from jcmr.ops.size_augmentation import drop_words, keep_regions
from tests.test_imram import check_devices, make_batch

SMALL = {"vocab_size": 20, "word_dim": 6, "embed_dim": 8}


def test_devices_do_not_matter():
    """Batch statistics, warm-up and dropped words and regions included."""
    options = {"region_drop_rate": 0.3, "word_drop_rate": 0.3, "warmup_steps": 2}
    _, new = check_devices(vse.make({**SMALL, **options}), make_batch())
    assert new["schedule"]["step"] == 1 and "batch_stats" in new


def test_warm_up_counts_all_mismatches():
    """The sum over all mismatches before the last step of warm-up, the hardest alone after it."""
    batch = make_batch()
    common = {**SMALL, "method": "vsepp"}
    task = vse.make({**common, "warmup_steps": 2})
    variables = task.init(jax.random.key(0), batch)
    losses = {}
    loss = jax.jit(lambda v: task.loss(v, batch, jax.random.key(0), None)[0]["hinge"].sum)
    for step in (0, 1, 2):
        losses[step] = loss({**variables, "schedule": {"step": jnp.float32(step)}})
    for hardest, step in ((False, 1), (True, 2)):
        plain = vse.make({**common, "hardest": hardest})
        run = jax.jit(lambda v, t=plain: t.loss(v, batch, jax.random.key(0), None)[0]["hinge"].sum)
        expected = run({"params": variables["params"]})
        np.testing.assert_allclose(losses[step], expected, rtol=1e-6)
    assert losses[0] == losses[1] > losses[2]


@pytest.mark.parametrize("options", [{}, {"method": "vsepp", "measure": "order"}])
def test_padding_and_tiles_do_not_matter(options):
    task, batch = vse.make({**SMALL, **options}), make_batch(6, 1)
    variables = task.init(jax.random.key(0), batch)
    text = batch["text"][:, 0]
    image = jax.jit(task.encode["image"])(variables, batch)
    encode = jax.jit(task.encode["text"])
    caption = encode(variables, {"text": text})
    longer = encode(variables, {"text": np.pad(text, ((0, 0), (0, 3)))})
    np.testing.assert_allclose(longer, caption, atol=1e-6)
    scores = task.score(variables, image, caption)
    np.testing.assert_allclose(task.score(variables, image[2:4], caption), scores[2:4], atol=1e-6)
    if options:
        expected = -np.linalg.norm(np.maximum(0, caption[None] - image[:, None]), axis=-1)
        np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_words_are_masked_replaced_or_deleted():
    text = jnp.tile(jnp.asarray([1, 4, 5, 6, 7, 8, 2, 0, 0]), (4000, 1))
    keys = jax.random.split(jax.random.key(0), len(text))
    drop = jax.jit(lambda keys, text, rate: drop_words(keys, text, rate, num_words=9, mask_id=9))
    dropped = np.asarray(drop(keys, text, 0.2))
    lengths = (dropped > 0).sum(1)
    assert (dropped[:, 0] == 1).all() and (dropped[np.arange(4000), lengths - 1] == 2).all()
    assert ((dropped > 0) == (np.arange(9) < lengths[:, None])).all()
    words = 5 * 4000
    assert abs((7 - lengths).sum() / words - 0.08) < 0.01
    assert abs((dropped == 9).sum() / words - 0.10) < 0.01
    np.testing.assert_array_equal(drop(keys, text, 0.0), text)


def test_regions_are_left_out_but_never_all():
    keys = jax.random.split(jax.random.key(0), 3000)
    kept = np.asarray(keep_regions(keys, 8, 0.2))
    assert abs(kept.mean() - 0.8) < 0.01
    assert np.asarray(keep_regions(keys, 2, 0.9)).any(axis=1).all()


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"config.model.method is 'vse'; it can be vsepp, vse_inf"):
        vse.make({"method": "vse"})
