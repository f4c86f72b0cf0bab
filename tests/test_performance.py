"""What performance can be asserted by counting: work, memory and how both grow; never seconds."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax import lax
from jax import numpy as jnp

from benchmarks import contrastive, pcme_loss, report, timing, train_step
from jcmr.core import parallel
from jcmr.core.work import count_work
from jcmr.losses.graph_pattern import graph_pattern
from jcmr.models import pcme
from jcmr.ops import cross_attention as ca
from jcmr.ops.chunks import map_over_chunks
from jcmr.ops.neighbors import nearness
from jcmr.train.state import init_state, make_train_step, objective

ROOT = Path(__file__).parents[1]


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def slope(measure, sizes):
    """Of log(measure(size)) over log(size)."""
    return np.polyfit(np.log(sizes), np.log([measure(size) for size in sizes]), 1)[0]


def temp_bytes(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def loss_of(n=32, k=4, d=64, chunk=0):
    """(value and gradient of PCME's loss, shapes of its arguments)."""
    function = jax.value_and_grad(functools.partial(pcme_loss.loss, chunk=chunk), (0, 1, 2, 3))
    return function, shape(n, k, d), shape(n, k, d), shape(), shape()


# --- counting


def test_products_are_counted_as_xla_counts_them(optimized):
    def function(x, w, kernel):
        x = lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.einsum("bhwc,cd->bhwd", x, w) @ w.T

    arguments = shape(2, 9, 9, 3), shape(8, 16), shape(3, 3, 3, 8)
    want = 2 * (2 * 4 * 4 * 8 * 27) + 2 * (2 * 2 * 4 * 4 * 8 * 16)
    assert count_work(function, *arguments).flops == want
    cost = jax.jit(function).lower(*arguments).compile().cost_analysis()
    assert cost["flops"] == pytest.approx(want, rel=0.3)  # it counts sums, and reorders


def test_a_scan_counts_as_often_as_it_runs():
    def recurrent(x, w):
        return lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=10)[0]

    one = 2 * 4 * 8 * 8
    arguments = shape(4, 8), shape(8, 8)
    assert count_work(recurrent, *arguments).flops == 10 * one
    gradient = jax.grad(lambda x, w: recurrent(x, w).sum(), (0, 1))
    assert count_work(gradient, *arguments).flops == 3 * 10 * one
    kept = jax.grad(lambda x, w: jax.checkpoint(recurrent)(x, w).sum(), (0, 1))
    assert count_work(kept, *arguments).flops == 4 * 10 * one  # computed once more
    branches = lambda x, w: lax.cond(x.sum() > 0, lambda: x @ w, lambda: x @ w @ w)
    assert count_work(branches, *arguments).flops == 2 * one


# --- laws


@pytest.mark.parametrize(
    ("name", "wanted", "sizes"),
    [("n", 2, (64, 128, 256)), ("k", 2, (4, 8, 16)), ("d", 1, (64, 256))],
)
def test_work_of_the_pcme_loss_grows_as_b2_k2_d(name, wanted, sizes):
    measure = lambda size: (
        count_work(loss_of(**{name: size})[0], *loss_of(**{name: size})[1:]).flops
    )
    assert abs(slope(measure, sizes) - wanted) < 0.15


def test_memory_of_the_pcme_loss_is_quadratic_whole_and_linear_in_blocks(optimized):
    sizes = (64, 256)
    whole = {n: temp_bytes(*loss_of(n)) for n in sizes}
    blocks = {n: temp_bytes(*loss_of(n, chunk=8)) for n in sizes}
    assert abs(slope(whole.get, sizes) - 2) < 0.15
    assert slope(blocks.get, sizes) < 1.15
    assert blocks[256] <= whole[256] / 8


def test_memory_of_the_pcme_loss_at_the_size_of_the_benchmark(optimized):
    assert temp_bytes(*loss_of(64, 7, 256)) <= 8e6


def test_memory_of_the_contrastive_loss_is_linear_in_blocks(optimized):
    def measure(n):
        function = jax.value_and_grad(functools.partial(contrastive.loss, chunk=16), (0, 1, 2))
        return temp_bytes(function, shape(n, 32), shape(n, 32), shape())

    assert slope(measure, (256, 1024)) < 1.15


