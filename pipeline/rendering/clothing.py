"""The texture of one person: cloth, skin, hair and bag painted into one small picture (an atlas)."""

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.rendering.appearance import Appearance, Colour
from pipeline.rendering.mesh import Region
from pipeline.rendering.randomness import stream

Picture = npt.NDArray[np.float32]

SIZE = 256
TOP: Region = (0, 0, 128, 128)
LEFT_ARM: Region = (128, 0, 48, 64)
RIGHT_ARM: Region = (176, 0, 48, 64)
BARE_LEG: Region = (224, 0, 32, 96)
HIPS: Region = (128, 64, 96, 32)
LEFT_LEG: Region = (128, 96, 48, 80)
RIGHT_LEG: Region = (176, 96, 48, 80)
SKIN: Region = (224, 96, 32, 32)
COLLAR: Region = (224, 128, 32, 24)
HEAD: Region = (0, 128, 64, 64)
HAIR: Region = (64, 128, 32, 32)
HEADWEAR: Region = (96, 128, 32, 32)
SHOE: Region = (64, 160, 32, 32)
BAG: Region = (0, 192, 64, 64)
SKIRT: Region = (64, 192, 64, 64)

LONG_SLEEVES = ("jacket", "open_jacket", "coat", "hoodie", "shirt")


def smooth_noise(rng: np.random.Generator, width: int, height: int, across: int, down: int) -> Picture:
    """Soft random relief (height, width) with about `across` x `down` bumps, mean 0 and deviation near 1."""
    seeds = rng.standard_normal((down + 1, across + 1)).astype(np.float32)
    return 1.6 * cv2.resize(seeds, (width, height), interpolation=cv2.INTER_CUBIC)


def _fill(atlas: Picture, region: Region, colour: Colour | npt.NDArray[np.float32]) -> Picture:
    """Fills a region with one colour and returns the region, a view."""
    left, top, width, height = region
    part = atlas[top : top + height, left : left + width]
    part[:] = colour
    return part


def _folds(rng: np.random.Generator, part: Picture, strength: float, across: int, down: int) -> None:
    """Darkens and lightens cloth as its folds do."""
    height, width = part.shape[:2]
    broad = smooth_noise(rng, width, height, across, down)
    creases = smooth_noise(rng, width, height, 3 * across, 2 * down)
    relief = 0.6 * broad + 0.7 * creases
    part *= np.clip(1 + strength * relief, 0.6, 1.35)[:, :, None]


def _mixed(part: Picture, mask: npt.NDArray[np.bool_], colour: Colour) -> None:
    part[mask] = colour


