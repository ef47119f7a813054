"""The articulated body: where its joints are and how its bones move through a walking cycle.

Body coordinates in metres: x forward, y to the person's left, z up, the origin on the ground below the pelvis. In the
rest pose the person stands upright with the arms hanging straight down.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.rendering.appearance import Appearance

Floats = npt.NDArray[np.float32]

BONES = (
    "pelvis",
    "chest",
    "head",
    "left_arm",
    "left_forearm",
    "right_arm",
    "right_forearm",
    "left_thigh",
    "left_calf",
    "left_foot",
    "right_thigh",
    "right_calf",
    "right_foot",
)
PARENTS = (-1, 0, 1, 1, 3, 1, 5, 0, 7, 8, 0, 10, 11)
BONE = {name: number for number, name in enumerate(BONES)}


@dataclass(frozen=True)
class Proportions:
    """Heights above the ground and half widths of the body's landmarks, metres."""

    ankle: float
    knee: float
    hip: float
    waist: float
    shoulder: float
    neck: float
    top: float
    elbow: float
    hip_half: float
    shoulder_half: float
    foot: float

    def joints(self) -> npt.NDArray[np.float64]:
        """The rest position of each bone's joint, (13, 3), in the order of BONES."""
        s, h = self.shoulder_half, self.hip_half
        return np.array(
            [
                [0, 0, self.hip],
                [0, 0, self.waist],
                [0, 0, self.neck],
                [0, s, self.shoulder],
                [0, s, self.elbow],
                [0, -s, self.shoulder],
                [0, -s, self.elbow],
                [0, h, self.hip],
                [0, h, self.knee],
                [0, h, self.ankle],
                [0, -h, self.hip],
                [0, -h, self.knee],
                [0, -h, self.ankle],
            ]
        )


def proportions(appearance: Appearance) -> Proportions:
    """An adult's landmarks: the head is 1/7.6 of the height, the crotch is just below half of it."""
    h = appearance.height
    return Proportions(
        ankle=0.046 * h,
        knee=0.275 * h,
        hip=0.515 * h,
        waist=0.60 * h,
        shoulder=0.808 * h,
        neck=0.845 * h,
        top=h,
        elbow=0.632 * h,
        hip_half=0.050 * h * (0.75 + 0.25 * appearance.girth),
        shoulder_half=0.103 * h * appearance.shoulders * (0.85 + 0.15 * appearance.girth),
        foot=0.148 * h,
    )


def _pulse(phase: npt.NDArray[np.float64], centre: float, width: float) -> npt.NDArray[np.float64]:
    """A bump of height 1 around `centre` on the cycle 0..1."""
    distance = (phase - centre + 0.5) % 1.0 - 0.5
    return np.exp(-((distance / width) ** 2))


