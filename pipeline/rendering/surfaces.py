"""Textures of the ground and of walls: paving, asphalt, grass, brick, shop fronts, hedges."""

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.rendering.clothing import smooth_noise
from pipeline.rendering.randomness import choose

Picture = npt.NDArray[np.float32]
SHADES = {"asphalt": (98, 100, 103), "slabs": (158, 154, 146), "bricks": (148, 112, 94), "concrete": (168, 166, 160)}
SHADES |= {"tiles": (188, 184, 176), "grass": (92, 112, 62), "gravel": (166, 152, 128), "cobbles": (118, 114, 110)}


def ground(rng: np.random.Generator, kind: str, width: int, height: int, scale: float) -> Picture:
    """A stretch of ground seen from above, (height, width, 3) float32; scale is in pixels a metre."""
    base = np.array(SHADES[kind], np.float32) * rng.uniform(0.8, 1.15) + rng.normal(0, 5, 3).astype(np.float32)
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = base
    if kind in ("slabs", "bricks", "tiles", "cobbles", "concrete"):
        low, high = {"slabs": (0.4, 0.8), "bricks": (0.2, 0.26), "tiles": (0.5, 1.0), "cobbles": (0.16, 0.22)}.get(
            kind, (1.8, 3.2)
        )
        across = rng.uniform(low, high) * scale
        down = across * (0.5 if kind == "bricks" else rng.choice([1.0, 0.6]))
        rows, columns = np.arange(height), np.arange(width)
        row = (rows / down).astype(int)
        shift = 0.5 * across * (row % 2) if kind != "tiles" else np.zeros(height)
        column = ((columns[None, :] + shift[:, None]) / across).astype(int)
        tones = rng.normal(1, {"bricks": 0.09, "cobbles": 0.10, "slabs": 0.05}.get(kind, 0.025), 4096).astype(np.float32)
        picture *= tones[(row[:, None] * 131 + column * 17) % 4096][:, :, None]
        joint = max(1.0, 0.012 * scale)
        lines = ((rows % down) < joint)[:, None] | (((columns[None, :] + shift[:, None]) % across) < joint)
        picture[lines] *= 1.12 if kind == "tiles" and rng.random() < 0.4 else 0.78
    grain = rng.standard_normal((height, width)).astype(np.float32)
    if kind in ("grass", "gravel"):
        picture += 13 * cv2.GaussianBlur(grain, (0, 0), 1.0)[:, :, None] * 1.8
        tufts = smooth_noise(rng, width, height, max(2, int(width / scale * 2)), max(2, int(height / scale * 2)))
        picture *= (1 + 0.06 * tufts)[:, :, None]
    else:
        picture += (7 if kind == "asphalt" else 4) * grain[:, :, None]
    stains = smooth_noise(rng, width, height, max(2, int(width / scale / 2)), max(2, int(height / scale / 2)))
    picture *= (1 + 0.045 * stains)[:, :, None]
    for _ in range(int(rng.integers(3, 10))):  # gum, oil, leaves
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.ellipse(picture, centre, (int(rng.integers(2, 12)), int(rng.integers(2, 8))), 0, 0, 360, (base * 0.75).tolist(), -1)
    return picture