def scoring_work(images=8, captions=8, words=16, steps=3, d=32):
    """FLOPs of scoring, without what is made once per item."""

    def fragments(n, t):
        gates = ((shape(n, t, d),) * 2, shape(n, t, 2 * d)) if steps > 1 else (None, None)
        mask = jax.ShapeDtypeStruct((n, t), bool)
        return ca.Fragments(shape(n, t, d), mask, shape(n, t), shape(n, t, t), *gates)

    gate = ca.Gate(shape(d, 2 * d), shape(d, 2 * d), shape(2 * d)) if steps > 1 else None
    function = functools.partial(ca.score_tile, how=ca.Matching(steps), chunk=4)
    arguments = fragments(images, 36), fragments(captions, words), {"t2i": gate}
    return count_work(function, *arguments).flops


@pytest.mark.parametrize(
    ("name", "sizes"), [("images", (8, 32)), ("captions", (8, 32)), ("words", (8, 16))]
)
def test_work_of_scoring_is_linear(name, sizes):
    assert abs(slope(lambda size: scoring_work(**{name: size}), sizes) - 1) < 0.15


def test_work_of_scoring_grows_by_the_same_for_each_further_step():
    one, two, three, four = (scoring_work(steps=k) for k in (1, 2, 3, 4))
    assert one < two < three
    assert four - three == three - two


def test_neighbours_are_quadratic_in_points_and_the_graph_pattern_loss_in_items():
    points = lambda n: count_work(nearness, shape(2, n, 16)).flops
    assert abs(slope(points, (64, 256)) - 2) < 0.15

    def items(b):
        value = lambda x, y: objective(graph_pattern(x, y), None)
        return count_work(jax.grad(value), shape(b, 4, 16), shape(b, 4, 16)).flops

    assert abs(slope(items, (128, 512)) - 2) < 0.15


# --- devices


def step_work(num_devices, per_device=8):
    """(per-device work of a PCME step, bytes of a device's embeddings)."""
    mesh = parallel.make_mesh(jax.devices()[:num_devices])
    module, cfg = train_step.SYSTEMS["PCME"]
    task, optimizer = module.make({**cfg, "embed_dim": 32}), optax.sgd(0.1)
    batch = train_step.make_batch("PCME", cfg, per_device * num_devices, 48)
    make = lambda: init_state(
        task.init(jax.random.key(0), train_step.centred(batch, None, None)),
        optimizer,
        jax.random.key(1),
    )
    body = make_train_step(task, optimizer, train_step.centred)
    step = parallel.data_parallel(body, mesh, "shard_map")
    return count_work(step, jax.eval_shape(make), batch)


def test_weak_scaling():
    """As devices are added, the work of each stays and what it gathers grows with their number."""
    found = {n: step_work(n) for n in (1, 2, 4, 8)}
    for n in (2, 4, 8):
        # Its rows meet the columns of all devices: that part alone grows, and is small.
        assert found[n].flops == pytest.approx(found[1].flops, rel=0.01)
        assert found[n].gathered == n * found[1].gathered
    # Its own rows against n times as many columns: exactly one more share for each device.
    shares = [found[2 * n].flops - found[n].flops for n in (1, 2, 4)]
    assert shares == [shares[0], 2 * shares[0], 4 * shares[0]]


# --- towers in blocks, parts of a batch, frozen parameters


def small_pcme(**options):
    cfg = {"image": "regions", "text": "bag", "vocab_size": 20, "embed_dim": 16, "num_samples": 2,
           "attention": False, **options}  # fmt: skip
    rng = np.random.default_rng(0)
    batch = {
        "id": np.arange(8, dtype=np.int32),
        "regions": rng.standard_normal((8, 3, 6)).astype(np.float32),
        "text": rng.integers(1, 20, (8, 2, 5)).astype(np.int32),
    }
    return pcme.make(cfg), batch


def gradients(task, batch):
    variables = task.init(jax.random.key(0), batch)

    def value(params):
        terms, _ = task.loss({**variables, "params": params}, batch, jax.random.key(1), None)
        return objective(terms, None)

    return jax.device_get(jax.jit(jax.value_and_grad(value))(variables["params"]))


