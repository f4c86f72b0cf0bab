"""Similarities of Gaussians: the gradient that is written out, and how little memory it takes."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.ops.gaussian import csd, expected_likelihood, spherical_likelihood


def sides(n=4, m=7, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(rows, d)) for rows in (n, n, m, m))


def naive(x, x_log_var, y, y_log_var):
    total = jnp.exp(x_log_var)[:, None] + jnp.exp(y_log_var)[None]
    return -0.5 * ((x[:, None] - y[None]) ** 2 / total + jnp.log(total)).sum(-1)


def test_likelihood_and_its_gradient_are_those_of_the_plain_formula():
    with jax.enable_x64(True):
        arguments = tuple(map(jnp.asarray, sides()))
        weight = jnp.asarray(np.random.default_rng(1).normal(size=(4, 7)))
        found, expected = (
            jax.jit(jax.value_and_grad(lambda *a, f=f: (f(*a) * weight).sum(), (0, 1, 2, 3)))(
                *arguments
            )
            for f in (expected_likelihood, naive)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


def test_the_spherical_likelihood_is_that_of_equal_variances():
    with jax.enable_x64(True):
        x, x_log_var, y, y_log_var = sides()
        widths = x_log_var[:, 0], y_log_var[:, 0]
        whole = (np.repeat(width[:, None], 5, axis=1) for width in widths)
        x_whole, y_whole = whole
        expected = naive(x, x_whole, y, y_whole)
        found = spherical_likelihood(*map(jnp.asarray, (x, widths[0], y, widths[1])))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_likelihood_is_the_log_density_of_the_difference():
    x, x_log_var, y, y_log_var = sides(1, 1, 3)
    samples = np.random.default_rng(0).normal(size=(2, 400_000, 3))
    drawn = (x + np.exp(x_log_var / 2) * samples[0]) - (y + np.exp(y_log_var / 2) * samples[1])
    share = np.mean(np.all(np.abs(drawn) < 0.25, axis=1)) / 0.5**3
    density = np.exp(expected_likelihood(x, x_log_var, y, y_log_var)[0, 0]) / (2 * np.pi) ** 1.5
    assert share == pytest.approx(float(density), rel=0.1)


def test_the_same_means_match_better_the_surer_they_are():
    x = np.zeros((1, 3), np.float32)
    spread = np.linspace(-4, 4, 9, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    near = expected_likelihood(x, x, np.zeros((9, 3), np.float32), spread)[0]
    assert np.all(np.diff(near) < 0)
    far = expected_likelihood(x, x, np.full((9, 3), 5, np.float32), spread)[0]
    assert far[0] < far[5]
    # What PCME compares grows with every variance: it can only say of a vague item that it is far.
    assert np.all(np.diff(csd(x, x, np.full((9, 3), 5, np.float32), spread)[0]) > 0)


@pytest.mark.usefixtures("optimized")
def test_the_gradient_holds_no_n_by_m_by_d():
    n, m, d = 64, 256, 128
    shapes = [jax.ShapeDtypeStruct((rows, d), np.float32) for rows in (n, n, m, m)]
    gradient = jax.jit(jax.grad(lambda *a: expected_likelihood(*a).sum(), (0, 1, 2, 3)))
    memory = gradient.lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < n * m * d * 4 / 8
