"""PCME as a Task: equal on any number of devices, per item and not per batch."""

from itertools import product

import jax
import numpy as np
import optax
import pytest

from jcmr.core import parallel
from jcmr.models import pcme
from jcmr.train.state import init_state, make_train_step, objective

MAPPERS = "pmap", "shard_map"
SMALL = {"image": "regions", "vocab_size": 20, "word_dim": 8, "embed_dim": 8, "num_samples": 3}


def make_batch(size=16, num_captions=2, words=6, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, words + 1, (size, num_captions, 1))
    text = rng.integers(1, 20, (size, num_captions, words))
    ids = np.arange(size, dtype=np.int32)
    ids[3] = ids[0]
    return {
        "image": rng.normal(size=(size, 16, 16, 3)).astype(np.float32),
        "regions": rng.normal(size=(size, 4, 6)).astype(np.float32),
        "text": np.where(np.arange(words) < lengths, text, 0).astype(np.int32),
        "id": ids,
    }


def items(batch, rows=slice(None)):
    """Some of the batch's images and first captions, as items to encode."""
    ids = np.arange(len(batch["text"]), dtype=np.int32)[rows]
    image = {"image": batch["image"][rows], "regions": batch["regions"][rows], "id": ids}
    return {"image": image, "text": {"text": batch["text"][rows, 0], "id": ids}}


def assert_close(actual, expected, tolerance=1e-5):
    """Largest difference, as a share of the largest expected value."""

    def compare(a, e):
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(1.0, np.abs(e).max()))

    jax.tree.map(compare, actual, expected)


def make_step(task):
    def step(variables, batch, axis):
        def share(params):
            terms, new = task.loss({**variables, "params": params}, batch, jax.random.key(5), axis)
            return objective(terms, axis), new

        value_and_grad = jax.value_and_grad(share, has_aux=True)
        (value, new), grads = value_and_grad(parallel.varying(variables["params"], axis))
        return parallel.psum((value, grads), axis), parallel.pmean(new, axis)

    return step


