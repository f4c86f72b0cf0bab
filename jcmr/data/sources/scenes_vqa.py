"""Questions about rendered scenes, two states of knowledge, and entities that training never shows.

Nothing is downloaded; images are drawn once and kept in the user's cache folder. Questions of kind
K can only be answered by who finds the card that states the fact among `num_distractors` ordinary
captions. Knowledge `index_a` and `swapped_b` are worlds that training never sees: their cards
differ in the answers alone. In `masked` every answer is hidden.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jcmr.core.types import Knowledge, QuestionSplit
from jcmr.data.cache import cache_folder, load_or_make, make_in_chunks
from jcmr.data.options import unpack
from jcmr.data.questions import Asked
from jcmr.data.records import Arrays
from jcmr.data.scenes import questions as made
from jcmr.data.scenes.captions import sample_caption
from jcmr.data.scenes.render import render
from jcmr.data.scenes.world import ABSENT, generator
from jcmr.data.text import SPECIAL, encode_all

STREAMS = {"train": 20, "dev": 21, "test": 22, "seen_dev": 23, "seen_test": 24}
WORLDS = {"index_a": 0, "swapped_b": 1}
FIRST_TRAIN_WORLD = 2
CAPTIONS = 2
"""Ordinary captions kept with each picture, for training a retriever."""
VERSION = 2
"""Part of the cache's name: raise it when the same options give other questions."""
CHUNK = 1000


class SceneQuestionOptions(NamedTuple):
    """The data section of a config for this source and for `scenes_cards`."""

    track: str = "solo"
    """"solo", one object in the middle; "multi", two or three of them on a grid."""
    num_train: int = 24_000
    """Training pictures."""
    num_test: int = 1_000
    """Questions about held-out entities and as many about seen ones, in dev and in test, each."""
    num_questions: int = 1
    """About each training picture."""
    num_worlds: int = 8
    """Of training, so that no answer can be known by heart."""
    num_distractors: int = 4_000
    seed: int = 0
    cache_dir: str = ""
    """Where drawn images are kept; empty is the user's cache folder."""
    render_workers: int = 2


def read_options(cfg: Mapping[str, Any]) -> SceneQuestionOptions:
    """Checks config.data.

    Raises:
      ValueError: an unknown key or track.
    """
    options = unpack(SceneQuestionOptions, cfg)
    if options.track not in made.TRACKS:
        raise ValueError(f"config.data.track is {options.track!r}; it can be solo or multi.")
    for name in ("num_worlds", "num_questions"):
        if getattr(options, name) < 1:
            raise ValueError(f"config.data.{name} is {getattr(options, name)}; one is the least.")
    return options


@functools.cache
def vocabulary() -> dict[str, int]:
    """Word -> id of everything that is said."""
    return {word: index for index, word in enumerate((*SPECIAL, *made.question_words()))}


def max_words(track: made.Track) -> tuple[int, int]:
    """Tokens of the longest question and of the longest caption or card, start and end included."""
    objects = track.look.max_objects
    return (9 if objects == 1 else 17), 4 + 7 * objects - 1 + 2


def encode(texts: Sequence[str], length: int) -> np.ndarray:
    """Token ids of texts, int32 [n, length]."""
    return encode_all([text.split() for text in texts], vocabulary(), length)


