"""A camera network on disk: clips of rendered people, one full-frame video with boxes, and the manifest of it all."""

import csv
import json
import multiprocessing
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np

from pipeline.errors import PipelineError, UsageError
from pipeline.rendering.appearance import sample_appearance
from pipeline.rendering.camera import sample_camera_look
from pipeline.rendering.clip import render_clip
from pipeline.rendering.encoding import write_video
from pipeline.rendering.full_frame import render_full_frame
from pipeline.rendering.randomness import stream

RENDERER = 1
"""Raised whenever the same arguments give other pictures: folders of another renderer are written anew."""

MANIFEST_COLUMNS = ("uri", "video_id", "camera_id", "start_time", "person_id", "role", "boxes_uri", "hidden")
LABEL_COLUMNS = ("boxes_uri", "track_id", "person_id")
OPENING = datetime(2026, 3, 2, 8, 0, 0, tzinfo=UTC)
ON_SCENE = 6  # people in the full-frame video


@dataclass(frozen=True)
class NetworkArguments:
    """What a network is made from; visits are clips per person and camera that the person comes to."""

    people: int
    cameras: int
    visits: int
    seed: int
    hidden_share: float
    full_frame: bool
    renderer: int = RENDERER


@dataclass(frozen=True)
class Visit:
    """One clip to be rendered: who, where, which time, and when it starts."""

    person: int
    camera: int
    visit: int
    start: datetime

    @property
    def video_id(self) -> str:
        return f"cam{self.camera:02d}_p{self.person:03d}_{self.visit}"

    @property
    def uri(self) -> str:
        return f"clips/cam{self.camera:02d}/p{self.person:03d}_{self.visit}.mp4"


def cameras_of(seed: int, person: int, cameras: int) -> list[int]:
    """The cameras that a person comes past, in this order: mostly 2 to 4 of them, never fewer than 2 if there are 2."""
    rng = stream("route", seed, person)
    wanted = int(rng.choice([2, 3, 4, 5, 6], p=[0.30, 0.34, 0.24, 0.08, 0.04]))
    return [int(camera) for camera in rng.permutation(cameras)[:wanted]]


def itinerary(seed: int, person: int, cameras: int, visits: int) -> list[Visit]:
    """Every clip of a person with its time: minutes from camera to camera, hours from one round to the next."""
    rng = stream("itinerary", seed, person)
    route = cameras_of(seed, person, cameras)
    stops = []
    for visit in range(visits):
        clock = OPENING + timedelta(hours=3.0 * visit, seconds=float(rng.uniform(0, 7200)))
        for camera in route:
            stops.append(Visit(person, camera, visit, clock.replace(microsecond=0)))
            clock += timedelta(seconds=float(rng.uniform(90, 720)))
    return stops


def clip_seed(seed: int, person: int, camera: int, visit: int) -> int:
    """The seed of one clip; it depends on nothing but these four."""
    return int(stream("clip seed", seed, person, camera, visit).integers(1 << 62))


def _render_visit(task: tuple[Path, NetworkArguments, Visit]) -> float:
    """Renders and writes one clip; returns the share of its frames in which the person is hidden."""
    out, arguments, stop = task
    look = sample_camera_look(arguments.seed, stop.camera)
    clip = render_clip(
        sample_appearance(arguments.seed, stop.person),
        look,
        clip_seed(arguments.seed, stop.person, stop.camera, stop.visit),
        hidden_share=arguments.hidden_share,
    )
    write_video(out / stop.uri, clip.frames, look.frame_rate, look.crf)
    return clip.hidden


