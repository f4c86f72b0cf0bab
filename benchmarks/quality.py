"""Trains configs on several seeds and records their test metrics.

python -m benchmarks.quality pcme_scenes --seeds=0,1,2
python -m benchmarks.quality pcme_flickr8k --seeds=0,1,2 -- --config.data.dir=...

Every run is the public command in a process of its own; what follows -- is passed on to it.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import record


class Row(NamedTuple):
    """One line of a table: a label, and the config that it stands for."""

    label: str
    config: str
    overrides: tuple[str, ...] = ()
    module: str = "jcmr.launch"
    """What is run; a baseline takes the same command line."""


EXPERIMENTS: dict[str, tuple[Row, ...]] = {
    "pcme_scenes": (
        Row("likelihood (the demo)", "configs/pcme_scenes.py"),
        Row("deterministic twin", "configs/pcme_scenes.py:deterministic"),
        Row("PCME, samples", "configs/pcme_scenes.py:sampled"),
        Row("PCME++, closed form", "configs/pcme_scenes.py:closed_form"),
    ),
    "pcme_flickr8k": (
        Row("PCME", "configs/pcme_flickr8k.py"),
        Row("linear CCA", "configs/pcme_flickr8k.py", module="benchmarks.baselines.cca"),
        Row("IMRAM", "configs/imram_flickr8k_grid.py"),
    ),
    "dxr_scenes": (
        Row("DXR", "configs/dxr_scenes.py"),
        Row("hinge that hardens", "configs/dxr_scenes.py:hinge"),
        Row("images of any length", "configs/dxr_scenes.py:without_unit_images"),
        Row("sum of hardest hinges", "configs/dxr_scenes.py:without_soft_loss"),
        Row("contrast too high", "configs/dxr_scenes.py:without_pixel_scale"),
        Row("one caption, nothing masked", "configs/dxr_scenes.py:without_many_captions"),
        Row("one attention", "configs/dxr_scenes.py:without_multi_head_pool"),
        Row("negatives of a device", "configs/dxr_scenes.py:without_global_negatives"),
        Row("official", "configs/dxr_scenes.py:official"),
    ),
    "dxr_flickr8k": (
        Row("DXR", "configs/dxr_flickr8k.py"),
        Row("PCME", "configs/pcme_flickr8k.py"),
        Row("linear CCA", "configs/pcme_flickr8k.py", module="benchmarks.baselines.cca"),
    ),
    "imram_scenes": (
        Row("full, K = 3", "configs/imram_scenes.py"),
        Row("full, K = 1", "configs/imram_scenes.py", ("--config.model.steps=1",)),
        Row("text, K = 3", "configs/imram_scenes.py", ("--config.model.variant=text",)),
        Row("image, K = 3", "configs/imram_scenes.py", ("--config.model.variant=image",)),
    ),
    "center3d_shapes": (
        Row("CE", "configs/center3d_shapes.py:ce"),
        Row("CE + center", "configs/center3d_shapes.py:ce_center"),
        Row("CE + center + MSE", "configs/center3d_shapes.py"),
    ),
    "center3d_modelnet10_voxels": (
        Row("CE + center + MSE", "configs/center3d_modelnet10_voxels.py"),
    ),
    "xtra_scenes": (
        Row("one object", "configs/xtra_scenes.py"),
        Row("two or three objects", "configs/xtra_scenes.py:multi"),
    ),
    "xtra_easyvqa": (Row("reader", "configs/xtra_easyvqa.py"),),
    "gpldan_scenes": (
        Row("GPLDAN", "configs/gpldan_scenes.py"),
        Row("without interaction", "configs/gpldan_scenes.py:no_interaction"),
        Row("without graph pattern loss", "configs/gpldan_scenes.py:no_pattern"),
        Row("without modality classifier", "configs/gpldan_scenes.py:no_classifier"),
        Row("PVSE", "configs/pvse_scenes.py"),
    ),
}


def run(experiment: str, row: Row, seed: int, root: Path, extra: list[str]) -> None:
    """Trains and evaluates one row on one seed in its own process, and records the result."""
    workdir = root / experiment / re.sub(r"\W+", "_", row.label) / str(seed)
    command = [
        sys.executable, "-m", row.module, f"--config={row.config}", f"--workdir={workdir}",
        f"--config.seed={seed}", *row.overrides, *extra,
    ]  # fmt: skip
    goes_on, began = workdir.exists(), time.monotonic()
    subprocess.run(command, check=True)
    result = {
        "experiment": experiment,
        "row": row.label,
        "module": row.module,
        "config": " ".join([row.config, *row.overrides]),
        "seed": seed,
        # Unknown where an earlier process began the run.
        "seconds": None if goes_on else round(time.monotonic() - began, 1),
        "metrics": json.loads((workdir / "results.json").read_text()),
    }
    record.append("quality", result)


def main() -> None:
    """Reads the command line and runs every row on every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=sorted(EXPERIMENTS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default="", help="labels between semicolons; all when empty")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    own, extra = parser.parse_known_args()
    extra = [option for option in extra if option != "--"]
    wanted = own.rows.split(";") if own.rows else []
    for seed in map(int, own.seeds.split(",")):
        for row in EXPERIMENTS[own.experiment]:
            if not wanted or row.label in wanted:
                run(own.experiment, row, seed, own.runs, extra)


if __name__ == "__main__":
    main()
