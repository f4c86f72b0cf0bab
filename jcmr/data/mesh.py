"""Triangle meshes: OFF files, and the features of faces that MeshNet reads."""

import jax
import jax.numpy as jnp
import numpy as np

from jcmr.core.types import Array

Mesh = tuple[np.ndarray, np.ndarray]
"""Vertices float64 [v, 3] and triangles int [f, 3]."""


def parse_off(text: str, name: str = "the OFF file") -> Mesh:
    """Vertices and triangles of an OFF file; polygons become fans of triangles.

    Comments, colours behind a face, and a header with the counts on its own line
    ("OFF490 518 0", as in ModelNet40) are fine.

    Raises:
      ValueError: something else; names the file and what is wrong in it.
    """
    words = [w for line in text.splitlines() for w in line.split("#")[0].split()]
    if not words or not words[0].upper().startswith("OFF"):
        raise ValueError(f"{name} does not begin with OFF; give a mesh in OFF format.")
    words[:1] = [words[0][3:]] if words[0][3:] else []
    try:
        num_vertices, num_faces = int(words[0]), int(words[1])
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"{name} has no numbers of vertices and faces after OFF, but {' '.join(words[:3])!r}."
        ) from error
    try:
        start = 3 + 3 * num_vertices
        vertices = np.array(words[3:start], np.float64).reshape(num_vertices, 3)
    except ValueError as error:
        raise ValueError(
            f"{name} promises {num_vertices} vertices and does not hold them ({error})."
        ) from error
    if not np.isfinite(vertices).all():
        raise ValueError(f"{name} has vertices that are not finite numbers.")
    return vertices, read_faces(text, num_vertices, num_faces, name)


def read_faces(text: str, num_vertices: int, num_faces: int, name: str) -> np.ndarray:
    """The triangles of an OFF text, int32 [f, 3]; see `parse_off`."""
    lines = [line.split("#")[0].split() for line in text.splitlines()]
    lines = [line for line in lines if line]
    header = 1 if len(lines[0]) > 1 or len(lines[0][0]) > 3 else 2
    rows = lines[header + num_vertices : header + num_vertices + num_faces]
    if len(rows) < num_faces:
        raise ValueError(f"{name} promises {num_faces} faces and ends after {len(rows)}.")
    triangles = []
    for number, row in enumerate(rows):
        try:
            size = int(row[0])
            corners = [int(word) for word in row[1 : 1 + size]]
        except ValueError as error:
            raise ValueError(f"Face {number} of {name} is {' '.join(row)!r}.") from error
        if size < 3 or len(corners) < size or not 0 <= min(corners) <= max(corners) < num_vertices:
            raise ValueError(
                f"Face {number} of {name} is {' '.join(row)!r}: expected at least three indices "
                f"below {num_vertices}."
            )
        triangles += [(corners[0], corners[i], corners[i + 1]) for i in range(1, size - 1)]
    return np.asarray(triangles, np.int32).reshape(-1, 3)


def unit_box_centered(vertices: np.ndarray) -> np.ndarray:
    """Vertices [v, 3] with the centre of their box at 0 and a largest length of 1."""
    vertices = vertices - (vertices.max(axis=0) + vertices.min(axis=0)) / 2
    radius = np.sqrt((vertices**2).sum(axis=1).max())
    return vertices / max(radius, 1e-12)


