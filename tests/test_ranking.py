"""The bidirectional hinge against a naive form in float64, and its masks."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.losses.ranking import hinge_terms, triplet_hinge
from jcmr.models import vse


def naive_hinge(scores, rows, negative, margin, hardest):
    """Loss of all columns and its gradient, pair by pair."""
    total, grad = 0.0, np.zeros_like(scores)
    for j, i in enumerate(rows):
        in_row = [(i, k) for k in range(scores.shape[1]) if negative[i, k]]
        in_column = [(k, j) for k in range(scores.shape[0]) if negative[k, j]]
        for others in (in_row, in_column):
            violations = [(margin + scores[pair] - scores[i, j], pair) for pair in others]
            violations = [v for v in violations if v[0] > 0]
            for value, pair in [max(violations)] if hardest and violations else violations:
                total += value
                grad[pair] += 1
                grad[i, j] -= 1
    return total, grad


@pytest.fixture
def pairs():
    """5 images, two captions each; the last image is the first again."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(5), 2)
    image = np.array([0, 1, 2, 3, 0])
    negative = image[:, None] != image[rows][None]
    return rng.normal(size=(5, 10)), rows, negative


@pytest.mark.parametrize("hardest", [True, False])
def test_value_and_gradient(pairs, hardest):
    scores, rows, negative = pairs
    expected, grad = naive_hinge(scores, rows, negative, 0.3, hardest)
    with jax.enable_x64(True):
        columns = jnp.arange(10)
        loss = lambda s, rows, pairs: triplet_hinge(s, rows, columns, pairs, 0.3, hardest).sum()
        value_and_grad = jax.jit(jax.value_and_grad(loss))
        value, found = value_and_grad(scores, rows, negative)
        order = np.array([3, 0, 4, 1, 2])
        place = np.argsort(order)[rows]
        shuffled, _ = value_and_grad(scores[order], place, negative[order])
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(found, grad, atol=1e-12)
    np.testing.assert_allclose(shuffled, expected, rtol=1e-12)


def test_a_lone_pair_costs_nothing():
    loss = lambda s: triplet_hinge(s, jnp.zeros(1, int), jnp.zeros(1, int), s > 9, 0.2).sum()
    value, grad = jax.jit(jax.value_and_grad(loss))(jnp.ones((1, 1)))
    assert value == 0 and grad[0, 0] == 0


@pytest.mark.parametrize(("duplicates", "reduction"), [("masked", "sum"), ("negative", "mean")])
def test_captions_of_an_image_that_is_in_the_batch_twice(pairs, duplicates, reduction):
    scores, rows, negative = pairs
    batch = {"text": jnp.ones((5, 2, 3), int), "id": jnp.asarray([0, 1, 2, 3, 0])}
    if duplicates == "negative":
        negative = np.arange(5)[:, None] != rows[None]
    cfg = vse.make_config({"duplicates": duplicates, "reduction": reduction, "margin": 0.3})
    term = hinge_terms(jnp.asarray(scores, jnp.float32), batch, cfg, True, None)["hinge"]
    expected, _ = naive_hinge(scores, rows, negative, 0.3, True)
    np.testing.assert_allclose(term.sum, expected, rtol=1e-5)
    assert term.count == (1 if reduction == "sum" else 10)
