"""The synthetic gallery is like a real one and can be gone on with; the figures of the scale runs are what they say."""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import process_figures, scale, scale_recall, scale_report, scale_searches, synthetic_gallery
from benchmarks.synthetic_gallery import SyntheticSettings, cosine_statistics, write_gallery
from pipeline.errors import UsageError
from pipeline.gallery.gallery import Gallery, feature_matrix

SMALL = SyntheticSettings(130, people=20, cameras=6, width=32, shard_videos=50)
# Mean cosines of two frames of 643 rendered clips with the default backbone; in the synthetic gallery some people are hidden.
RENDERED = {
    "1 frames on": 0.930,
    "8 frames on": 0.858,
    "30 frames on": 0.789,
    "same person, other camera": 0.639,
    "other person, same camera": 0.503,
    "other person, other camera": 0.438,
}


def frames_of(gallery: Gallery) -> dict[str, np.ndarray]:
    videos = gallery.snapshot().videos.to_pylist()
    return {row["video_id"]: feature_matrix(gallery.read_video(row)) for row in videos}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return write_gallery(tmp_path_factory.mktemp("synthetic") / "gallery", SMALL, workers=0)


def test_every_video_is_there_with_what_a_search_needs(gallery: Gallery) -> None:
    videos = gallery.snapshot().videos
    assert videos["video_id"].to_pylist() == [f"v{number:09d}" for number in range(130)]
    assert len(set(videos["shard"].to_pylist())) == 3
    for name in ("camera_id", "person_id", "start_time", "uri", "source_id"):
        assert videos[name].null_count == 0
    frames = frames_of(gallery)
    assert {len(features) for features in frames.values()} <= set(range(20, 61))
    norms = np.linalg.norm(np.concatenate(list(frames.values())).astype(np.float32), axis=1)
    np.testing.assert_allclose(norms, 1, atol=2e-3)


def test_after_a_kill_only_what_is_missing_is_made_and_it_is_the_same(tmp_path: Path, gallery: Gallery) -> None:
    stopped = Gallery.open_or_create(tmp_path / "stopped", SMALL.gallery)
    for shard in (2, 0):
        synthetic_gallery.write_shard(tmp_path / "stopped", SMALL, shard)
    before = {path.name for path in (tmp_path / "stopped" / "frames").iterdir()}
    told: list[tuple[int, int]] = []
    write_gallery(tmp_path / "stopped", SMALL, workers=0, progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 3), (3, 3)]
    after = {path.name for path in (tmp_path / "stopped" / "frames").iterdir()}
    assert before < after
    assert len(after) == 3
    mine, whole = frames_of(stopped), frames_of(gallery)
    assert mine.keys() == whole.keys()
    assert all(np.array_equal(mine[name], whole[name]) for name in whole)


def test_other_settings_do_not_add_to_a_gallery(gallery: Gallery) -> None:
    with pytest.raises(UsageError, match="other settings"):
        write_gallery(gallery.location.path, SyntheticSettings(140, people=20, cameras=6, width=32, shard_videos=50), workers=0)


def test_frames_are_as_alike_as_those_of_rendered_people(tmp_path: Path) -> None:
    settings = SyntheticSettings(1500, cameras=40, width=128)
    found = cosine_statistics(write_gallery(tmp_path / "gallery", settings, workers=0))
    assert found.keys() == RENDERED.keys()
    for words, mean in RENDERED.items():
        assert found[words][0] == pytest.approx(mean, abs=0.06), words


def test_a_third_of_the_videos_is_hidden_in_one_stretch() -> None:
    frames = np.full(3000, 40)
    hidden = synthetic_gallery._hidden_frames(np.random.default_rng(0), frames).reshape(3000, 40)
    stretches = np.abs(np.diff(hidden.astype(int), axis=1, prepend=0, append=0)).sum(axis=1) // 2
    assert set(stretches) == {0, 1}
    assert stretches.mean() == pytest.approx(1 / 3, abs=0.03)
    lengths = hidden.sum(axis=1)[stretches == 1]
    assert (lengths.min(), lengths.max()) == (10, 30)


