"""Measures a suite: python -m benchmarks --suite=cpu [--out=....jsonl] [--only=pcme_loss,ranks].

Needs jax, flax, optax and numpy; what a baseline or a single benchmark needs beyond that is used
where it is installed and named where it is not. Each benchmark is measured in a process of its own.
`--dry` runs all at a small size, checks that both sides agree, and records rows that say that they
are not measured.
"""

import argparse
import importlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks import record, timing

OPERATIONS = (
    "pcme_loss",
    "pcme_eval",
    "scan",
    "imram",
    "edgeconv",
    "chebyshev",
    "graph_pattern",
    "index",
    "ranks",
    "bigru",
    "contrastive",
    "resnet",
    "train_step",
    "input",
    "startup",
)
"""Files of this folder with a function `cases(scale)`."""


def main(only: str = "") -> None:
    """Reads the command line and measures, by default `only` or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=["cpu", "gpu", "tpu"], default="cpu")
    parser.add_argument("--out", type=Path, help="results/<suite>.jsonl if not given")
    parser.add_argument("--only", default=only, help="names between commas; all when empty")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=timing.CLOCKS, default="wall", help="see timing.CLOCKS")
    parser.add_argument("--dry", action="store_true", help="small sizes, no times")
    own = parser.parse_args()
    own.out = own.out or record.RESULTS / f"{own.suite}.jsonl"
    names = own.only.split(",") if own.only else OPERATIONS
    began = time.monotonic()
    if own.dry or len(names) == 1:
        run(names, own)
    else:
        # Times depend on how the memory lies that a process has used before.
        for name in names:
            alone = [sys.executable, "-m", "benchmarks", *sys.argv[1:], f"--only={name}"]
            if code := subprocess.run(alone, check=False).returncode:
                sys.exit(code)
    print(f"{time.monotonic() - began:.0f} s; {own.out}")


def run(names: Sequence[str], own: argparse.Namespace) -> None:
    """Measures benchmarks in this process and appends a record of each case."""
    platform = jax.default_backend()
    if not own.dry and platform != own.suite:
        sys.exit(f"The suite {own.suite} is measured on that device, not on {platform}: --dry?")
    scale: timing.Scale = "dry" if own.dry else "cpu" if own.suite == "cpu" else "gpu"
    # Nobody waits for the speed of what is not timed.
    jax.config.update("jax_disable_most_optimizations", own.dry)
    for name in names:
        if importlib.util.find_spec(f"benchmarks.{name}") is None:
            print(f"{name}: there is no such benchmark", flush=True)
            continue
        try:
            cases = importlib.import_module(f"benchmarks.{name}").cases
        except ModuleNotFoundError as error:
            print(f"{name} is skipped: there is no {error.name}", flush=True)
            continue
        for case in cases(scale):
            found = timing.measure(case, own.rounds, not own.dry, own.clock)
            record.append(own.out.stem, {"benchmark": name, **found}, own.out.parent)
            print(timing.line(found), flush=True)
