"""Connecting to Ray: the cluster that a job was submitted to, one named by its address, or one on this machine.

Who reaches the ports of Ray can run code, unless Ray asks for a token; they are open on all of a machine's addresses, also where
a command starts Ray for itself. So Ray without token authentication is refused, by asking it for something without a token.

Ray takes half a second to import: only what connects does.
"""

import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, UsageError, first_line

LOGGER = logging.getLogger("coattention.cluster")
CONNECT_SECONDS = 10.0
_joined = False  # by `connected`
_PROBES = {False: "/ray.rpc.InternalKVGcsService/InternalKVExists", True: "/ray.rpc.RayletDriver/ClusterInfo"}


@dataclass(frozen=True)
class Cluster:
    """Which Ray to use.

    address: of a running cluster ("auto" for the one on this machine); None: RAY_ADDRESS, and without that Ray is started on this
    machine. insecure: whether a cluster is taken that asks for no token, so that whoever reaches its ports can run code.
    """

    address: str | None = None
    insecure: bool = False


def cluster_is_named(cluster: Cluster | str | None = None) -> bool:
    """Whether there is a cluster to use rather than one to start: by address, RAY_ADDRESS (as in a submitted job), or joined."""
    ray = sys.modules.get("ray")
    return bool(_address(cluster)) or (ray is not None and ray.is_initialized())


@contextlib.contextmanager
def connected(cluster: Cluster | str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Ray for the time of a block of work.

    cluster: which one, or its address. Where Ray is started on this machine, it has `cpus` CPUs (default: all) and is ended
    afterwards; it asks for the token in ~/.ray/auth_token, which is made if there is none and which this user alone can read.
    What this process had joined already stays, and so does what it does on SIGTERM.
    Raises UsageError when the named cluster does not answer, or asks for no token and is not `insecure`, and PipelineError when
    Ray does not start.
    """
    global _joined
    import ray

    if ray.is_initialized():
        yield
        return
    address = _address(cluster)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address:
            _check_reachable(address)
            ray.init(address=address, **quiet)
        else:
            _keep_token_private()
            # Ray's own processes write to this one's stderr, alarming words about every actor of Ray Data among them.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is to leave the machine unasked
            _started(num_cpus=cpus, include_dashboard=False, **quiet)
    except Exception as error:  # a start-up that takes too long is a bare Exception in Ray
        ray.shutdown()  # of what did start
        raise _not_connected(error, address) from error
    _joined = True
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in its place, which ends the process at once
    try:
        if not (isinstance(cluster, Cluster) and cluster.insecure) and not _asks_for_token(address):
            which = f"at {address!r}" if address else "of this command"
            raise UsageError(
                f"the Ray cluster {which} asks for no token, so whoever reaches its ports can run code; "
                "start it with RAY_AUTH_MODE=token (cluster/README.md), or accept it with --insecure-cluster"
            )
        yield
    finally:
        leave()


def _started(**how: Any) -> None:
    """Start Ray on this machine, a second time where the first fails: several that start at once take each other's ports, and a
    machine that reads Ray's files for the first time may be slower than Ray waits for.
    """
    import ray

    try:
        ray.init(**how)
    except Exception as error:
        ray.shutdown()  # of what did start
        LOGGER.warning("Ray did not start (%s), and is started again", first_line(error))
        ray.init(**how)


def leave() -> None:
    """Leave what `connected` has joined, so that no thread waits on for its workers; Ray that somebody else joined stays."""
    global _joined
    if _joined:
        import ray

        _joined = False
        ray.shutdown()


@contextlib.contextmanager
def worker_errors(died: str) -> Iterator[None]:
    """While tasks or actors are waited for: a PipelineError of theirs is raised here, and `died` as one where one died."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PipelineError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise PipelineError(died) from error


def words_of(error: BaseException) -> str:
    """What an error of ours or of a Ray worker comes down to.

    Of a worker's only the text crosses the processes, so it is read from the traceback in it: also where Ray gives the error the
    class of its cause besides its own.
    """
    from ray.exceptions import RayError

    if isinstance(error, PipelineError) and not isinstance(error, RayError):
        return str(error)
    text = str(error).strip()
    ours = re.findall(r"^pipeline(?:\.\w+)+\.\w+Error: (.*)$", text, re.MULTILINE)
    others = re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception): .*$", text, re.MULTILINE)
    found = ours or [line for line in others if "UserCodeException" not in line]
    return found[-1] if found else f"{type(error).__name__}: {first_line(error)}"


def _address(cluster: Cluster | str | None) -> str | None:
    return (cluster.address if isinstance(cluster, Cluster) else cluster) or os.environ.get("RAY_ADDRESS")


def _not_connected(error: Exception, address: str | None) -> PipelineError:
    """Ray's failure in one sentence."""
    import ray

    cause = first_line(error)
    if isinstance(error, ray.exceptions.AuthenticationError):
        return UsageError(
            f"the Ray cluster at {address!r} wants a token: set RAY_AUTH_MODE=token, and put the cluster's token into "
            f"~/.ray/auth_token or where RAY_AUTH_TOKEN_PATH says ({cause})"
        )
    if not address:
        return PipelineError(f"Ray does not start on this machine: {cause}")
    return UsageError(f"no Ray cluster answers at {address!r}: {cause}")


def _check_reachable(address: str) -> None:
    """Raise ConnectionError for a HOST:PORT where nobody listens; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and "//" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _asks_for_token(address: str | None) -> bool:
    """Whether the Ray that was just joined refuses a caller without a token. With Ray's own TLS, callers need a certificate."""
    import grpc  # type: ignore[import-untyped]
    import ray

    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return True
    client = bool(address and address.startswith("ray://"))
    where = address.removeprefix("ray://") if address and client else ray.get_runtime_context().gcs_address
    with grpc.insecure_channel(where) as channel:
        try:
            channel.unary_unary(_PROBES[client])(b"", timeout=CONNECT_SECONDS)
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.UNAUTHENTICATED
    return False


def _keep_token_private() -> None:
    """Make the token of Ray on this machine unless one is set up, and close it to other users: Ray would leave it readable."""
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        return
    path = Path.home() / ".ray" / "auth_token"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as file, contextlib.suppress(FileExistsError):  # mode 0600
            file.write(secrets.token_hex(32))
            file.flush()
            os.link(file.name, path)  # whole from the start, and another command's stays
    if (status := path.stat()).st_uid == os.getuid() and status.st_mode & 0o077:
        path.chmod(0o600)
