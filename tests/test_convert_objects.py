"""Official DGCNN and MeshNet files become towers of Center3D."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from jcmr.convert.dgcnn import convert_dgcnn
from jcmr.convert.folder import load_converted
from jcmr.convert.meshnet import convert_meshnet
from jcmr.models import center3d
from jcmr.serve import runs
from tests.conftest import golden_cases, load_golden
from tests.test_center3d import SMALL, make_batch
from tests.test_convert import run
from tests.test_golden_resnet import weights

torch = pytest.importorskip("torch")
CONVERT = {"dgcnn": convert_dgcnn, "meshnet": convert_meshnet}


@pytest.fixture(scope="module")
def states():
    """Small official state dicts, with what the official files hold besides."""
    found = {}
    for kind, prefix in (("dgcnn", "dgcnn_cmcl"), ("meshnet", "meshnet_whole")):
        state = weights(load_golden(golden_cases("center_loss", prefix)[0]), "w/")
        state["bn6.num_batches_tracked"] = np.zeros(())
        found[kind] = state
    found["dgcnn"] |= {"linear3.weight": np.zeros((4, 256), "f4"), "bn1.weight": np.ones(64, "f4")}
    return found


@pytest.mark.parametrize("kind", CONVERT)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files(kind, suffix, states, tmp_path):
    state, path, out = states[kind], tmp_path / f"{kind}{suffix}", tmp_path / "out"
    if suffix == ".pth":
        torch.save({f"module.{n}": torch.tensor(x) for n, x in state.items()}, path)
    else:
        save_file({n: np.ascontiguousarray(x) for n, x in state.items()}, path)
    assert run(kind, checkpoint=path, out=out) is None
    variables, config = load_converted(out)
    assert config["encoder"] == kind and config["features"] == state["linear1.weight"].shape[0]
    jax.tree.map(np.testing.assert_array_equal, variables, CONVERT[kind](state))


@pytest.mark.parametrize("kind", CONVERT)
def test_wrong_files_are_named(kind, states, tmp_path):
    state, path = dict(states[kind]), tmp_path / "wrong.safetensors"
    del state["linear1.weight"]
    save_file(state, path)
    assert "linear1.weight" in run(kind, checkpoint=path, out=tmp_path / "out")
    state = {**states[kind], "surprise": np.zeros(2, "f4")}
    save_file(state, path)
    assert "unexpected tensors surprise" in run(kind, checkpoint=path, out=tmp_path / "out")


def test_towers_start_from_converted_weights(states, tmp_path: Path):
    path, out = tmp_path / "dgcnn.safetensors", tmp_path / "weights"
    save_file(states["dgcnn"], path)
    assert run("dgcnn", checkpoint=path, out=out) is None
    _, sizes = load_converted(out)
    options = {
        "modalities": ("points",),
        "point_embed_dim": sizes["embed_dim"],
        "point_widths": tuple(sizes["widths"]),
        "features": sizes["features"],
    }
    task = center3d.make({**SMALL, **options})
    batch = {name: make_batch()[name] for name in ("points", "label")}
    ours = traverse_util.flatten_dict(jax.eval_shape(task.init, jax.random.key(0), batch), sep="/")
    theirs = runs.weights_at(str(out), "points")
    assert theirs and all(ours[name].shape == x.shape for name, x in theirs.items())
    tower = {name for name in ours if "/points/" in name}
    assert tower == theirs.keys()