def _blocks(rng: np.random.Generator, part: Picture, across: int, down: int, spread: float) -> None:
    """Courses of bricks or panels with their joints."""
    height, width = part.shape[:2]
    row = np.arange(height) // down
    column = (np.arange(width)[None, :] + (row % 2)[:, None] * across // 2) // across
    tones = rng.normal(1, spread, 1024).astype(np.float32)
    part *= tones[(row[:, None] * 37 + column * 11) % 1024][:, :, None]
    joints = ((np.arange(height) % down) == 0)[:, None] | (
        (np.arange(width)[None, :] + (row % 2)[:, None] * across // 2) % across == 0
    )
    part[joints] *= 0.82


def _colour(rng: np.random.Generator) -> list[float]:
    """A painted colour: mostly muted."""
    colour = rng.normal(112, 55, 3)
    return np.clip(colour + (colour.mean() - colour) * rng.uniform(0.25, 0.8), 25, 225).tolist()


def _window(rng: np.random.Generator, part: Picture, left: int, top: int, right: int, low: int, lit: bool) -> None:
    """A pane with its frame and a vague reflection or a lit inside."""
    if right - left < 4 or low - top < 4:
        return
    pane = part[top:low, left:right]
    base = rng.uniform(45, 85) * np.array([0.92, 1.0, 1.08]) if not lit else rng.uniform(120, 190) * np.array([1.05, 1, 0.86])
    pane[:] = base
    height, width = pane.shape[:2]
    glare = np.linspace(rng.uniform(1.0, 1.5), rng.uniform(0.7, 0.95), height)[:, None] * np.ones((1, width))
    slanted = (np.arange(width)[None, :] + 0.5 * np.arange(height)[:, None]) / max(width, 20)
    glare *= 1 + 0.18 * np.clip(np.sin(slanted * rng.uniform(4, 9) + rng.uniform(0, 6)) * 3, -1, 1)
    glare *= 1 + 0.06 * smooth_noise(rng, width, height, 3, 3)
    pane *= glare[:, :, None].astype(np.float32)
    if lit:
        for _ in range(int(rng.integers(2, 6))):
            a = (int(rng.integers(width)), int(height * rng.uniform(0.35, 0.9)))
            cv2.rectangle(part, (left + a[0], top + a[1]), (min(right, left + a[0] + width // 6), low - 2), _colour(rng), -1)
    frame = (np.array([1.0, 1.0, 1.0]) * rng.choice([40, 90, 215])).tolist()
    cv2.rectangle(part, (left, top), (right, low), frame, 2)
    if width > 50:
        cv2.line(part, ((left + right) // 2, top), ((left + right) // 2, low), frame, 1)


def _segment(rng: np.random.Generator, kind: str, part: Picture, scale: float) -> None:
    """One house front, hedge or fence; the last row of `part` stands on the ground."""
    height, width = part.shape[:2]

    def row(metres: float) -> int:
        return int(np.clip(height - metres * scale, 0, height - 1))

    if kind == "hedge":
        part[:] = np.array([58, 80, 44], np.float32) * rng.uniform(0.7, 1.2)
        leaves = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), 2.0)
        part *= np.clip(1 + 2.2 * leaves + 0.2 * smooth_noise(rng, width, height, 8, 10), 0.3, 1.9)[:, :, None]
        part[row(0.25) :] *= 0.6
        return
    if kind == "fence":
        part[:] = np.array([86, 102, 72], np.float32) * rng.uniform(0.6, 1.1)
        part *= (1 + 0.3 * smooth_noise(rng, width, height, 14, 12))[:, :, None]
        for column in range(0, width, max(3, int(0.14 * scale))):
            cv2.line(part, (column, row(1.5)), (column, height), (52, 54, 56), 1)
        cv2.line(part, (0, row(1.5)), (width, row(1.5)), (52, 54, 56), 2)
        part[row(0.3) :] = (134, 132, 126)
        return
    tones = {"brick": (142, 88, 70), "plaster": (200, 192, 176), "panel": (172, 174, 176), "shop": (150, 140, 128)}
    part[:] = np.array(tones.get(kind, (196, 194, 190)), np.float32) * rng.uniform(0.72, 1.1) + rng.normal(0, 9, 3)
    if kind == "brick":
        _blocks(rng, part, max(4, int(0.24 * scale)), max(3, int(0.08 * scale)), 0.08)
    elif kind == "panel":
        _blocks(rng, part, int(1.2 * scale), int(0.9 * scale), 0.03)
    part *= (1 + 0.035 * smooth_noise(rng, width, height, 5, 6))[:, :, None]
    if kind == "shop":
        top, low = row(rng.uniform(2.4, 2.8)), row(rng.uniform(0.3, 0.6))
        _window(rng, part, int(0.06 * width), top, int(0.62 * width), low, lit=rng.random() < 0.6)
        door = int(0.68 * width)
        _window(rng, part, door, top, int(min(width - 3, door + 1.0 * scale)), row(0.05), lit=rng.random() < 0.4)
        sign = _colour(rng)
        cv2.rectangle(part, (0, row(3.5)), (width, row(2.9)), sign, -1)
        ink = (235.0, 232.0, 225.0) if sum(sign) < 400 else (35.0, 35.0, 40.0)
        x = int(0.15 * width)
        while x < 0.8 * width:  # lettering too small to read
            step = int(rng.uniform(0.10, 0.24) * scale)
            cv2.rectangle(part, (x, row(3.33)), (x + max(1, int(0.6 * step)), row(3.08)), ink, -1)
            x += max(2, step)
        if rng.random() < 0.4:
            stripe = max(3, int(0.22 * scale))
            for number, column in enumerate(range(0, width, stripe)):
                shade = sign if number % 2 else [225.0, 222.0, 214.0]
                cv2.rectangle(part, (column, row(2.95)), (column + stripe, row(2.45)), shade, -1)
    elif kind == "wall":
        rail = row(0.12)
        part[rail:] *= 0.7
        for _ in range(int(rng.integers(0, 3))):  # posters
            x = int(rng.uniform(0.1, 0.7) * width)
            cv2.rectangle(part, (x, row(2.1)), (x + int(0.7 * scale), row(1.1)), _colour(rng), -1)
            cv2.rectangle(part, (x, row(2.1)), (x + int(0.7 * scale), row(1.1)), (60, 60, 62), 1)
    elif kind == "glass":
        for column in range(0, width, int(1.3 * scale)):
            _window(rng, part, column, row(2.9), min(width - 1, column + int(1.3 * scale)), row(0.1), lit=rng.random() < 0.5)
    else:
        count = max(1, int(width / scale / 1.9))
        for number in range(count):
            centre = int((number + 0.5) / count * width)
            half = int(0.45 * scale)
            if number == count // 2 and rng.random() < 0.5:
                cv2.rectangle(part, (centre - half, row(2.2)), (centre + half, height), _colour(rng), -1)
                cv2.rectangle(part, (centre - half, row(2.2)), (centre + half, height), (70, 68, 66), 2)
            else:
                _window(rng, part, centre - half, row(2.3), centre + half, row(0.95), lit=rng.random() < 0.2)
    if kind not in ("wall", "glass"):
        for storey in (4.1, 7.0):
            count = max(1, int(width / scale / 2.1))
            for number in range(count):
                centre = int((number + 0.5) / count * width)
                half = int(0.45 * scale)
                _window(rng, part, centre - half, row(storey + 1.5), centre + half, row(storey), lit=rng.random() < 0.15)
    part[row(0.2) :] *= 0.85


def wall(rng: np.random.Generator, place: str, width: int, height: int, scale: float) -> Picture:
    """What stands behind a place, seen from the front, (height, width, 3) float32; the last row is on the ground."""
    fronts: dict[str, dict[str, float]] = {
        "street": {"shop": 5, "brick": 2, "plaster": 2.5, "panel": 1},
        "plaza": {"shop": 3, "panel": 2, "brick": 1, "glass": 2, "plaster": 1, "hedge": 1},
        "park": {"hedge": 5, "fence": 3, "brick": 0.6},
        "hall": {"wall": 4, "glass": 2.5, "panel": 1},
    }
    picture = np.empty((height, width, 3), np.float32)
    left = 0
    while left < width:
        right = min(width, left + int(rng.uniform(3.0, 6.5) * scale))
        _segment(rng, choose(rng, fronts[place]), picture[:, left:right], scale)
        if place != "park":
            picture[:, right - 2 : right] *= 0.7
        left = right
    return picture
