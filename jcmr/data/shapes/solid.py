"""One object, three ways to look at it: mesh, points on its surface, shaded views."""

from typing import NamedTuple

import numpy as np

from jcmr.data.mesh import (
    Mesh,
    drop_degenerate,
    mesh_features,
    surface_points,
    unit_box_centered,
)
from jcmr.data.rasterize import render
from jcmr.data.scenes.world import generator
from jcmr.data.shapes.families import FAMILIES

CLASSES = tuple(FAMILIES)


class Preset(NamedTuple):
    """Sizes of what is stored of a solid."""

    image_size: int = 48
    stored_views: int = 6
    stored_points: int = 512
    num_faces: int = 192
    segments: int = 12
    """Edges of a full turn."""
    vertex_noise: float = 0.012
    point_noise: float = 0.006
    pixel_noise: float = 6.0


PRESETS = {
    "demo": Preset(),
    "full": Preset(112, 12, 2048, 1024, 24),
}


def make_solid(rng: np.random.Generator, family: str, look: Preset) -> Mesh:
    """A random member of a family, stretched, tapered, turned and dented, in the unit sphere."""
    vertices, triangles = FAMILIES[family](rng, look.segments)
    triangles = drop_degenerate(vertices, triangles)
    vertices = unit_box_centered(vertices * rng.uniform(0.8, 1.25, 3))
    taper = 1 + rng.uniform(-0.15, 0.15, 2) * vertices[:, 1:2]
    vertices[:, [0, 2]] *= taper
    vertices += look.vertex_noise * rng.normal(size=vertices.shape)
    angle = rng.uniform(0, 2 * np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    x, z = vertices[:, 0].copy(), vertices[:, 2].copy()
    vertices[:, 0], vertices[:, 2] = cosine * x + sine * z, cosine * z - sine * x
    return unit_box_centered(vertices), triangles


def make_item(seed: int, stream: int, index: int, look: Preset) -> dict[str, np.ndarray]:
    """Object `index` of a stream: image [v, h, w], points [p, 3], faces, neighbors, label.

    It depends on nothing but its arguments.
    """
    label = index % len(CLASSES)
    vertices, triangles = make_solid(generator(seed, stream, index), CLASSES[label], look)
    rng = generator(seed, stream, index, part=1)
    faces, neighbors = mesh_features(vertices, triangles, look.num_faces, rng)
    points = surface_points(vertices, triangles, look.stored_points, rng)
    points += look.point_noise * rng.normal(size=points.shape)
    rng = generator(seed, stream, index, part=2)
    step = 2 * np.pi / look.stored_views
    azimuths = step * (np.arange(look.stored_views) + rng.uniform(-0.3, 0.3, look.stored_views))
    elevations = np.radians(rng.uniform(15, 45, look.stored_views))
    views = render(
        vertices[triangles],
        azimuths,
        elevations,
        look.image_size,
        albedo=rng.uniform(0.6, 0.95),
        background=rng.uniform(0.85, 1.0),
    )
    noisy = views + look.pixel_noise * rng.normal(size=views.shape)
    return {
        "image": np.clip(np.round(noisy), 0, 255).astype(np.uint8),
        "points": points.astype(np.float32),
        "faces": faces,
        "neighbors": neighbors.astype(np.int16),
        "label": np.asarray(label, np.int32),
    }
