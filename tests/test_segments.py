import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError, UsageError
from pipeline.segments import segment_frames, segment_starts

FRAMES, LENGTH, STRIDE = st.integers(1, 200), st.integers(1, 40), st.integers(1, 60)


@given(FRAMES, LENGTH, STRIDE)
def test_every_frame_is_in_a_segment_when_the_stride_leaves_no_gap(frames, length, stride):
    stride = min(stride, length)
    numbers = segment_frames(segment_starts(frames, length, stride), length, frames)
    assert set(numbers.ravel().tolist()) == set(range(frames))


@given(FRAMES, LENGTH, STRIDE)
def test_no_window_leaves_the_video_and_first_and_last_frame_always_count(frames, length, stride):
    starts = segment_starts(frames, length, stride)
    assert starts[0] == 0
    assert (np.diff(starts) > 0).all()
    assert frames <= length or starts[-1] + length == frames
    numbers = segment_frames(starts, length, frames)
    assert numbers.min() == 0
    assert numbers.max() == frames - 1


@given(FRAMES, LENGTH, STRIDE)
def test_all_starts_but_the_last_are_multiples_of_the_stride_and_none_that_fits_is_left_out(frames, length, stride):
    starts = segment_starts(frames, length, stride).tolist()
    regular = [start for start in range(0, frames, stride) if start + length <= frames]
    assert starts[: len(regular)] == regular
    assert len(starts) - len(regular) in (0, 1)


@given(FRAMES, LENGTH, STRIDE)
def test_a_segment_is_consecutive_frames_and_only_a_short_video_repeats_its_last_one(frames, length, stride):
    numbers = segment_frames(segment_starts(frames, length, stride), length, frames)
    assert numbers.shape[1] == length
    assert numbers.dtype == np.int64
    for row in numbers.tolist():
        assert row == [min(row[0] + step, frames - 1) for step in range(length)]
    if frames >= length:
        assert (np.diff(numbers, axis=1) == 1).all()


def test_a_tail_that_the_stride_misses_gets_a_window_that_ends_at_the_last_frame():
    assert segment_starts(21, 8, 4).tolist() == [0, 4, 8, 12, 13]
    assert segment_starts(20, 8, 4).tolist() == [0, 4, 8, 12]


def test_a_video_shorter_than_a_segment_is_one_padded_segment():
    starts = segment_starts(3, 5, 2)
    assert starts.tolist() == [0]
    assert segment_frames(starts, 5, 3).tolist() == [[0, 1, 2, 2, 2]]


@pytest.mark.parametrize(("length", "stride", "word"), [(0, 1, "segment"), (-3, 1, "segment"), (8, 0, "stride")])
def test_a_length_or_stride_below_one_is_bad_usage(length, stride, word):
    with pytest.raises(UsageError, match=word):
        segment_starts(10, length, stride)


def test_a_video_without_frames_is_an_error_but_not_the_caller_s_flag():
    with pytest.raises(PipelineError, match="0 frames") as caught:
        segment_starts(0, 8, 4)
    assert not isinstance(caught.value, UsageError)
    with pytest.raises(PipelineError, match="0 frames"):
        segment_frames([0], 8, 0)
    with pytest.raises(UsageError, match="segment"):
        segment_frames([0], 0, 8)
