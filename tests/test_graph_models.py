"""The GCN text path, GPLDAN and PVSE as Tasks, and their configs trained end to end."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jcmr import launch
from jcmr.core import parallel
from jcmr.data import word_graph
from jcmr.data.records import take
from jcmr.data.sources import features
from jcmr.models import gcn_text, gpldan
from jcmr.serve import runs
from tests.test_pcme import assert_close, make_step
from tests.test_sources_features import CLASSES, WORDS, arrays

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A feature file with the arrays that all configs of features name."""
    made = arrays(80, 32)
    for split in ("train", "test"):
        made[f"text_{split}"] = np.stack([made[f"tfidf_{split}"]] * 2, axis=2)
    path = tmp_path_factory.mktemp("features") / "data.npz"
    np.savez(path, allow_pickle=False, **made)
    return str(path)


def source_of(file, supervision="supervised"):
    options = {"file": file, "text": ("tfidf",), "supervision": supervision, "dev_rate": 0.0}
    return features.make(options)


@pytest.fixture(scope="module")
def word_graphs(file):
    return word_graph.build(source_of(file), {"neighbours": 2, "vectors": "columns"})


GCN = {"embed_dim": 8, "image_hidden": (6,), "text_hidden": (6,), "num_classes": CLASSES}
POINTS = {"embed_dim": 8, "num_reps": 3, "num_tokens": 3, "token_dim": 6}
SYSTEMS = {
    "gcn": {**GCN, "product_dropout_rate": 0.4, "class_weight": 1.0, "agree_weight": 1.0},
    "gpldan": {**POINTS, "dropout_rate": 0.2, "input_dropout_rate": 0.2},
}


def make(name, word_graphs, **changes):
    cfg = {**SYSTEMS[name], **changes}
    return gcn_text.make(cfg, word_graphs) if name == "gcn" else gpldan.make(cfg)


@pytest.mark.parametrize("name", ["gcn", "gpldan"])
def test_devices_do_not_matter(name, file, word_graphs):
    task, batch = make(name, word_graphs), take(source_of(file).train, np.arange(16))
    batch["id"][3] = batch["id"][0]
    variables = task.init(jax.random.key(0), batch)
    step = make_step(task)
    one = jax.jit(lambda v, b: step(v, b, None))(variables, batch)
    mesh = parallel.make_mesh()
    for how in ("pmap", "shard_map"):
        placed = parallel.put_batch(batch, mesh, how)
        many = parallel.data_parallel(step, mesh, how, donate=False)(variables, placed)
        assert_close(many, one, 1e-4)
    assert np.isfinite(one[0][0]) and one[0][0] > 0


def scores_of(task, variables, batch):
    encode = jax.jit(lambda v, b: [task.encode[name](v, b) for name in ("image", "text")])
    return np.asarray(task.score(variables, *encode(variables, batch)))


def test_layouts_and_taps_give_the_same_embedding(file, word_graphs):
    batch = take(source_of(file).train, np.arange(6))
    task = make("gcn", word_graphs)
    variables = task.init(jax.random.key(0), batch)
    expected = task.encode["text"](variables, batch)
    dense = make("gcn", word_graphs, dense=True).encode["text"](variables, batch)
    assert_close(dense, expected)
    cfg = gcn_text.make_config(SYSTEMS["gcn"])
    taps = gcn_text.first_taps(variables, batch["text"], cfg)
    assert taps.shape == (6, WORDS, 1, 3)
    operator = gcn_text.operator_of(variables["graph"], cfg)
    found = gcn_text.GCNText(cfg).apply(
        variables, operator, batch["text"], None, taps, method="embed_text"
    )
    assert_close(found, expected)


@pytest.mark.parametrize("change", [{"convolution": "kipf"}, {"text": "mlp"}, {"residual": True},
                                    {"score": "posterior"}])  # fmt: skip
def test_variants_of_the_text_path(change, file, word_graphs):
    batch = take(source_of(file).train, np.arange(6))
    task = make("gcn", word_graphs, **change)
    scores = scores_of(task, task.init(jax.random.key(0), batch), batch)
    assert scores.shape == (6, 6) and np.isfinite(scores).all() and np.ptp(scores) > 0


def test_texts_of_word_ids():
    ids = np.array([[1, 4, 4, 6, 2, 0], [1, 3, 2, 0, 0, 0]])
    idf = np.arange(8, dtype=np.float32)
    counts = gcn_text.word_weights(ids, idf, "counts")
    assert counts[0].tolist() == [0, 0, 0, 0, 2, 0, 1, 0]
    assert not np.any(counts[1])  # unknown words alone
    weighted = np.asarray(gcn_text.word_weights(ids, idf, "tfidf"))
    assert np.isclose(np.linalg.norm(weighted[0]), 1) and np.isfinite(weighted).all()


