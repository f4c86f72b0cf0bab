"""The center loss, edges never built, and Center3D as a Task on any number of devices."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.core import parallel
from jcmr.losses import center
from jcmr.models import center3d
from jcmr.models.encoders.dgcnn import EdgeConv
from jcmr.models.encoders.meshnet import FaceKernel
from jcmr.models.encoders.norm import BatchNorm
from jcmr.ops import neighbors
from jcmr.ops.largest import largest
from tests.test_pcme import make_step

# Maxima over neighbours stand on edges that rounding decides.
pytestmark = pytest.mark.usefixtures("optimized")

SMALL = {
    "num_classes": 5,
    "features": 12,
    "hidden": 8,
    "image": "compact",
    "k": 3,
    "point_embed_dim": 8,
    "point_widths": (6, 8),
    "mesh_structural": 8,
    "mesh_kernels": 4,
    "mesh_convolutions": ((6, 6),),
    "mesh_fused": 8,
    "mesh_joined": 8,
}


def make_batch(size=16, seed=0, views=2):
    rng = np.random.default_rng(seed)
    faces = rng.normal(size=(size, 10, 15)).astype(np.float32)
    return {
        "image": rng.normal(size=(size, views, 16, 16, 3)).astype(np.float32),
        "points": rng.normal(size=(size, 12, 3)).astype(np.float32),
        "faces": faces,
        "neighbors": rng.integers(0, 10, (size, 10, 3)).astype(np.int16),
        "label": rng.integers(0, 4, size).astype(np.int32),  # class 4 is absent
    }


def assert_close(actual, expected, tolerance):
    def compare(a, e):
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(1.0, np.abs(e).max()))

    jax.tree.map(compare, actual, expected)


@pytest.fixture(scope="module")
def system():
    """Without pictures, whose tower is the one of PCME's tests."""
    options = {"modalities": ("points", "mesh"), "center_update": "normalised"}
    task = center3d.make({**SMALL, **options, "center_weight": 0.3})
    batch = make_batch()
    del batch["image"]
    variables = task.init(jax.random.key(0), batch)
    step = make_step(task)
    alone = jax.jit(lambda v, b: step(v, b, None))
    return variables, batch, step, alone


def test_devices_do_not_matter(system):
    variables, batch, step, alone = system
    one = alone(variables, batch)
    mesh = parallel.make_mesh()
    for how in ("pmap", "shard_map"):
        placed = parallel.put_batch(batch, mesh, how)
        many = parallel.data_parallel(step, mesh, how, donate=False)(variables, placed)
        assert_close(many, one, 2e-4)
    (_, grads), new = one
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((grads, new)))
    assert not np.asarray(grads["centers"])[4].any()  # its class is in no batch


def test_order_of_objects_does_not_matter(system):
    variables, batch, _, alone = system
    order = np.random.default_rng(1).permutation(16)
    shuffled = jax.tree.map(lambda x: x[order], batch)
    assert_close(alone(variables, shuffled), alone(variables, batch), 2e-4)


@pytest.mark.parametrize("modalities", [("points",), ("mesh", "image")])
def test_any_subset_of_modalities(modalities):
    task = center3d.make({**SMALL, "modalities": modalities})
    batch = make_batch(4)
    for name, columns in {"image": ["image"], "points": ["points"], "mesh": ["faces"]}.items():
        if name not in modalities:
            for column in columns:
                batch.pop(column)
    variables = jax.eval_shape(task.init, jax.random.key(0), batch)
    assert set(task.encode) == set(modalities)
    assert set(variables["params"]) == {*modalities, "hidden", "out", "centers"}
    loss = lambda variables, batch: task.loss(variables, batch, jax.random.key(0), None)
    terms, _ = jax.eval_shape(loss, variables, batch)
    assert ("mse" in terms) == (len(modalities) > 1)
    embedded = [jax.eval_shape(task.encode[name], variables, batch) for name in modalities]
    scores = jax.eval_shape(task.score, variables, embedded[0], embedded[-1])
    assert scores.shape == (4, 4) and embedded[0].logits.shape == (4, 5)


