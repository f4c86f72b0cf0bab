"""Shaded views of triangle meshes from a z-buffer, many views at once; numpy alone."""

import numpy as np

AMBIENT = 0.35
LIGHT = np.array([-0.4, 0.6, 0.7]) / np.sqrt(0.4**2 + 0.6**2 + 0.7**2)
"""Towards the light: from above left, behind the viewer."""


def turned(corners: np.ndarray, azimuths: np.ndarray, elevations: np.ndarray) -> np.ndarray:
    """Triangles [f, 3, 3] as seen by v cameras around the vertical (second) axis, [v, f, 3, 3].

    Angles [v] in radians. In the result x points right, y up, z towards the viewer.
    """
    cos_a, sin_a, cos_e, sin_e = (
        f(x)[:, None, None] for x in (azimuths, elevations) for f in (np.cos, np.sin)
    )
    x, y, z = corners[..., 0], corners[..., 1], corners[..., 2]
    right, back = cos_a * x - sin_a * z, sin_a * x + cos_a * z
    return np.stack([right, cos_e * y - sin_e * back, sin_e * y + cos_e * back], axis=-1)


def z_buffer(corners: np.ndarray, size: int) -> np.ndarray:
    """Which triangle each pixel shows, int32 [v, size, size]; -1 where there is none.

    Only the pixels inside the box of each triangle are tested, those of all views in one array.

    Args:
      corners: [v, f, 3, 3]; x and y from -1 to 1 fill the picture, larger z is nearer. Triangles
        without area are not seen.
      size: pixels a side.
    """
    num_views, num_faces = corners.shape[:2]
    flat = corners.reshape(-1, 3, 3).astype(np.float32)
    x, y = (flat[..., 0] + 1) * (size / 2) - 0.5, (1 - flat[..., 1]) * (size / 2) - 0.5
    left, top = (np.maximum(np.ceil(c.min(axis=1)), 0).astype(np.int64) for c in (x, y))
    right, low = (np.minimum(np.floor(c.max(axis=1)), size - 1).astype(np.int64) for c in (x, y))
    width, height = np.maximum(right - left + 1, 0), np.maximum(low - top + 1, 0)
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    count = np.where(np.abs(area) > 1e-9, width * height, 0)
    owner = np.repeat(np.arange(len(flat)), count)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    row, column = top[owner] + place // width[owner], left[owner] + place % width[owner]

    def edge(a: int, b: int) -> np.ndarray:
        across = (x[:, b] - x[:, a])[owner] * (row - y[owner, a])
        return (across - (y[:, b] - y[:, a])[owner] * (column - x[owner, a])) / area[owner]

    weights = np.stack([edge(1, 2), edge(2, 0), edge(0, 1)], axis=1)
    inside = (weights >= -1e-5).all(axis=1)
    depth = (weights[inside] * flat[owner[inside], :, 2]).sum(axis=1)
    pixel = (owner // num_faces * size * size + row * size + column)[inside]
    nearest_last = np.argsort(depth, kind="stable")
    buffer = np.full(num_views * size * size, -1, np.int32)
    buffer[pixel[nearest_last]] = (owner[inside] % num_faces)[nearest_last]
    return buffer.reshape(num_views, size, size)


def render(
    corners: np.ndarray,
    azimuths: np.ndarray,
    elevations: np.ndarray,
    size: int,
    albedo: float = 0.85,
    background: float = 1.0,
    supersampling: int = 2,
) -> np.ndarray:
    """Grey views of a mesh inside the unit sphere, uint8 [v, size, size].

    Orthographic; flat faces, lit from both sides, with `supersampling`^2 samples a pixel.

    Args:
      corners: triangles [f, 3, 3].
      azimuths: of the cameras, radians [v].
      elevations: above the horizon, radians [v].
      size: pixels a side.
      albedo: brightness of the object, 0 to 1.
      background: brightness around it, 0 to 1.
      supersampling: samples a pixel along each side.
    """
    seen = turned(corners, azimuths, elevations)
    normals = np.cross(seen[:, :, 1] - seen[:, :, 0], seen[:, :, 2] - seen[:, :, 0])
    length = np.sqrt((normals**2).sum(axis=-1))
    lit = np.abs(normals @ LIGHT) / np.where(length > 0, length, 1)
    shades = albedo * (AMBIENT + (1 - AMBIENT) * lit)
    fine = size * supersampling
    face = z_buffer(seen, fine)
    picture = np.take_along_axis(shades, np.maximum(face, 0).reshape(len(face), -1), axis=1)
    picture = np.where(face < 0, background, picture.reshape(face.shape))
    shape = (len(face), size, supersampling, size, supersampling)
    return np.round(255 * picture.reshape(shape).mean(axis=(2, 4))).astype(np.uint8)
