"""Twelve families of solids with continuous proportions; the second axis is up."""

from collections.abc import Callable

import numpy as np

from jcmr.data.mesh import Mesh
from jcmr.data.shapes.parts import band, box, join, lathe, moved, tube, turned

Family = Callable[[np.random.Generator, int], Mesh]
"""(rng, segments of a full turn) -> mesh."""


def legs(rng: np.random.Generator, width: float, depth: float, height: float) -> list[Mesh]:
    """Four legs under the corners of a plate."""
    thick = rng.uniform(0.05, 0.14) * min(width, depth)
    x, z = width / 2 - thick / 2, depth / 2 - thick / 2
    at = [(sx * x, 0.0, sz * z) for sx in (-1, 1) for sz in (-1, 1)]
    return [box((thick, height, thick), place) for place in at]


def table(rng: np.random.Generator, segments: int) -> Mesh:
    """A plate, square or round, on four legs, sometimes with a board below."""
    width, depth = rng.uniform(0.8, 1.8), rng.uniform(0.7, 1.1)
    height, thick = rng.uniform(0.5, 1.0), rng.uniform(0.04, 0.14)
    parts = legs(rng, width, depth, height)
    if rng.random() < 0.3:
        radius = np.hypot(width, depth) / 2
        disc = [(0, 0), (radius, 0), (radius, thick), (0, thick)]
        parts.append(moved(lathe(disc, segments), (0, height, 0)))
    else:
        parts.append(box((width * 1.05, thick, depth * 1.05), (0, height, 0)))
    if rng.random() < 0.3:
        parts.append(box((width, thick, depth), (0, height * rng.uniform(0.2, 0.5), 0)))
    return join(parts)


def chair(rng: np.random.Generator, segments: int) -> Mesh:
    """A seat on four legs with a back, sometimes with arms."""
    del segments
    width, depth = rng.uniform(0.6, 1.0), rng.uniform(0.6, 0.9)
    height, thick, back = rng.uniform(0.4, 0.8), rng.uniform(0.05, 0.14), rng.uniform(0.5, 1.1)
    parts = [*legs(rng, width, depth, height), box((width, thick, depth), (0, height, 0))]
    rest = box((width, back, thick), (0, 0, 0))
    rest = turned(rest, 0, rng.uniform(-0.2, 0.0))
    parts.append(moved(rest, (0, height + thick / 2, -depth / 2 + thick / 2)))
    if rng.random() < 0.4:
        arm, up = rng.uniform(0.05, 0.12), back * rng.uniform(0.3, 0.5)
        for side in (-1, 1):
            x = side * (width / 2 - arm / 2)
            parts.append(box((arm, up, arm), (x, height, depth / 2 - arm / 2)))
            parts.append(box((arm, arm, depth), (x, height + up, 0)))
    return join(parts)


def shelf(rng: np.random.Generator, segments: int) -> Mesh:
    """Boards between two sides, with or without a back."""
    del segments
    width, depth = rng.uniform(0.6, 1.3), rng.uniform(0.25, 0.5)
    height, thick = rng.uniform(1.0, 2.0), rng.uniform(0.04, 0.1)
    parts = [box((thick, height, depth), (side * width / 2, 0, 0)) for side in (-1, 1)]
    levels = np.linspace(0, height - thick, rng.integers(3, 7))
    parts += [box((width, thick, depth), (0, level, 0)) for level in levels]
    if rng.random() < 0.5:
        parts.append(box((width, height, thick / 2), (0, 0, -depth / 2)))
    return join(parts)


def stairs(rng: np.random.Generator, segments: int) -> Mesh:
    """Steps that rise along one side."""
    del segments
    num = rng.integers(3, 8)
    run, rise, width = rng.uniform(0.2, 0.35), rng.uniform(0.12, 0.3), rng.uniform(0.5, 1.2)
    closed = rng.random() < 0.7
    parts = []
    for i in range(num):
        low = 0.0 if closed else i * rise
        parts.append(box((run, (i + 1) * rise - low, width), (i * run, low, 0)))
    return join(parts)


def house(rng: np.random.Generator, segments: int) -> Mesh:
    """Walls, a gable roof that overhangs, often a chimney."""
    del segments
    width, depth = rng.uniform(0.7, 1.2), rng.uniform(0.8, 1.6)
    wall, roof = rng.uniform(0.4, 0.9), rng.uniform(0.3, 0.7)
    over = rng.uniform(1.05, 1.3)
    eaves = np.array([[-over * width / 2, wall], [0, wall + roof], [over * width / 2, wall]])
    ground = np.array([[-over * width / 2, wall], [0, wall], [over * width / 2, wall]])
    parts = [box((width, wall, depth), (0, 0, 0)), band(eaves, ground, over * depth)]
    if rng.random() < 0.6:
        thick = rng.uniform(0.12, 0.2)
        place = (width * rng.uniform(0.15, 0.3), wall, depth * rng.uniform(-0.3, 0.3))
        parts.append(box((thick, roof * rng.uniform(0.9, 1.3), thick), place))
    return join(parts)


