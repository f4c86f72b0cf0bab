"""`python -m jcmr.launch --config=configs/<name>.py [--workdir=...] [--mode=train|eval|export]`."""

import importlib
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from jax.sharding import Mesh
from ml_collections import config_flags

from jcmr.core import parallel
from jcmr.core.types import RetrievalSplit, Source, Task, Variables, split_list
from jcmr.data import augment, loader, resident
from jcmr.data.options import LoaderOptions, pick
from jcmr.data.questions import draw_groups, picture_ids
from jcmr.data.text import make_token_dropping
from jcmr.eval import (
    attention_report,
    graph_report,
    report,
    report_answers,
    report_objects,
    retrieval,
    table,
    vqa,
)
from jcmr.eval.occlusion import measure_occlusion
from jcmr.serve.export import export_run
from jcmr.serve.knowledge import Library
from jcmr.serve.load import load_run
from jcmr.serve.runs import (
    Config,
    build,
    check_same_run,
    describe,
    init_variables,
    restore_members,
    restore_variables,
    with_glove,
    write_description,
)
from jcmr.train import loop, optim
from jcmr.train.checkpoint import Checkpoints
from jcmr.train.logging import RunLog, clock, read_records, write_json

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, e.g. configs/x.py:smoke.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; runs/<name of config> if unset.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "export"], "What to do.")
INTERRUPTED = "JCMR_INTERRUPTED_STATUS"
"""Environment variable: exit status of a run that was asked to stop and has saved, 0 by default.
The scripts in launch/ set it to tell such a run from one that has ended."""


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
    if options.resident and options.group:
        raise ValueError("config.data.resident reads single questions; set config.data.group to 0.")
    order = getattr(source, "order", None)
    if options.group:
        order = partial(draw_groups, picture_ids(source.train), options.group)
    return loader.make_loader(
        resident.Rows(len(source.train)) if options.resident else source.train,
        config.train.batch_size,
        config.seed,
        workers=options.workers,
        transform=drop,
        order=order,
    )


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


def make_dev_evaluate(
    task: Task, source: Any, config: Config, mesh: Mesh
) -> Callable[[Variables], dict[str, float]]:
    """`evaluate(variables)` on the dev split of galleries or questions: its metrics."""
    if not hasattr(source, "questions"):
        of_galleries = make_evaluate(task, split_list(source.retrieval("dev")), config, mesh)
        return lambda variables: of_galleries(variables)[0]
    of_questions = make_question_evaluate(task, source, "dev", config, mesh)

    def evaluate(variables: Variables) -> dict[str, float]:
        found = of_questions(variables).metrics
        return {n if n.startswith("dev/") else f"dev/{n}": value for n, value in found.items()}

    return evaluate


def make_question_evaluate(
    task: Task, source: Any, split: str, config: Config, mesh: Mesh
) -> Callable[[Variables], vqa.Results]:
    """`evaluate(variables)` on a split of questions; after a swap on the test split alone."""
    asked = source.questions(split)
    controls, look_up = split == "test", None
    if hasattr(source, "look_up"):
        look_up = partial(source.look_up, asked)
        look_up = look_up if controls else cache(look_up)
    prepare, num = augment.make_prepare(config.data), len(source.answers)
    group = pick(LoaderOptions, config.data).group
    return vqa.make_evaluator(
        task, asked, look_up, num, config.eval, prepare, mesh, controls, group
    )


def with_captions(config: Config, workdir: Path, source: Any) -> Any:
    """A source whose questions come with retrieved captions, where the config has a retriever.

    One that is not given is trained first, in `workdir`/retriever and with the run's seed, or goes
    on where it stopped.
    """
    if not config.get("retriever") and "small_retriever" not in config:
        return source
    folder = workdir / "retriever"
    if not config.retriever and MODE.value == "train" and not (folder / "results.json").is_file():
        config.small_retriever.seed = config.seed
        run_train(config.small_retriever, folder)
    # Each host embeds and indexes for itself: what it finds, it finds without waiting for others.
    local = parallel.make_mesh(jax.local_devices())
    retriever = Path(config.retriever) if config.retriever else folder
    return Library(config, retriever, parallel.own_folder(workdir), source, local)


