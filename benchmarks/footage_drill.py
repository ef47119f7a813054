"""A day of several cameras, ingested under kills: python -m benchmarks.footage_drill --work drills/footage

Four cameras film OpenCV's vtest.avi and rendered people at 10 frames a second, a minute of each again and again; two are recorded
in files of an hour, two in files of five minutes, and every recorder pauses for 20 s after an hour, six times. `jobs.ingest`
takes them in while its driver, its workers and their decoders are killed (kill -9) at random moments, and is started again until
it ends.

Since every hour shows the same, every hour must have the tracks that one hour of that camera has in an ingest that nobody
disturbed and that reads every file as a whole: the same numbers, times, boxes and features. Memory is that of all processes of
the command. `--run-minutes` and `--runs` make a shorter day.

Every start is one line of FOLDER/runs.jsonl; called again, the drill goes on. The last line is JSON; exit code 1 for any
difference, 2 where there was not the time to end.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import psutil
import typer

from benchmarks.camera_day import repeated
from benchmarks.process_figures import memory_of_tree
from benchmarks.real_footage import VTEST_AVI
from benchmarks.tracking import with_sidecar
from jobs.command_line import run
from pipeline.errors import UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.rendering.recordings import RecordingArguments, render_recordings
from pipeline.retention.verify import verify_gallery

RATE, MINUTE, PAUSE = 10, 60, 20  # frames a second; seconds
SHORT = 5  # minutes of a short file
OPENING = datetime(2026, 3, 1, tzinfo=UTC)
CAMERAS = {"yard-long": "yard", "yard-short": "yard", "street-long": "street", "street-short": "street"}  # what they film
VICTIMS = ("driver", "worker", "decoder")
MARKS = {"worker": "DetectPeople", "decoder": "pipeline.decoding.child"}  # in their command lines
SOONEST_KILL = 15.0  # seconds after the start, or after the last one


def main(
    work: Annotated[Path, typer.Option(help="Folder for recordings, galleries and results.")],
    shared: Annotated[Path, typer.Option(help="Folder with models/yolox_nano.")] = Path("../shared"),
    detector: Annotated[str | None, typer.Option(help="A name, or an ONNX file; default: YOLOX-nano of --shared.")] = None,
    run_minutes: Annotated[int, typer.Option(help="From pause to pause, and of a long file; a multiple of 5.", min=5)] = 60,
    runs: Annotated[int, typer.Option(help="How often, of each of the four cameras.", min=1)] = 6,
    sample_rate: Annotated[float, typer.Option(help="Frames looked at, a second.")] = 2.0,
    chunk_minutes: Annotated[float, typer.Option(help="Of the chunks of the files of an hour.")] = 5.0,
    workers: Annotated[int, typer.Option(help="Recordings read at once.")] = 1,
    latest_kill: Annotated[float, typer.Option(help="Seconds after the start or a kill, within which one comes.")] = 120.0,
    minutes: Annotated[float, typer.Option(help="Stop after about so long; called again, it goes on.")] = 60.0,
) -> None:
    """Make the day, take it in under kills, compare."""
    if run_minutes % SHORT:
        raise UsageError(f"--run-minutes is a multiple of {SHORT}, not {run_minutes}")
    until = time.monotonic() + 60 * minutes
    work.mkdir(parents=True, exist_ok=True)
    network = detector or str(with_sidecar(shared, work))
    write_day(work, run_minutes, runs)
    flags = ["--detector", network, "--pattern", "{camera}/%Y%m%d_%H%M%S.mp4", "--sample-rate", str(sample_rate)]
    flags += ["--embedders", str(workers)]
    command = [sys.executable, "-m", "jobs.ingest"]
    whole = [*command, str(work / "one-run"), "--gallery", str(work / "undisturbed"), *flags, "--chunk-minutes", "10000"]
    under_kills = [*command, str(work / "day"), "--gallery", str(work / "gallery"), *flags, "--chunk-minutes", str(chunk_minutes)]
    results = work / "runs.jsonl"
    starts = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    while time.monotonic() < until and not any(one["ended"] for one in starts):
        one = started(under_kills, work / "log", random.Random(len(starts)), latest_kill, until)
        starts.append(one | {"recordings": committed(work / "gallery")})
        with results.open("a") as file:
            print(json.dumps(starts[-1]), file=file, flush=True)
        killed = ", ".join(f"{victim} at {at:.0f} s" for victim, at in one["kills"]) or "nobody"
        print(f"start {len(starts)}: killed {killed}; {one['seconds']:.0f} s, {starts[-1]['recordings']} recordings", flush=True)
    try:
        if not any(one["ended"] for one in starts):
            raise subprocess.TimeoutExpired(under_kills, 0)
        done = subprocess.run(whole, capture_output=True, check=False, timeout=max(60.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        print("not done yet; run the same command again to go on")
        raise typer.Exit(2) from None
    if done.returncode:
        raise UsageError("the undisturbed ingest fails")
    wrong, compared = differences(Gallery.open(work / "gallery"), Gallery.open(work / "undisturbed"))
    wrong += verify_gallery(Gallery.open(work / "gallery"))
    kills = Counter(victim for one in starts for victim, _ in one["kills"])
    peaks = [one["memory"] / 2**20 for one in starts]
    hours = len(CAMERAS) * runs * run_minutes / 60
    print(f"{hours:g} h, {len(starts)} starts, killed {dict(kills)}; {compared} tracks compared with those of a run undisturbed")
    print(f"memory of all processes: {min(peaks):.0f} to {max(peaks):.0f} MiB at most; wrong: {wrong[:5] or 'nothing'}")
    figures = {"benchmark": "footage_drill", "hours": hours, "starts": len(starts), "kills": kills, "tracks": compared}
    print(json.dumps(figures | {"memory_mib": peaks, "recordings": starts[-1]["recordings"], "wrong": wrong}))
    if wrong:
        raise typer.Exit(1)


def write_day(work: Path, run_minutes: int, runs: int) -> None:
    """day/ with all recordings, one-run/ with the first run of each camera; the same files under many names."""
    if (work / "day.json").exists() and json.loads((work / "day.json").read_text()) == [run_minutes, runs]:
        return
    for folder in ("day", "one-run", "files"):
        shutil.rmtree(work / folder, ignore_errors=True)
    (work / "files").mkdir()
    rendered = work / "rendered"
    render_recordings(rendered, RecordingArguments(people=30, cameras=1, frame_rate=RATE, seconds=MINUTE / 5))
    coded([VTEST_AVI], work / "files/yard.mp4")
    coded(sorted(rendered.glob("nvr/*/*.mp4")), work / "files/street.mp4")
    for camera, film in CAMERAS.items():
        length = SHORT if camera.endswith("short") else run_minutes
        file = work / f"files/{camera}.mp4"
        repeated(work / f"files/{film}.mp4", file, length, MINUTE)
        for number in range(runs):
            for part in range(run_minutes // length):
                start = OPENING + timedelta(seconds=number * (run_minutes * MINUTE + PAUSE) + part * length * MINUTE)
                for folder in ("day", "one-run") if number == 0 else ("day",):
                    name = work / folder / camera / f"{start:%Y%m%d_%H%M%S}.mp4"
                    name.parent.mkdir(parents=True, exist_ok=True)
                    os.link(file, name)
    (work / "day.json").write_text(json.dumps([run_minutes, runs]))


def coded(films: Iterable[Path], path: Path) -> None:
    """The first minute of films, as cameras code it."""
    with av.open(str(path), "w") as out:
        options = {"preset": "veryfast", "crf": "23", "g": str(2 * RATE), "bf": "0", "x264-params": "scenecut=0:open-gop=0"}
        stream, number = out.add_stream("libx264", rate=RATE, options=options), 0
        stream.codec_context.thread_count = 1
        for film in films:
            with av.open(str(film)) as source:
                for frame in source.decode(video=0):
                    if number < MINUTE * RATE:
                        if number == 0:
                            stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
                        picture = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")
                        picture.pts, picture.time_base = number, Fraction(1, RATE)
                        out.mux(stream.encode(picture))
                        number += 1
        out.mux(stream.encode(None))
    if number < MINUTE * RATE:
        raise UsageError(f"{path.name}: there is less than a minute of it")


def started(command: list[str], log: Path, rng: random.Random, latest_kill: float, until: float) -> dict[str, Any]:
    """One start of the command: whom it was killed, when, and whether it ended by itself. seconds: that it ran; memory: bytes."""
    kills: list[tuple[str, float]] = []
    peak, began = 0, time.monotonic()
    with log.open("a") as said:
        driver = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        following = rng.uniform(SOONEST_KILL, latest_kill)
        while driver.poll() is None:
            time.sleep(0.5)
            now = time.monotonic() - began
            peak = max(peak, memory_of_tree(driver.pid)["anonymous"])
            if now < following and time.monotonic() < until:
                continue
            victim = "driver" if time.monotonic() >= until else rng.choice(VICTIMS)
            if (process := found(driver.pid, victim)) is not None:
                process.send_signal(signal.SIGKILL)
                kills.append((victim, now))
                if victim == "driver":
                    driver.wait()
            following = now + rng.uniform(SOONEST_KILL, latest_kill)
    ended = driver.returncode == 0
    if driver.returncode not in (0, -signal.SIGKILL):
        print(f"start failed with {driver.returncode}: {log.read_text().splitlines()[-1:]}")
    return {"kills": kills, "ended": ended, "seconds": time.monotonic() - began, "memory": peak, "code": driver.returncode}


def found(driver: int, victim: str) -> psutil.Process | None:
    """A process of the command."""
    try:
        process = psutil.Process(driver)
        if victim == "driver":
            return process
        return next((one for one in process.children(recursive=True) if MARKS[victim] in " ".join(one.cmdline())), None)
    except psutil.Error:  # it has ended
        return None


def committed(gallery: Path) -> int:
    return len(Gallery.open(gallery).snapshot().recordings) if (gallery / "gallery.json").exists() else 0


def differences(gallery: Gallery, expected: Gallery) -> tuple[list[str], int]:
    """In which runs the tracks are others than in the undisturbed one, and how many tracks were compared."""
    right = tracks_by_run(expected)
    of_camera = {run.split("/")[0]: tracks for run, tracks in right.items()}
    wrong, count = [], 0
    for run_name, tracks in tracks_by_run(gallery).items():
        count += len(tracks)
        if tracks != of_camera.get(run_name.split("/")[0]):
            wrong.append(f"the tracks of {run_name} are others than undisturbed")
    return wrong, count


def tracks_by_run(gallery: Gallery) -> dict[str, dict[str, list[tuple[Any, ...]]]]:
    """Run -> number of the candidate in it -> (second of the run, frame, box, feature) of each of its frames."""
    found: dict[str, dict[str, list[tuple[Any, ...]]]] = {}
    for row in gallery.snapshot().videos.to_pylist():
        name, _, number = row["video_id"].partition("#")
        begins = datetime.strptime(name.partition("/")[2], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        first = (row["start_time"] - begins).total_seconds()
        frames = []
        for frame in gallery.read_video(row).to_pylist():
            place, feature = frame["place"], np.float16(frame["feature"]).tobytes()
            frames.append((round(first + frame["time_s"], 3), place["frame"], *(place[side] for side in "xywh"), feature))
        found.setdefault(name, {})[number] = frames
    return found


if __name__ == "__main__":
    run(main)
