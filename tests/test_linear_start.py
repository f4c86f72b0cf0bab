"""The closed-form start: CCA where its optimum is known, and a run that begins there."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jcmr import launch
from jcmr.data.sources import precomp
from jcmr.models import dxr, imram, pcme
from jcmr.serve import runs
from jcmr.train import linear_start
from jcmr.train.state import objective
from tests.test_launch import parameters

CONFIGS = Path(__file__).parents[1] / "configs"
OBJECTS = ("dog", "cat", "boat", "tree", "ball", "child", "horse", "car", "bird", "bench", "kite")
ARTICLES = ("A", "The", "One", "Some", "Any")
CELLS, WIDTH, DIM, TOPICS = 4, 16, 8, 10
CCA = {"topics": TOPICS, "reg_image": 0.5, "reg_text": 0.5}
MODEL = {
    "image": "regions", "text": "bag", "attention": False, "method": "pcmepp", "score": "cosine",
    "embed_dim": DIM, "input_dropout_rate": 0.2,
}  # fmt: skip


FRAGMENTS = {
    "text": "words", "unit_images": False, "unit_words": False, "attention_norm": "no_norm",
    "variant": "image", "steps": 1, "smooth": 0.3, "embed_dim": DIM,
}  # fmt: skip
ALIGNED = {
    "image": "regions", "text": "words", "embed_dim": DIM, "word_dim": DIM, "num_heads": 2,
    "hidden": 16,
}  # fmt: skip


def correlated(n: int, correlations: np.ndarray, p: int, q: int):
    """Centred rows [n, p] and [n, q] whose first canonical correlations are known, mixed up."""
    rng = np.random.default_rng(0)
    k = len(correlations)
    x, y = rng.standard_normal((n, p)), rng.standard_normal((n, q))
    y[:, :k] = correlations * x[:, :k] + np.sqrt(1 - correlations**2) * y[:, :k]
    x, y = x @ rng.standard_normal((p, p)), y @ rng.standard_normal((q, q))
    return x - x.mean(axis=0), y - y.mean(axis=0)


def test_cca_finds_the_correlations_that_the_data_were_made_with():
    want = np.array([0.9, 0.6, 0.3])
    x, y = correlated(20_000, want, 6, 5)
    a, b, s = linear_start.cca(x, y, 3, 0.0, 0.0)
    np.testing.assert_allclose(s, want, atol=0.03)
    measured = [np.corrcoef(x @ a[:, i], y @ b[:, i])[0, 1] for i in range(3)]
    np.testing.assert_allclose(measured, s, atol=1e-6)


def test_regularised_cca_solves_its_generalised_eigenvalue_problem():
    x, y = correlated(200, np.array([0.9, 0.6, 0.3]), 6, 5)
    regs = 2.0, 0.3
    a, b, s = linear_start.cca(x, y, 4, *regs)
    cxx, cyy = (
        c + reg * np.trace(c) / len(c) * np.eye(len(c))
        for c, reg in zip((x.T @ x / 200, y.T @ y / 200), regs, strict=True)
    )
    cxy = x.T @ y / 200
    np.testing.assert_allclose(a.T @ cxx @ a, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(b.T @ cyy @ b, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(a.T @ cxy @ b, np.diag(s), atol=1e-9)
    squares = scipy.linalg.eigh(cxy @ np.linalg.solve(cyy, cxy.T), cxx, eigvals_only=True)
    np.testing.assert_allclose(np.square(s), squares[::-1][:4], atol=1e-9)


def write_split(root: Path, split: str, n: int, seed: int) -> None:
    """Photos of two objects each; every caption names both, in either order."""
    rng = np.random.default_rng(seed)
    look = np.random.default_rng(99).random((len(OBJECTS), WIDTH))
    pairs = np.stack([rng.permutation(len(OBJECTS))[:2] for _ in range(n)])
    cells = look[pairs].repeat(CELLS // 2, axis=1) + 0.05 * rng.random((n, CELLS, WIDTH))
    np.save(root / f"{split}_ims.npy", cells.astype(np.float32))
    lines = []
    for one, other in pairs:
        for k in range(5):
            first, second = (one, other) if k % 2 else (other, one)
            lines.append(f"{ARTICLES[k]} {OBJECTS[first]} , {OBJECTS[second]}")
    (root / f"{split}_caps.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("grid")
    for seed, (split, n) in enumerate({"train": 48, "dev": 8, "test": 8}.items()):
        write_split(root, split, n, seed)
    return root


@pytest.fixture(scope="module")
def source(folder):
    return precomp.make({"dir": str(folder), "max_words": 10, "captions_per_item": 5})


@pytest.fixture(scope="module")
def start(source):
    return linear_start.fit(source.train, source.info["vocab_size"], DIM, CCA)


def make_task(source, **options):
    """A PCME task on the source, and all training examples."""
    task = pcme.make({**MODEL, "vocab_size": source.info["vocab_size"], **options})
    return task, linear_start.read_all(source.train)


def test_captions_grouped_or_apart_give_one_start(folder, source, start):
    apart = precomp.make({"dir": str(folder), "max_words": 10}).train
    other = linear_start.fit(apart, source.info["vocab_size"], DIM, CCA)
    for got, want in zip(other, start, strict=True):
        np.testing.assert_allclose(np.abs(got), np.abs(want), atol=1e-8)


def naive_text(start, ids: np.ndarray) -> np.ndarray:
    """The embedding of one caption, word by word, in float64."""
    words = [i for i in ids if i > 2]
    total = sum(start.word_weights[i] * start.word_vectors[i] for i in words)
    counts = {i: words.count(i) for i in words}
    norm = np.sqrt(sum((n * start.word_weights[i]) ** 2 for i, n in counts.items()))
    return total / norm + start.text_bias


def test_the_towers_begin_as_cca(source, start):
    task, batch = make_task(source)
    variables = pcme.with_linear_start(task.init(jax.random.key(0), batch), start)
    image = task.encode["image"](variables, {"regions": batch["regions"], "id": batch["id"]})
    text = task.encode["text"](variables, {"text": batch["text"][:, 0], "id": batch["id"]})
    want = batch["regions"].mean(axis=1, dtype=np.float64) @ start.image_kernel + start.image_bias
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(image.mean, want, atol=2e-5)
    want = np.stack([naive_text(start, ids) for ids in batch["text"][:, 0]])
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(text.mean, want, atol=2e-5)
    # The words name what is in the photo: a photo's own captions are those most like it.
    scores = np.asarray(image.mean) @ np.asarray(text.mean).T
    own = np.diagonal(scores)
    assert np.median((scores > own[:, None]).sum(axis=1)) <= 1


def make_fragments_task(source, **options):
    """An IMRAM task on the source, and the first training examples."""
    task = imram.make({**FRAGMENTS, "vocab_size": source.info["vocab_size"], **options})
    return task, jax.tree.map(lambda x: x[:8], linear_start.read_all(source.train))


def pair_scores(task, start, batch, key=0) -> np.ndarray:
    """Scores [images, captions] at the start, of each image's first caption."""
    variables = imram.with_linear_start(task.init(jax.random.key(key), batch), start)
    sides = (
        task.encode["image"](variables, {"regions": batch["regions"]}),
        task.encode["text"](variables, {"text": batch["text"][:, 0]}),
    )
    return np.asarray(task.score(variables, *sides))


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the last axes of x and y, which broadcast."""
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return (x * y).sum(axis=-1) / norms


def test_even_attention_begins_as_cca_of_fragments(source, start):
    """Each region finds the caption of CCA, and each word the mean region of CCA."""
    task, batch = make_fragments_task(source, smooth=0.0)
    regions = batch["regions"].astype(np.float64) @ start.image_kernel + start.image_bias
    captions = np.stack([naive_text(start, ids) for ids in batch["text"][:, 0]])
    want = cosines(regions[:, None], captions[:, None]).mean(axis=-1)
    np.testing.assert_allclose(pair_scores(task, start, batch), want, atol=2e-5)

    task, _ = make_fragments_task(source, smooth=0.0, variant="text")
    for j, ids in enumerate(batch["text"][:, 0]):
        ids = ids[ids > 2]
        weighted = start.word_weights[ids, None] * start.word_vectors[ids]
        words = weighted / np.linalg.norm(start.word_weights[ids]) + start.text_bias / len(ids)
        np.testing.assert_allclose(words.sum(axis=0), captions[j], atol=1e-9)
        want = cosines(regions.mean(axis=1)[:, None], words).mean(axis=1)
        np.testing.assert_allclose(pair_scores(task, start, batch)[:, j], want, atol=2e-5)


def test_each_step_begins_as_the_first(source, start):
    one, batch = make_fragments_task(source)
    two, _ = make_fragments_task(source, steps=2)
    once, twice = pair_scores(one, start, batch), pair_scores(two, start, batch)
    np.testing.assert_allclose(twice, 2 * once, atol=0.01)
    np.testing.assert_array_less(0, np.ptp(once, axis=1))


def test_gradients_at_the_start_are_finite(source, start):
    """Even where a caption has no word."""
    task, batch = make_fragments_task(source, steps=2, variant="full", dropout_rate=0.5)
    batch["text"] = np.array(batch["text"])
    batch["text"][0] = np.where(np.arange(batch["text"].shape[-1]) < 2, 1, 0)
    variables = imram.with_linear_start(task.init(jax.random.key(0), batch), start)
    loss = lambda v: objective(task.loss(v, batch, jax.random.key(1), None)[0], None)
    value, grads = jax.jit(jax.value_and_grad(loss))(variables)
    assert value > 0 and all(jnp.isfinite(x).all() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("options", [{"text": "gru"}, {"weight_norm": True}])
def test_fragments_that_are_not_linear_cannot_start_so(source, start, options):
    task, batch = make_fragments_task(source, **options)
    shapes = jax.eval_shape(task.init, jax.random.key(0), batch)
    with pytest.raises(ValueError, match=r"needs config\.model\.image = 'regions', text = 'words'"):
        imram.with_linear_start(shapes, start)


def make_aligned_task(source, **options):
    """A DXR task on the source, and all training examples."""
    task = dxr.make({**ALIGNED, "vocab_size": source.info["vocab_size"], **options})
    return task, linear_start.read_all(source.train)


def test_a_transformer_begins_near_cca(source, start):
    task, batch = make_aligned_task(source, num_layers=2)
    variables = dxr.with_linear_start(jax.jit(task.init)(jax.random.key(0), batch), start)
    image = jax.jit(task.encode["image"])(variables, {"regions": batch["regions"]})
    text = jax.jit(task.encode["text"])(variables, {"text": batch["text"][:, 0]})
    regions = batch["regions"].astype(np.float64) @ start.image_kernel + start.image_bias
    captions = np.stack([naive_text(start, ids) for ids in batch["text"][:, 0]])
    lost = np.stack([np.ones(DIM), np.resize([-1, 1], DIM)]) / np.sqrt(DIM)
    kept = np.eye(DIM) - lost.T @ lost
    want = cosines(regions.mean(axis=1)[:, None] @ kept, captions @ kept)
    got = np.asarray(task.score(variables, image, text))
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.98
    own = np.diagonal(got)
    assert np.median((got > own[:, None]).sum(axis=1)) <= 1
    centred = start._replace(image_bias=np.zeros(DIM))
    params = dxr.with_linear_start(variables, centred)["params"]
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(params))


@pytest.mark.parametrize("options", [{"num_layers": 0}, {"word_dim": 6}])
def test_a_transformer_that_is_not_linear_cannot_start_so(source, start, options):
    task, batch = make_aligned_task(source, **options)
    shapes = jax.eval_shape(task.init, jax.random.key(0), batch)
    with pytest.raises(ValueError, match="num_layers of at least 1 and word_dim = embed_dim"):
        dxr.with_linear_start(shapes, start)


class Records:
    """Training examples from arrays."""

    def __init__(self, **columns):
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["text"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: column[index] for name, column in self.columns.items()}


def test_a_start_without_regions_says_so():
    records = Records(text=np.ones((3, 4), np.int32), image=np.zeros((3, 2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"needs frozen features.*precomp"):
        linear_start.fit(records, 5, DIM, CCA)


@pytest.mark.parametrize(
    ("dim", "topics", "words"),
    [
        (DIM, 400, r"48 images and \d+ words are too few for 400 topics: lower .*cca.topics"),
        (11, TOPICS, "10 topics and features of width 16 has no 11 dimensions.*embed_dim"),
    ],
)
def test_too_many_dimensions_end_in_a_sentence(source, dim, topics, words):
    with pytest.raises(ValueError, match=words):
        linear_start.fit(source.train, source.info["vocab_size"], dim, CCA | {"topics": topics})


@pytest.mark.parametrize("options", [{"attention": True}, {"text": "gru"}, {"region_dim": 6}])
def test_towers_that_are_not_linear_cannot_start_so(source, start, options):
    task, batch = make_task(source, **options)
    shapes = jax.eval_shape(task.init, jax.random.key(0), batch)
    with pytest.raises(ValueError, match=r"needs config\.model\.image = 'regions', region_dim = 0"):
        pcme.with_linear_start(shapes, start)


def run_smoke(name: str, folder: Path, workdir: Path):
    """Runs `configs/<name>.py:smoke` on the folder; returns its config and its results."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("smoke")
    config.data.dir = str(folder)
    launch.run_train(config, workdir)
    return config, json.loads((workdir / "results.json").read_text())


def test_the_config_runs_and_keeps_the_means_of_its_start(folder, source, tmp_path, one_device):
    config, results = run_smoke("pcme_flickr8k", folder, tmp_path)
    assert results["test/i2t/r@10"] > 2 * 100 * 10 / 40 and results["test/t2i/r@1"] > 2 * 100 / 8
    stemmed, _ = runs.build(config)
    want = linear_start.fit(
        stemmed.train, stemmed.info["vocab_size"], config.model.embed_dim, config.train.cca
    )
    trained = parameters(tmp_path)
    (kernel,) = (x for name, x in trained.items() if "['head']['fc']['kernel']" in name)
    np.testing.assert_array_equal(kernel, want.image_kernel.astype(np.float32))


def test_the_config_of_fragments_runs(folder, tmp_path, one_device):
    _, results = run_smoke("imram_flickr8k_grid", folder, tmp_path)
    assert results["test/i2t/r@10"] > 2 * 100 * 10 / 40 and results["test/t2i/r@1"] > 2 * 100 / 8
