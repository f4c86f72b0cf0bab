"""BERT weights as Hugging Face saves them, written here, into the model that starts from them."""

import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from jcmr.convert.__main__ import main
from jcmr.convert.folder import load_converted
from jcmr.models.encoders import bert
from jcmr.serve import runs
from tests.conftest import GOLDEN_DIR, load_golden


@pytest.fixture
def state(monkeypatch):
    """The tensors of a small BERT, under a name of `SIZES`."""
    arrays = load_golden(sorted((GOLDEN_DIR / "dxr").glob("bert*.npz"))[0])
    state = {n.removeprefix("w/"): x for n, x in arrays.items() if n.startswith("w/")}
    width = state["embeddings.word_embeddings.weight"].shape[1]
    positions = len(state["embeddings.position_embeddings.weight"])
    hidden = len(state["encoder.layer.0.intermediate.dense.weight"])
    layers = len({n.split(".")[2] for n in state if n.startswith("encoder.layer.")})
    size = bert.Size(layers, width, int(arrays["num_heads"]), hidden, positions)
    monkeypatch.setitem(bert.SIZES, "tiny", size)
    return state


def convert(path, out, *options):
    main(["bert", f"--checkpoint={path}", f"--out={out}", *options])
    return load_converted(out)


def test_both_formats_and_all_names_give_the_same_weights(state, tmp_path):
    torch = pytest.importorskip("torch")
    save_file(state, tmp_path / "model.safetensors")
    plain, config = convert(tmp_path / "model.safetensors", tmp_path / "plain")
    assert config == {"encoder": "bert", "size": "tiny"}
    old = {
        "bert." + n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): torch.tensor(x)
        for n, x in state.items()
    }  # fmt: skip
    old["cls.predictions.bias"] = torch.zeros(3)
    old["bert.embeddings.position_ids"] = torch.arange(4)
    torch.save(old, tmp_path / "pytorch_model.bin")
    other, _ = convert(tmp_path / "pytorch_model.bin", tmp_path / "other", "--at=text/bert")
    expected = traverse_util.flatten_dict(plain["params"])
    found = traverse_util.flatten_dict(other["params"]["text"]["bert"])
    assert expected.keys() == found.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x)
    placed = runs.weights_at(str(tmp_path / "plain"), "text/bert")
    assert "params/text/bert/words/embedding" in placed


def test_what_does_not_fit_is_named(state, tmp_path):
    def refused(changed):
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(SystemExit) as stopped:
            convert(tmp_path / "model.safetensors", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(stopped.value)

    first = "embeddings.word_embeddings.weight"
    assert f"has no tensor {first}" in refused({n: x for n, x in state.items() if n != first})
    lost = "encoder.layer.0.output.dense.bias"
    assert f"missing tensors {lost}" in refused({n: x for n, x in state.items() if n != lost})
    assert "known are tiny" in refused({**state, first: np.zeros((9, 7), np.float32)})
    assert "unexpected tensors decoder.weight" in refused({**state, "decoder.weight": state[first]})
