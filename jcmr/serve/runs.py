"""A run: what its config builds, the variables it starts from, and those it left behind."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

import jcmr
from jcmr.core.types import Source, Task, Variables
from jcmr.core.weights import load_weights
from jcmr.data import augment, word_graph
from jcmr.data.glove import load_glove
from jcmr.data.records import take
from jcmr.data.text import PAD, SPECIAL, fingerprint, is_wordpiece, save_vocabulary
from jcmr.eval import ensemble
from jcmr.train import linear_start
from jcmr.train.checkpoint import Checkpoints
from jcmr.train.logging import write_json

VOCABULARY = "vocabulary.json"
Config = Any
"""An ml_collections.ConfigDict, whose fields a type checker cannot know."""


def build(config: Config) -> tuple[Source, Task]:
    """The data and the system of a config; sizes written 0 are filled in from the data.

    Raises:
      ValueError: a size in config.model contradicts the data.
    """
    source = importlib.import_module(f"jcmr.data.sources.{config.data.source}").make(config.data)
    for name, size in source.info.items():
        if name not in config.model:
            continue
        if config.model[name] not in (0, size):
            raise ValueError(
                f"config.model.{name} is {config.model[name]}, but the data has {size}. Set it to "
                f"0 to take it from the data, or point config.data at the data it was made for."
            )
        config.model[name] = size
    module = importlib.import_module(f"jcmr.models.{config.task}")
    if "graph" in config.model:
        return source, module.make(config.model, word_graph.build(source, config.model.graph))
    if "num_answers" in config.model:
        return source, module.make(config.model, source.answer_text)
    return source, module.make(config.model)


def describe(config: Config, source: Source) -> dict[str, Any]:
    """What config.json holds: the resolved config, and what it was resolved against.

    "example" has the dtype and the shape of each array of a training example, so that inputs can be
    made without the data.
    """
    example = take(source.train, np.zeros(1, np.int64))
    return {
        "config": json.loads(config.to_json()),
        "data_info": dict(source.info),
        "vocabulary": fingerprint(getattr(source, "vocabulary", {})),
        "answers": fingerprint({a: i for i, a in enumerate(getattr(source, "answers", ()))}),
        "example": {name: [str(x.dtype), list(x.shape[1:])] for name, x in example.items()},
        "version": jcmr.__version__,
    }


def write_description(workdir: Path, described: Mapping[str, Any], source: Source) -> None:
    """Writes what makes a run usable without its data: config.json, and the words if it has any."""
    vocabulary = getattr(source, "vocabulary", {})
    # Names of columns, as some data has, are no word ids.
    if vocabulary.get(SPECIAL[PAD]) == PAD or is_wordpiece(vocabulary):
        save_vocabulary(workdir / VOCABULARY, vocabulary)
    write_json(workdir / "config.json", described)


def check_same_run(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ValueError where a checkpoint cannot serve the model or the data of today."""
    if saved["vocabulary"] != now["vocabulary"]:
        raise ValueError(
            f"The checkpoint was trained with another vocabulary (fingerprint "
            f"{saved['vocabulary']}, now {now['vocabulary']}): its word vectors would belong to "
            f"the wrong words. Use the data and vocabulary of the run, or a new --workdir."
        )
    if saved.get("answers", now["answers"]) != now["answers"]:
        raise ValueError(
            "The checkpoint was trained to give other answers, or these in another order. Use the "
            "data of the run, or a new --workdir."
        )
    task = importlib.import_module(f"jcmr.models.{now['config']['task']}")
    free = getattr(task, "SCORE_OPTIONS", ())  # what training does not depend on
    for key, value in saved["config"]["model"].items():
        if key not in free and now["config"]["model"].get(key) != value:
            raise ValueError(
                f"The checkpoint was trained with config.model.{key} = {value!r}, the config now "
                f"says {now['config']['model'].get(key)!r}. Use the same value, or a new --workdir."
            )


def weights_at(folder: str, path: str) -> dict[str, Any]:
    """The weights of a folder by name; a `path` goes between collection and name."""
    flat: dict[str, Any] = traverse_util.flatten_dict(load_weights(folder))
    inside = tuple(path.split("/")) if path else ()
    return {"/".join([name[0], *inside, *name[1:]]): value for name, value in flat.items()}


