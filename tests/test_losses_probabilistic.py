"""Losses of probabilistic embeddings against plain float64 sums over explicit differences."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import numpy as jnp

from jcmr.losses import probabilistic as losses
from jcmr.losses.targets import Side, Targets
from jcmr.models import pcme
from jcmr.ops import gaussian
from jcmr.ops.chunks import sum_over_chunks
from jcmr.ops.distances import paired_squared_distances

N, C, K, D = 6, 2, 3, 5
OWN = np.arange(N * C).reshape(N, C)


def make_pairs(seed=0, soft=False, masked=False):
    """(x [n, k, d], y [m, k, d], targets [n, m]); every row of x is near its own rows of y."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, K, D)) * 0.4
    y = np.repeat(x, C, axis=0) + rng.normal(size=(N * C, K, D)) * 0.2
    positive = np.repeat(np.eye(N), C, axis=1)
    if soft:
        positive = 0.05 + 0.7 * positive + 0.2 * np.roll(positive, 1, axis=1)
    valid = rng.random(positive.shape) < (0.7 if masked else 2.0)
    return x, y, Targets(np.float32(positive), valid)


def loss(x, y, shift, scale, targets, own=OWN, chunk=0):
    def block(rows):
        return losses.soft_contrastive(rows[0], y, shift, scale, rows[1], rows[2])

    return sum_over_chunks(block, (x, targets, own), chunk)


value_and_grad = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)), static_argnames="chunk")


def run(x, y, targets, shift=3.0, scale=4.0, **kwargs):
    """Value and gradients in float32."""
    x, y = (jnp.asarray(z, jnp.float32) if z.dtype == np.float64 else z for z in (x, y))
    return jax.device_get(
        value_and_grad(x, y, jnp.float32(shift), jnp.float32(scale), targets, **kwargs)
    )


def naive(x, y, shift, scale, targets):
    """The loss written out: all differences, all probabilities, [n, m, k, l, d]."""
    difference = x[:, None, :, None] - y[None, :, None, :]
    distance = jnp.sqrt((difference**2).sum(-1) + 1e-6)
    p = (1 / (1 + jnp.exp(-2 * (shift - scale * distance)))).mean((2, 3))
    each = -targets.positive * jnp.log(p) - (1 - targets.positive) * jnp.log(1 - p)
    return jnp.where(targets.valid, each, 0).sum()


def assert_near(actual, expected, tolerance=1e-5):
    """Largest difference, as a share of the largest expected value."""

    def compare(a, e):
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(1.0, np.abs(e).max()))

    jax.tree.map(compare, actual, expected)


@pytest.mark.parametrize("chunk", [0, 4])
@pytest.mark.parametrize("kind", [{}, {"soft": True, "masked": True}])
def test_soft_contrastive_loss_is_the_plain_sum(kind, chunk):
    """All at once and in blocks, of which the last has fewer rows."""
    x, y, targets = make_pairs(**kind)
    found = run(x, y, targets, chunk=chunk)
    with jax.enable_x64(True):
        wanted = jax.jit(jax.value_and_grad(naive, (0, 1, 2, 3)))(x, y, 3.0, 4.0, targets)
        assert_near(found, jax.device_get(wanted), 2e-6)


def test_rows_and_columns_can_be_reordered():
    x, y, targets = make_pairs(soft=True, masked=True)
    rng = np.random.default_rng(1)
    rows, columns = rng.permutation(N), rng.permutation(N * C)
    moved = Targets(*(t[rows][:, columns] for t in targets))
    where = np.argsort(columns)[OWN[rows]]
    value, (dx, dy, *rest) = run(x, y, targets)
    again, (dx2, dy2, *rest2) = run(x[rows], y[columns], moved, own=where)
    assert_near((again, dx2, dy2, *rest2), (value, dx[rows], dy[columns], *rest), 2e-6)


def test_what_is_masked_does_not_matter():
    """NaN in rows without a valid pair; anything in the target of a masked pair."""
    x, y, targets = make_pairs()
    valid = np.array(targets.valid)
    valid[4], valid[:, 3] = False, False
    valid[1, 7] = False
    value, grads = run(x, y, Targets(targets.positive, valid))
    x[4], y[3] = np.nan, np.inf
    positive = np.where(valid, targets.positive, 77)
    again, grads2 = run(x, y, Targets(positive.astype(np.float32), valid))
    assert_near((again, grads2), (value, grads), 1e-6)
    assert not grads2[0][4].any() and not grads2[1][3].any()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), offset=st.floats(-3, 3))
