"""Feature files and document folders: what is read, what labels are used for, and bad input."""

import logging
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from jcmr.data import word_graph
from jcmr.data.records import take
from jcmr.data.sources import documents, features

WORDS, TOPICS, PIXELS, CLASSES = 12, 3, 6, 3


def arrays(num_train=40, num_test=20, seed=0):
    """The layout of the Wikipedia file, with class ids that have gaps."""
    rng = np.random.default_rng(seed)
    made = {}
    for split, num in (("train", num_train), ("test", num_test)):
        kind = rng.integers(0, CLASSES, num)
        for name, width in (("image", PIXELS), ("lda", TOPICS), ("tfidf", WORDS)):
            noise = rng.random((num, width))
            noise[np.arange(num), kind % width] += 2
            made[f"{name}_{split}"] = noise.astype(np.float32)
        made[f"labels_{split}"] = np.array([3, 7, 50])[kind]
    return made


def write(path: Path, **changes) -> str:
    np.savez(path / "data.npz", allow_pickle=False, **{**arrays(), **changes})
    return str(path / "data.npz")


def options(file, **changes):
    return {"source": "features", "file": file, "text": ("tfidf",), **changes}


def test_supervised_and_not(tmp_path):
    file = write(tmp_path)
    with_labels = features.make(options(file, supervision="supervised"))
    without = features.make(options(file, supervision="unsupervised"))
    assert with_labels.info == {"feature_dim": PIXELS, "vocab_size": WORDS, "num_classes": CLASSES}
    assert "num_classes" not in without.info
    batch = take(with_labels.train, np.arange(4))
    assert set(batch) == {"features", "text", "id", "label"}
    assert set(take(without.train, np.arange(4))) == {"features", "text", "id"}
    np.testing.assert_array_equal(np.unique(with_labels.train.columns["label"]), np.arange(CLASSES))
    assert len(without.train) == 32 and len(without.retrieval("dev").items["image"]) == 8
    with pytest.raises(ValueError, match="supervised or unsupervised"):
        features.make(options(file, supervision="none"))


def test_held_out_pairs_do_not_depend_on_labels(tmp_path):
    file = write(tmp_path)
    before = features.make(options(file)).train.columns["text"]
    shuffled = arrays()
    shuffled["labels_train"] = shuffled["labels_train"][::-1].copy()
    np.testing.assert_array_equal(
        features.make(options(write(tmp_path, **shuffled))).train.columns["text"], before
    )


def test_splits_and_galleries(tmp_path):
    source = features.make(options(write(tmp_path), text=("tfidf", "lda"), dev_rate=0.0))
    test = source.retrieval("test")
    assert test.name == "test" and list(test.relevance) == ["own", "class"]
    assert test.items["text"][0]["text"].shape == (WORDS + TOPICS,)
    crossed = source.retrieval("test-train")
    assert crossed.name == "test-train" and list(crossed.relevance) == ["class"]
    assert [len(items) for items in crossed.items.values()] == [20, 40]
    assert source.retrieval("dev").name == "train"
    with pytest.raises(ValueError, match="no split 'val'"):
        source.retrieval("val")


def test_mat_files(tmp_path):
    made = arrays()
    for split in ("train", "test"):
        made[f"labels_{split}"] = np.eye(51)[made[f"labels_{split}"]]
    scipy.io.savemat(tmp_path / "data.mat", made)
    source = features.make(options(str(tmp_path / "data.mat"), supervision="supervised"))
    assert source.info["num_classes"] == CLASSES


@pytest.mark.parametrize("name", ["sqrt", "standard", "chi2"])
def test_transforms(tmp_path, name):
    source = features.make(options(write(tmp_path), image_transform=name))
    found = source.train.columns["features"]
    assert np.isfinite(found).all() and found.dtype == np.float32
    if name == "standard":
        np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)


def test_chi2_map_is_nearly_the_kernel():
    x, y = np.random.default_rng(0).dirichlet(np.ones(20), (2, 30))
    kernel = (2 * x * y / (x + y)).sum(1)
    found = (features.chi2_map(x) * features.chi2_map(y)).sum(1)
    np.testing.assert_allclose(found, kernel, rtol=0.15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_train": np.full((40, 3), np.nan)}, r"image_train: 40 rows hold NaN.*row 0"),
        ({"tfidf_train": np.ones((39, 3))}, "image 40, text 39, label 40"),
        ({"tfidf_test": np.array(["a"] * 20)}, "tfidf_test: expected float features"),
        ({"labels_train": np.ones((40, 3))}, "not one-hot"),
        ({"labels_train": np.full(40, 0.5)}, "whole numbers"),
        ({"image_train": -np.ones((40, PIXELS))}, "hold negative numbers"),
    ],
)
def test_bad_arrays(tmp_path, change, message):
    file = write(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        features.make(options(file, image_transform="sqrt"))


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"set config\.data\.file"):
        features.make(options(str(tmp_path / "none.npz")))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"cut\.npz \(\d+ bytes\) is no whole"):
        features.make(options(str(tmp_path / "cut.npz")))
    with pytest.raises(ValueError, match="no array 'words_train'; it has"):
        features.make(options(write(tmp_path), text=("words",)))
    with pytest.raises(ValueError, match="dev_fold is 9"):
        features.make(options(write(tmp_path), dev_fold=9))
    made = arrays()
    made.pop("labels_train")
    np.savez(tmp_path / "bare.npz", allow_pickle=False, **made)
    with pytest.raises(ValueError, match="has no labels_train"):
        features.make(options(str(tmp_path / "bare.npz"), supervision="supervised"))


