"""Joining Ray: a cluster that does not answer is said so at once."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pipeline.cluster import cluster_is_named, connected
from pipeline.errors import PipelineError, UsageError


def test_an_address_where_nobody_listens_is_refused_within_seconds() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(UsageError, match=f"no Ray cluster answers at '{address}'"), connected(address):
            pass
    assert time.monotonic() - began < 15


def test_a_cluster_is_named_by_flag_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not cluster_is_named() and cluster_is_named("auto")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert cluster_is_named()


@pytest.mark.parametrize(
    ("address", "kind", "words"), [(None, PipelineError, "Ray does not start"), ("x", UsageError, "answers at 'x'")]
)
def test_ray_that_does_not_start_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, address: str | None, kind: type[Exception], words: str
) -> None:
    """Ray raises a bare Exception when its start takes too long."""
    import ray

    def late(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(kind, match=rf"{words}.*: The current node timed out during startup\.$"), connected(address):
        pass


def test_the_token_that_ray_makes_is_closed_to_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ray

    def started(**_: object) -> None:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray/auth_token").write_text("made by Ray")
        (tmp_path / ".ray/auth_token").chmod(0o644)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", started)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with connected():
        assert (tmp_path / ".ray/auth_token").stat().st_mode & 0o777 == 0o600


@pytest.mark.cluster
def test_the_steps_of_one_machine_give_a_cluster_that_wants_its_token(tmp_path: Path) -> None:
    """The commands of cluster/README.md, up to the start, in an empty home; only ports, folder and waiting are the test's."""
    text = (Path(__file__).parents[1] / "cluster/README.md").read_text()
    block = text[text.index("## One machine as a cluster") : text.index("    job()")]
    steps = [line[4:] for line in block.splitlines() if line.startswith("    ") and "activate" not in line]
    assert len(steps) == 3 and steps[-1].startswith("ray start --head ")
    jobs, gcs, agent = free_ports(3)
    folder = tempfile.mkdtemp(prefix="ray")  # short: sockets lie in it
    own = f"--port {gcs} --dashboard-port {jobs} --dashboard-agent-listen-port {agent} --temp-dir {folder}"
    steps[-1] = steps[-1].replace("ray start", "exec ray start") + f" --block --num-cpus 1 {own}"
    environment = {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "LANG": "C.UTF-8"}
    with (tmp_path / "said").open("w") as said:
        head = subprocess.Popen(["bash", "-euc", "\n".join(steps)], env=environment, cwd=tmp_path, stdout=said, stderr=said)
    try:
        token = tmp_path / ".ray/auth_token"
        status, end = 0, time.monotonic() + 120
        while status == 0 and time.monotonic() < end and head.poll() is None:
            time.sleep(0.5)
            status = asked(jobs, None)
        assert (status, asked(jobs, token.read_text())) == (401, 200), (tmp_path / "said").read_text()
        assert token.stat().st_mode & 0o777 == 0o600
    finally:
        head.terminate()  # with --block it ends what it started
        head.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, outside those that the system gives away by itself."""
    found: list[int] = []
    for port in range(20_000 + os.getpid() % 5000, 32_000):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)):
                found.append(port)
        if len(found) == count:
            break
    return found


def asked(port: int, token: str | None) -> int:
    """The status of the job server's answer, 0 where it does not answer yet."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/jobs/")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - loopback
            return answer.status
    except urllib.error.HTTPError as refused:
        return refused.code
    except OSError:
        return 0
