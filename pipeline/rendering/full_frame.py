"""A whole camera picture in which several people walk, with the boxes that a perfect tracker would report."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import UsageError
from pipeline.rendering.actors import Path, compose, path_through, perform
from pipeline.rendering.appearance import Appearance
from pipeline.rendering.camera import CameraLook, develop
from pipeline.rendering.props import make_prop
from pipeline.rendering.randomness import stream
from pipeline.rendering.raster import Window
from pipeline.rendering.scene import Scene, build_scene, fork, stand, street_axes

TRACKED_ABOVE = 0.25
"""A tracker reports a person while at least this share of their pixels shows."""
SMALLEST_BOX = 10
"""Pixels, each way, that must lie in the picture for a box to be reported."""

Footprint = tuple[float, float, float, float, float]
"""x, y, heading, half depth and half width of a thing on the ground."""


class FullFrame(NamedTuple):
    """frames: (F, h, w, 3) uint8 RGB. boxes: (N, 6) int64 rows frame (from 1), track (from 1, the order of the people),
    left, top, width, height in pixels, inside the picture and around the whole person, hidden parts too."""

    frames: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.int64]


def _furnish(rng: np.random.Generator, look: CameraLook, scene: Scene) -> tuple[Scene, list[Footprint]]:
    """Puts two to four things into the middle of the ground, where people walk before and behind them."""
    middle, along, away = street_axes(look)
    scene, footprints = fork(scene), []
    for offset in rng.permutation([-3.2, -0.6, 2.4])[: int(rng.integers(2, 4))]:
        prop = make_prop(rng, str(rng.choice(["planter", "pillar", "sign", "bin", "bench", "barrier"])))
        x, y = middle + (offset + rng.normal(0, 0.3)) * along + rng.uniform(-1.4, -0.2) * away
        heading = look.street_angle + np.pi
        scene = stand(scene, look, prop, float(x), float(y), heading, hides=True)
        footprints.append((float(x), float(y), heading, prop.half_depth, prop.half_width))
    return scene, footprints


def _clear(positions: npt.NDArray[np.float64], footprints: Sequence[Footprint]) -> bool:
    for x, y, heading, half_depth, half_width in footprints:
        c, s = np.cos(heading), np.sin(heading)
        beside = np.abs((positions - (x, y)) @ np.array([[c, -s], [s, c]])) - (half_depth, half_width)
        if np.linalg.norm(np.maximum(beside, 0), axis=1).min() < 0.35:
            return False
    return True


def _crossing(
    rng: np.random.Generator,
    person: Appearance,
    look: CameraLook,
    frames: int,
    frame_rate: int,
    wall_distance: float,
    footprints: Sequence[Footprint],
    others: Sequence[Path],
) -> Path:
    """A walk through the picture from one side to the other, clear of things and of the people before."""
    middle, along, away = street_axes(look)
    times = np.arange(frames) / frame_rate
    positions = np.zeros((frames, 2))
    for _ in range(200):
        direction = float(rng.choice([-1, 1]))
        meeting = rng.uniform(0.15, 0.85) * times[-1]  # when they are in the middle of the picture
        depth = rng.uniform(-2.4, min(2.2, wall_distance - 1.6))
        slant = rng.normal(0, 0.12)
        walked = person.speed * direction * (times - meeting)
        positions = middle + np.outer(walked, along) + np.outer(depth + slant * walked, away)
        apart = [np.linalg.norm(positions - other.positions, axis=1).min() for other in others]
        inside = (positions - middle) @ away
        if _clear(positions, footprints) and min(apart, default=9.0) > 0.55 and inside.max() < wall_distance - 0.9:
            break
    return path_through(positions, person.stride, float(rng.random()))


def render_full_frame(
    people: Sequence[Appearance],
    camera_look: CameraLook,
    seed: int,
    *,
    width: int = 640,
    height: int = 360,
    frame_rate: int = 10,
    seconds: float = 12.0,
) -> FullFrame:
    """Renders people who walk through one camera's whole picture, hiding each other by their distance.

    Sizes in pixels, frame_rate in frames a second. Raises UsageError for nobody or for sizes that are not positive.
    """
    if not people:
        raise UsageError("a full frame needs at least one person")
    if min(width, height, frame_rate) < 1 or seconds * frame_rate < 2:
        raise UsageError(f"a full frame of {width}x{height} at {frame_rate}/s for {seconds} s is too small to draw")
    rng = stream("full frame", seed)
    look = replace(camera_look, elevation=float(rng.uniform(0.2, 0.35)), distance=float(rng.uniform(12, 15)))
    frames = round(seconds * frame_rate)
    scene, footprints = _furnish(rng, look, build_scene(look, width, height))
    paths: list[Path] = []
    for person in people:
        paths.append(_crossing(rng, person, look, frames, frame_rate, scene.wall_distance, footprints, paths))
    actors = [perform(person, path, look, scene.camera) for person, path in zip(people, paths, strict=True)]
    window = Window(0, 0, 1.0, width, height)
    pictures = np.empty((frames, height, width, 3), np.uint8)
    rows = []
    for frame in range(frames):
        picture, shares = compose(scene, look, actors, frame, window)
        pictures[frame] = develop(look, picture[None], rng)[0]
        for track, (actor, share) in enumerate(zip(actors, shares, strict=True), start=1):
            left, top = np.maximum(np.floor(actor.boxes[frame, :2]), 0).astype(int).tolist()
            right, bottom = np.minimum(np.ceil(actor.boxes[frame, 2:]), (width, height)).astype(int).tolist()
            if share >= TRACKED_ABOVE and min(right - left, bottom - top) >= SMALLEST_BOX:
                rows.append((frame + 1, track, left, top, right - left, bottom - top))
    return FullFrame(pictures, np.array(rows, dtype=np.int64).reshape(-1, 6))
