"""What must hold of hostile inputs: alone, in one decoder (`Judge`), and all together in an ingest (`ingest_faults`)."""

import collections
import math
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from pipeline.catalog.inputs import REJECT_REASONS
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Chunk, Event, Rejected, VideoInfo
from pipeline.gallery.gallery import Gallery
from tests.conftest import save_toy_backbone
from tests.mutants import Mutant


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: "accepted" or a reject reason, in how many seconds, with what peak memory of the decoder in bytes.

    faults: which of the promises were broken, in words.
    """

    mutant: Mutant
    result: str
    message: str
    seconds: float
    peak: int
    faults: tuple[str, ...] = ()


class Judge:
    """Decodes mutants in one decoder and holds the outcomes to the promises. A context manager.

    most_seconds: of one mutant, in all; most_memory: bytes that a decoder process may take, in all.
    """

    def __init__(self, decoder: Decoder, most_seconds: float, most_memory: int) -> None:
        self.decoder, self.most_seconds, self.most_memory = decoder, most_seconds, most_memory
        self.peak, self.finished = 0, threading.Event()
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        self.finished.set()
        self.watch.join()
        self.decoder.close()

    def outcome(self, mutant: Mutant) -> Outcome:
        began, faults, message, result = time.monotonic(), list[str](), "", "accepted"
        self._peak_so_far(forget=True)
        events = list[Event]()
        try:
            for event in self.decoder.events(str(mutant.path), None if mutant.boxes is None else str(mutant.boxes)):
                events.append(replace(event, frames=event.frames[:, :1, :1].copy()) if isinstance(event, Chunk) else event)
            faults += event_faults(events)
        except Exception as error:
            faults.append(f"the decoder raised {type(error).__name__}: {error}")
        seconds, peak = time.monotonic() - began, self._peak_so_far()
        rejected = [event for event in events if isinstance(event, Rejected)]
        accepted = any(isinstance(event, Chunk) for event in events) and not any(event.track is None for event in rejected)
        if not accepted and rejected:
            result, message = rejected[-1].reason, rejected[-1].message
        if seconds > self.most_seconds:
            faults.append(f"it took {seconds:.0f} s")
        if peak > self.most_memory:
            faults.append(f"the decoder took {peak >> 20} MiB")
        return Outcome(mutant, result, message, seconds, peak, tuple(faults))

    def _process(self) -> int | None:
        process = self.decoder._process
        return None if process is None else process.pid

    def _peak_so_far(self, forget: bool = False) -> int:
        """The most resident bytes of the decoder's process since it was asked to forget."""
        with suppress(OSError):
            if (process := self._process()) is not None:
                found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
                self.peak = max(self.peak, 1024 * int(found[1])) if found else self.peak
                if forget:
                    Path(f"/proc/{process}/clear_refs").write_text("5")
        if forget:
            self.peak = 0
        return self.peak

    def _watch(self) -> None:
        while not self.finished.wait(0.05):  # a process that dies takes its figures with it
            self._peak_so_far()


def event_faults(events: list[Event]) -> list[str]:
    """What is wrong with the events of one source: that it is accepted or rejected once, and how its frames are numbered."""
    faults = []
    rejected = [event for event in events if isinstance(event, Rejected)]
    found = [event for event in events if isinstance(event, Chunk)]
    whole = [event for event in rejected if event.track is None]
    if not found and not rejected:
        faults.append("it was neither accepted nor rejected")
    if len(whole) > 1 or (whole and events[-1] is not whole[0]):
        faults.append("it was rejected and went on")
    faults += [
        f"the reason {event.reason!r} is not in the vocabulary" for event in rejected if event.reason not in REJECT_REASONS
    ]
    faults += ["a reject has no message" for event in rejected if not event.message.strip()]
    infos = [event for event in events if isinstance(event, VideoInfo)]
    if found and len(infos) != 1:
        faults.append(f"frames came with {len(infos)} descriptions of the video")
    for info in infos:
        if not (0 < info.fps < math.inf and info.source_frames > 0 and info.width > 0 and info.height > 0):
            faults.append(f"an impossible description: {info}")
    for track in {chunk.track for chunk in found}:
        own = [chunk for chunk in found if chunk.track == track]
        index, times = (np.concatenate([getattr(chunk, name) for chunk in own]) for name in ("frame_index", "time_s"))
        if [chunk.number for chunk in own] != list(range(len(own))) or (
            not whole and [p.last for p in own] != [False] * (len(own) - 1) + [True]
        ):
            faults.append(f"chunks of track {track} do not join up")
        if (
            sum(len(chunk.frames) for chunk in own) != len(index)
            or len(index) != len(times)
            or np.any(np.diff(index) <= 0)
            or not np.all(np.isfinite(times))
            or np.any(np.diff(times) < 0)
        ):
            faults.append(f"frames of track {track} are not in order")
    return faults


def ingest_faults(outcomes: list[Outcome], folder: Path, sampling: Sampling, most_seconds: float) -> list[str]:
    """What goes wrong when judged mutants go through `jobs.ingest` in one manifest, each under its number as video id.

    Each must stand in videos/ (with boxes: its tracks) or in rejects/, once, with a reason of the vocabulary, and fare as it did
    alone. folder: for the manifest, the backbone and the gallery.
    """
    manifest, gallery = folder / "manifest.parquet", folder / "gallery"
    ids = [f"n{number}" for number in range(len(outcomes))]
    boxes = [None if (file := outcome.mutant.boxes) is None else str(file) for outcome in outcomes]
    uris = [str(outcome.mutant.path) for outcome in outcomes]
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"uri": uris, "video_id": ids, "boxes_uri": pa.array(boxes, pa.string())}), manifest)
    backbone = save_toy_backbone(folder / "mean.onnx")
    limits = ["--time-limit", str(sampling.time_limit), "--memory-limit", str(sampling.memory_limit >> 20)]
    command = [
        sys.executable,
        "-m",
        "jobs.ingest",
        str(manifest),
        "--gallery",
        str(gallery),
        "--backbone",
        str(backbone),
        *limits,
    ]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        told, said = process.communicate(timeout=most_seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        return [f"the ingest did not end within {most_seconds:.0f} s: {process.communicate()[1][-500:]}"]
    if process.returncode:
        return [f"the ingest ended with {process.returncode}: {told[-500:]} {said[-1000:]}"]
    snapshot = Gallery.open(gallery).snapshot()
    faults = [
        f"the reason {reason!r} is not in the vocabulary"
        for reason in set(snapshot.rejects["reason"].to_pylist()) - set(REJECT_REASONS)
    ]
    used, refused = (collections.Counter(table["source_id"].to_pylist()) for table in (snapshot.videos, snapshot.rejects))
    faults += [f"{source} is no input" for source in (used.keys() | refused.keys()) - set(ids)]
    for number, outcome in zip(ids, outcomes, strict=True):
        here = "accepted" if used[number] else "rejected" if refused[number] else "lost"
        alone = outcome.result if outcome.result == "accepted" else "rejected"
        if outcome.mutant.boxes is None and used[number] + refused[number] != 1:
            faults.append(f"{outcome.mutant} stands {used[number]} times in videos/ and {refused[number]} times in rejects/")
        elif here != alone and outcome.result not in ("too_large", "time_limit", "decoder_crash"):  # a matter of the moment
            faults.append(f"{outcome.mutant} was {outcome.result} alone and is {here} here")
    return faults
