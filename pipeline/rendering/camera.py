"""What one camera makes of a scene: where it hangs, the light there, its colours, sharpness, noise and compression."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.rendering.randomness import choose, stream
from pipeline.rendering.raster import Pinhole

Floats = npt.NDArray[np.float32]

PERSON_HEIGHT = 1.7  # metres; a person of this height fills 0.85 of a clip's height at the look's distance


@dataclass(frozen=True)
class CameraLook:
    """One camera. Lengths in metres, angles in radians, frame_rate in frames a second.

    elevation is the angle at which the camera looks down on the middle of the ground that it watches, `distance` metres
    away. cast scales red, green and blue; blur and noise are deviations in pixels and in grey levels; exposure is the
    shutter's time in seconds; crf is x264's quality (higher is worse).
    """

    place: str  # street, plaza, park, hall
    place_seed: int
    elevation: float
    distance: float
    street_angle: float
    clip_width: int
    clip_height: int
    frame_rate: int
    sun: float
    ambient: float
    sun_azimuth: float
    sun_elevation: float
    gain: float
    gamma: float
    contrast: float
    saturation: float
    cast: tuple[float, float, float]
    blur: float
    noise: float
    exposure: float
    crf: int

    def pinhole(self, width: int = 0, height: int = 0) -> Pinhole:
        """The camera's geometry; its picture is 14 clips wide and 4 high, or width x height pixels of the same view."""
        slant = self.distance / np.cos(self.elevation)
        focal = 0.85 * self.clip_height * slant / (PERSON_HEIGHT * np.cos(self.elevation))
        full_width, full_height = 14 * self.clip_width, 4 * self.clip_height
        zoom = width / full_width if width else 1.0
        return Pinhole(
            height=float(self.distance * np.tan(self.elevation) + 0.9),
            pitch=self.elevation,
            focal=float(focal * zoom),
            picture_width=width or full_width,
            picture_height=height or full_height,
        )

    def sun_direction(self) -> npt.NDArray[np.float32]:
        """The unit vector towards the light, (3,), in world coordinates."""
        flat = np.cos(self.sun_elevation)
        azimuth = self.sun_azimuth
        return np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(self.sun_elevation)], np.float32)


def sample_camera_look(seed: int, camera: int) -> CameraLook:
    """The look of camera number `camera` in the network `seed`; the same arguments give the same look."""
    rng = stream("camera", seed, camera)
    place = choose(rng, {"street": 42, "plaza": 24, "park": 16, "hall": 18})
    weather = choose(rng, {"hall": 1} if place == "hall" else {"sunny": 38, "overcast": 46, "dusk": 16})
    sun, ambient = {"sunny": (0.62, 0.60), "overcast": (0.18, 0.86), "dusk": (0.14, 0.68), "hall": (0.22, 0.80)}[weather]
    warmth = rng.normal({"sunny": 0.03, "overcast": -0.03, "dusk": -0.05, "hall": 0.08}[weather], 0.05)
    warmth = float(np.clip(warmth, -0.09, 0.14))  # farther off, faces stop looking like faces
    tint = float(rng.normal(0, 0.025))
    clip_width = int(rng.choice([48, 64, 80, 96], p=[0.18, 0.42, 0.25, 0.15]))
    return CameraLook(
        place=place,
        place_seed=int(rng.integers(1 << 31)),
        elevation=float(np.radians(np.clip(rng.gamma(3.2, 5.6) + 3, 5, 40))),
        distance=float(rng.uniform(9, 15)),
        street_angle=float(np.radians(rng.uniform(-26, 26))),
        clip_width=clip_width,
        clip_height=2 * clip_width,
        frame_rate=int(rng.choice([8, 10, 12], p=[0.1, 0.8, 0.1])),
        sun=sun * float(rng.uniform(0.85, 1.15)),
        ambient=ambient,
        sun_azimuth=float(rng.uniform(0, 2 * np.pi)),
        sun_elevation=float(np.radians(rng.uniform(32, 62) if weather == "sunny" else rng.uniform(50, 80))),
        gain=float(np.clip(rng.normal(1.0, 0.12), 0.75, 1.3)),
        gamma=float(np.clip(rng.normal(1.0, 0.12), 0.75, 1.25)),
        contrast=float(np.clip(rng.normal(0.98, 0.10), 0.72, 1.2)),
        saturation=float(np.clip(rng.normal(0.92, 0.12), 0.6, 1.2)),
        cast=(1 + warmth - tint / 2, 1 + tint, 1 - warmth - tint / 2),
        blur=float(rng.uniform(0.25, 0.8)),
        noise=float(rng.uniform(1.0, 6.0)) * (1.5 if weather == "dusk" else 1.0),
        exposure=float(rng.uniform(0.004, 0.02)) * (1.6 if weather in ("dusk", "hall") else 1.0),
        crf=int(rng.integers(20, 33)),
    )


def _tone_curves(look: CameraLook) -> npt.NDArray[np.uint8]:
    """What the sensor makes of each grey level, (1, 256, 3) uint8, for red, green and blue."""
    level = np.arange(256) / 255
    curves = []
    for factor in look.cast:
        value = np.clip(level * look.gain * factor, 0, 1.6) ** look.gamma
        value = 0.46 + (value - 0.46) * look.contrast
        value = np.where(value > 0.82, 0.82 + 0.18 * np.tanh((value - 0.82) / 0.18), value)  # highlights roll off
        curves.append(np.clip(np.rint(255 * value), 3, 252))
    return np.stack(curves, -1)[None].astype(np.uint8)


def develop(look: CameraLook, frames: Floats, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Frames as this camera would deliver them: blurred, toned, noisy.

    frames: (F, h, w, 3) float32 RGB 0..255 under neutral light. Returns (F, h, w, 3) uint8.
    """
    count, height, width, _ = frames.shape
    curves = _tone_curves(look)
    grey = np.array([0.299, 0.587, 0.114])
    mixing = (look.saturation * np.eye(3) + (1 - look.saturation) * grey[None, :]).astype(np.float32)
    # One sheet of noise is enough: each frame takes it from another place. Sensor noise is a little coarse after the
    # camera's own processing, hence the blur.
    sheet = rng.standard_normal((height + 64, width + 64, 3), dtype=np.float32)
    sheet = 0.5 * sheet + 0.5 * sheet.mean(-1, keepdims=True)
    noise = np.rint(cv2.GaussianBlur(sheet, (3, 3), 0.6) * (2.2 * look.noise)).astype(np.int16)
    places = rng.integers(0, 64, (count, 2))
    developed = np.empty(frames.shape, np.uint8)
    for number in range(count):
        frame = cv2.transform(frames[number], mixing)
        frame = cv2.GaussianBlur(frame, (5, 5) if look.blur > 0.5 else (3, 3), look.blur)
        toned = cv2.LUT(cv2.convertScaleAbs(frame), curves)
        y, x = places[number]
        noisy = cv2.add(toned, np.ascontiguousarray(noise[y : y + height, x : x + width]), dtype=cv2.CV_8U)
        developed[number] = noisy
    return developed
