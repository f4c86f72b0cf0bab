"""Official files of IMRAM, SCAN and VSE-infinity, as the test itself writes them."""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jcmr.convert.__main__ import main
from jcmr.convert.folder import load_converted
from jcmr.data.text import SPECIAL
from jcmr.models import imram, vse
from tests.conftest import load_golden

torch = pytest.importorskip("torch")

WORDS = {word: i for i, word in enumerate((*SPECIAL, *"abcdefgh"))}
REGION, DIM, WORD = 6, 8, 5


def gru(prefix, inputs, hidden):
    rng = np.random.default_rng(len(prefix))
    shapes = {"weight_ih": (3 * hidden, inputs), "weight_hh": (3 * hidden, hidden)}
    shapes |= {"bias_ih": (3 * hidden,), "bias_hh": (3 * hidden,)}
    return {
        f"{prefix}{name}_l0{side}": rng.normal(size=shape)
        for name, shape in shapes.items()
        for side in ("", "_reverse")
    }


def linear(name, inputs, outputs, bias=True):
    rng = np.random.default_rng(inputs)
    found = {f"{name}.weight": rng.normal(size=(outputs, inputs))}
    return found | ({f"{name}.bias": rng.normal(size=outputs)} if bias else {})


def norm(name, size):
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": np.full(size, 0.5) for part in parts}


NUM_WORDS = len(WORDS)


def towers(layer, num_words=NUM_WORDS):
    """The state dicts of image and text encoder, as numpy."""
    words = np.random.default_rng(9).normal(size=(num_words, WORD))
    return linear(layer, REGION, DIM), {"embed.weight": words, **gru("rnn.", WORD, DIM)}


def save(path, model, **options):
    """A checkpoint as the official scripts write it, command line included."""
    to_torch = lambda state: {name: torch.tensor(x).float() for name, x in state.items()}
    model = [to_torch(x) for x in model] if isinstance(model, tuple) else to_torch(model)
    opt = argparse.Namespace(data_path="data", margin=0.1, **options)
    torch.save({"epoch": 3, "model": model, "best_rsum": np.float64(400.0), "opt": opt}, path)


@pytest.fixture
def vocabulary(tmp_path) -> Path:
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({"word2idx": WORDS}))
    return path


def convert(kind, tmp_path, vocabulary, *options):
    out = tmp_path / "out"
    checkpoint = f"--checkpoint={tmp_path / 'model_best.pth.tar'}"
    main([kind, checkpoint, f"--vocab={vocabulary}", f"--out={out}", *options])
    return load_converted(out)


def fits(variables, module, config):
    """The variables are those that the config's own model starts from."""
    batch = {"regions": np.zeros((1, 2, REGION), "f4"), "text": np.ones((1, 3), np.int32)}
    expected = jax.eval_shape(module.make(config["model"]).init, jax.random.key(0), batch)
    expected = {name: expected[name] for name in variables}
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, expected)


def test_imram(tmp_path, vocabulary):
    image, text = towers("fc_local")
    state = {f"img_enc.{n}": x for n, x in image.items()}
    state |= {f"txt_enc.{n}": x for n, x in text.items()}
    for name in ("linear_t2i", "gate_t2i", "linear_i2t", "gate_i2t"):
        state |= linear(name, 2 * DIM, DIM)
    options = {"model_mode": "text_IMRAM", "iteration_step": 2, "lambda_softmax": 11.0}
    save(tmp_path / "model_best.pth.tar", state, no_IMRAM_norm=True, **options)
    variables, config = convert("imram", tmp_path, vocabulary)
    model = config["model"]
    assert (model["variant"], model["steps"], model["smooth"]) == ("text", 2, 11.0)
    assert model["margin"] == 0.1 and not model["renormalise"]
    fits(variables, imram, config)
    assert set(variables["params"]) == {"image", "text", "t2i"}
    kernel = variables["params"]["image"]["project"]["kernel"]
    np.testing.assert_allclose(kernel, image["fc_local.weight"].T, rtol=1e-6)


