"""The step on 1, 4 and 8 devices under both mappers; the loop's promises; checkpoints."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from jcmr.core import parallel
from jcmr.train import loop
from jcmr.train.checkpoint import Checkpoints
from jcmr.train.logging import RunLog, clock, read_records
from jcmr.train.state import init_state, make_train_step
from tests.toy import ToyBatches, make_batch, make_toy

NO_AUGMENT = lambda batch, key, axis: batch


def sgd(_params):
    return optax.sgd(0.1)


def adam(_params):
    return optax.adam(0.05)


def twenty_steps(num_devices: int, how: str):
    mesh = parallel.make_mesh(jax.devices()[:num_devices])
    task = make_toy()
    variables = task.init(jax.random.key(0), make_batch(0))
    state = parallel.replicate(init_state(variables, sgd(None), jax.random.key(1)), mesh)
    step = parallel.data_parallel(make_train_step(task, sgd(None), NO_AUGMENT), mesh, how)
    first = None
    for i in range(20):
        state, logs = step(state, parallel.put_batch(make_batch(i), mesh, how))
        first = first or jax.device_get(logs)
    return jax.device_get((state.params, state.mutables)), first


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
@pytest.mark.parametrize("num_devices", [1, 4, 8])
def test_same_parameters_whatever_the_devices_and_the_mapper(num_devices, how):
    want, want_logs = twenty_steps(1, "pmap")
    got, got_logs = twenty_steps(num_devices, how)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)
    for name in want_logs:
        np.testing.assert_allclose(got_logs[name], want_logs[name], rtol=1e-5)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="batch_size as a multiple"):
        parallel.put_batch(make_batch(0, size=10), parallel.make_mesh())


def test_unknown_mapper_is_refused():
    with pytest.raises(ValueError, match="'pmap' or 'shard_map'"):
        parallel.data_parallel(lambda s, b, a: s, parallel.make_mesh(), "jit")


def run(workdir, num_devices=4, end=24, task=None, batches=None, how="pmap", optimizer=adam):
    """A run of two stages in `workdir`, started or resumed."""
    mesh = parallel.make_mesh(jax.devices()[:num_devices])
    task = task or make_toy()
    stages = [
        loop.Stage("frozen", 0, 10, optimizer),
        loop.Stage("finetune", 10, end, sgd),
    ]
    checkpoints = Checkpoints(workdir / "checkpoints", keep=2, best_metric="score")
    variables = task.init(jax.random.key(0), make_batch(0))
    state, position = loop.start_or_resume(variables, stages, 1, checkpoints, mesh)
    batches = batches or ToyBatches(mesh, how)
    if position:
        batches.set_state(position)
    log = RunLog(workdir, resumed_at=int(state.step))
    seen = []

    def evaluate(variables):
        seen.append(jax.device_get(variables))
        return {"score": -float(len(seen))}

    try:
        state = loop.train(
            task, state, batches, stages, NO_AUGMENT, evaluate, checkpoints,
            {"name": "toy"}, log, mesh, loop.Intervals(3, 8, 5), 16, how,
        )  # fmt: skip
    finally:
        log.close()
        checkpoints.close()
    return jax.device_get(state.params)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_interrupted_run_goes_on_to_bitwise_the_same_parameters(tmp_path):
    (tmp_path / "whole").mkdir(), (tmp_path / "cut").mkdir()
    whole = run(tmp_path / "whole")
    mesh = parallel.make_mesh(jax.devices()[:4])

    def stop(i):
        if i == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(loop.Interrupted, match="step 13 of 24; the state is saved"):
        run(tmp_path / "cut", batches=ToyBatches(mesh, on_batch=stop))
    equal(run(tmp_path / "cut"), whole)
    records = [r["step"] for r in read_records(tmp_path / "cut" / "metrics.jsonl")]
    assert records == sorted(records)


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    want = run(tmp_path)

    def unexpected(_):
        raise AssertionError("a finished run asked for a batch")

    mesh = parallel.make_mesh(jax.devices()[:4])
    equal(run(tmp_path, batches=ToyBatches(mesh, on_batch=unexpected)), want)


def test_restored_on_fewer_devices(tmp_path):
    (tmp_path / "whole").mkdir(), (tmp_path / "cut").mkdir()
    run(tmp_path / "cut", num_devices=8, end=16)
    got = run(tmp_path / "cut", num_devices=2)
    want = run(tmp_path / "whole", num_devices=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_divergence_names_step_terms_and_last_good_checkpoint(tmp_path):
    mesh = parallel.make_mesh(jax.devices()[:4])
    with pytest.raises(loop.Diverged, match=r"at step 14.*nce = nan.*step 10 in .*checkpoints"):
        run(tmp_path, task=make_toy(explode_at=50.0), batches=ToyBatches(mesh, spike_at=13))


def test_best_and_last_checkpoints_are_kept(tmp_path):
    run(tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints", best_metric="score")
    assert (checkpoints.best(), checkpoints.latest()) == (8, 24)
    assert sorted(int(p.name) for p in checkpoints.folder.iterdir()) == [8, 20, 24]
    checkpoints.close()


def test_damaged_checkpoint_is_named_with_a_way_out(tmp_path):
    run(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "24" / "state")
    with pytest.raises(ValueError, match=r"checkpoints/24 cannot be restored.*from step 20"):
        run(tmp_path, end=30)


def test_half_written_checkpoint_is_not_seen(tmp_path):
    whole = run(tmp_path, end=20)
    half = tmp_path / "checkpoints" / "30.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "20", half)
    equal(run(tmp_path, end=20), whole)


def test_checkpoint_of_another_model_is_refused(tmp_path):
    run(tmp_path, end=16)
    with pytest.raises(ValueError, match="another model"):
        run_other(tmp_path)


def run_other(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints")
    mesh = parallel.make_mesh(jax.devices()[:1])
    state = init_state({"params": {"z": np.zeros(3, np.float32)}}, sgd(None), jax.random.key(0))
    try:
        checkpoints.restore(16, state, mesh)
    finally:
        checkpoints.close()


def test_full_disk_is_a_sentence(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    with pytest.raises(OSError, match=r"step 5 could not be written.*disk is full.*no earlier"):
        run(tmp_path)


def test_one_compilation_per_stage(tmp_path):
    mesh = parallel.make_mesh(jax.devices()[:2])
    task = make_toy()
    traced = []

    def augment(batch, key, axis):
        traced.append(1)
        return batch

    step = parallel.data_parallel(make_train_step(task, sgd(None), augment), mesh)
    variables = task.init(jax.random.key(0), make_batch(0))
    state = parallel.replicate(init_state(variables, sgd(None), jax.random.key(1)), mesh)
    for i in range(4):
        state, _ = step(state, parallel.put_batch(make_batch(i), mesh))
    assert len(traced) == 1


def test_lost_work_leaves_the_log(tmp_path):
    lines = [json.dumps({"step": s, "split": "train", "loss": 1.0}) for s in (3, 6, 9)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 12, "spl')
    log = RunLog(tmp_path, resumed_at=6)
    log.write(9, "train", {"loss": 2.0})
    log.close()
    assert [r["loss"] for r in read_records(tmp_path / "metrics.jsonl")] == [1.0, 1.0, 2.0]


def test_a_log_does_not_wait_for_pytorch(tmp_path):
    """tensorboardX would import it; another part of a run still may."""
    code = (
        "import sys; from pathlib import Path; from jcmr.train.logging import RunLog\n"
        "log = RunLog(Path(sys.argv[1])); log.write(1, 'train', {'loss': 2.0}); log.close()\n"
        "print('torch' in sys.modules); import torch; print(torch.tensor(3).item())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "3"]
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(("seconds", "text"), [(42, "42s"), (200, "3m20s"), (7500, "2h05m")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_variables_alone_can_be_restored(tmp_path):
    params = run(tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    mesh = parallel.make_mesh(jax.devices()[:1])
    like = jax.eval_shape(make_toy().init, jax.random.key(0), make_batch(0))
    variables = checkpoints.restore_variables(24, like, mesh)
    config = checkpoints.config(24)
    checkpoints.close()
    equal(jax.device_get(variables["params"]), params)
    assert config == {"name": "toy"}
