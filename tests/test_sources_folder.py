"""Captioned folders and frozen features, from files of the true format."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from absl import logging
from PIL import Image

from jcmr.core.types import RetrievalSplit
from jcmr.data import text
from jcmr.data.captions import group_captions
from jcmr.data.loader import make_loader
from jcmr.data.records import take
from jcmr.data.sources import captioned_folder, precomp

COUNTS = {"a.jpg": 5, "b.jpg": 1, "c.png": 3, "d.jpg": 2, "e.jpg": 2}
SPLIT = {"train": ["a.jpg", "b.jpg", "c.png"], "dev": ["d.jpg"], "test": ["e.jpg"]}


@pytest.fixture
def folder(tmp_path):
    """Five pictures of different sizes and numbers of captions."""
    (tmp_path / "images").mkdir()
    lines = []
    for index, (name, count) in enumerate(COUNTS.items()):
        pixels = np.full((20 + 4 * index, 30, 3), 40 * index + 20, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
        lines += [f"{name}#{k}\tPicture {index} , caption {k} .\n" for k in range(count)]
    (tmp_path / "captions.txt").write_text("".join(lines))
    (tmp_path / "split.json").write_text(json.dumps(SPLIT | {"unassigned": []}))
    return tmp_path


def open_folder(root, **options):
    return captioned_folder.make({"dir": str(root), "image_size": 16, "max_words": 10} | options)


@pytest.fixture
def warnings(monkeypatch):
    """The warnings that are logged."""
    lines = []
    monkeypatch.setattr(logging, "warning", lambda line, *args: lines.append(line % args))
    return lines


def words(source, ids) -> str:
    names = {index: word for word, index in source.vocabulary.items()}
    return " ".join(names[int(i)] for i in ids if i > text.UNK)


def test_each_caption_is_a_training_example_with_its_image(folder):
    source = open_folder(folder)
    assert len(source.train) == 9
    for index in range(9):
        example = source.train[index]
        image = int(example["id"])
        assert example["image"].shape == (16, 16, 3) and example["image"].dtype == np.uint8
        assert abs(int(example["image"].mean()) - (40 * image + 20)) <= 2
        assert example["aspect"] == pytest.approx(30 / (20 + 4 * image))
        assert example["text"].shape == (10,) and example["text"].dtype == np.int32
        assert f"picture {image} ," in words(source, example["text"])
    assert source.info == {"vocab_size": len(source.vocabulary)}
    assert "4" in source.vocabulary and "5" not in source.vocabulary


def test_captions_of_an_image_may_come_together(folder):
    source = open_folder(folder, captions_per_item=2)
    assert len(source.train) == 3 + 1 + 2
    seen = {0: set(), 1: set(), 2: set()}
    for index in range(6):
        example = source.train[index]
        assert example["text"].shape == (2, 10)
        seen[int(example["id"])] |= {words(source, row) for row in example["text"]}
    assert [len(captions) for captions in seen.values()] == [5, 1, 3]
    assert group_captions(np.asarray([1, 0, 1, 1]), 2).tolist() == [[1, 1], [0, 2], [3, 0]]


def test_galleries_know_who_belongs_to_whom(folder):
    source = open_folder(folder)
    split = source.retrieval("dev")
    assert isinstance(split, RetrievalSplit) and list(split.items) == ["image", "text"]
    assert len(split.items["image"]) == 1 and len(split.items["text"]) == 2
    train = source.retrieval("train")
    own = train.relevance["own"]
    matches = own.match(own.rows, own.columns)
    assert matches.shape == (3, 9) and matches.sum(1).tolist() == [5, 1, 3]
    texts = take(train.items["text"], np.arange(9))
    assert texts["id"].tolist() == list(range(9))
    np.testing.assert_array_equal(own.columns, texts["owner"])
    assert words(source, texts["text"][8]) == "picture 2 , caption 2 ."
    np.testing.assert_array_equal(source.tokenize(train.extras["captions"]), texts["text"])
    assert train.extras["names"] == SPLIT["train"]
    assert all(Path(path).is_file() for path in train.extras["images"])
    assert set(split.items["image"][0]) == {"image", "id"}


def test_a_source_travels_to_workers(folder):
    source = open_folder(folder)
    copy = pickle.loads(pickle.dumps(source.train))
    np.testing.assert_array_equal(copy[4]["image"], source.train[4]["image"])
    batch = next(make_loader(source.train, 4, 0))
    assert batch["image"].shape == (4, 16, 16, 3) and batch["text"].shape == (4, 10)


def test_a_corrupt_training_image_is_named_skipped_and_counted(folder, warnings):
    (folder / "images" / "b.jpg").write_bytes(b"no image")
    source = open_folder(folder)
    loader = make_loader(source.train, 9, 0, shuffle=False, num_epochs=2)
    first, second = list(loader)
    assert first["id"].tolist() == [0] * 5 + [2] * 4  # the example after it takes its place
    np.testing.assert_array_equal(first["text"][5], first["text"][6])
    np.testing.assert_array_equal(first["image"], second["image"])
    assert len(warnings) == 1 and re.search(r"b.jpg cannot be read.*skipped.*1 so far", warnings[0])
    assert source.train.unreadable == {1}
    with pytest.raises(ValueError, match=r"b.jpg cannot be read"):
        list(make_loader(open_folder(folder, strict=True).train, 9, 0))
    for name in ("a.jpg", "c.png"):
        (folder / "images" / name).write_bytes(b"")
    with pytest.raises(ValueError, match="None of the 3 training images"):
        open_folder(folder).train[0]


def test_a_corrupt_gallery_image_counts_as_black(folder, warnings):
    (folder / "images" / "e.jpg").write_bytes(b"no image")
    images = open_folder(folder).retrieval("test").items["image"]
    assert not images[0]["image"].any() and not images[0]["image"].any()
    assert len(warnings) == 1 and re.search(r"e.jpg cannot be read.*black image", warnings[0])
    with pytest.raises(ValueError, match=r"e.jpg cannot be read"):
        open_folder(folder, strict=True).retrieval("test").items["image"][0]


@pytest.mark.parametrize("name", ["split.json", "captions.txt", "images/a.jpg"])
def test_missing_files_are_named_with_the_way_to_get_them(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError) as raised:
        open_folder(folder)
    message = str(raised.value)
    assert str(folder / name) in message and "python -m jcmr.prepare" in message
    assert "https://" in message


@pytest.mark.parametrize(
    "line, message",
    [
        (b"a.jpg#9\t \n", r"captions.txt, line 14: the caption has no words"),
        (b"a.jpg\ta dog\n", r"line 14: expected `name#k<TAB>caption`"),
        (b"a.jpg#9 a dog\n", r"line 14: expected `name#k<TAB>caption`"),
        (b"a.jpg#0\ta dog\n", r"line 14: caption 0 of a.jpg is there twice"),
        (b"a.jpg#9\tcaf\xe9\n", r"captions.txt, line 14: byte 12 is not UTF-8"),
    ],
)
def test_bad_caption_lines_are_named(folder, line, message):
    with (folder / "captions.txt").open("ab") as file:
        file.write(line)
    with pytest.raises(ValueError, match=message):
        open_folder(folder)


@pytest.mark.parametrize(
    "split, message",
    [
        ("{", "split.json is not JSON"),
        (json.dumps({"train": ["a.jpg"]}), 'split.json holds no list "dev"'),
        (json.dumps(SPLIT | {"test": ["a.jpg"]}), r"a.jpg is in train and again in test"),
        (json.dumps(SPLIT | {"train": ["z.jpg"]}), r"captions.txt has no caption of z.jpg"),
    ],
)
def test_bad_splits_are_named(folder, split, message):
    (folder / "split.json").write_text(split)
    with pytest.raises(ValueError, match=message):
        open_folder(folder)
    with pytest.raises(ValueError, match="has no split 'val'; it has train, dev, test"):
        (folder / "split.json").write_text(json.dumps(SPLIT))
        open_folder(folder).retrieval("val")


def test_options_are_checked_and_shared_ones_let_through(folder):
    open_folder(folder, source="captioned_folder", workers=2, crop_size=14, erasing_rate=0.2)
    with pytest.raises(ValueError, match=r"no option 'max_word'; did you mean 'max_words'\?"):
        open_folder(folder, max_word=3)


def test_a_given_vocabulary_is_used(folder):
    text.save_vocabulary(folder / "v.json", text.build_vocabulary([["picture", "zebra"]]))
    source = open_folder(folder, vocabulary=str(folder / "v.json"))
    assert source.info == {"vocab_size": 6}
    assert set(np.unique(source.train[0]["text"])) == {0, text.START, text.END, text.UNK, 4}


def write_precomp(root, split, features, captions):
    np.save(root / f"{split}_ims.npy", features)
    (root / f"{split}_caps.txt").write_text("".join(f"{caption}\n" for caption in captions))


@pytest.fixture
def features(tmp_path):
    """Frozen features of 4, 2 and 3 images with 5 captions each."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 4), ("dev", 2), ("test", 3)):
        captions = [f"{split} {i} caption {k} ." for i in range(n) for k in range(5)]
        write_precomp(tmp_path, split, rng.random((n, 6, 8), np.float32), captions)
    (tmp_path / "test_ids.txt").write_text("x.jpg\ny.jpg\nz.jpg\n")
    return tmp_path


