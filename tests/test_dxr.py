"""DXR as a Task: equal on any number of devices, per item and not per batch, and end to end."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from jcmr import launch
from jcmr.core import parallel
from jcmr.models import dxr
from jcmr.models.encoders import bert
from jcmr.train.state import init_state, make_train_step, objective
from tests.test_pcme import MAPPERS, assert_close, items, make_batch

ROOT = Path(__file__).parents[1]
SMALL = {
    "image": "regions", "text": "words", "vocab_size": 20, "word_dim": 6, "embed_dim": 8,
    "num_layers": 1, "num_heads": 2, "hidden": 12, "dropout_rate": 0.0,
}  # fmt: skip
SYSTEMS = {
    "hinge": {"dropout_rate": 0.2, "input_dropout_rate": 0.2, "warmup_steps": 4},
    "infonce": {"loss": "infonce", "text": "bert", "bert": "tiny", "duplicates": "masked"},
}


@pytest.fixture(autouse=True)
def small_bert(monkeypatch):
    """A BERT of a few numbers takes the place of the smallest."""
    monkeypatch.setitem(bert.SIZES, "tiny", bert.Size(1, 8, 2, 12, 12))


def trained(cfg, num_devices, how):
    """The state after three steps of gradient descent."""
    task, optimizer = dxr.make(cfg), optax.sgd(0.05)
    mesh = parallel.make_mesh(jax.devices()[:num_devices])
    state = init_state(task.init(jax.random.key(0), make_batch()), optimizer, jax.random.key(1))
    step = make_train_step(task, optimizer, lambda batch, key, axis: batch)
    step, state = parallel.data_parallel(step, mesh, how), parallel.replicate(state, mesh)
    for i in range(3):
        state, logs = step(state, parallel.put_batch(make_batch(seed=i), mesh, how))
    return jax.device_get((state.params, state.mutables, logs))


@pytest.mark.parametrize("name", SYSTEMS)
def test_devices_do_not_matter(name):
    cfg = {**SMALL, **SYSTEMS[name], "negative_groups": 2}
    one = trained(cfg, 1, "pmap")
    assert np.isfinite(one[2]["loss"]) and one[2]["loss"] > 0
    for how in MAPPERS:
        assert_close(trained(cfg, 8, how), one, 2e-5)


@pytest.fixture(scope="module")
def task():
    return dxr.make(SMALL)


@pytest.fixture(scope="module")
def variables(task):
    return task.init(jax.random.key(0), make_batch())


@pytest.fixture(scope="module")
def embedded(task, variables):
    inputs = items(make_batch())
    return {name: jax.jit(task.encode[name])(variables, inputs[name]) for name in inputs}


def test_an_item_embeds_the_same_in_any_batch_and_with_any_padding(task, variables, embedded):
    inputs, some = items(make_batch()), np.array([9, 2, 5])
    for name, whole in embedded.items():
        part = jax.tree.map(lambda x: x[some], inputs[name])
        if name == "text":
            part["text"] = np.pad(part["text"], ((0, 0), (0, 3)))
        assert_close(jax.jit(task.encode[name])(variables, part), whole[some])
        np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-5)
    empty = {"text": np.zeros((2, 5), np.int32)}
    assert np.isfinite(task.encode["text"](variables, empty)).all()


def test_the_order_of_words_and_of_the_grid_matters(task, variables, embedded):
    inputs = items(make_batch())
    turned = {"regions": inputs["image"]["regions"][:, ::-1]}
    assert np.abs(task.encode["image"](variables, turned) - embedded["image"]).max() > 1e-3
    text = np.tile(np.arange(1, 6), (2, 1))
    text[1, 1:4] = text[1, 3:0:-1]
    first, second = task.encode["text"](variables, {"text": text})
    assert np.abs(first - second).max() > 1e-3


def losses(cfg, variables, batch):
    task = dxr.make({**SMALL, **cfg})
    terms, _ = task.loss(variables, batch, jax.random.key(0), None)
    return float(objective(terms, None)), task


def test_the_loss_against_a_naive_one(task, variables):
    """Each pair on its own in float64: hinge with and without what the official code lacks."""
    batch = {**make_batch(8, 2), "id": np.array([0, 1, 2, 0, 4, 5, 6, 7], np.int32)}
    images = np.asarray(task.encode["image"](variables, batch), np.float64)
    flat = batch["text"].reshape(16, -1)
    texts = np.asarray(task.encode["text"](variables, {"text": flat}), np.float64)
    scores, owner = images @ texts.T, np.arange(16) // 2

    def naive(duplicates, groups, hardest):
        total = 0.0
        for j, i in enumerate(owner):
            group = lambda row: row * groups // 8
            ids = np.arange(8) if duplicates == "negative" else batch["id"]
            row = [
                max(0, 0.2 + scores[i, k] - scores[i, j])
                for k, other in enumerate(owner)
                if ids[other] != ids[i] and group(other) == group(i)
            ]
            column = [
                max(0, 0.2 + scores[k, j] - scores[i, j])
                for k in range(8)
                if ids[k] != ids[i] and group(k) == group(i)
            ]
            total += max(row) + max(column) if hardest else sum(row) + sum(column)
        return total

    official = {"reduction": "sum", "duplicates": "negative", "negative_groups": 2}
    assert losses(official, variables, batch)[0] == pytest.approx(naive("negative", 2, True), 1e-4)
    soft = losses({"warmup_steps": 4}, {**variables, "schedule": {"step": 1.0}}, batch)[0]
    expected = naive("masked", 1, True) / 4 + naive("masked", 1, False) * 3 / 4
    assert soft == pytest.approx(expected / 16, 1e-4)


def test_official_images_keep_their_length(variables):
    task = dxr.make({**SMALL, "normalise_images": False})
    lengths = np.linalg.norm(task.encode["image"](variables, make_batch()), axis=1)
    assert np.ptp(lengths) > 1e-3
    config = dxr.make_config({"parity": True, "normalise_images": True})
    assert (config.normalise_images, config.pool, config.reduction) == (False, "attention", "sum")


def test_options_are_checked(task, variables):
    with pytest.raises(ValueError, match=r"config.model.pool is 'mean'; it can be multi_head, att"):
        dxr.make({"pool": "mean"})
    with pytest.raises(ValueError, match="did you mean 'normalise_images'"):
        dxr.make({"normalize_images": True})
    with pytest.raises(ValueError, match=r"embed_dim is 10; it must be a multiple of 4 and of num"):
        dxr.make({"embed_dim": 10})
    with pytest.raises(ValueError, match=r"5 tokens, which is no square grid; set config.model.g"):
        task.encode["image"](variables, {"regions": np.zeros((1, 5, 6), np.float32)})
    long = dxr.make({**SMALL, "text": "bert", "bert": "tiny"})
    with pytest.raises(ValueError, match=r"13 tokens is longer than this BERT's 12 positions"):
        long.init(jax.random.key(0), {**make_batch(), "text": np.ones((16, 13), np.int32)})


def get_config(name, arg):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def test_scenes_from_config_to_results(tmp_path, monkeypatch):
    mesh = parallel.make_mesh(jax.devices()[:1])  # one device compiles fastest
    monkeypatch.setattr(parallel, "make_mesh", lambda: mesh)
    config = get_config("dxr_scenes", "smoke")
    config.data.cache_dir = str(tmp_path / "cache")
    launch.run_train(config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 <= results["test/i2t/hit@1"] <= 1 and results["test/rsum"] > 0


def test_every_fix_of_scenes_has_a_row():
    with pytest.raises(ValueError, match="dxr_scenes has :official, :smoke and :without_ one of"):
        get_config("dxr_scenes", "without_luck")
    whole = get_config("dxr_scenes", "").to_dict()
    for fix in ("unit_images", "soft_start", "pixel_scale", "many_captions", "multi_head_pool",
                "global_negatives"):  # fmt: skip
        config = get_config("dxr_scenes", f"without_{fix}")
        assert config.to_dict() != whole
        dxr.make_config({**config.model, "vocab_size": 3})
    official = dxr.make_config(get_config("dxr_scenes", "official").model)
    for name, value in dxr.PARITY.items():
        assert getattr(official, name) == value
