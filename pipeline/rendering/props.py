"""Things that stand in a street and may hide people: cars, bins, planters, benches, pillars, poles, signs, trees."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.rendering.clothing import as_bytes, smooth_noise
from pipeline.rendering.mesh import Mesh, Region, box, loft, merge, oriented, rigid

Picture = npt.NDArray[np.float32]
SIZE = 256
MAIN: Region = (0, 0, 128, 128)
SECOND: Region = (128, 0, 128, 128)
THIRD: Region = (0, 128, 128, 128)
FOURTH: Region = (128, 128, 128, 128)


@dataclass(frozen=True)
class Prop:
    """A thing: its mesh around its own origin, its texture (256, 256, 3) uint8, and its footprint's half sizes (m)."""

    kind: str
    mesh: Mesh
    texture: npt.NDArray[np.uint8]
    half_depth: float
    half_width: float
    height: float


def _paint(rng: np.random.Generator, colours: list[list[float]], roughness: float) -> Picture:
    texture = np.empty((SIZE, SIZE, 3), np.float32)
    for (left, top, width, height), colour in zip((MAIN, SECOND, THIRD, FOURTH), colours, strict=True):
        texture[top : top + height, left : left + width] = colour
    texture *= (1 + roughness * smooth_noise(rng, SIZE, SIZE, 24, 24))[:, :, None]
    return texture + 2 * rng.standard_normal((SIZE, SIZE, 1), np.float32)


def _grey(rng: np.random.Generator, low: float = 45, high: float = 170) -> list[float]:
    return (rng.uniform(low, high) * np.ones(3) + rng.normal(0, 5, 3)).tolist()


