"""What a day of one camera costs: python -m benchmarks.camera_day --work bench/camera_day

OpenCV's vtest.avi (pedestrians in a yard) is cut to a window, scaled to 1920 x 1080, given the noise of a sensor, and coded as
cameras do: H.264, 25 frames a second, 4 Mbit/s, a key frame every two seconds, no B frames. Of that a short and a long recording
are made by repeating its packets, and each is ingested in a process of its own by the product's worker: decoded in its child,
detected 5 times a second, cropped and embedded, its detections written, and people followed through them.

What is counted is processor time, not time by the clock, of all processes. Costs are what the long recording takes more than the
short one, so that start-up counts for nothing; memory of both shows whether it grows. Hours are those of a day (24 h), for
--people in the picture on average; how many the recording shows is said. The last line is the same as JSON.
"""

import json
import resource
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import av
import cv2
import numpy as np
import pyarrow as pa
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.process_figures import in_own_process, machine
from benchmarks.real_footage import VTEST_AVI
from benchmarks.tracking import with_sidecar
from jobs.command_line import run
from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.catalog.inputs import read_catalog
from pipeline.errors import UsageError
from pipeline.footage.detect import DetectPeople, DetectSettings
from pipeline.footage.recordings import Clocks, name_pattern, plan_recordings
from pipeline.footage.tracks import track
from pipeline.gallery.detections import FORGOTTEN_BOXES_SCHEMA, RECORDINGS_SCHEMA
from pipeline.gallery.forgotten import Forgotten
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.ingest.gallery_sampling import gallery_sampling
from pipeline.ingest.source_changes import with_states

RATE, SAMPLE_RATE, SIZE = 25, 5.0, (1920, 1080)
WINDOW = (slice(150, 438), slice(128, 640))  # rows and columns of vtest.avi: people are as large as in a street at 1080p
NOISE = 3.0  # standard deviation, of 255
ONCE_S = 40  # seconds that are coded; longer recordings repeat them
CAMERA = {"preset": "veryfast", "g": str(2 * RATE), "bf": "0", "b": "4M", "maxrate": "6M", "bufsize": "8M"}
DAY = 86400
STAGES = ("decode", "detect", "embed", "crop and write", "track")


def write_once(path: Path) -> None:
    """ONCE_S seconds of the recording."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, NOISE, (8, SIZE[1], SIZE[0], 1)).astype(np.float32)
    with av.open(str(VTEST_AVI)) as source, av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options=CAMERA | {"x264-params": "scenecut=0:open-gop=0"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.thread_count = 1
        pictures = (frame.to_ndarray(format="rgb24") for frame in source.decode(video=0))
        shown = -1
        for number in range(ONCE_S * RATE):
            while shown < number * 10 // RATE:  # vtest.avi has 10 a second
                large, shown = cv2.resize(next(pictures)[WINDOW], SIZE, interpolation=cv2.INTER_CUBIC), shown + 1
            picture = np.clip(large + np.roll(noise[number % 8], 37 * number, axis=1), 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def repeated(once: Path, path: Path, times: int, seconds: float = ONCE_S) -> None:
    """The packets of a recording of so many seconds, so many times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream: Any = None
        for turn in range(times):
            with av.open(str(once)) as source:
                stream = stream or out.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        later = round(turn * seconds / packet.time_base)
                        packet.pts, packet.dts, packet.stream = packet.pts + later, packet.dts + later, stream
                        out.mux(packet)


def cost(recordings: Path, detector: str, backbone: str, gallery_folder: Path) -> dict[str, Any]:
    """Processor seconds by stage, counts, and peak memory in bytes, of the recordings in a folder."""
    gallery = Gallery.open_or_create(gallery_folder, GallerySettings(find_backbone(backbone), SAMPLE_RATE, None))
    plan = plan_recordings(read_catalog(recordings), name_pattern("{camera}/%Y%m%d_%H%M%S.mp4"), Clocks())
    counter = SimpleNamespace(add=SimpleNamespace(remote=lambda frames: None))
    nobody = FORGOTTEN_BOXES_SCHEMA.empty_table()
    people = DetectPeople(gallery, gallery_sampling(gallery), DetectSettings(detector), Forgotten(), nobody, counter)
    spent = dict.fromkeys(STAGES, 0.0)
    people.detector.detect = timed(people.detector.detect, spent, "detect")  # type: ignore[method-assign]
    people.backbone.embed = timed(people.backbone.embed, spent, "embed")  # type: ignore[method-assign]
    began = time.process_time()
    (row,) = [row for table in people(with_states(plan.table)) for row in table.to_pylist()]
    people.pool.submit(lambda: people.decoder().close()).result()
    spent["crop and write"] = time.process_time() - began - spent["detect"] - spent["embed"]
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent["decode"] = children.ru_utime + children.ru_stime
    began = time.process_time()
    gallery.commit(recordings=pa.Table.from_pylist([row], schema=RECORDINGS_SCHEMA), kind="detect")
    followed = track(gallery)
    spent["track"] = time.process_time() - began
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "spent": spent,
        "frames": row["source_frames"],
        "looked_at": row["looked_at"],
        "detections": row["detections"],
        "seconds": row["last_s"],
        "candidates": followed.candidates,
        "bytes": gallery.location.join("detections", row["shard"]).info().size,
        "memory": own.ru_maxrss << 10,
        "decoder_memory": children.ru_maxrss << 10,
    }


