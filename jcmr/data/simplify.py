"""Meshes from files, made small enough for MeshNet; the libraries for that are optional."""

from pathlib import Path

import numpy as np

from jcmr.data.mesh import Mesh, drop_degenerate, parse_off

EXTRA = "`pip install 'jcmr[mesh]'` to prepare meshes"


def load_mesh(path: Path) -> Mesh:
    """Vertices and triangles of an .off file, or with trimesh of an .obj, .ply or .stl file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged or holds no triangle with an area; names it.
      ImportError: not an .off file, and no trimesh.
    """
    if path.suffix.lower() == ".off":
        vertices, triangles = parse_off(path.read_text(errors="replace"), str(path))
    else:
        try:
            import trimesh
        except ImportError as error:
            raise ImportError(f"{path} is no .off file: {EXTRA} of other formats.") from error
        if not path.is_file():
            raise FileNotFoundError(f"The mesh {path} does not exist.")
        try:
            loaded = trimesh.load_mesh(path)
        except Exception as error:  # readers of broken files raise nearly anything
            raise ValueError(f"The mesh {path} cannot be read ({error}).") from error
        vertices = np.asarray(loaded.vertices, np.float64)
        triangles = np.asarray(loaded.faces, np.int32)
    triangles = drop_degenerate(vertices, triangles)
    if not len(triangles):
        raise ValueError(f"The mesh {path} holds no triangle with an area.")
    return vertices, triangles


def simplified(mesh: Mesh, num_faces: int) -> Mesh:
    """A mesh of at most `num_faces` triangles; quadric edge collapse (Garland, SIGGRAPH 1997).

    Raises:
      ImportError: it must be simplified, and no library for it.
      ValueError: it cannot be brought down that far.
    """
    vertices, triangles = mesh
    if len(triangles) <= num_faces:
        return mesh
    try:
        from fast_simplification import simplify
    except ImportError as error:
        raise ImportError(f"A mesh has {len(triangles)} triangles: {EXTRA}.") from error
    target = num_faces
    for _ in range(8):  # collapses may stop a few faces short of the target
        found, faces = simplify(vertices, triangles.astype(np.int32), target_count=target)[:2]
        found, faces = np.asarray(found, np.float64), np.asarray(faces, np.int32)
        faces = drop_degenerate(found, faces)
        if 0 < len(faces) <= num_faces:
            return found, faces
        target = int(0.9 * target)
    raise ValueError(
        f"A mesh of {len(triangles)} triangles could not be simplified to {num_faces}; "
        f"{len(faces)} are left. Raise the number of faces."
    )
