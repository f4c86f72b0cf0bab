"""Questions: the world they are about, the public layouts, what is looked up, what is measured."""

import json

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from PIL import Image

from jcmr.core import parallel
from jcmr.core.types import Knowledge, QuestionSplit, Task
from jcmr.data.questions import Answers, Asked, all_groups, draw_groups, picture_ids
from jcmr.data.records import Arrays, take
from jcmr.data.scenes import questions as made
from jcmr.data.scenes import world
from jcmr.data.sources import easy_vqa, scenes_cards, scenes_vqa, vqa2
from jcmr.eval import report_answers, vqa
from jcmr.losses.ranking import hinge_terms
from jcmr.losses.targets import batch_sides, pair_targets
from jcmr.serve import knowledge

SMALL = {"num_train": 40, "num_test": 60, "num_distractors": 30, "num_worlds": 2}


def test_facts_are_balanced_and_worlds_agree_by_chance_alone():
    a, b = made.facts(0, 0), made.facts(0, 1)
    for relation, mine, other in zip(made.RELATIONS.values(), a, b):
        num = len(relation.values)
        counts = np.bincount(mine, minlength=num)
        assert counts.max() - counts.min() <= 1
        assert abs((mine == other).mean() - 1 / num) < 4 * (1 / num / world.NUM_ENTITIES) ** 0.5
    assert len(made.ANSWERS) == len(set(made.ANSWERS)) == 64


def test_no_entity_is_in_two_pools():
    pools = made.pools(0)
    assert sorted(np.concatenate(list(pools.values()))) == list(range(world.NUM_ENTITIES))
    assert [len(pool) for pool in pools.values()] == [224, 32, 64]


def test_cards_of_two_worlds_differ_in_the_answer_alone():
    a, b, masked = (made.cards(0, number) for number in (0, 1, made.MASKED))
    assert len(a) == made.NUM_CARDS
    values = {value for relation in made.RELATIONS.values() for value in relation.values}
    changed = 0
    for row in range(0, made.NUM_CARDS, 7):
        words = [text[row].split() for text in (a, b, masked)]
        differ = [i for i, triple in enumerate(zip(*words)) if len(set(triple)) > 1]
        (place,) = differ
        assert words[0][place] in values and words[2][place] == made.MASK
        changed += words[0] != words[1]
    assert 0.85 < changed / len(range(0, made.NUM_CARDS, 7)) < 0.97


@pytest.mark.parametrize("track", ["solo", "multi"])
def test_questions_are_true(track):
    """Each question is checked against its scene and the facts of both worlds."""
    chosen = made.TRACKS[track]
    pool = made.pools(0)["test"]
    known = [made.facts(0, number) for number in (0, 1)]
    pairs, cards = made.Pairs(pool, known), [made.cards(0, number) for number in (0, 1)]
    same = []
    for index in range(600):
        (question,) = made.sample_questions(made.generator(1, 2, index), pairs, known, chosen)
        attributes = question.scene.attributes
        entities = made.entity_id(*attributes[:, :3].T)
        assert set(entities) <= set(pool)
        words = question.text.split()
        if question.kind == "K_same":
            uses = [facts[1, entities] for facts in known]
            same.append(question.answers)
            assert question.answers == tuple("yes" if u[0] == u[1] else "no" for u in uses)
            assert {int(e) for e in made.card_entity(np.asarray(question.oracle))} == {
                int(e) for e in entities[:2]
            }
        elif question.kind.startswith("K"):
            number = list(made.RELATIONS).index(question.kind.removeprefix("K_"))
            values = list(made.RELATIONS.values())[number].values
            for facts, answer, texts in zip(known, question.answers, cards):
                assert answer == values[facts[number, entities[0]]]
                assert all(answer in texts[row].split() for row in question.oracle)
            if len(entities) > 1:  # what is said of the object is true of no other
                said = set(words)
                named = [
                    {world.SHAPES[s], list(world.COLOURS)[c], world.TEXTURES[t]}
                    for s, c, t, _ in attributes
                ]
                every = set(world.SHAPES) | set(world.COLOURS) | set(world.TEXTURES)
                assert [said & every <= names for names in named] == [True] + [False] * (
                    len(entities) - 1
                )
        elif question.kind == "V_count":
            assert question.answers == (str(len(entities)),) * 2
        elif question.kind == "V_exist":
            colour, shape = words[-2:]
            there = any(
                world.SHAPES[s] == shape and list(world.COLOURS)[c] == colour
                for s, c, _, _ in attributes
            )
            assert question.answers == ("yes" if there else "no",) * 2
    if track == "multi":
        counts = [same.count(pair) / len(same) for pair in set(same)]
        assert len(counts) == 4 and max(abs(c - 0.25) for c in counts) < 0.15
    vocabulary = scenes_vqa.vocabulary()
    assert {word for text in cards[0] for word in text.split()} <= set(vocabulary)


