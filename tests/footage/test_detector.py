"""Detectors of people: what networks give is read as their sidecars say; what does not fit is refused in one sentence."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.errors import PipelineError, UsageError
from pipeline.footage import detector_spec
from pipeline.footage.detector import load_detector
from pipeline.footage.detector_spec import PUBLISHED, find_detector
from pipeline.storage.downloads import PinnedFile
from pipeline.storage.hashing import sha256
from tests.conftest import SHARED

YOLOX = SHARED / "models/yolox_nano/yolox_nano_reexport.onnx"
VTEST = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
HEIGHT, WIDTH = 64, 96  # of the made-up networks' input
CELLS = (8 * 12) + (4 * 6) + (2 * 3)
IMAGES = ["n", 3, HEIGHT, WIDTH]
Boxes = list[tuple[float, ...]]


def save_network(
    path: Path,
    outputs: Sequence[np.ndarray],
    images: Sequence[int | str] = IMAGES,
    pixels: int = TensorProto.FLOAT,
    **entries: Any,
) -> Path:
    """A network that gives these arrays whatever it is shown, and its sidecar."""
    held = [onnx.numpy_helper.from_array(output, f"held{i}") for i, output in enumerate(outputs)]
    nodes = [helper.make_node("Identity", [f"held{i}"], [f"out{i}"]) for i in range(len(outputs))]
    given = [
        helper.make_tensor_value_info(f"out{i}", helper.np_dtype_to_tensor_dtype(output.dtype), output.shape)
        for i, output in enumerate(outputs)
    ]
    graph = helper.make_graph(nodes, "network", [helper.make_tensor_value_info("images", pixels, images)], given, held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    sidecar = {"decode": "boxes_scores", "height": HEIGHT, "width": WIDTH, "channels": "RGB", **entries}
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    return path


def black(height: int, width: int, n: int = 1) -> np.ndarray:
    return np.zeros((n, height, width, 3), np.uint8)


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes x, y, w, h."""
    across = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    down = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    common = max(across, 0.0) * max(down, 0.0)
    return common / (one[2] * one[3] + other[2] * other[3] - common)


def expected(
    candidates: Iterable[tuple[float, ...]], size: tuple[int, int], letterbox: bool, threshold: float, nms: float
) -> Boxes:
    """Brute force: (x0, y0, x1, y1, score) in pixels of the input -> (x, y, w, h, score) in a frame of size (height, width)."""
    height, width = size
    across, down = WIDTH / width, HEIGHT / height
    if letterbox:
        across = down = min(across, down)
    kept: Boxes = []
    for x0, y0, x1, y1, score in sorted(candidates, key=lambda candidate: -candidate[4]):
        x0, x1 = (min(max(x / across, 0.0), width) for x in (x0, x1))
        y0, y1 = (min(max(y / down, 0.0), height) for y in (y0, y1))
        box = (x0, y0, x1 - x0, y1 - y0)
        if score >= threshold and box[2] > 0 and box[3] > 0 and all(overlap(box, other) <= nms for other in kept):
            kept.append((*box, score))
    return kept


def assert_detects(path: Path, wanted: Boxes, size: tuple[int, int]) -> None:
    (found,) = load_detector(str(path), device="cpu").detect(black(*size))
    assert found.boxes.dtype == found.scores.dtype == np.float32
    rows = np.hstack([found.boxes, found.scores[:, None]])
    assert rows.shape == (len(wanted), 5) and len(wanted) > 3
    np.testing.assert_allclose(rows, np.array(wanted), rtol=1e-4, atol=1e-3)


