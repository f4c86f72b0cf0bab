"""Runs of real configs, shrunk and one checkpoint old, for tests of what comes after training."""

import importlib.util
from pathlib import Path

import jax
import optax

from jcmr.core import parallel
from jcmr.data import augment
from jcmr.serve import runs
from jcmr.train.checkpoint import Checkpoints
from jcmr.train.state import init_state

ROOT = Path(__file__).parents[1]
CONFIGS = (
    "pcme_scenes",
    "imram_scenes",
    "gcn_scenes",
    "gpldan_scenes",
    "center3d_shapes",
    "dxr_scenes",
)
"""One of each system."""
SMALL = {"batch_size": 2, "tile": (4, 8)}
"""Options of a scorer that a few items put to use."""


def one_device():
    return parallel.make_mesh(jax.devices()[:1])


def load_config(name: str):
    """`configs/<name>.py:smoke`."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("smoke")


def smoke_config(name: str):
    """The same with few items."""
    config = load_config(name)
    config.data.num_train, config.data.num_test = 12, 6
    return config


def make_run(name: str, workdir: Path) -> Path:
    """The folder that training leaves at its first step; test_launch trains one in earnest."""
    config = smoke_config(name)
    source, task = runs.build(config)
    described = runs.describe(config, source)
    variables = runs.init_variables(task, config, source, augment.make_prepare(config.data))
    workdir.mkdir(parents=True, exist_ok=True)
    runs.write_description(workdir, described, source)
    state = init_state(variables, optax.identity(), jax.random.key(0))
    checkpoints = Checkpoints(workdir / "checkpoints", best_metric=config.eval.best_metric)
    checkpoints.save(state, {}, described)
    checkpoints.close()
    return workdir


def raw_items(split, modality):
    """The items of a split as a user would have them."""
    if modality == "text":
        return split.extras["captions"]
    items = [split.items[modality][i] for i in range(len(split.items[modality]))]
    return [item[modality] for item in items] if modality in items[0] else items
