"""Two processes of one run on this machine, and the scripts that start runs on clusters."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from jcmr.core import parallel
from jcmr.train.logging import read_records
from tests.toy import ToyBatches
from tests.two_processes import STEPS, train

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
MAPPERS = ("pmap", "shard_map")


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory) -> Path:
    """The toy trained by two processes of two devices, under each mapper."""
    folder = tmp_path_factory.mktemp("two")
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
    }
    command = [sys.executable, "-m", "tests.two_processes", str(folder), *MAPPERS]
    running = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**env, "JAX_PROCESS_ID": str(place)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for place in (0, 1)
    ]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    return folder


@pytest.mark.parametrize("how", MAPPERS)
def test_two_processes_train_as_one_does_and_one_goes_on(trained_by_two, tmp_path, how):
    """Four devices of two processes; restored by one process of eight, without a step to make."""
    got = train(trained_by_two / how, how, ToyBatches)
    want = train(tmp_path, how, ToyBatches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)
    records = read_records(trained_by_two / how / "metrics.jsonl")
    assert [r["step"] for r in records if r["split"] == "train"] == [2, STEPS]  # written once
    assert all(r["mfu"] >= 0 for r in records if r["split"] == "train")


def test_half_told_processes_are_a_sentence(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match="JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID is missing"):
        parallel.join_processes()


def test_alone_nothing_is_joined(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_: pytest.fail("joined"))
    for name in (*parallel.PROCESS_VARIABLES, *parallel.SCHEDULERS, "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    parallel.join_processes()


# --- launch/

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean_and_start_nothing_but_launch(script):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    subprocess.run(["bash", "-n", script], check=True)
    if shellcheck.exists():
        subprocess.run([shellcheck, script], check=True)
    lines = [line for line in script.read_text().splitlines() if not line.startswith("#")]
    started = [line.split(" -m ")[1] for line in lines if " -m " in line]
    assert len(started) == 1 and started[0].startswith('jcmr.launch "$@"')


def fake(folder: Path, name: str, body: str) -> None:
    """A program `name` in `folder` that records its arguments in calls.txt."""
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{folder}/calls.txt"\n{body}\n')
    path.chmod(0o755)


def start(folder: Path, script: str, *options: str, **env: str) -> tuple[int, list[str]]:
    """(exit status, calls of the fake programs) of a script, run dry."""
    path = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(
        [LAUNCH / script, *options],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "RETRY_SECONDS": "0", **env},
        timeout=60,
    )
    return done.returncode, (folder / "calls.txt").read_text().splitlines()


STATUS_OF_CALLS = """
count=$(wc -l < "$(dirname "$0")/calls.txt")
exit $(( count < 3 ? 75 : {last} ))
"""


@pytest.mark.parametrize("last", [0, 1])
def test_tpu_vm_goes_on_after_interruptions_until_the_run_ends(tmp_path, last):
    fake(tmp_path, "python", STATUS_OF_CALLS.format(last=last))
    status, calls = start(tmp_path, "tpu_vm.sh", "--config=x.py", "--workdir=a b")
    assert status == last
    assert calls == ["python -m jcmr.launch --config=x.py --workdir=a b"] * 3


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (75, True), (1, False)])
def test_slurm_requeues_what_was_interrupted(tmp_path, code, requeued):
    fake(tmp_path, "srun", f"exit {code}")
    fake(tmp_path, "scontrol", "exit 0")
    status, calls = start(tmp_path, "slurm.sbatch", "--config=x.py", SLURM_JOB_ID="12")
    assert calls[0] == "srun python -m jcmr.launch --config=x.py"
    assert calls[1:] == ["scontrol requeue 12"] * requeued
    assert status == (0 if requeued else code)
    head = (LAUNCH / "slurm.sbatch").read_text()
    assert "#SBATCH --requeue" in head and "#SBATCH --signal=B:TERM@" in head


@pytest.mark.parametrize("codes", [(0, 0), (75, 75), (1, 0)])
def test_local_processes_get_their_places(tmp_path, codes):
    body = f'codes=({codes[0]} {codes[1]})\necho "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at '
    body += (
        '$JAX_COORDINATOR_ADDRESS" >> "$(dirname "$0")/calls.txt"\nexit "${codes[JAX_PROCESS_ID]}"'
    )
    fake(tmp_path, "python", body)
    status, calls = start(tmp_path, "local_2proc.sh", "--config=x.py", PORT="1234")
    assert status == max(codes)
    assert calls[0] == "python -m jcmr.launch --config=x.py"
    places = {"0 of 2 at 127.0.0.1:1234"}
    if codes[0] != 1:  # else the second is told to end, whether it has got so far or not
        places.add("1 of 2 at 127.0.0.1:1234")
    assert places <= set(calls)


def test_jobset_has_what_a_run_needs():
    spec = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert (spec["apiVersion"], spec["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = spec["spec"]["replicatedJobs"]
    job_spec = job["template"]["spec"]
    pod = job_spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "jcmr.launch"]
    env = {entry["name"]: entry for entry in container["env"]}
    assert set(env) == {*parallel.PROCESS_VARIABLES, "JCMR_INTERRUPTED_STATUS"}
    assert env["JCMR_INTERRUPTED_STATUS"]["value"] == "75"
    number = int(env["JAX_NUM_PROCESSES"]["value"])
    assert number == job_spec["completions"] == job_spec["parallelism"]
    address = f"{spec['metadata']['name']}-{job['name']}-0-0.{spec['metadata']['name']}:8476"
    assert env["JAX_COORDINATOR_ADDRESS"]["value"] == address
    assert container["ports"] == [{"containerPort": 8476}]
    codes = [
        rule["onExitCodes"]
        for rule in job_spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    ]
    assert codes == [{"containerName": container["name"], "operator": "In", "values": [75]}]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 60
    assert spec["spec"]["failurePolicy"]["rules"][0]["action"].startswith("RestartJobSet")


def test_flags_can_be_sourced():
    done = subprocess.run(
        ["bash", "-euc", f"source {LAUNCH}/xla_flags.env; echo \"[$XLA_FLAGS]\""],
        capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.stdout == "[]\n"
