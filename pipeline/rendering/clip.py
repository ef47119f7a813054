"""One clip: a crop that follows one person through one camera's picture, as tracking delivers it."""

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.errors import UsageError
from pipeline.rendering.actors import Actor, Path, compose, path_through, perform
from pipeline.rendering.appearance import Appearance, sample_appearance
from pipeline.rendering.camera import CameraLook, develop
from pipeline.rendering.mesh import placed
from pipeline.rendering.props import Prop, make_prop
from pipeline.rendering.randomness import choose, stream
from pipeline.rendering.raster import Pinhole, Window, silhouette
from pipeline.rendering.scene import Scene, build_scene, fork, stand, street_axes

Floats = npt.NDArray[np.float32]

HIDDEN_BELOW = 0.65
"""A frame counts as hidden when less than this share of the person's pixels shows."""


class Clip(NamedTuple):
    """frames: (F, h, w, 3) uint8 RGB. visible: (F,) float32, the share of the person's pixels in the crop that nothing
    covers, 0..1."""

    frames: npt.NDArray[np.uint8]
    visible: Floats

    @property
    def hidden(self) -> float:
        """The share of frames in which the person is hidden (see HIDDEN_BELOW)."""
        return float((self.visible < HIDDEN_BELOW).mean())


def _walk_in_view(
    rng: np.random.Generator, person: Appearance, look: CameraLook, camera: Pinhole, scene: Scene, frames: int
) -> Path:
    """A path that stays in the camera's picture, off the things along the wall, at a fitting size."""
    middle, along, away = street_axes(look)
    times = np.arange(frames) / look.frame_rate
    for attempt in range(80):
        patience = attempt / 80  # the longer nothing fits, the shorter and the more central the path
        direction = rng.choice(["along", "depth", "oblique"], p=[0.45, 0.25, 0.30])
        angle = {
            "along": np.pi / 2 * rng.choice([-1, 1]) + rng.normal(0, 0.12),
            "depth": rng.choice([0, np.pi]) + rng.normal(0, 0.2),
            "oblique": rng.uniform(0, 2 * np.pi),
        }[str(direction)]
        heading = look.street_angle + angle
        turning = rng.normal(0, 0.10) + 0.12 * np.sin(2 * np.pi * times / rng.uniform(3, 7) + rng.uniform(0, 6))
        speed = person.speed * (1 - 0.5 * patience) * (1 + 0.05 * np.sin(times * rng.uniform(0.5, 1.5)))
        headings = heading + np.cumsum(turning) / look.frame_rate
        steps = speed[:, None] * np.stack([np.cos(headings), np.sin(headings)], 1) / look.frame_rate
        walked = np.cumsum(steps, axis=0)
        centre = middle + along * rng.uniform(-3, 3) * (1 - patience) + away * rng.uniform(-2.5, 2.0) * (1 - patience)
        positions = walked - walked[frames // 2] + centre
        depth = (positions - middle) @ away
        if depth.max() > scene.wall_distance - 1.6:
            continue
        ends = np.concatenate([positions, np.zeros((frames, 1))], 1)
        feet = camera.view(ends)
        head = camera.view(ends + np.array([0, 0, person.height]))
        if feet[:, 2].min() < 2 or head[:, 2].min() < 2:
            continue
        feet_at, head_at = camera.pixels(feet), camera.pixels(head)
        tall = (feet_at - head_at)[:, 1]
        side = 0.35 * tall.max()
        fits = (
            feet_at[:, 0].min() > side
            and feet_at[:, 0].max() < camera.picture_width - side
            and feet_at[:, 1].max() < camera.picture_height - 4
            and head_at[:, 1].min() > 4
        )
        if fits and 0.45 * look.clip_height < tall.min() and tall.max() < 1.8 * look.clip_height:
            return path_through(positions, person.stride, float(rng.random()))
    stays = middle + np.outer(0.25 * (times - times.mean()), along)
    return path_through(stays, person.stride, float(rng.random()))


def _crop_boxes(rng: np.random.Generator, actor: Actor, look: CameraLook) -> Floats:
    """The crops (F, 3) of an imperfect detector: left, top and height in picture pixels; the width is height / 2."""
    left, top, right, bottom = actor.boxes.T
    frames = len(left)
    aspect = look.clip_height / look.clip_width
    window = np.hanning(7)[1:-1]
    window /= window.sum()

    def smooth(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        return np.convolve(np.pad(values, 2, mode="edge"), window, mode="valid")

    tall = smooth(np.maximum(bottom - top, 0.85 * aspect * (right - left)))
    margin = rng.uniform(1.02, 1.16)
    wander = np.convolve(rng.normal(0, 1, frames + 8), np.ones(9) / 3, mode="valid")
    height = tall * margin * (1 + 0.015 * wander + 0.012 * rng.standard_normal(frames))
    x = smooth((left + right) / 2) + tall * (0.010 * wander[::-1] + 0.008 * rng.standard_normal(frames))
    y = smooth((top + bottom) / 2) + tall * 0.010 * rng.standard_normal(frames)
    if rng.random() < 0.16:  # a detector that loses a part of the body for a while
        start, length = rng.integers(0, frames), int(frames * rng.uniform(0.3, 1.0))
        lost = np.zeros(frames)
        lost[start : start + length] = 1
        stretch = smooth(lost)
        cut = rng.uniform(0.08, 0.22)
        part = rng.choice(["feet", "head", "side"], p=[0.6, 0.15, 0.25])
        if part == "side":
            x = x + stretch * tall * 0.5 * cut * rng.choice([-1, 1])
        else:
            height = height * (1 - cut * stretch)
            y = y + stretch * tall * 0.5 * cut * (-1 if part == "feet" else 1)
    return np.stack([x - height / aspect / 2, y - height / 2, height], 1).astype(np.float32)


def _companion(rng: np.random.Generator, person: Appearance, path: Path, hidden: float) -> Path:
    """The path of a pedestrian who passes between the camera and the person and hides them for the share `hidden`."""
    frames = len(path.positions)
    toward = -path.positions / np.linalg.norm(path.positions, axis=1, keepdims=True)  # the camera is over the origin
    sideways = np.stack([-toward[:, 1], toward[:, 0]], 1)
    middle = rng.uniform(0.3, 0.7) * frames
    when = (np.arange(frames) - middle) / frames
    # They overlap while their offset is below about a third of a metre: that must last `hidden` of the clip.
    slope = 0.36 / hidden * rng.choice([-1, 1])
    offset = slope * when * (1 + 1.2 * np.abs(when))
    gap = rng.uniform(0.7, 1.0)
    return path_through(path.positions + toward * gap + sideways * offset[:, None], person.stride, float(rng.random()))


def _sample_points(actor: Actor, camera: Pinhole) -> tuple[Floats, Floats]:
    """Pixels (F, P, 2) of some of the actor's surface and the share (P,) of it that each stands for."""
    points, corners = actor.mesh.vertices, actor.mesh.triangles
    edges = points[corners[:, 1:]] - points[corners[:, :1]]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    owned = np.bincount(corners.ravel(), np.repeat(area, 3), minlength=len(points))[::3]
    return camera.pixels(actor.view[:, ::3]), (owned / owned.sum()).astype(np.float32)


def _cover(prop: Prop, x: float, y: float, heading: float, camera: Pinhole, points: Floats, share: Floats) -> Floats:
    """About how much of a person a thing between them and the camera covers in each frame, (F,)."""
    mesh = placed(prop.mesh, x, y, heading)
    view = camera.view(mesh.vertices)
    window = Window(0, 0, 0.5, camera.picture_width // 2, camera.picture_height // 2)
    mask = np.zeros((window.height, window.width), np.uint8)
    silhouette(camera, window, view, camera.boxes(view), mesh.triangles, mask)
    column = np.clip((points[..., 0] / 2).astype(np.int32), 0, window.width - 1)
    row = np.clip((points[..., 1] / 2).astype(np.int32), 0, window.height - 1)
    return (mask[row, column] > 0) @ share


def _blocked_by(rng: np.random.Generator, scene: Scene, look: CameraLook, path: Path, actor: Actor) -> Scene | None:
    """The scene with a thing that hides the person for 30..60 % of the frames; None where none fits."""
    positions = path.positions
    points, surface = _sample_points(actor, scene.camera)
    kinds: dict[str, float] = {"planter": 24, "barrier": 26, "pillar": 18, "sign": 16, "bin": 6}
    if look.place == "street":
        kinds["car"] = 34
    for attempt in range(100):
        if attempt % 5 == 0:  # some places for each thing before another one is made
            kind = choose(rng, kinds)
            prop = make_prop(rng, kind)
            depth = prop.half_width if kind == "car" else prop.half_depth
        point = positions[int(rng.uniform(0.25, 0.75) * len(positions))]
        toward = -point / np.linalg.norm(point)
        heading = float(np.arctan2(toward[1], toward[0]) + rng.normal(0, 0.15))  # its face to the camera
        if kind == "car":
            heading += np.pi / 2
        x, y = (float(place) for place in point + toward * (depth + rng.uniform(0.35, 1.2)))
        c, s = np.cos(heading), np.sin(heading)
        seen_from = (positions - (x, y)) @ np.array([[c, -s], [s, c]])
        beyond = np.maximum(np.abs(seen_from) - (prop.half_depth, prop.half_width), 0)
        if np.linalg.norm(beyond, axis=1).min() < 0.3 or np.hypot(x, y) < 3:
            continue  # nobody walks through things
        cover = _cover(prop, x, y, heading, scene.camera, points, surface)
        # Tracking loses who vanishes for long, so a thing may hide somebody entirely for a few frames only.
        if 0.3 <= (cover > 1 - HIDDEN_BELOW).mean() <= 0.6 and (cover > 0.92).mean() < 0.12:
            return stand(fork(scene), look, prop, x, y, heading, hides=True)
    return None


def _passer_by(rng: np.random.Generator, stranger: Appearance, path: Path, scene: Scene, look: CameraLook) -> Path | None:
    """The path of somebody who crosses the crop behind the person; None where there is no room."""
    frames = len(path.positions)
    away = path.positions[frames // 2] / np.linalg.norm(path.positions[frames // 2])
    sideways = np.array([-away[1], away[0]])
    times = (np.arange(frames) - rng.uniform(0.2, 0.8) * frames) / look.frame_rate
    speed = stranger.speed * rng.choice([-1, 1])
    positions = path.positions[frames // 2] + away * rng.uniform(0.9, 2.2) + np.outer(times * speed, sideways)
    if rng.random() < 0.5:  # walks the same way, a little behind or before
        side = rng.choice([-1, 1]) * rng.uniform(0.35, 0.7)
        positions = path.positions + away * rng.uniform(0.5, 1.2) + sideways * side
    middle, _, street_away = street_axes(look)
    if ((positions - middle) @ street_away).max() > scene.wall_distance - 0.5:
        return None
    return path_through(positions, stranger.stride, float(rng.random()))


def render_clip(
    appearance: Appearance,
    camera_look: CameraLook,
    clip_seed: int,
    *,
    hidden_share: float = 0.35,
    seconds: tuple[float, float] = (3.0, 6.0),
) -> Clip:
    """Renders one person in one camera; the same arguments give the same clip.

    hidden_share is the chance, 0..1, that the person is partly hidden for 30 to 60 % of the frames, by a thing or by
    another pedestrian; seconds bounds the clip's length. Returns frames (F, clip_height, clip_width, 3) uint8 RGB at the
    look's frame rate, and the visible share (F,) float32. Raises UsageError for a share outside 0..1 or lengths that are
    not positive and ascending.
    """
    if not 0 <= hidden_share <= 1:
        raise UsageError(f"hidden_share is {hidden_share}; it must lie in 0..1")
    if not 0 < seconds[0] <= seconds[1]:
        raise UsageError(f"seconds is {seconds}; it must be two positive lengths, the shorter first")
    rng = stream("clip", clip_seed)
    is_hidden, by_person, has_passer = rng.random() < hidden_share, rng.random() < 0.35, rng.random() < 0.28
    frames = max(2, round(float(rng.uniform(*seconds)) * camera_look.frame_rate))
    scene = build_scene(camera_look)
    path = _walk_in_view(rng, appearance, camera_look, scene.camera, scene, frames)
    person = perform(appearance, path, camera_look, scene.camera)
    actors = [person]
    if is_hidden:
        blocked = None if by_person else _blocked_by(rng, scene, camera_look, path, person)
        if blocked is not None:
            scene = blocked
        else:
            stranger = sample_appearance(clip_seed, -1)
            beside = _companion(rng, stranger, path, float(rng.uniform(0.38, 0.6)))
            actors.append(perform(stranger, beside, camera_look, scene.camera))
    if has_passer:
        stranger = sample_appearance(clip_seed, -2)
        behind = _passer_by(rng, stranger, path, scene, camera_look)
        if behind is not None:
            actors.append(perform(stranger, behind, camera_look, scene.camera))
    crops = _crop_boxes(rng, person, camera_look)
    width, height = camera_look.clip_width, camera_look.clip_height
    pictures = np.empty((frames, height, width, 3), np.float32)
    visible = np.empty(frames, np.float32)
    # The shutter smears what moves over the sensor; the crop follows the person, the sensor does not.
    speed = np.abs(np.gradient(crops[:, 0])) * camera_look.frame_rate * camera_look.exposure
    for frame in range(frames):
        left, top, tall = crops[frame].tolist()
        window = Window(left, top, height / tall, width, height)
        picture, shares = compose(scene, camera_look, actors, frame, window)
        smear = float(speed[frame]) * window.scale
        if smear > 0.4:
            edge = min(0.33, 0.16 * smear)
            picture = cv2.sepFilter2D(picture, -1, np.array([edge, 1 - 2 * edge, edge]), np.ones(1))
        pictures[frame] = picture
        visible[frame] = shares[0]
    return Clip(develop(camera_look, pictures, rng), visible)
