"""Kinds of recordings by their times: stamps that are missing, wrong or begin anew, rates, pauses and ticks."""

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tests.recordings.files import (
    B_FRAMES,
    FRAMES,
    HALF,
    RATE,
    STAMPS,
    Packets,
    Recording,
    joined,
    restamped,
    rewrite,
    shows,
    write,
)
from tests.recordings.registry import kind


def replace_times(recording: Recording, times: Iterable[float], **more: Any) -> Recording:
    """The recording with other times, in seconds from the file's start."""
    return replace(recording, times=tuple(map(float, times)), **more)


def mended(path: Path) -> Recording:
    """A recording with one bad stamp: the frame has its place, and a time between its neighbours'."""
    return shows(path, time_slack=1.01 / RATE, misread=True)


@kind
def stamp_repeated(at: Path) -> Recording:
    """One frame has the stamp of the one before it."""
    return mended(rewrite(write(at.with_suffix(".ts")), lambda d: restamped(d, lambda n, t: t - 3600 * (n == HALF))))


@kind
def stamp_missing(at: Path) -> Recording:
    """One frame has no stamp."""
    return mended(rewrite(write(at.with_suffix(".ts")), lambda d: restamped(d, lambda n, t: None if n == HALF else t)))


@kind
def stamp_far_ahead(at: Path) -> Recording:
    """One frame is stamped a thousand seconds ahead."""
    return mended(rewrite(write(at.with_suffix(".ts")), lambda d: restamped(d, lambda n, t: t + 90_000_000 * (n == HALF))))


@kind
def stamp_back(at: Path) -> Recording:
    """One frame is stamped half a second too early."""
    return mended(rewrite(write(at.with_suffix(".ts")), lambda d: restamped(d, lambda n, t: t - 45_000 * (n == HALF))))


@kind
def stamps_in_pairs(at: Path) -> Recording:
    """Every second frame has the stamp of the one before it."""
    path = rewrite(write(at.with_suffix(".ts")), lambda d: restamped(d, lambda n, t: t - 3600 * (n % 2)))
    return shows(path, misread=True)


@kind
def clock_set_back(at: Path) -> Recording:
    """The camera's clock is set back by an hour while it records: time goes on."""
    path = rewrite(write(at.with_suffix(".ts")), lambda d: restamped(d, lambda n, t: (t - 324_000_000 * (n >= HALF)) % STAMPS))
    return shows(path, misread=True)


@kind
def stamp_near_the_end_ahead(at: Path) -> Recording:
    """Five frames before the end one is stamped a thousand seconds ahead."""
    return mended(rewrite(write(at.with_suffix(".ts")), lambda d: restamped(d, lambda n, t: t + 90_000_000 * (n == FRAMES - 5))))


@kind
def first_stamp_ahead(at: Path) -> Recording:
    """The first frame is stamped a thousand seconds ahead of all others."""
    path = rewrite(write(at.with_suffix(".ts")), lambda d: restamped(d, lambda n, t: t + 90_000_000 * (n == 0)))
    return replace(mended(path), begin_slack=2.01 / RATE)


@kind
def variable_rate(at: Path) -> Recording:
    """Frames when something moves: gaps of 20 to 400 ms."""
    times = np.cumsum(np.random.default_rng(3).integers(20, 400, FRAMES)) / 1000
    times = times - times[0]
    return replace_times(shows(write(at.with_suffix(".mkv"), times=times, time_base=Fraction(1, 1000)), time_slack=0.002), times)


@kind
def variable_rate_mp4(at: Path) -> Recording:
    """The same in MP4, with B frames."""
    times = np.cumsum(np.random.default_rng(4).integers(20, 400, FRAMES)) / 1000
    times = times - times[0]
    path = write(at.with_suffix(".mp4"), options=B_FRAMES, times=times, time_base=Fraction(1, 1000))
    return replace_times(shows(path, time_slack=0.002), times)


def with_pause(path: Path, **how: Any) -> Recording:
    """A recording that stands still for five minutes in its middle."""
    times = [i / RATE + (300 if i >= HALF else 0) for i in range(FRAMES)]
    return replace_times(shows(write(path, times=times, **how)), times)


