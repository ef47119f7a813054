"""Clips for browsers: the frames of a source at their own times, in their true shape, cut out where somebody is."""

import io
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from benchmarks.recordings import EVERY_FRAME
from pipeline.decoding import clips
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.requests import ClipRequest, TrackRequest
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import ClipPart, ClipStart, Event, Rejected, TrackBoxes
from pipeline.errors import VideoError
from tests.decoding.in_process import answered_here
from tests.decoding.test_recordings import gray, pixels, recording  # noqa: F401 - a fixture
from tests.decoding.test_video import write_video
from tests.recordings.files import Recording, add_video, barcodes, encoded
from tests.recordings.kinds import KINDS

# Of each way in which containers and codecs keep times and shapes one.
SOME = [
    *(
        "h264-b-frames",
        "hevc-open-gop",
        "mpeg2-ts",
        "mpeg4-packed",
        "mjpeg",
        "vp9",
        "av1",
        "wmv2",
        "avi-b-frames",
        "asf-b-frames",
    ),
    *("mxf", "flv", "raw-h264", "program-stream-b-frames", "edit-list", "turned-90", "size-changes", "pause", "cut-off-mkv"),
]
assert set(SOME) <= set(KINDS)
Written = Callable[[str], Recording]


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(Sampling(memory_limit=1 << 30, cpu_limit=60)) as started:
        yield started


@pytest.fixture(scope="module")
def reader() -> Iterator[Decoder]:
    with Decoder(EVERY_FRAME) as started:
        yield started


def played(events: list[Event]) -> tuple[ClipStart, list[float], list[np.ndarray]]:
    """What a clip says of itself, the times of its frames in seconds, and the frames, uint8 [h, w, 3]."""
    assert not [event.message for event in events if isinstance(event, Rejected)]
    start = events[0]
    assert isinstance(start, ClipStart)
    data = b"".join(event.data for event in events if isinstance(event, ClipPart))
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
        return start, [float(frame.time) for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames]


@pytest.mark.parametrize("name", SOME)
def test_every_recording_becomes_a_clip_of_the_same_frames(
    name: str,
    recording: Written,  # noqa: F811
    decoder: Decoder,
    reader: Decoder,
) -> None:
    path = str(recording(name).path)
    events = list(decoder.answers(ClipRequest(path, 0.0, 60.0)))
    start, times, frames = played(events)
    _, expected, their_frames = pixels(list(reader.events(path)))
    expected, their_frames = expected[expected <= 60], their_frames[expected <= 60]
    assert start.codec.startswith(("avc1", "vp09"))
    assert barcodes(gray(np.stack([cv2.resize(frame, (320, 240), interpolation=cv2.INTER_AREA) for frame in frames]))) == (
        barcodes(gray(their_frames))
    )
    assert times[0] == 0 and times[1:] == pytest.approx(expected[1:].tolist(), abs=1e-3)


def test_a_variable_frame_rate_stays_one(tmp_path: Path, decoder: Decoder) -> None:
    given = np.cumsum([0, 0.04, 0.2, 0.04, 1.5, 0.08, 0.04]).tolist()
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = add_video(container, "libx264", {}, 25, (64, 48), time_base=Fraction(1, 1000))
        container.mux(encoded(stream, (np.full((48, 64, 3), 30 * n, np.uint8) for n in range(7)), given))
    _, times, frames = played(list(decoder.answers(ClipRequest(str(tmp_path / "a.mp4"), 0.0, 60.0))))
    assert times == pytest.approx(given, abs=2e-3)
    assert [frame.mean() for frame in frames] == pytest.approx([30.0 * n for n in range(7)], abs=5)


