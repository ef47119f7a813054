"""People who walk: their path over the ground, their moving surface as the camera sees it, and one frame with them in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.rendering import clothing, figure
from pipeline.rendering.appearance import Appearance
from pipeline.rendering.body import BONE, walk
from pipeline.rendering.camera import CameraLook
from pipeline.rendering.mesh import Mesh, posed
from pipeline.rendering.raster import FAR, Pinhole, Window, draw, silhouette
from pipeline.rendering.scene import Scene, vertex_light

Floats = npt.NDArray[np.float32]

SUPERSAMPLING = 1.5
"""People are drawn so many times as large each way and averaged. Twice is a fifth slower and looks the same
after the camera's own blur."""


@dataclass(frozen=True)
class Path:
    """Where somebody is in each of F frames: positions (F, 2) metres on the ground, headings (F,) radians, phase (F,)
    cycles of the gait."""

    positions: npt.NDArray[np.float64]
    headings: npt.NDArray[np.float64]
    phase: npt.NDArray[np.float64]


def path_through(positions: npt.NDArray[np.float64], stride: float, start_phase: float) -> Path:
    """The path of somebody who looks where they go and takes strides of `stride` metres."""
    steps = np.gradient(positions, axis=0)
    headings = np.unwrap(np.arctan2(steps[:, 1], steps[:, 0]))
    moved = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(positions, axis=0), axis=1))])
    return Path(positions, headings, start_phase + moved / stride)


@dataclass(frozen=True)
class Actor:
    """One person over F frames, as the camera sees them.

    view: (F, V, 3) from `Pinhole.view`; light: (F, V); shadow: (F, V, 3), the same vertices thrown to the ground by the
    sun, or None; feet: (F, 2, 3) the ground under both feet; boxes, shadow_boxes: (F, 4) left, top, right, bottom in
    picture pixels.
    """

    mesh: Mesh
    texture: npt.NDArray[np.uint8]
    view: Floats
    light: Floats
    shadow: Floats | None
    feet: Floats
    boxes: Floats
    shadow_boxes: Floats | None


@lru_cache(maxsize=64)
def _surface(appearance: Appearance) -> tuple[Mesh, npt.NDArray[np.uint8]]:
    return figure.build(appearance), clothing.paint(appearance)


def perform(appearance: Appearance, path: Path, look: CameraLook, camera: Pinhole) -> Actor:
    """Lets a person walk along a path before a camera."""
    mesh, texture = _surface(appearance)
    rotations, offsets = walk(appearance, path.positions, path.headings, path.phase)
    vertices, normals = posed(mesh, rotations, offsets)
    view = camera.view(vertices)
    shadow = None
    if look.sun > 0.4:
        sun = look.sun_direction()
        thrown = vertices - sun * (np.maximum(vertices[..., 2:], 0) / sun[2])
        shadow = camera.view(thrown)
    feet = []
    for side, sign in (("left", 1), ("right", -1)):
        bone = BONE[f"{side}_foot"]
        sole = np.array([0.05, sign * 0.05 * appearance.height, 0.0], np.float32)
        point = rotations[:, bone] @ sole + offsets[:, bone]
        point[:, 2] = 0
        feet.append(camera.view(point))
    return Actor(
        mesh=mesh,
        texture=texture,
        view=view,
        light=vertex_light(look, normals, mesh.exposure),
        shadow=shadow,
        feet=np.stack(feet, 1),
        boxes=camera.boxes(view),
        shadow_boxes=None if shadow is None else camera.boxes(shadow),
    )


def _softened(mask: npt.NDArray[np.uint8], deviation: float) -> npt.NDArray[np.uint8]:
    """Two box blurs, much faster than the Gaussian that they come near to."""
    side = 2 * max(1, round(1.2 * deviation)) + 1
    return cv2.blur(cv2.blur(mask, (side, side)), (side, side))


