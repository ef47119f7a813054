"""Triangle meshes made of lofts (tubes through ellipses) and boxes, each with a place in a texture."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Region = tuple[int, int, int, int]
"""left, top, width, height of a part of a texture, texels."""


@dataclass(frozen=True)
class Mesh:
    """V vertices and T triangles.

    vertices, normals: (V, 3) float32, metres; texels: (V, 2) float32, the place in the texture (x, y); exposure: (V,)
    float32, how much of the sky's light arrives (1 in the open, less in folds); bones: (V, 2) int32, and weight: (V,)
    float32, the share of the first bone; triangles: (T, 3) int32.
    """

    vertices: Floats
    normals: Floats
    texels: Floats
    exposure: Floats
    bones: npt.NDArray[np.int32]
    weight: Floats
    triangles: npt.NDArray[np.int32]


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """All of them as one mesh."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    numbered = [replace(m, triangles=m.triangles + start) for m, start in zip(meshes, starts, strict=True)]
    arrays = {field.name: np.concatenate([getattr(mesh, field.name) for mesh in numbered]) for field in fields(Mesh)}
    return oriented(Mesh(**arrays | {"triangles": arrays["triangles"].astype(np.int32)}))


def rigid(
    vertices: npt.ArrayLike, normals: npt.ArrayLike, texels: npt.ArrayLike, triangles: npt.ArrayLike, exposure: npt.ArrayLike = 1
) -> Mesh:
    """A mesh that moves as one piece; of normals, texels and exposure one may stand for all vertices."""
    points = np.asarray(vertices, np.float32)
    count = len(points)
    return Mesh(
        points,
        np.array(np.broadcast_to(normals, (count, 3)), np.float32),
        np.array(np.broadcast_to(texels, (count, 2)), np.float32),
        np.array(np.broadcast_to(exposure, count), np.float32),
        bones=np.zeros((count, 2), np.int32),
        weight=np.ones(count, np.float32),
        triangles=np.array(triangles, np.int32),
    )


