"""The command line, end to end, from real configs shrunk by :smoke."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jcmr
from jcmr import launch
from jcmr.train.checkpoint import Checkpoints
from jcmr.train.logging import read_records
from tests.smoke_runs import load_config

ROOT = Path(__file__).parents[1]
SCENES = "configs/pcme_scenes.py:smoke"


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "jcmr.launch", *options]


def environment(cache: Path, num_devices: int = 1) -> dict[str, str]:
    """A process of its own with its own cache and a number of host devices."""
    return {
        **os.environ,
        "XDG_CACHE_HOME": str(cache),
        "JAX_NUM_CPU_DEVICES": str(num_devices),
        "JAX_PLATFORMS": "cpu",
    }


def run(*options: str, cache: Path, num_devices: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*options),
        cwd=ROOT,
        env=environment(cache, num_devices),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache) -> Path:
    """A run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("finished")
    done = run(f"--config={SCENES}", f"--workdir={workdir}", cache=cache)
    assert done.returncode == 0, done.stderr
    return workdir


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoint's variables, by path."""
    config = json.loads((workdir / "config.json").read_text())["config"]
    assert config["task"] == "pcme"
    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.latest()
    restored = checkpoints.restore_arrays(step)
    checkpoints.close()
    return restored


def test_a_run_leaves_what_it_should(finished):
    results = json.loads((finished / "results.json").read_text())
    for name in ("test/t2i/hit@1", "test/i2t/hit@1", "test/t2i/r_precision", "test/i2t/r@10"):
        assert 0 <= results[name] <= 100
    records = read_records(finished / "metrics.jsonl")
    assert {r["split"] for r in records} == {"train", "dev"}
    assert all(np.isfinite(r["loss"]) for r in records if r["split"] == "train")
    assert list((finished / "tensorboard").iterdir())
    assert list((finished / "report").glob("*.png"))


def test_a_trained_run_is_a_scorer(finished):
    assert (finished / "vocabulary.json").is_file()
    scorer = jcmr.Scorer.load(finished, devices=jax.devices()[:1], batch_size=2, tile=(2, 8))
    assert scorer.run.step == json.loads((finished / "results.json").read_text())["step"]
    found = scorer.encode("text", ["a red circle", "a blue square"])
    assert np.isfinite(scorer.uncertainty(found)).all()


def test_killed_at_a_random_step_it_ends_with_the_same_parameters(finished, cache, tmp_path):
    process = subprocess.Popen(
        command(f"--config={SCENES}", f"--workdir={tmp_path}"),
        cwd=ROOT,
        env=environment(cache),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    enough = random.randint(1, 3)
    deadline = time.monotonic() + 200
    while len(read_records(tmp_path / "metrics.jsonl")) < enough and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = run(f"--config={SCENES}", f"--workdir={tmp_path}", cache=cache)
    assert done.returncode == 0, done.stderr
    want, got = parameters(finished), parameters(tmp_path)
    assert want.keys() == got.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_stopped_on_eight_devices_and_finished_on_two(cache, tmp_path):
    """SIGTERM saves and says how to resume; the number of devices may be another one then."""
    options = f"--config={SCENES}", f"--workdir={tmp_path}"
    process = subprocess.Popen(
        command(*options, "--config.train.log_steps=1"),
        cwd=ROOT,
        env=environment(cache, 8),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not read_records(tmp_path / "metrics.jsonl") and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "8 device(s)" in said and "the state is saved" in said
    assert f"python -m jcmr.launch --config={SCENES} --workdir={tmp_path}" in said
    done = run(*options, cache=cache, num_devices=2)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr and "2 device(s)" in done.stderr


def test_evaluating_again_gives_the_same_numbers(finished, cache):
    before = json.loads((finished / "results.json").read_text())
    done = run("--mode=eval", f"--config={SCENES}", f"--workdir={finished}", cache=cache)
    assert done.returncode == 0, done.stderr
    assert json.loads((finished / "results.json").read_text()) == before


def test_a_run_can_be_evaluated_with_another_score(finished, cache, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    options = "--mode=eval", f"--config={SCENES}", f"--workdir={tmp_path / 'run'}"
    done = run(*options, "--config.model.score=cosine", cache=cache)
    assert done.returncode == 0, done.stderr
    before, now = (
        json.loads((folder / "results.json").read_text()) for folder in (finished, tmp_path / "run")
    )
    assert before.keys() == now.keys() and before != now


MISTAKES = [
    ([f"--config={SCENES}", "--config.train.batch_sise=3"], "batch_size"),
    ([f"--config={SCENES}", "--config.data.views=3"], "has no --config.data.views"),
    ([f"--config={SCENES}", "--config.train.batch_size=999"], "does not fill one batch"),
    ([f"--config={SCENES}", "--config.train.batch_size=30"], "multiple of the number of devices"),
    ([f"--config={SCENES}", "--config.model.vocab_size=7"], "the data has"),
    ([f"--config={SCENES}", "--mode=eval"], "holds no finished checkpoint"),
    (["--config=configs/pcme_scenes.py:wrong"], "not :wrong"),
    (["--config=configs/no_such.py"], "configs/no_such.py"),
    ([f"--config={SCENES}", "--config.seed=many"], "seed"),
    ([f"--config={SCENES}", "--wrokdir=x"], "workdir"),
    (
        [f"--config={SCENES}", "--config.model.word_dim=8", "--workdir={finished}"],
        "trained with config.model.word_dim = 16, the config now says 8",
    ),
    ([], "--config"),
]


@pytest.fixture(scope="module")
def mistaken(finished, cache, tmp_path_factory) -> dict[tuple[str, ...], tuple[int, str]]:
    """options -> (exit status, all that was said), from forks of one process."""
    workdir = tmp_path_factory.mktemp("mistaken") / "run"
    lines = [options for options, _ in MISTAKES]
    done = subprocess.run(
        [sys.executable, "-m", "tests.forked_launches"],
        input=json.dumps(
            [
                [f"--workdir={workdir}", *(o.format(finished=finished) for o in line)]
                for line in lines
            ]
        ),
        cwd=ROOT,
        env=environment(cache, 8),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return {tuple(options): found for options, found in zip(lines, json.loads(done.stdout))}


@pytest.mark.parametrize(("options", "words"), MISTAKES)
def test_mistakes_end_in_a_sentence(options, words, mistaken):
    status, said = mistaken[tuple(options)]
    assert status != 0
    assert words in said
    assert "Traceback" not in said


def test_configs_are_literals():
    for path in sorted((ROOT / "configs").glob("*.py")):
        space: dict = {"__name__": path.stem}
        exec(compile(path.read_text(), str(path), "exec"), space)
        config = space["get_config"]()
        assert json.loads(config.to_json()), path
        assert space["get_config"]("smoke").train.batch_size <= config.train.batch_size


def test_objects_end_to_end(tmp_path, one_device):
    """Views, points and meshes: several splits, each modality embedded once, their pictures."""
    config = load_config("center3d_shapes")
    config.data.cache_dir = str(tmp_path / "cache")
    launch.run_train(config, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    letters = "imp"
    for views in (1, 2, 4):
        nine = [results[f"test/views{views}/{a}2{b}/map"] for a in letters for b in letters]
        assert results[f"test/views{views}/map"] == pytest.approx(np.mean(nine))
        assert 0 < results[f"test/views{views}/map_chance"] < results[f"test/views{views}/map"]
        assert 0 <= results[f"test/views{views}/mesh/accuracy"] <= 1
    assert "test/views2/i2i/others_map" in results
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "by_class.txt", "curves.png", "retrievals.png", "space.png",
    }  # fmt: skip