def _car(rng: np.random.Generator) -> Prop:
    tall = bool(rng.random() < 0.3)  # a van
    length, width, roof = (4.7, 0.95, 2.0) if tall else (4.3, 0.88, 1.46)
    body = [[225, 225, 225], [32, 33, 36], [128, 130, 134], [70, 72, 78], [38, 52, 92], [148, 32, 34], [180, 176, 166]]
    paint = body[int(rng.integers(len(body)))]
    if tall:
        outline = [[-2.35, 0.35], [-2.35, 1.75], [-2.2, 2.0], [1.0, 2.0], [1.75, 1.15], [2.25, 1.0], [2.35, 0.7], [2.35, 0.35]]
        glass = [[0.1, 1.85], [0.95, 1.85], [1.5, 1.2], [0.1, 1.2]]
    else:
        outline = [
            [-2.15, 0.35],
            [-2.15, 0.85],
            [-1.75, 1.0],
            [-1.15, 1.42],
            [0.35, 1.46],
            [1.1, 1.0],
            [1.95, 0.85],
            [2.15, 0.6],
            [2.15, 0.35],
        ]
        glass = [[-1.45, 1.02], [-1.0, 1.36], [0.25, 1.38], [0.85, 1.02]]
    side = np.empty((128, 256, 3), np.float32)  # the upper half of the texture shows the side, 20 mm a texel
    side[:] = paint

    def at(points: list[list[float]]) -> npt.NDArray[np.int32]:
        p = np.array(points)
        return np.stack([(p[:, 0] + 2.5) / 5 * 255, 127 - p[:, 1] / 2.2 * 127], 1).astype(np.int32)

    cv2.fillPoly(side, [at(glass)], (48, 54, 60))
    cv2.line(side, at([[-0.3, 1.45]])[0].tolist(), at([[-0.3, 0.4]])[0].tolist(), [0.6 * c for c in paint], 2)
    cv2.line(side, at([[0.8, 1.0]])[0].tolist(), at([[0.8, 0.4]])[0].tolist(), [0.6 * c for c in paint], 1)
    texture = np.empty((SIZE, SIZE, 3), np.float32)
    texture[:128] = side
    texture[128:] = paint
    texture[128:, 128:] = (46, 52, 58)
    texture[192:, :128] = (26, 26, 27)

    # The hull: the outline at both sides, drawn in above the belt line, and the strip between them.
    line = np.array(outline)
    half = np.where(line[:, 1] > 1.05, width - 0.14, width)
    count = len(line)
    vertices: list[Picture] = []
    texels: list[Picture] = []
    normals: list[Picture] = []
    triangles: list[list[int]] = []
    for sign in (-1, 1):
        start = len(vertices) * count
        vertices.append(np.stack([line[:, 0], sign * half, line[:, 1]], 1))
        texels.append(np.stack([(line[:, 0] + 2.5) / 5 * 255, 127 - line[:, 1] / 2.2 * 127], 1))
        normals.append(np.tile([0.0, sign, 0.15], (count, 1)))
        triangles += [[start, start + k, start + k + 1] for k in range(1, count - 1)]
    strips = []
    for k in range(count - 1):
        a, b = line[k], line[k + 1]
        slope = np.array([-(b[1] - a[1]), 0.0, b[0] - a[0]])
        slope = slope / np.linalg.norm(slope)
        is_glass = abs(b[1] - a[1]) > 0.25 and min(a[1], b[1]) >= 0.95 and abs(b[0] - a[0]) > 0.3
        place = (190.0, 190.0) if is_glass else (60.0, 160.0)
        strips.append((a, half[k], b, half[k + 1], slope, place))
    start = 2 * count
    for a, half_a, b, half_b, slope, place in strips:
        vertices.append(np.array([[a[0], -half_a, a[1]], [a[0], half_a, a[1]], [b[0], half_b, b[1]], [b[0], -half_b, b[1]]]))
        texels.append(np.tile(place, (4, 1)))
        normals.append(np.tile(slope, (4, 1)))
        triangles += [[start, start + 1, start + 2], [start, start + 2, start + 3]]
        start += 4
    points = np.concatenate(vertices)
    exposure = np.interp(points[:, 2], [0.3, 0.8], [0.7, 1.0])
    parts = [rigid(points, np.concatenate(normals), np.concatenate(texels), triangles, exposure)]
    for x in (-1.35, 1.35):
        for sign in (-1, 1):
            angle = np.linspace(0, 2 * np.pi, 14)
            rim = np.stack([x + 0.32 * np.cos(angle), np.full(14, sign * (width + 0.01)), 0.32 + 0.32 * np.sin(angle)], 1)
            parts.append(rigid(rim, [0.0, sign, 0.0], [60.0, 220.0], [[0, k, k + 1] for k in range(1, 13)]))
    parts.append(box((-2.1, -width + 0.1, 0.12), (2.1, width - 0.1, 0.4), ((10, 200, 60, 40),) * 3))
    return Prop("van" if tall else "car", merge(parts), as_bytes(texture), length / 2, width, roof)


def _bin(rng: np.random.Generator) -> Prop:
    texture = _paint(rng, [_grey(rng, 40, 110), [52, 84, 58], _grey(rng), [40, 40, 42]], 0.03)
    region = (MAIN, SECOND)[int(rng.integers(2))]
    radius, height = rng.uniform(0.28, 0.38), rng.uniform(1.0, 1.25)
    z = np.array([height, height - 0.03, height - 0.2, height - 0.22, 0.05, 0.0])
    scale = np.array([0.5, 1.0, 1.0, 0.9, 0.88, 0.85]) * radius
    mesh = loft(np.stack([0 * z, 0 * z, z], 1), np.stack([scale, scale], 1), region, columns=14)
    return Prop("bin", oriented(mesh), as_bytes(texture), radius, radius, height)