def test_items_do_not_depend_on_order():
    arguments = 3, 20, tuple(range(50)), 2, "solo", 3
    whole = scenes_vqa.make_items(0, 12, *arguments)
    for first, last in ((6, 12), (0, 6)):
        part = scenes_vqa.make_items(first, last, *arguments)
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][first:last])


def test_scenes_as_questions_and_as_cards(tmp_path):
    options = {**SMALL, "cache_dir": str(tmp_path)}
    source, cards = scenes_vqa.make(options), scenes_cards.make(options)
    split = source.questions("test")
    assert sum(chosen.sum() for chosen in split.groups.values()) == len(split.examples) == 120
    state = source.knowledge("index_a")
    assert len(state.captions) == made.NUM_CARDS + 30
    a, b = (np.stack([truth[i]["answer"] for i in range(120)]) for truth in split.truths.values())
    assert (a == b)[split.groups["visual"]].all() and not (a == b)[split.groups["held_out"]].all()
    rows = np.concatenate([rows for rows, _ in source.train_knowledge.values()])
    assert sorted(rows) == list(range(40))
    # A card fits its picture; other captions belong to no picture, whatever they say.
    batch = cards.train.take(np.arange(40))
    sides = batch_sides({name: jnp.asarray(x) for name, x in batch.items()}, None)
    targets = pair_targets(*sides, "masked", mask_true_positives=True)
    positive, valid = np.asarray(targets.positive), np.asarray(targets.valid)
    assert (positive[:, ::3] == np.eye(40)).all() and positive[:, 1::3].sum() == 0
    assert valid[:, 1::3].all() and valid[:, 2::3].all()
    shown = world.Scene(*made.known_scene(0, 6 * 40 + 3, made.TRACKS["solo"].look))
    assert made.entity_id(*shown.attributes[0, :3]) == 40
    assert state.pictures == source.knowledge("swapped_b").pictures
    assert state.pictures[made.NUM_CARDS]["image"].shape == (32, 32, 3)
    with pytest.raises(ValueError, match="belong to no image"):
        hinge_terms(jnp.zeros((40, 120)), batch, None, True, None)
    retrieval = cards.retrieval("test")
    relation = retrieval.relevance["card"]
    match = np.asarray(relation.match(relation.rows, relation.columns))
    assert (match.sum(axis=1) == 6).all() and not match[:, made.NUM_CARDS :].any()
    with pytest.raises(ValueError, match="track is 'duo'; it can be solo or multi"):
        scenes_vqa.make({"track": "duo"})
    with pytest.raises(ValueError, match="num_worlds is 0"):
        scenes_vqa.make({"num_worlds": 0})


