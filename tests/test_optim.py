"""Stages of the config as optimizers."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.train import optim

PARAMS = {
    "image": {"kernel": jnp.full((3, 4), 2.0), "bias": jnp.ones(4)},
    "criterion": {"shift": jnp.asarray(5.0)},
}
GRADS = jax.tree.map(lambda p: jnp.ones_like(p) * 3, PARAMS)


def one_step(**fields):
    optimizer = optim.make_optimizer(optim.stage_config(fields), 10, PARAMS)
    state = optimizer.init(PARAMS)
    updates, _ = optimizer.update(GRADS, state, PARAMS)
    return updates, state


def sgd(**fields):
    return one_step(optimizer="sgd", learning_rate=1.0, schedule="constant", **fields)


def test_frozen_parameters_stay_and_take_no_memory():
    updates, state = one_step(optimizer="adamp", frozen=("^image/kernel",))
    assert not np.any(updates["image"]["kernel"]) and np.all(updates["image"]["bias"])
    assert (3, 4) not in {np.shape(x) for x in jax.tree.leaves(state)}


def test_clipping_leaves_excluded_parameters_alone():
    updates, _ = sgd(clip_norm=2.0, no_clip=("criterion",))
    clipped = np.concatenate([np.ravel(x) for x in jax.tree.leaves(updates["image"])])
    np.testing.assert_allclose(np.linalg.norm(clipped), 2.0, rtol=1e-6)
    np.testing.assert_allclose(updates["criterion"]["shift"], -3.0)


def test_learning_rate_scales():
    updates, _ = sgd(lr_scales=(("criterion", 10.0), ("bias", 0.5)))
    np.testing.assert_allclose(updates["criterion"]["shift"], -30.0)
    np.testing.assert_allclose(updates["image"]["bias"], -1.5)
    np.testing.assert_allclose(updates["image"]["kernel"], -3.0)


def test_decay_spares_what_it_is_told_to():
    updates, _ = sgd(weight_decay=0.1, no_decay=("criterion",))
    np.testing.assert_allclose(updates["image"]["kernel"], -3.2, rtol=1e-6)
    np.testing.assert_allclose(updates["criterion"]["shift"], -3.0)


COS_3_OF_8 = 0.5 * (1 + np.cos(3 * np.pi / 8))


@pytest.mark.parametrize(
    ("fields", "rates"),
    [
        ({"schedule": "cosine"}, {0: 1.0, 10: 0.5, 20: 0.0}),
        ({"schedule": "cosine_epochs"}, {0: 1.0, 4: 1.0, 5: 0.5 * (1 + np.cos(np.pi / 4))}),
        ({"schedule": "cosine_epochs", "schedule_epochs": 8}, {4: 1.0, 19: COS_3_OF_8, 40: 0.0}),
        ({"schedule": "steps", "decay_epochs": (2, 3)}, {9: 1.0, 10: 0.1, 15: 0.01}),
        ({"schedule": "constant", "warmup_steps": 4}, {0: 0.25, 3: 1.0, 9: 1.0}),
    ],
)
def test_schedules(fields, rates):
    config = optim.stage_config({"learning_rate": 1.0, **fields})
    schedule = optim.make_schedule(config, num_steps=20, steps_per_epoch=5)
    for step, rate in rates.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"learning_rat": 1.0}, "did you mean 'learning_rate'"),
        ({"optimizer": "lion"}, "adamp, adam, adamw, sgd"),
        ({"frozen": ("imagee/kernel",)}, "fits no parameter; the nearest are image/kernel"),
    ],
)
def test_wrong_stages_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        one_step(**fields)
