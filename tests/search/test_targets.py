"""Targets as people have them: a photo, a video, a box at one moment, a track of a boxes file; and what is no target."""

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.backbone.runtime import load_backbone
from pipeline.backbone.spec import find_backbone
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.recording import FIRST_SOUGHT, Recording
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.source_hash import source_hash
from pipeline.errors import UsageError
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.search.evidence import SourcePictures
from pipeline.search.targets import Target, Whom, read_targets, target_decoder
from pipeline.stopping import StoppedError
from tests.conftest import save_toy_backbone
from tests.recordings.files import B_FRAMES, RATE, picture, write
from tests.recordings.kinds import KINDS

BOX = (32.0, 64.0, 64.0, 128.0)
LONG = FIRST_SOUGHT + 150  # frames


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of 320 x 240 pixels with B frames, long enough for its end to be sought."""
    return write(tmp_path_factory.mktemp("targets") / "long.mp4", range(LONG), options=B_FRAMES)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    folder = tmp_path_factory.mktemp("gallery")
    return Gallery.open_or_create(
        folder / "g", GallerySettings(find_backbone(str(save_toy_backbone(folder / "b.onnx"))), 10.0, None)
    )


@pytest.fixture(scope="module")
def read(gallery: Gallery) -> Iterator[Callable[..., Target]]:
    with target_decoder(gallery) as decoder:

        def one(uri: Path, **whom: object) -> Target:
            (target,) = read_targets([str(uri)], gallery, decoder, whom=Whom(**whom))  # type: ignore[arg-type]
            return target

        yield one


def features(gallery: Gallery, crop: np.ndarray) -> np.ndarray:
    """What the backbone gives for a picture, resized as the product resizes."""
    spec = gallery.settings.backbone
    small = cv2.resize(crop, (spec.width, spec.height), interpolation=cv2.INTER_AREA)
    return load_backbone(spec, device="cpu").embed(small[None])


def test_a_photo_is_a_target_of_one_frame(tmp_path: Path, gallery: Gallery, read: Callable[..., Target]) -> None:
    person = picture(5)[:, :120]
    cv2.imwrite(str(tmp_path / "photo.png"), person[..., ::-1])
    target = read(tmp_path / "photo.png")
    assert (target.frame_index.tolist(), target.time_s.tolist()) == ([0], [0.0])
    assert np.array_equal(target.features, features(gallery, person))
    assert target.content == source_hash(str(tmp_path / "photo.png"))


@pytest.mark.parametrize("number", [3, LONG - 7])
def test_a_box_at_a_moment_is_what_it_shows_then(video: Path, gallery: Gallery, read: Callable[..., Target], number: int) -> None:
    """Near the end, the moment is sought; the picture is that of the frame, read front to back."""
    target = read(video, box=BOX, time_s=number / RATE + 0.4 / RATE)
    assert target.frame_index.tolist() == [number] and target.time_s == pytest.approx([number / RATE])
    frame = next(frame for frame in Recording(video, str(video), Sampling()).frames() if frame.number == number)
    assert np.array_equal(target.features, features(gallery, frame.picture()[64:192, 32:96]))


def test_the_report_shows_what_the_box_shows(video: Path, read: Callable[..., Target]) -> None:
    target = read(video, box=BOX, time_s=2.0)
    pictures = SourcePictures()
    try:
        found = pictures(target.video, {50: 2.0})
    finally:
        pictures.close()
    crop = cv2.resize(picture(50)[64:192, 32:96], (96, 192), interpolation=cv2.INTER_LINEAR)
    assert np.abs(found[50].astype(int) - crop).mean() < 8  # coded with loss


def test_a_track_of_a_boxes_file_is_a_target(tmp_path: Path, video: Path, read: Callable[..., Target]) -> None:
    boxes = tmp_path / "boxes.txt"
    boxes.write_text("".join(f"{frame},{track},{20 * track},40,60,120\n" for frame in range(1, 30) for track in (1, 2)))
    target = read(video, boxes_uri=str(boxes), track=2)
    assert target.video.track == 2 and target.frame_index.max() <= 28
    with pytest.raises(UsageError, match="several tracks"):
        read(video, boxes_uri=str(boxes))
    with pytest.raises(UsageError, match="no track 9"):
        read(video, boxes_uri=str(boxes), track=9)


@pytest.mark.parametrize(
    ("whom", "words"),
    [
        ({"box": BOX}, "--at"),
        ({"box": (400.0, 0.0, 50.0, 50.0), "time_s": 1.0}, "does not lie inside"),
        ({"box": BOX, "time_s": 500.0}, "ends after 15.96 s"),
        ({"box": BOX, "boxes_uri": "x.txt"}, "not by both"),
        ({"time_s": 3.0}, "goes with a box"),
        ({"track": 3}, "goes with a boxes file"),
    ],
)
def test_what_is_not_said_well_is_one_sentence(video: Path, read: Callable[..., Target], whom: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(video, **whom)


def test_who_is_meant_is_said_of_each_of_several_targets(video: Path, gallery: Gallery, read: Callable[..., Target]) -> None:
    whom = [Whom(BOX, 1.0, camera="yard"), Whom(BOX, 2.0)]
    with target_decoder(gallery) as decoder:
        found = read_targets([str(video)] * 2, gallery, decoder, whom=whom)
        with pytest.raises(UsageError, match="goes with one target"):
            read_targets([str(video)] * 2, gallery, decoder, whom=whom[0])
        with pytest.raises(UsageError, match="goes with one target"):
            read_targets([str(video), "id:v001"], gallery, decoder, whom=whom)
    for target, time_s in zip(found, (1.0, 2.0), strict=True):
        assert np.array_equal(target.features, read(video, box=BOX, time_s=time_s).features)
    assert [target.video.camera_id for target in found] == ["yard", None]


def test_a_scene_is_not_taken_for_one_person(tmp_path: Path, gallery: Gallery, read: Callable[..., Target]) -> None:
    scene = write(tmp_path / "scene.mp4", range(10), size=(640, 480))
    with pytest.raises(UsageError, match=r"looks like a whole scene, 640 x 480 pixels.*--box"):
        read(scene)
    assert len(read(scene, box=BOX, time_s=0.1).features) == 1
    with target_decoder(gallery, scenes=True) as decoder:
        assert len(read_targets([str(scene)], gallery, decoder)[0].features) > 1


def test_a_target_whose_rate_is_guessed_says_so(tmp_path: Path, read: Callable[..., Target]) -> None:
    (remark,) = read(KINDS["raw-mjpeg"](tmp_path / "raw").path).remarks
    assert "25 frames a second were guessed" in remark


@pytest.mark.parametrize("asked", [[FIRST_SOUGHT], [FIRST_SOUGHT + 3, LONG - 2, LONG - 1], [5, LONG - 20]])
def test_frames_far_into_a_recording_are_those_of_reading_it_all(video: Path, asked: list[int]) -> None:
    recording = Recording(video, str(video), Sampling())
    whole = {frame.number: (frame.time_s, frame.picture()) for frame in recording.frames() if frame.number in asked}
    opened: list[int] = []
    decode = Recording._sought
    found = {}
    recording._sought = lambda wanted: opened.append(1) or decode(recording, wanted)  # type: ignore[method-assign]
    for frame in recording.frames_at({number: whole[number][0] for number in asked}):
        found[frame.number] = frame.time_s, frame.picture()
    assert bool(opened) == (min(asked) >= FIRST_SOUGHT)
    assert sorted(found) == asked
    assert all(found[n][0] == pytest.approx(whole[n][0]) and np.array_equal(found[n][1], whole[n][1]) for n in asked)


def test_a_frame_that_had_another_time_is_not_sought(video: Path) -> None:
    recording = Recording(video, str(video), Sampling())
    assert recording._sought({LONG - 5: 3.0}) is None
    with Decoder(Sampling(height=240, width=320)) as decoder:
        (number,) = decoder.frames(str(video), None, None, {LONG - 5: 3.0})
    assert number == LONG - 5


def test_a_target_that_is_stopped_is_decoded_no_further(video: Path, gallery: Gallery) -> None:
    told: list[int] = []

    def between() -> None:
        told.append(1)
        if len(told) == stop_at:
            raise StoppedError("cancelled")

    with target_decoder(gallery) as decoder:
        stop_at = 0
        read_targets([str(video)], gallery, decoder, between=between)
        pieces, stop_at = len(told), 3
        assert pieces > 4
        told.clear()
        with pytest.raises(StoppedError):
            read_targets([str(video)], gallery, decoder, between=between)
        assert len(told) == 3
        stop_at = 0
        assert len(read_targets([str(video)], gallery, decoder)) == 1, "the decoder goes on with the next one"
