"""Frames -> boxes of people: a detector in ONNX Runtime, on the CPU or, with its CUDA provider, on a GPU.

The network has one input, float [n, 3, height, width], n free or fixed. What it gives is read in one of three ways (`decode`):

- yolox: one output [n, cells, 5 + classes], of the cells of grids of 8, 16 and 32 pixels, row by row: centre (in cells, from the
  cell's corner), logarithm of width and height (in cells), objectness, classes. A score is objectness times class. Ge et al.,
  "YOLOX: Exceeding YOLO Series in 2021", arXiv:2107.08430.
- ssd: one output [.., rows, 7]: place of the frame in the batch (negative: no further rows), class, score, and the edges left,
  top, right, bottom as shares of the input. Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016.
- boxes_scores: two outputs, boxes [n, rows, 4], left, top, right, bottom in pixels of the input, and scores [n, rows] or
  [n, rows, classes].

Of boxes that overlap the best counts (`nms_iou`). A frame's detections do not depend on the frames beside it: every call of the
network has the same number of frames.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.backbone.onnx_file import read_onnx
from pipeline.backbone.runtime import PIXEL_TYPES, check_input, chosen_device, described_shape, open_session
from pipeline.backbone.spec import normalise_pixels
from pipeline.errors import PipelineError, first_line
from pipeline.footage.detector_spec import DetectorSpec, find_detector

GPU_BATCH = 8  # frames
GROUND = 114  # of a letterbox, as YOLOX was trained
STRIDES = (8, 16, 32)  # pixels, of yolox' grids
MOST_LOGARITHM = 20.0  # of a width in cells: what is larger is no box, and exp would overflow


class Detections(NamedTuple):
    """People in a frame, best first. boxes: float32 [m, 4], x, y, w, h in pixels of the frame, inside it. scores: float32 [m]."""

    boxes: np.ndarray
    scores: np.ndarray


class Detector:
    """A loaded detector; `load_detector` makes it. batch: frames of one network call, whatever number is looked at."""

    def __init__(self, spec: DetectorSpec, threads: int | None, device: str) -> None:
        self.spec = spec
        network, digest = read_onnx(Path(spec.path))
        if digest != spec.sha256:
            raise PipelineError(f"{spec.path} cannot be used, it is not the network that was looked up: its content differs")
        self.session = open_session(network, spec.path, threads, device)
        check_input(self.session, spec.height, spec.width, spec.path)
        (pixels,) = self.session.get_inputs()
        self.input_name, self.pixel_type = pixels.name, PIXEL_TYPES[pixels.type]
        fixed = pixels.shape[0] if pixels.shape and isinstance(pixels.shape[0], int) else None
        self.batch: int = fixed or (1 if device == "cpu" else GPU_BATCH)
        self._cells = _cells(spec.height, spec.width)

    @property
    def identity(self) -> str:
        """Name and hash: detections of different detectors are not mixed."""
        return self.spec.identity

    def detect(self, frames: np.ndarray) -> list[Detections]:
        """frames: uint8 [n, height, width, 3], RGB, of any one size -> the people in each."""
        found: list[Detections] = []
        for start in range(0, len(frames), self.batch):
            found.extend(self._detect_batch(frames[start : start + self.batch]))
        return found

    def _detect_batch(self, frames: np.ndarray) -> Iterator[Detections]:
        height, width = frames.shape[1:3]
        inputs = [_fitted(frame, self.spec) for frame in frames]
        inputs += inputs[-1:] * (self.batch - len(inputs))
        pixels = normalise_pixels(np.stack(inputs), self.spec).astype(self.pixel_type, copy=False)
        outputs = self.session.run(None, {self.input_name: pixels})
        scale = np.array(_scale(height, width, self.spec) * 2, np.float32)
        for edges, scores in self._decoded(outputs)[: len(frames)]:
            yield _best(edges / scale, scores, height, width, self.spec)

    def _decoded(self, outputs: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per frame of the batch: float32 [m, 4], left, top, right, bottom in pixels of the input, and float32 [m], scores."""
        outputs = [np.asarray(output, np.float32) for output in outputs]
        if self.spec.decode == "yolox":
            return [self._decoded_cells(rows) for rows in outputs[0]]
        if self.spec.decode == "ssd":
            return self._decoded_rows(outputs[0].reshape(-1, 7))
        boxes, scores = outputs if outputs[0].shape[-1] == 4 and outputs[0].ndim == 3 else outputs[::-1]
        if scores.ndim == 3:
            scores = scores[..., self.spec.person_class]
        return list(zip(boxes, scores, strict=True))

    def _decoded_cells(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = rows[:, 4] * rows[:, 5 + self.spec.person_class]
        kept = scores >= self.spec.threshold
        rows, (corners, strides) = rows[kept], (part[kept] for part in self._cells)
        centres = (rows[:, :2] + corners) * strides
        halves = np.exp(np.minimum(rows[:, 2:4], MOST_LOGARITHM)) * strides / 2
        return np.hstack([centres - halves, centres + halves]), scores[kept]

    def _decoded_rows(self, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        ends = np.flatnonzero(rows[:, 0] < 0)
        rows = rows[: ends[0]] if len(ends) else rows
        rows = rows[rows[:, 1] == self.spec.person_class]
        size = np.array([self.spec.width, self.spec.height] * 2, np.float32)
        of_frames = [rows[rows[:, 0] == place] for place in range(self.batch)]
        return [(found[:, 3:] * size, found[:, 2]) for found in of_frames]


def load_detector(name_or_path: str, threads: int | None = 1, device: str = "auto") -> Detector:
    """Load a detector of people.

    name_or_path: a name (`pipeline.footage.detector_spec.PUBLISHED`), or the path of an ONNX file with its sidecar beside it.
    threads: CPU threads of a network call (None: one a core). device: "cpu", "cuda", or "auto" for CUDA where there is one.
    Raises UsageError when there is no such detector or its sidecar is unusable; PipelineError when a published one cannot be had,
    the file is not an ONNX network, or it does not take or give what its sidecar says.
    """
    spec = find_detector(name_or_path)
    detector = Detector(spec, threads, chosen_device(device))
    _check_outputs(detector)
    return detector


def _check_outputs(detector: Detector) -> None:
    """Whether the network gives what `decode` reads, for a frame of the ground alone."""
    spec, n, cells = detector.spec, detector.batch, len(detector._cells[0])
    ground = np.full((n, 3, spec.height, spec.width), GROUND, detector.pixel_type)
    try:
        outputs = detector.session.run(None, {detector.input_name: ground})
    except Exception as error:  # ONNX Runtime raises a family of classes of its own
        raise PipelineError(f"{spec.path} cannot be run on {n} frames; export it again: {first_line(error)}") from error
    shapes = [output.shape for output in outputs]
    person = spec.person_class
    if spec.decode == "yolox":
        wanted = f"{n} x {cells} x (5 + more than {person} classes)"
        right = len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][:2] == (n, cells) and shapes[0][2] > 5 + person
    elif spec.decode == "ssd":
        wanted = "rows of 7"
        right = len(shapes) == 1 and len(shapes[0]) > 1 and shapes[0][-1] == 7
    else:
        wanted = f"boxes, {n} x rows x 4, and scores, {n} x rows or {n} x rows x (more than {person} classes)"
        right = _are_boxes_and_scores(shapes, n, person) or _are_boxes_and_scores(shapes[::-1], n, person)
    if not right or any(output.dtype.kind != "f" for output in outputs):
        given = ", ".join(f"{output.dtype} {described_shape(output.shape)}" for output in outputs)
        raise PipelineError(
            f"{spec.path} gives {given}, but {spec.decode} is {wanted} in floating point; "
            "correct decode or person_class in its sidecar, or export it again"
        )


def _are_boxes_and_scores(shapes: list[tuple[int, ...]], n: int, person: int) -> bool:
    if len(shapes) != 2 or len(shapes[0]) != 3 or shapes[0][0] != n or shapes[0][2] != 4 or shapes[1][:2] != shapes[0][:2]:
        return False
    return len(shapes[1]) == 2 or (len(shapes[1]) == 3 and shapes[1][2] > person)


def _scale(height: int, width: int, spec: DetectorSpec) -> tuple[float, float]:
    """Pixels of the network's input for one of the frame, across and down."""
    across, down = spec.width / width, spec.height / height
    return (min(across, down),) * 2 if spec.letterbox else (across, down)


def _fitted(frame: np.ndarray, spec: DetectorSpec) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [height, width, 3], as the network takes it."""
    across, down = _scale(frame.shape[0], frame.shape[1], spec)
    width, height = max(int(frame.shape[1] * across), 1), max(int(frame.shape[0] * down), 1)
    resized = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
    if not spec.letterbox:
        return resized
    fitted = np.full((spec.height, spec.width, 3), GROUND, np.uint8)
    fitted[:height, :width] = resized
    return fitted


def _best(edges: np.ndarray, scores: np.ndarray, height: int, width: int, spec: DetectorSpec) -> Detections:
    """Boxes that count, of edges float32 [m, 4] in pixels of a frame of height x width, and scores float32 [m]."""
    edges = np.clip(edges, 0, np.array([width, height] * 2, np.float32))
    boxes = np.hstack([edges[:, :2], edges[:, 2:] - edges[:, :2]])
    usable = np.isfinite(boxes).all(1) & (boxes[:, 2:] > 0).all(1) & (scores >= spec.threshold)
    boxes, scores = boxes[usable], scores[usable]
    order = np.argsort(-scores, kind="stable")
    boxes, scores = boxes[order], scores[order]
    kept = np.sort(cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), 0.0, spec.nms_iou)) if len(boxes) else np.empty(0, np.intp)
    return Detections(boxes[kept].astype(np.float32), scores[kept].astype(np.float32))


def _cells(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [cells, 2], corners (x, y) of yolox' cells counted in cells, and float32 [cells, 1], pixels of a cell."""
    corners, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: height // stride, : width // stride]
        corners.append(np.column_stack([x.ravel(), y.ravel()]))
        strides.append(np.full((x.size, 1), stride))
    return np.concatenate(corners).astype(np.float32), np.concatenate(strides).astype(np.float32)
