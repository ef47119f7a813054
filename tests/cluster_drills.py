"""A real two-node Ray cluster whose processes can be killed at any instant, and what an ingest under kills is held against.

Each node has a network namespace of its own where the machine allows them (`NamespaceCluster`), else ray.cluster_utils starts
both on loopback (`LoopbackCluster`). Ray's token authentication is on in both. tests/test_drills.py runs a few kills, and
benchmarks/kill_drill.py many.
"""

import contextlib
import json
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pyarrow as pa

from pipeline.backbone import find_backbone, load_backbone
from pipeline.catalog import read_catalog
from pipeline.decoder import Decoder
from pipeline.errors import PipelineError
from pipeline.gallery import Gallery, feature_matrix
from pipeline.pieces import decode_source
from pipeline.sampling import Sampling
from pipeline.verification import verify_gallery

CHECKOUT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
HEAD, WORKER = 0, 1
WAIT_SECONDS = 900  # for one command; a busy machine takes minutes to start Ray's workers
PROCESSES = {  # kind of kill -> what its processes are called
    "decode actor": re.compile(r"ray::MapWorker\(MapBatches\(\w*Decode\)"),
    "decoder child": re.compile(r"-m pipeline\.decoder"),
    "embed actor": re.compile(r"ray::MapWorker\(MapBatches\(\w*Embed\)"),
    "writer": re.compile(r"ray::MapWorker\(MapBatches\(\w*Write"),
    "join task": re.compile(r"ray::join_pieces"),
    "counter": re.compile(r"ray::_Counter"),
    "search actor": re.compile(r"ray::_PartitionsActor"),
}

Expected = dict[str, tuple[np.ndarray, np.ndarray]]


def namespaces_allowed() -> bool:
    """Whether this process may make network namespaces."""
    name = f"try{os.getpid()}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
    if made:
        subprocess.run(["ip", "netns", "del", name], check=True)
    return made


class NamespaceCluster:
    """Two nodes that share nothing but the disk and a bridge. Node HEAD runs the GCS and the drivers."""

    def __init__(self, folder: Path, cpus: int = 2, environment: dict[str, str] | None = None) -> None:
        self.folder, self.cpus = folder, cpus
        self.bridge = f"d{os.getpid()}b"
        self.names = [f"d{os.getpid()}n{node}" for node in (HEAD, WORKER)]
        self.hosts = [f"10.77.0.{11 + node}" for node in (HEAD, WORKER)]
        self.address = f"{self.hosts[HEAD]}:6379"
        self.starts = 0
        self.environment = {**ray_environment(folder), "RAY_ADDRESS": self.address, **(environment or {})}
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("link", "set", self.bridge, "up")
        for node, name in enumerate(self.names):
            _ip("netns", "add", name)
            _ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", f"{name}v", "master", self.bridge, "up")
            _ip("-n", name, "addr", "add", f"{self.hosts[node]}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", name, "link", "set", device, "up")

    def start_node(self, node: int) -> None:
        self.starts += 1
        where = ["--head", "--port=6379", "--include-dashboard=false"] if node == HEAD else [f"--address={self.address}"]
        # A Unix socket's path has little room, so Ray's folder is not below the test's.
        temporary = ["--temp-dir", f"/tmp/{self.names[node]}.{self.starts}"]  # noqa: S108
        sizes = [f"--num-cpus={self.cpus}", "--object-store-memory=150000000", "--disable-usage-stats"]
        command = [PROGRAMS / "ray", "start", *where, f"--node-ip-address={self.hosts[node]}", *temporary, *sizes]
        for _ in range(4):  # the port of a head that was just killed may not be free yet; Ray gives up on a busy machine
            done = subprocess.run(self._inside(node, command), env=self.environment, capture_output=True, text=True)
            if done.returncode == 0:
                return
            self.kill_node(node)
            time.sleep(2)
        raise RuntimeError(f"ray start failed: {done.stdout}{done.stderr}")

    def run(self, *command: str | Path, **settings: Any) -> "subprocess.Popen[str]":
        """Start a driver on the head node."""
        inside = self._inside(HEAD, [sys.executable, *command])
        return subprocess.Popen(inside, env=self.environment, cwd=CHECKOUT, text=True, start_new_session=True, **settings)

    def processes(self, node: int) -> list[psutil.Process]:
        listed = subprocess.run(["ip", "netns", "pids", self.names[node]], capture_output=True, text=True, check=True)
        return _existing(map(int, listed.stdout.split()))

    def kill_node(self, node: int) -> None:
        """Every process of the node at once, drivers included."""
        while processes := [process for process in self.processes(node) if process.status() != psutil.STATUS_ZOMBIE]:
            for process in processes:
                _kill(process)
            time.sleep(0.05)

    def cut_off(self, node: int, off: bool = True) -> None:
        """Take the node's network away, or give it back."""
        _ip("link", "set", f"{self.names[node]}v", "down" if off else "up")

    def close(self) -> None:
        for node, name in enumerate(self.names):
            self.kill_node(node)
            _ip("netns", "del", name)
        _ip("link", "del", self.bridge)
        for start in range(1, self.starts + 1):
            for name in self.names:
                subprocess.run(["rm", "-rf", f"/tmp/{name}.{start}"], check=True)  # noqa: S108

    def _inside(self, node: int, command: Sequence[str | Path]) -> list[str]:
        return ["ip", "netns", "exec", self.names[node], *map(str, command)]


