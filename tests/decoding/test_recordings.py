"""Recordings as they are in the field: every frame once, in its place, at its time, and the same pixels whoever reads it."""

import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

import pipeline.decoding.recording
from benchmarks.recordings import EVERY_FRAME, TEN_A_SECOND, of_product
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.dividing import NOT_AS_WHOLE
from pipeline.decoding.reading import Reader
from pipeline.decoding.video import Chunk, Event, Rejected, VideoInfo
from pipeline.errors import VideoError
from pipeline.search.targets import video_target
from tests.decoding.in_process import asked, is_the_same, read_chunks
from tests.recordings.files import Recording, barcodes, faults, read_by_ffmpeg, read_by_opencv, restamped, sample_times
from tests.recordings.kinds import KINDS

# Where OpenCV is no witness: it decodes no AV1, draws no interlaced pictures, and takes the first stream, not the largest.
NOT_FOR_OPENCV = ("av1", "h264-interlaced", "mpeg2-ts", "two-video-streams", "two-video-streams-ts", "cover-picture")
# Where what a reader shows of frames that are damaged or lack what they refer to is its own choice.
DAMAGED = (
    *(
        "begins-between-key-frames",
        "begins-between-key-frames-mp4",
        "open-gop-without-its-start",
        "intra-refresh-without-its-start",
    ),
    *(
        "half-a-jpeg",
        "zeroed-packets",
        "flipped-bits",
        "lost-packets",
        "lost-packets-mp4",
        "lost-ts-packets",
        "ts-from-within-a-packet",
    ),
    *("cut-off-mp4", "cut-off-fragmented-mp4", "cut-off-mkv", "cut-off-avi", "cut-off-ts", "cut-off-raw"),
)
ONE_WAY = ("avi-b-frames", "h264-open-gop", "edit-list", "mpeg2-ts", "mpeg4-packed", "turned-90", "size-changes", "flipped-bits")


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Recording]:
    """Writes a kind when it is first asked for."""
    folder, written = tmp_path_factory.mktemp("recordings"), dict[str, Recording]()

    def of_kind(name: str) -> Recording:
        if name not in written:
            written[name] = KINDS[name](folder / name)
        return written[name]

    return of_kind


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(EVERY_FRAME) as started:
        yield started


@pytest.fixture(scope="module")
def sampler() -> Iterator[Decoder]:
    with Decoder(TEN_A_SECOND) as started:
        yield started