def test_what_is_odd_is_counted(tmp_path, caplog):
    made = arrays()
    made["tfidf_train"][[4, 9]] = 0
    made["image_train"][5] = made["image_train"][6]
    made["image_test"][:3] = made["image_train"][:3]
    with caplog.at_level(logging.WARNING):
        source = features.make(options(write(tmp_path, **made)))
    said = caplog.text
    assert "tfidf_train: 2 rows are all zero (the first is row 4)" in said
    assert "image_train: 1 rows repeat another" in said
    assert "3 of 20 test items have the image features of a training item" in said
    assert len(source.train) == 32


def test_word_graph(tmp_path, caplog):
    made = arrays()
    made["tfidf_train"][:, 2] = 0  # an unseen word
    source = features.make(options(write(tmp_path, **made)))
    with caplog.at_level(logging.WARNING):
        built = word_graph.build(source, {"neighbours": 2, "vectors": "columns"})
    assert "1 of 12 words have no neighbour" in caplog.text
    assert 2 not in built.words.senders and built.idf.shape == (WORDS,)
    learned = word_graph.build(source, {"neighbours": 2, "dim": 4, "cooccurrence": 30})
    assert len(learned.words.senders) > 0
    with pytest.raises(ValueError, match="have no names to look up"):
        word_graph.build(source, {"vectors": "glove.txt"})
    with pytest.raises(ValueError, match=r"config\.model\.graph has no option 'neighbors'"):
        word_graph.build(source, {"neighbors": 2})
    made["tfidf_train"][:] = 0
    with pytest.raises(ValueError, match="no known word"):
        word_graph.build(features.make(options(write(tmp_path, **made))), {})


def test_pretrained_vectors(tmp_path):
    names = [f"word{i}" for i in range(WORDS)]
    (tmp_path / "vectors.txt").write_text(
        "\n".join(f"{name} {i} {WORDS - i} 1" for i, name in enumerate(names[:-1]))
    )
    source = features.make(options(write(tmp_path, words=np.array(names))))
    cfg = {"neighbours": 1, "vectors": str(tmp_path / "vectors.txt")}
    built = word_graph.build(source, cfg)
    assert set(built.words.senders[built.words.receivers == 5]) <= {4, 6}
    assert WORDS - 1 not in built.words.senders  # it has no vector


def make_documents(root: Path, texts=("the red cat sat", "a blue dog ran", "the red dog sat")):
    for folder in ("texts", "images/art"):
        (root / folder).mkdir(parents=True)
    lines = []
    for index, words in enumerate(texts):
        (root / "texts" / f"doc{index}.xml").write_text(f"<doc><text>{words}</text></doc>")
        Image.new("RGB", (9, 8), (index * 40, 0, 0)).save(root / "images" / "art" / f"p{index}.png")
        lines.append(f"doc{index}\tart/p{index}\t{3 + 2 * (index % 2)}")
    for split in ("train", "dev", "test"):
        (root / f"{split}.list").write_text("\n".join(lines))
    return {"source": "documents", "dir": str(root), "image_size": 8, "min_count": 1}


def test_documents(tmp_path):
    cfg = make_documents(tmp_path)
    source = documents.make({**cfg, "supervision": "supervised"})
    assert source.info["num_classes"] == 2 and "doc" not in source.vocabulary
    batch = take(source.train, np.arange(3))
    assert batch["image"].shape == (3, 8, 8, 3) and batch["label"].tolist() == [0, 1, 0]
    assert "label" not in take(documents.make(cfg).train, np.arange(2))
    assert list(source.retrieval("test").relevance) == ["own", "class"]
    built = word_graph.build(source, {"neighbours": 2, "dim": 3})
    assert len(built.words.senders) > 0


def test_documents_that_are_wrong(tmp_path, caplog):
    cfg = make_documents(tmp_path)
    (tmp_path / "texts" / "doc1.xml").write_text("<doc>zebra</doc>")
    with caplog.at_level(logging.WARNING):
        documents.make({**cfg, "min_count": 2})
    assert "1 documents hold no word of the vocabulary" in caplog.text
    (tmp_path / "test.list").write_text("doc0 art/p0 3")
    with pytest.raises(ValueError, match=r"test\.list, line 1: expected `text<TAB>image"):
        documents.make(cfg).retrieval("test")
    (tmp_path / "train.list").write_text("doc9\tart/p0\t3")
    with pytest.raises(FileNotFoundError, match=r"doc9, which .*train\.list, line 1"):
        documents.make(cfg)
    with pytest.raises(FileNotFoundError, match="There is no"):
        documents.make({**cfg, "dir": str(tmp_path / "none")})
