"""How well people are followed: PETS2009 S2.L1 (OpenCV's vtest.avi) against its ground truth, by TrackEval, beside ByteTrack.

    python -m benchmarks.tracking --shared ../shared --work bench/tracking --picture tracks.png

Every frame is decoded, detected and embedded once, as an ingest does it, and kept in the work folder. The trackers then look at
10, 5, 3.3 and 2 frames a second. What is compared:

- all 795 frames, at whatever rate was looked: boxes between two detections of a track are interpolated, and tracks of less than a
  second are left out, for both trackers.
- ground truth with flag 0 is not scored: it is left out, and so are boxes that it is matched with. All other boxes count.
- HOTA is the mean over its nineteen overlaps; MOTA, IDF1 and switches at an overlap (intersection over union) of 0.5.
- purity: the share of the tracks' matched boxes that belong to the person to whom most of their track's belong. mixed: the share
  of them in tracks of which at least 5 % and 3 boxes belong to others.

The clip was looked at while the tracker's settings were chosen, so `--vary` shows how far they can be changed: every setting by a
fifth up and down. The default backbone was distilled on crops, unlabelled, of this clip among others; `--backbone` takes another.

TrackEval and ByteTrack (of roboflow's trackers) declare opencv-python, which would overwrite the headless OpenCV of this
installation: they are installed without what they declare, into the work folder, and found after everything else.
"""

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from scipy.optimize import linear_sum_assignment

from benchmarks.real_footage import VTEST_AVI
from jobs.command_line import run
from pipeline.backbone.runtime import Backbone, load_backbone
from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.decoding.boxes import cropped
from pipeline.decoding.opening import open_files
from pipeline.decoding.readers import reader_of
from pipeline.decoding.sampling import Sampling, Ticks, resize
from pipeline.errors import PipelineError, UsageError, first_line
from pipeline.footage.detector import Detector, load_detector
from pipeline.footage.tracker import Track, Tracker, TrackingSettings
from pipeline.storage.location import resolve
from pipeline.storage.uris import canonical_uri

PEERS = ("trackeval==1.3.0", "trackers==2.6.1", "supervision==0.31.2", "pyDeprecate==0.13.0", "defusedxml==0.7.1")
PEERS_NEED = ("tqdm==4.70.1", "pycocotools==2.0.11", "tabulate==0.10.0")
RATES = (10.0, 5.0, 10 / 3, 2.0)
LEAST_S = 1.0  # seconds that a track lasts
OVERLAP = 0.5
TRAIL_S = 8.0  # seconds of a track that a picture shows
SIDECAR = {"decode": "yolox", "height": 416, "width": 416, "channels": "BGR"}  # of ../shared/models/yolox_nano, which has none


@dataclass(frozen=True)
class Look:
    """One frame. time_s: seconds; boxes: float32 [m, 4], x, y, w, h; scores: float32 [m]; features: float16 [m, D]."""

    time_s: float
    boxes: np.ndarray
    scores: np.ndarray
    features: np.ndarray


def look(video: Path, detector: Detector, backbone: Backbone, kept: Path) -> list[Look]:
    """Every frame of a video, detected and embedded; kept in a file for the next run with the same networks."""
    identity = f"{detector.identity} {backbone.spec.identity}"
    if kept.is_file():
        with np.load(kept) as arrays:
            if str(arrays["identity"]) == identity:
                ends = np.cumsum(arrays["counts"])[:-1]
                rows = zip(*(np.split(arrays[name], ends) for name in ("boxes", "scores", "features")), strict=True)
                return [Look(float(time_s), *row) for time_s, row in zip(arrays["times"], rows, strict=True)]
    looks = []
    with open_files(canonical_uri(str(video)), None, Sampling(), lambda: None, lambda number, count: True) as opened:
        for frame in reader_of(opened, Sampling()).frames():
            picture = frame.picture()
            (found,) = detector.detect(picture[None])
            parts = [cropped(picture, box, 2) for box in found.boxes]
            seen = [i for i, part in enumerate(parts) if part is not None]
            crops = [resize(part, backbone.spec.height, backbone.spec.width) for part in parts if part is not None]
            # One crop a call: a feature must not depend on who else is in the picture.
            features = [backbone.embed(crop[None]) for crop in crops]
            empty = np.empty((0, backbone.spec.dim), np.float16)
            looks.append(Look(frame.time_s, found.boxes[seen], found.scores[seen], np.concatenate([empty, *features])))
    arrays = {name: np.concatenate([getattr(one, name) for one in looks]) for name in ("boxes", "scores", "features")}
    counts, times = [len(one.boxes) for one in looks], [one.time_s for one in looks]
    np.savez(kept, identity=np.array(identity), counts=counts, times=times, **arrays)
    return looks


