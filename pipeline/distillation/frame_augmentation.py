"""Augmentation of single frames for distillation: `pipeline.training.augmentation`, and what only a teacher can judge.

A teacher says what is right for whatever it is shown, so that a person need not stay the same person: clothes may change
their colour, and one person's upper body may stand on another's legs. Frames are uint8 [h, w, 3], RGB.
"""

import cv2
import numpy as np

from pipeline.training.augmentation import AugmentationSettings, augment

CAMERAS = AugmentationSettings(crop=0.12, light=0.35, blur=0.3, resolution=0.35, occluder=0.25, erase=0.15)
HUE, MIXED, NOISE = 0.35, 0.18, 0.25  # probabilities
BODY = (0.35, 0.65)  # share of the height at which two people are joined
LARGEST_NOISE = 12.0  # standard deviation, of pixel values


def augment_frame(frame: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One frame, changed; other: another frame of the same size, of which something may show."""
    if random.random() < MIXED:
        row, frame = round(random.uniform(*BODY) * len(frame)), frame.copy()
        part = slice(row, None) if random.random() < 0.5 else slice(None, row)
        frame[part] = other[part]
    if random.random() < HUE:
        hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + random.integers(0, 180)) % 180  # OpenCV's circle has 180 steps
        frame = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if random.random() < NOISE:
        noise = random.normal(0, random.uniform(2, LARGEST_NOISE), frame.shape)
        frame = np.clip(frame + noise, 0, 255).astype(np.uint8)
    return augment(frame[None], random, CAMERAS, other[None])[0][0]