def open_features(root, **options):
    return precomp.make({"dir": str(root), "max_words": 8} | options)


def test_features_come_with_their_captions(features):
    source = open_features(features)
    array = np.load(features / "train_ims.npy")
    assert source.info == {
        "vocab_size": len(source.vocabulary),
        "num_regions": 6,
        "feature_dim": 8,
    }
    assert len(source.train) == 20
    batch = next(make_loader(source.train, 20, 0))
    np.testing.assert_array_equal(batch["regions"], array[batch["id"]])
    for image, ids in zip(batch["id"], batch["text"]):
        assert f"train {image} caption" in words(source, ids)
    one = source.train[7]
    assert one["id"] == 1 and one["regions"].shape == (6, 8) and one["text"].shape == (8,)
    five = open_features(features, captions_per_item=5).train
    assert len(five) == 4 and five[2]["text"].shape == (5, 8)


def test_feature_galleries(features):
    split = open_features(features).retrieval("test")
    own = split.relevance["own"]
    assert own.match(own.rows, own.columns).sum(1).tolist() == [5, 5, 5]
    assert split.extras["names"] == ["x.jpg", "y.jpg", "z.jpg"]
    assert split.extras["captions"][5] == "test 1 caption 0 ."
    np.testing.assert_array_equal(
        take(split.items["image"], np.asarray([2, 0]))["regions"],
        np.load(features / "test_ims.npy")[[2, 0]],
    )


