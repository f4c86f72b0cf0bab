"""Cold start: a new process up to its first training step, with and without compiled programs kept.

python -m benchmarks.startup <folder of the cache>    is what such a process runs.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import jax

from benchmarks.timing import Case, Scale

EMPTY = "empty cache"
COMPILED = "/jax/core/compile/backend_compile_duration"


def first_step(folder: str) -> dict[str, float]:
    """Compiles and runs the first step of the PCME demo; (seconds, programs compiled)."""
    from benchmarks import train_step

    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **kwargs: (
            compiled.append(duration_secs) if event == COMPILED else None
        )
    )
    began = time.perf_counter()
    case = train_step.make_case("PCME", *train_step.SYSTEMS["PCME"], 16, 48)
    jax.block_until_ready(case.ours())
    return {"seconds": time.perf_counter() - began, "programs": len(compiled)}


def in_new_process(folder: str) -> dict[str, float]:
    """`first_step` there."""
    command = [sys.executable, "-m", "benchmarks.startup", folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ))
    return json.loads(done.stdout.splitlines()[-1])


def cases(scale: Scale) -> Iterator[Case]:
    """The whole life of the process; nothing to compare but time."""
    if scale == "dry":
        return
    kept = tempfile.mkdtemp(prefix="jcmr-startup-")
    found = in_new_process(kept)

    def run(folder: str) -> float:
        in_new_process(folder)
        return 0.0

    yield Case(
        "new process to first training step, PCME",
        "B=16, programs kept from an earlier start",
        lambda: run(kept),
        {EMPTY: lambda: run(tempfile.mkdtemp(prefix="jcmr-startup-"))},
        clock="wall",
        notes={"programs": found["programs"], "of it after imports, s": found["seconds"]},
    )


if __name__ == "__main__":
    print(json.dumps(first_step(sys.argv[1])))
