"""What a reader looks up: captions of a state of knowledge, nearest to its pictures."""

import numpy as np
import pytest

from jcmr.core import parallel
from jcmr.core.types import Knowledge, QuestionSplit
from jcmr.data.records import Arrays
from jcmr.serve import knowledge


class Sayings:
    """A retriever whose pictures and captions are numbers on a circle."""

    fingerprint = "sayings"

    def __init__(self, folder, batch_size, mesh):
        pass

    def angle(self, values):
        values = np.asarray(values, np.float32)
        return np.stack([np.cos(values), np.sin(values)], axis=1)

    def captions(self, captions):
        return self.angle([float(caption) for caption in captions])

    questions = captions

    def pictures(self, examples):
        return self.angle(examples.picture_ids / 10)

    def vectors(self, items, modality):
        assert modality == "image"
        return items.columns["image"][:, None].astype(np.float32)


class Numbered:
    """Questions about pictures 0 to 5, answered by captions that say a number."""

    answers = ("low", "high")
    answer_text = np.asarray([[1], [2]], np.int32)
    info = {"num_answers": 2}
    vocabulary = {"low": 1, "high": 2}

    def __init__(self):
        self.pictures = Arrays({"image": np.arange(4) * 10})
        self.train = Arrays({"question": np.arange(6)[:, None]})
        self.train.picture_ids = np.arange(6)
        self.train_knowledge = {"a": (np.arange(0, 6, 2), np.full((3, 1), 1))}

    def knowledge(self, name):
        numbers = {"a": [-0.05, 0.1, 0.2, 0.29], "b": [0.4, 0.5, 0.31, 0.2]}[name]
        return Knowledge([str(x) for x in numbers], np.asarray([0, -1, 2, -1]), self.pictures)

    def tokenize(self, captions):
        return np.asarray([[1 + round(10 * float(c)), 0] for c in captions], np.int32)

    def questions(self, split):
        truth = Arrays({"answer": np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0, 1]]})
        oracle = np.full((6, 1), 3)
        groups = {"all": np.ones(6, bool)}
        kinds = np.asarray(["k"] * 6)
        return QuestionSplit(
            split, self.train, kinds, groups, {"a": truth, "b": truth}, {"a": oracle}
        )


@pytest.fixture
def library(tmp_path, monkeypatch):
    from ml_collections import ConfigDict

    monkeypatch.setattr(knowledge, "Retriever", Sayings)
    config = ConfigDict({"retriever": "", "lookup": {"num": 2}})
    return knowledge.Library(config, tmp_path, tmp_path, Numbered(), parallel.make_mesh())


def test_captions_are_looked_up_and_swapped(library):
    split = library.questions("test")
    found = library.look_up(split, "a")
    # Caption 0 was written for picture 0, caption 2 for picture 2: neither finds its own.
    assert found.hits.rows[:4].tolist() == [[1, 2], [1, 2], [3, 1], [3, 2]]
    batch = found.take(np.asarray([2, 3]))
    assert batch["retrieved"].tolist() == [[[4, 0], [2, 0]], [[4, 0], [3, 0]]]
    np.testing.assert_allclose(batch["retrieved_score"][0], np.cos([0.09, 0.1]), atol=1e-6)
    assert library.index.live.generation == 0
    swapped = library.look_up(split, "b")
    assert swapped.hits.rows[5].tolist() == [1, 0] and len(library.swaps) == 1
    again = library.look_up(split, "a")
    for mine, theirs in zip(found.hits, again.hits):
        np.testing.assert_array_equal(mine, theirs)
    none = library.look_up(split, "no_retrieval")[0]
    assert not none["retrieved"].any() and not none["retrieved_score"].any()
    assert library.look_up(split, "oracle").hits.rows.tolist() == [[3, -1]] * 6
    others = library.look_up(split, "random").hits.rows
    assert sorted(others.tolist()) == sorted(found.hits.rows.tolist())


def test_questions_are_looked_up_with_their_pictures(library):
    """Picture i lies at i / 10, each question at 0.5: what is looked up lies between the two."""
    library.options = library.options._replace(question_weight=1.0)
    library.source.vocabulary = {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "0.5": 4}
    split = library.questions("test")
    split.examples.text = np.asarray([[1, 4, 2, 0]] * 6)
    found = library.look_up(split, "a").hits
    assert found.rows[:3].tolist() == [[3, 2], [3, 2], [3, 1]]
    np.testing.assert_allclose(found.scores[0], np.cos([0.04, 0.05]), atol=1e-6)
    library.options = library.options._replace(question_weight=0.5)
    expected = np.asarray([1 + 0.5 * np.cos(0.5), 0.5 * np.sin(0.5)])
    found = library.queries(split.examples)[0]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)


def test_pictures_of_captions_come_along(library):
    library.options = library.options._replace(pictures=True)
    batch = library.look_up(library.questions("test"), "a").take(np.asarray([2]))
    assert batch["retrieved_vector"].tolist() == [[[30.0], [10.0]]]
    assert not library.look_up(library.questions("test"), "oracle")[0]["retrieved_vector"][1].any()
    with pytest.raises(ValueError, match=r"lookup.pictures is True, but .* have no pictures"):
        library.picture_vectors(None)


def test_training_questions_are_looked_up_once(library, monkeypatch):
    first = library.train
    assert first.hits.rows.tolist() == [[1, 2], [-1, -1], [3, 1], [-1, -1], [3, 2], [-1, -1]]
    monkeypatch.setattr(library, "find", None)  # a second time they come from the disk
    del library.__dict__["train"]
    np.testing.assert_array_equal(library.train.hits.rows, first.hits.rows)


def test_lookup_options_are_checked():
    with pytest.raises(ValueError, match="mode is 'always'; it can be retrieved, none"):
        knowledge.read_options({"mode": "always"})
    with pytest.raises(ValueError, match=r"config.lookup has no option 'k'"):
        knowledge.read_options({"k": 3})


def test_a_retriever_must_be_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no --workdir of a run"):
        knowledge.Retriever(tmp_path, 8, parallel.make_mesh())
