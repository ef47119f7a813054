"""Joining Ray: one that does not answer, does not start or asks for no token is said so in one sentence."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.cluster import Cluster, cluster_is_named, connected, words_of, worker_errors
from pipeline.errors import PipelineError, UsageError
from pipeline.storage.faults import StorageError

CHECKOUT = Path(__file__).parents[1]
# A head of its own in a process of its own: the token mode of a process is fixed once Ray has read it.
HEAD = """
import ray, sys
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
JOIN = """
import sys
from pipeline.cluster import Cluster, connected
from pipeline.errors import PipelineError
try:
    with connected(Cluster(sys.argv[1] or None, insecure=sys.argv[2] == "insecure")):
        print("joined")
except PipelineError as error:
    print(error)
"""


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
    assert not cluster_is_named() and cluster_is_named("auto") and not cluster_is_named(Cluster(insecure=True))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert cluster_is_named() and cluster_is_named(Cluster())


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (Exception("The current node timed out during startup.\nThis could happen because ..."), "The current node timed out"),
        (AssertionError(), "Ray does not start on this machine: AssertionError"),
        (TimeoutError("timed out"), "Ray does not start on this machine: timed out"),
    ],
)
def test_ray_that_does_not_start_is_one_sentence(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(**_: Any) -> None:
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(PipelineError, match=sentence) as found, connected():
        pass
    assert not isinstance(found.value, UsageError) and "\n" not in str(found.value)


def test_ray_that_does_not_start_once_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[dict[str, Any]] = []

    def starts(**how: Any) -> None:
        asked.append(how)
        if len(asked) == 1:
            raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray, "init", starts)
    with connected(Cluster(insecure=True), cpus=1):
        pass
    assert len(asked) == 2 and asked[0] == asked[1] and asked[1]["num_cpus"] == 1
    assert "Ray did not start (The current node timed out during startup.), and is started again" in caplog.text


def test_a_cluster_that_refuses_the_token_says_where_to_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: Any) -> None:
        raise ray.exceptions.AuthenticationError("invalid token")

    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(UsageError, match=r"'auto' wants a token: set RAY_AUTH_MODE=token.*auth_token"), connected("auto"):
        pass


@pytest.mark.ray
@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_a_cluster_without_authentication_is_refused_unless_accepted(mode: str, tmp_path: Path) -> None:
    here = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(CHECKOUT), "RAY_AUTH_TOKEN": "0" * 64}
    here = {name: value for name, value in here.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", HEAD], env={**here, "RAY_AUTH_MODE": mode}, **pipes) as head:
        assert head.stdout is not None
        address = head.stdout.readline().strip()

        def join(words: str) -> str:
            command = [sys.executable, "-c", JOIN, address, words]
            return subprocess.run(command, env={**here, "RAY_AUTH_MODE": mode}, capture_output=True, text=True).stdout.strip()

        plain = join("")
        if mode == "token":
            assert plain == "joined"
        else:
            assert plain.startswith(f"the Ray cluster at '{address}' asks for no token") and "--insecure-cluster" in plain
            assert join("insecure") == "joined"
        head.communicate()  # its input ends, and so does it


@pytest.mark.ray
def test_ray_of_a_command_asks_for_a_token_that_only_its_user_can_read(tmp_path: Path) -> None:
    here = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(CHECKOUT)}
    here = {name: value for name, value in here.items() if not name.startswith(("RAY_ADDRESS", "RAY_AUTH"))}
    command = [sys.executable, "-c", JOIN, "", ""]
    old = os.umask(0o022)
    try:
        joined = subprocess.run(command, env=here, capture_output=True, text=True)
    finally:
        os.umask(old)
    assert joined.stdout.strip() == "joined", joined.stderr
    assert stat.S_IMODE((tmp_path / ".ray" / "auth_token").stat().st_mode) == 0o600


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
        head = subprocess.Popen(
            ["bash", "-euc", "\n".join(steps)], env=environment, cwd=tmp_path, stdout=said, stderr=said, start_new_session=True
        )
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
        try:
            head.wait(120)
        except subprocess.TimeoutExpired:  # a machine under load: nothing stays behind all the same
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
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


def test_what_a_worker_says_is_said_and_what_it_cannot_say_any_more_too() -> None:
    ours = ray.exceptions.RayTaskError("build", "traceback", PipelineError("the shard is damaged"))
    with pytest.raises(PipelineError, match=r"^the shard is damaged$"), worker_errors("a worker died"):
        raise ours
    with pytest.raises(PipelineError, match=r"^a worker died$"), worker_errors("a worker died"):
        raise ray.exceptions.ActorDiedError
    with pytest.raises(PipelineError, match=r"^a worker died$"), worker_errors("a worker died"):
        raise ray.exceptions.OutOfMemoryError("killed")
    fault = ray.exceptions.RayTaskError("build", "traceback", ZeroDivisionError("a fault of the program"))
    with pytest.raises(ray.exceptions.RayTaskError), worker_errors("a worker died"):
        raise fault


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ray::embed()\npipeline.errors.PipelineError: no backbone\nray.exceptions.RayTaskError: x", "no backbone"),
        ("ray::f()\ntorch.OutOfMemoryError: full\nray.exceptions.UserCodeException: UDF failed", "torch.OutOfMemoryError: full"),
        ("  the node is gone\nmore", "RuntimeError: the node is gone"),
        ("", "RuntimeError: RuntimeError"),
    ],
)
def test_a_workers_error_is_told_from_its_text(text: str, words: str) -> None:
    assert words_of(RuntimeError(text)) == words


def test_an_error_of_ours_that_ray_brings_is_its_sentence_alone() -> None:
    sentence = "cannot write /g/detections/a.parquet: no space is left on the device"
    text = f"ray::Worker()\n  in f\npipeline.storage.faults.StorageError: {sentence}\nFailed after 1 attempt."
    brought = ray.exceptions.RayTaskError("submit", text, StorageError(sentence, "no_space")).as_instanceof_cause()
    assert isinstance(brought, StorageError) and isinstance(brought, ray.exceptions.RayError)
    assert words_of(brought) == words_of(StorageError(sentence, "no_space")) == sentence
