"""Questions about scenes: the world they are about, and their groups by picture."""

import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.data.questions import Answers, Asked, all_groups, draw_groups, picture_ids
from jcmr.data.records import Arrays, take
from jcmr.data.scenes import questions as made
from jcmr.data.scenes import world
from jcmr.data.sources import scenes_cards, scenes_vqa
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
