"""Meshes, clouds and views of them, with damaged and unusual input."""

import numpy as np
import pytest

from jcmr.data import mesh, points, rasterize, simplify
from jcmr.data.shapes.parts import box, tube
from tests.miniatures import off_text


def cube():
    return box((1, 1, 1), (0, 0, 0))


# Meshes


@pytest.mark.parametrize("header", ["OFF\n{} {} 0\n", "OFF{} {} 0\n", "OFF {} {} 0\n# hi\n"])
def test_headers_of_off_files(header):
    vertices, triangles = cube()
    found = mesh.parse_off(off_text(vertices, triangles, header))
    np.testing.assert_array_equal(found[0], vertices)
    np.testing.assert_array_equal(found[1], triangles)


def test_polygons_become_fans():
    text = "OFF # a square\n4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n\n4 0 1 2 3 255 0 0\n"
    np.testing.assert_array_equal(mesh.parse_off(text)[1], [[0, 1, 2], [0, 2, 3]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "does not begin with OFF"),
        ("ply\n", "does not begin with OFF"),
        ("OFF\nx y z\n", "no numbers of vertices"),
        ("OFF\n3 1 0\n0 0 0\n1 0\n", "promises 3 vertices"),
        ("OFF\n1 0 0\nnan 0 0\n", "not finite"),
        ("OFF\n3 2 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "promises 2 faces"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "indices below 3"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n2 0 1\n", "at least three"),
    ],
)
def test_broken_off_files_are_named(text, words, tmp_path):
    path = tmp_path / "chair_0001.off"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        simplify.load_mesh(path)
    assert "chair_0001.off" in str(error.value)


def naive_neighbors(triangles):
    edges = [{frozenset((t[i], t[(i + 1) % 3])) for i in range(3)} for t in triangles]
    found = []
    for f, t in enumerate(triangles):
        row = []
        for i in range(3):
            edge = frozenset((t[i], t[(i + 1) % 3]))
            others = [g for g in range(len(triangles)) if g != f and edge in edges[g]]
            row.append(others[0] if others else f)
        found.append(row)
    return found


def test_neighbors_of_faces_against_sets():
    """Random triangles on few vertices: edges of one, two and many faces."""
    rng = np.random.default_rng(0)
    for num in (1, 6, 40):
        triangles = np.stack([rng.permutation(9)[:3] for _ in range(num)])
        np.testing.assert_array_equal(mesh.face_neighbors(triangles), naive_neighbors(triangles))
    assert mesh.face_neighbors(np.zeros((0, 3), int)).shape == (0, 3)


def test_degenerate_faces_are_dropped():
    vertices, triangles = cube()
    bad = np.array([[0, 0, 1], [0, 1, 1]])
    line = np.append(vertices, [[0.25, 0.25, 0.25], [0.5, 0.5, 0.5]], axis=0)
    line = np.append(line, [[0.75, 0.75, 0.75]], axis=0)
    every = np.concatenate([bad, triangles, [[8, 9, 10]]])
    np.testing.assert_array_equal(mesh.drop_degenerate(line, every), triangles)
    faces, neighbors = mesh.mesh_features(vertices, triangles, 20, np.random.default_rng(0))
    assert faces.shape == (20, 15) and np.isfinite(faces).all()
    np.testing.assert_allclose(np.linalg.norm(faces[:, 12:], axis=1), 1, rtol=1e-6)
    assert (neighbors < 12).all()
    np.testing.assert_array_equal(mesh.face_features(vertices, bad)[:, 12:], 0)
    with pytest.raises(ValueError, match="no triangle with an area"):
        mesh.mesh_features(vertices, bad, 20, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no triangle with an area"):
        mesh.surface_points(vertices, bad, 5, np.random.default_rng(0))
    with pytest.raises(ValueError, match="12 faces does not fit into 8"):
        mesh.mesh_features(vertices, triangles, 8, np.random.default_rng(0))


def test_points_lie_evenly_on_the_surface():
    vertices, triangles = cube()
    found = mesh.surface_points(vertices, triangles, 6000, np.random.default_rng(0))
    sides = np.abs(found - [0, 0.5, 0]).max(axis=1)
    np.testing.assert_allclose(sides, 0.5, atol=1e-9)
    top = (found[:, 1] > 1 - 1e-9).mean()
    assert abs(top - 1 / 6) < 0.02


def test_draws_of_points():
    rng = np.random.default_rng(0)
    assert len(set(points.choose(100, 60, rng))) == 60
    few = points.choose(7, 20, rng)
    assert len(few) == 20 and set(few) == set(range(7))
    assert len(set(points.choose(1000, 1000, rng, replace=True))) < 700
    with pytest.raises(ValueError, match="no points"):
        points.choose(0, 5, rng)
    assert np.isfinite(points.unit_sphere(np.ones((4, 3)))).all()


def test_large_meshes_are_simplified():
    path = np.stack([np.cos(np.arange(40) / 40 * 2 * np.pi), np.sin(np.arange(40) / 6.37)], axis=1)
    big = tube(path, 0.3, 20, close=True)
    small = simplify.simplified(big, 500)
    assert 300 < len(small[1]) <= 500
    assert simplify.simplified(small, 500) is small


# Views


def naive_picture(corners, size):
    face, depth = np.full((size, size), -1), np.full((size, size), -np.inf)
    for f, triangle in enumerate(corners):
        x, y = (triangle[:, 0] + 1) * size / 2 - 0.5, (1 - triangle[:, 1]) * size / 2 - 0.5
        system = np.stack([x, y, np.ones(3)])
        if abs(np.linalg.det(system)) < 1e-9:
            continue
        for row in range(size):
            for column in range(size):
                w = np.linalg.solve(system, [column, row, 1])
                z = w @ triangle[:, 2]
                if (w >= -1e-5).all() and z > depth[row, column]:
                    face[row, column], depth[row, column] = f, z
    return face


def test_z_buffer_against_loops():
    rng = np.random.default_rng(0)
    corners = rng.uniform(-1.2, 1.2, (2, 6, 3, 3))
    corners[0, 0] = corners[0, 0, :1]  # no area
    found = rasterize.z_buffer(corners, 12)
    for view in range(2):
        expected = naive_picture(corners[view].astype(np.float32).astype(float), 12)
        assert (found[view] == expected).mean() > 0.99
        assert (expected >= 0).any()


def test_views_turn_with_the_camera():
    corners = 1.2 * (cube()[0][cube()[1]] - [0, 0.5, 0])
    quarter = np.pi / 2 * np.arange(3)
    views = rasterize.render(corners, quarter, np.zeros(3), 24)
    assert views.shape == (3, 24, 24) and views.dtype == np.uint8
    np.testing.assert_array_equal(views[0], views[2])  # a cube looks the same from behind
    assert (views[0] < 255).mean() == pytest.approx(0.36, abs=0.03)
