"""One line of results/*.jsonl: numbers, and what they were measured on."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "flax", "optax", "numpy", "torch", "faiss-cpu", "scikit-learn")


def versions() -> dict[str, str]:
    """Installed versions of the packages that numbers depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Short hash of the checkout, with a + where it has uncommitted changes."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def machine() -> dict[str, Any]:
    """Device, core count, versions, commit, flags and date."""
    device = jax.devices()[0]
    kind = platform.machine() + " CPU" if device.platform == "cpu" else device.device_kind
    return {
        "device": f"{jax.device_count()} x {kind}",
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def append(name: str, record: Mapping[str, Any], folder: Path = RESULTS) -> None:
    """Adds a line to `<folder>/<name>.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({**record, "machine": machine()}, sort_keys=True) + "\n")


def read(name: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """All lines of `<folder>/<name>.jsonl`, oldest first."""
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
