"""Parts that solids are put together from: boxes, surfaces of revolution, bands and tubes."""

from collections.abc import Sequence

import numpy as np

from jcmr.data.mesh import Mesh


def join(parts: Sequence[Mesh]) -> Mesh:
    """All parts as one mesh."""
    offsets = np.cumsum([0, *(len(vertices) for vertices, _ in parts)])
    triangles = [faces + offset for (_, faces), offset in zip(parts, offsets)]
    return np.concatenate([vertices for vertices, _ in parts]), np.concatenate(triangles)


def moved(part: Mesh, by: Sequence[float]) -> Mesh:
    """A part somewhere else."""
    return part[0] + np.asarray(by, float), part[1]


def turned(part: Mesh, axis: int, angle: float) -> Mesh:
    """A part turned about a coordinate axis through the origin, radians."""
    vertices = part[0].copy()
    a, b = (axis + 1) % 3, (axis + 2) % 3
    cosine, sine = np.cos(angle), np.sin(angle)
    vertices[:, a] = cosine * part[0][:, a] - sine * part[0][:, b]
    vertices[:, b] = sine * part[0][:, a] + cosine * part[0][:, b]
    return vertices, part[1]


def box(size: Sequence[float], low_center: Sequence[float]) -> Mesh:
    """A box of sides [3] that stands on the point `low_center`."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    vertices = (corners - [0.5, 0, 0.5]) * size + np.asarray(low_center, float)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    triangles = [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]
    return vertices, np.array(triangles, np.int32)


def grid_triangles(rows: int, columns: int, close: bool) -> np.ndarray:
    """Triangles between neighbours of a grid of vertices; the columns are a ring, `close` rows."""
    last = rows if close else rows - 1
    i, j = np.meshgrid(np.arange(last), np.arange(columns), indexing="ij")
    following, beside = (i + 1) % rows, (j + 1) % columns
    a, b = i * columns + j, i * columns + beside
    c, d = following * columns + beside, following * columns + j
    quads = np.stack([a, b, c, d], axis=-1).reshape(-1, 4)
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)


def lathe(profile: Sequence[tuple[float, float]], segments: int) -> Mesh:
    """The surface of a profile of (radius, height), from one end to the other, around the vertical.

    Where the radius is 0 triangles without area are left over.
    """
    radius, height = np.asarray(profile, float).T
    angle = 2 * np.pi * np.arange(segments) / segments
    x, z = np.outer(radius, np.cos(angle)), np.outer(radius, np.sin(angle))
    y = np.broadcast_to(height[:, None], x.shape)
    vertices = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    return vertices, grid_triangles(len(radius), segments, close=False)


def tube(path: np.ndarray, radius: float, sides: int, close: bool = False) -> Mesh:
    """A tube around a path [m, 2] in the plane z = 0; open ends stay open."""
    ahead = np.roll(path, -1, axis=0) - np.roll(path, 1, axis=0)
    if not close:
        ahead[0], ahead[-1] = path[1] - path[0], path[-1] - path[-2]
    ahead /= np.sqrt((ahead**2).sum(axis=1, keepdims=True))
    normal = np.stack([-ahead[:, 1], ahead[:, 0], np.zeros(len(path))], axis=1)
    angle = 2 * np.pi * np.arange(sides) / sides
    around = (
        normal[:, None] * np.cos(angle)[:, None] + np.array([0, 0, 1.0]) * np.sin(angle)[:, None]
    )
    vertices = np.append(path, np.zeros((len(path), 1)), axis=1)[:, None] + radius * around
    return vertices.reshape(-1, 3), grid_triangles(len(path), sides, close)


def band(outer: np.ndarray, inner: np.ndarray, depth: float) -> Mesh:
    """The solid between two lines [m, 2] of as many points, `depth` thick along z."""
    rim = np.stack([outer, inner, inner, outer], axis=1)
    z = np.broadcast_to(depth * np.array([0.5, 0.5, -0.5, -0.5]), rim.shape[:2])
    vertices = np.concatenate([rim, z[:, :, None]], axis=-1).reshape(-1, 3)
    end = 4 * (len(outer) - 1)
    caps = [(0, 1, 2), (0, 2, 3), (end, end + 2, end + 1), (end, end + 3, end + 2)]
    return vertices, np.concatenate(
        [grid_triangles(len(outer), 4, close=False), np.array(caps, np.int32)]
    )