@pytest.mark.parametrize("method", ["pcme", "infonce"])
def test_towers_in_blocks_change_nothing(method):
    options = {"method": method, "deterministic": method == "infonce", "score": "cosine"}
    want = gradients(*small_pcme(**options))
    got = gradients(*small_pcme(**options, tower_chunk=2, chunk=3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got, want)
    with pytest.raises(ValueError, match="tower_chunk as a divisor"):
        gradients(*small_pcme(**options, tower_chunk=3))


def test_towers_in_blocks_need_the_memory_of_one(optimized):
    def tower(rows):
        for _ in range(6):
            rows = jnp.tanh(rows @ jnp.ones((64, 64)))
        return rows, ()

    def value(x, chunk):
        return jnp.sum(map_over_chunks(tower, x, chunk)[0] ** 2)

    measure = lambda chunk: temp_bytes(
        jax.grad(functools.partial(value, chunk=chunk)), shape(1024, 64)
    )
    assert measure(64) < measure(0) / 2


@pytest.mark.parametrize("num_devices", [1, 4])
def test_gradients_of_parts_add_up(num_devices):
    """A loss without comparisons between items is the same whole and in parts."""
    from jcmr.core.types import Task, Term

    def loss(variables, batch, key, axis):
        del key, axis
        errors = (batch["x"] @ variables["params"]["w"] - 1) ** 2
        return {"error": Term(jnp.sum(errors), errors.size)}, {}

    task = Task(None, loss, {}, None)  # pyright: ignore
    batch = {"x": np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)}
    mesh = parallel.make_mesh(jax.devices()[:num_devices])
    results = []
    for parts in (1, 2, 4):
        state = init_state({"params": {"w": jnp.ones(3)}}, optax.sgd(0.1), jax.random.key(0))
        body = make_train_step(task, optax.sgd(0.1), lambda b, k, a: b, accumulate=parts)
        step = parallel.data_parallel(body, mesh, "shard_map", donate=False)
        placed = parallel.put_batch(batch, mesh, "shard_map")
        state, logs = step(parallel.replicate(state, mesh), placed)
        results.append(jax.device_get((state.params, logs)))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), other, results[0])


def test_frozen_towers_have_no_backward_pass():
    task, batch = small_pcme()
    optimizer = optax.sgd(0.1)
    state = init_state(task.init(jax.random.key(0), batch), optimizer, jax.random.key(0))

    def work(frozen):
        body = make_train_step(task, optimizer, lambda b, k, a: b, frozen)
        return count_work(functools.partial(body, axis=None), state, batch).flops

    none = work(lambda params: jax.tree.map(lambda _: False, params))
    every = work(lambda params: jax.tree.map(lambda _: True, params))
    assert 2.5 * every < none


# --- benchmarks


def test_a_case_that_disagrees_is_not_measured():
    case = timing.Case("sum", "4", lambda: np.ones(4), {"other": lambda: np.ones(4) * 1.1})
    with pytest.raises(ValueError, match=r"sum \(4\): ours and other differ by 0.09"):
        timing.measure(case, 1)
    case.baselines = {"other": lambda: np.full(4, np.nan)}
    with pytest.raises(ValueError, match="differ by inf"):
        timing.measure(case, 1)


def test_the_suite_needs_no_heavy_imports(tmp_path):
    """Every file of the suite is imported, one is run; its record is a row of the report."""
    program = """
import runpy, sys, importlib
from benchmarks import suite
sys.argv = ["benchmarks", "--suite=gpu", "--dry", "--only=pcme_loss", "--out=" + sys.argv[1]]
suite.main()
for name in suite.OPERATIONS:
    if importlib.util.find_spec("benchmarks." + name):
        importlib.import_module("benchmarks." + name)
heavy = "grain tensorflow_datasets tensorflow jraph orbax ml_collections".split()
print([name for name in heavy if name in sys.modules])
"""
    out = tmp_path / "gpu.jsonl"
    command = [sys.executable, "-c", program, str(out)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert not records[0]["measured"] and "seconds" not in records[0]
    section = report.speed_section("gpu", records)
    assert section.count("not measured") == 1 and records[0]["machine"]["commit"] in section
    assert "Not measured" in report.speed_section("tpu", [])
