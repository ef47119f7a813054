"""The steps of cluster/README.md for one machine, run as they stand there, in a home that has seen no Ray."""

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.test_video import write_video

CHECKOUT = Path(__file__).parents[1]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """A folder with a short name: a Unix socket's path has little room."""
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An empty home; every process that has it is ended afterwards, by its id."""
    folder = tmp_path / "home"
    folder.mkdir()
    yield folder
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("HOME") == str(folder):
                process.send_signal(signal.SIGKILL)


def status_of(port: int, token: str | None) -> int:
    """What the job server answers to somebody who asks for its jobs."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/api/jobs/", headers=headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_the_steps_for_one_machine_start_a_cluster_that_asks_for_a_token(ray_folder: str, home: Path, tmp_path: Path) -> None:
    page = (CHECKOUT / "cluster" / "README.md").read_text()
    block = page.partition("## One machine as a cluster\n")[2].partition("\n\nIt")[0].partition("\n`--working-dir")[0]
    steps = "\n".join(re.findall(r"^ {4}(.*)$", block, re.MULTILINE))
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", frames=10)
    port, dashboard, client = free_ports(3)
    own = {
        "source .venv/bin/activate": "set -e",
        "ray start --head": f"ray start --head --port {port} --dashboard-port {dashboard} --ray-client-server-port {client} "
        f"--dashboard-agent-listen-port 0 --num-cpus 2 --object-store-memory 150000000 --temp-dir {ray_folder}",
        "127.0.0.1:8265": f"127.0.0.1:{dashboard}",
        " /videos ": f" {tmp_path}/videos ",
        "/targets/person.mp4": f"{tmp_path}/videos/a.mp4",
        "/galleries/": f"{tmp_path}/galleries/",
        "/results/": f"{tmp_path}/results/",
    }
    for theirs, ours in own.items():
        assert theirs in steps
        steps = steps.replace(theirs, ours)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (tmp_path / "log").open("w") as log:  # not a pipe, which Ray's processes would hold open
        ended = subprocess.run(
            ["bash", "-c", f"umask 022\n{steps}"],
            cwd=CHECKOUT,
            env={**clean, "HOME": str(home), "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    assert ended.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    token = home / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert [status_of(dashboard, None), status_of(dashboard, "0" * 64)] == [401, 403]
    assert status_of(dashboard, token.read_text()) == 200
    assert (tmp_path / "results" / "2026-17" / "results.csv").exists()
