"""`python -m jcmr.launch --config=configs/<name>.py [--workdir=...] [--mode=train|eval]`."""

import importlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from jcmr.core import parallel
from jcmr.core.types import RetrievalSplit, Source, Task, Variables, split_list
from jcmr.core.weights import load_weights
from jcmr.data import augment, loader, resident, word_graph
from jcmr.data.glove import load_glove
from jcmr.data.options import LoaderOptions, pick
from jcmr.data.records import take
from jcmr.data.text import fingerprint, make_token_dropping
from jcmr.eval import (
    attention_report,
    ensemble,
    graph_report,
    report,
    report_objects,
    retrieval,
    table,
)
from jcmr.eval.occlusion import measure_occlusion
from jcmr.train import linear_start, loop, optim
from jcmr.train.checkpoint import Checkpoints
from jcmr.train.logging import RunLog, clock, read_records, write_json

Config = Any
"""An ml_collections.ConfigDict, whose fields a type checker cannot know."""

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, e.g. configs/x.py:smoke.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; runs/<name of config> if unset.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.")
TRY_AGAIN = 75
"""Exit status of a run that was interrupted and can go on (EX_TEMPFAIL), to be started again."""


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
    return source, module.make(config.model)


def plan(config: Config, steps_per_epoch: int) -> list[loop.Stage]:
    """The stages of a run, in steps."""
    stages, start = [], 0
    for fields in config.train.stages:
        fields = dict(fields)
        name, num_steps = fields.pop("name"), fields.pop("num_epochs") * steps_per_epoch
        settings = optim.stage_config(fields)

        def make(params: Any, settings=settings, num_steps=num_steps):
            return optim.make_optimizer(settings, num_steps, params, steps_per_epoch)

        stages.append(loop.Stage(name, start, start + num_steps, make, settings.frozen))
        start += num_steps
    return stages


def make_reader(config: Config, source: Source) -> loader.Loader:
    """The training batches of this host, in memory."""
    options = pick(LoaderOptions, config.data)
    drop = make_token_dropping(options.token_drop_rate) if options.token_drop_rate else None
    if options.resident and drop:
        raise ValueError(
            "config.data.token_drop_rate drops words on the host, where a resident data set is not "
            "seen again; set it to 0, or config.data.resident to False."
        )
    return loader.make_loader(
        resident.Rows(len(source.train)) if options.resident else source.train,
        config.train.batch_size,
        config.seed,
        workers=options.workers,
        transform=drop,
        order=getattr(source, "order", None),
    )


def describe(config: Config, source: Source) -> dict[str, Any]:
    """What config.json holds: the resolved config, and what it was resolved against."""
    return {
        "config": json.loads(config.to_json()),
        "data_info": dict(source.info),
        "vocabulary": fingerprint(getattr(source, "vocabulary", {})),
    }