def make_items(
    first: int,
    last: int,
    seed: int,
    stream: int,
    pool: tuple[int, ...],
    worlds: int,
    track: str,
    num_questions: int,
) -> dict[str, np.ndarray]:
    """Items first..last: a picture, questions about it, and what a retriever learns from.

    With `worlds` those of item i are answered in training world i % worlds, else in all of
    `WORLDS`.
    """
    num, chosen = last - first, made.TRACKS[track]
    look = chosen.look
    train = [made.facts(seed, FIRST_TRAIN_WORLD + world) for world in range(worlds)]
    tests = [made.facts(seed, world) for world in WORLDS.values()]
    known = [[world] for world in train] or [tests]
    pairs = [made.Pairs(np.asarray(pool), each) for each in known]
    images = np.empty((num, look.image_size, look.image_size, 3), np.uint8)
    scene_code = np.full((num, look.max_objects, 4), ABSENT, np.int8)
    answers = np.empty((num, num_questions, len(known[0])), np.int16)
    oracle = np.full((num, num_questions, 2 * made.CARDS_PER_FACT), -1, np.int32)
    kinds, said, texts = np.empty((num, num_questions), np.int8), [], []
    caption_code = np.full((num, 1 + CAPTIONS, look.max_objects, 4), ABSENT - 1, np.int8)
    caption_code[:, 1:, 0] = ABSENT - 2  # matches no scene
    for i in range(num):
        rng = generator(seed, stream, first + i)
        world = (first + i) % len(known)
        questions = made.sample_questions(rng, pairs[world], known[world], chosen, num_questions)
        scene = questions[0].scene
        attributes = scene.attributes
        images[i] = render(scene, look, generator(seed, stream, first + i, part=1))
        scene_code[i, : len(attributes)] = attributes
        for j, question in enumerate(questions):
            answers[i, j] = [made.ANSWERS.index(answer) for answer in question.answers]
            oracle[i, j, : len(question.oracle)] = question.oracle
            kinds[i, j] = made.KINDS.index(question.kind)
            said.append(question.text)
        rng = generator(seed, stream, first + i, part=2)
        shape, colour, texture, _ = attributes[rng.integers(len(attributes))]
        entity = made.entity_id(shape, colour, texture)
        caption_code[i, 0, 0] = shape, colour, texture, ABSENT
        texts.append(made.any_card(rng, entity))
        texts += [sample_caption(rng, scene, look).text for _ in range(CAPTIONS)]
    of_question, of_caption = max_words(chosen)
    return {
        "image": images,
        "question": encode(said, of_question).reshape(num, num_questions, of_question),
        "answers": answers,
        "oracle": oracle,
        "kind": kinds,
        "scene_code": scene_code,
        "text": encode(texts, of_caption).reshape(num, 1 + CAPTIONS, of_caption),
        "caption_code": caption_code,
    }


def load_items(split: str, options: SceneQuestionOptions) -> dict[str, np.ndarray]:
    """The items of a split from the cache, drawn first where they are not in it."""
    of_training = split.startswith(("train", "seen"))
    pool = made.pools(options.seed)["train" if of_training else split]
    training = split == "train"
    num = options.num_train if training else options.num_test
    worlds, each = (options.num_worlds, options.num_questions) if training else (0, 1)
    arguments = options.seed, STREAMS[split], tuple(pool.tolist()), worlds, options.track, each
    return load_or_make(
        cache_folder("scenes", options.cache_dir),
        f"{options.track}-questions-{split}",
        (VERSION, num, made.TRACKS[options.track], arguments),
        f"{num} {split} questions",
        lambda: make_in_chunks(make_items, arguments, num, options.render_workers, CHUNK),
    )


def flat(column: np.ndarray) -> np.ndarray:
    """What belongs to the questions of pictures, [m, q, ...], as [m q, ...]."""
    return column.reshape(-1, *column.shape[2:])


def asked(items: dict[str, np.ndarray], answers: Arrays | None = None) -> Asked:
    """The questions of items, picture by picture."""
    num, each = items["kind"].shape
    rows = np.repeat(np.arange(num), each)
    return Asked(Arrays({"image": items["image"]}), rows, rows, flat(items["question"]), answers)


def one_hot(answers: np.ndarray) -> np.ndarray:
    """Answer ids [n] as float32 [n, v]."""
    return np.eye(len(made.ANSWERS), dtype=np.float32)[answers]


@functools.lru_cache(maxsize=32)
def knowledge(name: str, seed: int, track: str, num_distractors: int) -> Knowledge:
    """All cards of a world and the distractors: index_a, swapped_b, masked, or train_<number>."""
    if name.startswith("train_"):
        world = FIRST_TRAIN_WORLD + int(name.removeprefix("train_"))
    else:
        world = made.MASKED if name == "masked" else WORLDS[name]
    captions = made.cards(seed, world)
    look = made.TRACKS[track].look
    captions += [made.distractor(seed, i, look)[1] for i in range(num_distractors)]
    pictures = CardPictures(seed, track, len(captions))
    return Knowledge(captions, np.full(len(captions), -1, np.int64), pictures)


