"""Recordings of a red square, which stands for a person, and who finds and embeds it: real files, without networks."""

from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pyarrow as pa
import pytest

from pipeline.footage import detect
from pipeline.footage.detect import DetectPeople, DetectSettings
from pipeline.footage.detector import Detections
from pipeline.gallery.detections import FORGOTTEN_BOXES_SCHEMA
from pipeline.gallery.forgotten import Forgotten
from pipeline.gallery.gallery import Gallery
from pipeline.ingest.gallery_sampling import gallery_sampling
from tests.footage.made_up import DIM

SIDE = 40  # pixels of a red square, which stands for a person


def write_square(path: Path, frames: int = 30, options: dict[str, str] | None = None, **metadata: str) -> Path:
    """A grey recording at 10 frames a second in which a red square moves 4 pixels a frame to the right from 20, 60, and every 64
    frames anew. options: of the encoder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        out.metadata.update(metadata)
        stream = out.add_stream("libx264", rate=10, options={"crf": "12", **(options or {})})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv444p"
        for number in range(frames):
            picture = np.full((240, 320, 3), 128, np.uint8)
            left = 20 + 4 * (number % 64)
            picture[60 : 60 + SIDE, left : left + SIDE] = (230, 20, 20)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


class RedSquares:
    """A detector of red squares."""

    identity = "red@0"

    def detect(self, frames: np.ndarray) -> list[Detections]:
        found = []
        for frame in frames.astype(int):
            rows, columns = np.nonzero((frame[..., 0] > 180) & (frame[..., 1] < 80))
            box = [columns.min(), rows.min(), columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()]
            found.append(Detections(np.array([box], np.float32), np.array([0.9], np.float32)))
        return found


class MeanColour:
    """A backbone of mean colours."""

    def __init__(self, gallery: Gallery) -> None:
        self.spec = gallery.settings.backbone

    def embed(self, frames: np.ndarray) -> np.ndarray:
        return np.repeat(frames.mean(axis=(1, 2)), 3, axis=1)[:, :DIM].astype(np.float16)


def worker(gallery: Gallery, forgotten: Forgotten | None = None, boxes: pa.Table | None = None) -> DetectPeople:
    """A worker that finds red squares. forgotten, boxes: as `DetectPeople` has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detect, "load_detector", lambda *_: RedSquares())
        patch.setattr(detect, "load_backbone", lambda *_: MeanColour(gallery))
        boxes = FORGOTTEN_BOXES_SCHEMA.empty_table() if boxes is None else boxes
        counter = SimpleNamespace(add=SimpleNamespace(remote=lambda frames: None))
        return DetectPeople(gallery, gallery_sampling(gallery), DetectSettings("red"), forgotten or Forgotten(), boxes, counter)
