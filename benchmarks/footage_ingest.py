"""Ingest of recordings beside a loop by hand: python -m benchmarks.footage_ingest --work bench/footage_ingest

The loop is what one writes instead of `jobs.ingest --detector`: each process, one a core, has its own share of the
recordings, PyAV decodes front to back, every due frame goes through the same detector session, people are cut out and go
through the same backbone session, and boxes and features are saved. No Ray, no confined decoder, no mended stamps, no
commits, nobody is followed.

Both take in the same recordings of `benchmarks.camera_day` (1920 x 1080, H.264, 25 frames a second), in one run, in turns.
Rates are frames looked at a second of what the long recordings take more than the short ones, by the clock and by processor
time of all processes, so that start-up counts for nothing; it is said by itself. A processor that others share may become a
quarter slower within minutes: both are measured one right after the other, each first by turns, and the median of the pairs'
ratios is what counts. The last line is the same as JSON.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import av
import cv2
import numpy as np
import psutil
import typer

from benchmarks.camera_day import ONCE_S, SAMPLE_RATE, repeated, write_once
from benchmarks.process_figures import machine
from benchmarks.real_footage import VTEST_AVI
from benchmarks.tracking import with_sidecar
from jobs.command_line import run
from pipeline.backbone.runtime import load_backbone
from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.errors import PipelineError, UsageError
from pipeline.footage.detect import LEAST_SCORE
from pipeline.footage.detector import load_detector
from pipeline.gallery.gallery import Gallery

CROPS_AT_ONCE = 32


def by_hand(recordings: list[Path], out: Path, detector_path: str, rate: float) -> int:
    """Boxes and features of the people in some recordings, into `out`; how many frames were looked at."""
    detector, backbone = load_detector(detector_path, 1, "cpu"), load_backbone(find_backbone(DEFAULT), threads=1, device="cpu")
    crops: list[np.ndarray] = []
    features: list[np.ndarray] = []
    boxes: list[np.ndarray] = []
    looked_at = 0
    for recording in recordings:
        last = -1
        with av.open(str(recording)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if (tick := int(frame.time * rate + 1e-3)) <= last:
                    continue
                last, looked_at = tick, looked_at + 1
                picture = frame.to_ndarray(format="rgb24")
                (found,) = detector.detect(picture[None])
                for box in found.boxes[found.scores >= LEAST_SCORE]:
                    x, y, w, h = (int(side) for side in box)
                    if w > 0 and h > 0:
                        size = backbone.spec.width, backbone.spec.height
                        crops.append(cv2.resize(picture[y : y + h, x : x + w], size, interpolation=cv2.INTER_AREA))
                        boxes.append(box)
                if len(crops) >= CROPS_AT_ONCE:
                    features.append(backbone.embed(np.stack(crops)))
                    crops = []
    if crops:
        features.append(backbone.embed(np.stack(crops)))
    np.savez(out, features=np.concatenate(features), boxes=np.stack(boxes))
    return looked_at


def loop(folder: Path, out: Path, detector: str) -> int:
    """`by_hand` of a folder, a process a core; frames looked at."""
    recordings, count = sorted(folder.glob("*/*.mp4")), len(os.sched_getaffinity(0))
    out.mkdir(parents=True, exist_ok=True)
    shares = [(recordings[i::count], out / f"{i}.npz", detector, SAMPLE_RATE) for i in range(min(count, len(recordings)))]
    with multiprocessing.get_context("spawn").Pool(len(shares)) as pool:
        return sum(pool.starmap(by_hand, shares, chunksize=1))


def product(folder: Path, out: Path, detector: str) -> int:
    """`jobs.ingest` of a folder; frames looked at."""
    flags = ["--gallery", str(out), "--detector", detector, "--pattern", "{camera}/%Y%m%d_%H%M%S.mp4"]
    command = [sys.executable, "-m", "jobs.ingest", str(folder), *flags, "--sample-rate", str(SAMPLE_RATE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PipelineError(f"the ingest failed: {done.stderr.strip().splitlines()[-1:]}")
    return sum(Gallery.open(out).snapshot().recordings["looked_at"].to_pylist())


def taken(work: Callable[[Path, Path, str], int], folder: Path, out: Path, detector: str) -> dict[str, float]:
    """Seconds by the clock, processor seconds, and frames."""
    began, before = time.perf_counter(), _spent()
    frames = work(folder, out, detector)
    return {"seconds": time.perf_counter() - began, "cpu": _spent() - before, "frames": frames}


def _spent() -> float:
    """Processor seconds of the whole machine so far: Ray's processes are not all this one's children."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)


def main(
    work: Annotated[Path, typer.Option(help="Folder for recordings, galleries and features; recordings are kept.")] = Path(
        "bench/footage_ingest"
    ),
    shared: Annotated[Path, typer.Option(help="Folder with models/yolox_nano.")] = Path("../shared"),
    turns: Annotated[int, typer.Option(help=f"Times {ONCE_S} s of a long recording; a short one is {ONCE_S} s.", min=2)] = 4,
    repeats: Annotated[int, typer.Option(help="How often each is measured, in turns; medians count.", min=1)] = 4,
) -> None:
    """Measure both, and print them side by side. The machine must have nothing else to do: its processors are counted."""
    if not VTEST_AVI.is_file():
        raise UsageError(f"Debian's opencv-doc installs it: {VTEST_AVI} is missing")
    work.mkdir(parents=True, exist_ok=True)
    detector, once = str(with_sidecar(shared, work)), work / "once.mp4"
    if not once.is_file():
        write_once(work / "unfinished.mp4")
        (work / "unfinished.mp4").rename(once)
    cameras = len(os.sched_getaffinity(0))
    folders = {name: work / f"{name}-{times}" for name, times in (("short", 1), ("long", turns))}
    for folder, times in zip(folders.values(), (1, turns), strict=True):
        for camera in range(cameras):
            path = folder / f"camera{camera}/20260301_080000.mp4"
            if not path.is_file():
                repeated(once, path, times)
    found: dict[str, list[dict[str, float]]] = {"loop": [], "product": []}
    for turn in range(repeats):
        for name, ways in (("loop", loop), ("product", product))[:: 1 if turn % 2 == 0 else -1]:
            short, long = (taken(ways, folder, work / f"{name}-{time.time_ns()}", detector) for folder in folders.values())
            more = {what: long[what] - short[what] for what in short}
            rates = {"by_clock": more["frames"] / more["seconds"], "by_cpu": more["frames"] / more["cpu"]}
            started = short["seconds"] - short["frames"] / rates["by_clock"]
            found[name].append(rates | {"start_s": started, "frames": long["frames"]})
            print(f"{name:<8} {rates['by_clock']:6.1f} frames/s, {rates['by_cpu']:6.1f} a CPU second, start-up {started:.1f} s")
    pairs = list(zip(found["product"], found["loop"], strict=True))
    ratios = {what: [mine[what] / other[what] for mine, other in pairs] for what in ("by_clock", "by_cpu")}
    ratio = {what: float(np.median(of_pairs)) for what, of_pairs in ratios.items()}
    seconds = cameras * ONCE_S * turns
    print(f"{machine()}; {cameras} recordings, {seconds} s in all; frames looked at {found['product'][0]['frames']:.0f}")
    for what, of_pairs in ratios.items():
        print(f"product beside the loop, {what}: {ratio[what]:.2f} ({', '.join(f'{one:.2f}' for one in of_pairs)})")
    print(json.dumps({"benchmark": "footage_ingest", "machine": machine(), "ratio": ratio, "runs": found}))


if __name__ == "__main__":
    run(main)
