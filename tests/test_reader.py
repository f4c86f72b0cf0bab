"""The reader of questions and captions."""

import json
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.losses.answers import answer_loss
from jcmr.models import reader
from tests.test_imram import check_devices
from tests.test_launch import ROOT, command, environment, run

SMALL = {
    "vocab_size": 20,
    "num_answers": 6,
    "width": 16,
    "num_layers": 1,
    "num_heads": 2,
    "hidden": 24,
}
ANSWERS = np.asarray([[4, 0], [5, 0], [6, 7], [8, 0], [9, 0], [10, 4]], np.int32)


def make_batch(rows: int = 8, image: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    text = rng.integers(1, 20, (rows, 3, 5)).astype(np.int32)
    text[:, :, 3:] = 0
    text[::2, 2] = 0  # fewer captions
    seen = {"image": rng.normal(size=(rows, 16, 16, 3))} if image else {}
    seen = seen or {"regions": rng.normal(size=(rows, 4, 7))}
    batch = {
        **{name: x.astype(np.float32) for name, x in seen.items()},
        "question": np.pad(rng.integers(1, 20, (rows, 4)), ((0, 0), (0, 2))).astype(np.int32),
        "retrieved": text,
        "retrieved_score": rng.normal(size=(rows, 3)).astype(np.float32),
        "answer": rng.choice([0.0, 0.3, 1.0], (rows, 6)).astype(np.float32),
    }
    batch["retrieved_score"][::2, 2] = 0
    return batch


def in_groups(batch, size: int):
    """Each picture with `size` questions, and the same questions each with its picture."""
    seen = {name: x[: len(x) // size] for name, x in batch.items() if name in reader.SEEN}
    asked = {name: x for name, x in batch.items() if name not in reader.SEEN}
    groups = {name: x.reshape(-1, size, *x.shape[1:]) for name, x in asked.items()}
    each = {name: np.repeat(x, size, axis=0) for name, x in seen.items()}
    return {**seen, **groups}, {**each, **asked}


def make(**options):
    return reader.make({**SMALL, "image": "regions", **options}, ANSWERS)


def encode(task, variables, batch):
    return np.asarray(jax.jit(task.encode["question"])(variables, batch))


def test_devices_do_not_matter():
    """Dropout, and captions that are left out or exchanged."""
    rates = {"no_caption_rate": 0.3, "other_caption_rate": 0.3, "dropout_rate": 0.2}
    check_devices(make(**rates), in_groups(make_batch(16), 2)[0])


@pytest.mark.parametrize(
    ("image", "fusion"), [(True, "concat"), (False, "fid")], ids=["pixels", "regions"]
)
def test_groups_are_their_questions(image, fusion):
    """One picture for several questions gives the loss and gradient of one for each, for less."""
    options = {"fusion": fusion, "pool": 2, "image": "compact" if image else "regions"}
    task = make(**options, no_caption_rate=0.3, other_caption_rate=0.0)
    groups, each = in_groups(make_batch(8, image), 4)
    variables = task.init(jax.random.key(0), groups)
    check_equal(variables, task.init(jax.random.key(0), each))

    def loss(params, batch):
        terms, _ = task.loss({**variables, "params": params}, batch, jax.random.key(1), None)
        return terms["answer"].sum / terms["answer"].count

    step = jax.jit(jax.value_and_grad(loss))
    check_equal(step(variables["params"], groups), step(variables["params"], each))
    encode = jax.jit(task.encode["question"])
    found = encode(variables, groups)
    check_equal(found, encode(variables, each).reshape(2, 4, -1))
    if image:
        lowered = [step.lower(variables["params"], batch) for batch in (groups, each)]
        once, often = (program.cost_analysis()["flops"] for program in lowered)
        assert once < 0.5 * often


def check_equal(found, expected):
    def compare(a, e):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * max(1.0, np.abs(e).max()))

    jax.tree.map(compare, found, expected)


def test_a_grid_must_divide():
    with pytest.raises(ValueError, match="pool is 4, which does not divide the 2x2 grid"):
        jax.eval_shape(make(image="compact", pool=4).init, jax.random.key(0), make_batch(2, True))


def test_a_tower_starts_from_that_of_a_retriever():
    batch = make_batch(2, True)
    variables = make(image="compact", pool=2).init(jax.random.key(0), batch)
    parts = {n: jax.tree.map(lambda x: x + 1, variables[n]) for n in ("params", "batch_stats")}
    retriever = {n: {"image": {"backbone": part["backbone"]}} for n, part in parts.items()}
    found = reader.with_tower(variables, retriever)
    for name, part in parts.items():
        expected = {**variables[name], "backbone": part["backbone"]}
        jax.tree.map(np.testing.assert_array_equal, found[name], expected)
    for other in ({}, jax.tree.map(lambda x: x[..., :1], retriever)):
        with pytest.raises(ValueError, match="the retriever has no image tower like that of con"):
            reader.with_tower(variables, other)


@pytest.mark.parametrize("fusion", ["concat", "fid"])
def test_padding_does_not_matter(fusion):
    batch = make_batch()
    batch["retrieved_vector"] = np.random.default_rng(1).normal(size=(8, 3, 9)).astype(np.float32)
    task = make(fusion=fusion)
    variables = task.init(jax.random.key(0), batch)
    encode = jax.jit(task.encode["question"])
    expected = encode(variables, batch)
    # A caption that is not there has no rank, score or picture; neither have words that are not.
    other = {**batch, **{n: batch[n].copy() for n in ("retrieved_score", "retrieved_vector")}}
    other["retrieved_score"][::2, 2] = 9.0
    other["retrieved_vector"][::2, 2] = 9.0
    np.testing.assert_allclose(encode(variables, other), expected, atol=1e-5)
    # Other rows of the batch do not count, and what is there does: words, scores, who comes first.
    for name, change in (
        ("retrieved", batch["retrieved"][:, ::-1]),
        ("retrieved_score", batch["retrieved_score"] + 1),
        ("retrieved_vector", batch["retrieved_vector"] + 1),
        ("question", batch["question"][::-1]),
        ("regions", batch["regions"][::-1]),
    ):
        mixed = {**batch, name: np.concatenate([batch[name][:4], change[4:]])}
        changed = encode(variables, mixed)
        np.testing.assert_allclose(changed[:4], expected[:4], atol=1e-5)
        assert (np.abs(changed - expected)[4:].max(axis=1) > 1e-5).all(), name
    empty = {**batch, "retrieved": np.zeros_like(batch["retrieved"])}
    alone = {name: x for name, x in batch.items() if not name.startswith("retrieved")}
    without = jax.jit(task.encode["question"])(variables, alone)
    np.testing.assert_allclose(encode(variables, empty), without, atol=1e-5)


def test_most_words_are_read_without_their_padding():
    """All words in less room give the same; in too little room the last captions lose theirs."""
    batch = make_batch()
    whole, packed, short = make(), make(max_caption_words=9), make(max_caption_words=6)
    variables = whole.init(jax.random.key(0), batch)

    def gradient(task):
        def loss(params):
            return jnp.sum(task.encode["question"]({**variables, "params": params}, batch) ** 2)

        return jax.jit(jax.value_and_grad(loss))(variables["params"])

    check_equal(gradient(packed), gradient(whole))
    two = {name: x[:, :2] if name.startswith("retrieved") else x for name, x in batch.items()}
    found = jax.jit(short.encode["question"])(variables, batch)
    # Of rows with three captions the third is lost; the others have two.
    shorter = make().encode["question"]
    table = variables["params"]["ranks"]["table"][:2]
    params = {**variables["params"], "ranks": {"table": table}}
    expected = jax.jit(shorter)({**variables, "params": params}, two)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - encode(whole, variables, batch))[1::2].max(axis=1).min() > 1e-5


def test_answers_are_scored_by_their_words():
    """Logits are products with the means of word vectors; the loss is that of the logits."""
    task, batch = make(no_caption_rate=0.0, other_caption_rate=0.0), make_batch()
    variables = task.init(jax.random.key(0), batch)
    words = np.asarray(variables["params"]["words"]["embedding"], np.float64)
    vectors = [words[[i for i in row if i]].mean(axis=0) for row in ANSWERS]
    asked = encode(task, variables, batch)
    bias = np.asarray(variables["params"]["answer_bias"])
    expected = asked.astype(np.float64) @ np.stack(vectors).T + bias
    gallery = task.encode["answer"](variables, {"id": np.arange(6)})
    np.testing.assert_allclose(task.score(variables, asked, gallery), expected, atol=1e-5)
    terms, _ = jax.jit(lambda v: task.loss(v, batch, jax.random.key(0), None))(variables)
    probability = 1 / (1 + np.exp(-expected))
    y = batch["answer"]
    naive = -(y * np.log(probability) + (1 - y) * np.log(1 - probability)).sum()
    np.testing.assert_allclose(terms["answer"].sum, naive, rtol=1e-5)
    np.testing.assert_allclose(answer_loss(jnp.asarray(expected), y)[0], naive, rtol=1e-5)
    worth = y[np.arange(8), expected.argmax(axis=1)].sum()
    np.testing.assert_allclose(terms["accuracy"].sum, worth, rtol=1e-6)


def test_captions_are_dropped_at_the_given_rates():
    rows = 4000
    text = jnp.arange(1, rows + 1)[:, None, None] * jnp.ones((1, 2, 3), jnp.int32)
    asked = {"regions": jnp.ones((rows // 4, 1, 1)), "question": text[:, 0]}  # 4 a picture
    batch = {**asked, "retrieved": text, "retrieved_score": jnp.ones((rows, 2))}
    cfg = reader.make_config({**SMALL, "no_caption_rate": 0.2, "other_caption_rate": 0.3})
    got = reader.drop_captions(batch, jax.random.key(3), None, cfg)
    first = np.asarray(got["retrieved"][:, 0, 0])
    none, kept = first == 0, first == np.arange(1, rows + 1)
    following = first == np.roll(np.arange(1, rows + 1), -4)
    assert (none | kept | following).all()
    assert abs(none.mean() - 0.2) < 0.03 and abs(following.mean() - 0.3) < 0.03
    np.testing.assert_array_equal(np.asarray(got["retrieved_score"][:, 0] == 0), none)


def test_options_are_checked():
    with pytest.raises(ValueError, match="no option 'fussion' for reader; did you mean 'fusion'"):
        make(fussion="fid")
    with pytest.raises(ValueError, match="fusion is 'sum'; it can be concat, fid"):
        make(fusion="sum")
    with pytest.raises(ValueError, match="fid reads each caption by itself"):
        make(fusion="fid", max_caption_words=9)
    with pytest.raises(ValueError, match=r"tower_widths is \(16, 32\); give three"):
        make(tower_widths=[16, 32])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_end_to_end_killed_once(cache, tmp_path):
    """Retriever, index, reader, swap: killed between them, it leaves the retriever as it was."""
    options = "--config=configs/xtra_scenes.py:smoke", f"--workdir={tmp_path}"
    process = subprocess.Popen(
        command(*options),
        cwd=ROOT,
        env=environment(cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 280
    while not (tmp_path / "lookups").is_dir() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    trained = (tmp_path / "retriever" / "results.json").stat().st_mtime_ns
    done = run(*options, cache=cache)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "retriever" / "results.json").stat().st_mtime_ns == trained
    results = json.loads((tmp_path / "results.json").read_text())
    for name in (
        *("held_out/index_a", "held_out/swapped_b", "held_out/stale", "held_out/no_retrieval"),
        *("held_out/masked", "held_out/random", "held_out/oracle"),
        *("visual/index_a", "visual/swapped_b"),
    ):
        assert 0 <= results[f"{name}/accuracy"] <= 1
    assert results["swap/same_logits"] == 1 and results["swap/recompilations"] == 0
    assert results["swap/seconds"] > 0
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "accuracy.png", "answers.png", "curves.png",
    }  # fmt: skip