SYSTEMS = {
    "official": {"parity": True, "uniform_weight": 1.0, "vib_weight": 0.01},
    "closed form, mixed images": {
        "text": "bag",
        "method": "pcmepp",
        "pseudo_positive_weight": 0.1,
        "label_smoothing": 1e-4,
        "mix_rate": 0.5,
    },
    "twin": {"text": "bag", "method": "infonce", "deterministic": True, "dropout_rate": 0.2},
    "likelihood": {"text": "bag", "method": "likelihood", "attention": False},
    "sphere": {"text": "bag", "method": "likelihood", "attention": False, "spherical": True},
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_devices_do_not_matter(name):
    task, batch = pcme.make({**SMALL, **SYSTEMS[name]}), make_batch()
    variables = task.init(jax.random.key(0), batch)
    step = make_step(task)
    one = jax.jit(lambda v, b: step(v, b, None))(variables, batch)
    mesh = parallel.make_mesh()
    for how in MAPPERS:
        placed = parallel.put_batch(batch, mesh, how)
        many = parallel.data_parallel(step, mesh, how, donate=False)(variables, placed)
        assert_close(many, one, 1e-4)
    assert np.isfinite(one[0][0])


def twenty_steps(num_devices, how):
    """Parameters after 20 steps of gradient descent on PCME's loss, in chunks of two images."""
    cfg = {**SMALL, "text": "bag", "attention": False, "chunk": 2, "uniform_weight": 0.1}
    task, optimizer = pcme.make(cfg), optax.sgd(0.01)
    mesh = parallel.make_mesh(jax.devices()[:num_devices])
    state = init_state(task.init(jax.random.key(0), make_batch()), optimizer, jax.random.key(1))
    step = make_train_step(task, optimizer, lambda batch, key, axis: batch)
    step, state = parallel.data_parallel(step, mesh, how), parallel.replicate(state, mesh)
    for i in range(20):
        state, _ = step(state, parallel.put_batch(make_batch(seed=i), mesh, how))
    return jax.device_get(state.params)


@pytest.fixture(scope="module")
def twenty_steps_on_one_device():
    return twenty_steps(1, "pmap")


@pytest.mark.parametrize(("num_devices", "how"), [(1, "shard_map"), *product((4, 8), MAPPERS)])
def test_same_parameters_after_twenty_steps(num_devices, how, twenty_steps_on_one_device):
    assert_close(twenty_steps(num_devices, how), twenty_steps_on_one_device, 2e-5)


@pytest.fixture(scope="module")
def variables():
    return pcme.make(SMALL).init(jax.random.key(0), make_batch())


@pytest.fixture(scope="module")
def embedded(variables):
    inputs, encode = items(make_batch()), pcme.make(SMALL).encode
    return {name: jax.jit(encode[name])(variables, inputs[name]) for name in inputs}


@pytest.mark.parametrize("name", ["image", "text"])
def test_samples_belong_to_the_item(name, variables, embedded):
    """An item embeds the same in any batch, in any order, and with any padding."""
    inputs, whole = items(make_batch())[name], embedded[name]
    encode = jax.jit(pcme.make(SMALL).encode[name])
    some = np.array([9, 2, 5])
    part = encode(variables, jax.tree.map(lambda x: x[some], inputs))
    assert_close(part, jax.tree.map(lambda x: x[some], whole))
    if name == "text":
        inputs = {**inputs, "text": np.pad(inputs["text"], ((0, 0), (0, 5)))}
    other = encode(variables, {**inputs, "id": inputs["id"] + 1})
    assert_close(other.mean, whole.mean)
    assert np.abs(other.samples - whole.samples).max() > 0.01


def test_rows_of_padding_are_finite(variables):
    empty = {"text": np.zeros((2, 5), np.int32), "id": np.zeros(2, np.int32)}
    embedding = jax.jit(pcme.make(SMALL).encode["text"])(variables, empty)
    assert all(np.isfinite(x).all() for x in embedding)


@pytest.mark.parametrize("score", ["matching_prob", "matmul", "csd", "likelihood", "cosine"])
def test_score_is_symmetric_and_made_for_tiles(score, variables, embedded):
    task, image, text = pcme.make({**SMALL, "score": score}), embedded["image"], embedded["text"]
    scores = task.score(variables, image, text)
    assert scores.shape == (16, 16) and np.isfinite(scores).all()
    np.testing.assert_allclose(task.score(variables, text, image).T, scores, rtol=1e-4, atol=1e-5)
    tile = task.score(variables, jax.tree.map(lambda x: x[3:5], image), text)
    np.testing.assert_allclose(tile, scores[3:5], rtol=1e-4, atol=1e-5)


def test_deterministic_twin_has_the_same_towers():
    batch = make_batch()
    task, twin = pcme.make(SMALL), pcme.make({**SMALL, "deterministic": True})
    shapes = [jax.eval_shape(t.init, jax.random.key(0), batch)["params"] for t in (task, twin)]
    for params in shapes:
        params["image"]["head"].pop("uncertain_net", None)
        params["text"].pop("uncertain_net", None)
    assert jax.tree.map(np.shape, shapes[0]) == jax.tree.map(np.shape, shapes[1])
    variables = twin.init(jax.random.key(0), batch)
    embedding = twin.encode["image"](variables, items(batch)["image"])
    np.testing.assert_array_equal(embedding.samples[:, 0], embedding.mean)


def test_word_vectors(variables):
    vectors = np.ones((20, 8), np.float32)
    found = np.arange(20) % 2 == 0
    new = pcme.with_word_vectors(variables, vectors, found)
    table = np.asarray(new["params"]["text"]["embed"]["embedding"])
    old = np.asarray(variables["params"]["text"]["embed"]["embedding"])
    np.testing.assert_array_equal(table[::2], vectors[::2])
    np.testing.assert_array_equal(table[1::2], old[1::2])
    with pytest.raises(ValueError, match="word_dim"):
        pcme.with_word_vectors(variables, np.ones((20, 5)), found)


def test_vagueness_counts_among_texts_and_not_among_images(variables, embedded):
    """Scores of one text move together; those of surer texts less."""
    how = {**SMALL, "score": "likelihood"}
    image, text = embedded["image"], embedded["text"]
    plain = pcme.make(how).score(variables, image, text)
    judged = pcme.make({**how, "vagueness_penalty": 0.5}).score(variables, image, text)
    expected = np.broadcast_to(0.5 * np.asarray(pcme.uncertainty(text)), plain.shape)
    np.testing.assert_allclose(plain - judged, expected, rtol=1e-4, atol=1e-5)


def test_a_point_has_no_likelihood():
    with pytest.raises(ValueError, match="'infonce'"):
        pcme.make({"method": "likelihood", "deterministic": True})


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match="did you mean 'embed_dim'"):
        pcme.make({"embed_dims": 3})
    with pytest.raises(ValueError, match="matching_prob, matmul, csd, likelihood, cosine"):
        pcme.make({"score": "dot"})
