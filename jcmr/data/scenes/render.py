"""Draws a scene: textured shapes on a plain background, smoothed, with pixel noise."""

import functools

import numpy as np
from PIL import Image, ImageDraw

from jcmr.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    SHAPE,
    SHAPES,
    SIZE,
    TEXTURES,
    Preset,
    Scene,
)

SUPERSAMPLING = 2
NOISE = 6
_RGB = np.asarray(list(COLOURS.values()), np.float32)


def regular(corners: int, radius: float, turn: float = 0.0) -> np.ndarray:
    """A regular polygon with a corner at the top, [corners, 2]."""
    angle = 2 * np.pi * np.arange(corners) / corners + turn - np.pi / 2
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


@functools.cache
def outline(shape: str) -> np.ndarray:
    """The polygon of a shape of radius 1 around the origin, y down; discs have 40 corners."""
    if shape == "star":
        points = np.empty((10, 2))
        points[0::2], points[1::2] = regular(5, 1.15), regular(5, 0.5, np.pi / 5)
        return points
    if shape == "cross":
        a, b = 0.36, 1.0
        corner = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        return np.asarray([*corner, (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)])
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([16 * np.sin(t) ** 3, -y], axis=1) / 16
    if shape == "diamond":
        return np.asarray([(0, -1.15), (0.62, 0), (0, 1.15), (-0.62, 0)])
    polygons = {
        "circle": (40, 1.0, 0.0),
        "ring": (40, 1.0, 0.0),
        "square": (4, 1.15, np.pi / 4),
        "triangle": (3, 1.15, 0.0),
        "pentagon": (5, 1.05, 0.0),
        "hexagon": (6, 1.05, 0.0),
    }
    return regular(*polygons[shape])


@functools.cache
def pattern(texture: str, side: int, period: float, quarter: int) -> np.ndarray:
    """Where a texture is painted in the light colour, bool [side, side]; `quarter` shifts it."""
    p = period * side
    offset = quarter / 4 * p
    y, x = np.mgrid[:side, :side].astype(np.float32)
    if texture == "striped":
        return (x + y + offset) % p < 0.45 * p
    if texture == "dotted":
        return ((x + offset) % p - p / 2) ** 2 + ((y + offset) % p - p / 2) ** 2 < (0.3 * p) ** 2
    if texture == "checked":
        return ((x + offset) // (p / 2) + (y + offset) // (p / 2)) % 2 == 1
    return np.zeros((side, side), bool)


def object_masks(scene: Scene, preset: Preset, side: int) -> list[np.ndarray]:
    """The pixels of each object, bool [side, side] each."""
    masks = []
    for i in range(len(scene.cell)):
        row, column = divmod(int(scene.cell[i]), 3)
        centre = (np.asarray([column, row]) + 0.5) / 3 + scene.jitter[i]
        small = scene.attributes[i, SIZE] == 0
        radius = preset.small_radius if small else preset.large_radius
        cos, sin = np.cos(scene.rotation[i]), np.sin(scene.rotation[i])
        turn = np.asarray([[cos, sin], [-sin, cos]]) * radius * side
        shape = SHAPES[scene.attributes[i, SHAPE]]
        canvas = Image.new("1", (side, side))
        draw = ImageDraw.Draw(canvas)
        points = outline(shape) @ turn + centre * side
        draw.polygon([tuple(p) for p in points], fill=1)
        if shape == "ring":
            hole = 0.5 * outline(shape) @ turn + centre * side
            draw.polygon([tuple(p) for p in hole], fill=0)
        masks.append(np.asarray(canvas))
    return masks


def render(scene: Scene, preset: Preset, noise: np.random.Generator) -> np.ndarray:
    """The image of a scene, uint8 [s, s, 3]."""
    size = preset.image_size
    side = size * SUPERSAMPLING
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = BACKGROUNDS[scene.background]
    for mask, (_, colour, texture, _), phase in zip(
        object_masks(scene, preset, side), scene.attributes, scene.phase
    ):
        painted = pattern(TEXTURES[texture], side, preset.texture_period, int(4 * phase))
        canvas[mask] = _RGB[colour]
        canvas[mask & painted] = 0.35 * _RGB[colour] + 0.65 * 255
    image = canvas.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean(axis=(1, 3))
    image += noise.integers(-NOISE, NOISE, image.shape, endpoint=True)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def occlude(
    image: np.ndarray, scene: Scene, preset: Preset, rate: float, rng: np.random.Generator
) -> np.ndarray:
    """Hides a share of the objects behind background-coloured squares, uint8 [s, s, 3].

    Squares are added at random places of the objects until at least `rate` (0..1) of their pixels
    are covered.
    """
    visible = np.any(object_masks(scene, preset, preset.image_size), axis=0)
    covered = np.zeros_like(visible)
    half = max(1, preset.image_size // 16)
    while rate > 0 and (visible & covered).sum() < rate * visible.sum():
        y, x = rng.permuted(np.argwhere(visible & ~covered), axis=0)[0]
        covered[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1] = True
    return np.where(covered[:, :, None], BACKGROUNDS[scene.background], image).astype(np.uint8)