def test_invariants(seed, offset):
    x, y, targets = make_pairs(seed)
    wanted = run(x, y, targets)
    rng = np.random.default_rng(seed)
    order = rng.permutation(K)
    value, grads = run(x[:, order], y, targets)
    assert_near((value, grads[0][:, np.argsort(order)], *grads[1:]), (wanted[0], *wanted[1]), 5e-6)
    shift_all = offset * rng.normal(size=D)
    assert_near(run(x + shift_all, y + shift_all, targets), wanted, 2e-5)


def test_both_directions_are_the_same_sum():
    x, y, _ = make_pairs(soft=True)
    x, y = jnp.float32(x), jnp.float32(y)
    forth = losses.log_match_probability(x, y, jnp.float32(3), jnp.float32(4))
    back = losses.log_match_probability(y, x, jnp.float32(3), jnp.float32(4))
    assert_near([b.T for b in back], list(forth), 2e-6)


def test_bfloat16_samples_give_float32_losses():
    x, y, targets = make_pairs()
    x, y = jnp.asarray(x, jnp.bfloat16), jnp.asarray(y, jnp.bfloat16)
    value, grads = run(x, y, targets)
    assert value.dtype == np.float32 and grads[0].dtype == jnp.bfloat16
    exact, _ = run(np.float64(x), np.float64(y), targets)
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    assert all(np.isfinite(np.float32(g)).all() for g in grads)


@pytest.mark.parametrize("own", [OWN, None], ids=["difference", "product"])
def test_gradient_at_distance_zero_is_finite(own):
    x, _, targets = make_pairs()
    value, grads = run(x, np.repeat(x, C, axis=0), targets, shift=15.0, scale=15.0, own=own)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)


def test_distances_of_close_pairs_are_accurate():
    """From the loss itself: at shift 0 and scale 1/2, -log p is about softplus(distance)."""
    rng = np.random.default_rng(0)
    rows, features = 8, 1024
    errors = {}
    for true in (1.4, 0.5, 0.1, 0.01):
        unit, step = (
            v / np.linalg.norm(v, axis=-1, keepdims=True)
            for v in rng.normal(size=(2, rows, 1, features))
        )
        offset = rng.normal(size=features)
        x = (unit + 3 * offset / np.linalg.norm(offset)).astype(np.float32)
        y = (x + true * step).astype(np.float32)
        gap = x.astype(np.float64) - y.astype(np.float64)
        distance = np.sqrt((gap**2).sum(-1)[:, 0] + 1e-6)
        only_own = Targets(np.ones((rows, rows), np.float32), np.eye(rows, dtype=bool))
        wanted = np.log1p(np.exp(distance)).sum() / rows
        for name, own in (("difference", np.arange(rows)[:, None]), ("product", None)):
            total, _ = run(x, y, only_own, shift=0.0, scale=0.5, own=own)
            errors[name, true] = abs(total / rows - wanted)
    assert all(errors["difference", true] < 4e-7 for true in (1.4, 0.5, 0.1, 0.01)), errors
    assert errors["product", 0.01] > 4e-7  # why own pairs are taken by difference


def small_objective(size, features=256, **cfg):
    """The compiled objective of PCME and its gradient; K = 7, float32, one caption an image."""
    config = pcme.make_config({"num_samples": 7, "vib_weight": 0.0, **cfg})
    row = jnp.arange(size)

    def total(image, caption, shift, scale):
        sides = [pcme.Gaussian(s[:, 0], s[:, 0], s) for s in (image, caption)]
        embedded = pcme.Embedded(*sides, None, None, Side(row, row), Side(row, row), jnp.ones(size))
        criterion = {"shift": shift, "negative_scale": scale}
        terms = pcme.objective_terms(embedded, criterion, config, jax.random.key(0), None)
        return terms["match"].sum / terms["match"].count

    samples = jax.ShapeDtypeStruct((size, 7, features), jnp.float32)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    gradient = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3)))
    return gradient.lower(samples, samples, scalar, scalar).compile()


def temporaries(compiled):
    return compiled.memory_analysis().temp_size_in_bytes


def slope(sizes, values):
    return np.polyfit(np.log(sizes), np.log(values), 1)[0]


@pytest.mark.usefixtures("optimized")
def test_memory_and_work_grow_with_the_pairs_of_samples():
    programs = {size: small_objective(size, features=8) for size in (32, 64, 128)}
    for measure in (temporaries, lambda program: program.cost_analysis()["flops"]):
        found = [measure(program) for program in programs.values()]
        assert abs(slope(list(programs), found) - 2) < 0.15, found


