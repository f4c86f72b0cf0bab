"""Answers to visual questions: how many are right, by whom they were looked up, and after a swap.

States are ways in which captions come to a reader: states of knowledge, the first of which all is
compared with, and controls without captions, with others', or with those that answer. Metrics are
shares in 0..1, `{group}/{state}/accuracy` for each group of questions and `{group}/{state}/{kind}`
for each type; data without captions leave the state out. Where two states of knowledge have answers
of their own, the second is reached by a swap:

- `{group}/stale/accuracy`: what the first state's answers are worth in the second.
- `{group}/flip_rate`: of questions whose true answer changes, those answered with the new one after
  another answer before. `{group}/stability`: of groups whose answers never change, the answers that
  did not.
- `{group}/hit_rate`: of questions that captions can answer, those that got such a caption.
- `swap/same_logits`: 1 where going back to the first state gives bitwise the first logits.
- `swap/recompilations`: programs compiled from the swap on, until the first state is back.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jcmr.core import parallel
from jcmr.core.types import QuestionSplit, RandomAccess, Task, Variables
from jcmr.data.questions import all_groups, picture_ids
from jcmr.data.records import Arrays, take
from jcmr.eval.answers import answer_scores, best_answers
from jcmr.eval.embed import Prepare, embed, encode_batch

BACK = "back"
"""The first state again, after the swap."""
CONTROLS, ORACLE = ("no_retrieval", "random"), "oracle"
COMPILED = "/jax/core/compile/backend_compile_duration"
_compilations = [0]


def _count(event: str, duration_secs: float, **more: Any) -> None:
    del duration_secs, more
    _compilations[0] += event == COMPILED


jax.monitoring.register_event_duration_secs_listener(_count)


@contextlib.contextmanager
def counted_compilations() -> Iterator[Callable[[], int]]:
    """Gives a function that says how many programs have been compiled since."""
    before = _compilations[0]
    yield lambda: _compilations[0] - before


class Options(NamedTuple):
    """The keys of config.eval that this evaluator reads."""

    batch_size: int = 256
    best_metric: str = ""
    checkpoint: str = "last"


class Answered(NamedTuple):
    """What a reader said in one state."""

    best: np.ndarray
    """int [n], id of the answer."""
    worth: Mapping[str, np.ndarray]
    """Knowledge -> float [n], what it is worth there."""
    digest: str
    """Sha256 of all logits."""
    examples: RandomAccess
    """What it read."""


class Results(NamedTuple):
    """What an evaluation found."""

    metrics: dict[str, float]
    answered: dict[str, Answered]
    """By state."""


LookUp = Callable[[str], RandomAccess]
"""State -> the questions as a reader gets them."""


@partial(jax.jit, static_argnames=("score", "grouped"))
def score_batch(
    score: Callable, grouped: bool, variables: Variables, asked: Any, gallery: Any
) -> jax.Array:
    """Logits [b, v] of answers to embedded questions [b, ...], or in groups [p, q, ...], b = pq."""
    if grouped:
        asked = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), asked)
    return score(variables, asked, gallery)


def read(
    task: Task,
    variables: Variables,
    gallery: Any,
    examples: RandomAccess,
    rows: np.ndarray,
    truths: Mapping[str, RandomAccess],
    batch_size: int,
    prepare: Prepare,
    mesh: Mesh,
) -> Answered:
    """Answers all examples, in batches of one shape.

    `rows` has each of them once, int [n], or in groups about one picture, [g, q], where it may
    have some several times.
    """
    num, grouped = len(examples), rows.ndim > 1
    batch_size = batch_size // rows.shape[1] if grouped else batch_size
    batch_size = max(-(-batch_size // mesh.size), 1) * mesh.size
    digest = hashlib.sha256()
    best, worth = np.empty(num, int), {name: np.empty(num) for name in truths}
    for start in range(0, len(rows), batch_size):
        # The last batch is filled up with the last row.
        indices = rows[np.minimum(np.arange(start, start + batch_size), len(rows) - 1)]
        batch = parallel.put_batch(
            take(examples, parallel.host_part(indices, mesh)), mesh, "shard_map"
        )
        asked = encode_batch(task.encode["question"], prepare, mesh, variables, batch)
        logits = np.asarray(score_batch(task.score, grouped, variables, asked, gallery))
        digest.update(logits.tobytes())
        asked_rows = indices.reshape(-1)
        best[asked_rows] = best_answers(logits, unknown=None)
        for name, answers in truths.items():
            truth = take(answers, asked_rows)["answer"]
            worth[name][asked_rows] = answer_scores(logits, truth, unknown=None)
    return Answered(best, worth, digest.hexdigest(), examples)


def state_metrics(split: QuestionSplit, state: str, worth: np.ndarray) -> dict[str, float]:
    """Accuracies of one state, of each group and of each kind in it."""
    values = {}
    for group, chosen in split.groups.items():
        where = f"{group}/{state}" if state else group
        if chosen.any():
            values[f"{where}/accuracy"] = float(worth[chosen].mean())
        for kind in np.unique(split.kinds[chosen]):
            mine = chosen & (split.kinds == kind)
            values[f"{where}/{kind}"] = float(worth[mine].mean())
    return values


def swap_metrics(split: QuestionSplit, old: Answered, new: Answered) -> dict[str, float]:
    """What a swap from the first state of knowledge to the second did to the answers."""
    first, second = (
        np.concatenate([take(answers, rows)["answer"].argmax(1) for rows in chunks(split)])
        for answers in list(split.truths.values())[:2]
    )
    changes, values = first != second, {}
    name = list(split.truths)[1]
    for group, chosen in split.groups.items():
        moved = chosen & changes
        if moved.any():
            values[f"{group}/stale/accuracy"] = float(old.worth[name][chosen].mean())
            flipped = (new.best == second) & (old.best != second)
            values[f"{group}/flip_rate"] = float(flipped[moved].mean())
        elif chosen.any():
            values[f"{group}/stability"] = float((old.best == new.best)[chosen].mean())
    return values


def chunks(split: QuestionSplit, size: int = 1024) -> list[np.ndarray]:
    """All rows of a split, a few at a time."""
    num = len(split.examples)
    return np.split(np.arange(num), range(size, num, size))


def hit_rates(split: QuestionSplit, oracle: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """How often one of the captions `found` [n, k] is one of those that answer, `oracle` [n, j]."""
    answerable = (oracle >= 0).any(axis=1)
    hit = ((oracle[:, :, None] == found[:, None]) & (oracle >= 0)[:, :, None]).any(axis=(1, 2))
    values = {}
    for group, chosen in split.groups.items():
        if (chosen & answerable).any():
            values[f"{group}/hit_rate"] = float(hit[chosen & answerable].mean())
    return values


def states_of(split: QuestionSplit) -> list[str]:
    """The states to answer in where captions are looked up: a swap, and back; then all others."""
    truths = list(split.truths)
    back = [BACK] if len(truths) > 1 else []
    others = [name for name in split.oracle if name not in truths]
    oracle = [ORACLE] if split.oracle else []
    return [*truths, *back, *others, *CONTROLS, *oracle]


def read_options(cfg: Mapping[str, Any]) -> Options:
    """Checks config.eval.

    Raises:
      ValueError: an option nobody reads.
    """
    for name in cfg:
        if name not in Options._fields:
            known = ", ".join(Options._fields)
            raise ValueError(
                f"config.eval has no option {name!r} for questions; known are {known}."
            )
    return Options(**cfg)


def make_evaluator(
    task: Task,
    split: QuestionSplit,
    look_up: LookUp | None,
    num_answers: int,
    cfg: Mapping[str, Any],
    prepare: Prepare,
    mesh: Mesh,
    controls: bool = True,
    group: int = 0,
) -> Callable[[Variables], Results]:
    """Builds `evaluate(variables)`; see the top of this file.

    Args:
      task: whose `encode` has "question" and "answer".
      split: the questions.
      look_up: gives the examples of a state; None where nothing is looked up.
      num_answers: v.
      cfg: config.eval, see `Options`.
      prepare: from stored items to inputs.
      mesh: devices.
      controls: also the swap and all other states; else the first alone.
      group: questions about one picture that are read together; 0 for each alone.
    """
    options = read_options(cfg)
    first = next(iter(split.truths))
    states = states_of(split) if look_up and controls else [first]
    all_answers = Arrays({"id": np.arange(num_answers, dtype=np.int32)})
    size = min(options.batch_size, num_answers)
    rows = np.arange(len(split.kinds))
    if group:
        rows = all_groups(picture_ids(split.examples), group)

    def evaluate(variables: Variables) -> Results:
        variables = parallel.replicate(variables, mesh)
        gallery = embed(task, variables, all_answers, "answer", size, prepare, mesh)
        gallery = parallel.replicate(gallery, mesh)

        def answer(state: str) -> Answered:
            examples = look_up(first if state == BACK else state) if look_up else split.examples
            some = split.truths, options.batch_size, prepare, mesh
            return read(task, variables, gallery, examples, rows, *some)

        answered = {first: answer(first)}
        metrics: dict[str, float] = {}
        with counted_compilations() as compiled:
            swapped = states[1 : states.index(BACK) + 1] if BACK in states else []
            answered |= {state: answer(state) for state in swapped}
            if swapped:
                metrics["swap/recompilations"] = compiled()
        answered |= {state: answer(state) for state in states if state not in answered}
        for state, found in answered.items():
            truth = state if state in split.truths else first
            if state != BACK:
                metrics |= state_metrics(split, state if look_up else "", found.worth[truth])
        if swapped:
            metrics |= swap_metrics(split, answered[first], answered[states[1]])
            same = answered[BACK].digest == answered[first].digest
            metrics["swap/same_logits"] = float(same)
        hits = getattr(answered[first].examples, "hits", None)
        if hits is not None and split.oracle:
            metrics |= hit_rates(split, split.oracle[first], hits.rows)
        return Results(metrics, answered)

    return evaluate