def pixels(events: list[Event]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers, times and frames of all chunks. A rejected source fails the test with its message."""
    assert not [event.message for event in events if isinstance(event, Rejected)]
    chunks = [event for event in events if isinstance(event, Chunk)]
    number, time, frames = (np.concatenate([getattr(p, name) for p in chunks]) for name in ("frame_index", "time_s", "frames"))
    return number, time, frames


def gray(frames: np.ndarray) -> np.ndarray:
    return frames.mean(axis=3).astype(np.uint8)


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_in_its_place_at_its_time_however_many_are_sampled(
    name: str, recording: Callable[[str], Recording], decoder: Decoder, sampler: Decoder
) -> None:
    truth = recording(name)
    events = list(decoder.events(str(truth.path)))
    if not truth.ids:
        (said,) = [event for event in events if isinstance(event, Rejected)]
        assert said.reason in ("truncated", "undecodable") and not any(isinstance(event, Chunk) for event in events)
        return
    numbers, times, frames = pixels(events)
    assert numbers.tolist() == list(range(len(numbers))) and np.all(np.diff(times) > 0)
    assert not faults(truth, barcodes(gray(frames)), times.tolist())
    some, their_times, their_frames = pixels(list(sampler.events(str(truth.path))))
    assert some.tolist() == sample_times(times.astype(np.float64), TEN_A_SECOND.rate).tolist()
    assert np.array_equal(times[some], their_times) and np.array_equal(frames[some], their_frames)


# Kinds that are certainly cut; of the others whatever is not safe stays whole.
CUT = (
    *("h264-baseline", "h264-b-frames", "h264-b-pyramid", "fragmented-mp4", "mov", "mkv", "m2ts", "flv"),
    *("variable-rate-mp4", "sound-before-the-picture-ts", "turned-90"),
)


@pytest.mark.parametrize("name", KINDS)
def test_a_recording_of_any_kind_shows_the_same_in_stretches_or_stays_whole(
    name: str, recording: Callable[[str], Recording]
) -> None:
    path = recording(name).path
    try:
        count = is_the_same(path)
    except VideoError as error:
        count = 0
        if error.reason != NOT_AS_WHOLE:  # reading the whole says the same
            with pytest.raises(VideoError) as refused:
                asked(path)
            assert refused.value.reason == error.reason
    if name in CUT:
        assert count == 3


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed; it is the independent reader")
@pytest.mark.parametrize("name", KINDS)
def test_ffmpeg_finds_in_a_recording_what_was_put_in(name: str, recording: Callable[[str], Recording]) -> None:
    truth = recording(name)
    ids, times = read_by_ffmpeg(truth.path)
    assert not faults(truth, ids, times, with_times=not truth.misread) if truth.ids else not ids


@pytest.mark.parametrize("name", [name for name in KINDS if name not in NOT_FOR_OPENCV + DAMAGED])
def test_opencv_counts_the_frames_of_a_sound_recording_alike(name: str, recording: Callable[[str], Recording]) -> None:
    truth = recording(name)
    assert not truth.unsure and read_by_opencv(truth.path) == list(truth.ids)


# What the row says of a kind; of every other kind it says nothing.
GUESS, MENDED, ANEW = "frames a second were guessed", "time stamps cannot be", "stamps begin anew"
SIZES, GAP, FOLLOWS = "of another size", "packets are broken or missing", "another recording follows"
NO_PICTURE, MADE_UP, SHORT = "packets gave no picture", "frames are damaged", "the file says that it is"
SAID = {
    **dict.fromkeys(("raw-h264-without-rate", "raw-mjpeg"), GUESS),
    **dict.fromkeys(("hevc-cut-at-cra", "begins-between-key-frames", "begins-between-key-frames-mp4"), NO_PICTURE),
    **dict.fromkeys(("open-gop-without-its-start", "intra-refresh-without-its-start", "ts-from-within-a-packet"), NO_PICTURE),
    **dict.fromkeys(("two-video-streams", "two-video-streams-ts"), "of 2 video streams the largest was taken"),
    "largest-stream-damaged": "1 larger without any picture",
    **dict.fromkeys(
        ("joined-mp4", "joined-flv", "joined-asf", "joined-ts-of-another-program", "second-camera-joins-late"), FOLLOWS
    ),
    **dict.fromkeys(("stamp-repeated", "stamp-far-ahead", "stamp-back", "stamps-in-pairs", "stamp-near-the-end-ahead"), MENDED),
    **dict.fromkeys(("first-stamp-ahead", "restart", "restart-of-another-size", "joined-mkv", "clock-set-back"), ANEW),
    **dict.fromkeys(("size-changes", "size-changes-raw", "size-changes-mkv"), SIZES),
    **dict.fromkeys(("zeroed-packets", "lost-packets", "lost-packets-mp4", "half-a-jpeg"), GAP),
    **dict.fromkeys(("flipped-bits", "lost-ts-packets", "cut-off-avi", "cut-off-raw", "cut-off-ts"), MADE_UP),
    **dict.fromkeys(("cut-off-mp4", "cut-off-mkv"), SHORT),
    **dict.fromkeys(("cut-off-fragmented-mp4", "zeros-after-ts"), "1 passed over"),
}
# FFmpeg's muxer of program streams gives a stamp to the wrong frame where its packets begin so; it is mended and said.
ROUGHLY_STAMPED = ("program-stream", "program-stream-b-frames", "hikvision")


@pytest.mark.parametrize("name", KINDS)
def test_what_is_lost_or_guessed_is_said_and_nothing_of_a_sound_recording(
    name: str, recording: Callable[[str], Recording]
) -> None:
    truth = recording(name)
    if truth.ids:
        info = list(read_chunks(str(truth.path), None, EVERY_FRAME))[-1]
        assert isinstance(info, VideoInfo)
        said = " ".join([*info.remarks, f"{info.passed_over} passed over"])
        if name in ROUGHLY_STAMPED:
            assert said == "0 passed over" or (MENDED in said and said.endswith(" 0 passed over"))
        else:
            assert (SAID[name] in said) if name in SAID else said == "0 passed over", said


@pytest.mark.parametrize("name", KINDS)
def test_a_frame_that_is_sought_is_the_one_that_reading_from_the_start_gives(
    name: str, recording: Callable[[str], Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = recording(name)
    monkeypatch.setattr(pipeline.decoding.recording, "FIRST_SOUGHT", 0)

    def opened() -> Reader:
        return pipeline.decoding.recording.Recording(truth.path, name, EVERY_FRAME)

    every = [(frame.number, frame.time_s, frame.picture()) for frame in opened().frames()] if truth.ids else []
    for number, time_s, pixels_then in every[3::13]:
        (found,) = opened().frames_at({number: time_s})
        near = opened().frame_near(time_s)
        for frame in (found, near):
            assert frame.time_s == pytest.approx(time_s, abs=1e-3) and np.array_equal(frame.picture(), pixels_then)
        assert found.number == number


UPRIGHT = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed; it is the independent reader")
@pytest.mark.parametrize("matrix", UPRIGHT)
def test_pictures_are_turned_and_mirrored_as_ffmpeg_turns_them(
    matrix: tuple[int, ...], recording: Callable[[str], Recording], tmp_path: Path
) -> None:
    data, (a, b, c, d) = bytearray(recording("h264-baseline").path.read_bytes()), matrix
    at = data.index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2: behind times, ids, length, layer, volume
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path = tmp_path / "turned.mp4"
    path.write_bytes(data)
    shown = next(pipeline.decoding.recording.Recording(path, "turned", EVERY_FRAME).frames()).picture()
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", path, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    theirs = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8).reshape(shown.shape)
    assert np.abs(shown.astype(int) - theirs).mean() < 1


def test_kinds_hold_what_they_are_named_for(recording: Callable[[str], Recording]) -> None:
    """Where all readers come to the same frames although a file is out of the ordinary, only its bytes show that it is."""

    def stamps(name: str) -> list[int]:
        found: dict[int, int] = {}
        restamped(recording(name).path.read_bytes(), lambda number, stamp: found.setdefault(number, stamp))
        return list(found.values())

    def packets(name: str) -> list[tuple[int, bool, bytes]]:
        with av.open(str(recording(name).path)) as container:
            return [(p.pts, p.is_keyframe, bytes(p)) for p in container.demux(video=0) if p.size]

    assert np.diff(stamps("wrap")).min() < -(1 << 32)
    assert (np.diff(stamps("restart")) < 0).sum() == 1
    assert max(stamps("stamp-far-ahead")) - min(stamps("stamp-far-ahead")) > 90_000_000
    assert b"00dc\0\0\0\0" * 6 in recording("avi-with-dropped-frames").path.read_bytes()
    assert sum(payload.count(b"\0\0\1\xb6") == 2 for *_, payload in packets("mpeg4-packed")) > 20
    assert sum(b"\0\0\1\x65" in payload for *_, payload in packets("h264-intra-refresh")) == 1  # instantaneous refresh
    for name in ("h264-open-gop", "hevc-open-gop"):
        coded = packets(name)
        keys = [n for n, (_, key, _) in enumerate(coded) if key]
        assert len(keys) == 3 and coded[keys[1] + 1][0] < coded[keys[1]][0] and not coded[keys[1] + 1][1]


def test_the_judge_finds_what_is_wrong(recording: Callable[[str], Recording]) -> None:
    truth = recording("h264-baseline")
    ids, times = list(truth.ids), list(truth.times)
    assert faults(truth, ids, times) == []
    later = [t + 0.04 for t in times]
    bent = [*times[:20], times[20] + 0.03, *times[21:]]
    wrong = {
        "one is missing": (ids[:20] + ids[21:], times[:20] + times[21:]),
        "one stands twice": (ids[:20] + ids[19:], [*times, times[-1] + 0.04]),
        "two are swapped": ([*ids[:20], ids[21], ids[20], *ids[22:]], times),
        "all are late": (ids, later),
        "one is late": (ids, bent),
        "the end is missing": (ids[:50], times[:50]),
        "nothing is there": ([], []),
    }
    assert [name for name, (i, t) in wrong.items() if not faults(truth, i, t)] == []
    hurt = replace(truth, unsure=frozenset(range(30, 40)))
    assert faults(hurt, [*ids[:31], 7, 7, *ids[36:]], [*times[:31], times[32], times[33], *times[36:]]) == []
    assert faults(hurt, [*ids[:29], *ids[40:]], [*times[:29], *times[40:]]) != []


def test_the_table_tells_right_from_wrong(recording: Callable[[str], Recording], decoder: Decoder, sampler: Decoder) -> None:
    truth = recording("h264-baseline")
    backwards = replace(truth, ids=tuple(reversed(truth.ids)))
    early = replace(truth, times=tuple(t + 1 for t in truth.times))
    absent = replace(truth, path=truth.path.with_name("absent.mp4"))
    assert of_product(truth, decoder, sampler) == "right"
    assert of_product(backwards, decoder, sampler).startswith("wrong: 60 frames instead of 60")
    assert of_product(early, decoder, sampler) == "wrong: all times are -1.000 s off"
    assert of_product(absent, decoder, sampler) == "said: missing"
    assert of_product(recording("without-index"), decoder, sampler) == "right"


class Pixels:
    """Stands in for a backbone: a frame's features are its pixels, which float16 holds exactly."""

    def embed(self, frames: np.ndarray) -> np.ndarray:
        return frames.reshape(len(frames), -1).astype(np.float16)


@pytest.mark.parametrize("name", ONE_WAY)
def test_a_frame_number_means_the_same_pixels_for_all_who_read(
    name: str, recording: Callable[[str], Recording], decoder: Decoder, tmp_path: Path
) -> None:
    """Ingest, a second one at a lower rate, one of boxes, evidence and a target."""
    uri = str(recording(name).path)
    numbers, times, frames = pixels(list(read_chunks(uri, None, EVERY_FRAME)))
    by_number = dict(zip(numbers.tolist(), frames, strict=True))
    some = numbers[3::7].tolist()
    boxes = tmp_path / "boxes.txt"
    boxes.write_text("".join(f"{number + 1},1,0,0,10000,10000\n" for number in some))

    again, again_times, sampled = pixels(list(read_chunks(uri, None, replace(EVERY_FRAME, rate=7))))
    assert 5 < len(again) < len(numbers) and np.array_equal(again_times, times[np.isin(numbers, again)])
    boxed, _, crops = pixels(list(read_chunks(uri, str(boxes), EVERY_FRAME)))
    assert boxed.tolist() == some
    evidence = decoder.frames(uri, None, None, some[::-1]) | decoder.frames(uri, str(boxes), 1, some[:2])
    assert sorted(evidence) == some
    target = video_target(uri, Pixels(), decoder)  # type: ignore[arg-type]
    assert target.frame_index.tolist() == numbers.tolist() and np.array_equal(target.time_s, times)

    for number, frame in [*zip(again, sampled, strict=True), *zip(boxed, crops, strict=True), *evidence.items()]:
        assert np.array_equal(frame, by_number[int(number)])
    assert np.array_equal(target.features.astype(np.uint8).reshape(frames.shape), frames)