def face_neighbors(triangles: np.ndarray) -> np.ndarray:
    """The faces across the edges (1, 2), (2, 3), (3, 1) of each face, int32 [f, 3].

    Where more than two faces share an edge it is the one of lowest index, and where none does the
    face itself. One sort of the 3 f edges; the official code compares sets in Python.
    """
    num = len(triangles)
    if not num:
        return np.zeros((0, 3), np.int32)
    ends = np.stack([triangles, np.roll(triangles, -1, axis=1)], axis=-1).reshape(-1, 2)
    low, high = ends.min(axis=1).astype(np.int64), ends.max(axis=1).astype(np.int64)
    keys = low * (int(triangles.max()) + 1) + high
    owner = np.repeat(np.arange(num, dtype=np.int32), 3)
    order = np.lexsort((owner, keys))
    sorted_keys, sorted_owner = keys[order], owner[order]
    first = np.searchsorted(sorted_keys, keys, side="left")
    last = np.searchsorted(sorted_keys, keys, side="right")
    # The lowest owner that is another face: the first of the group, or the one after all own edges.
    lowest = sorted_owner[first]
    own = lowest == owner
    group = sorted_keys * num + sorted_owner
    beyond = np.searchsorted(group, keys * num + owner, side="right")
    other = sorted_owner[np.minimum(beyond, len(sorted_owner) - 1)]
    following = np.where(beyond < last, other, owner)
    return np.where(own, following, lowest).reshape(num, 3).astype(np.int32)


def face_features(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """[centre 3 | corners 9 | unit normal 3] of each face, float64 [f, 15].

    The normal of a face without area is 0.
    """
    corners = vertices[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.sqrt((normals**2).sum(axis=1, keepdims=True))
    normals = normals / np.where(lengths > 1e-12, lengths, np.inf)
    return np.concatenate([corners.mean(axis=1), corners.reshape(-1, 9), normals], axis=1)


def drop_degenerate(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """The triangles that have an area: three different corners, not on one line."""
    corners = vertices[triangles]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    size = np.abs(corners - corners.mean(axis=1, keepdims=True)).max(axis=(1, 2))
    return triangles[np.sqrt((cross**2).sum(axis=1)) > 1e-9 * size**2]


def pad_faces(
    faces: np.ndarray, neighbors: np.ndarray, num: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Exactly `num` faces: some are repeated, with their neighbours, where there are fewer.

    Raises:
      ValueError: no faces, or more than `num`.
    """
    if not 0 < len(faces) <= num:
        raise ValueError(
            f"A mesh of {len(faces)} faces does not fit into {num}. Simplify it first: "
            f"python -m jcmr.prepare modelnet."
        )
    again = rng.integers(len(faces), size=num - len(faces))
    picked = np.concatenate([np.arange(len(faces)), again])
    return faces[picked].astype(np.float32), neighbors[picked].astype(np.int32)


def mesh_features(
    vertices: np.ndarray, triangles: np.ndarray, num: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(faces float32 [num, 15], neighbours int32 [num, 3]) of a mesh of at most `num` triangles.

    Raises:
      ValueError: no triangle with an area, or more than `num`.
    """
    triangles = drop_degenerate(vertices, triangles)
    if not len(triangles):
        raise ValueError("A mesh has no triangle with an area.")
    faces = face_features(unit_box_centered(vertices), triangles)
    return pad_faces(faces, face_neighbors(triangles), num, rng)


def surface_points(
    vertices: np.ndarray, triangles: np.ndarray, num: int, rng: np.random.Generator
) -> np.ndarray:
    """Points drawn evenly from the surface of a mesh, float64 [num, 3].

    Raises:
      ValueError: the mesh has no area.
    """
    corners = vertices[triangles]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.cumsum(np.sqrt((cross**2).sum(axis=1)))
    if not len(area) or area[-1] <= 0:
        raise ValueError("A mesh has no triangle with an area; no points can be drawn from it.")
    drawn = np.searchsorted(area, rng.random(num) * area[-1], side="right")
    picked = corners[np.minimum(drawn, len(area) - 1)]
    u, v = rng.random((2, num))
    root = np.sqrt(u)
    weights = np.stack([1 - root, root * (1 - v), root * v], axis=1)
    return (picked * weights[:, :, None]).sum(axis=1)


def augment_faces(faces: Array, key: Array) -> Array:
    """Normal noise of 0.01, cut off at 0.05, on the centres and corners of faces [f, 15]."""
    noise = jnp.clip(0.01 * jax.random.normal(key, (faces.shape[0], 12)), -0.05, 0.05)
    return faces.at[:, :12].add(noise)