def _render_scene(out: Path, arguments: NetworkArguments) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Writes the full-frame video and its boxes; returns its manifest row and the labels of its tracks."""
    camera = arguments.cameras  # a camera of its own
    cast = list(range(min(ON_SCENE, arguments.people)))
    people = [sample_appearance(arguments.seed, person) for person in cast]
    look = sample_camera_look(arguments.seed, camera)
    look = replace(look, noise=min(look.noise, 3.0), crf=min(look.crf, 25))
    rendered = render_full_frame(people, look, clip_seed(arguments.seed, -1, camera, 0))
    uri, boxes_uri = f"scenes/cam{camera:02d}.mp4", f"scenes/cam{camera:02d}.boxes.txt"
    write_video(out / uri, rendered.frames, 10, look.crf)
    lines = [",".join(map(str, row)) + ",1,-1,-1,-1\n" for row in rendered.boxes.tolist()]
    (out / boxes_uri).write_text("".join(lines))
    row = {
        "uri": uri,
        "video_id": f"cam{camera:02d}_scene",
        "camera_id": f"cam{camera:02d}",
        "start_time": _iso(OPENING + timedelta(hours=1)),
        "person_id": "",
        "role": "gallery",
        "boxes_uri": boxes_uri,
        "hidden": "",
    }
    tracks = sorted({int(track) for track in rendered.boxes[:, 1]})
    labels = [{"boxes_uri": boxes_uri, "track_id": str(track), "person_id": f"p{cast[track - 1]:03d}"} for track in tracks]
    return row, labels


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _check(out: Path, arguments: NetworkArguments, processes: int) -> None:
    if arguments.people < 1:
        raise UsageError(f"people is {arguments.people}; a network needs at least 1 person")
    if arguments.cameras < 1:
        raise UsageError(f"cameras is {arguments.cameras}; a network needs at least 1 camera")
    if arguments.visits < 1:
        raise UsageError(f"visits is {arguments.visits}; a person comes past a camera at least 1 time")
    if not 0 <= arguments.hidden_share <= 1:
        raise UsageError(f"hidden-share is {arguments.hidden_share}; it must lie in 0..1")
    if processes < 1:
        raise UsageError(f"processes is {processes}; it must be at least 1")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder that is empty, absent or a rendered network")


def _written_before(out: Path) -> dict[str, object] | None:
    """The arguments in the folder's network.json; None where there is no such file or it cannot be read."""
    try:
        stored = json.loads((out / "network.json").read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return stored if isinstance(stored, dict) else None


def _clear(out: Path) -> None:
    """Empties a folder that is a network of ours; any other folder with something in it is an error."""
    ours = (out / "network.json", out / "network.unfinished.json")
    if out.exists() and any(out.iterdir()) and not any(mark.exists() for mark in ours):
        raise UsageError(f"{out} holds files that are not a rendered network; name an empty or absent folder")
    for mark in ("network.json", "manifest.csv", "labels.csv"):
        (out / mark).unlink(missing_ok=True)
    for folder in ("clips", "scenes"):
        if (out / folder).exists():
            shutil.rmtree(out / folder)


def _write_table(path: Path, columns: Iterable[str], rows: Iterable[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def render_network(
    out: Path,
    people: int = 24,
    cameras: int = 4,
    clips_per_person_and_camera: int = 1,
    seed: int = 0,
    hidden_share: float = 0.35,
    processes: int = 1,
    full_frame: bool = True,
) -> Path:
    """Writes a camera network into the folder `out` and returns the path of its manifest.

    Every person comes past some of the cameras, `clips_per_person_and_camera` times each. Role "query" has one clip a
    person and camera, the rest is "gallery"; with one clip each, one camera's clip a person is the query. Rows of the
    full-frame video name no person: labels.csv maps its tracks to people. The files depend on the arguments only, not
    on `processes`; a folder that is complete with the same arguments is left as it is.

    Raises UsageError for arguments out of range and for a folder with anything else in it.
    """
    out = Path(out)
    arguments = NetworkArguments(people, cameras, clips_per_person_and_camera, seed, hidden_share, full_frame)
    _check(out, arguments, processes)
    manifest = out / "manifest.csv"
    if _written_before(out) == asdict(arguments) and manifest.exists():
        return manifest
    try:
        _clear(out)
        for camera in range(cameras):
            (out / "clips" / f"cam{camera:02d}").mkdir(parents=True, exist_ok=True)
        (out / "scenes").mkdir(exist_ok=True)
    except OSError as error:
        raise PipelineError(f"{out} cannot be written: {error}") from error
    unfinished = out / "network.unfinished.json"
    unfinished.write_text(json.dumps(asdict(arguments), indent=2) + "\n")

    stops = [stop for person in range(people) for stop in itinerary(seed, person, cameras, arguments.visits)]
    stops.sort(key=lambda stop: (stop.camera, stop.person, stop.visit))  # a worker draws few cameras' backgrounds
    tasks = [(out, arguments, stop) for stop in stops]
    workers = min(processes, len(tasks))
    if workers == 1:
        hidden = [_render_visit(task) for task in tasks]
    else:
        context = multiprocessing.get_context("spawn")
        with context.Pool(workers, initializer=_one_thread) as pool:
            hidden = pool.map(_render_visit, tasks, chunksize=max(1, min(16, len(tasks) // (2 * workers))))

    rows = []
    for stop, share in zip(stops, hidden, strict=True):
        asked_from = cameras_of(seed, stop.person, cameras)[0]
        is_query = stop.visit == 0 and (arguments.visits > 1 or stop.camera == asked_from)
        rows.append(
            {
                "uri": stop.uri,
                "video_id": stop.video_id,
                "camera_id": f"cam{stop.camera:02d}",
                "start_time": _iso(stop.start),
                "person_id": f"p{stop.person:03d}",
                "role": "query" if is_query else "gallery",
                "boxes_uri": "",
                "hidden": f"{np.round(share, 3):.3f}",
            }
        )
    if full_frame:
        row, labels = _render_scene(out, arguments)
        rows.append(row)
        _write_table(out / "labels.csv", LABEL_COLUMNS, labels)
    _write_table(manifest, MANIFEST_COLUMNS, rows)
    unfinished.replace(out / "network.json")
    return manifest
