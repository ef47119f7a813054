"""What a decoder and its child say to each other arrives as it was said, or is refused."""

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.decoding.decoder import Decoder
from pipeline.decoding.messages import Answer, End, Fault, Job, Progress, Unconfined, packed, receive_job, send_job, unpacked
from pipeline.decoding.opening import Opened
from pipeline.decoding.requests import FramesRequest, MomentRequest, Request, SceneRequest, SourceRequest
from pipeline.decoding.video import Chunk, Rejected, Stretch, Undivided, VideoInfo
from tests.decoding.test_video import SMALL, FakeDecoder, write_video

MEMORY = np.arange(4 * 32 * 16 * 3, dtype=np.uint32).astype(np.uint8)
STRETCH = {
    **{"number": 2, "of": 3, "first_frame": 40, "frames": 20, "begins": 3600, "opens": -5, "zero": 0.1, "first_s": 0.0},
    **{"before_s": 1.56, "looked_at": 4, "packets": "ab", "source_hash": "file:ab"},
}
ANSWERS = [
    VideoInfo(12.5, 30, 64, 48, "file:ab", 2, ("guessed", "mended")),
    Rejected(7, "no_frames", 'said "so"\n'),
    Rejected(None, "empty", "é"),
    Progress(),
    Undivided("it has one key frame"),
    Stretch(**STRETCH),  # type: ignore[arg-type]
    End(),
    Unconfined("network is not closed"),
    Fault("TypeError: made up"),
]
REQUESTS = [
    SourceRequest("a.mp4", "boxes.txt", 25.0),
    FramesRequest("a.mp4", None, None, {3: 0.1, 9: None}, {3: (1.0, 2.0, 3.0, 4.0)}),
    MomentRequest("a.mp4", (0.0, 0.0, 20.0, 40.0), 0.42),
    SceneRequest("a.mp4", 25.0),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_an_answer_arrives_as_it_was_given(answer: Answer) -> None:
    assert unpacked(packed(answer), MEMORY) == answer


def test_a_chunk_arrives_with_a_copy_of_the_frames_in_the_memory() -> None:
    memory = MEMORY.copy()
    frames = MEMORY[: 3 * 32 * 16 * 3].reshape(3, 32, 16, 3)
    given = Chunk(5, 2, True, np.array([1, 4, 6], np.int32), np.array([0.1, 0.4, 0.6], np.float32), frames, "file:ab")
    taken = unpacked(packed(given), memory)
    memory[:] = 0
    assert isinstance(taken, Chunk) and np.array_equal(taken.frames, frames)
    for name in ("frame_index", "time_s"):
        found, expected = getattr(taken, name), getattr(given, name)
        assert found.dtype == expected.dtype and np.array_equal(found, expected)
    assert (taken.track, taken.number, taken.last, taken.source_hash) == (5, 2, True, "file:ab")


CHUNK = {"track": None, "number": 0, "last": True, "frame_index": [0], "time_s": [0.0], "frames": [32, 16]}


@pytest.mark.parametrize(
    "message",
    [
        [],
        {},
        ["End"],
        ["End", []],
        ["End", {"more": 1}],
        ["Job", {}],
        ["Fault", {}],
        [["End"], {}],
        ["VideoInfo", {"fps": 1, "source_frames": 1, "width": 1, "height": 1, "remarks": 5}],
        ["Stretch", STRETCH | {"number": 3}],
        ["Stretch", STRETCH | {"number": -1}],
        ["Stretch", STRETCH | {"frames": "20"}],
        ["Stretch", STRETCH | {"begins": 2**70}],
        ["Stretch", STRETCH | {"before_s": "1.5"}],
        ["Stretch", STRETCH | {"zero": None}],
        ["Stretch", STRETCH | {"first_s": float("nan")}],
        ["Stretch", STRETCH | {"source_hash": 5}],
        ["Stretch", {name: value for name, value in STRETCH.items() if name != "of"}],
        ["Chunk", [1, 2]],
        ["Chunk", {}],
        ["Chunk", CHUNK | {"time_s": [0.0, 1.0]}],
        ["Chunk", CHUNK | {"frame_index": [0] * 5, "time_s": [0.0] * 5}],
        ["Chunk", CHUNK | {"frame_index": [2**40]}],
        ["Chunk", CHUNK | {"frame_index": 3, "time_s": 3}],
        ["Chunk", CHUNK | {"frames": [64, 64]}],
        ["Chunk", CHUNK | {"frames": [-32, -16]}],
        ["Chunk", CHUNK | {"frames": [32.0, 16]}],
        ["Chunk", CHUNK | {"frames": None}],
    ],
    ids=json.dumps,
)
def test_what_is_no_answer_is_a_value_error(message: object) -> None:
    with pytest.raises(ValueError):
        unpacked(json.dumps(message).encode(), MEMORY)


@pytest.mark.parametrize("data", [b"", b"\x80\x04N.", b"[" * 100_000])
def test_what_is_no_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        unpacked(data, MEMORY)


@pytest.mark.parametrize("request_", REQUESTS, ids=repr)
@pytest.mark.parametrize("open_files", ["", "file", "boxes", "file boxes"])
def test_a_job_arrives_with_its_open_files(tmp_path: Path, request_: Request, open_files: str) -> None:
    ours, theirs = multiprocessing.Pipe()
    for name in ("file", "boxes"):
        (tmp_path / name).write_text(name)
    descriptors = {name: os.open(tmp_path / name, os.O_RDONLY) for name in open_files.split()}
    with Opened("a.mp4", "a.mp4", **descriptors) as opened:
        send_job(ours, Job(request_, opened))
        job = receive_job(theirs)
        with job.opened:
            assert job.request == request_
            assert replace(job.opened, file=None, boxes=None) == replace(opened, file=None, boxes=None)
            for name in ("file", "boxes"):
                received = getattr(job.opened, name)
                assert (received is not None) == (name in descriptors) and received != descriptors.get(name, -1)
                assert received is None or os.pread(received, 100, 0).decode() == name
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(next(iter(descriptors.values()), 12345))


def test_the_memory_is_not_filled_again_before_its_frames_were_taken(tmp_path: Path) -> None:
    """Chunks of several tracks are complete at the same frame: each must be read before the next one is written."""
    path = write_video(tmp_path / "a.mp4", frames=20)
    boxes = tmp_path / "boxes.txt"
    boxes.write_text("".join(f"{i},{track},4,4,20,40\n" for i in range(1, 21) for track in range(1, 6)))
    with Decoder(replace(SMALL, chunk=4)) as decoder:
        found = [event for event in decoder.events(str(path), str(boxes)) if isinstance(event, Chunk)]
    assert [(chunk.number, chunk.track) for chunk in found[:5]] == [(0, track) for track in range(1, 6)] and len(found) == 25
    for chunk in found:
        assert np.abs(chunk.frames.mean(axis=(1, 2, 3)) - 8 * chunk.frame_index).max() < 4


def test_slow_work_is_waited_for_as_long_as_its_heart_beats(tmp_path: Path) -> None:
    """Four seconds of work under a limit of two; nobody is told of the beats."""
    with FakeDecoder(replace(SMALL, time_limit=2)) as decoder:
        list(decoder.events(str(write_video(tmp_path / "a.mp4"))))  # the child has begun
        chunk, info = decoder.events(str(write_video(tmp_path / "slow and alive.mp4")))
    assert isinstance(chunk, Chunk) and len(chunk.frames) == 30 and isinstance(info, VideoInfo)


def test_whole_pictures_come_as_many_at_once_as_the_memory_holds_and_larger_ones_are_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=30)
    found = {}
    for pixels in (64 * 48, 2 * 64 * 48, 10 * 64 * 48):
        with Decoder(replace(SMALL, rate=5.0, scene_pixels=pixels)) as decoder:
            *chunks, info = decoder.scenes(str(path))
        assert isinstance(info, VideoInfo) and info.last_s == pytest.approx(2.9, abs=0.01)
        index = np.concatenate([chunk.frame_index for chunk in chunks if isinstance(chunk, Chunk)])
        frames = np.concatenate([chunk.frames for chunk in chunks if isinstance(chunk, Chunk)])
        found[max(len(chunk.frame_index) for chunk in chunks if isinstance(chunk, Chunk))] = frames
        assert index.tolist() == list(range(0, 30, 2)) and frames.shape == (15, info.height, info.width, 3)
        assert np.abs(frames.mean(axis=(1, 2, 3)) - 8 * index).max() < 4
    assert list(found) == [1, 2, 4] and all(np.array_equal(frames, found[1]) for frames in found.values())
    with Decoder(replace(SMALL, scene_pixels=64 * 48 - 1)) as decoder:
        (refused,) = decoder.scenes(str(path))
    assert isinstance(refused, Rejected) and refused.reason == "too_large"