def _planter(rng: np.random.Generator) -> Prop:
    texture = _paint(rng, [_grey(rng, 90, 180), [70, 96, 52], [58, 84, 46], _grey(rng)], 0.05)
    leaves = cv2.GaussianBlur(rng.standard_normal((128, 128)).astype(np.float32), (0, 0), 1.6)
    texture[:128, 128:] *= np.clip(1 + 1.9 * leaves, 0.35, 1.8)[:, :, None]
    width, depth = rng.uniform(0.6, 1.7), rng.uniform(0.3, 0.45)
    rim = rng.uniform(0.45, 0.7)
    parts = [box((-depth, -width, 0), (depth, width, rim), (MAIN, MAIN, MAIN))]
    count = max(2, int(width / 0.3))
    top = rim
    for number in range(count):
        y = -width + (number + 0.5) * 2 * width / count
        high = rng.uniform(0.3, 0.65)
        top = max(top, rim + high)
        angle = np.linspace(0.1, np.pi - 0.1, 7)
        z = rim + 0.05 + high * 0.5 + 0.55 * high * np.cos(angle)
        ring = np.stack([1.1 * depth * np.sin(angle), 1.25 * width / count * np.sin(angle)], 1) * rng.uniform(0.9, 1.2, (7, 1))
        parts.append(loft(np.stack([0 * z, y + 0 * z, z], 1), ring, SECOND, columns=12))
    return Prop("planter", merge(parts), as_bytes(texture), depth, width, top)


def _barrier(rng: np.random.Generator) -> Prop:
    """A low wall, a counter or a striped roadworks barrier."""
    texture = _paint(rng, [_grey(rng, 70, 190), [150, 96, 78], _grey(rng, 90, 160), _grey(rng)], 0.03)
    front = MAIN
    if rng.random() < 0.35:
        front = SECOND
        for column in range(-128, 128, 32):
            stripe = np.array([[column, 128], [column + 16, 128], [column + 56, 0], [column + 40, 0]])
            cv2.fillConvexPoly(
                texture[:128], np.clip(stripe + np.array([128, 0]), (128, 0), (255, 127)).astype(np.int32), (222, 218, 210)
            )
    width, depth, height = rng.uniform(0.7, 1.9), rng.uniform(0.12, 0.3), rng.uniform(0.95, 1.3)
    parts = [box((-depth, -width, 0), (depth, width, height - 0.06), (front, MAIN, MAIN))]
    parts.append(box((-depth - 0.03, -width - 0.03, height - 0.06), (depth + 0.03, width + 0.03, height), (THIRD,) * 3))
    return Prop("barrier", merge(parts), as_bytes(texture), depth, width, height)


def _bench(rng: np.random.Generator) -> Prop:
    texture = _paint(rng, [[128, 92, 60], [52, 52, 54], _grey(rng), _grey(rng)], 0.05)
    width = rng.uniform(0.8, 1.05)
    regions = (MAIN, MAIN, MAIN)
    parts = [box((-0.22, -width, 0.42), (0.22, width, 0.47), regions)]
    parts += [box((0.20, -width, low), (0.24, width, low + 0.12), regions) for low in (0.52, 0.70)]
    parts += [box((-0.2, y - 0.04, 0), (0.24, y + 0.04, 0.44), (SECOND,) * 3) for y in (-0.8 * width, 0.8 * width)]
    return Prop("bench", merge(parts), as_bytes(texture), 0.25, width, 0.85)


def _pillar(rng: np.random.Generator) -> Prop:
    poster = bool(rng.random() < 0.5)
    texture = _paint(rng, [_grey(rng, 110, 200), [140, 92, 74], _grey(rng), _grey(rng)], 0.03)
    region = (MAIN, SECOND)[int(rng.random() < 0.3)]
    if poster:
        region = MAIN
        for _ in range(5):
            x, y = rng.integers(0, 100, 2)
            colour = np.clip(rng.normal(130, 60, 3), 20, 235).tolist()
            cv2.rectangle(texture, (int(x), int(y)), (int(x) + 26, int(y) + 26), colour, -1)
    radius = rng.uniform(0.3, 0.6) if poster else rng.uniform(0.14, 0.42)
    z = np.linspace(3.4, 0, 6)
    ring = np.full((6, 2), radius)
    squareness = 1.0 if poster else float(rng.choice([1.0, 0.25]))
    mesh = loft(np.stack([0 * z, 0 * z, z], 1), ring, region, columns=16, squareness=squareness)
    return Prop("pillar", oriented(mesh), as_bytes(texture), radius, radius, 3.4)


