"""The place that one camera watches: its ground, the fronts behind it and what stands there, as one picture with depth."""

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.rendering import surfaces
from pipeline.rendering.camera import CameraLook
from pipeline.rendering.mesh import Mesh, placed
from pipeline.rendering.props import Prop, make_prop
from pipeline.rendering.randomness import stream
from pipeline.rendering.raster import FAR, Pinhole, Window, draw

Floats = npt.NDArray[np.float32]
Picture = npt.NDArray[np.float32]

GROUND_SCALE, WALL_SCALE = 48.0, 40.0  # texture pixels a metre
ALONG, NEAREST, WALL_HEIGHT = 18.0, -11.0, 9.0  # metres: half the street's length, its near edge, the fronts' height


@dataclass(frozen=True)
class Scene:
    """picture: (h, w, 3) float32 RGB under neutral light. nearness: (h, w) float32, 1 / metres to what may hide people,
    0 elsewhere; None where nothing may. wall_distance: metres from the middle of the ground to the fronts.
    """

    camera: Pinhole
    picture: Picture
    nearness: Floats | None
    wall_distance: float


def street_axes(look: CameraLook) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The middle of the ground, the direction along the street and the direction away from the camera, (2,) each."""
    angle = look.street_angle
    return (
        np.array([look.distance, 0.0]),
        np.array([-np.sin(angle), np.cos(angle)]),
        np.array([np.cos(angle), np.sin(angle)]),
    )


def vertex_light(look: CameraLook, normals: Floats, exposure: Floats) -> Floats:
    """How much light each vertex sends on, about 1 for a lit surface; normals (..., V, 3), exposure (V,)."""
    facing = normals @ look.sun_direction()
    sky = look.ambient * (0.80 + 0.20 * normals[..., 2])
    sun = look.sun * (0.82 * np.maximum(facing, 0) + 0.18 * (0.5 + 0.5 * facing))
    return (np.clip((sky + sun) * exposure, 0.05, 1.9)).astype(np.float32)


def _plane(
    camera: Pinhole, origin: npt.ArrayLike, across: npt.ArrayLike, down: npt.ArrayLike, scale: float
) -> npt.NDArray[np.float64]:
    """The homography (3, 3) from a texture's pixels to the picture's; across and down are unit vectors in the world."""
    start = camera.view(np.asarray(origin, np.float32)).astype(np.float64)
    zero = camera.view(np.zeros(3, np.float32)).astype(np.float64)
    u = camera.view(np.asarray(across, np.float32)).astype(np.float64) - zero
    v = camera.view(np.asarray(down, np.float32)).astype(np.float64) - zero
    lens = np.array([[camera.focal, 0, camera.picture_width / 2], [0, -camera.focal, camera.picture_height / 2], [0, 0, 1]])
    return lens @ np.stack([u / scale, v / scale, start], 1)


def _ground_texture(rng: np.random.Generator, place: str, wall_distance: float) -> Picture:
    """The ground from above: rows go from the fronts towards the camera, columns from the street's left to its right."""
    width = int(2 * ALONG * GROUND_SCALE)
    height = int((wall_distance - NEAREST) * GROUND_SCALE)

    def row(away: float) -> int:
        return int(np.clip((wall_distance - away) * GROUND_SCALE, 0, height))

    paving = {"street": ["slabs", "bricks", "concrete", "asphalt"], "plaza": ["slabs", "cobbles", "concrete", "bricks"]}
    paving |= {"park": ["gravel", "asphalt", "slabs"], "hall": ["tiles", "tiles", "concrete"]}
    kind = str(rng.choice(paving[place]))
    picture = surfaces.ground(rng, kind, width, height, GROUND_SCALE)
    if place == "street":
        edge = float(rng.uniform(-5.5, 3.0))  # the road's far kerb
        near = edge - float(rng.uniform(4, 7))
        top, low = row(edge), row(near)
        if low - top > 10:
            picture[top:low] = surfaces.ground(rng, "asphalt", width, low - top, GROUND_SCALE)
            for line in (top, low):
                picture[max(0, line - 8) : line] = (172, 170, 164)
                picture[line : line + 3] *= 0.6
            paint = [(214.0, 178.0, 70.0), (222.0, 222.0, 216.0)][int(rng.integers(2))]
            for offset in (12, 22) if rng.random() < 0.5 else (14,):
                cv2.line(picture, (0, top + offset), (width, top + offset), paint, 4)
            for column in range(0, width, 144):
                cv2.line(picture, (column, (top + low) // 2), (column + 72, (top + low) // 2), (216, 216, 212), 5)
    elif place == "plaza" and rng.random() < 0.7:
        tone = rng.uniform(0.72, 0.88)
        step = int(rng.uniform(2.5, 4.5) * GROUND_SCALE)
        for column in range(0, width, step):
            picture[:, column : column + 16] *= tone
        for line in range(0, height, step):
            picture[line : line + 16] *= tone
    elif place == "park":
        far, near = row(float(rng.uniform(1.2, 3.0))), row(float(rng.uniform(-4.5, -2.5)))
        picture[:far] = surfaces.ground(rng, "grass", width, far, GROUND_SCALE)
        if near < height:
            picture[near:] = surfaces.ground(rng, "grass", width, height - near, GROUND_SCALE)
        for line in (far, near):
            picture[max(0, line - 4) : line + 2] *= 0.75
    for _ in range(int(rng.integers(1, 5)) if place in ("street", "plaza") else 0):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        if rng.random() < 0.5:
            cv2.circle(picture, centre, int(0.32 * GROUND_SCALE), (82, 82, 82), -1)
            cv2.circle(picture, centre, int(0.32 * GROUND_SCALE), (62, 62, 62), 2)
        else:
            cv2.rectangle(picture, centre, (centre[0] + 30, centre[1] + 44), (74, 75, 76), -1)
    picture[: int(0.5 * GROUND_SCALE)] *= np.linspace(0.7, 1, int(0.5 * GROUND_SCALE), dtype=np.float32)[:, None, None]
    return picture


def darken_footprint(scene: Scene, prop: Prop, x: float, y: float, heading: float) -> None:
    """Paints the soft shadow that a thing has around its foot into the scene's picture."""
    grow = 0.12
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (prop.half_depth + grow, prop.half_width + grow)
    c, s = np.cos(heading), np.sin(heading)
    ground = corners @ np.array([[c, s], [-s, c]]) + (x, y)
    points = scene.camera.project(np.concatenate([ground, np.zeros((4, 1))], 1))
    low = np.floor(points.min(0) - 20).astype(int)
    high = np.ceil(points.max(0) + 20).astype(int)
    left, top = max(0, int(low[0])), max(0, int(low[1]))
    right, bottom = min(scene.camera.picture_width, int(high[0])), min(scene.camera.picture_height, int(high[1]))
    if right - left < 2 or bottom - top < 2:
        return
    mask = np.zeros((bottom - top, right - left), np.float32)
    cv2.fillConvexPoly(mask, np.rint(points - (left, top)).astype(np.int32), 1.0)
    mask = cv2.GaussianBlur(mask, (0, 0), 4.0)
    scene.picture[top:bottom, left:right] *= (1 - 0.45 * mask)[:, :, None]


def stand(scene: Scene, look: CameraLook, prop: Prop, x: float, y: float, heading: float, hides: bool) -> Scene:
    """The scene with a thing put at a ground point (metres); where `hides`, people behind it are covered by it.

    The given scene's picture is changed in place where it is not shared: pass a copy (`fork`) to keep it.
    """
    mesh: Mesh = placed(prop.mesh, x, y, heading)
    view = scene.camera.view(mesh.vertices)
    box = scene.camera.boxes(view)
    left, top = np.maximum(np.floor(box[:2]).astype(int) - 1, 0).tolist()
    right = min(int(box[2]) + 2, scene.camera.picture_width)
    bottom = min(int(box[3]) + 2, scene.camera.picture_height)
    if right <= left or bottom <= top:
        return scene
    darken_footprint(scene, prop, x, y, heading)
    window = Window(left, top, 2.0, 2 * (right - left), 2 * (bottom - top))
    light = vertex_light(look, mesh.normals, mesh.exposure)
    drawing = draw(scene.camera, window, view, box, mesh.triangles, mesh.texels, light, prop.texture)
    if drawing is None:
        return scene
    colour = np.zeros((window.height, window.width, 3), np.float32)
    nearness = np.zeros((window.height, window.width), np.float32)
    rows = slice(drawing.top, drawing.top + drawing.depth.shape[0])
    columns = slice(drawing.left, drawing.left + drawing.depth.shape[1])
    covered = drawing.depth < FAR
    colour[rows, columns] = drawing.colour * covered[:, :, None]
    nearness[rows, columns] = np.where(covered, 1 / drawing.depth, 0)
    size = (right - left, bottom - top)
    small = cv2.resize(colour, size, interpolation=cv2.INTER_AREA)
    share = cv2.resize((nearness > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA)[:, :, None]
    scene.picture[top:bottom, left:right] = small + (1 - share) * scene.picture[top:bottom, left:right]
    if not hides:
        return scene
    whole = np.zeros(scene.picture.shape[:2], np.float32) if scene.nearness is None else scene.nearness
    near = cv2.resize(nearness, size, interpolation=cv2.INTER_AREA)
    whole[top:bottom, left:right] = np.maximum(whole[top:bottom, left:right], near)
    return replace(scene, nearness=whole)


def fork(scene: Scene) -> Scene:
    """A copy whose picture may be painted on."""
    nearness = None if scene.nearness is None else scene.nearness.copy()
    return replace(scene, picture=scene.picture.copy(), nearness=nearness)


def build_scene(look: CameraLook, width: int = 0, height: int = 0) -> Scene:
    """The place before anybody walks through it; width and height as for `CameraLook.pinhole`. Do not paint on it."""
    return _build_scene(look, width, height)


@lru_cache(maxsize=16)
def _build_scene(look: CameraLook, width: int, height: int) -> Scene:
    rng = stream("scene", look.place_seed)
    camera = look.pinhole(width, height)
    wall_distance = float(rng.uniform(3.6, 8.0))
    middle, along, away = street_axes(look)
    ground = _ground_texture(rng, look.place, wall_distance)
    fronts = surfaces.wall(rng, look.place, int(2 * ALONG * WALL_SCALE), int(WALL_HEIGHT * WALL_SCALE), WALL_SCALE)
    ground *= look.ambient + 0.8 * look.sun
    toward = np.array([-away[0], -away[1], 0.0])
    facing = max(0.0, float(toward @ look.sun_direction()))
    fronts *= 0.9 * look.ambient + 0.8 * look.sun * facing

    size = (2 * camera.picture_width, 2 * camera.picture_height)  # drawn twice as large, then averaged
    double = np.diag([2.0, 2.0, 1.0])
    picture = np.empty((size[1], size[0], 3), np.float32)
    picture[:] = (206, 214, 222) if look.place != "hall" else (150, 148, 144)
    left_far = np.array([*(middle + wall_distance * away + ALONG * along), 0.0])
    right_along = np.array([*(-along), 0.0])
    horizon = int(np.clip(2 * (camera.picture_height / 2 - camera.focal * np.tan(camera.pitch)) + 2, 0, size[1]))
    flat = cv2.warpPerspective(ground, double @ _plane(camera, left_far, right_along, toward, GROUND_SCALE), size)
    seen = flat.max(-1) > 0
    picture[horizon:][seen[horizon:]] = flat[horizon:][seen[horizon:]]
    top_left = left_far + np.array([0, 0, WALL_HEIGHT])
    upright = cv2.warpPerspective(fronts, double @ _plane(camera, top_left, right_along, (0, 0, -1), WALL_SCALE), size)
    seen = upright.max(-1) > 0
    picture[seen] = upright[seen]
    small = cv2.resize(picture, (camera.picture_width, camera.picture_height), interpolation=cv2.INTER_AREA)
    scene = Scene(camera, small, None, wall_distance)
    kinds = {
        "street": ["car", "pole", "bin", "sign", "tree", "car"],
        "plaza": ["bench", "planter", "bin", "tree", "pole", "sign", "barrier"],
        "park": ["bench", "tree", "tree", "bin", "planter"],
        "hall": ["planter", "bench", "pillar", "bin", "sign"],
    }[look.place]
    spots = sorted(rng.uniform(-0.85, 0.85, int(rng.integers(3, 7))) * ALONG * 0.6)
    last = -99.0
    for spot in spots:
        kind = str(rng.choice(kinds))
        prop = make_prop(rng, kind)
        if spot - last < (5.0 if kind == "car" else 1.5):
            continue
        last = float(spot)
        x, y = middle + (wall_distance - 0.5 - prop.half_depth * (kind != "car") - 0.5 * (kind == "car")) * away + spot * along
        heading = look.street_angle + (np.pi / 2 if kind == "car" else np.pi if kind == "bench" else 0.0)
        scene = stand(scene, look, prop, float(x), float(y), heading, hides=False)
    return scene