def _ground_shade(scene: Scene, look: CameraLook, actors: Sequence[Actor], frame: int, window: Window) -> Floats | None:
    """How much of the light the actors take from the ground, 0..1, at the window's size; None where they take none."""
    height, width = window.height, window.width
    camera = scene.camera
    contact = np.zeros((height, width), np.uint8)
    thrown = np.zeros((height, width), np.uint8)
    for actor in actors:
        spots = (camera.pixels(actor.feet[frame]) - np.array([window.left, window.top], np.float32)) * window.scale
        for (x, y), ahead in zip(spots.tolist(), actor.feet[frame][:, 2].tolist(), strict=True):
            if ahead <= 0.5 or not (-width < x < 2 * width and -height < y < 2 * height):
                continue
            metre = camera.focal * window.scale / ahead
            radii = (max(1, int(0.20 * metre)), max(1, int(0.20 * metre * max(0.15, np.sin(camera.pitch)))))
            cv2.ellipse(contact, (int(x), int(y)), radii, 0, 0, 360, 255, -1)
        if actor.shadow is not None and actor.shadow_boxes is not None:
            silhouette(camera, window, actor.shadow[frame], actor.shadow_boxes[frame], actor.mesh.triangles, thrown)
    if not contact.any() and not thrown.any():
        return None
    metre = camera.focal * window.scale / look.distance
    soft = _softened(contact, max(0.8, 0.06 * metre)).astype(np.float32) * np.float32(0.34 / 255)
    if thrown.any():
        dark = look.sun / (look.sun + look.ambient)
        soft = np.maximum(soft, cv2.blur(thrown, (3, 3)).astype(np.float32) * np.float32(dark / 255))
    return soft


def compose(scene: Scene, look: CameraLook, actors: Sequence[Actor], frame: int, window: Window) -> tuple[Floats, list[float]]:
    """One frame of a window of the camera's picture, and for each actor the share of their pixels in it that shows.

    Returns (height, width, 3) float32 RGB under neutral light; shares are 0 where an actor is outside the window.
    """
    to_window = np.array(
        [[window.scale, 0, -window.left * window.scale], [0, window.scale, -window.top * window.scale]], np.float64
    )
    # Pixel centres, not corners: (x + 0.5) * scale - 0.5.
    to_window[:, 2] += 0.5 * window.scale - 0.5
    size = (window.width, window.height)
    ground = cv2.warpAffine(scene.picture, to_window, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    shade = _ground_shade(scene, look, actors, frame, window)
    if shade is not None:
        if scene.nearness is not None:  # things stand before the ground that is shaded
            shade[cv2.warpAffine(scene.nearness, to_window, size, flags=cv2.INTER_LINEAR) > 0] = 0
        ground *= (1 - shade)[:, :, None]
    fine = Window(
        window.left,
        window.top,
        SUPERSAMPLING * window.scale,
        round(SUPERSAMPLING * window.width),
        round(SUPERSAMPLING * window.height),
    )
    colour = np.zeros((fine.height, fine.width, 3), np.uint8)
    if scene.nearness is None:
        depth = np.full((fine.height, fine.width), FAR, np.float32)
    else:
        to_fine = SUPERSAMPLING * to_window
        to_fine[:, 2] += 0.5 * SUPERSAMPLING - 0.5
        near = cv2.warpAffine(scene.nearness, to_fine, (fine.width, fine.height), flags=cv2.INTER_LINEAR)
        depth = 1 / np.maximum(near, np.float32(1 / FAR))
    covered = np.zeros((fine.height, fine.width), np.uint8)
    drawings = []
    for actor in actors:
        drawing = draw(
            scene.camera,
            fine,
            actor.view[frame],
            actor.boxes[frame],
            actor.mesh.triangles,
            actor.mesh.texels,
            actor.light[frame],
            actor.texture,
        )
        drawings.append(drawing)
        if drawing is None:
            continue
        rows = slice(drawing.top, drawing.top + drawing.depth.shape[0])
        columns = slice(drawing.left, drawing.left + drawing.depth.shape[1])
        nearer = (drawing.depth < depth[rows, columns]).view(np.uint8) * np.uint8(255)
        cv2.copyTo(drawing.colour, nearer, colour[rows, columns])
        cv2.copyTo(drawing.depth, nearer, depth[rows, columns])
        covered[rows, columns] |= nearer
    shares = []
    for drawing in drawings:
        if drawing is None:
            shares.append(0.0)
            continue
        rows = slice(drawing.top, drawing.top + drawing.depth.shape[0])
        columns = slice(drawing.left, drawing.left + drawing.depth.shape[1])
        own = drawing.depth < FAR
        whole, shown = np.count_nonzero(own), np.count_nonzero(own & (drawing.depth <= depth[rows, columns]))
        shares.append(shown / whole if whole else 0.0)
    if not covered.any():
        return ground, shares
    small = cv2.resize(colour, size, interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(covered, size, interpolation=cv2.INTER_AREA).astype(np.float32) * np.float32(1 / 255)
    ground *= (1 - alpha)[:, :, None]
    ground += small
    return ground, shares
