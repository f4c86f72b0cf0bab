"""Measures a suite: python -m benchmarks --suite=cpu [--out=....jsonl] [--only=pcme_loss,ranks].

Needs jax, flax, optax and numpy; what a baseline or a single benchmark needs beyond that is used
where it is installed and named where it is not. `--dry` runs every benchmark at a small size,
checks that both sides agree, and records rows that say that they are not measured.
"""

import argparse
import importlib
import importlib.util
import time
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
    platform = jax.default_backend()
    if not own.dry and platform != own.suite:
        parser.error(f"the suite {own.suite} is measured on that device, not on {platform}: --dry?")
    out = own.out or record.RESULTS / f"{own.suite}.jsonl"
    scale: timing.Scale = "dry" if own.dry else "cpu" if own.suite == "cpu" else "gpu"
    # Nobody waits for the speed of what is not timed.
    jax.config.update("jax_disable_most_optimizations", own.dry)
    began = time.monotonic()
    for name in own.only.split(",") if own.only else OPERATIONS:
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
            record.append(out.stem, {"benchmark": name, **found}, out.parent)
            print(timing.line(found), flush=True)
    print(f"{time.monotonic() - began:.0f} s; {out}")