SIZES = [(64, 96), (48, 150), (300, 200)]  # of frames: the input's own, wide, upright


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("person", [0, 2])
def test_yolox_cells_are_boxes(tmp_path: Path, size: tuple[int, int], person: int) -> None:
    rng = np.random.default_rng(person)
    rows = np.concatenate([rng.normal(0, 1, (CELLS, 2)), rng.normal(0.5, 0.7, (CELLS, 2)), rng.random((CELLS, 4))], 1)
    candidates, cell = [], 0
    for stride in (8, 16, 32):
        for y in range(HEIGHT // stride):
            for x in range(WIDTH // stride):
                dx, dy, log_width, log_height, objectness, *classes = rows[cell].astype(np.float32).astype(float)
                cx, cy, w, h = (dx + x) * stride, (dy + y) * stride, np.exp(log_width) * stride, np.exp(log_height) * stride
                candidates.append((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, objectness * classes[person]))
                cell += 1
    settings = {"decode": "yolox", "person_class": person, "threshold": 0.3, "nms_iou": 0.4}
    path = save_network(tmp_path / "cells.onnx", [rows[None].astype(np.float32)], **settings)
    assert_detects(path, expected(candidates, size, True, 0.3, 0.4), size)


@pytest.mark.parametrize("size", SIZES)
def test_ssd_rows_are_boxes_until_a_place_is_negative(tmp_path: Path, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    corners = np.sort(rng.uniform(-0.1, 1.1, (60, 2, 2)), axis=1).reshape(60, 4)
    rows = np.column_stack([np.zeros(60), rng.integers(0, 3, 60), rng.random(60), corners]).astype(np.float32)
    rows[50:, 0], rows[50:, 1] = -1, 1
    candidates = [(*(row[3:] * ([WIDTH, HEIGHT] * 2)), row[2]) for row in rows[:50].astype(float) if row[1] == 1]
    path = save_network(tmp_path / "rows.onnx", [rows[None, None]], decode="ssd", threshold=0.2, nms_iou=0.5)
    assert_detects(path, expected(candidates, size, False, 0.2, 0.5), size)


def test_ssd_rows_go_to_their_frames(tmp_path: Path) -> None:
    rows = np.array([[1, 1, 0.9, 0, 0, 0.5, 0.5], [0, 1, 0.8, 0.5, 0.5, 1, 1], [1, 1, 0.3, 0.5, 0.5, 1, 1]], np.float32)
    path = save_network(tmp_path / "rows.onnx", [rows[None, None]], [2, 3, HEIGHT, WIDTH], decode="ssd")
    found = load_detector(str(path), device="cpu").detect(black(HEIGHT, WIDTH, 3))  # the third is filled up to two
    assert [[round(float(score), 3) for score in one.scores] for one in found] == [[0.8], [0.9, 0.3], [0.8]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("classes", [None, 3])
def test_boxes_and_scores_may_stand_in_either_order(
    tmp_path: Path, size: tuple[int, int], swapped: bool, classes: int | None
) -> None:
    rng = np.random.default_rng(2)
    corners = np.sort(rng.uniform(-5, 100, (1, 40, 2, 2)), axis=2).reshape(1, 40, 4).astype(np.float32)
    scores = rng.random((1, 40) if classes is None else (1, 40, classes)).astype(np.float32)
    of_people = scores[0] if classes is None else scores[0, :, 1]
    candidates = [(*map(float, corners[0, i]), float(of_people[i])) for i in range(40)]
    outputs = [scores, corners] if swapped else [corners, scores]
    entries = {"letterbox": True, "person_class": int(classes is not None), "threshold": 0.1, "nms_iou": 0.6}
    path = save_network(tmp_path / "pair.onnx", outputs, **entries)
    assert_detects(path, expected(candidates, size, True, 0.1, 0.6), size)


def test_equal_scores_keep_the_network_s_order(tmp_path: Path) -> None:
    corners = np.array([[[40, 0, 50, 20], [0, 0, 10, 20], [20, 0, 30, 20]]], np.float32)
    path = save_network(tmp_path / "equal.onnx", [corners, np.full((1, 3), 0.5, np.float32)])
    (found,) = load_detector(str(path), device="cpu").detect(black(HEIGHT, WIDTH))
    assert found.boxes[:, 0].tolist() == [40, 0, 20]


def test_a_frame_of_nobody_has_no_detections(tmp_path: Path) -> None:
    path = save_network(tmp_path / "nobody.onnx", [np.zeros((1, 5, 4), np.float32), np.zeros((1, 5), np.float32)])
    (found,) = load_detector(str(path), device="cpu").detect(black(30, 30))
    assert found.boxes.shape == (0, 4) and found.scores.shape == (0,)


def test_values_that_are_no_numbers_are_no_boxes(tmp_path: Path) -> None:
    corners = np.array([[[0, 0, 10, 20], [0, 0, np.nan, 20], [30, 0, 40, 20], [50, 0, 60, 20]]], np.float32)
    scores = np.array([[0.5, 0.9, np.nan, 0.4]], np.float32)
    (found,) = load_detector(str(save_network(tmp_path / "nan.onnx", [corners, scores])), device="cpu").detect(
        black(HEIGHT, WIDTH)
    )
    assert found.boxes[:, 0].tolist() == [0, 50]


@pytest.mark.parametrize("channels", ["RGB", "bgr"])
@pytest.mark.parametrize("letterbox", [True, False])
def test_a_network_gets_its_pixels_as_its_sidecar_says(tmp_path: Path, channels: str, letterbox: bool) -> None:
    """Scores are what this network received in the rightmost column of the top row, channel by channel."""
    path = tmp_path / "pixels.onnx"
    nodes = [
        helper.make_node("Slice", ["images", "starts", "ends"], ["corner"]),
        helper.make_node("Reshape", ["corner", "shape"], ["scores"]),
        helper.make_node("Identity", ["held"], ["boxes"]),
    ]
    corners = np.array([[[0, 0, 10, 20], [20, 0, 30, 20], [40, 0, 44, 20]]], np.float32)
    constants = {"starts": [0, 0, 0, WIDTH - 1], "ends": [1, 3, 1, WIDTH], "shape": [1, 3]}
    held = [onnx.numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    held.append(onnx.numpy_helper.from_array(corners, "held"))
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("boxes", "scores")]
    graph = helper.make_graph(nodes, "network", [images], given, held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    sidecar = {"decode": "boxes_scores", "height": HEIGHT, "width": WIDTH, "channels": channels, "letterbox": letterbox}
    path.with_suffix(".json").write_text(json.dumps({**sidecar, "scale": 255.0, "mean": mean, "std": std, "threshold": 0.01}))
    frame = np.broadcast_to(np.array([250, 200, 150], np.uint8), (1, HEIGHT, WIDTH // 2, 3))  # upright: the right is ground
    (found,) = load_detector(str(path), device="cpu").detect(np.ascontiguousarray(frame))
    seen = np.array([114.0] * 3 if letterbox else [250, 200, 150][:: -1 if channels == "bgr" else 1])
    scores = (seen / 255 - mean) / std
    np.testing.assert_allclose(found.scores, np.sort(scores)[::-1], rtol=1e-5)
    first = [0, 20, 40][int(np.argmax(scores))] * (0.5 if not letterbox else 1)
    assert found.boxes[0, 0] == pytest.approx(first)


PAIR = [np.zeros((1, 5, 4), np.float32), np.zeros((1, 5), np.float32)]
CELL_ROWS = [np.zeros((1, CELLS, 6), np.float32)]


@pytest.mark.parametrize(
    ("outputs", "entries", "words"),
    [
        (
            PAIR,
            {"images": ["n", 3, WIDTH, HEIGHT]},
            "does not take 64 x 96 frames: its input is n x 3 x 96 x 64, not n x 3 x 64 x 96",
        ),
        (PAIR, {"pixels": TensorProto.UINT8}, r"takes tensor\(uint8\); export it with an input of float32 or float16"),
        (PAIR[:1], {}, "gives float32 1 x 5 x 4, but boxes_scores is boxes, 1 x rows x 4, and scores, 1 x rows or"),
        (PAIR[:1] * 2, {"person_class": 4}, "gives float32 1 x 5 x 4, float32 1 x 5 x 4, but boxes_scores"),
        ([PAIR[0], PAIR[1][:, :4]], {}, "gives float32 1 x 5 x 4, float32 1 x 4, but boxes_scores"),
        ([PAIR[0], PAIR[1].astype(np.int64)], {}, "gives float32 1 x 5 x 4, int64 1 x 5, but .* in floating point"),
        (PAIR, {"images": [2, 3, HEIGHT, WIDTH]}, "but boxes_scores is boxes, 2 x rows x 4"),
        (
            CELL_ROWS,
            {"decode": "yolox", "person_class": 1},
            r"gives float32 1 x 126 x 6, but yolox is 1 x 126 x \(5 \+ more than 1",
        ),
        ([CELL_ROWS[0][:, 1:]], {"decode": "yolox"}, "gives float32 1 x 125 x 6, but yolox is 1 x 126"),
        (CELL_ROWS, {"decode": "ssd"}, "gives float32 1 x 126 x 6, but ssd is rows of 7"),
    ],
)
def test_a_network_that_misfits_is_one_sentence(
    tmp_path: Path, outputs: list[np.ndarray], entries: dict[str, Any], words: str
) -> None:
    path = save_network(tmp_path / "odd.onnx", outputs, **entries)
    with pytest.raises(PipelineError, match=words) as raised:
        load_detector(str(path), device="cpu")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"decode": "detr"}, "odd.json cannot be understood: decode is 'detr'; it needs decode, height, width and channels"),
        ({"treshold": 0.4}, "it has treshold missing or unknown"),
        ({"height": None}, "height is None"),
        ({"height": 0}, "height, width and scale are positive"),
        ({"std": [1, 0, 1]}, "and std is not 0"),
        ({"mean": [1, 0]}, "mean"),
        ({"threshold": 0.0}, "threshold and nms_iou are shares above 0"),
        ({"person_class": -1}, "person_class is not negative"),
        ({"decode": "yolox", "height": 100}, "yolox has grids of 32 pixels, which 100 x 96 is no multiple of"),
    ],
)
def test_a_sidecar_that_cannot_be_meant_is_one_sentence(tmp_path: Path, entries: dict[str, Any], words: str) -> None:
    path = save_network(tmp_path / "odd.onnx", PAIR, **entries)
    with pytest.raises(UsageError, match=words):
        find_detector(str(path))


def test_what_is_no_detector_is_one_sentence(tmp_path: Path) -> None:
    for name, words in {
        "yolox_huge": "a detector is one of yolox_nano, yolox_tiny, yolox_s, rendered, or the path of an .onnx file, "
        "not 'yolox_huge'",
        str(tmp_path / "none.onnx"): "none.onnx does not exist",
    }.items():
        with pytest.raises(UsageError, match=words):
            load_detector(name)
    path = save_network(tmp_path / "lone.onnx", PAIR)
    path.write_bytes(b"no network")
    with pytest.raises(PipelineError, match="is not an ONNX network that can be loaded"):
        load_detector(str(path), device="cpu")
    path.with_suffix(".json").unlink()
    with pytest.raises(
        UsageError, match=r"lone\.onnx needs a sidecar lone\.json beside it with decode, height, width and channels"
    ):
        load_detector(str(path))


def test_an_identity_is_what_decides_the_detections(tmp_path: Path) -> None:
    def identity(file: str, **entries: Any) -> str:
        return load_detector(str(save_network(tmp_path / f"{file}.onnx", PAIR, **entries)), device="cpu").identity

    one = identity("one", name="town")
    assert one == identity("other", name="town", source="elsewhere") and one.startswith("town@")
    assert one.rpartition("@")[2] == identity("one", name="city").rpartition("@")[2]
    changes: list[dict[str, Any]] = [
        {"threshold": 0.2},
        {"nms_iou": 0.6},
        {"letterbox": True},
        {"channels": "BGR"},
        {"scale": 2.0},
    ]
    assert len({one, *(identity("one", name="town", **change) for change in changes)}) == 6


def test_a_published_detector_is_found_in_the_cache_and_says_what_of_its_licence_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network = save_network(tmp_path / "cells.onnx", CELL_ROWS, decode="yolox").read_bytes()
    folder = tmp_path / "co-attention-search/detectors"
    folder.mkdir(parents=True)
    (folder / "copied by hand.onnx").write_bytes(network)
    sidecar = detector_spec._Sidecar("yolox", HEIGHT, WIDTH, "BGR", name="yolox_nano")
    pinned = PinnedFile("yolox_nano.onnx", sha256(network), len(network), "https://host.invalid/yolox_nano.onnx")
    monkeypatch.setitem(PUBLISHED, "yolox_nano", (pinned, sidecar))
    detector = load_detector("yolox_nano", device="cpu")
    assert detector.identity.startswith("yolox_nano@") and detector.spec.letterbox and detector.spec.channels == "BGR"
    assert "whether that covers the weights was asked there and not answered" in detector.spec.remark


def test_published_detectors_come_from_their_official_place() -> None:
    for name, (file, sidecar) in PUBLISHED.items():
        assert file.url == f"https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/{name}.onnx"
        assert len(file.sha256) == 64 and sidecar.name == name


@pytest.mark.shared
def test_yolox_finds_the_people_of_real_footage(tmp_path: Path) -> None:
    truth = SHARED / "data/tracking/PETS09-S2L1.gt.txt"
    for needed in (YOLOX, VTEST, truth):
        if not needed.exists():
            pytest.skip(f"{needed} is missing")
    import av

    shutil.copyfile(YOLOX, tmp_path / "yolox.onnx")
    sidecar = {"decode": "yolox", "height": 416, "width": 416, "channels": "BGR", "threshold": 0.5}
    (tmp_path / "yolox.json").write_text(json.dumps(sidecar))
    detector = load_detector(str(tmp_path / "yolox.onnx"), device="cpu")
    people = np.loadtxt(truth, delimiter=",")
    hits = found = there = 0
    with av.open(str(VTEST)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % 20 == 0 and number < 200:
                (detections,) = detector.detect(frame.to_ndarray(format="rgb24")[None])
                boxes = people[people[:, 0] == number + 1, 2:6].tolist()
                hits += sum(max((overlap(box, one) for one in detections.boxes.tolist()), default=0) >= 0.5 for box in boxes)
                found, there = found + len(detections.boxes), there + len(boxes)
    assert hits >= 0.8 * there and hits >= 0.75 * found  # its best F1 over the whole clip is 0.89