class LoopbackCluster:
    """The same where there are no namespaces: two nodes of ray.cluster_utils.Cluster."""

    def __init__(self, folder: Path, cpus: int = 2, environment: dict[str, str] | None = None) -> None:
        self.cpus, self.drivers = cpus, list[subprocess.Popen[str]]()
        self.environment = {**ray_environment(folder), **(environment or {})}
        os.environ.update(self.environment)  # ray.cluster_utils starts its nodes from this process
        self.nodes: list[Any] = [None, None]

    def start_node(self, node: int) -> None:
        from ray.cluster_utils import Cluster

        sizes = {"num_cpus": self.cpus, "object_store_memory": 150_000_000, "include_dashboard": False}
        if node == HEAD:
            self.cluster = Cluster(initialize_head=True, head_node_args=sizes)
            self.nodes[HEAD] = self.cluster.head_node
            self.environment["RAY_ADDRESS"] = self.address = self.cluster.address
        else:
            self.nodes[node] = self.cluster.add_node(**sizes)

    def run(self, *command: str | Path, **settings: Any) -> "subprocess.Popen[str]":
        words = [sys.executable, *map(str, command)]
        driver = subprocess.Popen(words, env=self.environment, cwd=CHECKOUT, text=True, start_new_session=True, **settings)
        self.drivers.append(driver)
        return driver

    def processes(self, node: int) -> list[psutil.Process]:
        ids = {info.process.pid for infos in self.nodes[node].all_processes.values() for info in infos}
        ids |= {driver.pid for driver in self.drivers if driver.poll() is None} if node == HEAD else set()
        parents = _existing(ids)
        return parents + [child for parent in parents for child in parent.children(recursive=True)]

    def kill_node(self, node: int) -> None:
        if self.nodes[node] is None:
            return
        for process in self.processes(node):
            _kill(process)
        self.nodes[node].kill_all_processes(check_alive=False, allow_graceful=False, wait=True)

    def close(self) -> None:
        for node in (WORKER, HEAD):
            self.kill_node(node)


TwoNodes = NamespaceCluster | LoopbackCluster


@contextlib.contextmanager
def two_nodes(folder: Path, **settings: Any) -> Iterator[TwoNodes]:
    """A running two-node cluster, in namespaces where they are allowed; nothing of it is left afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = NamespaceCluster(folder, **settings) if namespaces_allowed() else LoopbackCluster(folder, **settings)
    try:
        cluster.start_node(HEAD)
        cluster.start_node(WORKER)
        yield cluster
    finally:
        cluster.close()


def ray_environment(folder: Path) -> dict[str, str]:
    """This process's environment with a token of this cluster's own."""
    token = folder / "token"
    if not token.exists():
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **own, "PYTHONPATH": str(CHECKOUT)}


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
            pieces = pa.concat_tables(list(decode_source(decoder, row["source_id"], row["uri"], None))).to_pylist()
            pieces = [piece for piece in pieces if piece["kind"] == "piece"]
            frames = [np.frombuffer(piece["frames"], np.uint8).reshape(-1, spec.height, spec.width, 3) for piece in pieces]
            index = np.concatenate([piece["frame_index"] for piece in pieces]).astype(np.int32)
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
                    _start_again(cluster, node)
                else:
                    _kill(process)
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
            _kill(driver)
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


def find_processes(cluster: TwoNodes, kind: str) -> list[tuple[int, psutil.Process]]:
    """(node, process) of all processes of a kind of PROCESSES."""
    found = []
    for node in (HEAD, WORKER):
        for process in cluster.processes(node):
            with contextlib.suppress(psutil.Error):
                if PROCESSES[kind].search(" ".join(process.cmdline())):
                    found.append((node, process))
    return found


def _start_again(cluster: TwoNodes, node: int) -> None:
    """What an operator, or KubeRay, does: a lost node is replaced; with the head gone, the worker's Ray is started anew too."""
    if node == HEAD:
        cluster.kill_node(WORKER)
        cluster.start_node(HEAD)
    cluster.start_node(WORKER)


def as_json(drill: Drill, **fields: Any) -> str:
    """One line that `benchmarks.kill_drill` appends to its results."""
    assert drill.account is not None
    kept = {name: value for name, value in vars(drill).items() if name not in ("kills", "account", "output")}
    return json.dumps({**fields, **kept, "kills": [vars(kill) for kill in drill.kills], **vars(drill.account)})


def _kill(process: "psutil.Process | subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError, psutil.Error):
        process.send_signal(signal.SIGKILL)


def _existing(ids: Any) -> list[psutil.Process]:
    found = []
    for number in ids:
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(number))
    return found


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
