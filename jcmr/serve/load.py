"""A run as something to use: loaded from what it left behind, without its data.

A run of today brings all that is needed: its checkpoint, config.json and vocabulary.json. For one
that was made before those were written, the data is opened once more.
"""

import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

import jcmr
from jcmr.core import parallel
from jcmr.core.types import Task, Variables
from jcmr.core.weights import FILE, load_weights
from jcmr.data.options import ImageOptions, pick
from jcmr.data.text import fingerprint, load_vocabulary
from jcmr.serve.runs import VOCABULARY, Config, build, describe
from jcmr.train.checkpoint import Checkpoints

Example = Mapping[str, jax.ShapeDtypeStruct]
"""What one stored example looks like: name of an array -> shape and dtype."""

OFFICIAL_REGIONS = jax.ShapeDtypeStruct((36, 2048), np.float32)
"""Bottom-up attention features, which the official region systems were trained on."""


class Run(NamedTuple):
    """What it takes to encode and to score."""

    config: Config
    task: Task
    variables: Variables
    """On every device."""
    example: Example
    vocabulary: Mapping[str, int]
    """Word -> id; empty where texts are no words."""
    step: int
    """Of the checkpoint; 0 for converted weights."""
    fingerprint: str
    """16 hex digits, of all that an embedding depends on."""


def fingerprint_of(config: Config, variables: Variables, vocabulary: Mapping[str, int]) -> str:
    """A short name of what embeddings depend on: the weights, the system, how items are read."""
    free = getattr(importlib.import_module(f"jcmr.models.{config.task}"), "SCORE_OPTIONS", ())
    model = {n: x for n, x in json.loads(config.model.to_json()).items() if n not in free}
    images = pick(ImageOptions, config.data)
    seen = config.task, model, images.mean, images.std, images.crop_size, fingerprint(vocabulary)
    digest = hashlib.sha256(json.dumps(seen, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).data)
    return digest.hexdigest()[:16]


def task_of(config: Config) -> Task:
    """The system of a resolved config; a graph of words is part of the variables."""
    module = importlib.import_module(f"jcmr.models.{config.task}")
    return module.make(config.model, *([None] if "graph" in config.model else []))


def pairs_of(run: Run) -> list[tuple[str, str]]:
    """(query, gallery) modalities that the system compares."""
    module = importlib.import_module(f"jcmr.models.{run.config.task}")
    within = getattr(module, "COMPARES_WITHIN", False)
    both = [(a, b) for a in run.task.encode for b in run.task.encode]
    return [(a, b) for a, b in both if within or a != b]


def check_version(version: str, where: Path) -> None:
    """Raises ValueError where a run was written by a version that this one cannot read."""
    if version.split(".")[:2] != jcmr.__version__.split(".")[:2]:
        raise ValueError(
            f"{where} was written by jcmr {version}, this is {jcmr.__version__}: use that version, "
            f"or train again."
        )


def read_vocabulary(folder: Path, expected: str) -> dict[str, int]:
    """The words of a run, whose fingerprint must be `expected`.

    Raises:
      ValueError: the file is damaged or not that of the run.
    """
    path = folder / VOCABULARY
    try:
        vocabulary: dict[str, int] = json.loads(path.read_text("utf-8"))["word2idx"]
        found = fingerprint(vocabulary)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again from the run.") from None
    if found != expected:
        raise ValueError(
            f"{path} is not the vocabulary that the run was trained with ({found}, expected "
            f"{expected}): copy it again from the run."
        )
    return vocabulary


def load_trained(workdir: Path, step: int | None, mesh: Mesh) -> Run:
    """The run of `workdir`, at `step` or the one its config evaluates."""
    saved = json.loads((workdir / "config.json").read_text("utf-8"))
    config: Config = ConfigDict(saved["config"])
    checkpoints = Checkpoints(workdir / "checkpoints", best_metric=config.eval.best_metric)
    try:
        if step is None:
            best = config.eval.checkpoint == "best"
            step = checkpoints.best() if best else checkpoints.latest()
        if step is None:
            raise FileNotFoundError(
                f"{checkpoints.folder} holds no finished checkpoint. Train first: python -m "
                f"jcmr.launch --config=... --workdir={workdir}"
            )
        saved = checkpoints.config(step)
        check_version(saved.get("version", jcmr.__version__), workdir)
        config: Config = ConfigDict(saved["config"])
        variables = checkpoints.restore_variables(step, checkpoints.shapes(step), mesh)
    finally:
        checkpoints.close()
    source = None
    if "example" not in saved:
        source, _ = build(config)
        saved = describe(config, source)
    example = {
        name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
        for name, (dtype, shape) in saved["example"].items()
    }
    vocabulary: Mapping[str, int] = {}
    if (workdir / VOCABULARY).is_file():
        vocabulary = read_vocabulary(workdir, saved["vocabulary"])
    elif "text" in example and np.issubdtype(example["text"].dtype, np.integer):
        vocabulary = getattr(source or build(config)[0], "vocabulary")  # noqa: B009
    name = fingerprint_of(config, variables, vocabulary)
    return Run(config, task_of(config), variables, example, vocabulary, step, name)


def load_converted(folder: Path, config: Config, mesh: Mesh) -> Run:
    """Official weights that `python -m jcmr.convert` wrote, read as `config` reads its data.

    Raises:
      ValueError: no config, or one of another system.
    """
    saved = json.loads((folder / "config.json").read_text("utf-8"))
    if config is None or config.task != saved["task"]:
        raise ValueError(
            f"{folder} holds converted weights of {saved['task']}, which do not say how items are "
            f"read: give the config of an experiment with that system, for instance that of "
            f"configs/{saved['task']}_coco.py."
        )
    config = config.copy_and_resolve_references()
    config.model = ConfigDict(saved["model"])
    variables = parallel.replicate(load_weights(folder), mesh)
    vocabulary: Mapping[str, int] = {}
    if (folder / VOCABULARY).is_file():
        vocabulary = load_vocabulary(folder / VOCABULARY)
    size = config.data.get("image_size", 256)
    image = jax.ShapeDtypeStruct((size, size, 3), np.uint8)
    name = "regions" if config.data.source == "precomp" else "image"
    example = {
        name: {"image": image, "regions": OFFICIAL_REGIONS}[name],
        "text": jax.ShapeDtypeStruct((config.data.get("max_words", 32),), np.int32),
    }
    name = fingerprint_of(config, variables, vocabulary)
    return Run(config, task_of(config), variables, example, vocabulary, 0, name)


def load_run(path: str | Path, mesh: Mesh, config: Config = None) -> Run:
    """The run at `path`: a --workdir, one of its checkpoints/<step>, or converted weights.

    Args:
      path: the folder.
      mesh: devices that hold the variables.
      config: of an experiment; needed for converted weights alone.

    Raises:
      FileNotFoundError: there is no such folder, or it holds no finished checkpoint.
      ValueError: it was written by another version, or is damaged.
    """
    path = Path(path)
    if (path / FILE).is_file() and (path / "config.json").is_file():
        return load_converted(path, config, mesh)
    workdir, step = path, None
    if path.parent.name == "checkpoints" and path.name.isdecimal():
        workdir, step = path.parent.parent, int(path.name)
        if not path.is_dir():
            raise FileNotFoundError(f"There is no checkpoint {path}.")
    if not (workdir / "config.json").is_file():
        raise FileNotFoundError(
            f"{path} is no --workdir of a run (it has no config.json), no checkpoint of one, and "
            f"no folder of `python -m jcmr.convert`."
        )
    return load_trained(workdir, step, mesh)
