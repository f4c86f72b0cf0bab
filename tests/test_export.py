"""An exported run gives the same scores where jcmr cannot be imported."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from jcmr import launch
from jcmr.serve.load import load_run
from jcmr.serve.scorer import Scorer
from tests.smoke_runs import make_run, one_device

OUTSIDE = """
import json, sys
sys.modules["jcmr"] = None
from pathlib import Path
import jax, numpy as np
from safetensors.numpy import load_file

for folder in map(Path, sys.argv[1:]):
    manifest = json.loads((folder / "manifest.json").read_text())
    weights = load_file(folder / manifest["weights"])
    given = dict(np.load(folder.parent / "given.npz"))

    def load(file):
        return jax.export.deserialize((folder / file).read_bytes())

    sides = {}
    for modality, entry in manifest["encode"].items():
        batch = {name: given[f"{modality}/{name}"] for name in entry["inputs"]}
        sides[modality] = load(entry["file"]).call(weights, batch)
    pair = next(e for e in manifest["score"] if e["query"] != e["gallery"])
    scores = load(pair["file"]).call(weights, sides[pair["query"]], sides[pair["gallery"]])
    np.save(folder.parent / "scores.npy", scores)
"""


@pytest.mark.parametrize("name", ["pcme_scenes", "imram_scenes"])
def test_the_same_scores_without_jcmr(name, tmp_path):
    workdir = make_run(name, tmp_path / "run")
    launch.run_export(workdir)
    scorer = Scorer(load_run(workdir, one_device()), one_device(), 4, (4, 8))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    images = scorer.encode("image", pixels)
    texts = scorer.encode("text", ["a red circle", "a small blue square and a green circle"])
    read = scorer._read["text"]
    ids = [read("a red circle", 0), read("a small blue square and a green circle", 0)]
    given = {
        "image/image": pixels,
        "image/id": np.zeros(3, np.int32),
        "text/text": np.stack([x["text"] for x in ids]),
        "text/id": np.zeros(2, np.int32),
    }
    np.savez(workdir / "given.npz", **given)
    command = [sys.executable, "-c", OUTSIDE, str(workdir / "export")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = scorer.score(images, texts)
    found = np.load(workdir / "scores.npy")
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    manifest = json.loads((workdir / "export" / "manifest.json").read_text())
    assert manifest["fingerprint"] == scorer.fingerprint
    assert manifest["encode"]["text"]["inputs"]["text"][:2] == ["int32", "b"]
    assert set(manifest["platforms"]) == {"cpu", "cuda", "tpu"}
    with pytest.raises(FileExistsError, match="export exists; delete it"):
        launch.run_export(workdir)
    assert jax.devices()