def ours(looks: Sequence[Look], settings: TrackingSettings) -> list[Track]:
    """The product's tracks."""
    tracker = Tracker(settings)
    for one in looks:
        tracker.update(one.time_s, one.boxes, one.scores, one.features)
    return tracker.finish()


def byte_track(looks: Sequence[Look], rate: float) -> list[Track]:
    """The tracks of roboflow's ByteTrack, with its own settings; lost tracks are waited for as long as ours."""
    supervision, trackers = importlib.import_module("supervision"), importlib.import_module("trackers")
    patience = round(30 * TrackingSettings().patience_s)  # frames of a thirtieth of a second
    tracker = trackers.ByteTrackTracker(lost_track_buffer=patience, frame_rate=rate)
    found: dict[int, list[tuple[float, np.ndarray, float]]] = {}
    for one in looks:
        corners = np.hstack([one.boxes[:, :2], one.boxes[:, :2] + one.boxes[:, 2:]])
        detections = supervision.Detections(xyxy=corners, confidence=one.scores, class_id=np.zeros(len(corners), int))
        tracked = tracker.update(detections)
        for box, score, number in zip(tracked.xyxy, tracked.confidence, tracked.tracker_id, strict=True):
            if number >= 0:
                found.setdefault(int(number), []).append((one.time_s, np.array([*box[:2], *(box[2:] - box[:2])]), float(score)))
    return [
        Track(number, *(np.array(part) for part in zip(*rows, strict=True)), np.full(len(rows), -1))
        for number, rows in found.items()
    ]