def arch(rng: np.random.Generator, segments: int) -> Mesh:
    """Two pillars and a half ring above them."""
    inner, thick = rng.uniform(0.3, 0.7), rng.uniform(0.12, 0.4)
    pillar, depth = rng.uniform(0.2, 1.0), rng.uniform(0.25, 0.8)
    angle = np.linspace(0, np.pi, segments // 2 + 1)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def line(radius: float) -> np.ndarray:
        half = radius * ring + [0, pillar]
        return np.concatenate([[[radius, 0]], half, [[-radius, 0]]])

    return band(line(inner + thick), line(inner), depth)


def mug(rng: np.random.Generator, segments: int) -> Mesh:
    """A hollow cup with a handle."""
    low, high = rng.uniform(0.35, 0.55), rng.uniform(0.4, 0.6)
    height, thick = rng.uniform(0.7, 1.2), rng.uniform(0.04, 0.1)
    cup = [
        (0, 0), (low, 0), (high, height), (high - thick, height), (low - thick, thick), (0, thick),
    ]  # fmt: skip
    angle = np.linspace(-np.pi / 2, np.pi / 2, segments // 2 + 1)
    tall, wide = height * rng.uniform(0.25, 0.4), rng.uniform(0.2, 0.4)
    path = np.stack([wide * np.cos(angle), tall * np.sin(angle)], axis=1)
    path += [(low + high) / 2 - thick / 2, height / 2]
    return join([lathe(cup, segments), tube(path, rng.uniform(0.04, 0.08), 5)])


def bottle(rng: np.random.Generator, segments: int) -> Mesh:
    """A body, a shoulder and a neck."""
    body, neck = rng.uniform(0.3, 0.5), rng.uniform(0.08, 0.17)
    straight, shoulder = rng.uniform(0.4, 1.1), rng.uniform(0.1, 0.5)
    top = straight + shoulder + rng.uniform(0.2, 0.5)
    lip = neck * rng.uniform(1.0, 1.4)
    profile = [
        (0, 0), (body, 0), (body * rng.uniform(0.85, 1.15), straight),
        (neck, straight + shoulder), (neck, top - 0.06), (lip, top), (0, top),
    ]  # fmt: skip
    return lathe(profile, segments)


def ring(rng: np.random.Generator, segments: int) -> Mesh:
    """A torus, standing, lying or leaning."""
    angle = 2 * np.pi * np.arange(segments) / segments
    path = np.stack([np.cos(angle), np.sin(angle)], axis=1) * [1, rng.uniform(0.7, 1.0)]
    torus = tube(path, rng.uniform(0.12, 0.42), max(6, segments * 2 // 3), close=True)
    return turned(torus, 0, rng.uniform(0, np.pi / 2))


def lamp(rng: np.random.Generator, segments: int) -> Mesh:
    """A foot, a pole and an open shade."""
    foot, pole = rng.uniform(0.25, 0.5), rng.uniform(0.03, 0.08)
    height, thick = rng.uniform(0.8, 1.8), rng.uniform(0.04, 0.15)
    low, high = rng.uniform(0.35, 0.7), rng.uniform(0.1, 0.35)
    shade, under = rng.uniform(0.3, 0.6), height * rng.uniform(0.75, 0.95)
    stand = [(0, 0), (foot, 0), (foot * 0.8, thick), (pole, thick), (pole, height), (0, height)]
    hood = [(low, under), (high, under + shade)]
    return join([lathe(stand, segments), lathe(hood, segments)])


def rocket(rng: np.random.Generator, segments: int) -> Mesh:
    """A body with a nose and three to five fins."""
    radius, body, nose = rng.uniform(0.2, 0.35), rng.uniform(0.8, 1.5), rng.uniform(0.3, 0.8)
    hull = [
        (0, 0), (radius * rng.uniform(0.6, 1.0), 0), (radius, body * 0.3), (radius, body),
        (radius * 0.7, body + nose * 0.5), (0, body + nose),
    ]  # fmt: skip
    num, out, up = rng.integers(3, 6), rng.uniform(0.25, 0.5), rng.uniform(0.3, 0.6)
    drop = rng.uniform(0.0, 0.2)
    outer = np.array([[radius * 0.5, up], [radius + out, -drop + up * 0.3]])
    inner = np.array([[radius * 0.5, 0.0], [radius + out, -drop]])
    fin = band(outer, inner, 0.05)
    fins = [turned(fin, 1, 2 * np.pi * i / num) for i in range(num)]
    return join([lathe(hull, segments), *fins])


def dumbbell(rng: np.random.Generator, segments: int) -> Mesh:
    """Two weights, round or flat, on a lying bar."""
    bar, half, weight = rng.uniform(0.06, 0.14), rng.uniform(0.4, 0.8), rng.uniform(0.3, 0.55)
    thick, soft = rng.uniform(0.2, 0.5), rng.uniform(0.5, 1.0)
    other = weight * rng.uniform(0.8, 1.2)
    profile = [
        (0, -half - thick), (weight * soft, -half - thick), (weight, -half - thick / 2),
        (weight * soft, -half), (bar, -half), (bar, half), (other * soft, half),
        (other, half + thick / 2), (other * soft, half + thick), (0, half + thick),
    ]  # fmt: skip
    return turned(lathe(profile, segments), 2, np.pi / 2)


FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        arch, bottle, chair, dumbbell, house, lamp, mug, ring, rocket, shelf, stairs, table,
    )
}  # fmt: skip
