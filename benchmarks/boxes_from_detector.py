"""A boxes file for full-frame footage: people found by an OpenVINO detector and linked from frame to frame by overlap.

    python -m benchmarks.boxes_from_detector VIDEO --detector person-detection-retail-0013.xml --out boxes.csv

So that footage without boxes can be learned from (jobs.distil) or searched: name the file in a manifest's column boxes_uri. The
links are the simplest there are and break where people cross; a product's tracker does better. Needs the package openvino.
"""

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from jobs.command_line import run
from pipeline.decoding.opening import open_files
from pipeline.decoding.readers import reader_of
from pipeline.decoding.sampling import Sampling
from pipeline.errors import PipelineError, UsageError, VideoError
from pipeline.storage.location import resolve
from pipeline.storage.uris import canonical_uri

LINK_OVERLAP = 0.3  # intersection over union of two boxes that are one person, at least
LINK_FRAMES = 5  # frames that a person may be missed


class Tracks:
    """Links boxes, each to the track whose newest box it overlaps most, best pairs first; the others begin tracks."""

    def __init__(self) -> None:
        self.newest: dict[int, tuple[int, np.ndarray]] = {}  # track -> (frame, box)
        self.begun = 0

    def link(self, frame: int, boxes: np.ndarray) -> list[int]:
        """boxes: float [n, 4], left, top, right, bottom in pixels -> the track of each."""
        self.newest = {track: seen for track, seen in self.newest.items() if frame - seen[0] <= LINK_FRAMES}
        pairs = [(overlap(box, seen), i, track) for i, box in enumerate(boxes) for track, (_, seen) in self.newest.items()]
        tracks: dict[int, int] = {}
        for share, i, track in sorted(pairs, reverse=True):
            if share >= LINK_OVERLAP and i not in tracks and track not in tracks.values():
                tracks[i] = track
        for i, box in enumerate(boxes):
            if i not in tracks:
                self.begun += 1
                tracks[i] = self.begun
            self.newest[tracks[i]] = frame, box
        return [tracks[i] for i in range(len(boxes))]


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    return common / (float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])) - common)


def detect(network: Any, frame: np.ndarray, confidence: float) -> np.ndarray:
    """frame: uint8 [h, w, 3], RGB -> float32 [n, 4], left, top, right, bottom in pixels.

    The network gives rows of image, label, confidence and the box's edges as shares of the frame.
    """
    height, width = network.input(0).shape[2:]
    pixels = cv2.resize(frame, (width, height))[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32)
    rows = np.array(network(pixels)[0]).reshape(-1, 7)
    edges = np.array(frame.shape[1::-1] * 2, np.float32)
    return rows[rows[:, 2] >= confidence, 3:] * edges


def read_all(video: str) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the frame from 0, frame), numbered as everything else in the pipeline numbers them."""
    with open_files(canonical_uri(video), None, Sampling(), lambda: None, lambda number, count: True) as opened:
        for frame in reader_of(opened, Sampling()).frames():
            yield frame.number, frame.picture()


def main(
    video: Annotated[str, typer.Argument(help="A video, full frames.")],
    detector: Annotated[Path, typer.Option(help="Detector in OpenVINO's format, of BGR pixels: person-detection-retail-0013.")],
    out: Annotated[Path, typer.Option(help="Boxes file to write: frame (from 1), id, x, y, w, h (pixels), no header.")],
    confidence: Annotated[float, typer.Option(help="Least confidence of a detection.")] = 0.6,
    least_height: Annotated[int, typer.Option(help="Least height of a person, in pixels.")] = 60,
) -> None:
    """Write a boxes file of the people in a video."""
    openvino = _openvino()
    if not detector.is_file():
        raise UsageError(f"there is no detector {detector}")
    network, tracks, rows, began = openvino.Core().compile_model(str(detector), "CPU"), Tracks(), [], time.monotonic()
    number = -1
    try:
        for number, frame in read_all(video):
            boxes = detect(network, frame, confidence)
            boxes = boxes[(boxes[:, 3] - boxes[:, 1] >= least_height) & (boxes[:, 2] > boxes[:, 0])]
            for track, (left, top, right, bottom) in zip(tracks.link(number, boxes), boxes.tolist(), strict=True):
                rows.append(f"{number + 1},{track},{left:.1f},{top:.1f},{right - left:.1f},{bottom - top:.1f}")
            if number % 200 == 199:
                print(f"{number + 1} frames, {tracks.begun} tracks", file=sys.stderr, flush=True)
    except VideoError as error:
        raise PipelineError(error.message) from error
    if not rows:
        raise PipelineError(f"the detector finds nobody in {video}")
    resolve(out).write_atomically(("\n".join(rows) + "\n").encode())
    seconds = time.monotonic() - began
    print(f"{out}: {len(rows)} boxes of {tracks.begun} tracks in {number + 1} frames, {(number + 1) / seconds:.0f} frames/s")
    print(json.dumps({"boxes": len(rows), "tracks": tracks.begun, "frames": number + 1, "seconds": round(seconds, 1)}))


def _openvino() -> Any:
    """OpenVINO, which nothing else here needs. Raises UsageError where it is not installed."""
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise UsageError("networks in OpenVINO's format need the package openvino: pip install openvino") from error


if __name__ == "__main__":
    run(main)
