"""An ingest on a two-node cluster while its processes are killed at any instant, and what it is held against.

tests/cluster/test_drills.py runs a few kills, and benchmarks/kill_drill.py many. The cluster is that of tests.two_nodes.
"""

import json
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pyarrow as pa

from pipeline.backbone.runtime import load_backbone
from pipeline.backbone.spec import find_backbone
from pipeline.catalog.inputs import read_catalog
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery, feature_matrix
from pipeline.ingest.stages import decode_source
from pipeline.retention.verify import verify_gallery
from tests.two_nodes import HEAD, WORKER, TwoNodes, find_processes, kill_process, start_again

WAIT_SECONDS = 900  # for one command; a busy machine takes minutes to start Ray's workers

Expected = dict[str, tuple[np.ndarray, np.ndarray]]


def write_clips(folder: Path, count: int, frames: int, size: tuple[int, int] = (160, 120)) -> Path:
    """Clips of `frames` and more frames, no two alike, in a folder of that name; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"clip{number:03d}.mp4"
        if path.exists():
            continue
        noise = np.random.default_rng(number).integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8)
        picture = noise.repeat(8, 0).repeat(8, 1)
        unfinished = path.with_suffix(".part")
        with av.open(str(unfinished), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for frame in range(frames + 3 * number):
                shifted = np.roll(picture, 8 * frame, axis=1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(shifted), "rgb24")))
            container.mux(stream.encode(None))
        unfinished.rename(path)
    return folder


def undisturbed(clips: Path, backbone: Path) -> Expected:
    """What the gallery must hold: video_id -> (frame_index int32 [n], features float16 [n, D]), without Ray or a gallery."""
    spec = find_backbone(str(backbone))
    network = load_backbone(spec)
    found: Expected = {}
    with Decoder(Sampling(height=spec.height, width=spec.width)) as decoder:
        for row in read_catalog(str(clips)).table.to_pylist():
            rows = decode_source(decoder, row)
            chunks = [chunk for chunk in rows if chunk["kind"] == "chunk"]
            frames = [chunk["frames"] for chunk in chunks]
            index = np.concatenate([chunk["frame_index"] for chunk in chunks]).astype(np.int32)
            found[row["source_id"]] = (index, network.embed(np.concatenate(frames)))
    return found


@dataclass
class Account:
    """Rows of a gallery against those expected. lost, doubled, wrong: frames; faults: what jobs.status --verify finds."""

    lost: int
    doubled: int
    wrong: int
    rejected: int
    faults: list[str]

    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.wrong or self.rejected or self.faults)


def account(gallery: Gallery, expected: Expected) -> Account:
    """Every frame of a gallery compared, by video id, frame index and feature."""
    snapshot = gallery.snapshot()
    counts: Counter[tuple[str, int]] = Counter()
    wrong = 0
    for row in snapshot.videos.to_pylist():
        frames = gallery.read_video(row)
        index = np.asarray(frames["frame_index"])
        counts.update((row["video_id"], int(number)) for number in index)
        wrong += not _same(expected.get(row["video_id"]), frames)
    wanted = {(video_id, int(number)) for video_id, (index, _) in expected.items() for number in index}
    doubled = sum(counts.values()) - len(counts) + len(counts.keys() - wanted)
    doubled += abs(sum(batch.num_rows for batch in gallery.frames()) - sum(counts.values()))  # as other programs read them
    return Account(len(wanted - counts.keys()), doubled, wrong, len(snapshot.rejects), verify_gallery(gallery))


def _same(expected: tuple[np.ndarray, np.ndarray] | None, frames: pa.Table) -> bool:
    if expected is None:
        return False
    index, features = expected
    return np.array_equal(index, np.asarray(frames["frame_index"])) and np.array_equal(features, feature_matrix(frames))


class Reader(threading.Thread):
    """Reads a gallery over and over while it is written, as a search would; keeps what no reader may ever see in `faults`."""

    def __init__(self, gallery: Path, expected: Expected) -> None:
        super().__init__(daemon=True)
        self.gallery, self.expected = gallery, expected
        self.polls, self.faults, self.commits = 0, list[str](), list[float]()
        self._seen: dict[str, str] = {}
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.05):
            try:
                self._poll()
            except PipelineError as error:
                self.faults.append(f"the reader got: {error}")

    def _poll(self) -> None:
        if not (self.gallery / "gallery.json").exists():
            return
        gallery = Gallery.open(self.gallery)
        videos = gallery.snapshot().videos.to_pylist()
        self.polls += 1
        ids = [row["video_id"] for row in videos]
        if len(ids) != len(set(ids)):
            self.faults.append("a video stands in the gallery twice")
        if gone := self._seen.keys() - set(ids):
            self.faults.append(f"videos went away: {sorted(gone)}")
        fresh = [row for row in videos if self._seen.get(row["video_id"]) != row["shard"]]
        for row in fresh:
            if not _same(self.expected.get(row["video_id"]), gallery.read_video(row)):
                self.faults.append(f"{row['video_id']} was not whole in {row['shard']}")
            self._seen[row["video_id"]] = row["shard"]
        if fresh:
            self.commits.append(time.monotonic())

    def stop(self) -> None:
        self._ended.set()
        self.join()
        self._poll()


@dataclass
class Kill:
    """One kill -9. at: seconds since the run began; recovered: seconds until the gallery next grew, or the run was done."""

    kind: str
    pid: int
    node: int
    at: float
    recovered: float = 0.0


@dataclass
class Drill:
    """One ingest under kills. starts: how often the command was run."""

    seed: int
    kills: list[Kill] = field(default_factory=list)
    starts: int = 1
    seconds: float = 0.0
    polls: int = 0
    reader_faults: list[str] = field(default_factory=list)
    account: Account | None = None
    output: str = ""

    def clean(self) -> bool:
        return self.account is not None and self.account.clean() and not self.reader_faults


def ingest_under_kills(
    cluster: TwoNodes, kinds: Sequence[str], clips: Path, backbone: Path, gallery: Path, expected: Expected, seed: int
) -> Drill:
    """Ingest the clips while one process of each kind, in this order, is killed at a random instant; run again what stops.

    kinds: of PROCESSES, or "driver", "node" (all of the worker node; another one joins), "head" (the GCS and the driver with it).
    Where a "decode actor" is among them, decoding has actors of its own, as beside GPUs; else embedding actors decode.
    """
    chance = random.Random(seed)
    drill = Drill(seed)
    reader = Reader(gallery, expected)
    reader.start()
    began = time.monotonic()
    flags = ["--backbone", backbone, "--shard-pieces", "2", "--embedders", "2"]
    flags += ["--decoders", "2"] if "decode actor" in kinds else []
    command = ["-m", "jobs.ingest", clips, "--gallery", gallery, *flags]
    log = gallery.parent / f"{gallery.name}.log"
    with log.open("a") as sink:
        driver = cluster.run(*command, stdout=sink, stderr=sink)
        try:
            for kind in kinds:
                victim = _wait_for(cluster, kind, driver, chance)
                if victim is None:  # the run was done before its turn came
                    break
                node, process = victim
                kill = Kill(kind, process.pid, node, round(time.monotonic() - began, 2))
                if kind in ("node", "head"):
                    cluster.kill_node(node)
                    start_again(cluster, node)
                else:
                    kill_process(process)
                drill.kills.append(kill)
                if kind in ("driver", "head"):
                    driver.wait()
                    driver = cluster.run(*command, stdout=sink, stderr=sink)
                    drill.starts += 1
            code = driver.wait(timeout=WAIT_SECONDS)
            while code != 0 and drill.starts < 4 + len(kinds):
                drill.starts += 1
                driver = cluster.run(*command, stdout=sink, stderr=sink)
                code = driver.wait(timeout=WAIT_SECONDS)
        finally:
            kill_process(driver)
            driver.wait()
            reader.stop()
    ended = time.monotonic()
    for kill in drill.kills:
        kill.recovered = round(next((t for t in reader.commits if t > began + kill.at), ended) - began - kill.at, 2)
    drill.seconds, drill.polls, drill.reader_faults = round(ended - began, 1), reader.polls, reader.faults
    drill.account = account(Gallery.open(gallery), expected)
    drill.output = log.read_text()
    return drill


def _wait_for(
    cluster: TwoNodes, kind: str, driver: "subprocess.Popen[str]", chance: random.Random
) -> tuple[int, psutil.Process] | None:
    """A process of the kind, picked at a random instant after the work has begun; None when the driver ends first."""
    while not find_processes(cluster, "embed actor" if kind in ("driver", "node", "head") else kind):
        if driver.poll() is not None:
            return None
        time.sleep(0.02)
    until = time.monotonic() + chance.uniform(0, 3)
    while driver.poll() is None:
        if time.monotonic() >= until:
            if kind == "driver":
                return HEAD, psutil.Process(driver.pid)
            if kind in ("node", "head"):
                node = HEAD if kind == "head" else WORKER
                return node, cluster.processes(node)[0]
            if found := find_processes(cluster, kind):
                return chance.choice(found)
        time.sleep(0.01)
    return None


def as_json(drill: Drill, **fields: Any) -> str:
    """One line that `benchmarks.kill_drill` appends to its results."""
    assert drill.account is not None
    kept = {name: value for name, value in vars(drill).items() if name not in ("kills", "account", "output")}
    return json.dumps({**fields, **kept, "kills": [vars(kill) for kill in drill.kills], **vars(drill.account)})
