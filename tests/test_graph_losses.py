"""Pairwise global, graph pattern and PVSE losses: devices, padding, order, precision, memory."""

import itertools
from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.core import parallel
from jcmr.core.types import Term
from jcmr.losses import pvse
from jcmr.losses.graph_pattern import WEIGHTS, Margins, graph_pattern
from jcmr.losses.pairwise import pairwise_global
from jcmr.models.encoders.norm import unit_length
from jcmr.train.state import objective

ITEMS, REPS, DIM = 16, 3, 6
CLOSE = partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6)


def batch(size=ITEMS, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(size, REPS, DIM)).astype(np.float32)
    text = image + rng.normal(size=image.shape).astype(np.float32)
    return {
        "image": image,
        "text": text,
        "label": rng.integers(0, 4, size).astype(np.int32),
        "real": np.ones(size, bool),
    }


def pattern_terms(params, batch, axis, hard=False):
    """The graph pattern loss of linearly mapped items."""
    v, t = unit_length(batch["image"] @ params), unit_length(batch["text"] @ params)
    return graph_pattern(v, t, batch["real"], axis, hard=hard, block=5)


def pairwise_terms(params, batch, axis):
    """The pairwise global loss of the first representations, over all pairs."""
    x, y = batch["image"][:, 0] @ params, batch["text"][:, 0]
    y, label, real = parallel.all_gather((y, batch["label"], batch["real"]), axis)
    positive = batch["label"][:, None] == label[None, :]
    valid = batch["real"][:, None] & real[None, :]
    return pairwise_global(x @ y.T / 4, positive, valid, 0.35, 3.0, axis)


def pvse_terms(params, batch, axis):
    """Ranking, diversity and MMD of PVSE, without padding."""
    x, y = unit_length(batch["image"] @ params), unit_length(batch["text"] @ params)
    all_x, all_y = parallel.all_gather((x, y), axis)
    rows = parallel.first_row(len(x), axis) + jnp.arange(len(x))
    own = rows[:, None] == jnp.arange(len(all_x))
    return {
        "to_text": Term(*pvse.triplet(pvse.mil_scores(x, all_y), own, 0.2, True)),
        "to_image": Term(*pvse.triplet(pvse.mil_scores(all_x, y).T, own, 0.2, True)),
        "diversity": Term(*pvse.diversity(x)),
        "mmd": Term(*pvse.mmd(x.reshape(-1, DIM), y.reshape(-1, DIM), 0.5, axis)),
    }


LOSSES = {
    "pattern": pattern_terms,
    "pattern, hard": partial(pattern_terms, hard=True),
    "pairwise": pairwise_terms,
    "pvse": pvse_terms,
}
PARAMS = np.random.default_rng(9).normal(size=(DIM, DIM)).astype(np.float32) / 2


def step_of(terms_of):
    def step(params, batch, axis):
        def share(params):
            return objective(terms_of(params, batch, axis), axis)

        found = jax.value_and_grad(share)(parallel.varying(params, axis))
        return parallel.psum(found, axis)

    return step


@pytest.fixture(scope="module", params=list(LOSSES))
def one_device(request):
    """(step, compiled for one device)."""
    step = step_of(LOSSES[request.param])
    return request.param, step, jax.jit(lambda p, b: step(p, b, None))


def test_devices_do_not_matter(one_device):
    _, step, alone = one_device
    expected = alone(PARAMS, batch())
    assert float(expected[0]) > 0 and np.abs(expected[1]).max() > 1e-3
    mesh = parallel.make_mesh()
    for how in ("pmap", "shard_map"):
        placed = parallel.put_batch(batch(), mesh, how)
        found = parallel.data_parallel(step, mesh, how, donate=False)(PARAMS, placed)
        jax.tree.map(CLOSE, found, expected)


def test_order_does_not_matter(one_device):
    _, _, alone = one_device
    order = np.random.default_rng(1).permutation(ITEMS)
    shuffled = {name: x[order] for name, x in batch().items()}
    jax.tree.map(CLOSE, alone(PARAMS, shuffled), alone(PARAMS, batch()))


@pytest.mark.parametrize("name", ["pattern, hard", "pairwise"])
def test_padding_does_not_matter(name):
    """Real items among garbage count as they do alone, with NaN-free gradients."""
    step = step_of(LOSSES[name])
    run = jax.jit(lambda p, b: step(p, b, None))
    padded = batch()
    padded["real"] = np.arange(ITEMS) % 3 > 0
    alone = {n: x[padded["real"]] for n, x in padded.items()}
    padded["image"][~padded["real"]] = 1e3
    padded["text"][~padded["real"]] = 0.0
    jax.tree.map(CLOSE, run(PARAMS, padded), run(PARAMS, alone))


