"""Clips and pictures of a result show the same moments, those that were scored, wherever the video lies; or say why not."""

import io
import math
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Chunk
from pipeline.errors import PipelineError, VideoError
from pipeline.gallery.video_ref import VideoRef
from pipeline.search.evidence import CLIP_S, LONGEST_CLIP_S, Clip, Scene, SourcePictures, stretch_around
from pipeline.search.results import SegmentView
from pipeline.search.source_places import PAST_LAST_S
from tests.recordings.files import add_video, barcodes, encoded, picture
from tests.service.test_media import somebody_in_recordings, town


def segment(numbers: list[int], times: list[float]) -> SegmentView:
    return SegmentView(tuple(numbers), tuple(times), (1 / len(numbers),) * len(numbers))


def at_the_times(clip: Clip, times: tuple[float, ...]) -> list[np.ndarray]:
    """The frames that a player shows at these times of the video, uint8 [h, w, 3]: of each the last one begun."""
    assert isinstance(clip.content, bytes)
    with av.open(io.BytesIO(clip.content)) as container:
        frames = list(container.decode(video=0))
    shown = np.array([float(frame.time) for frame in frames])
    places = [np.flatnonzero(shown <= time - clip.start_s + 2e-3)[-1] for time in times]
    assert [shown[place] + clip.start_s for place in places] == pytest.approx(times, abs=0.01)  # the frame itself
    return [frames[place].to_ndarray(format="rgb24") for place in places]


def numbers_of(frames: list[np.ndarray]) -> list[int]:
    return barcodes(np.stack([cv2.resize(one, (320, 240)).mean(axis=2).astype(np.uint8) for one in frames]))


def brightness(frames: list[np.ndarray]) -> list[float]:
    return [float(one.mean()) for one in frames]


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_scored_frames_pictures_and_clip_frames_are_the_same_moments(tmp_path: Path, suffix: str) -> None:
    """Each frame carries its number, so that it is read back from what the ingest decodes, from pictures and from the clip."""
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w") as container:
        stream = add_video(
            container, "libx264", {"preset": "ultrafast", "g": "60", "bf": "0" if suffix == ".avi" else "2"}, 25, (320, 240)
        )
        container.mux(encoded(stream, (picture(n) for n in range(130)), [n / 25 for n in range(130)]))
    with Decoder(Sampling(rate=10.0, height=240, width=320)) as decoder:
        chunks = [event for event in decoder.events(str(path)) if isinstance(event, Chunk)]
    index, times = (np.concatenate([getattr(one, name) for one in chunks]) for name in ("frame_index", "time_s"))
    assert barcodes(np.concatenate([one.frames for one in chunks]).mean(axis=3).astype(np.uint8)) == index.tolist()
    asked = segment(index[24:32].tolist(), times[24:32].tolist())  # with more before and behind it
    pictures = SourcePictures()
    video = VideoRef("a", str(path))
    clip = pictures.clip(video, asked)
    crops = pictures(video, dict(zip(asked.frame_index, asked.time_s, strict=True)))
    pictures.close()
    assert numbers_of(at_the_times(clip, asked.time_s)) == list(asked.frame_index)
    assert numbers_of([crops[number] for number in asked.frame_index]) == list(asked.frame_index)
    assert clip.end_s - clip.start_s == pytest.approx(CLIP_S) and clip.start_s < asked.start_s < asked.end_s < clip.end_s


def test_of_a_gallery_a_whole_video_and_a_track_show_the_scored_frames(tmp_path: Path) -> None:
    """The brightness of a frame is eight times its number."""
    gallery = town(tmp_path)
    asked = segment(list(range(10, 18)), [n / 10 for n in range(10, 18)])
    pictures = SourcePictures(gallery=gallery)
    rows = {row["video_id"]: VideoRef.of(row) for row in gallery.snapshot().videos.to_pylist()}
    for name, size in (("v000", (120, 160)), ("v001", (128, 64))):
        frames = at_the_times(pictures.clip(rows[name], asked), asked.time_s)
        crops = pictures(rows[name], dict(zip(asked.frame_index, asked.time_s, strict=True)))
        assert frames[0].shape[:2] == pytest.approx(size, abs=2)
        assert brightness(frames) == pytest.approx([8.0 * n for n in asked.frame_index], abs=3)
        assert brightness([crops[n] for n in asked.frame_index]) == pytest.approx([8.0 * n for n in asked.frame_index], abs=3)
    pictures.close()


def test_a_track_of_a_target_from_outside_is_cut_out_too(tmp_path: Path) -> None:
    gallery = town(tmp_path)
    asked = segment([10, 12, 14, 14], [1.0, 1.2, 1.4, 1.4])
    target = VideoRef("mine", str(tmp_path / "v003.mp4"), boxes_uri=str(tmp_path / "boxes.txt"), track=5)
    pictures = SourcePictures(gallery=gallery)
    frames = at_the_times(pictures.clip(target, asked), asked.time_s)
    assert frames[0].shape[:2] == pytest.approx((128, 64), abs=2)
    assert brightness(frames) == pytest.approx([80, 96, 112, 112], abs=3)
    with pytest.raises(VideoError, match="has no track 6 any more"):
        pictures.clip(VideoRef("mine", target.uri, boxes_uri=target.boxes_uri, track=6), asked)
    pictures.close()


