"""Official weight files, written here in their formats: whole, wrong, damaged and malicious."""

import json
import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jcmr.convert import rules
from jcmr.convert.__main__ import main
from jcmr.convert.folder import load_converted
from jcmr.convert.pcme import image_head_rules, text_rules
from jcmr.convert.resnet import resnet_rules
from jcmr.core.weights import load_weights, save_weights
from jcmr.models import pcme
from jcmr.models.encoders.resnet import ResNet

torch = pytest.importorskip("torch")

WORDS = ("<pad>", "<start>", "<end>", "<unk>", "a", "dog", "runs")
DIM, WORD_DIM = 8, 6


def torch_state(mapping, variables, seed=0):
    """A state dict that `mapping` accepts for variables of these shapes."""
    rng = np.random.default_rng(seed)
    state = {}
    for path, rule in mapping.items():
        leaf = variables
        for key in path:
            leaf = leaf[key]
        shape = leaf.shape
        if len(shape) == 4:
            shape = (shape[3], shape[2], shape[0], shape[1])
        elif len(shape) == 2 and path[-1] != "embedding":
            shape = shape[::-1]
        state[rule.name] = torch.tensor(rng.uniform(0.1, 1.0, shape).astype(np.float32))
    return state


@pytest.fixture(scope="module")
def official():
    """The state of a small official PCME: ResNet-18, 7 words."""
    cfg = {"image": "resnet18", "vocab_size": len(WORDS), "word_dim": WORD_DIM, "embed_dim": DIM}
    batch = {"image": np.zeros((1, 64, 64, 3), np.float32), "text": np.ones((1, 2), np.int32)}
    variables = jax.eval_shape(pcme.make(cfg).init, jax.random.key(0), batch)
    mapping = {
        **resnet_rules(18, ("image", "backbone"), "img_enc.cnn."),
        **image_head_rules(("image", "head"), "img_enc."),
        **text_rules(("text",), "txt_enc."),
    }
    state = torch_state(mapping, variables)
    state["img_enc.cnn.bn1.num_batches_tracked"] = torch.tensor(3)
    return state


def checkpoint(state):
    """As `save_models` of the official engine writes it, data parallel names included."""
    return {
        "model": {name.replace("cnn.", "cnn.module."): x for name, x in state.items()},
        "criterion": {"shift": torch.tensor([4.0]), "negative_scale": torch.tensor([6.0])},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]},
        "config": {"model": {"embed_dim": DIM}},
        "word2idx": {word: i for i, word in enumerate(WORDS)},
        "metadata": {"scores": {"medr": np.float64(3.0)}, "epoch": 29},
    }


@pytest.fixture
def vocab(tmp_path):
    path = tmp_path / "coco_vocab.pkl"
    content = {
        "idx": len(WORDS),
        "word2idx": {word: i for i, word in enumerate(WORDS)},
        "idx2word": dict(enumerate(WORDS)),
    }
    path.write_bytes(pickle.dumps(content))
    return path


def run(kind, **options):
    """What the command says when it fails, None when it does not."""
    try:
        main([kind, *(f"--{name}={value}" for name, value in options.items())])
    except SystemExit as stop:
        return str(stop.code)
    return None


def test_pcme_checkpoint(tmp_path, vocab, official):
    path, out = tmp_path / "pcme.pth", tmp_path / "out"
    torch.save(checkpoint(official), path)
    assert run("pcme", checkpoint=path, vocab=vocab, out=out) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["coco_vocab.pkl", "out", "pcme.pth"]
    variables, config = load_converted(out)
    assert json.loads((out / "vocabulary.json").read_text())["word2idx"]["dog"] == 5
    assert config["model"]["embed_dim"] == DIM and config["model"]["image"] == "resnet18"
    assert float(variables["params"]["criterion"]["shift"]) == 4.0
    kernel = variables["params"]["image"]["backbone"]["conv1"]["kernel"]
    torch_kernel = official["img_enc.cnn.conv1.weight"].numpy()
    np.testing.assert_array_equal(kernel[1, 2, 0], torch_kernel[:, 0, 1, 2])
    task = pcme.make(config["model"])
    images = {"image": np.ones((2, 64, 64, 3), np.float32), "id": np.arange(2)}
    assert task.encode["image"](variables, images).samples.shape == (2, 7, DIM)
    assert run("pcme", checkpoint=path, vocab=vocab, out=out).startswith(f"{out} exists")


def test_bare_model_state_keeps_the_recipes_criterion(tmp_path, vocab, official):
    path, out = tmp_path / "model.pth", tmp_path / "out"
    torch.save(official, path)
    assert run("pcme", checkpoint=path, vocab=vocab, out=out) is None
    assert float(load_weights(out)["params"]["criterion"]["negative_scale"]) == 15.0


