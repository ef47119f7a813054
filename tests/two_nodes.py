"""A real two-node Ray cluster whose processes can be killed at any instant.

Each node has a network namespace of its own where the machine allows them (`NamespaceCluster`), else ray.cluster_utils starts
both on loopback (`LoopbackCluster`). Ray's token authentication is on in both.
"""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

CHECKOUT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
HEAD, WORKER = 0, 1
HOSTS = ("10.77.0.11", "10.77.0.12")  # of nodes in namespaces
PROCESSES = {  # kind of kill -> what its processes are called
    "decode actor": re.compile(r"ray::MapWorker\(MapBatches\(DecodeSources\)"),
    "decoder child": re.compile(r"pipeline\.decoding\.child"),
    "embed actor": re.compile(r"ray::MapWorker\(MapBatches\((EmbedChunks|DecodeAndEmbed)\)"),
    "writer": re.compile(r"ray::MapWorker\(MapBatches\(WriteShards\)"),
    "join task": re.compile(r"ray::join_chunks"),
    "counter": re.compile(r"ray::FrameCounter"),
    "search actor": re.compile(r"ray::_PartitionsActor"),
    "replica": re.compile(r"ray::ServeReplica:"),
}


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
    """Two nodes that share nothing but the disk and a bridge. Node HEAD runs the GCS and the drivers.

    own: environment variables of each node. outside: an address of the bridge at which they reach this machine.
    """

    def __init__(
        self,
        folder: Path,
        cpus: int = 2,
        environment: dict[str, str] | None = None,
        own: Sequence[dict[str, str]] = ({}, {}),
        outside: str | None = None,
    ) -> None:
        self.folder, self.cpus = folder, cpus
        self.bridge = f"d{os.getpid()}b"
        self.names = [f"d{os.getpid()}n{node}" for node in (HEAD, WORKER)]
        self.address = f"{HOSTS[HEAD]}:6379"
        self.starts = 0
        self.environment = {**ray_environment(folder), "RAY_ADDRESS": self.address, **(environment or {})}
        self.environments = [{**self.environment, **of_node} for of_node in own]
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("link", "set", self.bridge, "up")
        if outside is not None:
            _ip("addr", "add", f"{outside}/24", "dev", self.bridge)
        for node, name in enumerate(self.names):
            _ip("netns", "add", name)
            _ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", f"{name}v", "master", self.bridge, "up")
            _ip("-n", name, "addr", "add", f"{HOSTS[node]}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", name, "link", "set", device, "up")

    def start_node(self, node: int) -> None:
        self.starts += 1
        where = ["--head", "--port=6379", "--include-dashboard=false"] if node == HEAD else [f"--address={self.address}"]
        # A Unix socket's path has little room, so Ray's folder is not below the test's.
        temporary = ["--temp-dir", f"/tmp/{self.names[node]}.{self.starts}"]  # noqa: S108
        sizes = [f"--num-cpus={self.cpus}", "--object-store-memory=150000000"]
        without = ["--disable-usage-stats", "--include-log-monitor=false"]  # no driver here prints what workers do
        command = [PROGRAMS / "ray", "start", *where, f"--node-ip-address={HOSTS[node]}", *temporary, *sizes, *without]
        for _ in range(4):  # the port of a head that was just killed may not be free yet; Ray gives up on a busy machine
            done = subprocess.run(self._inside(node, command), env=self.environments[node], capture_output=True, text=True)
            if done.returncode == 0:
                return
            self.kill_node(node)
            time.sleep(2)
        raise RuntimeError(f"ray start failed: {done.stdout}{done.stderr}")

    def run(self, *command: str | Path, **settings: Any) -> "subprocess.Popen[str]":
        """Start a driver on the head node."""
        inside = self._inside(HEAD, [sys.executable, *command])
        return subprocess.Popen(inside, env=self.environments[HEAD], cwd=CHECKOUT, text=True, start_new_session=True, **settings)

    def processes(self, node: int) -> list[psutil.Process]:
        listed = subprocess.run(["ip", "netns", "pids", self.names[node]], capture_output=True, text=True, check=True)
        return _existing(map(int, listed.stdout.split()))

    def kill_node(self, node: int) -> None:
        """Every process of the node at once, drivers included."""
        while processes := [process for process in self.processes(node) if process.status() != psutil.STATUS_ZOMBIE]:
            for process in processes:
                kill_process(process)
            time.sleep(0.05)

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
            kill_process(process)
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
    # An ingest in this process sets the level of logs, and Ray says of each process that it was set.
    others = {name: value for name, value in os.environ.items() if name != "RAY_BACKEND_LOG_LEVEL"}
    return {**others, **own, "PYTHONPATH": str(CHECKOUT)}


def find_processes(cluster: TwoNodes, kind: str) -> list[tuple[int, psutil.Process]]:
    """(node, process) of all processes of a kind of PROCESSES."""
    found = []
    for node in (HEAD, WORKER):
        for process in cluster.processes(node):
            with contextlib.suppress(psutil.Error):
                if PROCESSES[kind].search(" ".join(process.cmdline())):
                    found.append((node, process))
    return found


def start_again(cluster: TwoNodes, node: int) -> None:
    """What an operator, or KubeRay, does: a lost node is replaced; with the head gone, the worker's Ray is started anew too."""
    if node == HEAD:
        cluster.kill_node(WORKER)
        cluster.start_node(HEAD)
    cluster.start_node(WORKER)


def kill_process(process: "psutil.Process | subprocess.Popen[str]") -> None:
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
