"""Boxes files: what is read from them, what is refused with its line, and what of a box lies inside the frame."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decoding.boxes import Tracks, clip_box, read_boxes
from pipeline.errors import VideoError
from pipeline.storage.location import resolve

SHARED_BOXES = Path(__file__).parents[2].parent / "shared/data/vtest_tracklets/boxes.csv"

PIXELS = st.floats(-1e4, 1e4, width=32)
SIDES = st.floats(1.5, 1e4, width=32)  # a file of sides up to 1 alone looks normalised
BOXES = st.dictionaries(
    st.tuples(st.integers(1, 10**7), st.integers(0, 10**6)), st.tuples(PIXELS, PIXELS, SIDES, SIDES), min_size=1
)


def _mot(boxes: dict[tuple[int, int], tuple[float, ...]], tail: str = ",1,-1,-1,-1", end: str = "\n") -> bytes:
    lines = (f"{frame},{track},{','.join(map(repr, box))}{tail}" for (frame, track), box in boxes.items())
    return end.join([*lines, ""]).encode()


def _by_frame_and_track(tracks: Tracks) -> dict[tuple[int, int], tuple[float, ...]]:
    return {
        (int(frame) + 1, track): tuple(map(float, box))
        for track, (frames, boxes) in tracks.items()
        for frame, box in zip(frames, boxes, strict=True)
    }


class TestReading:
    @settings(deadline=None)
    @given(BOXES, st.sampled_from(["", ",1,-1,-1,-1", ",0.5,person é"]), st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))
    def test_any_boxes_read_back(self, boxes: dict[tuple[int, int], tuple[float, ...]], tail: str, end: str) -> None:
        tracks = read_boxes(_mot(boxes, tail, end))
        assert _by_frame_and_track(tracks) == boxes
        assert list(tracks) == sorted(tracks)
        for track in tracks.values():
            assert (track.frames.dtype, track.boxes.dtype) == (np.int64, np.float32)
            assert track.boxes.shape == (len(track.frames), 4)
            assert np.all(np.diff(track.frames) > 0)

    @pytest.mark.parametrize(
        "text",
        [
            b"frame,id,x,y,w,h\n2,7,1.5,-2,30,40\n",
            b"2, 7, 1.5, -2, 30, 40\r\n\r\n",
            b"\n\n 2,7 ,1.5,-2,30,40",
            b"\xef\xbb\xbf2,7,1.5,-2,30,40\n",
            b"\xef\xbb\xbfframe, id, bb_left, bb_top, bb_width, bb_height\n   \n2,7,1.5,-2,30,40\n\t\n",
            b"2.000000e+00,7.0,1.5,-2e0,30.0,40\n",
            b"2;7;1.5;-2;30;40\n",
            b"2\t7\t1.5\t-2\t30\t40\n",
            b" \n  2 7\t1.5   -2 30 40 \r\n\t\r\n",
            b"\xef\xbb\xbf 2  7 1.5 -2 30 40\r",
            b" frame id  x y w h \n\n 2  7 1.5 -2 30 40",
            b'2,7,1.5,-2,30,40,nan,\xff\xfe,"\n',
        ],
    )
    def test_spellings_that_are_tolerated(self, text: bytes) -> None:
        assert _by_frame_and_track(read_boxes(text)) == {(2, 7): (1.5, -2.0, 30.0, 40.0)}

    @pytest.mark.parametrize(
        "text",
        [
            b"1,1,0,0,5,5,1,-1,-1,-1\n\n2, 1, 0, 0, 5, 5, 1, -1, -1, -1\r\n",
            b"  1  1\t0 0 5.25  5 -1 \n 2  1  0 0   5  5 -1\r\n  3 1 0 0 5 5 -1 ",
            b"\xef\xbb\xbf frame;id;x1;y1;x2;y2;class\n1;1;0;0;5;5;person\n",
            b"1,1,0,0,5,5,1,1,0.5\n2,1,0,0,5,5,0,12,0.5\n",
        ],
    )
    def test_ordinary_files_are_not_read_line_by_line(self, text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.decoding.boxes._read_rows_slowly", lambda *_: pytest.fail("read line by line"))
        assert list(read_boxes(text)) == [1]

    def test_a_million_lines_take_seconds(self) -> None:
        text = b"".join(b"%d,%d,%d.5,20.25,48.0,116.6,1,-1,-1,-1\n" % (i // 10 + 1, i % 10, i % 700) for i in range(10**6))
        begun = time.process_time()
        tracks = read_boxes(text)
        assert sum(len(track.frames) for track in tracks.values()) == 10**6
        assert time.process_time() - begun < 20

    @pytest.mark.shared
    def test_the_real_file(self) -> None:
        if not SHARED_BOXES.exists():
            pytest.skip(f"{SHARED_BOXES.name} of vtest_tracklets is not in ../shared")
        rows = np.loadtxt(SHARED_BOXES, delimiter=",")
        tracks = read_boxes(resolve(SHARED_BOXES))
        assert {track: len(tracks[track].frames) for track in tracks} == {
            int(track): int(count) for track, count in zip(*np.unique(rows[:, 1], return_counts=True), strict=True)
        }
        np.testing.assert_array_equal(
            tracks[4].boxes, rows[rows[:, 1] == 4][:, 2:6].astype(np.float32)[np.argsort(rows[rows[:, 1] == 4][:, 0])]
        )


class TestRefusing:
    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            (b"", "no rows"),
            (b"\n \r\n", "no rows"),
            (b"frame,id,x,y,w,h\n", "no rows"),
            (b"1,1,0,0,5,5\n\n2,1,0,0,5\n", "line 3 .* has 5 columns; the rows before have 6"),
            (b"1,1,0,0,5\n", "line 1 .* has 5 columns"),
            (b"1 1 0 0 5\n", "line 1 .* has 5 columns"),
            (b"1 1 0 0 5 5\n\n2,1,0,0,5,5\n", "line 3 .* has 1 columns; the rows before have 6"),
            (b"1,1,0,0,5,5\n2,1,0,zero,5,5\n", "line 2 .*: y is 'zero', not a number"),
            (b"1,1,0,0,5,5\n2,1,,0,5,5\n", "line 2 .*: x is '', not a number"),
            (b"frame,id,x,y,w,h\n\nframe,id,x,y,w,h\n", "line 3 .*: frame is 'frame', not a number"),
            (b"frame,id,x,y,w,h\n1,1,0,0,5,nan\n", "line 2 .* not finite"),
            (b"1,1,inf,0,5,5\n", "line 1 .* not finite"),
            (b"1,1,1e39,0,5,5\n", "line 1 .* not finite"),
            (b"1,1,0,0,5,5\n\r\n0,1,0,0,5,5\n", "line 3 .* frame below 1"),
            (b"1.5,1,0,0,5,5\n", "line 1 .* not a whole number"),
            (b"1,99999999999999999999,0,0,5,5\n", "line 1 .* not a whole number"),
            (b"1,-1,0,0,5,5\n", "line 1 .* negative id"),
            (b"2,1,0,0,5,5\n1,1,0,0,0,5\n", "line 2 .* not positive"),
            (b"1,1,0,0,5,-5\n", "line 1 .* not positive"),
            (b"1,1,0,0,5,1e-50\n", "line 1 .* not positive"),
            (b"3,2,0,0,5,5\n3,1,0,0,5,5\n3,2,0,0,6,6\n", "line 3 .* gives track 2 a second box in frame 3"),
            (b"1,1,0,0,5,1_0\n", "line 1 .*: h is '1_0', not a number"),
        ],
    )
    def test_faults_are_named_with_their_line(self, text: bytes, sentence: str) -> None:
        with pytest.raises(VideoError, match=sentence) as refused:
            read_boxes(text)
        assert refused.value.reason == "boxes_invalid"

    @settings(deadline=None)
    @given(BOXES, st.data())
    def test_a_damaged_file_is_read_or_refused_and_nothing_else(
        self, boxes: dict[tuple[int, int], tuple[float, ...]], data: st.DataObject
    ) -> None:
        text = bytearray(_mot(boxes))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(text)))
            text[at : at + data.draw(st.integers(0, 6))] = data.draw(
                st.one_of(st.binary(max_size=4), st.sampled_from([b",", b"\n", b"nan", b"1e999", b"-", b'"', b"\r", b"\0"]))
            )
        try:
            tracks = read_boxes(bytes(text))
        except VideoError as error:
            assert error.reason == "boxes_invalid"
        else:
            assert tracks
            assert all(np.isfinite(track.boxes).all() for track in tracks.values())

    @settings(deadline=None)
    @given(st.binary(max_size=200))
    def test_any_bytes_are_read_or_refused(self, text: bytes) -> None:
        try:
            assert read_boxes(text)
        except VideoError as error:
            assert error.reason == "boxes_invalid"

    def test_a_missing_file_is_a_reason(self, tmp_path: Path) -> None:
        with pytest.raises(VideoError, match="no such file") as refused:
            read_boxes(resolve(tmp_path / "boxes.csv"))
        assert refused.value.reason == "boxes_missing"


class TestClipping:
    @pytest.mark.parametrize(
        ("box", "expected"),
        [
            ((10, 20, 30, 25), (10, 20, 40, 45)),
            ((-5, -5, 10, 10), (0, 0, 5, 5)),
            ((90, 40, 1e30, 1e30), (90, 40, 100, 50)),
            ((10.4, 20.6, 4.0, 4.0), (10, 21, 14, 25)),
            ((99, 20, 30, 20), None),
            ((98, 20, 30, 20), (98, 20, 100, 40)),
            ((-30, 20, 20, 20), None),
            ((200, 20, 20, 20), None),
            ((10, 20, 1, 20), None),
        ],
    )
    def test_what_lies_inside(self, box: tuple[float, ...], expected: tuple[int, ...] | None) -> None:
        assert clip_box(box, width=100, height=50) == expected  # type: ignore[arg-type]

    @settings(deadline=None)
    @given(st.tuples(PIXELS, PIXELS, SIDES, SIDES), st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 9))
    def test_the_edges_are_within_the_frame_and_half_a_pixel_of_the_box(
        self, box: tuple[float, float, float, float], width: int, height: int, min_side: int
    ) -> None:
        clipped = clip_box(np.array(box, np.float32), width, height, min_side)
        x, y, w, h = box
        inside = (max(x, 0), max(y, 0), min(x + w, width), min(y + h, height))
        if clipped is None:
            assert min(inside[2] - inside[0], inside[3] - inside[1]) < min_side + 1
            return
        x0, y0, x1, y1 = clipped
        assert 0 <= x0 <= x1 - min_side
        assert 0 <= y0 <= y1 - min_side
        assert x1 <= width
        assert y1 <= height
        assert all(math.isclose(edge, exact, abs_tol=0.501) for edge, exact in zip(clipped, inside, strict=True))
