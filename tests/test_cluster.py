"""Joining Ray: a cluster that does not answer is said so at once."""

import socket
import time

import pytest

from pipeline.cluster import cluster_is_named, connected
from pipeline.errors import UsageError


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