@kind
def pause(at: Path) -> Recording:
    """Nothing was recorded for five minutes."""
    return with_pause(at.with_suffix(".mp4"))


@kind
def pause_ts(at: Path) -> Recording:
    """The same in a transport stream."""
    return with_pause(at.with_suffix(".ts"))


@kind
def restart(at: Path) -> Recording:
    """Two transport streams one behind the other: stamps begin anew, and time goes on."""
    halves = [write(at.with_suffix(f".{n}.ts"), range(n * HALF, (n + 1) * HALF)) for n in (0, 1)]
    return shows(joined(at.with_suffix(".ts"), halves), time_slack=1.01 / RATE, misread=True)


@kind
def restart_of_another_size(at: Path) -> Recording:
    """The same, and the second recording is twice as large."""
    halves = [write(at.with_suffix(f".{n}.ts"), range(n * HALF, (n + 1) * HALF), size=(320 << n, 240 << n)) for n in (0, 1)]
    return shows(joined(at.with_suffix(".ts"), halves), time_slack=1.01 / RATE, misread=True)


@kind
def wrap(at: Path) -> Recording:
    """A transport stream whose stamps run out after 26 hours and begin at 0."""
    return shows(write(at.with_suffix(".ts"), muxer={"output_ts_offset": f"{STAMPS / 90_000 - 1.2:.3f}"}))


@kind
def ticks_of_milliseconds(at: Path) -> Recording:
    """30000/1001 frames a second in Matroska, whose stamps are whole milliseconds."""
    rate = Fraction(30000, 1001)
    return shows(write(at.with_suffix(".mkv"), rate=rate), rate=rate)


@kind
def ntsc_avi(at: Path) -> Recording:
    """30000/1001 frames a second in AVI."""
    rate = Fraction(30000, 1001)
    return shows(write(at.with_suffix(".avi"), rate=rate), rate=rate, begin_slack=2.5 / rate)


@kind
def ticks_of_90000(at: Path) -> Recording:
    """MP4 that counts 1/90000 s, 30000/1001 frames a second, B frames."""
    rate = Fraction(30000, 1001)
    return shows(write(at.with_suffix(".mp4"), options=B_FRAMES, rate=rate, muxer={"video_track_timescale": "90000"}), rate=rate)


@kind
def one_frame_a_second(at: Path) -> Recording:
    """A time lapse."""
    return shows(write(at.with_suffix(".mp4"), rate=1), rate=1)


@kind
def four_seconds_a_frame(at: Path) -> Recording:
    """A time lapse, in FLV."""
    return shows(write(at.with_suffix(".flv"), range(HALF), rate=0.25), range(HALF), rate=0.25)


@kind
def last_frame_lasts(at: Path) -> Recording:
    """The last frame is shown for 30 seconds, until somebody ended the recording."""

    def lasting(packets: Packets) -> Packets:
        packets[-1].duration = round(30 / packets[-1].time_base)
        return packets

    return shows(write(at.with_suffix(".mp4"), edit=lasting))


@kind
def thousand_frames_a_second(at: Path) -> Recording:
    """A camera for motion that is too fast to see."""
    return shows(write(at.with_suffix(".mp4"), rate=1000), rate=1000)


@kind
def eight_frames_a_second(at: Path) -> Recording:
    """What a recorder saves at night, in AVI."""
    return shows(write(at.with_suffix(".avi"), rate=8), rate=8, begin_slack=2.5 / 8)


@kind
def twelve_and_a_half_frames_a_second(at: Path) -> Recording:
    """Every second frame of 25."""
    return shows(write(at.with_suffix(".ts"), rate=12.5), rate=12.5)


@kind
def fifteen_frames_a_second(at: Path) -> Recording:
    """In FLV, whose stamps are whole milliseconds."""
    return shows(write(at.with_suffix(".flv"), rate=15), rate=15)


@kind
def fifty_frames_a_second(at: Path) -> Recording:
    """With B frames in a transport stream."""
    return shows(write(at.with_suffix(".ts"), options=B_FRAMES, rate=50), rate=50)