def init_variables(task: Task, config: Config, source: Source, prepare: Any) -> Variables:
    """Fresh variables; those of config.train.init_from take the place of theirs.

    That is a folder of weights, pairs of a path in the model and a folder such as
    (("image/backbone", "weights/resnet18"),), or "cca" for the start of `train.linear_start`.

    Raises:
      ValueError: weights in init_from have no place in this model.
    """
    batch = prepare(take(source.train, np.arange(min(2, len(source.train)))))
    variables = jax.jit(task.init)(jax.random.key(config.seed), batch)
    if not config.train.init_from:
        return variables
    if config.train.init_from == "cca":
        size = source.info["vocab_size"], config.model.embed_dim
        start = linear_start.fit(source.train, *size, config.train.cca)
        module = importlib.import_module(f"jcmr.models.{config.task}")
        return module.with_linear_start(variables, start)
    ours: dict[str, Any] = traverse_util.flatten_dict(dict(variables), sep="/")
    given = config.train.init_from
    parts = [("", given)] if isinstance(given, str) else [tuple(part) for part in given]
    theirs: dict[str, Any] = {}
    for path, folder in parts:
        theirs |= weights_at(folder, path)
    for name, value in theirs.items():
        if name not in ours or ours[name].shape != value.shape:
            expected = ours[name].shape if name in ours else "no such weight"
            raise ValueError(
                f"{given} holds {name} {value.shape}, the model of this config "
                f"has {expected}. Use the config that the weights were converted for."
            )
    logging.info("%d of %d arrays from %s", len(theirs), len(ours), config.train.init_from)
    return traverse_util.unflatten_dict({**ours, **theirs}, sep="/")


def with_glove(variables: Variables, config: Config, source: Any) -> Variables:
    """Variables whose word embeddings start from the file config.train.glove, where it has them.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: its vectors do not fit config.model.word_dim.
    """
    path = Path(config.train.glove)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}. GloVe vectors such as glove.840B.300d.txt come from "
            f"https://nlp.stanford.edu/projects/glove; set config.train.glove='' to start from "
            f"random ones."
        )
    vectors, found = load_glove(path, source.vocabulary)
    logging.info("%d of %d word vectors from %s", found.sum(), len(found), path)
    module = importlib.import_module(f"jcmr.models.{config.task}")
    return module.with_word_vectors(variables, vectors, found)


def restore_variables(
    config: Config, workdir: Path, source: Source, task: Task, mesh: Mesh
) -> tuple[Variables, int]:
    """The variables to evaluate, best or last as the config says, and their step.

    Raises:
      FileNotFoundError: the run has no checkpoint yet.
    """
    checkpoints = Checkpoints(workdir / "checkpoints", best_metric=config.eval.best_metric)
    step = checkpoints.best() if config.eval.checkpoint == "best" else checkpoints.latest()
    if step is None:
        raise FileNotFoundError(
            f"{checkpoints.folder} holds no finished checkpoint. Train first: python -m "
            f"jcmr.launch --config=... --workdir={workdir}"
        )
    prepare = augment.make_prepare(config.data)
    batch = prepare(take(source.train, np.arange(1)))
    check_same_run(checkpoints.config(step), describe(config, source))
    like = jax.eval_shape(task.init, jax.random.key(0), batch)
    variables = checkpoints.restore_variables(step, like, mesh)
    checkpoints.close()
    return variables, step


def restore_members(
    config: Config, variables: Variables, task: Task, source: Source, mesh: Mesh
) -> tuple[Task, Any]:
    """The run and those of config.eval.ensemble as one task, and its variables.

    A member is the folder of a run on the same data, of this or another system.

    Raises:
      FileNotFoundError: a folder holds no run.
      ValueError: a run was trained with another vocabulary.
    """
    tasks, members = [task], [variables]
    for folder in map(Path, config.eval.ensemble):
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"config.eval.ensemble names {folder}, which is no --workdir of a run."
            )
        saved = json.loads((folder / "config.json").read_text())["config"]
        member = ConfigDict(saved)
        tasks.append(importlib.import_module(f"jcmr.models.{member.task}").make(member.model))
        members.append(restore_variables(member, folder, source, tasks[-1], mesh)[0])
    return ensemble.mean_of(tasks), tuple(members)