def timed(function: Callable[..., Any], spent: dict[str, float], stage: str) -> Callable[..., Any]:
    """The function, its processor time counted."""

    def counted(*arguments: Any) -> Any:
        began = time.process_time()
        try:
            return function(*arguments)
        finally:
            spent[stage] += time.process_time() - began

    return counted


def unit_costs(short: dict[str, Any], long: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of a core by stage, each a unit of its own, and bytes a detection: by what the longer one takes more."""
    more = {name: long[name] - short[name] for name in ("frames", "looked_at", "detections", "bytes")}
    units = {
        "decode": "frames",
        "detect": "looked_at",
        "embed": "detections",
        "crop and write": "detections",
        "track": "detections",
    }
    costs = {stage: 1000 * (long["spent"][stage] - short["spent"][stage]) / more[unit] for stage, unit in units.items()}
    return costs | {"detection_bytes": more["bytes"] / more["detections"]}


def core_hours(costs: dict[str, float], people: float) -> dict[str, float]:
    """Of a day, by stage. costs: see `unit_costs`."""
    looked_at = SAMPLE_RATE * DAY
    of_day = {"decode": RATE * DAY, "detect": looked_at} | dict.fromkeys(STAGES[2:], people * looked_at)
    return {stage: costs[stage] * of_day[stage] / 3.6e6 for stage in STAGES}


def main(
    work: Annotated[Path, typer.Option(help="Folder for recordings and galleries; recordings are kept.")] = Path(
        "bench/camera_day"
    ),
    shared: Annotated[Path, typer.Option(help="Folder with models/yolox_nano.")] = Path("../shared"),
    detector: Annotated[str | None, typer.Option(help="A name, or an ONNX file; default: YOLOX-nano of --shared.")] = None,
    backbone: Annotated[str, typer.Option(help="A name, or an ONNX file.")] = DEFAULT,
    turns: Annotated[int, typer.Option(help=f"Times {ONCE_S} s of the long recording; the short one is {ONCE_S} s.", min=2)] = 5,
    people: Annotated[float, typer.Option(help="People in the picture of the day that is reckoned.")] = 3.0,
) -> None:
    """Measure, and print the core hours of a day."""
    if not VTEST_AVI.is_file():
        raise UsageError(f"Debian's opencv-doc installs it: {VTEST_AVI} is missing")
    work.mkdir(parents=True, exist_ok=True)
    network = detector or str(with_sidecar(shared, work))
    once = work / "once.mp4"
    if not once.is_file():
        write_once(work / "unfinished.mp4")
        (work / "unfinished.mp4").rename(once)
    found = []
    for name, times in (("short", 1), ("long", turns)):
        path = work / f"{name}-{times}/camera/20260301_080000.mp4"
        if not path.is_file():
            repeated(once, path, times)
        gallery = work / f"gallery-{name}-{time.time_ns()}"
        found.append(in_own_process(cost, path.parents[1], network, backbone, gallery))
    short, long = found
    costs = unit_costs(short, long)
    hours = core_hours(costs, people)
    table = Table("stage", "ms of a core", "each", "core hours of a day")
    each = ("frame of the recording", "frame looked at", "person in one", "person in one", "person in one")
    for stage, unit in zip(STAGES, each, strict=True):
        table.add_row(stage, f"{costs[stage]:.2f}", unit, f"{hours[stage]:.2f}")
    table.add_row("all", "", "", f"{sum(hours.values()):.2f}")
    Console(width=110).print(table)
    shown = long["detections"] / long["looked_at"]
    print(f"{machine()}; the recording shows {shown:.1f} people; a detection takes {costs['detection_bytes']:.0f} bytes")
    for name, one in (("short", short), ("long", long)):
        memory = f"{one['memory'] / 2**20:.0f} MiB, its decoder {one['decoder_memory'] / 2**20:.0f} MiB"
        print(f"{name}: {one['seconds']:.0f} s, {one['candidates']} tracks; the worker's memory at most {memory}")
    figures = {"benchmark": "camera_day", "people": people, "core_hours": sum(hours.values()), "hours": hours}
    print(json.dumps(figures | {"costs": costs, "short": short, "long": long}))


if __name__ == "__main__":
    run(main)