def rows_of(tracks: Sequence[Track], times: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of every frame, whose times are float64 [n]: numbers of tracks, int64 [m], and their boxes, float64 [m, 4]."""
    numbers: list[list[int]] = [[] for _ in times]
    boxes: list[list[np.ndarray]] = [[] for _ in times]
    for track in tracks:
        filled = track.filled(times)
        for time_s, box in zip(filled.times, filled.boxes, strict=True):
            frame = int(np.searchsorted(times, time_s))
            numbers[frame].append(track.number)
            boxes[frame].append(box)
    return [(np.array(n, np.int64), np.array(b, np.float64).reshape(-1, 4)) for n, b in zip(numbers, boxes, strict=True)]


def overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union, float64 [n, m], of boxes [n, 4] and [m, 4], x, y, w, h."""
    ends = np.minimum(one[:, None, :2] + one[:, None, 2:], other[None, :, :2] + other[None, :, 2:])
    common = np.prod(np.maximum(ends - np.maximum(one[:, None, :2], other[None, :, :2]), 0), axis=-1)
    return common / (np.prod(one[:, None, 2:], axis=-1) + np.prod(other[None, :, 2:], axis=-1) - common)


def matched(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows and columns that overlap enough, one to one, as much as possible together."""
    allowed = np.where(similarity >= OVERLAP, similarity, 0.0)
    rows, columns = linear_sum_assignment(-allowed)
    good = allowed[rows, columns] > 0
    return rows[good], columns[good]


def compared(tracks: Sequence[Track], truth: np.ndarray, times: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Tracks beside the truth, MOT rows frame (from 1), person, x, y, w, h, flag.

    What TrackEval evaluates, and int [tracks, persons], how many boxes of each track are matched with each person.
    """
    people, found, similarities = [], [], []
    for frame, (numbers, boxes) in enumerate(rows_of(tracks, times), start=1):
        there = truth[truth[:, 0] == frame]
        similarity = overlaps(there[:, 2:6], boxes)
        rows, columns = matched(similarity)
        scored, counts = there[:, 6] != 0, np.ones(len(numbers), bool)
        counts[columns[~scored[rows]]] = False
        people.append(there[scored, 1].astype(int))
        found.append(numbers[counts])
        similarities.append(similarity[scored][:, counts])
    persons, tracked = (np.unique(np.concatenate(part)) for part in (people, found))
    boxes_of = np.zeros((len(tracked), len(persons)), np.int64)
    for ids, numbers, similarity in zip(people, found, similarities, strict=True):
        rows, columns = matched(similarity)
        np.add.at(boxes_of, (np.searchsorted(tracked, numbers[columns]), np.searchsorted(persons, ids[rows])), 1)
    data = {
        "num_timesteps": len(times),
        "num_gt_ids": len(persons),
        "num_tracker_ids": len(tracked),
        "num_gt_dets": sum(map(len, people)),
        "num_tracker_dets": sum(map(len, found)),
        "gt_ids": [np.searchsorted(persons, ids) for ids in people],
        "tracker_ids": [np.searchsorted(tracked, numbers) for numbers in found],
        "similarity_scores": similarities,
    }
    return data, boxes_of


def purity_and_mixed(boxes_of: np.ndarray) -> tuple[float, float]:
    """See the module; boxes_of: int [tracks, persons]."""
    total = boxes_of.sum(1)
    others = total - boxes_of.max(1, initial=0)
    mixed = total[(others >= 3) & (others >= 0.05 * total)].sum()
    return float(1 - others.sum() / max(total.sum(), 1)), float(mixed / max(total.sum(), 1))


def evaluate(tracks: Sequence[Track], truth: np.ndarray, times: np.ndarray) -> dict[str, float]:
    """The figures of tracks; see `compared`."""
    metrics = importlib.import_module("trackeval.metrics")
    data, boxes_of = compared(tracks, truth, times)
    quiet = {"PRINT_CONFIG": False, "THRESHOLD": OVERLAP}
    hota, clear = metrics.HOTA().eval_sequence(data), metrics.CLEAR(quiet).eval_sequence(data)
    identity = metrics.Identity(quiet).eval_sequence(data)
    purity, mixed = purity_and_mixed(boxes_of)
    return {
        "HOTA": float(np.mean(hota["HOTA"])),
        "MOTA": float(clear["MOTA"]),
        "IDF1": float(identity["IDF1"]),
        "switches": int(clear["IDSW"]),
        "tracks": len(tracks),
        "purity": purity,
        "mixed": mixed,
    }


def at_rate(looks: Sequence[Look], rate: float) -> list[Look]:
    """The frames that are looked at."""
    ticks = Ticks(rate)
    return [one for one in looks if ticks.take(one.time_s)]


def lasting(tracks: Sequence[Track]) -> list[Track]:
    return [track for track in tracks if track.times[-1] - track.times[0] >= LEAST_S - 1e-6]


def varied() -> dict[str, TrackingSettings]:
    """The settings, each a fifth smaller and larger; what is a share stays one."""
    settings = {}
    for field in fields(TrackingSettings):
        for sign, factor in (("-", 0.8), ("+", 1.2)):
            value = getattr(TrackingSettings(), field.name) * factor
            settings[f"{field.name} {sign}20 %"] = replace(TrackingSettings(), **{field.name: value})
    return settings


def install_peers(folder: Path) -> None:
    """Make TrackEval and ByteTrack importable, after everything that is installed."""
    if not (folder / "trackeval").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PEERS, *PEERS_NEED]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PipelineError(f"TrackEval and ByteTrack cannot be installed into {folder}: {done.stderr.strip()}")
    sys.path.append(str(folder))


def draw(video: Path, tracks: Sequence[Track], at_s: float, picture: Path) -> None:
    """A frame, in seconds from the video's start: who is in it, with boxes, numbers, and where their feet were before."""
    with open_files(canonical_uri(str(video)), None, Sampling(), lambda: None, lambda number, count: True) as opened:
        canvas = np.ascontiguousarray(reader_of(opened, Sampling()).frame_near(at_s).picture())
    canvas = cv2.resize(canvas, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    colours = cv2.applyColorMap(np.arange(0, 256, 8, np.uint8), cv2.COLORMAP_HSV).reshape(-1, 3).tolist()
    for track in tracks:
        colour = colours[track.number * 13 % len(colours)]
        past = (track.times <= at_s + 1e-6) & (track.times >= at_s - TRAIL_S)
        feet = np.stack([track.boxes[:, 0] + track.boxes[:, 2] / 2, track.boxes[:, 1] + track.boxes[:, 3]], 1)[past]
        if len(feet) > 1:
            cv2.polylines(canvas, [np.round(feet * 2).astype(np.int32)], False, colour, 2, cv2.LINE_AA)
        if len(feet) and track.times[-1] > at_s:
            x, y, w, h = (track.boxes[past][-1] * 2).round().astype(int).tolist()
            cv2.rectangle(canvas, (x, y), (x + w, y + h), colour, 2)
            cv2.putText(canvas, str(track.number), (x, y - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.8, colour, 2, cv2.LINE_AA)
    _, encoded = cv2.imencode(picture.suffix, canvas[..., ::-1])
    resolve(picture).write_atomically(encoded.tobytes())


def with_sidecar(shared: Path, work: Path) -> Path:
    """YOLOX-nano of ../shared as a detector."""
    network = shared / "models/yolox_nano/yolox_nano_reexport.onnx"
    if not network.is_file():
        raise UsageError(f"{network} is missing; name a detector with --detector")
    copy = work / network.name
    shutil.copyfile(network, copy)
    copy.with_suffix(".json").write_text(json.dumps(SIDECAR))
    return copy


def main(
    shared: Annotated[Path, typer.Option(help="Folder with data/tracking and models.")] = Path("../shared"),
    work: Annotated[Path, typer.Option(help="Folder for the peers and for what was detected.")] = Path("bench/tracking"),
    detector: Annotated[str | None, typer.Option(help="A name, or an ONNX file; default: YOLOX-nano of --shared.")] = None,
    backbone: Annotated[str, typer.Option(help="A name, or an ONNX file.")] = DEFAULT,
    picture: Annotated[Path | None, typer.Option(help="PNG to write: a frame with the tracks at 5 a second.")] = None,
    vary: Annotated[bool, typer.Option(help="Also every setting a fifth up and down, at 5 a second.")] = False,
) -> None:
    """Measure the tracker on PETS2009 S2.L1."""
    truth_file = shared / "data/tracking/PETS09-S2L1.gt.txt"
    for needed, where in ((truth_file, "the ground truth"), (VTEST_AVI, "Debian's opencv-doc installs it:")):
        if not needed.is_file():
            raise UsageError(f"{where} {needed} is missing")
    work.mkdir(parents=True, exist_ok=True)
    install_peers((work / "peers").resolve())
    loaded = load_detector(detector or str(with_sidecar(shared, work)), device="cpu")
    embedding = load_backbone(find_backbone(backbone), 1, "cpu")
    looks = look(VTEST_AVI, loaded, embedding, work / "detections.npz")
    truth, times = np.loadtxt(truth_file, delimiter=","), np.array([one.time_s for one in looks])
    figures: dict[str, dict[str, float]] = {}
    columns = ("HOTA", "MOTA", "IDF1", "switches", "tracks", "purity", "mixed")
    table = Table("tracker", "frames/s", *columns, title=f"vtest.avi, {loaded.identity}, {embedding.spec.identity}")

    def add(name: str, rate: float, track: Callable[[list[Look]], list[Track]]) -> list[Track]:
        tracks = lasting(track(at_rate(looks, rate)))
        row = evaluate(tracks, truth, times)
        figures[f"{name}, {rate:.3g}/s"] = {column: round(value, 4) for column, value in row.items()}
        table.add_row(name, f"{rate:.3g}", *(f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in columns))
        return tracks

    for rate in RATES:
        tracks = add("ours", rate, lambda chosen: ours(chosen, TrackingSettings()))
        if picture is not None and rate == 5:
            draw(VTEST_AVI, tracks, 60.0, picture)
        try:
            add("ByteTrack", rate, lambda chosen, rate=rate: byte_track(chosen, rate))  # type: ignore[misc]
        except ImportError as error:
            print(f"no ByteTrack: {first_line(error)}", file=sys.stderr)
    if vary:
        for name, settings in varied().items():
            add(name, 5.0, lambda chosen, settings=settings: ours(chosen, settings))  # type: ignore[misc]
    Console(width=110).print(table)
    print(json.dumps({"detector": loaded.identity, "backbone": embedding.spec.identity, "figures": figures}))


if __name__ == "__main__":
    run(main)
