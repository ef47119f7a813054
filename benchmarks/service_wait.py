"""What people wait for at the page, beside its goals: until a service is ready, and until a clip begins.

    python -m benchmarks.service_wait --gallery GALLERY [--starts 7] [--clips 30]

Each start is a process of its own, `python -m jobs.serve`; a first one, after which files are in the page cache, does not count.
Ready is when the printed address answers /readyz with 200: what a first search needs is loaded then. Clips are of random videos,
the person cut out, or the scene from 30 s before to 30 s after, in stretches that nobody has asked for, so that each is decoded
and made anew; then the same once more, from the cache, in which they stay. The last line is JSON, in seconds.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
import requests
import typer

from benchmarks.process_figures import machine
from jobs.command_line import run
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery
from pipeline.service.access import issue

GOALS = {"ready": 5.0, "first byte of a clip": 0.5}
AROUND_S = 30.0
ASKS_AGAIN_S = 0.02
LONGEST_S = 60.0  # until a service is ready


def wait(
    gallery: Annotated[Path, typer.Option(help="A gallery with an index, on a local disk, whose sources are there.")],
    starts: Annotated[int, typer.Option(help="Starts of the service that count.")] = 7,
    clips: Annotated[int, typer.Option(help="Clips of each view.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the videos whose clips are asked for.")] = 0,
) -> None:
    """Measure a service of this machine."""
    ids = Gallery.open(gallery).snapshot().videos["video_id"].to_pylist()
    rng = np.random.default_rng(seed)
    seconds: dict[str, list[float]] = {"address printed": [], "ready": [], "first leads": []}
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder, "tokens.json")
        headers = {"authorization": f"Bearer {issue(tokens, 'a benchmark', days=1)}"}
        for start in range(starts + 1):
            with _served(gallery, tokens) as (address, printed, ready):
                if start:
                    found = (printed, ready, _first_leads(address, headers, str(rng.choice(ids))))
                    for name, value in zip(seconds, found, strict=True):
                        seconds[name].append(value)
        with _served(gallery, tokens) as (address, *_), requests.Session() as session:
            session.headers.update(headers)
            videos = rng.choice(ids, clips).tolist()
            for view in ("crop", "scene"):
                asked = [_clip_address(session, address, video_id, view, rng) for video_id in videos]
                _first_bytes(session, asked[0] + "1")  # a decoder starts with the service
                for again in ("", ", again"):
                    found_of_clips = [_first_bytes(session, one) for one in asked]
                    for name, values in zip(("byte", "pictures"), zip(*found_of_clips, strict=True), strict=True):
                        seconds[f"first {name} of a clip, {view}{again}"] = list(values)
    print(f"{len(ids)} videos, {machine()}")
    for name, values in seconds.items():
        goal = next((f", goal {most:g} s" for what, most in GOALS.items() if name.startswith(what)), "")
        print(f"{name:<38} {statistics.median(values):.3f} s ({min(values):.3f} to {max(values):.3f}, {len(values)} times{goal})")
    figures = {name: {"median": statistics.median(v), "min": min(v), "max": max(v)} for name, v in seconds.items()}
    print(json.dumps({"machine": machine(), "videos": len(ids), "starts": starts, "clips": clips, "goals": GOALS, **figures}))


@contextlib.contextmanager
def _served(gallery: Path, tokens: Path) -> Iterator[tuple[str, float, float]]:
    """A service: its address, and seconds from its start until that was printed and until it is ready."""
    command = [sys.executable, "-m", "jobs.serve", "--gallery", str(gallery), "--port", "0", "--tokens", str(tokens)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
            printed = time.perf_counter() - began
            if "http://" not in line:
                raise PipelineError(f"{' '.join(command)} ended with {process.wait()}")
            address = f"http://{line.split('http://')[1].split('/#')[0]}"
            while not requests.get(f"{address}/readyz", timeout=60).ok:
                if time.perf_counter() - began > LONGEST_S:
                    raise PipelineError(f"the service was not ready after {LONGEST_S:g} s")
                time.sleep(ASKS_AGAIN_S)
            yield address, printed, time.perf_counter() - began
        finally:
            process.terminate()


def _first_leads(address: str, headers: dict[str, str], video_id: str) -> float:
    """How long the first search of a service takes, from the question to the leads."""
    place, _, name = f"{address}/api/v1", *_gallery_of(address, headers)
    asked = {"gallery": name, "target": f"id:{video_id}", "reason": "a benchmark"}
    began = time.perf_counter()
    answer = requests.post(f"{place}/searches", json=asked, headers=headers | {"prefer": "wait=30"}, timeout=60)
    if answer.status_code != 201 or not answer.json()["leads"]:
        raise PipelineError(f"a search ended otherwise: {answer.text[:300]}")
    return time.perf_counter() - began


def _gallery_of(address: str, headers: Any) -> tuple[int, str]:
    (only,) = requests.get(f"{address}/api/v1/galleries", headers=headers, timeout=60).json()
    return only["videos"], only["name"]


def _clip_address(session: requests.Session, address: str, video_id: str, view: str, rng: np.random.Generator) -> str:
    """A stretch around where somebody is seen in a video, with an end that nobody has asked for."""
    _, name = _gallery_of(address, dict(session.headers))
    place = f"{address}/api/v1/galleries/{name}/videos/{quote(video_id, safe='/')}"
    boxes = session.get(f"{place}/boxes", timeout=60)
    boxes.raise_for_status()
    first, last = boxes.json()["first_s"], boxes.json()["last_s"]
    start, end = max(0.0, first - AROUND_S * (view == "scene")), last + AROUND_S * (view == "scene")
    return f"{place}/clip.mp4?view={view}&start={start:.3f}&end={min(end, start + 59) + rng.random():.9f}"


def _first_bytes(session: requests.Session, clip: str) -> tuple[float, float]:
    """Seconds until the first byte of a clip, and until its first pictures are there (a whole mdat, ISO/IEC 14496-12). All of it
    is read, so that nothing is made beside the next one.
    """
    began, first, pictures, content = time.perf_counter(), None, None, b""
    with session.get(clip, stream=True, timeout=120) as answer:
        if not answer.ok:
            raise PipelineError(f"no clip: {answer.text[:300]}")
        for block in answer.iter_content(None):
            first = first or time.perf_counter() - began
            content += block
            if pictures is None and "mdat" in _whole_boxes(content):
                pictures = time.perf_counter() - began
    if first is None or pictures is None:
        raise PipelineError(f"a clip without pictures: {clip}")
    return first, pictures


def _whole_boxes(content: bytes) -> list[str]:
    """The kinds of the boxes that a beginning of an MP4 file holds whole."""
    found, at = [], 0
    while at + 8 <= len(content) and (size := int.from_bytes(content[at : at + 4], "big")) >= 8 and at + size <= len(content):
        found.append(content[at + 4 : at + 8].decode("latin-1"))
        at += size
    return found


if __name__ == "__main__":
    run(wait)
