"""What cameras and crowds do to a segment of crops, made up for training: all decided once a segment, so that frames agree.

Frames are uint8 [T, h, w, 3], RGB, of any size; random numbers come from the generator that is given, and nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError

Frames = NDArray[np.uint8]
COVERED = 0.5  # share of the crop's lower part that an occluder covers when the person counts as hidden
HEAD = 0.18  # share of the height, at the top, that stays visible when a person is hidden


@dataclass(frozen=True)
class AugmentationSettings:
    """Each is off at 0.

    crop: largest shift and change of size, as a share of the crop. Probabilities, each of one decision a segment: flip; erase, a
    rectangle that stays (random erasing); occluder, something that passes in front: a block of one colour or texture, a thing
    (post, box, bush) or another person's crop; blur, of lens or motion; resolution, fewer pixels; compression, JPEG.
    light: largest change of brightness, contrast and gamma, as a share; cast: of the colours against each other.
    """

    crop: float = 0.08
    flip: float = 0.5
    erase: float = 0.3
    occluder: float = 0.3
    light: float = 0.25
    cast: float = 0.12
    blur: float = 0.25
    resolution: float = 0.25
    compression: float = 0.3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise UsageError(f"the augmentation {name} is from 0 (off) to 1, not {value}")


def augment(
    frames: Frames, random: np.random.Generator, settings: AugmentationSettings | None = None, others: Frames | None = None
) -> tuple[Frames, NDArray[np.bool_]]:
    """A segment as another camera, or on another day, might have seen it.

    others: crops of other people, uint8 [m, h', w', 3], to be pasted in front; without them occluders are blocks and things.
    Returns new frames of the same shape and, bool [T], in which of them an occluder covers the person.
    """
    settings = settings or AugmentationSettings()
    hidden = np.zeros(len(frames), bool)
    if settings.crop:
        frames = _crop_jitter(frames, random, settings.crop)
    if settings.occluder and random.random() < settings.occluder:  # before the flip and the camera: it stands in the scene
        frames, hidden = _occlude(frames, random, others)
    if settings.flip and random.random() < settings.flip:
        frames = frames[:, :, ::-1]
    if settings.light or settings.cast:
        frames = _recolour(frames, random, settings.light, settings.cast)
    if settings.resolution and random.random() < settings.resolution:
        frames = _coarsen(frames, random)
    if settings.blur and random.random() < settings.blur:
        frames = _blur(frames, random)
    if settings.compression and random.random() < settings.compression:
        frames = _compress(frames, random)
    if settings.erase and random.random() < settings.erase:
        frames = _erase(frames, random)
    return np.ascontiguousarray(frames), hidden


def _each(frames: Frames, change: Callable[[Frames], NDArray]) -> Frames:
    return np.stack([change(frame) for frame in frames]).astype(np.uint8, copy=False)


def _crop_jitter(frames: Frames, random: np.random.Generator, largest: float) -> Frames:
    """One shift and scale for all frames; what comes in from outside repeats the edge."""
    height, width = frames.shape[1:3]
    scale_x, scale_y = 1 + random.uniform(-largest, largest, 2)
    shift_x, shift_y = random.uniform(-largest, largest, 2) * (width, height)
    matrix = np.array(
        [[scale_x, 0, shift_x + (1 - scale_x) * width / 2], [0, scale_y, shift_y + (1 - scale_y) * height / 2]], np.float32
    )
    return _each(frames, lambda frame: cv2.warpAffine(frame, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE))


def _recolour(frames: Frames, random: np.random.Generator, light: float, cast: float) -> Frames:
    """Brightness, contrast, gamma and a gain a channel, as one table of 256 values a channel."""
    gain, contrast, gamma = np.exp(random.uniform(-light, light, 3))
    channels = np.exp(random.uniform(-cast, cast, 3))
    levels = np.linspace(0, 1, 256) ** gamma
    table = ((levels - 0.5) * contrast + 0.5)[:, None] * gain * channels
    table = np.clip(table * 255, 0, 255).round().astype(np.uint8)  # [256, 3]
    return np.stack([table[frames[..., channel], channel] for channel in range(3)], axis=-1)


def _coarsen(frames: Frames, random: np.random.Generator) -> Frames:
    """Fewer pixels, as of somebody far away, and back to size."""
    height, width = frames.shape[1:3]
    factor = random.uniform(0.25, 0.7)
    small = max(2, round(width * factor)), max(2, round(height * factor))

    def change(frame: Frames) -> NDArray:
        return cv2.resize(cv2.resize(frame, small, interpolation=cv2.INTER_AREA), (width, height), interpolation=cv2.INTER_LINEAR)

    return _each(frames, change)


def _blur(frames: Frames, random: np.random.Generator) -> Frames:
    """Out of focus, or smeared sideways by motion."""
    width = frames.shape[2]
    if random.random() < 0.5:
        sigma = random.uniform(0.3, 1.2) * width / 64
        return _each(frames, lambda frame: cv2.GaussianBlur(frame, (0, 0), sigma))
    length = max(2, round(random.uniform(0.03, 0.1) * width))
    return _each(frames, lambda frame: cv2.blur(frame, (length, 1)))


def _compress(frames: Frames, random: np.random.Generator) -> Frames:
    quality = int(random.integers(15, 60))

    def change(frame: Frames) -> NDArray:
        _, data = cv2.imencode(".jpg", np.ascontiguousarray(frame[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
        return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    return _each(frames, change)


def _erase(frames: Frames, random: np.random.Generator) -> Frames:
    """A rectangle of 4 to 25 % of the crop, at one place in all frames (random erasing, Zhong et al. 2020)."""
    height, width = frames.shape[1:3]
    area, aspect = random.uniform(0.04, 0.25) * height * width, np.exp(random.uniform(-1, 1))
    tall = int(np.clip(round((area * aspect) ** 0.5), 1, height))
    wide = int(np.clip(round((area / aspect) ** 0.5), 1, width))
    top, left = int(random.integers(0, height - tall + 1)), int(random.integers(0, width - wide + 1))
    result = frames.copy()
    result[:, top : top + tall, left : left + wide] = _filling((tall, wide), random)
    return result


def _occlude(frames: Frames, random: np.random.Generator, others: Frames | None) -> tuple[Frames, NDArray[np.bool_]]:
    """Something in front that moves in a straight line over the segment, or stands; and where it hides the person."""
    count, height, width = frames.shape[:3]
    kinds = ["block", "thing"] + ["person"] * 2 * (others is not None and len(others) > 0)
    kind = str(random.choice(kinds))
    if kind == "person":
        assert others is not None  # noqa: S101 - it is only then among the kinds
        tall, wide = round(height * random.uniform(0.8, 1.1)), round(width * random.uniform(0.7, 1.1))
        picture = cv2.resize(others[random.integers(len(others))], (wide, tall), interpolation=cv2.INTER_AREA)
        mask = _person_mask(tall, wide)
        top = height - tall + round(height * random.uniform(-0.05, 0.2))
    else:
        low = 0.2 if kind == "thing" else 0.4
        tall, wide = round(height * random.uniform(0.4, 1.0)), round(width * random.uniform(low, 1.1))
        picture = _filling((tall, wide), random)
        mask = _thing_mask(tall, wide, random) if kind == "thing" else np.ones((tall, wide), np.float32)
        top = height - tall if kind == "thing" else int(random.integers(0, height - tall + 1))
    places = np.array([0.0, 0.0]) + random.uniform(-0.5, 0.5)  # of its middle from the crop's middle, in widths
    if random.random() < 0.7:
        places = np.array([-1.0, 1.0]) * random.choice([-1, 1]) * random.uniform(0.3, 1.2)  # it comes, or passes through
    result = frames.copy()
    hidden = np.zeros(count, bool)
    person = slice(round(HEAD * height), height), slice(round(0.2 * width), round(0.8 * width))
    for number, place in enumerate(np.linspace(places[0], places[1], count)):
        left = round((0.5 + place) * width - wide / 2)
        rows, columns = slice(max(top, 0), min(top + tall, height)), slice(max(left, 0), min(left + wide, width))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        source = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
        alpha = mask[source][..., None]
        below = result[number, rows, columns]
        result[number, rows, columns] = (alpha * picture[source] + (1 - alpha) * below).round().astype(np.uint8)
        shade = np.zeros((height, width), np.float32)
        shade[rows, columns] = mask[source]
        hidden[number] = shade[person].mean() >= COVERED
    return result, hidden


def _person_mask(tall: int, wide: int) -> NDArray[np.float32]:
    """A soft outline, head narrower than body, within a crop of a person."""
    y, x = np.mgrid[0:tall, 0:wide].astype(np.float32)
    y, x = (y + 0.5) / tall, np.abs((x + 0.5) / wide - 0.5)
    half = np.interp(y, [0, 0.04, 0.15, 0.22, 0.5, 1.0], [0.0, 0.12, 0.13, 0.3, 0.3, 0.24])
    return np.clip((half - x) * wide / 2 + 0.5, 0, 1).astype(np.float32)


def _thing_mask(tall: int, wide: int, random: np.random.Generator) -> NDArray[np.float32]:
    """A box, a round thing or something ragged like a bush."""
    y, x = np.mgrid[0:tall, 0:wide].astype(np.float32)
    y, x = (y + 0.5) / tall, (x + 0.5) / wide
    shape = random.integers(3)
    if shape == 0:
        return np.ones((tall, wide), np.float32)
    if shape == 1:
        return (((x - 0.5) / 0.5) ** 2 + ((y - 0.6) / 0.6) ** 2 < 1).astype(np.float32)
    edge = np.interp(x[0], np.linspace(0, 1, 9), random.uniform(0.0, 0.35, 9))
    return (y > edge[None]).astype(np.float32)


def _filling(size: tuple[int, int], random: np.random.Generator) -> Frames:
    """One colour, or a texture of two: stripes, checks, coarse noise; uint8 [tall, wide, 3]."""
    tall, wide = size
    first, second = random.integers(0, 256, (2, 3)).astype(np.float32)
    texture = random.integers(4)
    y, x = np.mgrid[0:tall, 0:wide]
    period = max(2, round(wide * random.uniform(0.1, 0.4)))
    if texture == 1:
        share = (((x if random.random() < 0.5 else y) // period) % 2).astype(np.float32)
    elif texture == 2:
        share = ((x // period + y // period) % 2).astype(np.float32)
    elif texture == 3:
        coarse = random.random((max(2, tall // period + 1), max(2, wide // period + 1))).astype(np.float32)
        share = cv2.resize(coarse, (wide, tall), interpolation=cv2.INTER_LINEAR)
    else:
        share = np.zeros((tall, wide), np.float32)
    return (first + share[..., None] * (second - first)).round().astype(np.uint8)