def test_scenes_with_several_questions(tmp_path):
    """They share a picture and its world, and the first is what it is without the others."""
    options = {**SMALL, "cache_dir": str(tmp_path)}
    one, three = (scenes_vqa.make({**options, "num_questions": num}) for num in (1, 3))
    train = three.train
    assert len(train) == 120 and train.picture_ids.tolist() == [i // 3 for i in range(120)]
    np.testing.assert_array_equal(one.questions("dev").texts, three.questions("dev").texts)
    words = {number: word for word, number in three.vocabulary.items()}
    for name, (rows, oracle) in three.train_knowledge.items():
        assert {i // 3 % 2 for i in rows} == {int(name[-1])}
        captions = three.knowledge(name).captions
        for row, cards in zip(rows, oracle):
            answer = words[three.answer_text[train[row]["answer"].argmax(), 0]]
            assert all(answer in captions[card].split() for card in cards[cards >= 0])
    with pytest.raises(ValueError, match="num_questions is 0; one is the least"):
        scenes_vqa.make({"num_questions": 0})


def test_groups_of_questions():
    ids = np.random.default_rng(0).permutation(np.repeat(np.arange(9) * 7, np.arange(1, 10)))
    drawn = [draw_groups(ids, 4, 0, epoch) for epoch in range(9)]
    np.testing.assert_array_equal(drawn[3], draw_groups(ids, 4, 0, 3))
    for rows in drawn:
        assert rows.shape == (9, 4) and sorted(ids[rows[:, 0]]) == list(np.arange(9) * 7)
        assert (ids[rows] == ids[rows[:, :1]]).all()
        counts = [len(set(row)) for row in rows[np.argsort(ids[rows[:, 0]])]]
        assert counts == [1, 2, 3, 4, 4, 4, 4, 4, 4]
    assert len(np.unique(drawn)) == len(ids)  # all are seen some time
    rows = all_groups(ids, 4)
    assert (ids[rows] == ids[rows[:, :1]]).all() and len(np.unique(rows)) == len(ids)
    assert len(rows) == sum(-(-num // 4) for num in range(1, 10))
    assert all_groups(np.asarray([5, 3, 4]), 4).tolist() == [[1], [2], [0]]


def test_groups_are_checked():
    with pytest.raises(ValueError, match="group is -1; a picture has at least one question"):
        draw_groups(np.zeros(2), -1, 0, 0)
    with pytest.raises(ValueError, match=r"config.data.group .* this data does not have"):
        picture_ids(Arrays({}))


def test_a_group_reads_its_picture_once():
    """The columns of single questions, reshaped, but for the picture."""
    pictures = Arrays({"image": np.arange(3)})
    people = Answers(np.asarray([[0, 1, -1], [1, 1, 1], [0, -1, -1], [2, 2, 0], [1, 0, 0]]), 2)
    asked = Asked(pictures, np.asarray([2, 2, 0, 2, 0]), np.arange(5), np.eye(5), people)
    rows = np.asarray([[0, 3, 1], [4, 2, 4]])
    hits = knowledge.Hits(np.asarray([[3, 0], [1, -1], [2, 1], [0, 1], [1, 2]]), np.eye(5)[:, :2])
    columns = {"retrieved": np.arange(24).reshape(2, 4, 3)}
    examples = knowledge.WithCaptions(asked, hits, columns, np.asarray([0, 1, 1, 0, 1]))
    found, single = take(examples, rows), take(examples, rows.reshape(-1))
    assert found["image"].tolist() == [2, 0]
    for name in ("question", "answer", "retrieved", "retrieved_score"):
        shape = 2, 3, *single[name].shape[1:]
        np.testing.assert_array_equal(found[name], single[name].reshape(shape))


def write_easy(root, questions=None):
    (root / "answers.txt").write_text("yes\nno\nred\ncircle\n")
    for part, num in (("train", 12), ("test", 4)):
        (root / part / "images").mkdir(parents=True)
        asked = [["is there a circle?", ("yes", "no")[i % 2], i] for i in range(num)]
        asked += [["what color is the shape?", "red", i] for i in range(num)]
        (root / part / "questions.json").write_text(json.dumps(questions or asked))
        for i in range(num):
            pixels = np.full((16, 16, 3), i, np.uint8)
            Image.fromarray(pixels).save(root / part / "images" / f"{i}.png")


def test_easy_vqa_in_its_public_layout(tmp_path):
    write_easy(tmp_path)
    source = easy_vqa.make({"dir": str(tmp_path), "dev_rate": 0.25})
    train, dev, test = source.train, source.questions("dev"), source.questions("test")
    assert (len(train), len(dev.examples), len(test.examples)) == (18, 6, 8)
    assert not set(train.picture_ids) & set(dev.examples.picture_ids)
    assert sorted(set(test.kinds)) == ["colour", "yes_no"]
    example = train[0]
    assert example["image"][0, 0, 0] == train.picture_ids[0] and example["answer"].sum() == 1
    words = {number: word for word, number in source.vocabulary.items()}
    said = [words[i] for i in example["question"] if i > 2]
    assert " ".join(said) in ("is there a circle ?", "what color is the shape ?")
    assert [words[i] for i in source.answer_text[:, 0]] == ["yes", "no", "red", "circle"]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda root: (root / "answers.txt").unlink(), "answers.txt. easy-VQA is MIT-licensed"),
        (lambda root: (root / "answers.txt").write_text("yes\nyes\n"), "every answer once"),
        (lambda root: (root / "train/questions.json").unlink(), "git clone"),
        (lambda root: (root / "train/questions.json").write_text("[[1"), "no whole JSON"),
        (lambda root: (root / "test/questions.json").write_text("{}"), "must be a list"),
        (
            lambda root: (root / "test/questions.json").write_text('[["a?", "yes", "1"]]'),
            r"entry 0: expected \[question, answer, image id\]",
        ),
        (
            lambda root: (root / "test/questions.json").write_text('[["a?", "maybe", 1]]'),
            "'maybe' is not in answers.txt",
        ),
        (lambda root: (root / "test/images/3.png").unlink(), "3.png, though questions"),
        (lambda root: (root / "test/images/3.png").write_bytes(b"x"), "3.png cannot be read"),
    ],
)
def test_easy_vqa_says_what_is_wrong(harm, words, tmp_path):
    write_easy(tmp_path)
    harm(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError), match=words):
        easy_vqa.make({"dir": str(tmp_path)})