@pytest.mark.golden("imram", "imram_e2e_text_IMRAM_max")
def test_an_official_state_dict_scores_as_officially(golden, tmp_path):
    """Written, converted and read again, the weights of a golden file give its scores."""
    arrays = load_golden(golden)
    state = {n.removeprefix("w."): x for n, x in arrays.items() if n.startswith("w.")}
    save(tmp_path / "model_best.pth.tar", state, model_mode="text_IMRAM", iteration_step=3)
    size = len(state["txt_enc.embed.weight"])
    words = {word: i for i, word in enumerate((*SPECIAL, *map(str, range(size - len(SPECIAL)))))}
    vocabulary = tmp_path / "vocab.json"
    vocabulary.write_text(json.dumps(words))
    variables, config = convert("imram", tmp_path, vocabulary)
    task = imram.make(config["model"])
    batch = {"regions": arrays["images"], "text": arrays["captions"].astype(np.int32)}

    @jax.jit
    def score(variables):
        return task.score(variables, *(task.encode[n](variables, batch) for n in ("image", "text")))

    np.testing.assert_allclose(score(variables).T, arrays["scores_train"], atol=2e-5)


def test_scan(tmp_path, vocabulary):
    options = {"cross_attn": "i2t", "agg_func": "Mean", "lambda_softmax": 4.0, "lambda_lse": 5.0}
    save(tmp_path / "model_best.pth.tar", towers("fc"), **options)
    variables, config = convert("scan", tmp_path, vocabulary)
    model = config["model"]
    assert (model["variant"], model["steps"], model["aggregate"]) == ("image", 1, "mean")
    fits(variables, imram, config)


def infty():
    image, text = towers("fc", len(WORDS) + 1)
    image |= linear("mlp.layers.0", REGION, DIM // 2) | linear("mlp.layers.1", DIM // 2, DIM)
    image |= norm("mlp.bns.0", DIM // 2) | norm("mlp.bns.1", DIM)
    pool = gru("gpool.gru.", 32, 32) | linear("gpool.linear", 32, 1, bias=False)
    return image | pool, text | pool


def test_vse_infty(tmp_path, vocabulary):
    save(tmp_path / "model_best.pth.tar", infty())
    variables, config = convert("vse_infty", tmp_path, vocabulary)
    assert config["model"]["vocab_size"] == len(WORDS) and config["model"]["word_drop_rate"]
    fits(variables, vse, config)


def test_what_does_not_fit_is_named(tmp_path, vocabulary):
    path = tmp_path / "model_best.pth.tar"
    save(path, towers("fc"))
    with pytest.raises(SystemExit, match=r"does not say whether words attend .* --direction"):
        convert("scan", tmp_path, vocabulary)
    with pytest.raises(SystemExit, match=r"no tensor img_enc.fc_local.weight"):
        convert("imram", tmp_path, vocabulary)
    with pytest.raises(SystemExit, match=r"no tensor img_enc.gpool.linear.weight"):
        convert("vse_infty", tmp_path, vocabulary)
    image, text = towers("fc")
    save(path, (image, {**text, "embed.weight": text["embed.weight"][:7]}))
    with pytest.raises(SystemExit, match=r"has 12 words, but .* was trained with 7"):
        convert("scan", tmp_path, vocabulary, "--direction=t2i")
    save(path, (image, {**text, "rnn.bias_hh_l0": text["rnn.bias_hh_l0"][:2]}))
    with pytest.raises(SystemExit, match=r"rnn.bias_hh_l0 gives \(2,\) .* expected \(24,\)"):
        convert("scan", tmp_path, vocabulary, "--direction=t2i")
    save(path, (image, text, text))
    with pytest.raises(SystemExit, match=r"neither a state dict nor a list of two"):
        convert("scan", tmp_path, vocabulary, "--direction=t2i")
    image, text = infty()
    save(path, (image, {**text, "embed.weight": text["embed.weight"][:7]}))
    with pytest.raises(SystemExit, match=r"trained with 7 words.* the vocabulary has 12"):
        convert("vse_infty", tmp_path, vocabulary)