@dataclasses.dataclass(frozen=True)
class CardPictures:
    """The pictures of cards and distractors, drawn when looked at; equal in all worlds."""

    seed: int
    track: str
    num: int

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: Any, /) -> dict[str, np.ndarray]:
        """Picture `index`."""
        look = made.TRACKS[self.track].look
        scene = made.known_scene(self.seed, int(index), look)
        noise = generator(self.seed, made.CARD, int(index), part=len(made.RELATIONS) + 1)
        return {"image": render(scene, look, noise), "id": np.asarray(index, np.int32)}


@dataclasses.dataclass(frozen=True)
class SceneQuestions:
    """Questions in independent streams about disjoint entities."""

    options: SceneQuestionOptions

    @functools.cached_property
    def items(self) -> dict[str, np.ndarray]:
        """What training examples are made of."""
        return load_items("train", self.options)

    @functools.cached_property
    def train(self) -> Asked:
        """Questions about seen entities, those of a picture in the world of its own."""
        items = self.items
        return asked(items, Arrays({"answer": one_hot(items["answers"][..., 0].reshape(-1))}))

    @functools.cached_property
    def train_knowledge(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Training world -> (rows of `train`, the cards that answer them)."""
        options, oracle = self.options, flat(self.items["oracle"])
        world = np.arange(len(oracle)) // options.num_questions % options.num_worlds
        each = {f"train_{w}": np.flatnonzero(world == w) for w in range(options.num_worlds)}
        return {name: (mine, oracle[mine]) for name, mine in each.items()}

    @property
    def answers(self) -> tuple[str, ...]:
        """All answers."""
        return made.ANSWERS

    @property
    def answer_text(self) -> np.ndarray:
        """Their words, int32 [v, 1]."""
        return np.asarray([[vocabulary()[word]] for word in made.ANSWERS], np.int32)

    @property
    def info(self) -> dict[str, int]:
        """Sizes a model takes from the data."""
        question, caption = max_words(made.TRACKS[self.options.track])
        return {
            "vocab_size": len(vocabulary()),
            "num_answers": len(made.ANSWERS),
            "question_words": question,
            "caption_words": caption,
        }

    @property
    def vocabulary(self) -> dict[str, int]:
        """Word -> id."""
        return vocabulary()

    def tokenize(self, captions: Sequence[str]) -> np.ndarray:
        """Token ids of captions, int32 [n, caption_words]."""
        return encode([text.lower() for text in captions], self.info["caption_words"])

    def knowledge(self, name: str) -> Knowledge:
        """The captions of a state of knowledge."""
        options = self.options
        return knowledge(name, options.seed, options.track, options.num_distractors)

    def questions(self, split: str) -> QuestionSplit:
        """Questions about entities that only this split has, and as many about seen ones."""
        parts = [load_items(name, self.options) for name in (split, f"seen_{split}")]
        items = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        kinds = np.asarray(made.KINDS)[flat(items["kind"])]
        asks_fact = np.char.startswith(kinds, "K")
        held_out = np.arange(len(kinds)) < parts[0]["kind"].size
        answers = dict(zip(WORLDS, flat(items["answers"]).T))
        return QuestionSplit(
            split,
            asked(items),
            kinds,
            {"held_out": asks_fact & held_out, "seen": asks_fact & ~held_out, "visual": ~asks_fact},
            {name: Arrays({"answer": one_hot(ids)}) for name, ids in answers.items()},
            dict.fromkeys((*WORLDS, "masked"), flat(items["oracle"])),
            decode(flat(items["question"])),
        )


def decode(text: np.ndarray) -> list[str]:
    """Token ids [n, t] as they read."""
    words = list(vocabulary())
    return [" ".join(words[i] for i in row if i >= len(SPECIAL)) for row in text]


def make(cfg: Mapping[str, Any]) -> SceneQuestions:
    """The source of `config.data`.

    Raises:
      ValueError: an unknown key or value.
    """
    return SceneQuestions(read_options(cfg))
