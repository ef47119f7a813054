"""Statistics of cameras in an index: kept with the version, taken over by additions, renewed by a rebuild, checked, left out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.coattention.cameras import camera_statistics
from pipeline.coattention.head import untrained_head
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.video_ref import VideoRef
from pipeline.index import samples
from pipeline.index.build import build_index
from pipeline.index.faults import range_faults
from pipeline.index.freshness import current_index, extensible_index
from pipeline.index.versions import open_index
from pipeline.retention.verify import verify_gallery
from pipeline.search.partitions import opened_partitions
from pipeline.search.run import _of_camera, run
from pipeline.search.search import search
from pipeline.search.targets import gallery_target
from pipeline.settings import IndexSettings, SearchSettings
from tests.conftest import add_videos, people_features

NINE = IndexSettings(partition_videos=9)


def of_cameras(index):
    return {name: entry["sha256"] for name, entry in index.manifest["files"].items() if name.startswith("cameras/")}


def test_an_index_has_the_statistics_of_its_cameras(toy_gallery: Gallery) -> None:
    index = build_index(toy_gallery, NINE)
    assert index.cameras is not None and index.cameras.names == ("cam0", "cam1")
    assert verify_gallery(toy_gallery) == [] and range_faults(toy_gallery, index.manifest) == []
    width = index.head.config.value_width
    assert index.cameras.maps.shape == (3, width, width) and index.heads.unit_encodings


def test_values_lie_in_an_index_as_their_camera_s_head_gives_them(toy_gallery: Gallery) -> None:
    index = build_index(toy_gallery, IndexSettings())
    values = np.load(index.partition_location(0).join("values.npy").path)
    for row in index.rows([0, 1, 17]):
        part = values[row["first_frame"] : row["first_frame"] + row["sampled_frames"]]
        features = np.stack(toy_gallery.read_video(row)["feature"].to_numpy()).astype(np.float32)
        expected = index.heads.of(row["camera_id"]).values(torch.from_numpy(features)).detach().numpy()
        np.testing.assert_allclose(part, expected, atol=1e-3)
        np.testing.assert_allclose(np.linalg.norm(part.astype(float), axis=1), 1, atol=2e-3)


def test_additions_take_the_statistics_over_and_a_rebuild_renews_them(toy_gallery: Gallery) -> None:
    first = build_index(toy_gallery, NINE)
    add_videos(toy_gallery, people_features(3, 4, 24, seed=9), first=40)
    added = build_index(toy_gallery, NINE, base=extensible_index(toy_gallery, NINE))
    renewed = build_index(toy_gallery, NINE)
    assert of_cameras(first) == of_cameras(added) and len(added.videos) == 52
    assert of_cameras(renewed).keys() == of_cameras(first).keys() and of_cameras(renewed) != of_cameras(first)


def test_an_index_of_which_many_videos_are_of_cameras_that_came_later_should_be_built_anew(
    toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build_index(toy_gallery, NINE)
    assert index.rebuild_advice() is None
    monkeypatch.setattr(samples, "camera_statistics", lambda means, cameras: camera_statistics(means, ["earlier"] * len(cameras)))
    advice = build_index(toy_gallery, NINE).rebuild_advice()
    assert advice is not None and "of cameras that had few videos or none" in advice


def test_an_index_with_a_partition_of_an_earlier_version_should_be_built_anew(toy_gallery: Gallery) -> None:
    index = build_index(toy_gallery, NINE)
    *others, last = index.manifest["partitions"]
    earlier = last | {"files": {name: entry for name, entry in last["files"].items() if not name.startswith("part_")}}
    assert len(earlier["files"]) == len(last["files"]) - 3
    advice = replace(index, manifest=index.manifest | {"partitions": [*others, earlier]}).rebuild_advice()
    assert advice is not None and "built by an earlier version" in advice


def test_an_index_that_ignores_cameras_is_another_and_scores_by_the_head_alone(toy_gallery: Gallery) -> None:
    build_index(toy_gallery, NINE)
    ignoring = IndexSettings(partition_videos=9, cameras="ignore")
    assert current_index(toy_gallery, ignoring) is None and extensible_index(toy_gallery, ignoring) is None
    index = build_index(toy_gallery, ignoring)
    assert index.cameras is None and index.heads.of("cam0") is index.head and not of_cameras(index)
    with pytest.raises(UsageError, match="auto or by ignore, not by 'some'"):
        IndexSettings(cameras="some")


def test_a_head_with_weights_above_zero_makes_an_index_without_statistics(toy_gallery: Gallery) -> None:
    head = untrained_head(np.random.default_rng(0).normal(size=(40, 24)), negative_weight=False)
    with torch.no_grad():
        head.classifier.weight.neg_()
    index = build_index(toy_gallery, NINE, head)
    assert index.cameras is None and index.settings.cameras == "auto"
    assert current_index(toy_gallery, NINE, head) is not None


def test_the_camera_of_a_target_is_its_own_or_that_of_the_video_that_it_is(toy_gallery: Gallery) -> None:
    index = build_index(toy_gallery, NINE)
    known = VideoRef.of(index.rows([index.position("v003")])[0])
    assert index.camera_of(known, None) == "cam1"
    assert index.camera_of(VideoRef("other", known.uri), None) == "cam1"
    assert index.camera_of(VideoRef("other", "/elsewhere.mp4"), None) is None
    assert index.camera_of(VideoRef("other", "/elsewhere.mp4", camera_id="cam9"), None) == "cam9"


def test_a_camera_that_changes_everybody_hides_nobody(tmp_path: Path, toy_gallery: Gallery) -> None:
    """The same people under a second camera that shifts and stretches all features: found as if it had not."""
    rng = np.random.default_rng(3)
    gallery = Gallery.open_or_create(tmp_path / "shifted", toy_gallery.settings)
    people = people_features(40, 2, 24, seed=4)
    stretch, shift = np.eye(24) + rng.normal(scale=0.2, size=(24, 24)), rng.normal(scale=1.5, size=24)
    videos = [
        (person, (features @ stretch + shift).astype(np.float16) if number % 2 else features)
        for number, (person, features) in enumerate(people)
    ]
    add_videos(gallery, videos)

    def found(cameras: str) -> float:
        index = build_index(gallery, IndexSettings(cameras=cameras))
        asked = SearchSettings(top=1, shortlist=None, other_cameras=True, evidence=False)
        with opened_partitions(gallery, index, actors=0) as partitions:
            leads = [
                search(gallery, index, partitions, gallery_target(gallery, f"v{number:03d}"), asked).leads[0].video.person_id
                for number in range(len(videos))
            ]
        return float(np.mean([lead == person for lead, (person, _) in zip(leads, videos, strict=True)]))

    assert found("auto") > found("ignore") + 0.2


def test_a_search_says_when_the_camera_of_its_target_is_not_known(toy_gallery: Gallery) -> None:
    build_index(toy_gallery, NINE)
    answer = run(toy_gallery, ["id:v003"], SearchSettings(top=3), "a test")
    assert not any("camera" in remark for remark in answer.remarks)
    index = open_index(toy_gallery)
    target = gallery_target(toy_gallery, "v003")
    elsewhere = replace(target, video=VideoRef("x", "/x.mp4"), content=None)
    (said,) = _of_camera(elsewhere, index)
    assert "--target-camera names it" in said
    (said,) = _of_camera(replace(elsewhere, video=VideoRef("x", "/x.mp4", camera_id="cam9")), index)
    assert "no camera 'cam9'" in said


@pytest.mark.parametrize(
    ("name", "array"), [("means", np.zeros((2, 24), np.float16)), ("maps", np.zeros((3, 24, 24), np.float32))]
)
def test_statistics_that_do_not_fit_each_other_are_refused_in_a_sentence(
    toy_gallery: Gallery, name: str, array: np.ndarray
) -> None:
    index = build_index(toy_gallery, NINE)
    np.save(index.location.join("cameras", f"{name}.npy").path, array)
    with pytest.raises(PipelineError, match="damaged in its cameras: its files do not fit each other"):
        open_index(toy_gallery)