def test_a_document_without_words_is_finite(file, word_graphs):
    task = make("gcn", word_graphs)
    batch = take(source_of(file).train, np.arange(4))
    batch["text"][1] = 0
    variables = task.init(jax.random.key(0), batch)
    (value, grads), _ = jax.jit(lambda v, b: make_step(task)(v, b, None))(variables, batch)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, grads)))


def test_labels_are_asked_for(file, word_graphs):
    with pytest.raises(ValueError, match=r"set config\.data\.supervision"):
        gcn_text.make({"class_weight": 1.0}, word_graphs)
    with pytest.raises(ValueError, match="posteriors"):
        gcn_text.make({"score": "posterior"}, word_graphs)
    with pytest.raises(ValueError, match="dense needs the chebyshev"):
        gcn_text.make({"dense": True, "convolution": "kipf"}, word_graphs)
    with pytest.raises(ValueError, match="did you mean 'num_reps'"):
        gpldan.make({"num_rep": 3})
    with pytest.raises(ValueError, match="has no 'far'; it can hold rank"):
        gpldan.make({"margins": {"far": 1.0}})


def test_the_classifier_declares_or_hides(file):
    """Its own gradient is the same; what it sends to the towers turns around."""
    batch = take(source_of(file).train, np.arange(8))
    found = []
    for sign in (1.0, -1.0):
        cfg = {**POINTS, "pattern_weight": 0.0, "fuse_weight": 0.0, "classifier_sign": sign}
        task = gpldan.make(cfg)
        variables = task.init(jax.random.key(0), batch)
        found.append(jax.jit(lambda v, b, t=task: make_step(t)(v, b, None))(variables, batch)[0][1])
    assert_close(found[0]["modality"], found[1]["modality"])
    assert_close(found[0]["image"], jax.tree.map(lambda x: -x, found[1]["image"]))


def test_representations_attend_to_each_other(file):
    batch = take(source_of(file).train, np.arange(4))
    for interaction in (True, False):
        cfg = {**POINTS, "interaction": interaction}
        variables = gpldan.make(cfg).init(jax.random.key(0), batch)
        shown = gpldan.explain(cfg, variables, "image", batch)
        assert shown.reps.shape == (4, 3, 8) and shown.attention.shape == (4, 3, 3)
        np.testing.assert_allclose(shown.attention.sum(1), 1, rtol=1e-5)
        np.testing.assert_allclose(shown.shares.sum(1), 1, rtol=1e-5)
        assert ("among" in variables["params"]["image"]["projector"]) == interaction


CONFIGS = {
    "gcn_wikipedia": "test/i2t/map",
    "gcn_scenes": "test/t2i/hit@1",
    "gcn_cmplaces": "test/i2t/map@100_found",
    "gpldan_wikipedia": "test/i2t/class_map",
    "gpldan_flickr8k": "test/i2t/r@1",
    "gpldan_scenes": "test/i2t/hit@1",
    "pvse_scenes": "test/t2i/hit@1",
}


def read_config(name, arg=""):
    space = {"__name__": name}
    exec(compile((ROOT / "configs" / f"{name}.py").read_text(), name, "exec"), space)
    return space["get_config"](arg)


def make_regions(folder: Path) -> str:
    rng = np.random.default_rng(0)
    for split, num in (("train", 24), ("dev", 8), ("test", 8)):
        np.save(folder / f"{split}_ims.npy", rng.random((num, 4, 6)).astype(np.float32))
        kinds = ("red", "big", "red", "old")
        lines = [f"a {kind} dog number {i % 5}" for i in range(num) for kind in kinds]
        (folder / f"{split}_caps.txt").write_text("\n".join(lines))
    return str(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_train_and_evaluate(name, file, tmp_path, monkeypatch, one_device):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = read_config(name, "smoke")
    if config.data.source == "features":
        config.data.file = file
    elif config.data.source == "precomp":
        config.data.dir = make_regions(tmp_path)
        with config.data.unlocked():
            config.data.captions_per_image = 4
    launch.run_train(config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert np.isfinite(results[CONFIGS[name]])
    drawn = {path.stem for path in (tmp_path / "run" / "report").glob("*.png")}
    assert drawn >= ({"words"} if config.task == "gcn_text" else {"distances", "attention"})
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["config"]["task"] == config.task


def test_configs_that_say_unsupervised_never_read_labels(file):
    """Neither a batch nor the sizes that a model is made from tell of classes."""
    told = []
    for path in sorted((ROOT / "configs").glob("*.py")):
        config = read_config(path.stem)
        if config.data.get("supervision") == "unsupervised":
            config.data.file = file
            source, _ = runs.build(config)
            assert set(take(source.train, np.arange(2))) == {"features", "text", "id"}
            assert "num_classes" not in source.info
            told.append(path.stem)
    assert told == ["gpldan_wikipedia"]
