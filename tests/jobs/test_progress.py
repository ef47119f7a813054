"""Progress: one line that renews itself on a terminal, few lines in a log, and nothing on stdout."""

import sys
import time

import pytest

from jobs.progress import RenewedLine, time_left


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def shown(line: RenewedLine, clock: list[float], capsys: pytest.CaptureFixture[str], count: int = 40) -> str:
    for done in range(1, count + 1):
        clock[0] += 1.0
        line.show(f"{done}/{count}", done == count)
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def test_a_log_has_a_line_every_ten_seconds_and_the_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(RenewedLine(), clock, capsys).split() == ["1/40", "11/40", "21/40", "31/40", "40/40"]
    assert shown(RenewedLine(at_once=False), clock, capsys).split() == ["10/40", "20/40", "30/40", "40/40"]


def test_a_terminal_has_one_line_that_ends_once(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    said = shown(RenewedLine(), clock, capsys, 3)
    assert said == "\r\x1b[K1/3\r\x1b[K2/3\r\x1b[K3/3\n"


def test_what_is_over_before_its_first_line_says_its_end_unless_it_is_brief(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(RenewedLine(at_once=False), clock, capsys, 5) == "5/5\n"
    assert shown(RenewedLine(at_once=False, brief=False), clock, capsys, 5) == ""
    assert shown(RenewedLine(at_once=False, brief=False), clock, capsys, 15).split() == ["10/15", "15/15"]


def test_the_time_left_is_told_once_something_is_done() -> None:
    assert time_left(10.0, 5, 20) == "30 s left"
    assert time_left(10.0, 0, 20) == "time left unknown"