def _print(rng: np.random.Generator, part: Picture, left: float, right: float, top: float, low: float, ink: Colour) -> None:
    """A logo of a few random shapes between the given shares of the region's width and height."""
    height, width = part.shape[:2]
    x0, x1, y0, y1 = left * width, right * width, top * height, low * height
    for _ in range(int(rng.integers(3, 6))):
        x, y = rng.uniform(x0, x1), rng.uniform(y0, y1)
        w, h = (x1 - x0) * rng.uniform(0.25, 0.7), (y1 - y0) * rng.uniform(0.12, 0.45)
        a = (int(max(x0, x - w / 2)), int(max(y0, y - h / 2)))
        b = (int(min(x1, x + w / 2)), int(min(y1, y + h / 2)))
        if rng.random() < 0.6:
            cv2.rectangle(part, a, b, ink, -1)
        else:
            middle = ((a[0] + b[0]) // 2, (a[1] + b[1]) // 2)
            cv2.ellipse(part, middle, (max(1, (b[0] - a[0]) // 2), max(1, (b[1] - a[1]) // 2)), 0, 0, 360, ink, -1)


def _pattern(rng: np.random.Generator, part: Picture, person: Appearance, is_sleeve: bool) -> None:
    """The upper cloth's pattern. The region's middle column is the body's front."""
    height, width = part.shape[:2]
    rows = np.arange(height)[:, None] / height
    columns = np.arange(width)[None, :] / width
    second = person.second_colour
    size = np.random.default_rng(person.texture_seed)  # the same stripes on torso and sleeves
    period = size.uniform(0.10, 0.17)
    share = size.uniform(0.35, 0.55)
    if is_sleeve:
        period *= 1.6  # a sleeve's region is shorter in metres
    if person.pattern == "stripes":
        _mixed(part, np.broadcast_to((rows % period) < share * period, (height, width)), second)
    elif person.pattern == "checks":
        across = (columns % (period * 0.8)) < share * period * 0.5
        down = (rows % period) < share * period * 0.6
        tint = np.array(second, dtype=np.float32)
        part[np.broadcast_to(across, (height, width))] = 0.5 * (np.array(person.upper_colour, np.float32) + tint)
        part[np.broadcast_to(down, (height, width))] = 0.5 * (np.array(person.upper_colour, np.float32) + tint)
        part[across & down] = tint
    elif person.pattern == "block":
        edge = size.uniform(0.25, 0.5)
        upper_is_second = size.random() < 0.6
        mask = np.broadcast_to((rows < edge) == upper_is_second, (height, width))
        if not is_sleeve or size.random() < 0.5:
            _mixed(part, mask, second)
    elif person.pattern == "print" and not is_sleeve:
        _print(rng, part, 0.40, 0.60, 0.26, 0.52, second)
    elif person.pattern == "back" and not is_sleeve:
        back = (np.abs(columns - 0.5) > 0.34) & (rows > 0.16) & (rows < 0.62)
        _mixed(part, np.broadcast_to(back, (height, width)), second)


def _fastening(part: Picture, person: Appearance, hem_share: float) -> None:
    """What is in front of the torso: an open jacket's inside, a zip, lapels, buttons, a belt, a pocket."""
    height, width = part.shape[:2]
    middle = width // 2
    dark = tuple(0.55 * channel for channel in person.upper_colour)
    light = tuple(min(255.0, 30 + 1.15 * channel) for channel in person.upper_colour)
    if person.upper == "open_jacket":
        inside = np.array([[middle - 7, 0], [middle + 7, 0], [middle + 13, height], [middle - 13, height]], np.int32)
        cv2.fillConvexPoly(part, inside, person.second_colour)
        for edge in (-1, 1):
            cv2.line(part, (middle + 7 * edge, 0), (middle + 13 * edge, height), dark, 1)
    elif person.upper == "jacket":
        cv2.line(part, (middle, 0), (middle, height), dark, 2)
        for edge in (-1, 1):
            cv2.line(part, (middle + 14 * edge, int(0.66 * height)), (middle + 20 * edge, int(0.78 * height)), dark, 2)
        part[int(0.93 * height) :] *= 0.8
    elif person.upper == "coat":
        cv2.fillConvexPoly(part, np.array([[middle - 6, 0], [middle + 6, 0], [middle, 26]], np.int32), person.second_colour)
        cv2.line(part, (middle + 1, 24), (middle + 1, height), dark, 1)
        for edge in (-1, 1):
            cv2.line(part, (middle + 8 * edge, 0), (middle, 30), light, 2)
        if person.texture_seed % 3 == 0:  # a belted coat
            waist = int(0.46 * height)
            part[waist : waist + 4] *= 0.6
    elif person.upper == "shirt":
        cv2.line(part, (middle, 0), (middle, height), light, 2)
        for row in range(10, height, 16):
            cv2.circle(part, (middle, row), 1, dark, -1)
    elif person.upper == "hoodie":
        pocket = np.array([[middle - 16, 0.68], [middle + 16, 0.68], [middle + 22, 0.88], [middle - 22, 0.88]])
        pocket[:, 1] *= height
        cv2.polylines(part, [pocket.astype(np.int32)], True, dark, 1)
        part[int(0.94 * height) :] *= 0.82
    elif person.upper == "tshirt":
        cv2.ellipse(part, (middle, 0), (11, 5), 0, 0, 360, person.skin, -1)
    elif person.upper == "dress":
        cv2.ellipse(part, (middle, 0), (13, 10), 0, 0, 360, person.skin, -1)
        waist = int(hem_share * height)
        if person.texture_seed % 2 == 0:
            part[waist : waist + 4] *= 0.5


def _straps(part: Picture, person: Appearance) -> None:
    """The straps of a backpack (in front, over both shoulders) or of a bag worn across the body (front and back)."""
    height, width = part.shape[:2]
    colour = tuple(0.9 * channel for channel in person.bag_colour)
    torso = 0.8 if person.upper not in ("coat", "dress") else 0.45
    if person.bag == "backpack":
        for edge in (-1, 1):
            column = width // 2 + 15 * edge
            points = np.array([[column - 2 * edge, 0], [column, 0.25 * torso], [column + 10 * edge, 0.62 * torso]])
            points[:, 1] *= height
            cv2.polylines(part, [points.astype(np.int32)], False, colour, 5)
    elif person.bag == "shoulder":
        side = person.bag_side
        front = [(width // 2 - 14 * side, 0), (width // 2 + 26 * side, int(torso * height))]
        cv2.line(part, front[0], front[1], colour, 4)
        start = (width // 2 - 14 * side - 36 * side) % width
        end = (width // 2 + 38 * side) % width
        if side > 0:  # behind the body the strap crosses the texture's seam
            cv2.line(part, (start, 0), (start - 28, int(0.5 * torso * height)), colour, 4)
            cv2.line(part, (start - 28 + width, int(0.5 * torso * height)), (end, int(torso * height)), colour, 4)
        else:
            cv2.line(part, (start, 0), (start + 28, int(0.5 * torso * height)), colour, 4)
            cv2.line(part, (start + 28 - width, int(0.5 * torso * height)), (end, int(torso * height)), colour, 4)


def _face(rng: np.random.Generator, part: Picture, person: Appearance) -> None:
    """Eyes, brows, mouth, beard and hairline on the head's region; row 0 is the crown, the last row is the chin."""
    height, width = part.shape[:2]
    middle = width // 2
    brow = int(0.46 * height)
    shade = tuple(0.62 * channel for channel in person.skin)
    for edge in (-1, 1):
        cv2.ellipse(part, (middle + 6 * edge, brow + 5), (4, 2), 0, 0, 360, shade, -1)
        cv2.circle(part, (middle + 6 * edge, brow + 5), 1, (28.0, 24.0, 24.0), -1)
        cv2.line(part, (middle + 3 * edge, brow), (middle + 10 * edge, brow), person.hair_colour, 2)
    cv2.line(part, (middle, brow + 6), (middle, brow + 13), tuple(0.85 * channel for channel in person.skin), 2)
    lips = (0.80 * person.skin[0], 0.58 * person.skin[1], 0.58 * person.skin[2])
    cv2.line(part, (middle - 4, int(0.80 * height)), (middle + 4, int(0.80 * height)), lips, 2)
    rows = np.arange(height)[:, None] / height
    columns = np.arange(width)[None, :] / width
    if person.beard:
        jaw = (rows > 0.70) & (np.abs(columns - 0.5) < 0.2) & ~((np.abs(columns - 0.5) < 0.07) & (rows < 0.84))
        part[jaw] = 0.45 * part[jaw] + 0.55 * np.array(person.hair_colour, np.float32)
    if person.hair != "bald":
        front = 0.33 + 0.04 * rng.standard_normal()
        hairline = np.where(np.abs(columns - 0.5) < 0.16, front, np.where(np.abs(columns - 0.5) < 0.23, 0.62, 0.88))
        _mixed(part, rows < hairline, person.hair_colour)
    else:
        fringe = (rows > 0.35) & (rows < 0.8) & (np.abs(columns - 0.5) > 0.24)
        part[fringe] = 0.6 * part[fringe] + 0.4 * np.array(person.hair_colour, np.float32)


def _leg_cloth(rng: np.random.Generator, part: Picture, person: Appearance) -> None:
    height, width = part.shape[:2]
    columns = np.abs(np.arange(width) / width - 0.5)[None, :]
    rows = np.arange(height)[:, None] / height
    if person.lower == "jeans":  # worn paler on the thighs, with a dark side seam
        pale = np.exp(-((columns / 0.13) ** 2)) * np.exp(-(((rows - 0.32) / 0.28) ** 2))
        part += (26 * pale)[:, :, None]
        part *= (1 - 0.18 * (np.abs(columns - 0.25) < 0.02))[:, :, None]
    _folds(rng, part, 0.05 if person.lower == "trousers" else 0.07, 4, 8)


def as_bytes(texture: Picture) -> npt.NDArray[np.uint8]:
    """A painted texture as uint8; neither black nor white is ever pure in a street."""
    return np.clip(np.rint(texture), 4, 250).astype(np.uint8)


def paint(person: Appearance) -> npt.NDArray[np.uint8]:
    """The person's texture, (256, 256, 3) uint8 RGB."""
    rng = stream("clothing", person.texture_seed)
    atlas: Picture = np.full((SIZE, SIZE, 3), 60, dtype=np.float32)
    top = _fill(atlas, TOP, person.upper_colour)
    _pattern(rng, top, person, is_sleeve=False)
    _fastening(top, person, hem_share=0.45)
    fold_strength = {"tshirt": 0.04, "shirt": 0.045, "hoodie": 0.05, "jacket": 0.065, "open_jacket": 0.06}
    _folds(rng, top, fold_strength.get(person.upper, 0.045), 6, 4)
    if person.upper == "jacket" and person.texture_seed % 4 == 0:  # a quilted jacket
        rows = np.arange(top.shape[0])[:, None, None]
        top *= 0.9 + 0.16 * np.abs(np.sin(rows * np.pi / 12))
    _straps(top, person)
    for region in (LEFT_ARM, RIGHT_ARM):
        sleeve = _fill(atlas, region, person.upper_colour)
        _pattern(rng, sleeve, person, is_sleeve=True)
        _folds(rng, sleeve, 0.06 if person.upper in LONG_SLEEVES else 0.04, 2, 6)
        if person.upper in LONG_SLEEVES:
            sleeve[-4:] *= 0.75
    hips = _fill(atlas, HIPS, person.lower_colour)
    hips[:5] = (40, 32, 28) if person.lower in ("jeans", "trousers") else np.array(person.lower_colour) * 0.8
    _folds(rng, hips, 0.05, 5, 3)
    hips[:, :2] *= 0.7
    for region in (LEFT_LEG, RIGHT_LEG):
        _leg_cloth(rng, _fill(atlas, region, person.lower_colour), person)
    skirt = _fill(atlas, SKIRT, person.lower_colour)
    if person.texture_seed % 3 == 0:
        skirt *= (1 + 0.14 * np.sin(np.arange(64) * 2 * np.pi / 6))[None, :, None].astype(np.float32)  # pleats
    _folds(rng, skirt, 0.06, 6, 3)
    bare = _fill(atlas, BARE_LEG, person.skin)
    bare *= 0.96
    tights = person.lower == "skirt" or person.upper == "dress"
    if tights and person.texture_seed % 5 < 2:
        bare[:] = (38, 35, 36)
    elif person.lower == "shorts" and not tights:
        bare[-14:] = person.sole_colour  # socks
    _fill(atlas, SKIN, person.skin)
    collar = _fill(atlas, COLLAR, person.upper_colour)
    collar *= 0.85
    if person.upper == "shirt":
        collar[:] = np.minimum(np.array(person.upper_colour, np.float32) * 1.1 + 12, 245)
    _face(rng, _fill(atlas, HEAD, person.skin), person)
    hair = _fill(atlas, HAIR, person.hair_colour)
    strands = smooth_noise(rng, 32, 32, 12, 2)
    hair *= (1 + 0.13 * strands)[:, :, None]
    _folds(rng, _fill(atlas, HEADWEAR, person.headwear_colour), 0.05, 4, 3)
    shoe = _fill(atlas, SHOE, person.shoe_colour)
    shoe[:, :6] = shoe[:, -6:] = person.sole_colour
    bag = _fill(atlas, BAG, person.bag_colour)
    bag[18:20] *= 0.6
    cv2.rectangle(bag, (20, 30), (44, 54), tuple(0.75 * channel for channel in person.bag_colour), 1)
    bag[34:36, 22:42] = np.minimum(np.array(person.bag_colour, np.float32) * 1.3 + 30, 250)
    _folds(rng, bag, 0.05, 5, 5)
    return as_bytes(atlas)