@pytest.mark.usefixtures("optimized")
def test_features_cost_one_product_and_a_few_copies_of_the_samples():
    narrow, wide = small_objective(64, features=256), small_objective(64, features=512)
    assert temporaries(narrow) <= 8e6
    copy = 64 * 7 * 256 * 4
    assert temporaries(wide) - temporaries(narrow) < 10 * copy
    extra = wide.cost_analysis()["flops"] - narrow.cost_analysis()["flops"]
    products = 3 * 2 * (64 * 7) ** 2 * 256
    assert products < extra < 1.1 * products


@pytest.mark.usefixtures("optimized")
def test_memory_of_chunks_grows_with_the_columns():
    used = {size: temporaries(small_objective(size, chunk=8)) for size in (128, 256, 512)}
    assert abs(slope(list(used), list(used.values())) - 1) < 0.15, used
    assert used[128] < 6e6, used


def test_divergence_and_closed_form_distance():
    rng = np.random.default_rng(0)
    mean, other = rng.normal(size=(2, 5, 4))
    log_var, other_log_var = rng.normal(size=(2, 5, 4))
    variance, other_variance = np.exp(log_var), np.exp(other_log_var)
    kl = 0.5 * (variance + mean**2 - 1 - log_var).sum()
    np.testing.assert_allclose(
        losses.divergence(np.float32(mean), np.float32(log_var)), kl, rtol=1e-5
    )
    expected = ((mean[:, None] - other[None]) ** 2).sum(-1)
    expected += (variance[:, None] + other_variance[None]).sum(-1)
    sides = (np.float32(v) for v in (mean, log_var, other, other_log_var))
    np.testing.assert_allclose(gaussian.csd(*sides), expected, rtol=1e-5)


def test_pseudo_positives_by_hand():
    logits = jnp.array([[1.0, 2.0, 0.0], [3.0, 1.0, 0.9], [0.0, 0.0, 5.0]])
    positive = jnp.array([[0.9, 0.1, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    wider = losses.pseudo_positives(logits, Targets(positive, positive >= 0))
    expected = [[0.9, 0.9, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    np.testing.assert_array_equal(wider.positive, np.float32(expected))


def test_cross_entropy_shares_a_row_among_its_matches():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4))
    positive = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    valid = np.ones((3, 4), bool)
    valid[0, 3] = False
    p = np.exp(logits) * valid
    log_p = np.log(np.where(valid, p / p.sum(1, keepdims=True), 1))
    expected = -(log_p[0, 0] + log_p[0, 1]) / 2 - log_p[1, 2]
    logits[0, 3] = np.nan
    found, grad = jax.jit(jax.value_and_grad(losses.cross_entropy))(
        jnp.float32(logits), Targets(np.float32(positive), valid)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isfinite(grad).all() and grad[0, 3] == 0


def test_uniformity_is_the_plain_mean_over_pairs():
    x = np.random.default_rng(0).normal(size=(9, 4))
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)[np.triu_indices(9, 1)]
    found = losses.uniformity(jnp.float32(x))
    np.testing.assert_allclose(found, np.log(np.exp(-2 * squared).mean()), rtol=1e-5)
    again = jax.jit(jax.grad(losses.uniformity))(jnp.zeros((9, 4)))
    assert np.isfinite(again).all()


def test_rows_of_the_uniformity_loss():
    limit = losses.MAX_UNIFORM_SAMPLES
    assert losses.uniform_rows(jax.random.key(0), limit) is None
    drawn = np.asarray(losses.uniform_rows(jax.random.key(0), limit + 40))
    official = np.asarray(losses.uniform_rows(jax.random.key(0), limit + 40, replace=True))
    assert len(set(drawn)) == limit == len(official) and len(set(official)) < limit
    assert min(drawn) >= 0 and max(official) < limit + 40


def test_the_gradient_of_distances_within_pairs_is_that_of_differences():
    """Also of points 0.01 apart and far from the origin, and of a set that several share."""
    rng = np.random.default_rng(0)
    center = rng.normal(size=(6, 1, 1, 64))
    x = (center + 0.002 * rng.normal(size=(6, 1, 3, 64))).astype(np.float32)
    y = (center + 0.002 * rng.normal(size=(6, 2, 4, 64))).astype(np.float32)

    def total(x, y):
        return jnp.sum(jnp.sqrt(paired_squared_distances(x, y) + 1e-6))

    found = jax.jit(jax.grad(total, (0, 1)))(x, y)
    wide = x.astype(np.float64), y.astype(np.float64)
    difference = wide[0][..., :, None, :] - wide[1][..., None, :, :]
    slope = difference / np.sqrt((difference**2).sum(-1, keepdims=True) + 1e-6)
    expected = slope.sum(axis=(1, 3))[:, None], -slope.sum(axis=2)
    for mine, theirs in zip(found, expected):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())
