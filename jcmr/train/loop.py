"""The training loop."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh

from jcmr.core import parallel
from jcmr.core.types import Batch, Task, Variables
from jcmr.core.work import count_work, utilization
from jcmr.train import optim
from jcmr.train.checkpoint import Checkpoints
from jcmr.train.logging import Progress, RunLog
from jcmr.train.state import Augment, TrainState, init_state, make_train_step

Evaluate = Callable[[Variables], Mapping[str, float]]


class Stage(NamedTuple):
    """Steps `start` to `end` of a run, trained by one optimizer."""

    name: str
    start: int
    end: int
    make_optimizer: Callable[[Any], optax.GradientTransformation]
    frozen: Sequence[str] = ()
    """Patterns of parameters that it leaves alone."""


class Batches(Protocol):
    """Batches on the device, in an order that can be left and taken up again."""

    def __next__(self) -> Batch:
        """The next batch."""
        ...

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch that was handed out."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position."""
        ...


class Intervals(NamedTuple):
    """Every how many steps something is done; 0 is never."""

    log_steps: int
    eval_steps: int
    checkpoint_steps: int


class Interrupted(Exception):
    """The run was asked to stop, and has saved its state."""


class Diverged(Exception):
    """A value of the objective was no number."""


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """The stage whose optimizer made the state of `step`."""
    return next(stage for stage in stages if step <= stage.end)


def start_or_resume(
    variables: Variables, stages: Sequence[Stage], seed: int, checkpoints: Checkpoints, mesh: Mesh
) -> tuple[TrainState, dict[str, Any] | None]:
    """(state, loader position) of the run's last checkpoint; (fresh, None) without one.

    Order: the run's own checkpoint, else `variables`, which may come from elsewhere.
    """
    step = checkpoints.latest()
    optimizer = stage_at(stages, step or 0).make_optimizer(variables["params"])
    state = init_state(variables, optimizer, jax.random.key(seed))
    if step is None:
        return parallel.replicate(state, mesh), None
    return checkpoints.restore(step, state, mesh)


@contextlib.contextmanager
def sigterm_flag() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and SIGINT into a question that the loop asks after every step.

    Several processes must stop at the same step: then SIGTERM is left to JAX, which agrees on one
    (`Checkpoints.reached_preemption`).
    """
    received = []
    if jax.process_count() > 1:
        yield lambda: False
        return
    handlers = {
        number: signal.signal(number, lambda *_: received.append(True))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def check_finite(window: Sequence[Mapping[str, np.ndarray]], last: int, good: int | None, at: Path):
    """Raises Diverged with the first step of `window` (ends at step `last`) that has a NaN."""
    for offset, values in enumerate(window):
        bad = {name: float(v) for name, v in values.items() if not np.isfinite(v)}
        if bad:
            step = last - len(window) + offset + 1
            terms = ", ".join(f"{name} = {float(v):.4g}" for name, v in values.items())
            saved = f"step {good} in {at}" if good is not None else "none was saved yet"
            raise Diverged(
                f"Training diverged at step {step}: {', '.join(bad)} is not finite ({terms}). "
                f"Last good checkpoint: {saved}. Lower the learning rate or clip the gradient "
                f"(clip_norm of the stage)."
            )


def train(
    task: Task,
    state: TrainState,
    batches: Batches,
    stages: Sequence[Stage],
    augment: Augment,
    evaluate: Evaluate,
    checkpoints: Checkpoints,
    config: Mapping[str, Any],
    log: RunLog,
    mesh: Mesh,
    intervals: Intervals,
    batch_size: int,
    how: str = "pmap",
    accumulate: int = 1,
) -> TrainState:
    """Trains from `state` to the end of the last stage and returns the final state.

    Each round: step -> log -> evaluate -> save. A checkpoint is only written after the values of
    all steps before it have been found finite.

    Raises:
      Diverged: with the step, the terms and the last good checkpoint.
      Interrupted: SIGTERM or SIGINT arrived; the state has been saved.
    """
    step, last = int(state.step), stages[-1].end
    progress = Progress(last, batch_size)
    flops = 0.0
    window: list[Mapping[str, Any]] = []

    def flush() -> None:
        if not window:
            return
        values = jax.device_get(window)
        window.clear()
        check_finite(values, step, checkpoints.latest(), checkpoints.folder)
        means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
        mfu = utilization(flops, batch_size / progress.rate) if progress.rate else 0.0
        logging.info("%s  %.1f %% MFU", progress.line(step, means), 100 * mfu)
        log.write(step, "train", {**means, "examples_per_second": progress.rate, "mfu": mfu})

    def save(metrics: Mapping[str, float] | None = None) -> None:
        checkpoints.save(state, batches.get_state(), config, metrics)

    def due(interval: int) -> bool:
        return interval > 0 and step % interval == 0

    with sigterm_flag() as asked_to_stop:
        for stage in stages:
            if step >= stage.end:
                continue
            optimizer = stage.make_optimizer(state.params)
            if step == stage.start:
                logging.info("stage %s: steps %d to %d", stage.name, stage.start + 1, stage.end)
                opt_state = parallel.replicate(optimizer.init(state.params), mesh)
                state = state.replace(opt_state=opt_state)
            frozen = partial(optim.matches, patterns=stage.frozen)
            body = make_train_step(task, optimizer, augment, frozen, accumulate)
            run_step = parallel.data_parallel(body, mesh, how)
            first = True
            while step < stage.end:
                batch = next(batches)
                if first:  # traced here, and not again when it runs
                    flops = count_work(run_step, state, batch).flops
                with jax.transfer_guard("disallow"):
                    state, values = run_step(state, batch)
                step += 1
                window.append(values)
                if first:  # compilation is no part of the rate
                    jax.block_until_ready(values)
                    progress.start(step)
                    first = False
                if due(intervals.log_steps) or step == last:
                    flush()
                if due(intervals.eval_steps) or step == last:
                    flush()
                    metrics = evaluate(state.variables)
                    log.write(step, "dev", metrics)
                    save(metrics)
                    progress.start(step)
                elif due(intervals.checkpoint_steps):
                    flush()
                    save()
                if asked_to_stop() or checkpoints.reached_preemption(step):
                    flush()
                    save()
                    checkpoints.wait()
                    raise Interrupted(f"Stopped at step {step} of {last}; the state is saved.")
    checkpoints.wait()
    return state
