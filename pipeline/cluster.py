"""Connecting to Ray: the cluster that a job was submitted to, one named by its address, or one on this machine.

Ray takes half a second to import: only what connects does.
"""

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, UsageError

CONNECT_SECONDS = 10.0


def cluster_is_named(address: str | None = None) -> bool:
    """Whether there is a cluster to use rather than one to start: by address, RAY_ADDRESS (as in a submitted job), or joined."""
    ray = sys.modules.get("ray")
    return bool(address or os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())


@contextlib.contextmanager
def connected(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Ray for the time of a block of work.

    address: of a running cluster ("auto" for the one on this machine); without it RAY_ADDRESS is used, and without that Ray is
    started on this machine with `cpus` CPUs (default: all) and ended afterwards. What this process had joined already stays.
    Raises UsageError when the named cluster does not answer, PipelineError when Ray does not start here.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address:
            _check_reachable(address)
            ray.init(address=address, **quiet)
        else:
            # Ray's own processes write to this one's stderr, alarming words about every actor of Ray Data among them.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is to leave the machine unasked
            ray.init(num_cpus=cpus, include_dashboard=False, **quiet)
            _close_token()
    except Exception as error:  # a start that takes too long is a bare Exception
        ray.shutdown()
        said = (str(error).splitlines() or [type(error).__name__])[0]
        if not address:
            raise PipelineError(f"Ray does not start on this machine: {said}") from error
        raise UsageError(f"no Ray cluster answers at {address!r}: {said}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _close_token() -> None:
    """Let nobody else read the token that Ray has made for this account; Ray itself leaves it readable to all."""
    token = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(FileNotFoundError):
        if token.stat().st_mode & 0o077:
            token.chmod(0o600)


def _check_reachable(address: str) -> None:
    """Raise ConnectionError for a HOST:PORT where nobody listens; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and "//" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
