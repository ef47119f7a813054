"""python -m jobs.render: what it prints, what it writes and how it refuses."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def render(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.render", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_writes_a_network_and_says_what(tmp_path):
    out = tmp_path / "out"
    done = render(str(out), "--people", "2", "--cameras", "2", "--no-full-frame")
    assert done.returncode == 0, done.stderr
    assert "4 clips of 2 people in 2 cameras (2 query, 2 gallery)" in done.stdout
    assert str(out / "manifest.csv") in done.stdout
    assert len(list((out / "clips").rglob("*.mp4"))) == 4
    assert not list((out / "scenes").glob("*"))


def test_a_refusal_is_one_sentence_and_exit_code_2(tmp_path):
    refused = render(str(tmp_path / "out"), "--people", "0")
    assert refused.returncode == 2
    assert refused.stderr == "error: people is 0; a network needs at least 1 person\n"
    assert refused.stdout == ""


def test_help_names_every_flag_with_its_default():
    shown = render("--help").stdout
    for flag in ("--people", "--cameras", "--visits", "--seed", "--hidden-share", "--processes", "--full-frame"):
        assert flag in shown
    assert "0.35" in shown
