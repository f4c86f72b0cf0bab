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
from jcmr.train import optim
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


@pytest.mark.parametrize(("name", "mappers"), [("hinge", MAPPERS), ("infonce", ["shard_map"])])
def test_devices_do_not_matter(name, mappers):
    cfg = {**SMALL, **SYSTEMS[name], "negative_groups": 2}
    one = trained(cfg, 1, "pmap")
    assert np.isfinite(one[2]["loss"]) and one[2]["loss"] > 0
    for how in mappers:
        assert_close(trained(cfg, 8, how), one, 2e-5)


BATCH = make_batch(num_captions=1)
INPUTS = items(BATCH)


@pytest.fixture(scope="module")
def task():
    return dxr.make(SMALL)


@pytest.fixture(scope="module")
def variables(task):
    return task.init(jax.random.key(0), BATCH)


@pytest.fixture(scope="module")
def encode(task, variables):
    jitted = {name: jax.jit(encode) for name, encode in task.encode.items()}
    return lambda name, inputs: np.asarray(jitted[name](variables, inputs))


@pytest.fixture(scope="module")
def embedded(encode):
    return {name: encode(name, INPUTS[name]) for name in INPUTS}


def test_texts_embed_the_same_in_any_batch_and_with_any_padding(encode, embedded):
    words = np.arange(1, 7)
    turned = words[[0, 3, 2, 1, 4, 5]]
    text = np.stack([*INPUTS["text"]["text"][[9, 2, 5]], 0 * words, words, turned])
    found = encode("text", {"text": np.pad(text, ((0, 0), (0, 3)))})
    assert_close(found[:3], embedded["text"][[9, 2, 5]])
    np.testing.assert_allclose(np.linalg.norm(found[:3], axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found[3], 0)  # a text of no words
    assert np.abs(found[4] - found[5]).max() > 1e-3  # the order of words matters


def test_images_embed_the_same_in_any_batch(encode, embedded):
    regions = INPUTS["image"]["regions"]
    found = encode("image", {"regions": np.stack([regions[9], regions[2], regions[9, ::-1]])})
    assert_close(found[:2], embedded["image"][[9, 2]])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert np.abs(found[2] - found[0]).max() > 1e-3  # so does where a token is


def naive_hinge(scores, ids, groups):
    """Sums over pairs, one at a time, of the (hardest, all) mismatches among rows of a group."""
    num, found = len(scores), np.zeros(2)
    for i in range(num):
        others = [
            k for k in range(num) if ids[k] != ids[i] and k * groups // num == i * groups // num
        ]
        for line in (scores[i], scores[:, i]):
            violations = [max(0.0, 0.2 + line[k] - line[i]) for k in others]
            found += max(violations), sum(violations)
    return found


def test_the_loss_against_a_naive_one(variables, embedded):
    scores = embedded["image"].astype(np.float64) @ embedded["text"].T

    def loss(cfg, variables):
        task = dxr.make({**SMALL, **cfg})
        run = lambda v: objective(task.loss(v, BATCH, jax.random.key(0), None)[0], None)
        return float(jax.jit(run)(variables))

    official = {"reduction": "sum", "duplicates": "negative", "negative_groups": 2}
    hardest, _ = naive_hinge(scores, np.arange(16), 2)
    assert loss(official, variables) == pytest.approx(hardest, rel=1e-4)
    hardest, total = naive_hinge(scores, BATCH["id"], 1)
    warm = {**variables, "schedule": {"step": np.float32(1)}}
    expected = (hardest / 4 + total * 3 / 4) / 16
    assert loss({"warmup_steps": 4}, warm) == pytest.approx(expected, rel=1e-4)


def test_official_conventions(variables):
    task = dxr.make({**SMALL, "normalise_images": False})
    lengths = np.linalg.norm(jax.jit(task.encode["image"])(variables, INPUTS["image"]), axis=1)
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
    with pytest.raises(ValueError, match=r"word_dim is 3; it must be even"):
        dxr.make({"word_dim": 3})
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


def test_scenes_from_config_to_results(tmp_path, one_device):
    config = get_config("dxr_scenes", "smoke")
    config.data.cache_dir = str(tmp_path / "cache")
    launch.run_train(config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 <= results["test/i2t/hit@1"] <= 1 and results["test/rsum"] > 0


@pytest.mark.parametrize("name", ["dxr_coco", "dxr_f30k", "dxr_flickr8k"])
def test_configs_fit_their_models(name):
    """Shapes alone: the options, the patterns of the optimizer, and both sides in one space."""
    for arg in ("", "smoke") if name == "dxr_flickr8k" else ("official", "smoke"):
        config = get_config(name, arg)
        dxr.make_config({**config.model, "vocab_size": 20})
        model = {**get_config(name, "smoke").model, "vocab_size": 20}
        batch = {**BATCH, "image": np.zeros((16, 64, 64, 3), np.float32)}
        variables = jax.eval_shape(dxr.make(model).init, jax.random.key(0), batch)
        for stage in config.train.stages:
            fields = {n: x for n, x in stage.items() if n not in ("name", "num_epochs")}
            optim.make_optimizer(optim.stage_config(fields), 10, variables["params"])


def test_every_fix_of_scenes_has_a_row():
    with pytest.raises(
        ValueError, match="dxr_scenes has :official, :hinge, :smoke and :without_ one of"
    ):
        get_config("dxr_scenes", "without_luck")
    whole = get_config("dxr_scenes", "").to_dict()
    for fix in ("unit_images", "soft_loss", "pixel_scale", "many_captions", "multi_head_pool",
                "global_negatives"):  # fmt: skip
        config = get_config("dxr_scenes", f"without_{fix}")
        assert config.to_dict() != whole
        dxr.make_config({**config.model, "vocab_size": 3})
    official = dxr.make_config(get_config("dxr_scenes", "official").model)
    for name, value in dxr.PARITY.items():
        assert getattr(official, name) == value
