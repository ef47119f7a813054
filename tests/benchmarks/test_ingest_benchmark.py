"""The arithmetic of benchmarks.ingest: how speed is told from start-up, and how clips become many."""

from pathlib import Path

import pytest

from benchmarks.ingest import Run, link_clips, speed
from pipeline.errors import PipelineError


def runs(frames: int, *seconds: float) -> list[Run]:
    """Of a command that takes 2 CPU seconds a second."""
    return [Run(frames, wall, 2 * wall, [], []) for wall in seconds]


def test_speed_is_what_more_frames_cost_and_startup_the_rest() -> None:
    found = speed(runs(100, 12.0, 12.0, 90.0), runs(500, 20.0, 1.0, 20.0))  # 10 s and 50 frames/s; two runs were disturbed
    assert (found.frames_per_second, found.startup_seconds, found.frames_per_cpu_second) == (50, 10, 25)


def test_runs_that_tell_nothing_are_refused() -> None:
    with pytest.raises(PipelineError, match="too short"):
        speed(runs(100, 12.0), runs(500, 11.0))


def test_clips_get_as_many_names_as_are_wanted(tmp_path: Path) -> None:
    clips = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for clip in clips:
        clip.write_text(clip.name)
    for _ in range(2):  # the folder is used again
        links = sorted(link_clips(clips, 5, tmp_path / "links").iterdir())
        assert [link.read_text() for link in links] == ["a.mp4", "b.mp4", "a.mp4", "b.mp4", "a.mp4"]
