"""A pinhole camera over flat ground, and the drawing of textured, shaded meshes into a window of its picture."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError

Floats = npt.NDArray[np.float32]

NEAR, FAR = 0.3, 200.0
AS_IS = np.eye(4, dtype=np.float32)


@dataclass(frozen=True)
class Pinhole:
    """A camera `height` metres above the world's origin that looks along +x, `pitch` radians down; focal in pixels.

    World: x away from the camera, y to the left, z up. Pixels: x to the right, y down, of a width x height picture.
    """

    height: float
    pitch: float
    focal: float
    picture_width: int
    picture_height: int

    def view(self, points: npt.ArrayLike) -> Floats:
        """World points (..., 3) as (right, up, ahead), metres."""
        p = np.asarray(points, dtype=np.float32)
        c, s = np.float32(np.cos(self.pitch)), np.float32(np.sin(self.pitch))
        x, y, z = p[..., 0], p[..., 1], p[..., 2] - np.float32(self.height)
        return np.stack([-y, x * s + z * c, x * c - z * s], -1)

    def pixels(self, view: Floats) -> Floats:
        """The pixels (..., 2) of points that `view` gave."""
        ahead = np.maximum(view[..., 2], 0.05)
        x = self.picture_width / 2 + self.focal * view[..., 0] / ahead
        y = self.picture_height / 2 - self.focal * view[..., 1] / ahead
        return np.stack([x, y], -1)

    def boxes(self, view: Floats) -> Floats:
        """Around the points (..., V, 3) that `view` gave: left, top, right, bottom, (..., 4) pixels.

        Where a point is closer than NEAR the box is empty: such a mesh cannot be drawn.
        """
        ahead = np.ascontiguousarray(view[..., 2])
        safe = np.maximum(ahead, NEAR)
        x = self.picture_width / 2 + self.focal * (view[..., 0] / safe)
        y = self.picture_height / 2 - self.focal * (view[..., 1] / safe)
        box = np.stack([x.min(-1), y.min(-1), x.max(-1), y.max(-1)], -1)
        box[ahead.min(-1) < NEAR] = -1e6
        return box.astype(np.float32)

    def project(self, points: npt.ArrayLike) -> Floats:
        """The pixels (..., 2) of world points (..., 3)."""
        return self.pixels(self.view(points))


@dataclass(frozen=True)
class Window:
    """A part of the camera's picture, left, top in its pixels, drawn `scale` times as large as width x height pixels."""

    left: float
    top: float
    scale: float
    width: int
    height: int


@dataclass(frozen=True)
class Drawing:
    """A mesh in a window: its pixels lie at rows top.., columns left.. of the window.

    colour: (h, w, 3) uint8 RGB; depth: (h, w) float32 metres, FAR where the mesh is not.
    """

    left: int
    top: int
    colour: npt.NDArray[np.uint8]
    depth: Floats


def _settings() -> Any:
    if not hasattr(cv2, "TriangleRasterizeSettings"):
        raise PipelineError(f"rendering needs OpenCV 5 (pip install 'opencv-python-headless>=5'); this is {cv2.__version__}")
    settings = cv2.TriangleRasterizeSettings()
    settings.setCullingMode(cv2.RASTERIZE_CULLING_CW)
    settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED)
    return settings


def _extent(window: Window, box: Floats) -> tuple[int, int, int, int]:
    """Left, top, width and height of the part of the window that a box touches; not positive where it is outside."""
    x0, y0, x1, y1 = box.tolist()
    left = max(int(np.floor((x0 - window.left) * window.scale)) - 1, 0)
    top = max(int(np.floor((y0 - window.top) * window.scale)) - 1, 0)
    right = min(int(np.ceil((x1 - window.left) * window.scale)) + 2, window.width)
    bottom = min(int(np.ceil((y1 - window.top) * window.scale)) + 2, window.height)
    return left, top, right - left, bottom - top


def _sheared(camera: Pinhole, window: Window, view: Floats, left: int, top: int, width: int, height: int) -> tuple[Floats, float]:
    """Vertices and field of view for a buffer of the window's part that begins at left, top.

    The rasteriser has its axis in the middle of the buffer: a shear along the depth puts it there.
    """
    focal = camera.focal * window.scale
    centre_x = (camera.picture_width / 2 - window.left) * window.scale - left
    centre_y = (camera.picture_height / 2 - window.top) * window.scale - top
    vertices = np.empty_like(view)
    vertices[:, 0] = view[:, 0] + np.float32((centre_x - width / 2) / focal) * view[:, 2]
    vertices[:, 1] = view[:, 1] - np.float32((centre_y - height / 2) / focal) * view[:, 2]
    vertices[:, 2] = -view[:, 2]
    return vertices, float(2 * np.arctan(height / (2 * focal)))


def silhouette(
    camera: Pinhole,
    window: Window,
    view: Floats,
    box: Floats,
    triangles: npt.NDArray[np.int32],
    mask: npt.NDArray[np.uint8],
) -> None:
    """Sets to 255 the pixels of mask, (window.height, window.width), that a mesh covers; arguments as for `draw`."""
    left, top, width, height = _extent(window, box)
    if width < 1 or height < 1:
        return
    vertices, field = _sheared(camera, window, view, left, top, width, height)
    depth = np.full((height, width), FAR, np.float32)
    cv2.triangleRasterizeDepth(vertices, triangles, depth, AS_IS, field, NEAR, FAR, _settings())
    mask[top : top + height, left : left + width][depth < FAR] = 255


def draw(
    camera: Pinhole,
    window: Window,
    view: Floats,
    box: Floats,
    triangles: npt.NDArray[np.int32],
    texels: Floats,
    light: Floats,
    texture: npt.NDArray[np.uint8],
) -> Drawing | None:
    """Draws the front faces of one mesh; None where it is outside the window.

    view: (V, 3) from `Pinhole.view`; box: (4,) from `Pinhole.boxes`; triangles: (T, 3), counter-clockwise seen from
    outside; texels: (V, 2) places in `texture`, (S, S, 3) uint8 RGB; light: (V,) float32, 0..2, which multiplies the
    texture.
    """
    left, top, width, height = _extent(window, box)
    if width < 1 or height < 1:
        return None
    vertices, field = _sheared(camera, window, view, left, top, width, height)
    attributes = np.empty_like(view)
    attributes[:, :2] = texels
    attributes[:, 2] = light
    buffer = np.zeros((height, width, 3), np.float32)
    depth = np.full((height, width), FAR, np.float32)
    cv2.triangleRasterize(vertices, triangles, attributes, buffer, depth, AS_IS, field, NEAR, FAR, _settings())
    x, y, shade = cv2.split(buffer)
    colour = cv2.remap(texture, x, y, cv2.INTER_LINEAR)
    shade = cv2.convertScaleAbs(shade, alpha=127)  # of 127ths, so that both factors are bytes
    colour = cv2.multiply(colour, cv2.merge([shade, shade, shade]), scale=1 / 127)
    return Drawing(left, top, colour, depth)
