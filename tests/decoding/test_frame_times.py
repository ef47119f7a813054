"""When frames were recorded, from stamps that are right, wrong, missing, repeated or of another clock."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.decoding.frame_times import LONGEST_PAUSE, LOOKAHEAD, FrameTimes

STEP = 0.04
GOOD = [round(STEP * number, 2) for number in range(30)]


def timed(stamps: list[float | None], duration: float = STEP) -> tuple[list[float], FrameTimes]:
    times = FrameTimes(duration)
    found = list(times.of(zip(stamps, itertools.count())))
    assert [item for _, item in found] == list(range(len(stamps)))
    return [time for time, _ in found], times


def test_good_stamps_stay_as_they_are_with_variable_rates_and_pauses():
    stamps = [2.5, 2.54, 2.7, 2.71, 300.0, 300.5, 9000.0]
    found, times = timed(stamps)
    assert found == stamps
    assert (times.mended, times.missing, times.restarts) == (0, 0, 0)


@pytest.mark.parametrize("place", [0, 1, 5, 28])
@pytest.mark.parametrize("wrong", [None, float("nan"), -7.0, 0.2, 9e15])
def test_one_bad_stamp_mends_one_stamp(place: int, wrong: float | None):
    stamps: list[float | None] = [*GOOD]
    stamps[place] = wrong
    found, times = timed(stamps)
    others = [number for number in range(30) if number != place]
    assert [found[number] for number in others] == [GOOD[number] for number in others]
    if wrong is None or np.isnan(wrong):  # between two stamps that are two frames apart the rate confirms the time
        assert (times.missing, times.mended) == (place == 0, 0)
    else:
        assert (times.missing, times.mended) == (0, found[place] != wrong)
    assert times.restarts == 0
    if found[place] != wrong:
        assert found[place] == pytest.approx(GOOD[place])


def test_a_repeated_stamp_lies_between_its_neighbours():
    found, times = timed([0.0, 0.04, 0.08, 0.08, 0.16, 0.2])
    assert found == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16, 0.2])
    assert times.mended == 1


def test_missing_stamps_are_spread_between_those_that_are_there():
    found, times = timed([None, 0.04, None, None, 0.16, None])
    assert found == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16, 0.2])
    assert times.missing == 2  # the first and the last; the rate confirms the others


def test_missing_stamps_in_a_pause_are_a_guess():
    found, times = timed([0.0, 0.04, None, None, 9.04, 9.08])
    assert found == pytest.approx([0.0, 0.04, 3.04, 6.04, 9.04, 9.08])
    assert times.missing == 2


def test_a_recording_that_begins_anew_goes_on_where_the_one_before_ended():
    found, times = timed([*GOOD, *GOOD])
    assert found == pytest.approx([STEP * number for number in range(60)])
    assert (times.restarts, times.mended) == (1, 0)


def test_a_counter_of_33_bits_that_is_read_as_run_over_is_another_clock():
    far = 2**33 / 90000 - 3600
    found, times = timed([*GOOD, *(far + stamp for stamp in GOOD)])
    assert found == pytest.approx([STEP * number for number in range(60)])
    assert times.restarts == 1


def test_the_longest_pause_is_a_pause():
    assert timed([0.0, 0.04, LONGEST_PAUSE, LONGEST_PAUSE + 1])[0] == [0.0, 0.04, LONGEST_PAUSE, LONGEST_PAUSE + 1]


def test_a_clock_set_back_by_less_than_the_lookahead_squeezes_some_frames_and_shifts_none():
    found, times = timed([0.0, 0.04, 0.08, 0.12, 0.04, 0.08, 0.12, 0.16, 0.2])
    assert found[:4] == [0.0, 0.04, 0.08, 0.12]
    assert found[-2:] == [0.16, 0.2]
    assert times.mended == 3


def test_stamps_that_stand_still_give_the_source_s_rate():
    found, times = timed([0.0, *[5.0] * 40])
    assert found == pytest.approx([0.0, *(5.0 + STEP * number for number in range(40))])
    assert (times.mended, times.restarts) == (39, 0)


def test_without_any_stamp_the_rate_counts_from_zero():
    found, times = timed([None] * 20)
    assert found == pytest.approx([STEP * number for number in range(20)])
    assert times.missing == 20


@example([None, 0.84, 0.32, None, None, 0.32, 0.41])  # a new clock whose 0.32 is our last time but for rounding
@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6), st.sampled_from(GOOD)), max_size=60))
def test_times_ascend_whatever_the_stamps_are_and_every_frame_has_one(stamps: list[float | None]):
    found, _ = timed(stamps)
    assert len(found) == len(stamps)
    assert np.all(np.diff(found) > 0)


def test_no_more_frames_are_held_than_it_takes_to_judge_one():
    held = 0
    most = 0

    def source():
        nonlocal held, most
        for number in range(200):
            held += 1
            most = max(most, held)
            yield (0.0 if number > 50 else number * STEP), number

    for _ in FrameTimes(STEP).of(source()):
        held -= 1
    assert most <= LOOKAHEAD + 2
