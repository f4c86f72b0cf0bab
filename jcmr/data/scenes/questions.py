"""Questions about scenes, and cards of facts that answer those which no picture can.

Facts belong to a world: where each entity comes from, what it is used for, who owns it. They are
drawn at random and balanced, so that to know all answers of one world is no help in another.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jcmr.data.scenes.captions import all_words, pick_word, sample_caption
from jcmr.data.scenes.world import (
    COLOUR,
    COLOURS,
    NUM_ENTITIES,
    PRESETS,
    SHAPE,
    SHAPES,
    TEXTURE,
    TEXTURES,
    Preset,
    Scene,
    entity_attributes,
    generator,
    place,
    sample_scene,
)

PLACES = (
    *("avalon", "brent", "corinth", "delmar", "elba", "fargo"),
    *("goshen", "hilo", "ithaca", "jura", "kano", "lomond"),
)
USES = ("cooking", "mining", "sailing", "weaving", "farming", "music", "healing", "trade")
KEEPERS = (
    *("abe", "bea", "cal", "dot", "eve", "fin", "gus", "hal"),
    *("ida", "jon", "kim", "lou", "mia", "ned", "oda", "pat"),
)


class Relation(NamedTuple):
    """A kind of fact: its values, how cards state it (entity e, answer a), how one asks for it."""

    values: tuple[str, ...]
    cards: tuple[str, ...]
    questions: tuple[str, ...]


RELATIONS = {
    "origin": Relation(
        PLACES,
        ("the {e} comes from {a}", "a {e} made in {a}", "{a} is where the {e} is found"),
        ("where does the {d} come from", "what place is the {d} from"),
    ),
    "use": Relation(
        USES,
        ("the {e} is used for {a}", "a {e} for {a}", "people need the {e} for {a}"),
        ("what is the {d} used for", "what do people do with the {d}"),
    ),
    "keeper": Relation(
        KEEPERS,
        ("the {e} belongs to {a}", "a {e} owned by {a}", "{a} keeps the {e}"),
        ("who owns the {d}", "who keeps the {d}"),
    ),
}
SAME = "are the {d} and the {other} used for the same thing"
COUNT, WHICH_COLOUR, WHICH_SHAPE = (
    "how many objects are there",
    "what color is the object",
    "what shape is the object",
)
EXIST = "is there a {colour} {shape}"
ANSWERS = ("yes", "no", "1", "2", "3", "4", *COLOURS, *SHAPES, *TEXTURES, *PLACES, *USES, *KEEPERS)
KINDS = (
    *(f"K_{relation}" for relation in RELATIONS),
    *("K_same", "V_count", "V_colour", "V_shape", "V_exist"),
)
"""K needs knowledge, V needs nothing but the picture."""
CARDS_PER_FACT = 2
NUM_CARDS = NUM_ENTITIES * len(RELATIONS) * CARDS_PER_FACT
MASK = "<unk>"
"""What stands for every answer in the world `MASKED`."""
MASKED = -1
WORLD, CARD, DISTRACTOR, POOL = 10, 11, 12, 13
"""Streams of random numbers."""
DESCRIPTIONS = (
    (SHAPE,),
    (COLOUR,),
    (TEXTURE,),
    (SHAPE, COLOUR),
    (COLOUR, TEXTURE),
    (SHAPE, TEXTURE),
    (SHAPE, COLOUR, TEXTURE),
)
"""From the shortest."""


class Track(NamedTuple):
    """How hard the pictures and questions are."""

    look: Preset
    min_objects: int
    draw: tuple[str, ...]
    """Kinds of questions, each as likely as it is often there; "K" is any single fact."""


TRACKS = {
    "solo": Track(
        Preset(
            max_objects=1,
            image_size=32,
            small_radius=0.26,
            large_radius=0.32,
            texture_period=0.16,
            drop_rate=0.25,
            vague_noun_rate=0.10,
            keep_one=True,
        ),
        1,
        ("K", "K", "K", "K", "V_colour", "V_shape", "V_exist", "V_exist"),
    ),
    "multi": Track(
        PRESETS["demo"]._replace(max_objects=3),
        2,
        ("K", "K", "K", "K_same", "V_count", "V_exist", "V_exist"),
    ),
}


def facts(seed: int, world: int) -> np.ndarray:
    """The value of each relation for each entity in a world, int [r, NUM_ENTITIES]; balanced."""
    rng = generator(seed, WORLD, world)
    rows = []
    for relation in RELATIONS.values():
        num = len(relation.values)
        rounds = [rng.permutation(num) for _ in range(-(-NUM_ENTITIES // num))]
        rows.append(rng.permutation(np.concatenate(rounds)[:NUM_ENTITIES]))
    return np.stack(rows)


def pools(seed: int, num_test: int = 64, num_dev: int = 32) -> dict[str, np.ndarray]:
    """Entities of training, dev and test, disjoint; each value of each attribute is in training."""
    rng = generator(seed, POOL, 0)
    while True:
        order = rng.permutation(NUM_ENTITIES)
        test, dev, train = np.split(order, [num_test, num_test + num_dev])
        seen = entity_attributes(train)
        if all(
            len(np.unique(seen[:, kind])) == len(names)
            for kind, names in ((SHAPE, SHAPES), (COLOUR, COLOURS), (TEXTURE, TEXTURES))
        ):
            return {"train": np.sort(train), "dev": np.sort(dev), "test": np.sort(test)}


def full_name(rng: np.random.Generator, entity: int) -> str:
    """Texture, colour and shape of an entity, in any of their synonyms."""
    shape, colour, texture = entity_attributes(np.asarray(entity))
    words = TEXTURES[texture], tuple(COLOURS)[colour], SHAPES[shape]
    return " ".join(pick_word(rng, word) for word in words)


def entity_id(shape: Any, colour: Any, texture: Any) -> Any:
    """The entity of these attributes, integers or arrays of them; undoes `entity_attributes`."""
    return (np.int64(shape) * len(COLOURS) + colour) * len(TEXTURES) + texture


def card_row(entity: int, relation: int) -> int:
    """The first of the `CARDS_PER_FACT` rows of a fact among the cards."""
    return (entity * len(RELATIONS) + relation) * CARDS_PER_FACT


def card_entity(row: np.ndarray) -> np.ndarray:
    """The entity of a card, -1 of what follows the cards."""
    entity = row // (len(RELATIONS) * CARDS_PER_FACT)
    return np.where(row < NUM_CARDS, entity, -1)


def cards(seed: int, world: int) -> list[str]:
    """The `NUM_CARDS` cards of a world. Worlds differ in nothing but the answers."""
    known = None if world == MASKED else facts(seed, world)
    texts = []
    for entity in range(NUM_ENTITIES):
        for number, relation in enumerate(RELATIONS.values()):
            rng = generator(seed, CARD, entity, part=number)
            answer = MASK if known is None else relation.values[known[number, entity]]
            for template in rng.choice(len(relation.cards), CARDS_PER_FACT, replace=False):
                texts.append(relation.cards[template].format(e=full_name(rng, entity), a=answer))
    return texts


def any_card(rng: np.random.Generator, entity: int) -> str:
    """A card of an entity with any fact, true in some world."""
    relation = tuple(RELATIONS.values())[rng.integers(len(RELATIONS))]
    template = relation.cards[rng.integers(len(relation.cards))]
    answer = relation.values[rng.integers(len(relation.values))]
    return template.format(e=full_name(rng, entity), a=answer)


def distractor(seed: int, index: int, look: Preset) -> tuple[Scene, str]:
    """A scene and an ordinary caption of it, which states no fact."""
    rng = generator(seed, DISTRACTOR, index)
    scene = sample_scene(rng, look.max_objects)
    return scene, sample_caption(rng, scene, look).text


def known_scene(seed: int, row: int, look: Preset) -> Scene:
    """What the picture of a card shows, its entity alone; after the cards come the distractors."""
    if row >= NUM_CARDS:
        return distractor(seed, row - NUM_CARDS, look)[0]
    entity = card_entity(np.asarray([row]))
    return place(generator(seed, CARD, row, part=len(RELATIONS)), entity, look.max_objects == 1)


def describe(attributes: np.ndarray, index: int) -> str:
    """The shortest words that tell object `index` of attributes [n, 4] from the others."""
    if len(attributes) == 1:
        return "object"
    for kinds in DESCRIPTIONS:
        alike = (attributes[:, list(kinds)] == attributes[index, list(kinds)]).all(axis=1)
        if alike.sum() == 1:
            break
    shape, colour, texture, _ = attributes[index]
    words = [TEXTURES[texture]] if TEXTURE in kinds else []
    words += [tuple(COLOURS)[colour]] if COLOUR in kinds else []
    return " ".join([*words, SHAPES[shape] if SHAPE in kinds else "object"])


class Question(NamedTuple):
    """A question about a scene, and its answer in each of the worlds it was made for."""

    kind: str
    text: str
    answers: tuple[str, ...]
    scene: Scene
    oracle: tuple[int, ...]
    """Rows of the cards that answer it; none where the picture does."""


class Pairs:
    """Pairs of a pool's entities by whether their use is the same, in each of the worlds."""

    def __init__(self, pool: np.ndarray, known: Sequence[np.ndarray]):
        self.pool = pool
        same = [uses[pool][:, None] == uses[pool] for _, uses, _ in known]
        different = ~np.eye(len(pool), dtype=bool)
        self.groups = [
            np.argwhere(np.logical_and.reduce([different, *(s == v for s, v in zip(same, value))]))
            for value in itertools.product((False, True), repeat=len(same))
        ]
        """One for each combination over worlds; a question first draws which."""

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A pair of entities [2]."""
        groups = [group for group in self.groups if len(group)]
        group = groups[rng.integers(len(groups))]
        return self.pool[group[rng.integers(len(group))]]


def sample_questions(
    rng: np.random.Generator,
    pairs: Pairs,
    known: Sequence[np.ndarray],
    track: Track,
    num: int = 1,
) -> list[Question]:
    """Draws kinds, a scene of entities of the pool, and questions about it.

    Args:
      rng: decides all but the answers.
      pairs: of the pool.
      known: the facts of each world to answer in.
      track: how hard it is.
      num: how many questions.
    """
    kinds = [track.draw[rng.integers(len(track.draw))] for _ in range(num)]
    n = int(rng.integers(track.min_objects, track.look.max_objects + 1))
    if "K_same" in kinds:
        two = pairs.draw(rng)
        others = rng.choice(np.setdiff1d(pairs.pool, two), n - 2, replace=False)
        entities = np.concatenate([two, others])
    else:
        entities = rng.choice(pairs.pool, n, replace=False)
    scene = place(rng, entities, centred=track.look.max_objects == 1)
    return [ask(rng, kind, scene, entities, known) for kind in kinds]


def ask(
    rng: np.random.Generator,
    kind: str,
    scene: Scene,
    entities: np.ndarray,
    known: Sequence[np.ndarray],
) -> Question:
    """A question of a kind about the first of a scene's entities, or all of them."""
    attributes, entity = scene.attributes, int(entities[0])
    shape, colour = SHAPES[attributes[0, SHAPE]], tuple(COLOURS)[attributes[0, COLOUR]]
    oracle: tuple[int, ...] = ()
    if kind == "K":
        number = int(rng.integers(len(RELATIONS)))
        name, relation = tuple(RELATIONS.items())[number]
        kind = f"K_{name}"
        asked = relation.questions[rng.integers(len(relation.questions))]
        text = asked.format(d=describe(attributes, 0))
        answers = tuple(relation.values[world[number, entity]] for world in known)
        oracle = tuple(card_row(entity, number) + i for i in range(CARDS_PER_FACT))
    elif kind == "K_same":
        text = SAME.format(d=describe(attributes, 0), other=describe(attributes, 1))
        uses = [world[1, entities[:2]] for world in known]
        answers = tuple("yes" if first == second else "no" for first, second in uses)
        rows = [card_row(int(e), 1) for e in entities[:2]]
        oracle = tuple(row + i for row in rows for i in range(CARDS_PER_FACT))
    elif kind == "V_exist":
        if rng.random() < 0.5:
            shape = SHAPES[rng.integers(len(SHAPES))]
            colour = tuple(COLOURS)[rng.integers(len(COLOURS))]
        wanted = SHAPES.index(shape), tuple(COLOURS).index(colour)
        there = (attributes[:, [SHAPE, COLOUR]] == wanted).all(axis=1).any()
        text = EXIST.format(colour=colour, shape=shape)
        answers = ("yes" if there else "no",) * len(known)
    else:
        text, answer = {
            "V_count": (COUNT, str(len(entities))),
            "V_colour": (WHICH_COLOUR, colour),
            "V_shape": (WHICH_SHAPE, shape),
        }[kind]
        answers = (answer,) * len(known)
    return Question(kind, text, answers, scene, oracle)


def question_words() -> list[str]:
    """Every word of captions, cards, questions and answers, sorted."""
    texts = [SAME, COUNT, WHICH_COLOUR, WHICH_SHAPE, EXIST, "object", *ANSWERS]
    for relation in RELATIONS.values():
        texts += [*relation.cards, *relation.questions]
    words = {word for text in texts for word in text.split() if "{" not in word}
    return sorted(words | set(all_words()))