@pytest.mark.parametrize(("start", "end"), [(0.3, 1.0), (7.05, 9.0), (20.0, 29.05), (29.85, 60.0), (100.0, 110.0)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi", ".h264"])
def test_a_stretch_is_the_frames_of_that_time_however_far_in_it_is(
    tmp_path: Path, decoder: Decoder, suffix: str, start: float, end: float
) -> None:
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w") as container:
        options = {"g": "20", "bf": "0"}
        stream = add_video(container, "libx264", options, 10, (64, 48))
        pictures = (np.full((48, 64, 3), 4 * (n % 60), np.uint8) for n in range(300))
        container.mux(encoded(stream, pictures, [Fraction(n, 10) for n in range(300)]))
    _, times, frames = played(list(decoder.answers(ClipRequest(str(path), start, end, frame_rate=10.0))))
    expected = [n for n in range(300) if start - 1e-3 <= n / 10 <= end] or [299]  # behind the end the last one
    assert [round(frame.mean() / 4) for frame in frames] == pytest.approx([n % 60 for n in expected], abs=1)
    assert len(times) == len(expected) and times[1:] == pytest.approx([n / 10 - start for n in expected[1:]], abs=2e-3)


def test_pixels_are_made_square(tmp_path: Path, decoder: Decoder) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = add_video(container, "libx264", {}, 10, (352, 288))
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
        container.mux(encoded(stream, [np.zeros((288, 352, 3), np.uint8)] * 3, [0, 0.1, 0.2]))
    start, _, _ = played(list(decoder.answers(ClipRequest(str(tmp_path / "a.mp4"), 0.0, 1.0))))
    assert (start.width, start.height) == (512, 288)


@pytest.mark.parametrize(("size", "expected"), [((1920, 1080), (1280, 720)), ((1080, 1920), (720, 1280)), ((63, 47), (64, 48))])
def test_a_large_picture_is_made_smaller_and_sides_even(
    tmp_path: Path, decoder: Decoder, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    cv2.imwrite(str(tmp_path / "photo.png"), np.zeros((size[1], size[0], 3), np.uint8))
    start, times, _ = played(list(decoder.answers(ClipRequest(str(tmp_path / "photo.png"), 0.0, 1.0))))
    assert (start.width, start.height) == expected and times == [0.0]


def test_a_crop_follows_the_box(tmp_path: Path, decoder: Decoder) -> None:
    """Someone white, 20 x 40 pixels, walks over a grey picture; halves of frames between two boxes lie between them."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = add_video(container, "libx264", {"crf": "5"}, 10, (320, 240))
        pictures = []
        for n in range(20):
            picture = np.full((240, 320, 3), 90, np.uint8)
            picture[100:140, 10 * n + 20 : 10 * n + 40] = 255
            pictures.append(picture)
        container.mux(encoded(stream, pictures, [n / 10 for n in range(20)]))
    boxes = tuple((n / 10, (10.0 * n + 20, 100.0, 20.0, 40.0)) for n in range(0, 20, 3))
    start, times, frames = played(list(decoder.answers(ClipRequest(str(tmp_path / "a.mp4"), 0.0, 2.0, boxes))))
    assert len(times) == 20 and start.height == 128 and start.width == pytest.approx(64, abs=2)
    for frame in frames[:19]:  # the last one is behind the last box
        rows, columns = np.nonzero(frame.mean(axis=2) > 200)
        assert rows.mean() == pytest.approx(start.height / 2, abs=3) and columns.mean() == pytest.approx(start.width / 2, abs=3)


def test_a_small_clip_is_as_small_as_was_said_whatever_it_shows_and_has_every_frame(tmp_path: Path, decoder: Decoder) -> None:
    """Noise is what no encoder makes small."""
    rng = np.random.default_rng(1)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = add_video(container, "libx264", {"crf": "18", "preset": "ultrafast"}, 25, (480, 360))
        pictures = (rng.integers(0, 255, (360, 480, 3)).astype(np.uint8) for _ in range(125))
        container.mux(encoded(stream, pictures, [Fraction(n, 25) for n in range(125)]))
    path = str(tmp_path / "a.mp4")
    for boxes, size in (((), (256, 192)), (((0.0, (100.0, 20.0, 100.0, 320.0)),), (66, 208))):
        events = list(decoder.answers(ClipRequest(path, 0.4, 4.4, boxes, small=True)))
        start, times, _ = played(events)
        assert (start.width, start.height) == pytest.approx(size, abs=2)
        assert times == pytest.approx([n / 25 for n in range(len(times))], abs=2e-3) and len(times) == 101
        (part,) = [event for event in events if isinstance(event, ClipPart)]
        assert len(part.data) < 32_000


def test_the_first_bytes_come_before_the_last_frame_is_decoded(tmp_path: Path, decoder: Decoder) -> None:
    path = str(write_video(tmp_path / "a.mp4", 600, (640, 480), 10))
    list(decoder.answers(ClipRequest(path, 0.0, 1.0)))  # the child is there
    began, told = time.monotonic(), []
    for event in decoder.answers(ClipRequest(path, 0.0, 60.0)):
        if isinstance(event, ClipPart):
            told.append(time.monotonic() - began)
    assert len(told) > 100 and told[1] < max(0.5, told[-1] / 4)  # the second one holds pictures


def test_what_is_no_video_is_refused_with_its_reason(tmp_path: Path, decoder: Decoder) -> None:
    (tmp_path / "a.mp4").write_bytes(b"nothing of the kind")
    for path, reason in ((tmp_path / "a.mp4", "not_a_video"), (tmp_path / "b.mp4", "missing")):
        (event,) = decoder.answers(ClipRequest(str(path), 0.0, 1.0))
        assert isinstance(event, Rejected) and event.reason == reason


def test_making_a_clip_has_limits(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", 1500, (640, 480), 50))
    with Decoder(Sampling(cpu_limit=0.5)) as decoder:
        *_, last = decoder.answers(ClipRequest(path, 0.0, 60.0))
    assert isinstance(last, Rejected) and last.reason == "time_limit"


def test_a_track_is_where_the_boxes_file_says(tmp_path: Path, decoder: Decoder) -> None:
    (tmp_path / "boxes.txt").write_text("1,7,10,20,30,40\n3,7,12,20,30,40\n2,8,1,1,9,9\n")
    (found,) = decoder.answers(TrackRequest(str(tmp_path / "boxes.txt"), 7))
    assert found == TrackBoxes((0, 2), ((10.0, 20.0, 30.0, 40.0), (12.0, 20.0, 30.0, 40.0)))
    assert list(decoder.answers(TrackRequest(str(tmp_path / "boxes.txt"), 9))) == [TrackBoxes((), ())]


def test_another_encoder_stands_in_where_there_is_no_x264(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_video(tmp_path / "a.mp4", 20))
    made = []
    for one in clips.ENCODERS:
        monkeypatch.setattr(clips, "ENCODERS", (("no-such-encoder", "", {}), one))
        try:
            start, times, _ = played(list(answered_here(ClipRequest(path, 0.0, 60.0), EVERY_FRAME)))
        except VideoError as error:
            assert "clips cannot be made here" in error.message
            continue
        assert start.codec == one[1] and len(times) == 20
        assert len(played(list(answered_here(ClipRequest(path, 0.0, 60.0, small=True), EVERY_FRAME)))[1]) == 20
        made.append(one[0])
        monkeypatch.undo()
    assert len(made) > 1  # libx264 and libvpx-vp9 in the wheels of PyAV
