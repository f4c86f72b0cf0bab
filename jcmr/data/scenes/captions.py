"""Captions of scenes, with what exactly they claim."""

from typing import NamedTuple

import numpy as np

from jcmr.data.scenes.world import (
    ABSENT,
    COLOUR,
    COLOURS,
    SHAPE,
    SHAPES,
    SIZE,
    SIZES,
    TEXTURE,
    TEXTURES,
    Preset,
    Scene,
)

OPENERS = ("a picture of {}", "there is {}", "{}", "an image showing {}", "you can see {}")
VAGUE_NOUNS = ("object", "thing", "shape")
SYNONYMS = {
    "circle": ("disc",),
    "square": ("box",),
    "diamond": ("rhombus",),
    "cross": ("plus sign",),
    "ring": ("hoop",),
    "solid": ("plain",),
    "striped": ("banded",),
    "dotted": ("spotted",),
    "checked": ("checkered",),
    "small": ("little", "tiny"),
    "large": ("big",),
    "red": ("scarlet",),
    "purple": ("violet",),
    "cyan": ("teal",),
}
WORDS = {SHAPE: SHAPES, COLOUR: tuple(COLOURS), TEXTURE: TEXTURES, SIZE: SIZES}
CAPTIONS_PER_SCENE = 5


class Caption(NamedTuple):
    """A sentence and its logical form."""

    text: str
    form: np.ndarray
    """[p, 4]: the attributes that each of its p phrases mentions, `ABSENT` where it is silent."""


def pick_word(rng: np.random.Generator, word: str) -> str:
    """The word or one of its synonyms, all equally likely."""
    forms = (word, *SYNONYMS.get(word, ()))
    return forms[rng.integers(len(forms))]


def mention(rng: np.random.Generator, attributes: np.ndarray, preset: Preset) -> np.ndarray:
    """Which of an object's attributes a phrase mentions, [4]."""
    rate = np.full(4, preset.drop_rate)
    rate[SHAPE] = preset.vague_noun_rate
    kept = rng.random(4) >= rate
    if preset.keep_one and not kept[[SHAPE, COLOUR, TEXTURE]].any():
        kept[rng.integers(3)] = True
    return np.where(kept, attributes, ABSENT)


def say(rng: np.random.Generator, form: np.ndarray) -> str:
    """A phrase with the article: a (size) (texture) (colour) noun."""
    words = [
        pick_word(rng, WORDS[kind][form[kind]])
        for kind in (SIZE, TEXTURE, COLOUR)
        if form[kind] != ABSENT
    ]
    if form[SHAPE] == ABSENT:
        noun = VAGUE_NOUNS[rng.integers(len(VAGUE_NOUNS))]
    else:
        noun = pick_word(rng, SHAPES[form[SHAPE]])
    return " ".join(["a", *words, noun])


def sample_caption(rng: np.random.Generator, scene: Scene, preset: Preset) -> Caption:
    """A sentence about one to all of the scene's objects, in random order."""
    n = len(scene.cell)
    mentioned = rng.permutation(n)[: rng.integers(1, n + 1)]
    form = np.stack([mention(rng, scene.attributes[i], preset) for i in mentioned])
    phrases = " and ".join(say(rng, row) for row in form)
    return Caption(OPENERS[rng.integers(len(OPENERS))].format(phrases), form)


def all_words() -> list[str]:
    """Every word that a caption can hold, sorted."""
    phrases = [*OPENERS, *VAGUE_NOUNS, "a", "and"]
    phrases += [word for words in WORDS.values() for word in words]
    phrases += [word for words in SYNONYMS.values() for word in words]
    return sorted({word for phrase in phrases for word in phrase.split() if word != "{}"})