def _outward(vertices: Floats, normals: Floats, triangles: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The triangles, turned so that they run counter-clockwise seen from the side that their normals point to."""
    a, b, c = (vertices[triangles[:, corner]] for corner in range(3))
    inward = (np.cross(b - a, c - a) * normals[triangles].sum(1)).sum(1) < 0
    turned = triangles.copy()
    turned[inward] = triangles[inward][:, [0, 2, 1]]
    return turned


def oriented(mesh: Mesh) -> Mesh:
    """The mesh with all triangles counter-clockwise seen from outside, as drawing expects them."""
    return replace(mesh, triangles=_outward(mesh.vertices, mesh.normals, mesh.triangles))


def loft(
    centres: npt.ArrayLike,
    radii: npt.ArrayLike,
    region: Region,
    *,
    columns: int = 12,
    squareness: float = 1.0,
    bones: tuple[int, int] = (0, 0),
    weight: npt.ArrayLike = 1.0,
    exposure: npt.ArrayLike = 1.0,
    along: str = "z",
) -> Mesh:
    """A tube through R ellipses.

    centres: (R, 3); radii: (R, 2), half the depth and half the width of each ring: for along="z" in x and y, for
    along="x" in z and y. The texture's middle column lies in front (+x; +z for along="x"), its first and last at the
    back, its left half on the person's right; its rows go from the first ring to the last. squareness below 1 makes
    rounded boxes of the ellipses. weight and exposure are numbers or one a ring (R,). The ends are closed.
    """
    centre = np.asarray(centres, dtype=np.float64)
    radius = np.asarray(radii, dtype=np.float64)
    rings = len(centre)
    turn = np.linspace(-np.pi, np.pi, columns + 1)  # 0 is the front
    depth = np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** squareness
    width = np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** squareness
    points = np.repeat(centre[:, None], columns + 1, axis=1)  # (R, C, 3)
    points[:, :, 0 if along == "z" else 2] += radius[:, :1] * depth
    points[:, :, 1] += radius[:, 1:] * width

    around = np.roll(points[:, :-1], -1, axis=1) - np.roll(points[:, :-1], 1, axis=1)
    around = np.concatenate([around, around[:, :1]], axis=1)
    lengthwise = np.gradient(points, axis=0)
    normals = np.cross(around, lengthwise)
    outward = points - centre[:, None]
    normals *= np.where((normals * outward).sum(-1, keepdims=True) < 0, -1.0, 1.0)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)

    left, top, region_width, region_height = region
    u = left + 1 + np.linspace(0, 1, columns + 1) * (region_width - 3)
    travelled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(centre, axis=0), axis=1))])
    v = top + 1 + travelled / max(travelled[-1], 1e-9) * (region_height - 3)
    texels = np.stack(np.broadcast_arrays(u[None, :], v[:, None]), -1)

    first = (np.arange(rings - 1)[:, None] * (columns + 1) + np.arange(columns)[None, :]).ravel()
    below = first + columns + 1
    triangles = [np.stack([first, first + 1, below], 1), np.stack([first + 1, below + 1, below], 1)]
    for ring in (0, rings - 1):  # the caps: a fan over the end's own vertices
        start = ring * (columns + 1)
        fan = start + np.arange(1, columns - 1)
        triangles.append(np.stack([np.full_like(fan, start), fan, fan + 1], 1))

    count = rings * (columns + 1)
    per_ring = np.ones((rings, columns + 1))
    return Mesh(
        vertices=points.reshape(count, 3).astype(np.float32),
        normals=normals.reshape(count, 3).astype(np.float32),
        texels=texels.reshape(count, 2).astype(np.float32),
        exposure=(per_ring * np.asarray(exposure, dtype=float).reshape(-1, 1)).ravel().astype(np.float32),
        bones=np.tile(np.array(bones, dtype=np.int32), (count, 1)),
        weight=(per_ring * np.asarray(weight, dtype=float).reshape(-1, 1)).ravel().astype(np.float32),
        triangles=np.concatenate(triangles).astype(np.int32),
    )


def box(low: tuple[float, float, float], high: tuple[float, float, float], regions: tuple[Region, Region, Region]) -> Mesh:
    """An upright box with flat faces. regions: the texture of the faces across x, across y, and of top and bottom."""
    parts = []
    for axis in range(3):
        first, second = [other for other in range(3) if other != axis]
        left, top, width, height = regions[axis]
        for end, sign in ((low, -1.0), (high, 1.0)):
            corners = np.empty((4, 3))
            corners[:, axis] = end[axis]
            corners[:, first] = [low[first], high[first], high[first], low[first]]
            corners[:, second] = [high[second], high[second], low[second], low[second]]
            normal = np.zeros(3)
            normal[axis] = sign
            u = left + 1 + np.array([0, 1, 1, 0]) * (width - 3)
            v = top + 1 + np.array([0, 0, 1, 1]) * (height - 3)
            exposure = 1 - 0.3 * (corners[:, 2] <= low[2] + 1e-6)
            parts.append(rigid(corners, normal, np.stack([u, v], 1), [[0, 1, 2], [0, 2, 3]], exposure))
    return merge(parts)


def placed(mesh: Mesh, x: float, y: float, heading: float) -> Mesh:
    """The mesh standing at a ground point (metres), its forward axis turned to `heading` (radians)."""
    c, s = np.cos(heading), np.sin(heading)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=np.float32)
    vertices = mesh.vertices @ rotation.T + np.array([x, y, 0], dtype=np.float32)
    return replace(mesh, vertices=vertices, normals=mesh.normals @ rotation.T)


def posed(mesh: Mesh, rotations: Floats, offsets: Floats) -> tuple[Floats, Floats]:
    """Vertices and normals (F, V, 3) of a skinned mesh; rotations (F, B, 3, 3), offsets (F, B, 3) as from `body.walk`.

    Each vertex moves with its two bones' weighted mean transform (linear blend skinning).
    """
    frames, bones = rotations.shape[:2]
    rows = np.arange(len(mesh.vertices))
    share = np.zeros((len(rows), bones), np.float32)
    share[rows, mesh.bones[:, 0]] = mesh.weight
    share[rows, mesh.bones[:, 1]] += 1 - mesh.weight
    # One matrix product for all: (V, 4 B) weighted points times (F, 4 B, 3) transforms.
    points = np.concatenate([mesh.vertices, np.ones((len(rows), 1), np.float32)], 1)
    weighted = (share[:, :, None] * points[:, None, :]).reshape(len(rows), 4 * bones)
    transforms = np.concatenate([rotations.transpose(0, 1, 3, 2), offsets[:, :, None, :]], 2).reshape(frames, 4 * bones, 3)
    directions = (share[:, :, None] * mesh.normals[:, None, :]).reshape(len(rows), 3 * bones)
    turns = rotations.transpose(0, 1, 3, 2).reshape(frames, 3 * bones, 3)
    return np.matmul(weighted, transforms), np.matmul(directions, turns)