def test_missing_data_is_named():
    for source, words in ((easy_vqa, "easy-VQA"), (vqa2, "visualqa.org")):
        with pytest.raises(FileNotFoundError, match=f"config.data.dir is not set.*{words}"):
            source.make({})


def write_vqa2(root):
    """Two pictures to train on, one held out, one to test; the official fields and more."""
    for part, pictures in (("train2014", [9, 25, 30]), ("val2014", [42])):
        questions, notes = [], []
        for picture in pictures:
            for k in range(2):
                key = picture * 1000 + k
                text = ("What color is it?", "How many?")[k]
                questions.append({"image_id": picture, "question": text, "question_id": key})
                people = (["red"] * 7 + ["Dark  Red"] * 2 + ["odd"], ["2"] * 10)[k]
                notes.append(
                    {
                        "question_id": key,
                        "image_id": picture,
                        "question_type": "what",
                        "answer_type": ("other", "number")[k],
                        "multiple_choice_answer": ("red" if picture != 9 else "dark red", "2")[k],
                        "answers": [
                            {"answer": a, "answer_confidence": "yes", "answer_id": i + 1}
                            for i, a in enumerate(people)
                        ],
                    }
                )
        name = root / f"v2_OpenEnded_mscoco_{part}_questions.json"
        name.write_text(json.dumps({"license": {}, "questions": questions}))
        (root / f"v2_mscoco_{part}_annotations.json").write_text(json.dumps({"annotations": notes}))
        values = np.asarray(pictures, np.float16)[::-1, None, None] * np.ones((1, 3, 5), np.float16)
        np.save(root / f"{part}.npy", values)
        (root / f"{part}_ids.txt").write_text("".join(f"{i}\n" for i in pictures[::-1]))
    captions = [
        {"image_id": i, "id": i, "caption": f" A red thing {i}."} for i in (9, 25, 25, 42, 77)
    ]
    (root / "captions.json").write_text(json.dumps({"annotations": captions}))


def make_vqa2(root, **options):
    files = {"dir": str(root), "features": str(root), "captions": (str(root / "captions.json"),)}
    return vqa2.make({**files, "dev_rate": 0.34, **options})


def test_vqa2_in_its_official_files(tmp_path):
    write_vqa2(tmp_path)
    source = make_vqa2(tmp_path)
    assert source.answers == ["2", "red", "dark red"]
    test = source.questions("test")
    worth = test.truths["captions"].take(np.arange(2))["answer"]
    np.testing.assert_allclose(worth, [[0, 1, 0.6], [1, 0, 0]], atol=1e-6)
    assert list(test.kinds) == ["other", "number"] and test.texts[1] == "How many?"
    train = source.train
    assert len(train) == 4 and len(source.questions("dev").examples) == 2
    for i in range(4):  # the features of its own picture, though stored in another order
        assert (train[i]["regions"] == train.picture_ids[i]).all()
    state = source.knowledge("captions")
    own = knowledge.own_captions(test.examples, np.arange(2), state)
    assert own == [[3], [3]]
    assert state.captions[3] == "A red thing 42."
    words = {number: word for word, number in source.vocabulary.items()}
    assert [words[i] for i in source.answer_text[2]] == ["dark", "red"]
    assert make_vqa2(tmp_path, num_answers=1).answers == ["2"]


def edit(name, change):
    def harm(root):
        content = json.loads((root / name).read_text())
        change(content)
        (root / name).write_text(json.dumps(content))

    return harm


NOTES = "v2_mscoco_val2014_annotations.json"


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda root: (root / NOTES).unlink(), "VQA 2.0 come from"),
        (lambda root: (root / NOTES).write_text("[]"), "no list 'annotations'"),
        (edit(NOTES, lambda c: c["annotations"][1].pop("answers")), "entry 1: 'answers' is None"),
        (
            edit(NOTES, lambda c: c["annotations"][0].update(question_id=5)),
            "has no question 5",
        ),
        (lambda root: (root / "val2014.npy").unlink(), "Features come from a detector"),
        (lambda root: (root / "val2014.npy").write_bytes(b"x"), "no whole .npy file"),
        (lambda root: (root / "val2014_ids.txt").write_text("41\n"), "lacks 2 pictures"),
        (lambda root: (root / "val2014_ids.txt").write_text("41\n42\n"), "2 ids"),
        (lambda root: (root / "val2014_ids.txt").write_text("x\n"), "line 1: 'x' is no picture id"),
    ],
)
def test_vqa2_says_what_is_wrong(harm, words, tmp_path):
    write_vqa2(tmp_path)
    harm(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError), match=words):
        make_vqa2(tmp_path)


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


