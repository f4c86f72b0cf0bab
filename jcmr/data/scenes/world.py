"""What a scene can hold, and how one is drawn at random."""

from typing import NamedTuple

import numpy as np

SHAPES = (
    *("circle", "square", "triangle", "diamond", "pentagon"),
    *("hexagon", "star", "cross", "ring", "heart"),
)
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 150, 60),
    "blue": (40, 80, 210),
    "yellow": (240, 205, 40),
    "purple": (130, 50, 170),
    "orange": (245, 130, 30),
    "cyan": (50, 195, 205),
    "brown": (120, 75, 40),
}
TEXTURES = ("solid", "striped", "dotted", "checked")
SIZES = ("small", "large")
BACKGROUNDS = (
    *((245, 245, 240), (225, 232, 245), (232, 245, 228)),
    *((245, 230, 230), (210, 210, 210), (250, 240, 205)),
)
NUM_ENTITIES = len(SHAPES) * len(COLOURS) * len(TEXTURES)
SHAPE, COLOUR, TEXTURE, SIZE = range(4)
"""Columns of an object's attributes and of a phrase's logical form."""
ABSENT = -1
"""An object that is not there, or an attribute that a phrase does not mention."""


class Preset(NamedTuple):
    """How scenes look and how captions speak of them."""

    max_objects: int = 4
    image_size: int = 64
    small_radius: float = 0.095
    large_radius: float = 0.15
    texture_period: float = 0.075
    """Radii and period as shares of the image's side."""
    drop_rate: float = 0.35
    """Probability that a caption leaves out an object's texture, colour or size, each."""
    vague_noun_rate: float = 0.15
    """Probability that the shape's name is replaced by object, thing or shape."""
    keep_one: bool = False
    """Every phrase keeps at least one of shape, colour and texture."""


PRESETS = {
    "full": Preset(),
    "demo": Preset(
        max_objects=2,
        image_size=48,
        small_radius=0.12,
        texture_period=0.10,
        drop_rate=0.25,
        vague_noun_rate=0.10,
        keep_one=True,
    ),
}


class Scene(NamedTuple):
    """The objects of one image, n of them in distinct cells of a 3 x 3 grid."""

    attributes: np.ndarray
    """[n, 4] ids of shape, colour, texture and size."""
    cell: np.ndarray
    """[n] in 0..8."""
    rotation: np.ndarray
    """[n] radians."""
    jitter: np.ndarray
    """[n, 2] shift in x and y, share of the image's side."""
    phase: np.ndarray
    """[n] offset of the texture in 0..1."""
    background: int


def generator(seed: int, stream: int, index: int, part: int = 0) -> np.random.Generator:
    """The random numbers of one item: the same in whatever order and process it is made."""
    return np.random.default_rng(np.random.SeedSequence([seed, stream, index, part]))


def entity_attributes(entity: np.ndarray) -> np.ndarray:
    """Shape, colour and texture [n, 3] of entities [n]; id = (shape * 8 + colour) * 4 + texture."""
    entity, texture = np.divmod(entity, len(TEXTURES))
    shape, colour = np.divmod(entity, len(COLOURS))
    return np.stack([shape, colour, texture], axis=-1)


def sample_scene(rng: np.random.Generator, max_objects: int) -> Scene:
    """One to `max_objects` distinct entities in distinct cells on one background."""
    n = int(rng.integers(1, max_objects + 1))
    return place(rng, rng.choice(NUM_ENTITIES, n, replace=False))


def place(rng: np.random.Generator, entities: np.ndarray, centred: bool = False) -> Scene:
    """A scene of entities [n] in distinct cells, or of one in the middle."""
    n = len(entities)
    sizes = rng.integers(0, len(SIZES), (n, 1))
    return Scene(
        attributes=np.concatenate([entity_attributes(entities), sizes], axis=1),
        cell=np.asarray([4]) if centred else rng.choice(9, n, replace=False),
        rotation=rng.uniform(-0.35, 0.35, n),
        jitter=rng.uniform(-0.04, 0.04, (n, 2)),
        phase=rng.uniform(0, 1, n),
        background=int(rng.integers(len(BACKGROUNDS))),
    )