def naive_pattern(v, t, margins, hard):
    """The five terms, edge by edge, as their definition reads."""
    items, reps = range(len(v)), range(v.shape[1])
    slots = list(itertools.product(reps, reps))
    d = lambda x, y: 1 - float(x @ y)
    h = lambda x: max(x, 0.0)
    n, k2 = len(v), len(slots)
    reduce = max if hard else lambda values: sum(values) / len(values)
    own = {(i, k, m): d(v[i, k], t[i, m]) for i in items for k, m in slots}

    def rank(i, edge):
        return reduce(
            [sum(h(margins.rank + own[i, k, m] - edge(j, k, m)) for k, m in slots) / k2
             for j in items if j != i]
        )  # fmt: skip

    rank_sum = sum(
        rank(i, lambda j, k, m, i=i: d(v[i, k], t[j, m]))
        + rank(i, lambda j, k, m, i=i: d(v[j, k], t[i, m]))
        for i in items
    )
    others = [(i, j) for i in items for j in items if i != j]
    intra = sum(
        h(margins.apart - d(x[i, k], x[j, m])) for x in (v, t) for i, j in others for k, m in slots
    )
    pairs = [(k, m) for k, m in slots if k < m]
    div = sum(
        h(margins.diverse - e) + h(e - margins.coherent)
        for x in (v, t) for i in items for k, m in pairs for e in [d(x[i, k], x[i, m])]
    )  # fmt: skip
    pat = sum(
        (d(v[i, k], v[j, m]) - d(t[i, k], t[j, m])) ** 2
        for i in items for j in items for k, m in slots
    )  # fmt: skip
    return {
        "pos": sum(h(e - margins.match) for e in own.values()) / (n * k2),
        "rank": rank_sum / n,
        "intra": intra / (2 * n * (n - 1) * k2),
        "div": div / (2 * n * len(pairs)),
        "pat": pat / (n * n * k2),
    }


@pytest.mark.parametrize("hard", [False, True])
def test_graph_pattern_is_its_definition(hard):
    data = batch(7, seed=3)
    v, t = (np.asarray(data[n], np.float64) for n in ("image", "text"))
    v, t = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (v, t))
    terms = jax.jit(partial(graph_pattern, hard=hard, block=3))(v, t)
    for name, expected in naive_pattern(v, t, Margins(), hard).items():
        CLOSE(terms[name].sum / terms[name].count, expected, err_msg=name)


def test_pairwise_global_is_its_definition():
    rng = np.random.default_rng(4)
    scores, positive = rng.normal(size=(9, 11)), rng.random((9, 11)) < 0.3
    terms = jax.jit(pairwise_global)(scores.astype(np.float32), positive)
    value = sum(t.weight * t.sum / t.count for t in terms.values())
    up, down = scores[positive], scores[~positive]
    expected = up.var() + down.var() + 0.35 * max(0, 0.8 - (up.mean() - down.mean()))
    CLOSE(value, expected, rtol=1e-5)


@pytest.mark.parametrize("positive", [False, True])
def test_pairwise_global_without_matches_or_mismatches(positive):
    def value(scores):
        return objective(pairwise_global(scores, jnp.full(scores.shape, positive)), None)

    scores = np.random.default_rng(5).normal(size=(4, 4)).astype(np.float32)
    found, gradient = jax.jit(jax.value_and_grad(value))(scores)
    CLOSE(found, scores.var())
    CLOSE(gradient, 2 * (scores - scores.mean()) / scores.size)


def test_a_mean_of_distances_collapses_to_centroids_and_a_hinge_on_each_edge_does_not():
    """Two items with equal centroids whose representations differ."""
    angles = np.linspace(0, 2 * np.pi, 4, endpoint=False)
    spread = np.stack([np.cos(angles), np.sin(angles)], axis=-1)[None].astype(np.float32)
    turned = np.roll(spread, 1, axis=1) @ np.array([[0.6, 0.8], [-0.8, 0.6]], np.float32)
    other = np.concatenate([spread, turned])
    plain = lambda v, t: jnp.mean(1 - jnp.einsum("akd,bld->abkl", v, t))
    edges = lambda v, t: jnp.mean(jax.nn.relu(1 - jnp.einsum("akd,bld->abkl", v, t) - 0.05))
    anchor = np.concatenate([spread, spread])
    np.testing.assert_allclose(plain(anchor, other), 1 - anchor.mean(1)[0] @ other.mean(1)[0],
                               atol=1e-6)  # fmt: skip
    assert (
        np.abs(jax.jit(jax.grad(plain))(anchor, other)).max() < 1e-6
    )  # nothing tells the edges apart
    assert np.abs(jax.jit(jax.grad(edges))(anchor, other)).max() > 1e-2
    found = jax.jit(jax.grad(lambda v: objective(graph_pattern(v, other), None)))(anchor)
    assert np.abs(found).max() > 1e-2


def temporaries(size, reps, block):
    """Bytes of temporaries of value and gradient, without running them."""
    shape = jax.ShapeDtypeStruct((size, reps, 64), jnp.float32)
    value = lambda v, t: objective(graph_pattern(v, t, block=block), None)
    compiled = jax.jit(jax.value_and_grad(value, (0, 1))).lower(shape, shape).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@pytest.mark.usefixtures("optimized")
def test_graph_pattern_fits_in_memory():
    """512 items of 8 representations; unblocked one matrix of distances alone is 67 MB."""
    assert temporaries(512, 8, 64) <= 0.3e9
    assert temporaries(512, 8, 16) <= 0.1e9


def test_one_representation_has_no_diversity():
    v = unit_length(jnp.asarray(batch()["image"][:, :1]))
    terms = jax.jit(graph_pattern)(v, v)
    assert set(terms) == set(WEIGHTS) and float(terms["div"].sum) == 0
    assert np.isfinite(objective(terms, None))


def test_equal_rows_have_no_nan_in_the_gradient():
    x = jnp.ones((4, 2, DIM)) / DIM**0.5
    value = lambda x: pvse.mmd(x[:, 0], x[:, 1])[0] + pvse.diversity(0 * x)[0]
    order = lambda x: pvse.mil_scores(x, x, order=True).sum()
    assert np.isfinite(jax.jit(jax.grad(lambda x: value(x) + order(x)))(x)).all()