class Words:
    answers = ("a", "b", "c", "d", "e")


def test_accuracies_before_and_after_a_swap(tmp_path):
    """A reader that repeats the caption it is given, against counts by hand."""
    rng = np.random.default_rng(0)
    num, v = 23, 5
    truth = rng.integers(0, v, (2, num))
    truth[1, 15:] = truth[0, 15:]  # the last group's answers never change
    said = np.where(rng.random((2, num)) < 0.7, truth, rng.integers(0, v, (2, num)))
    kinds = np.asarray(["x", "y"])[rng.integers(0, 2, num)]
    groups = {"facts": np.arange(num) < 15, "seen": np.arange(num) >= 15}
    one_hot = np.eye(v, dtype=np.float32)
    names = "old", "new"
    truths = {n: Arrays({"answer": one_hot[t]}) for n, t in zip(names, truth)}
    oracle = {name: np.full((num, 1), -1) for name in names}
    split = QuestionSplit("test", Arrays({}), kinds, groups, truths, oracle)

    def look_up(state):
        row = names.index(state) if state in names else None
        given = np.zeros(num, int) if row is None else said[row]
        ids = np.arange(num) // 4 * 5 % 7
        return Asked(Arrays({"image": ids}), ids, ids, given.astype(np.int32))

    split = split._replace(examples=look_up("old"))
    task = Task(
        lambda key, batch: {},
        lambda *_: ({}, {}),
        {
            "question": lambda variables, batch: jnp.eye(v)[batch["question"]],
            "answer": lambda variables, batch: jnp.eye(v)[batch["id"]],
        },
        lambda variables, asked, gallery: asked @ gallery.T,
    )
    evaluate = vqa.make_evaluator(
        task, split, look_up, v, {"batch_size": 8}, lambda b: b, parallel.make_mesh()
    )
    found = evaluate({}).metrics
    right = said == truth
    for group, chosen in groups.items():
        for row, name in enumerate(names):
            assert found[f"{group}/{name}/accuracy"] == pytest.approx(right[row, chosen].mean())
            mine = chosen & (kinds == "x")
            assert found[f"{group}/{name}/x"] == pytest.approx(right[row, mine].mean())
    facts = groups["facts"]
    stale = (said[0] == truth[1])[facts].mean()
    assert found["facts/stale/accuracy"] == pytest.approx(stale)
    moved = facts & (truth[0] != truth[1])
    flipped = (said[1] == truth[1]) & (said[0] != truth[1])
    assert found["facts/flip_rate"] == pytest.approx(flipped[moved].mean())
    assert found["seen/stability"] == pytest.approx((said[0] == said[1])[groups["seen"]].mean())
    assert found["swap/same_logits"] == 1 and found["swap/recompilations"] == 0
    assert found["facts/no_retrieval/accuracy"] == pytest.approx((truth[0] == 0)[facts].mean())
    assert "seen/stale/accuracy" not in found and "facts/stability" not in found
    cfg, mesh = {"batch_size": 8}, parallel.make_mesh()
    args = task, split, look_up, v, cfg, lambda b: b, mesh
    for group in (3, 9):  # fewer and more than a picture has
        assert vqa.make_evaluator(*args, group=group)({}).metrics == found
    alone = vqa.make_evaluator(
        task, split, None, v, {"batch_size": 8}, lambda b: b, parallel.make_mesh()
    )({})
    assert alone.metrics["facts/accuracy"] == pytest.approx(right[0, facts].mean())
    assert not any("swap" in name or "old" in name for name in alone.metrics)
    split = split._replace(texts=["what is it"] * num, examples=Arrays({}))
    report_answers.draw(tmp_path, [], Words(), split, alone)
    assert {path.name for path in tmp_path.iterdir()} == {
        "accuracy.png", "answers.png", "curves.png",
    }  # fmt: skip
    with pytest.raises(ValueError, match="no option 'tile' for questions"):
        vqa.read_options({"tile": 3})


def test_compilations_are_counted():
    with vqa.counted_compilations() as compiled:
        jax.jit(lambda x: x * 3 + 1)(jnp.arange(7))
        assert compiled() >= 1
        before = compiled()
        assert compiled() == before