def check_same_run(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ValueError where a checkpoint cannot serve the model or the data of today."""
    if saved["vocabulary"] != now["vocabulary"]:
        raise ValueError(
            f"The checkpoint was trained with another vocabulary (fingerprint "
            f"{saved['vocabulary']}, now {now['vocabulary']}): its word vectors would belong to "
            f"the wrong words. Use the data and vocabulary of the run, or a new --workdir."
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


def make_evaluate(task: Task, splits: Sequence[RetrievalSplit], config: Config, mesh: Mesh):
    """`evaluate(variables)` on splits: (all metrics, results of each split)."""
    prepare = augment.make_prepare(config.data)
    evaluators = [
        retrieval.make_evaluator(task, split, config.eval, prepare, mesh) for split in splits
    ]

    def evaluate(variables: Variables) -> tuple[dict[str, float], list[retrieval.Results]]:
        embedded: retrieval.Embedded = {}
        results = [evaluator(variables, embedded) for evaluator in evaluators]
        return retrieval.merge_metrics(splits, results), results

    return evaluate


def run_train(config: Config, workdir: Path) -> None:
    """Trains, or goes on where the last run of `workdir` stopped; then evaluates on the test split.

    Raises:
      ValueError: the config does not fit the data or the checkpoint.
    """
    source, task = build(config)  # before devices, which take long to be found on some machines
    mesh = parallel.make_mesh()
    reader = make_reader(config, source)
    stages = plan(config, reader.steps_per_epoch)
    described = describe(config, source)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(
        workdir / "checkpoints", config.train.keep_checkpoints, config.eval.best_metric
    )
    prepare, augmented = augment.make_prepare(config.data), augment.make_augment(config.data)
    if (last := checkpoints.latest()) is not None:
        check_same_run(checkpoints.config(last), described)
    variables = init_variables(task, config, source, prepare)
    if last is None and config.train.get("glove"):
        variables = with_glove(variables, config, source)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    logging.info("%s: %.2f M parameters, %d device(s)", config.task, count / 1e6, mesh.size)
    state, position = loop.start_or_resume(variables, stages, config.seed, checkpoints, mesh)
    if position:
        logging.info("resuming %s at step %d", workdir, int(state.step))
    files = parallel.own_folder(workdir)
    write_json(files / "config.json", described)
    if pick(LoaderOptions, config.data).resident:
        put = resident.make_put(source.train, mesh, config.parallel)
    else:
        put = partial(parallel.put_batch, mesh=mesh, how=config.parallel)
    batches = loader.prefetch(reader, put)
    if position:
        batches.set_state(position)
    intervals = loop.Intervals(
        config.train.log_steps,
        config.train.eval_epochs * reader.steps_per_epoch,
        config.train.checkpoint_steps,
    )
    evaluate = make_evaluate(task, split_list(source.retrieval("dev")), config, mesh)
    log = RunLog(files, resumed_at=int(state.step))
    try:
        loop.train(
            task,
            state,
            batches,
            stages,
            augmented,
            lambda variables: evaluate(variables)[0],
            checkpoints,
            described,
            log,
            mesh,
            intervals,
            config.train.batch_size,
            config.parallel,
            config.train.get("accumulate", 1),
        )
    finally:
        batches.close()
        log.close()
        checkpoints.close()
    run_eval(config, workdir, source, task)


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


def draw_attention(
    config: Config,
    folder: Path,
    source: Source,
    task: Task,
    variables: Variables,
    split: RetrievalSplit,
    results: retrieval.Results,
) -> None:
    """Pictures of attention, for systems that have one and data with pixels."""
    module = importlib.import_module(f"jcmr.models.{config.task}")
    vocabulary = getattr(source, "vocabulary", None)
    if vocabulary and hasattr(module, "make_attention"):
        attention, prepare = module.make_attention(config.model), augment.make_prepare(config.data)
        attention_report.draw(
            folder, task, attention, variables, split, results, prepare, vocabulary
        )


def run_eval(config: Config, workdir: Path, source: Source, task: Task) -> None:
    """Evaluates a run's checkpoint on the test split: results.json, a table, pictures.

    With config.eval.ensemble, the mean of its scores and those of other runs: ensemble.json.
    """
    mesh = parallel.make_mesh()
    files = parallel.own_folder(workdir)
    variables, step = restore_variables(config, workdir, source, task, mesh)
    splits = split_list(source.retrieval("test"))
    first, occlusion = splits[0], None
    if config.eval.get("ensemble"):
        together, members = restore_members(config, variables, task, source, mesh)
        found, _ = make_evaluate(together, splits, config, mesh)(members)
        path = files / "ensemble.json"
        names = [str(workdir), *config.eval.ensemble]
        write_json(path, {"members": names, **found})
        print(f"\nMean scores of {', '.join(names)} on {first.name}, {path}\n")
        print(table.metrics_table(found))
        return
    metrics, results = make_evaluate(task, splits, config, mesh)(variables)
    if "occluded" in first.extras and "image" in results[0].uncertainty:
        prepare, size = augment.make_prepare(config.data), config.eval.batch_size
        occlusion = measure_occlusion(
            task, variables, first.extras["occluded"], size, prepare, mesh
        )
        metrics[f"{first.name}/image/uncertainty_vs_occlusion"] = occlusion.correlation
    write_json(files / "results.json", {"step": step, **metrics})
    records = read_records(workdir / "metrics.jsonl")
    folder = files / "report"
    if "class_names" in first.extras:
        report_objects.draw(folder, records, splits, results)
    else:
        report.draw(folder, records, first, results[0], occlusion)
        draw_attention(config, folder, source, task, variables, first, results[0])
        graph_report.draw_run(folder, config, variables, first, source)
    print(f"\n{config.task} at step {step} on {first.name}, {workdir / 'results.json'}\n")
    print(table.metrics_table(metrics))
    print(f"\nPictures: {folder}")


def ours(error: BaseException) -> bool:
    """Whether the error was raised by a line of jcmr itself: then its message is for people."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(__file__).parent in Path(frames[-1].filename).parents


def enable_compilation_cache() -> None:
    """Keeps compiled programs per user, so that a second start does not compile again."""
    home = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "jcmr" / "xla"))


def main(argv: list[str]) -> None:
    """Runs one mode; problems that a user can mend end in a sentence and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments {argv[1:]}; options start with --.")
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(None)
    # Orbax and TFDS report every file that they open through the same logger.
    chatty = re.compile("orbax|tensorflow_datasets")
    handler.addFilter(lambda record: not chatty.search(record.pathname) or record.levelno > 30)
    config: Config = CONFIG.value
    flag: Any = flags.FLAGS["config"]
    name = Path(flag.config_filename).stem
    workdir = Path(WORKDIR.value or f"runs/{name}")
    enable_compilation_cache()
    began = time.monotonic()
    try:
        parallel.join_processes()
        if MODE.value == "train":
            run_train(config, workdir)
        else:
            source, task = build(config)
            run_eval(config, workdir, source, task)
    except loop.Interrupted as stop:
        print(f"{stop} Resume with the same command:\n  python -m jcmr.launch {shell_line()}")
        sys.exit(TRY_AGAIN)
    except loop.Diverged as error:
        sys.exit(str(error))
    except (ValueError, OSError) as error:
        if not ours(error):
            raise
        sys.exit(f"{type(error).__name__}: {error}")
    logging.info("done in %s", clock(time.monotonic() - began))


def shell_line() -> str:
    """The arguments of this process, as they were typed."""
    return " ".join(sys.argv[1:])


def parse_flags(argv: list[str]) -> list[str]:
    """Reads the command line; what is wrong with it ends in a sentence and exit status 1."""
    try:
        rest = flags.FLAGS(argv)
        _ = CONFIG.value.task  # a config that could not be loaded says so when it is asked
        return rest
    except Exception as error:  # a config file is Python: it can raise anything
        first: BaseException = error
        while first.__cause__ or first.__context__:
            first = first.__cause__ or first.__context__ or first
        hint = re.search('Did you mean "[^"]*" instead of "[^"]*"', f"{error} {first}")
        plain = isinstance(error, flags.Error) and "Traceback" not in str(error)
        told = str(error if plain else first).strip().splitlines() or [type(first).__name__]
        sys.exit(f"{hint[0]} in --config?" if hint else told[-1].strip())


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)
