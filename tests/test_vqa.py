"""Answers: accuracies in each state of knowledge, and what a swap costs."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.core import parallel
from jcmr.core.types import QuestionSplit, Task
from jcmr.data.questions import Asked
from jcmr.data.records import Arrays
from jcmr.eval import report_answers, vqa


class Words:
    answers = ("a", "b", "c", "d", "e")


def test_accuracies_before_and_after_a_swap(tmp_path):
    """A reader that repeats the caption it is given, against counts by hand."""
    rng = np.random.default_rng(0)
    num, v = 23, 5
    truth = rng.integers(0, v, (2, num))
    truth[1, 15:] = truth[0, 15:]  # the last group's answers never change
    said = np.where(rng.random((2, num)) < 0.7, truth, rng.integers(0, v, (2, num)))
    kinds = np.asarray(["x", "y"])[rng.integers(0, 2, num)]
    groups = {"facts": np.arange(num) < 15, "seen": np.arange(num) >= 15}
    one_hot = np.eye(v, dtype=np.float32)
    names = "old", "new"
    truths = {n: Arrays({"answer": one_hot[t]}) for n, t in zip(names, truth)}
    oracle = {name: np.full((num, 1), -1) for name in names}
    split = QuestionSplit("test", Arrays({}), kinds, groups, truths, oracle)

    def look_up(state):
        row = names.index(state) if state in names else None
        given = np.zeros(num, int) if row is None else said[row]
        ids = np.arange(num) // 4 * 5 % 7
        return Asked(Arrays({"image": ids}), ids, ids, given.astype(np.int32))

    split = split._replace(examples=look_up("old"))
    task = Task(
        lambda key, batch: {},
        lambda *_: ({}, {}),
        {
            "question": lambda variables, batch: jnp.eye(v)[batch["question"]],
            "answer": lambda variables, batch: jnp.eye(v)[batch["id"]],
        },
        lambda variables, asked, gallery: asked @ gallery.T,
    )
    evaluate = vqa.make_evaluator(
        task, split, look_up, v, {"batch_size": 8}, lambda b: b, parallel.make_mesh()
    )
    found = evaluate({}).metrics
    right = said == truth
    for group, chosen in groups.items():
        for row, name in enumerate(names):
            assert found[f"{group}/{name}/accuracy"] == pytest.approx(right[row, chosen].mean())
            mine = chosen & (kinds == "x")
            assert found[f"{group}/{name}/x"] == pytest.approx(right[row, mine].mean())
    facts = groups["facts"]
    stale = (said[0] == truth[1])[facts].mean()
    assert found["facts/stale/accuracy"] == pytest.approx(stale)
    moved = facts & (truth[0] != truth[1])
    flipped = (said[1] == truth[1]) & (said[0] != truth[1])
    assert found["facts/flip_rate"] == pytest.approx(flipped[moved].mean())
    assert found["seen/stability"] == pytest.approx((said[0] == said[1])[groups["seen"]].mean())
    assert found["swap/same_logits"] == 1 and found["swap/recompilations"] == 0
    assert found["facts/no_retrieval/accuracy"] == pytest.approx((truth[0] == 0)[facts].mean())
    assert "seen/stale/accuracy" not in found and "facts/stability" not in found
    cfg, mesh = {"batch_size": 8}, parallel.make_mesh()
    args = task, split, look_up, v, cfg, lambda b: b, mesh
    for group in (3, 9):  # fewer and more than a picture has
        assert vqa.make_evaluator(*args, group=group)({}).metrics == found
    alone = vqa.make_evaluator(
        task, split, None, v, {"batch_size": 8}, lambda b: b, parallel.make_mesh()
    )({})
    assert alone.metrics["facts/accuracy"] == pytest.approx(right[0, facts].mean())
    assert not any("swap" in name or "old" in name for name in alone.metrics)
    split = split._replace(texts=["what is it"] * num, examples=Arrays({}))
    report_answers.draw(tmp_path, [], Words(), split, alone)
    assert {path.name for path in tmp_path.iterdir()} == {
        "accuracy.png", "answers.png", "curves.png",
    }  # fmt: skip
    with pytest.raises(ValueError, match="no option 'tile' for questions"):
        vqa.read_options({"tile": 3})


def test_compilations_are_counted():
    with vqa.counted_compilations() as compiled:
        jax.jit(lambda x: x * 3 + 1)(jnp.arange(7))
        assert compiled() >= 1
        before = compiled()
        assert compiled() == before