def test_vocabulary_of_another_checkpoint(tmp_path, official):
    path, other = tmp_path / "pcme.pth", tmp_path / "other.json"
    torch.save(checkpoint(official), path)
    other.write_text(json.dumps([*WORDS, "cat"]))
    said = run("pcme", checkpoint=path, vocab=other, out=tmp_path / "out")
    assert "8 words" in said and "with 7" in said
    other.write_text(json.dumps([*WORDS[:4], "dog", "a", "runs"]))
    said = run("pcme", checkpoint=path, vocab=other, out=tmp_path / "out")
    assert "other ids" in said and not (tmp_path / "out").exists()


def test_tensors_that_do_not_fit_are_named(tmp_path, vocab, official):
    state = dict(official)
    state["txt_enc.rnn.weight_hh_l1"] = state.pop("txt_enc.rnn.weight_hh_l0")
    path = tmp_path / "pcme.pth"
    torch.save(state, path)
    said = run("pcme", checkpoint=path, vocab=vocab, out=tmp_path / "out")
    assert "missing tensors txt_enc.rnn.weight_hh_l0" in said
    assert "unexpected tensors txt_enc.rnn.weight_hh_l1" in said
    state = {**official, "img_enc.fc.bias": torch.ones(DIM + 1)}
    torch.save(state, path)
    said = run("pcme", checkpoint=path, vocab=vocab, out=tmp_path / "out")
    assert "img_enc.fc.bias gives (9,)" in said and "expected (8,)" in said
    torch.save({"conv1.weight": torch.ones(2)}, path)
    said = run("pcme", checkpoint=path, vocab=vocab, out=tmp_path / "out")
    assert "expected an official PCME" in said


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_resnet(tmp_path, suffix):
    shapes = jax.eval_shape(ResNet(18).init, jax.random.key(0), np.zeros((1, 64, 64, 3)))
    state = torch_state(resnet_rules(18), shapes)
    state["fc.weight"] = torch.ones(1000, 512)
    path, out = tmp_path / f"resnet18{suffix}", tmp_path / "out"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file({name: x.numpy() for name, x in state.items()}, path)
    assert run("resnet", checkpoint=path, arch="resnet18", out=out) is None
    variables, config = load_converted(out)
    assert config == {"encoder": "resnet", "depth": 18}
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, dict(shapes))
    placed = tmp_path / "placed"
    run("resnet", checkpoint=path, arch="resnet18", out=placed, at="image/backbone")
    inside = load_converted(placed)[0]["params"]["image"]["backbone"]  # where pcme has it
    assert jax.tree.map(np.shape, inside) == jax.tree.map(np.shape, dict(shapes)["params"])
    said = run("resnet", checkpoint=path, arch="resnet50", out=tmp_path / "other")
    assert "missing tensors" in said and "layer1.0.conv3.weight" in said


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_pickled_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    torch.save({"conv1.weight": Evil()}, path)
    said = run("resnet", checkpoint=path, arch="resnet18", out=tmp_path / "out")
    assert "refused" in said and "system" in said and not (tmp_path / "pwned").exists()
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    said = run("resnet", checkpoint=path, arch="resnet18", out=tmp_path / "out")
    assert "evil.pth" in said and not (tmp_path / "pwned").exists()


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "x.pth"
    options = {"checkpoint": path, "arch": "resnet18", "out": tmp_path / "out"}
    assert "does not exist" in run("resnet", **options)
    path.write_bytes(b"PK\x03\x04 half a file")
    assert "no whole torch file" in run("resnet", **options)
    torch.save([1, 2], path)
    assert "not a dict of tensors" in run("resnet", **options)
    options["checkpoint"] = tmp_path / "x.safetensors"
    options["checkpoint"].write_bytes(b"\x10\0\0\0\0\0\0\0{half")
    assert "no whole safetensors" in run("resnet", **options)
    options["checkpoint"] = tmp_path / "x.h5"
    options["checkpoint"].write_bytes(b"")
    assert "unknown" in run("resnet", **options)


def test_without_torch(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from jcmr.convert.__main__ import main\n"
        f"main(['resnet', '--checkpoint={path}', '--arch=resnet18', '--out={tmp_path}/out'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'jcmr[torch]'" in done.stderr


def test_weights_round_trip(tmp_path):
    tree = {"params": {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.float32(2)}}
    save_weights(tmp_path / "variables.safetensors", tree)
    back = load_weights(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert back["params"]["b"].shape == ()
    (tmp_path / "variables.safetensors").write_bytes(b"\x99")
    with pytest.raises(ValueError, match="no whole safetensors"):
        load_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"jcmr\.convert"):
        load_weights(tmp_path / "nowhere")


def test_rules_report_all_leaves_without_a_tensor():
    expected = {"params": {"a": np.zeros(2), "b": np.zeros(3)}}
    with pytest.raises(ValueError, match="nothing gives params/b"):
        rules.convert({("params", "a"): rules.copied("a")}, {"a": np.zeros(2)}, expected)
