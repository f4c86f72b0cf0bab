"""SCAN from feature files to results, and an ensemble of runs."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jcmr import launch
from jcmr.eval import ensemble
from jcmr.serve import runs
from tests.toy import make_batch, make_toy

ROOT = Path(__file__).parents[1]


def smoke(data, name="scan_f30k"):
    """A config shrunk to a test's size, on the feature files of `data`."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("smoke")
    config.data.dir = str(data)
    config.data.max_words = 8
    config.data.test_protocols = (("f30k_1k", 1), ("halves", 2))
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Regions and captions of 8 training images, 2 to choose by and 4 to test on."""
    folder, rng = tmp_path_factory.mktemp("features"), np.random.default_rng(0)
    for split, n in (("train", 8), ("dev", 2), ("test", 4)):
        np.save(folder / f"{split}_ims.npy", rng.normal(size=(n, 3, 6)).astype(np.float32))
        lines = [f"a {word} thing\n" for word in ["red", "green", "blue", "old", "new"]] * n
        (folder / f"{split}_caps.txt").write_text("".join(lines))
    return folder


def test_a_run_and_an_ensemble_with_itself(data, tmp_path, capsys, one_device):
    config, workdir = smoke(data), tmp_path / "run"
    config.data.test_files = "test"
    launch.run_train(config, workdir)
    results = json.loads((workdir / "results.json").read_text())
    for protocol in ("f30k_1k", "halves"):
        both = [f"{protocol}/{d}/r@{k}" for d in ("i2t", "t2i") for k in (1, 5, 10)]
        assert results[f"{protocol}/rsum"] == pytest.approx(sum(results[n] for n in both))
    config.eval.ensemble = (str(workdir),)
    source, task = runs.build(config)
    launch.run_eval(config, workdir, source, task)
    together = json.loads((workdir / "ensemble.json").read_text())
    assert together.pop("members") == [str(workdir)] * 2
    results.pop("step")
    assert together == pytest.approx(results)
    assert f"Mean scores of {workdir}, {workdir}" in capsys.readouterr().out
    config.eval.ensemble = (str(tmp_path / "nowhere"),)
    with pytest.raises(FileNotFoundError, match="nowhere, which is no --workdir of a run"):
        launch.run_eval(config, workdir, source, task)


def test_scores_of_an_ensemble_are_the_mean():
    tasks, batch = [make_toy(), make_toy()], make_batch(0)
    keys = jax.random.split(jax.random.key(0))
    variables = [task.init(key, batch) for task, key in zip(tasks, keys)]
    expected = [
        task.score(v, task.encode["x"](v, batch), task.encode["y"](v, batch))
        for task, v in zip(tasks, variables)
    ]
    both = ensemble.mean_of(tasks)
    found = both.score(variables, *(both.encode[name](variables, batch) for name in "xy"))
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-6)
