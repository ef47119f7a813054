"""Recordings of whole camera pictures, in which people cross and hide each other, with the boxes of everybody in them."""

import csv
import json
import multiprocessing
import shutil
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np

from pipeline.errors import PipelineError, UsageError
from pipeline.rendering.appearance import sample_appearance
from pipeline.rendering.camera import sample_camera_look
from pipeline.rendering.encoding import write_video
from pipeline.rendering.full_frame import render_full_frame

RENDERER = 1
"""Raised whenever the same arguments give other pictures."""

PATTERN = "{camera}/%Y%m%d_%H%M%S.mp4"
"""How the files are named below nvr/, as `jobs.ingest --pattern` reads it."""

TRUTH_COLUMNS = ("uri", "frame", "person", "x", "y", "w", "h")
OPENING = datetime(2026, 3, 2, 8, tzinfo=UTC)
ON_SCENE = 6  # people in a recording


@dataclass(frozen=True)
class RecordingArguments:
    """What recordings are made from. frame_rate: frames a second; seconds: of a recording."""

    people: int = 24
    cameras: int = 4
    seed: int = 0
    frame_rate: int = 10
    seconds: float = 12.0
    renderer: int = RENDERER

    def __post_init__(self) -> None:
        if self.people < 1 or self.people % ON_SCENE:
            raise UsageError(f"people is {self.people}; recordings show {ON_SCENE} at a time, so it must be a multiple of that")
        if self.cameras < 1:
            raise UsageError(f"cameras is {self.cameras}; recordings need at least 1 camera")


@dataclass(frozen=True)
class _Recording:
    """One file to be rendered. uri: relative to the folder."""

    uri: str
    camera: int
    cast: tuple[int, ...]
    seed: int


def render_recordings(out: Path, arguments: RecordingArguments, processes: int = 1) -> list[str]:
    """Write recordings into the folder `out`; returns their paths relative to it, in order of camera and time.

    nvr/CAMERA/TIME.mp4 (PATTERN; UTC), beside each a boxes file TIME.boxes.txt in MOT format whose tracks are the people's
    numbers, and truth.csv: a row a box, frames from 0. Everybody comes past every camera once, with five others. The files depend
    on the arguments only; a folder that is complete with the same arguments is left as it is. Raises UsageError for a folder with
    anything else in it, PipelineError where it cannot be written.
    """
    mark = out / "recordings.json"
    if mark.exists() and mark.read_text() == json.dumps(asdict(arguments)):
        with (out / "truth.csv").open(newline="") as file:
            return sorted({row["uri"] for row in csv.DictReader(file)})
    if out.exists() and any(out.iterdir()) and not mark.exists() and not (out / "recordings.unfinished").exists():
        raise UsageError(f"{out} holds files that are not rendered recordings; name an empty or absent folder")
    mark.unlink(missing_ok=True)
    shutil.rmtree(out / "nvr", ignore_errors=True)
    tasks = [(out, arguments, recording) for recording in _plan(arguments)]
    try:
        for _, _, recording in tasks:
            (out / recording.uri).parent.mkdir(parents=True, exist_ok=True)
        (out / "recordings.unfinished").touch()
    except OSError as error:
        raise PipelineError(f"{out} cannot be written: {error}") from error
    if processes > 1:
        with multiprocessing.get_context("spawn").Pool(processes, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            boxes = pool.map(_render, tasks, chunksize=1)
    else:
        boxes = [_render(task) for task in tasks]
    with (out / "truth.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(TRUTH_COLUMNS)
        writer.writerows((task[2].uri, *box) for task, found in zip(tasks, boxes, strict=True) for box in found)
    mark.write_text(json.dumps(asdict(arguments)))
    (out / "recordings.unfinished").unlink()
    return [recording.uri for _, _, recording in tasks]


def _plan(arguments: RecordingArguments) -> list[_Recording]:
    rng = np.random.default_rng(arguments.seed)
    recordings = []
    for camera in range(arguments.cameras):
        for number, cast in enumerate(rng.permutation(arguments.people).reshape(-1, ON_SCENE)):
            start = OPENING + timedelta(minutes=5 * number, hours=camera)
            uri = f"nvr/cam{camera:02d}/{start:%Y%m%d_%H%M%S}.mp4"
            recordings.append(_Recording(uri, camera, tuple(cast.tolist()), int(rng.integers(1 << 62))))
    return recordings


def _render(task: tuple[Path, RecordingArguments, _Recording]) -> list[tuple[int, ...]]:
    """Write one recording and its boxes file; returns (frame, person, x, y, w, h) of everybody in it."""
    out, arguments, recording = task
    look = sample_camera_look(arguments.seed, recording.camera)
    look = replace(look, noise=min(look.noise, 3.0), crf=min(look.crf, 25))
    people = [sample_appearance(arguments.seed, person) for person in recording.cast]
    scene = render_full_frame(people, look, recording.seed, frame_rate=arguments.frame_rate, seconds=arguments.seconds)
    path = out / recording.uri
    write_video(path, scene.frames, arguments.frame_rate, look.crf)
    boxes = [(frame - 1, recording.cast[track - 1], *box) for frame, track, *box in scene.boxes.tolist()]
    lines = [f"{frame + 1},{person},{','.join(map(str, box))}\n" for frame, person, *box in boxes]
    path.with_suffix(".boxes.txt").write_text("".join(lines))
    return boxes