def test_who_walks_from_one_recording_into_the_next_is_shown_where_they_were_scored(tmp_path: Path) -> None:
    gallery = somebody_in_recordings(tmp_path)  # from 3 s on; the second recording begins at 4 s
    (row,) = gallery.snapshot().videos.to_pylist()
    pictures = SourcePictures(gallery=gallery)
    for numbers in ([32, 33, 34, 35], [42, 43, 44, 45]):
        asked = segment(numbers, [n / 10 for n in numbers])
        clip = pictures.clip(VideoRef.of(row), asked)
        assert brightness(at_the_times(clip, asked.time_s)) == pytest.approx([min(8.0 * (n % 40), 255) for n in numbers], abs=3)
        assert clip.start_s == pytest.approx(numbers[0] // 10 if numbers[0] > 40 else 3.0, abs=1e-6)
    pictures.close()


def test_why_there_is_no_clip_is_a_sentence(tmp_path: Path) -> None:
    gallery = somebody_in_recordings(tmp_path)
    (row,) = gallery.snapshot().videos.to_pylist()
    asked = segment([32, 33], [3.2, 3.3])
    pictures = SourcePictures(gallery=gallery)
    with pytest.raises(VideoError, match="shows one moment only"):
        pictures.clip(VideoRef.of(row), segment([32, 32], [3.2, 3.2]))
    with pytest.raises(VideoError, match="does not exist"):
        pictures.clip(VideoRef("b", str(tmp_path / "nothing.mp4")), asked)
    with pytest.raises(PipelineError, match=r"boxes\.txt"):
        pictures.clip(VideoRef("b", str(tmp_path / "a.mp4"), boxes_uri=str(tmp_path / "boxes.txt"), track=1), asked)
    with pytest.raises(VideoError, match="not in the gallery any more"):
        pictures.clip(VideoRef.of(row | {"video_id": "cam#2"}), asked)
    pictures.close()


def most_at(numbers: list[int], times: list[float], most: int) -> SegmentView:
    """A segment one frame of which got most attention."""
    shares = tuple(0.9 if place == most else 0.1 / (len(numbers) - 1) for place in range(len(numbers)))
    return SegmentView(tuple(numbers), tuple(times), shares)


def seen(scene: Scene) -> tuple[float, tuple[float, ...]]:
    """Brightness of the picture of a scene, and its box in pixels of the source, which is as large."""
    picture = cv2.imdecode(np.frombuffer(scene.content, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[:2] == (scene.height, scene.width) == (120, 160)
    x, y, w, h = scene.box
    return float(picture.mean()), (160 * x, 120 * y, 160 * w, 120 * h)


def test_a_scene_is_the_whole_picture_of_the_best_frame_and_where_the_person_is(tmp_path: Path) -> None:
    """A box of frame n begins at 2 n + 10."""
    gallery = town(tmp_path)
    rows = {row["video_id"]: VideoRef.of(row) for row in gallery.snapshot().videos.to_pylist()}
    asked = most_at([10, 12, 14, 16], [1.0, 1.2, 1.4, 1.6], 2)
    mine = VideoRef("mine", str(tmp_path / "v003.mp4"), boxes_uri=str(tmp_path / "boxes.txt"), track=5)
    drawn = VideoRef("drawn", str(tmp_path / "v003.mp4"), box=(5.0, 6.0, 30.0, 60.0))
    pictures = SourcePictures(gallery=gallery)
    assert pictures.scene(rows["v000"], asked) is None  # nothing was cut out of a larger picture
    for video, box in ((rows["v001"], (38, 20, 20, 40)), (mine, (38, 20, 20, 40)), (drawn, drawn.box)):
        scene = pictures.scene(video, asked)
        assert scene is not None and scene.time_s == 1.4
        assert seen(scene) == (pytest.approx(8.0 * 14, abs=3), pytest.approx(box, abs=0.01))
    pictures.close()


def test_the_scene_of_a_person_in_recordings_is_of_the_one_that_shows_them(tmp_path: Path) -> None:
    gallery = somebody_in_recordings(tmp_path)  # from frame 40 on in the second one, where numbers begin anew
    (row,) = gallery.snapshot().videos.to_pylist()
    pictures = SourcePictures(gallery=gallery)
    for most, number in ((0, 38), (3, 1)):
        scene = pictures.scene(VideoRef.of(row), most_at([38, 39, 40, 41], [3.8, 3.9, 4.0, 4.1], most))
        assert scene is not None
        assert seen(scene) == (pytest.approx(min(8.0 * number, 255), abs=3), pytest.approx((38 + most, 20, 20, 40), abs=0.01))
    with pytest.raises(VideoError, match="not in the gallery any more"):
        pictures.scene(VideoRef.of(row | {"video_id": "cam#2"}), most_at([38, 39], [3.8, 3.9], 0))
    pictures.close()


@given(st.floats(0, 100), st.lists(st.floats(0.03, 3.0), min_size=1, max_size=12), st.floats(0, 5), st.floats(0, 5), st.data())
def test_a_stretch_lies_within_the_video_and_around_the_segment(
    first: float, gaps: list[float], before: float, behind: float, data: st.DataObject
) -> None:
    times = first + before + np.cumsum([0.0, *gaps])
    weights = data.draw(st.lists(st.floats(0.01, 1.0), min_size=len(times), max_size=len(times)))
    asked = SegmentView(tuple(range(len(times))), tuple(times.tolist()), tuple(weights))
    last = asked.end_s + data.draw(st.sampled_from([behind, math.inf]))
    start, end = stretch_around(asked, first, last)
    assert first <= start < end <= last + PAST_LAST_S + 1e-9 and end - start <= LONGEST_CLIP_S + 1e-9
    if asked.end_s - asked.start_s + PAST_LAST_S <= LONGEST_CLIP_S:
        assert start <= asked.start_s + 1e-9 and asked.end_s <= end + 1e-9
    else:
        assert start - 1e-9 <= asked.time_s[int(np.argmax(weights))] <= end + 1e-9
    assert end - start >= min(CLIP_S, last + PAST_LAST_S - first) - 1e-9