def _about_y(angle: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rotations about the left axis, (F, 3, 3); a positive angle swings what hangs down forward."""
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([c, zero, -s, zero, one, zero, s, zero, c], -1).reshape(-1, 3, 3)


def _about_z(angle: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rotations about the vertical, (F, 3, 3), counter-clockwise seen from above."""
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([c, -s, zero, s, c, zero, zero, zero, one], -1).reshape(-1, 3, 3)


def _about_x(angle: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rotations about the forward axis, (F, 3, 3); a positive angle moves what hangs down to the left."""
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([one, zero, zero, zero, c, -s, zero, s, c], -1).reshape(-1, 3, 3)


def _leg(phase: npt.NDArray[np.float64], reach: float) -> tuple[npt.NDArray[np.float64], ...]:
    """Thigh angle, knee flexion and foot pitch (toes up positive), radians, at phase 0..1 (0 is the heel's strike).

    The curves follow normal gait: two knee bumps (loading, swing), heel off before half the cycle, toe off at 0.62.
    """
    thigh = reach * np.cos(2 * np.pi * phase) + 0.10 * _pulse(phase, 0.82, 0.13) + 0.10
    knee = 0.10 + 0.20 * _pulse(phase, 0.14, 0.09) + 1.0 * _pulse(phase, 0.72, 0.125)
    foot = 0.28 * _pulse(phase, 0.0, 0.06) - 0.70 * _pulse(phase, 0.66, 0.11) - 0.15 * _pulse(phase, 0.76, 0.09)
    return thigh, knee, foot


def walk(
    appearance: Appearance,
    positions: npt.NDArray[np.float64],
    headings: npt.NDArray[np.float64],
    phase: npt.NDArray[np.float64],
) -> tuple[Floats, Floats]:
    """The bones of a person who walks.

    positions: (F, 2) ground points in metres; headings: (F,) radians, 0 along world x; phase: (F,) gait cycles.
    Returns rotations (F, 13, 3, 3) and offsets (F, 13, 3): a rest point p on bone b goes to rotation @ p + offset. The
    body is as high as the lower foot allows, so that one foot is always on the ground.
    """
    body = proportions(appearance)
    joints = body.joints()
    frames = len(phase)
    leg_length = body.hip
    reach = float(np.arcsin(np.clip(appearance.stride / 4 / leg_length, 0.1, 0.6)))
    swing = 2 * np.pi * phase
    carrying = appearance.bag == "handbag"

    local: list[npt.NDArray[np.float64]] = [np.zeros(0)] * len(BONES)
    local[BONE["pelvis"]] = _about_z(-0.09 * np.cos(swing)) @ _about_x(0.035 * np.sin(swing))
    local[BONE["chest"]] = (
        _about_z(0.20 * np.cos(swing)) @ _about_x(-0.04 * np.sin(swing)) @ _about_y(np.full(frames, -appearance.lean))
    )
    nod = 0.6 * appearance.lean + 0.015 * np.sin(2 * swing)
    local[BONE["head"]] = _about_z(-0.09 * np.cos(swing)) @ _about_y(nod)
    for side, sign, offset in (("left", 1, 0.0), ("right", -1, 0.5)):
        own = (phase + offset) % 1.0
        thigh, knee, foot = _leg(own, reach)
        outward = np.full(frames, -0.015 * sign)
        local[BONE[f"{side}_thigh"]] = _about_y(thigh) @ _about_x(outward)
        local[BONE[f"{side}_calf"]] = _about_y(-knee)
        local[BONE[f"{side}_foot"]] = _about_y(foot - thigh + knee)
        amplitude = appearance.arm_swing * (0.35 if carrying and sign == appearance.bag_side else 1.0)
        arm = -amplitude * np.cos(2 * np.pi * own) + 0.02
        bend = 0.22 + 0.4 * amplitude * (1 - np.cos(2 * np.pi * own)) * 0.5 + 0.25 * amplitude
        if carrying and sign == appearance.bag_side:
            bend = bend * 0.4
        local[BONE[f"{side}_arm"]] = _about_y(arm) @ _about_x(np.full(frames, (0.10 + 0.05 * appearance.girth) * sign))
        local[BONE[f"{side}_forearm"]] = _about_y(bend) @ _about_x(np.full(frames, -0.06 * sign))

    rotations = np.empty((frames, len(BONES), 3, 3))
    offsets = np.empty((frames, len(BONES), 3))
    turn = _about_z(headings)
    for bone, parent in enumerate(PARENTS):
        if parent < 0:
            rotations[:, bone] = turn @ local[bone]
            moved = np.zeros((frames, 3))
            moved[:, :2] = positions
            moved[:, 2] = body.hip
            sway = 0.018 * np.sin(swing)
            moved[:, 0] += -np.sin(headings) * sway
            moved[:, 1] += np.cos(headings) * sway
        else:
            rotations[:, bone] = rotations[:, parent] @ local[bone]
            moved = rotations[:, parent] @ joints[bone] + offsets[:, parent]
        offsets[:, bone] = moved - rotations[:, bone] @ joints[bone]

    soles = []
    for side, sign in (("left", 1), ("right", -1)):
        bone = BONE[f"{side}_foot"]
        for forward in (-0.28 * body.foot, 0.72 * body.foot):
            point = np.array([forward, sign * body.hip_half, 0.0])
            soles.append((rotations[:, bone] @ point + offsets[:, bone])[:, 2])
    offsets[:, :, 2] -= np.min(soles, axis=0)[:, None]
    return rotations.astype(np.float32), offsets.astype(np.float32)