def run_train(config: Config, workdir: Path) -> None:
    """Trains, or goes on where the last run of `workdir` stopped; then evaluates on the test split.

    Raises:
      ValueError: the config does not fit the data or the checkpoint.
    """
    source, task = build(config)  # before devices, which take long to be found on some machines
    mesh = parallel.make_mesh()
    source = with_captions(config, workdir, source)
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
    if last is None and hasattr(source, "with_tower"):
        variables = source.with_tower(variables)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    logging.info("%s: %.2f M parameters, %d device(s)", config.task, count / 1e6, mesh.size)
    state, position = loop.start_or_resume(variables, stages, config.seed, checkpoints, mesh)
    if position:
        logging.info("resuming %s at step %d", workdir, int(state.step))
    files = parallel.own_folder(workdir)
    write_description(files, described, source)
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
    evaluate = make_dev_evaluate(task, source, config, mesh)
    log = RunLog(files, resumed_at=int(state.step))
    try:
        loop.train(
            task,
            state,
            batches,
            stages,
            augmented,
            evaluate,
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
    if not hasattr(source, "look_up"):
        source = with_captions(config, workdir, source)
    variables, step = restore_variables(config, workdir, source, task, mesh)
    if hasattr(source, "questions"):
        answer_questions(config, workdir, source, task, variables, step, mesh)
        return
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


def answer_questions(
    config: Config, workdir: Path, source: Any, task: Task, variables: Variables, step: int, mesh
) -> None:
    """Answers the test split's questions: results.json, a table, pictures."""
    before = len(getattr(source, "swaps", []))
    results = make_question_evaluate(task, source, "test", config, mesh)(variables)
    metrics = dict(results.metrics)
    if swaps := getattr(source, "swaps", [])[before:]:
        metrics["swap/seconds"] = max(swaps)
    files = parallel.own_folder(workdir)
    write_json(files / "results.json", {"step": step, **metrics})
    records, folder = read_records(workdir / "metrics.jsonl"), files / "report"
    report_answers.draw(folder, records, source, source.questions("test"), results)
    print(f"\n{config.task} at step {step}, {workdir / 'results.json'}\n")
    print(table.metrics_table(metrics))
    print(f"\nPictures: {folder}")


def run_export(workdir: Path) -> None:
    """Writes a run's encoders and scores as StableHLO into `<workdir>/export`."""
    run = load_run(workdir, parallel.make_mesh(jax.devices()[:1]))
    manifest = export_run(run, workdir / "export")
    print(f"{run.config.task} at step {run.step}: {workdir / 'export'}")
    for entry in (*manifest["encode"].values(), *manifest["score"]):
        print(f"  {entry['file']}")


def ours(error: BaseException) -> bool:
    """Whether the error was raised by a line of jcmr itself: then its message is for people."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(__file__).parent in Path(frames[-1].filename).parents


def enable_compilation_cache() -> None:
    """Keeps compiled programs per user, so that a second start does not compile again."""
    home = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "jcmr" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


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
        elif MODE.value == "export":
            run_export(workdir)
        else:
            source, task = build(config)
            run_eval(config, workdir, source, task)
    except loop.Interrupted as stop:
        print(f"{stop} Resume with the same command:\n  python -m jcmr.launch {shell_line()}")
        sys.exit(int(os.environ.get(INTERRUPTED, "0")))
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
        if isinstance(first, KeyError) and not hint:
            options = [option.split("=")[0] for option in argv]
            key = next((o for o in options if o.endswith(f".{first.args[0]}")), first.args[0])
            sys.exit(f"The config has no {key}; its file shows what it has.")
        plain = isinstance(error, flags.Error) and "Traceback" not in str(error)
        told = str(error if plain else first).strip().splitlines() or [type(first).__name__]
        sys.exit(f"{hint[0]} in --config?" if hint else told[-1].strip())


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)