def test_one_row_a_caption_repeated_or_not(features):
    array = np.load(features / "test_ims.npy")
    captions = (features / "test_caps.txt").read_text().splitlines()
    write_precomp(features, "testall", array.repeat(5, axis=0), captions)
    split = open_features(features).retrieval("testall")
    assert len(split.items["image"]) == 3 and len(split.items["text"]) == 15
    np.testing.assert_array_equal(split.items["image"][2]["regions"], array[2])
    write_precomp(features, "pairs", np.random.rand(15, 6, 8).astype(np.float32), captions)
    split = open_features(features).retrieval("pairs")
    assert len(split.items["image"]) == 15
    np.testing.assert_array_equal(split.relevance["own"].columns, np.arange(15))


def test_flat_features_and_the_other_file_name(features):
    for split, n in (("train", 4), ("dev", 2)):
        np.save(features / f"{split}_feat.npy", np.ones((n, 8), np.float16))
        (features / f"{split}_ims.npy").unlink()
    source = open_features(features)
    assert source.info["num_regions"] == 1 and source.train[0]["regions"].shape == (1, 8)
    assert source.train[0]["regions"].dtype == np.float32


def test_a_memory_map_is_not_pickled(features):
    source = open_features(features)
    source.train[0]
    content = pickle.dumps(source.train.images)
    assert len(content) < 500
    np.testing.assert_array_equal(
        pickle.loads(content)[1]["regions"], source.train.images[1]["regions"]
    )