def test_drift_keeps_its_variance_and_forgets_at_its_rate() -> None:
    frames = np.array([50, 20, 35] * 20)
    steps = np.random.default_rng(0).standard_normal((frames.sum(), 300)).astype(np.float32)
    synthetic_gallery._correlate(steps, frames, np.float32(0.8))
    parts = np.split(steps, np.cumsum(frames)[:-1])
    assert steps.var() == pytest.approx(1, abs=0.05)
    for lag in (1, 5):
        product = np.mean([np.mean(part[lag:] * part[:-lag]) for part in parts])
        assert product == pytest.approx(0.8**lag, abs=0.05)
    between = np.mean([a[-1] @ b[0] / 300 for a, b in itertools.pairwise(parts)])
    assert abs(between) < 0.05  # one video knows nothing of the one before


def test_recall_and_growth_by_hand() -> None:
    assert scale_recall.recall([["a", "b"], ["c", "d"]], [["b", "x"], ["d", "c"]]) == 0.75
    small, large = {"videos": 1000, "seconds": 2.0}, {"videos": 100_000, "seconds": 8.0}
    assert scale_report.growth(small, large, "seconds") == pytest.approx(2.0)


def test_nearest_videos_are_those_of_a_brute_force() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(n, 5)).astype(np.float32) for n in (40, 3))
    distances = np.array([min(math.dist(vector, query) for query in queries) for vector in vectors])
    assert scale_recall.nearest_videos(vectors, queries, 7).tolist() == np.argsort(distances)[:7].tolist()


def hold_and_let_go() -> dict[str, int]:
    with process_figures.PeakMemory() as memory:
        before = process_figures.memory_of_tree(os.getpid())["anonymous"]
        held = np.ones(100 << 20, np.uint8)
        memory.ended.wait(0.3)
        del held
    return memory.peak | {"before": before}


def test_peak_memory_sees_what_was_held_and_let_go() -> None:
    peak = process_figures.in_own_process(hold_and_let_go)
    assert peak["anonymous"] - peak["before"] > 90 << 20
    assert peak["total"] >= peak["anonymous"]


def test_a_scale_run_measures_every_figure_and_uses_again_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "BATCH", 2)
    monkeypatch.setattr(scale_recall, "BATCH", 2)
    monkeypatch.setattr(scale_report, "BATCH", 2)
    monkeypatch.setattr(scale, "in_own_process", lambda step, *arguments: step(*arguments))
    arguments = {**DEFAULTS, "width": 32, "cameras": 5, "untrained": True, "targets": 2, "judged": 2, "exact": 2, "cold": 1}
    scale.scale(tmp_path, **{**arguments, "videos": [60, 120]})
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [size["videos"] for size in figures["sizes"]] == [60, 120]
    for size in figures["sizes"]:
        place = tmp_path / f"{size['videos']}-32"
        assert 0 <= size["recall_videos"]["0.01"] <= size["recall_videos"]["0.05"] <= 1
        assert size["one_camera_too_few"] == 0
        assert size["exact_is_exhaustive"] == 1
        assert size["index_bytes"] == scale.size_on_disk(place / "index")
        for name in (
            "build_seconds",
            "warm_1_p50",
            "warm_2_p50",
            "cold_1_p50",
            "exhaustive_1_seconds",
            "exact_p50",
            "open_seconds",
        ):
            assert size[name] > 0
        again = scale.build_step(scale_searches.Plan(str(place), None, 2, 2, 2, 1, 0), True, False)
        assert (again["index_version"], again["build_seconds"]) == (size["index_version"], size["build_seconds"])
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2


DEFAULTS = {"gallery": None, "head": None, "actors": 0, "like": None, "rebuild": False, "keep": True}