def test_views_are_merged():
    x = np.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(center3d.merge_views(x, 3, "max"), [[4, 5], [10, 11]])
    np.testing.assert_array_equal(center3d.merge_views(x, 3, "mean"), [[2, 3], [8, 9]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modalities": ("text",)}, "image, points, mesh"),
        ({"center_wieght": 1.0}, "did you mean 'center_weight'"),
        ({"views": "median"}, "mean, max"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        center3d.make({**SMALL, **options})


def naive_losses(features, centers, labels, weight):
    """Values and the two movements of centers by loops in float64."""
    total, pull = 0.0, np.zeros(centers.shape)
    counts = np.zeros(len(centers))
    for x in features:
        for row, label in zip(x, labels):
            total += ((row - centers[label]) ** 2).sum()
            pull[label] += centers[label] - row
            counts[label] += 1
    num = len(features) * len(labels)
    mse = sum(((features[i] - features[j]) ** 2).mean() for i in range(3) for j in range(i + 1, 3))
    return total / num, mse, 2 * pull / num, pull / (1 + counts)[:, None]


def test_losses_against_loops():
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(7, 5)) for _ in range(3)]
    centers, labels, weight = rng.normal(size=(4, 5)), rng.integers(0, 3, 7), 0.7
    value, mse, official, normalised = naive_losses(features, centers, labels, weight)
    every, repeated = jnp.concatenate(features), jnp.tile(jnp.asarray(labels), 3)

    def loss(centers, rule):
        moving = {
            "official": lambda: center.with_official_update(centers, weight),
            "normalised": lambda: center.with_normalised_update(centers, weight, repeated),
        }[rule]()
        total, count = center.center_loss(every, moving, repeated)
        return weight * total / count

    for rule, expected in (("official", official), ("normalised", normalised)):
        value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
        found, gradient = value_and_grad(jnp.asarray(centers, jnp.float32), rule)
        assert found == pytest.approx(weight * value, rel=1e-5)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    total, count = center.pairwise_mse([jnp.asarray(x) for x in features])
    assert total / count == pytest.approx(mse, rel=1e-5)


def naive_edges(variables, x, k, train):
    """The official order of operations: [x_j - x_i ; x_i] for every edge."""
    near = neighbors.gather_neighbors(x, neighbors.nearest(x, k))
    edges = jnp.concatenate([near - x[:, :, None], jnp.broadcast_to(x[:, :, None], near.shape)], -1)
    inner = {name: tree["bn"] for name, tree in variables.items()}
    y = edges @ variables["params"]["kernel"]
    y, new = BatchNorm().apply(inner, y, train, mutable=["batch_stats"])
    return jax.nn.leaky_relu(y, 0.2).max(axis=2), {"bn": new["batch_stats"]}


def compiled_cost(f, *args):
    compiled = jax.jit(f).lower(*args).compile()
    cost = compiled.cost_analysis()
    return cost["flops"], compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.usefixtures("optimized")
def test_edges_cost_a_twentieth_of_the_products_and_are_never_built():
    b, n, k, d, c = 2, 256, 20, 64, 64
    x = jax.random.normal(jax.random.key(0), (b, n, d))
    module = EdgeConv(c, k)
    variables = module.init(jax.random.key(1), x)
    variables["params"]["bn"]["scale"] = jnp.where(jnp.arange(c) % 3 == 0, -1.0, 0.7)

    def loss(params, x, split):
        given = {**variables, "params": params}
        if split:
            out, new = module.apply(given, x, True, mutable=["batch_stats"])
            return (out**2).mean(), new["batch_stats"]
        out, new = naive_edges(given, x, k, True)
        return (out**2).mean(), new

    params = variables["params"]
    for split in (True, False):
        found = jax.value_and_grad(lambda p, x, s=split: loss(p, x, s), (0, 1), has_aux=True)
        if split:
            ours, (_, our_temp) = jax.jit(found)(params, x), compiled_cost(found, params, x)
        else:
            theirs, (_, naive_temp) = jax.jit(found)(params, x), compiled_cost(found, params, x)
    assert_close(ours, theirs, 1e-4)
    edge_tensor = b * n * k * 2 * d * 4
    assert our_temp < edge_tensor < naive_temp
    assert our_temp < naive_temp / 5

    index = neighbors.nearest(x, k)
    near = neighbors.gather_neighbors(x, index)
    edges = jnp.concatenate([near, near], axis=-1)
    half = params["kernel"][:d]
    naive_flops, _ = compiled_cost(lambda e, w: e @ w, edges, params["kernel"])
    split_flops, _ = compiled_cost(lambda x, w: (x @ w, x @ w * 2), x, half)
    two, _ = compiled_cost(lambda x, w, v: (x @ w, x @ v), x, half, params["kernel"][d:])
    assert two <= naive_flops / k * 1.01 and split_flops <= two * 1.1


def test_many_clouds_are_compared_a_few_at_a_time(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (7, 64, 3))
    at_once, wide = jax.jit(lambda x: neighbors.nearest(x, 4))(x), 7 * 64 * 64 * 4
    monkeypatch.setattr(neighbors, "SCORES_AT_ONCE", 2 * 64 * 64)
    in_parts = lambda x: neighbors.nearest(x, 4)
    np.testing.assert_array_equal(jax.jit(in_parts)(x), at_once)
    assert compiled_cost(in_parts, x)[1] < wide


@pytest.mark.parametrize("n, k", ((1, 1), (16, 16), (50, 20), (64, 7)))
def test_largest_is_top_k(n, k):
    """Also of equal scores, and of rows whose length is no multiple of a group's."""
    scores = jnp.asarray(np.random.default_rng(0).integers(-9, 1, (30, n)), jnp.float32)
    found = jax.jit(largest, static_argnums=1)(scores, k)
    np.testing.assert_array_equal(found, jax.lax.top_k(scores, k)[1])
    lost = largest(scores.at[0].set(jnp.nan), k)
    assert ((lost >= 0) & (lost < n)).all()  # places of rows, as others take what lies there


@pytest.mark.usefixtures("optimized")
def test_kernels_are_correlated_once_a_face():
    """The official module takes four exponentials where one is enough."""
    b, f, kernels, vectors = 2, 50, 8, 4
    normals = jax.random.normal(jax.random.key(0), (b, f, 3))
    index = jax.random.randint(jax.random.key(1), (b, f, 3), 0, f)
    module = FaceKernel(kernels, vectors)
    variables = module.init(jax.random.key(2), normals, index)
    cost = jax.jit(module.apply).lower(variables, normals, index).compile().cost_analysis()
    once = b * f * kernels * vectors
    assert once <= cost["transcendentals"] < 1.2 * once


def test_sum_and_max_against_gathering():
    """Also with points that come up several times, and with equal values."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-3, 4, (2, 9, 5)), jnp.float32)
    index = jnp.asarray(rng.integers(0, 9, (2, 9, 4)), jnp.int32)
    total, best = neighbors.sum_and_max(x, index)
    near = neighbors.gather_neighbors(x, index)
    np.testing.assert_array_equal(total, near.sum(2))
    np.testing.assert_array_equal(best, near.max(2))
    cotangents = jnp.asarray(rng.normal(size=(2, *x.shape)), jnp.float32)
    _, pull_back = jax.vjp(lambda x: neighbors.sum_and_max(x, index), x)
    (gradient,) = pull_back(tuple(cotangents))
    expected = np.zeros(x.shape)
    for b, i, c in np.ndindex(*x.shape):
        values = np.asarray(near[b, i, :, c])
        for slot, j in enumerate(np.asarray(index[b, i])):
            first = slot == values.argmax()
            expected[b, j, c] += cotangents[0][b, i, c] + first * cotangents[1][b, i, c]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)


def test_neighbors_far_from_the_origin_and_too_few_points():
    x = jax.random.normal(jax.random.key(0), (1, 40, 3))
    far = neighbors.nearest(x + 1000.0, 5)
    exact = ((np.asarray(x + 1000.0, np.float64)[0, :, None] - np.asarray(x + 1000.0)[0]) ** 2).sum(
        -1
    )
    np.testing.assert_array_equal(np.sort(far[0]), np.sort(np.argsort(exact, axis=1)[:, :5]))
    with pytest.raises(ValueError, match="lower config"):
        neighbors.nearest(x, 41)