def _pole(rng: np.random.Generator) -> Prop:
    texture = _paint(rng, [_grey(rng, 60, 150), _grey(rng), _grey(rng), _grey(rng)], 0.02)
    z = np.array([4.5, 1.0, 0.9, 0.0])
    ring = np.array([0.06, 0.07, 0.11, 0.12])
    mesh = loft(np.stack([0 * z, 0 * z, z], 1), np.stack([ring, ring], 1), MAIN, columns=10)
    return Prop("pole", oriented(mesh), as_bytes(texture), 0.12, 0.12, 4.5)


def _sign(rng: np.random.Generator) -> Prop:
    board = rng.normal(125, 60, 3)
    board = np.clip(board + (board.mean() - board) * rng.uniform(0.1, 0.7), 25, 225).tolist()
    texture = _paint(rng, [board, [62, 62, 64], _grey(rng), _grey(rng)], 0.01)
    ink = (236.0, 234.0, 228.0) if sum(board) < 400 else (40.0, 40.0, 46.0)
    cv2.circle(texture, (64, 40), 26, ink, -1)
    for row in (78, 92, 106):
        cv2.line(texture, (20, row), (int(rng.integers(70, 112)), row), ink, 4)
    width, low, high = rng.uniform(0.45, 0.75), rng.uniform(0.05, 0.5), rng.uniform(1.15, 1.8)
    parts = [box((-0.06, -width, low), (0.06, width, high), (MAIN, SECOND, SECOND))]
    parts += [box((-0.05, y - 0.04, 0), (0.05, y + 0.04, low), (SECOND,) * 3) for y in (-0.8 * width, 0.8 * width)]
    return Prop("sign", merge(parts), as_bytes(texture), 0.08, width, high)


def _tree(rng: np.random.Generator) -> Prop:
    green = (np.array([74, 98, 52]) * rng.uniform(0.75, 1.2)).tolist()
    texture = _paint(rng, [[88, 74, 60], green, green, green], 0.10)
    leaves = cv2.GaussianBlur(rng.standard_normal((128, 128)).astype(np.float32), (0, 0), 1.8)
    texture[:128, 128:] *= np.clip(1 + 2.0 * leaves, 0.3, 1.8)[:, :, None]
    z = np.array([3.2, 1.5, 0.3, 0.0])
    ring = np.array([0.11, 0.14, 0.17, 0.24])
    parts = [loft(np.stack([0 * z, 0 * z, z], 1), np.stack([ring, ring], 1), MAIN, columns=10)]
    for _ in range(6):
        centre, size = rng.normal(0, 0.6, 2), rng.uniform(0.7, 1.2)
        angle = np.linspace(0.1, np.pi - 0.1, 7)
        z = rng.uniform(2.9, 4.2) + size * np.cos(angle)
        parts.append(
            loft(np.stack([centre[0] + 0 * z, centre[1] + 0 * z, z], 1), size * np.stack([np.sin(angle)] * 2, 1), SECOND)
        )
    return Prop("tree", merge(parts), as_bytes(texture), 0.2, 0.2, 5.0)


MAKERS = {
    "car": _car,
    "bin": _bin,
    "planter": _planter,
    "barrier": _barrier,
    "bench": _bench,
    "pillar": _pillar,
    "pole": _pole,
    "sign": _sign,
    "tree": _tree,
}


def make_prop(rng: np.random.Generator, kind: str) -> Prop:
    """A thing of one of the kinds in MAKERS, with random size and colour."""
    return MAKERS[kind](rng)