def test_damaged_feature_files_are_named(features, warnings):
    path = features / "dev_ims.npy"
    whole, source = path.read_bytes(), open_features(features)
    for content in (whole[:200], whole[:40], b"", b"no array at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"dev_ims.npy \(\d+ bytes\) is cut off or no .npy"):
            source.retrieval("dev")
    for array, message in (
        (np.ones((2, 6, 9), np.float32), r"width\] \(6, 9\).*train_ims.npy.*\(6, 8\)"),
        (
            np.ones((3, 6, 8), np.float32),
            "has 3 rows and .*dev_caps.txt has 10 captions; expected 15",
        ),
        (np.ones((2, 6, 8), np.int64), r"holds int64 \(2, 6, 8\)"),
        (np.ones(2, np.float32), r"holds float32 \(2,\)"),
    ):
        np.save(path, array)
        with pytest.raises(ValueError, match=f"dev_ims.npy.*{message}"):
            source.retrieval("dev")
    array = np.ones((2, 6, 8), np.float32)
    array[1, 3, 2] = np.nan
    np.save(path, array)
    images = source.retrieval("dev").items["image"]
    images[0]
    with pytest.raises(ValueError, match=r"dev_ims.npy, row 1: a feature is NaN"):
        images[1]
    array[1, 3] = 0
    np.save(path, array)
    images = source.retrieval("dev").items["image"]
    assert not images[1]["regions"][3].any() and images[1]
    assert len(warnings) == 1 and "dev_ims.npy, row 1: region 3 is all zero" in warnings[0]


def test_bad_captions_of_features_are_named(features):
    path = features / "train_caps.txt"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\n", *lines[3:]]))
    with pytest.raises(ValueError, match=r"train_caps.txt, line 3: the caption has no words"):
        open_features(features)
    path.write_bytes(b"".join([*lines[:2], b"caf\xe9\n", *lines[3:]]))
    with pytest.raises(ValueError, match=r"train_caps.txt, line 3: byte 4 is not UTF-8"):
        open_features(features)
    path.write_bytes(b"".join(lines))
    (features / "test_ids.txt").write_text("x.jpg\n")
    with pytest.raises(ValueError, match=r"test_ids.txt has 1 names for 3 rows"):
        open_features(features).retrieval("test")


@pytest.mark.parametrize("name", ["train_ims.npy", "train_caps.txt"])
def test_missing_features_are_named_with_the_way_to_get_them(features, name):
    (features / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}.*python -m jcmr.prepare precomp"):
        open_features(features)


def test_protocols_cut_the_test_split_into_folds(features):
    protocols = (("whole", 1), ("thirds", 3))
    split = open_features(features, test_protocols=protocols).retrieval("test")
    images, captions = split.extras["protocols"]["thirds"]
    assert images.tolist() == [0, 1, 2] and captions.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert not split.extras["protocols"]["whole"][0].any()
    dev = open_features(features, test_protocols=protocols, test_files="dev")
    assert "protocols" not in dev.retrieval("dev").extras
    with pytest.raises(ValueError, match=r"the 2 images of .*dev_ims.npy into 3 folds \(thirds\)"):
        dev.retrieval("test")
