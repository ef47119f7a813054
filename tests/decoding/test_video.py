"""Sampling, cropping and decoding; every kind of bad file has its reason."""

import fnmatch
import os
import struct
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalog.image_folders import image_names, image_order, matches
from pipeline.catalog.inputs import REJECT_REASONS
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.recording import Recording
from pipeline.decoding.sampling import Sampling, resize
from pipeline.decoding.source_hash import source_hash
from pipeline.decoding.video import Chunk, Event, Rejected, VideoInfo
from pipeline.errors import UsageError, VideoError
from pipeline.storage.faults import StorageError
from pipeline.storage.location import resolve
from tests.conftest import reaching
from tests.decoding.in_process import read_chunks, read_frames
from tests.recordings.files import sample_times

SMALL = Sampling(height=32, width=16)


def write_video(path: Path, frames: int = 30, size: tuple[int, int] = (64, 48), rate: int = 10, codec: str = "libx264") -> Path:
    """A clip whose frame number can be read off its brightness: frame i has the value 8 * i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            picture = np.full((size[1], size[0], 3), min(8 * i, 255), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    return path


def chunks(events: list[Event]) -> list[Chunk]:
    return [event for event in events if isinstance(event, Chunk)]


def refused(path: Path | str, boxes: Path | None = None, sampling: Sampling = SMALL) -> str:
    with pytest.raises(VideoError) as raised:
        list(read_chunks(str(path), str(boxes) if boxes else None, sampling))
    assert raised.value.reason in REJECT_REASONS and (boxes or str(path) in raised.value.message)
    return raised.value.reason


@given(st.lists(st.floats(0.001, 2.0), min_size=1, max_size=80), st.floats(0.5, 30))
def test_sampling_takes_the_first_frame_of_each_period(gaps: list[float], rate: float) -> None:
    times = np.cumsum([0.0, *gaps])
    chosen = sample_times(times, rate)
    assert chosen[0] == 0 and np.all(np.diff(chosen) > 0)
    periods = np.floor(times * rate + 1e-3)
    assert len(chosen) == len(np.unique(periods))
    assert all(c == 0 or periods[c - 1] < periods[c] for c in chosen)


def test_a_slow_video_gives_all_its_frames_and_a_fast_one_the_rate() -> None:
    assert sample_times(np.arange(50) / 10, 10).tolist() == list(range(50))
    assert sample_times(np.arange(50) / 5, 10).tolist() == list(range(50))
    assert len(sample_times(np.arange(300) / 30, 10)) == 100
    assert np.diff(sample_times(np.arange(250) / 25, 10)).max() == 3


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
def test_frames_come_in_order_with_their_times(tmp_path: Path, suffix: str) -> None:
    events = list(read_chunks(str(write_video(tmp_path / f"a{suffix}")), None, SMALL))
    info = events[-1]
    assert (
        isinstance(info, VideoInfo)
        and (info.width, info.height, info.source_frames) == (64, 48, 30)
        and info.fps == pytest.approx(10)
    )
    (chunk,) = chunks(events)
    assert chunk.last and chunk.frames.shape == (30, 32, 16, 3) and chunk.frames.dtype == np.uint8
    # AVI says when frames are decoded: two frames later than shown, as the ffmpeg program has it too.
    late = 0.2 if suffix == ".avi" else 0.0
    assert chunk.time_s == pytest.approx(late + np.arange(30) / 10, abs=0.01)
    assert np.abs(chunk.frames.mean(axis=(1, 2, 3)) - 8 * np.arange(30)).max() < 4


@pytest.mark.parametrize("width", [16, 48, 96, 144])
def test_widths_that_decord_cannot_copy_are_read_all_the_same(tmp_path: Path, width: int) -> None:
    path = write_video(tmp_path / "narrow.mp4", frames=12, size=(width, 96))
    found = chunks(list(read_chunks(str(path), None, Sampling(height=96, width=width))))
    assert [len(chunk.frames) for chunk in found] == [12]
    brightness = found[0].frames.mean(axis=(1, 2, 3))
    assert np.abs(brightness - 8 * np.arange(12)).max() < 3
    single = chunks(list(read_frames(str(path), None, None, {7: None, 2: None}, Sampling(height=96, width=width))))
    assert [round(float(chunk.frames.mean()) / 8) for chunk in single] == [2, 7]


def test_a_long_video_comes_in_chunks_that_join_up(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", frames=31))
    (whole,) = chunks(list(read_chunks(path, None, SMALL)))
    parts = chunks(list(read_chunks(path, None, Sampling(height=32, width=16, chunk=7))))
    assert [len(part.frames) for part in parts] == [7, 7, 7, 7, 3]
    assert [part.last for part in parts] == [False] * 4 + [True] and [part.number for part in parts] == [0, 1, 2, 3, 4]
    assert np.array_equal(np.concatenate([part.frames for part in parts]), whole.frames)


@pytest.mark.parametrize("begins", [None, 1, 3])
def test_a_file_is_read_once_and_only_pictures_that_are_looked_at_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: int | None
) -> None:
    """begins: the frame, from 1, in which the first track begins; None: no boxes."""
    path = write_video(tmp_path / "a.mp4", frames=20)
    boxes = tmp_path / "boxes.txt"
    boxes.write_text("\n".join(f"{i},1,4,4,20,40" for i in range(begins or 1, 21)))
    made: list[float] = []
    opened: list[Path] = []
    picture, container = Recording._picture, Recording._opened
    monkeypatch.setattr(Recording, "_picture", lambda self, frame: made.append(frame.time) or picture(self, frame))
    monkeypatch.setattr(Recording, "_opened", lambda self: opened.append(self.path) or container(self))
    (chunk,) = chunks(list(read_chunks(str(path), str(boxes) if begins else None, SMALL)))
    start = (begins or 1) - 1
    assert chunk.frame_index.tolist() == list(range(start, 20)) and len(opened) == 1
    assert [round(10 * time) for time in made] == sorted({0, *range(start, 20)})
    assert np.abs(chunk.frames.mean(axis=(1, 2, 3)) - 8 * np.arange(start, 20)).max() < 4


def test_a_folder_of_images_is_a_video_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for number in (1, 2, 10, 9):
        cv2.imwrite(str(tmp_path / f"f{number}.png"), np.full((40, 20, 3), number, np.uint8))
    (chunk,) = chunks(list(read_chunks(str(tmp_path), None, SMALL)))
    assert chunk.frames.mean(axis=(1, 2, 3)).tolist() == [1, 2, 9, 10]
    assert sorted(["b2a10", "b2a9", "b10a1"], key=image_order) == ["b2a9", "b2a10", "b10a1"]
    sparse = Sampling(height=32, width=16, image_rate=20.0)
    assert len(chunks(list(read_chunks(str(tmp_path), None, sparse)))[0].frames) == 2


def write_image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((40, 20, 3), value, np.uint8))


def brightness(uri: str) -> list[int]:
    """The value of each frame of a source whose images are of one colour."""
    (chunk,) = chunks(list(read_chunks(uri, None, reaching(SMALL, uri))))
    return [round(value) for value in chunk.frames.mean(axis=(1, 2, 3))]


def test_boxes_of_images_that_differ_in_size_are_those_of_the_first_one(tmp_path: Path) -> None:
    """The right half is bright in all of them, so that a box on it shows nothing else, whatever the size of its image."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, (height, width) in enumerate([(40, 80), (80, 160), (20, 40), (40, 80)]):
        picture = np.zeros((height, width, 3), np.uint8)
        picture[:, width // 2 :] = 200
        cv2.imwrite(str(folder / f"f{number}.png"), picture)
    boxes = tmp_path / "boxes.txt"
    boxes.write_text("\n".join(f"{i},1,44,4,30,30" for i in range(1, 5)))
    for sampling in (SMALL, replace(SMALL, chunk=2)):
        found = chunks(list(read_chunks(str(folder), str(boxes), sampling)))
        assert np.concatenate([chunk.frames for chunk in found]).min() > 190 and sum(len(chunk.frames) for chunk in found) == 4
    (single,) = chunks(list(read_frames(str(folder), str(boxes), 1, {1: None}, SMALL)))
    assert single.frames.min() > 190


def test_a_pattern_is_the_tracklet_that_its_names_make_in_a_folder_of_many(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_image(tmp_path / f"0001C1T0001F{number:03d}.png", number)
        write_image(tmp_path / f"0001C1T0002F{number:03d}.png", 100 + number)
    write_image(tmp_path / "._0001C1T0001F003.png", 50)
    assert brightness(f"{tmp_path}/0001C1T0001F*.png") == [1, 2, 10]
    assert brightness(f"{tmp_path}/0001C1T0002F*.png") == [101, 102, 110]
    assert brightness(f"{tmp_path}/*1.png") == [1, 101]


def test_the_hash_of_what_was_decoded_is_that_of_the_source(tmp_path: Path) -> None:
    def decoded(uri: Path | str) -> str | None:
        return next(event.source_hash for event in read_chunks(str(uri), None, SMALL) if isinstance(event, VideoInfo))

    video = write_video(tmp_path / "a.mp4")
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        write_image(folder / f"x{number}.png", number)
    sources = [str(video), str(folder), f"{folder}/x1*.png"]
    hashes = [decoded(uri) for uri in sources]
    assert hashes == [source_hash(uri) for uri in sources] and len(set(hashes)) == 3
    os.mkfifo(folder / "x5000.png")  # never read to its end
    assert decoded(f"{folder}/x1*.png") == hashes[2]
    with pytest.raises(VideoError, match=r"x5000\.png is not an image"):
        list(read_chunks(str(folder), None, SMALL))


def test_what_came_to_lie_outside_the_roots_is_not_opened(tmp_path: Path) -> None:
    """The catalog had found all of it inside: links changed since."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    (outside / "images").mkdir(parents=True)
    video = write_video(outside / "a.mp4")
    boxes = outside / "a.txt"
    boxes.write_text("1,1,4,4,20,40\n")
    write_image(outside / "images" / "1.png", 1)
    (inside / "images").mkdir()
    for link, place in (
        ("a.mp4", video),
        ("a.txt", boxes),
        ("folder", outside / "images"),
        ("images/1.png", outside / "images/1.png"),
    ):
        (inside / link).symlink_to(place)
    within = write_video(inside / "b.mp4")
    rooted = replace(SMALL, roots=(str(inside),))
    for uri, boxes_uri in (("a.mp4", None), ("folder", None), ("images", None), ("images/1*.png", None), ("b.mp4", "a.txt")):
        with pytest.raises(VideoError, match="outside the allowed roots") as error:
            list(read_chunks(f"{inside}/{uri}", boxes_uri and f"{inside}/{boxes_uri}", rooted))
        assert error.value.reason == "outside_roots"
    assert [len(chunk.frames) for chunk in chunks(list(read_chunks(str(within), None, rooted)))]


def test_only_the_star_is_special_in_a_pattern(tmp_path: Path) -> None:
    for number, name in enumerate(("a[1]_1.png", "a1_1.png", "a?_1.png", "ab_1.png", "a[1]_1.png.jpg")):
        write_image(tmp_path / name, number)
    assert brightness(f"{tmp_path}/a[1]_*.png") == [0]
    assert brightness(f"{tmp_path}/a?_*.png") == [2]


def test_a_folder_whose_name_looks_like_a_pattern_stays_a_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "walk*.png/1.png", 7)
    assert brightness(f"{tmp_path}/walk*.png") == [7]


def test_a_pattern_that_names_nothing_has_its_reason(tmp_path: Path) -> None:
    write_image(tmp_path / "a1.png", 7)
    (tmp_path / "b1.jpg").mkdir()
    assert refused(f"{tmp_path}/b*.png") == "no_frames"
    assert refused(f"{tmp_path}/b*.jpg") == "no_frames"
    assert refused(f"{tmp_path}/a*.mp4") == "missing"
    for folder in (tmp_path / "absent", tmp_path / "a1.png"):
        with pytest.raises(VideoError, match=f"{folder}: there is no such folder") as raised:
            list(read_chunks(f"{folder}/a*.png", None, SMALL))
        assert raised.value.reason == "missing"


def test_single_frames_of_a_pattern_are_those_of_the_chunks(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / f"x{number}.png", number)
        write_image(tmp_path / f"y{number}.png", 100 + number)
    with Decoder(SMALL) as decoder:
        (chunk,) = chunks(list(decoder.events(f"{tmp_path}/y*.png")))
        single = decoder.frames(f"{tmp_path}/y*.png", None, None, [1, 3, 9])
        (rejected,) = decoder.events(f"{tmp_path}/z*.png")
    assert sorted(single) == [1, 3] and all(np.array_equal(frame, chunk.frames[i]) for i, frame in single.items())
    assert isinstance(rejected, Rejected) and rejected.reason == "no_frames"


def test_a_pattern_in_a_bucket(s3_options: str, tmp_path: Path) -> None:
    for number in (2, 1):
        for name in (f"0001C1T0001F{number:03d}.png", f"0001C2T0002F{number:03d}.png"):
            write_image(tmp_path / name, number if "T0001" in name else 100 + number)
            resolve(f"s3://bucket/mars/0001/{name}{s3_options}").write_atomically((tmp_path / name).read_bytes())
    assert brightness(f"s3://bucket/mars/0001/0001C2T0002F*.png{s3_options}") == [101, 102]
    small = reaching(SMALL, f"s3://bucket/mars{s3_options}")
    assert refused(f"s3://bucket/mars/0001/0002*.png{s3_options}", sampling=small) == "no_frames"
    with pytest.raises(VideoError, match="there is no such folder"):
        list(read_chunks(f"s3://bucket/mars/0002/0002*.png{s3_options}", None, small))


@given(st.text("ab*.", max_size=8), st.text("ab.", max_size=12))
def test_matching_agrees_with_the_shells(pattern: str, name: str) -> None:
    assert matches(name, pattern) == fnmatch.fnmatchcase(name, pattern)


def test_a_pattern_of_many_stars_ends_soon() -> None:
    assert not matches("a" * 20_000 + ".png", "*a" * 200 + "*b.png")


def test_a_folder_of_many_tracklets_is_listed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(path) or scan(path))
    for track in range(50):
        (tmp_path / f"0001C1T{track:04d}F001.jpg").touch()
    folder = resolve(tmp_path)
    found = [image_names(folder, f"0001C1T{track:04d}F*.jpg") for track in range(50)]
    assert found == [[f"0001C1T{track:04d}F001.jpg"] for track in range(50)] and len(scanned) == 1
    (tmp_path / "0001C1T0007F002.jpg").touch()
    os.utime(tmp_path, ns=(1, 1))  # a clock too coarse to tell the two states apart would hide the change
    assert image_names(folder, "0001C1T0007F*.jpg") == ["0001C1T0007F001.jpg", "0001C1T0007F002.jpg"] and len(scanned) == 2
    with pytest.raises(StorageError, match="there is no such folder"):
        image_names(folder.join("absent"))


def test_boxes_make_one_candidate_a_track_cropped_from_the_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=20)
    boxes = tmp_path / "boxes.txt"
    lines = [f"{i},1,4,4,20,40" for i in range(1, 11)] + [f"{i},2,-10,0,30,48" for i in range(5, 21)]
    boxes.write_text("\n".join([*lines, "3,3,500,500,20,40"]))
    events = list(read_chunks(str(path), str(boxes), SMALL))
    by_track = {chunk.track: chunk for chunk in chunks(events)}
    assert by_track[1].frame_index.tolist() == list(range(10)) and by_track[2].frame_index.tolist() == list(range(4, 20))
    assert np.abs(by_track[2].frames.mean(axis=(1, 2, 3)) - 8 * np.arange(4, 20)).max() < 4
    (rejected,) = [event for event in events if isinstance(event, Rejected)]
    assert (rejected.track, rejected.reason) == (3, "boxes_outside_frame")


def test_single_frames_are_those_of_the_chunks(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4"))
    (whole,) = chunks(list(read_chunks(path, None, SMALL)))
    single = chunks(list(read_frames(path, None, None, dict.fromkeys([29, 3, 99]), SMALL)))
    assert [chunk.frame_index.tolist() for chunk in single] == [[3], [29]]
    assert all(np.array_equal(chunk.frames[0], whole.frames[chunk.frame_index[0]]) for chunk in single)


def test_resizing_averages_when_it_shrinks() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 200
    assert np.unique(resize(stripes, 16, 8)).tolist() == [100]


def test_each_kind_of_bad_file_has_its_reason(tmp_path: Path) -> None:
    good = write_video(tmp_path / "good.mp4").read_bytes()
    cases = {
        "empty": b"",
        "not_a_video": b"This is a text file that FFmpeg would draw as a picture.\n" * 50,
        "truncated": good[: good.index(b"moov")],
    }
    for reason, content in cases.items():
        path = tmp_path / f"{reason}.mp4"
        path.write_bytes(content)
        assert refused(path) == reason
    assert refused(tmp_path / "absent.mp4") == "missing"
    assert refused(tmp_path / "good.mp4", sampling=Sampling(height=32, width=16, max_frames=10)) == "too_large"
    assert refused(tmp_path / "good.mp4", sampling=Sampling(height=32, width=16, max_bytes=10)) == "too_large"
    assert refused(tmp_path / "good.mp4", boxes=tmp_path / "absent.txt") == "boxes_missing"
    (tmp_path / "boxes.txt").write_text("frame,id\n1,2\n")
    assert refused(tmp_path / "good.mp4", boxes=tmp_path / "boxes.txt") == "boxes_invalid"


def test_pictures_and_playlists_named_as_videos_are_not_opened(tmp_path: Path) -> None:
    target = write_video(tmp_path / "secret.mp4")
    _, png = cv2.imencode(".png", np.zeros((40, 20, 3), np.uint8))
    contents = {
        "picture.mp4": png.tobytes(),
        "begins like a stream.ts": b"Good morning, this is a text. " * 40,
        "begins like one in cameras.mts": b"1234Good morning, this is a text. " * 40,
        "playlist.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{target}\n#EXT-X-ENDLIST\n".encode(),
        "concat.mp4": f"ffconcat version 1.0\nfile {target}\n".encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert refused(tmp_path / name) == "not_a_video"


def test_sound_without_a_picture_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert refused(tmp_path / "sound.mp4") == "not_a_video"


def test_a_raw_stream_as_a_camera_leaves_it_is_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "raw.h264", rate=25)
    (chunk,) = chunks(list(read_chunks(str(path), None, Sampling(rate=25, height=32, width=16))))
    assert len(chunk.frames) == 30 and chunk.time_s[-1] == pytest.approx(29 / 25, abs=0.02)
    assert np.abs(chunk.frames.mean(axis=(1, 2, 3)) - 8 * np.arange(30)).max() < 4


def test_a_stream_that_begins_in_the_middle_is_read_from_where_it_can_be(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.ts").read_bytes()
    (tmp_path / "cut.ts").write_bytes(whole[188:-188])
    (chunk,) = chunks(list(read_chunks(str(tmp_path / "cut.ts"), None, SMALL)))
    assert 20 <= len(chunk.frames) <= 30


def test_a_folder_without_images_and_a_damaged_image(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert refused(tmp_path / "none") == "no_frames"
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/1.jpg").write_bytes(struct.pack("<8I", *range(8)))
    with pytest.raises(VideoError, match=r"1\.jpg is not an image"):
        list(read_chunks(str(tmp_path / "bad"), None, SMALL))


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"rate": 0}, {"rate": float("nan")}, {"time_limit": -1}, {"image_rate": 0}, {"max_frames": 0}):
        with pytest.raises(UsageError):
            Sampling(**wrong)


class FakeDecoder(Decoder):
    """Its child plays the file's name: "crash" ends it with a signal, "hang" never answers, anything else decodes."""

    module = "tests.fake_decoder"


def test_a_crash_costs_one_video_and_the_next_one_decodes(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4"))
    with FakeDecoder(Sampling(height=32, width=16)) as decoder:
        assert len(chunks(list(decoder.events(path)))) == 1
        (event,) = decoder.events(str(write_video(tmp_path / "crash.mp4")))
        assert isinstance(event, Rejected) and event.reason == "decoder_crash" and "SIGSEGV" in event.message
        assert len(chunks(list(decoder.events(path)))) == 1


def test_a_hang_is_ended_by_the_time_limit(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4"))
    with FakeDecoder(Sampling(height=32, width=16, time_limit=5)) as decoder:
        (event,) = decoder.events(str(write_video(tmp_path / "hang.mp4")))
        assert isinstance(event, Rejected) and event.reason == "time_limit" and "5 s" in event.message
        assert len(chunks(list(decoder.events(path)))) == 1


def test_a_video_that_takes_too_much_memory_is_refused_and_the_next_one_decodes(tmp_path: Path) -> None:
    large = str(write_video(tmp_path / "large.mp4", size=(3840, 2160), frames=12))
    small = str(write_video(tmp_path / "small.mp4"))
    with Decoder(Sampling(height=32, width=16, memory_limit=150 << 20)) as decoder:
        events = list(decoder.events(large))
        assert isinstance(events[-1], Rejected) and events[-1].reason in (
            "too_large",
            "decoder_crash",
            "truncated",
            "undecodable",
        )
        assert not chunks(events)
        assert len(chunks(list(decoder.events(small)))) == 1


def test_an_abandoned_video_does_not_leak_into_the_next(tmp_path: Path) -> None:
    long, short = (str(write_video(tmp_path / f"{n}.mp4", frames=n)) for n in (30, 9))
    with Decoder(Sampling(height=32, width=16, chunk=5)) as decoder:
        next(iter(decoder.events(long)))
        assert sum(len(chunk.frames) for chunk in chunks(list(decoder.events(short)))) == 9


def test_a_long_stream_of_which_little_is_looked_at_tells_its_progress(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.ts", frames=450)
    told = 0

    def alive() -> None:
        nonlocal told
        told += 1

    next(read_chunks(str(path), None, replace(SMALL, rate=0.1), alive))
    assert told >= 450
