"""A target's scores, ranks and probabilities are the same, bit by bit, whatever other targets are searched for beside it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.coattention.calibration import Calibration, CalibrationQuality, CalibrationSet, settings_of
from pipeline.gallery.gallery import Gallery
from pipeline.index.build import build_index
from pipeline.index.versions import Index
from pipeline.scoring import pair_kernel
from pipeline.scoring.candidates import TargetSegments
from pipeline.scoring.scores import scores_of
from pipeline.search import local_partitions
from pipeline.search.local_partitions import LocalPartitions
from pipeline.search.results import SearchResult
from pipeline.search.search import search, search_many
from pipeline.search.shortlist import segmented
from pipeline.search.targets import gallery_target
from pipeline.settings import IndexSettings, ScoreSettings, SearchSettings
from tests.conftest import PROCESSORS, add_videos, compile_for

GROUPS = (1, 7, 15)  # other targets
LONG = 40  # videos of the toy gallery, which ends with some that are longer


@pytest.fixture(params=[*PROCESSORS, "torch"])
def scorer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kernel for each width of vectors, and torch where there is none."""
    if request.param == "torch":
        monkeypatch.setattr(pair_kernel, "available", lambda: False)
    else:
        compile_for(request.param, monkeypatch)
    yield request.param


@pytest.fixture
def index(toy_gallery: Gallery) -> Index:
    """Of videos of 1 to 70 segments in partitions of 9."""
    rng = np.random.default_rng(5)
    add_videos(toy_gallery, [("p99", rng.normal(size=(n, 24)).astype(np.float16)) for n in (150, 8, 280)], first=LONG)
    return build_index(toy_gallery, IndexSettings(8, 4, partition_videos=9))


def grouped(count: int, others: int) -> Iterator[list[int]]:
    """Each number below `count` at a changing place among so many others."""
    rng = np.random.default_rng(others)
    for one in range(0, count, 7):
        group = rng.permutation(np.delete(np.arange(count), one))[:others].tolist()
        group.insert(int(rng.integers(0, others + 1)), one)
        yield group


def made_up_calibration(index: Index, settings: SearchSettings) -> Calibration:
    of = settings_of(settings.score.alone, index.settings.segment_length, index.settings.stride, None, None)
    quality = CalibrationQuality(0.0, 0.0, 0.0, 0.0, ())
    fitted_on = CalibrationSet("nobody", 1, 1, 1, 1, "2026-01-01")
    return Calibration(index.manifest["head"], of, True, 0.0, 1.0, -20.0, 20.0, fitted_on, quality)


def as_bytes(scores: Sequence[float] | np.ndarray) -> bytes:
    return np.asarray(scores, np.float64).tobytes()


@pytest.mark.parametrize("where", ["mapped", "files"])
@pytest.mark.parametrize("normalise", ["none", "cohort"])
def test_scores_of_a_target_do_not_depend_on_the_targets_beside_it(
    toy_gallery: Gallery, index: Index, scorer: str, where: str, normalise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ScoreSettings(normalise=normalise)  # type: ignore[arg-type]
    monkeypatch.setattr(local_partitions, "SPARSE", 2.0 if where == "files" else 0.0)
    held = LocalPartitions(index, range(len(index.manifest["partitions"])))
    videos_of = index.videos["video_id"].to_pylist()
    targets: list[TargetSegments] = [segmented(gallery_target(toy_gallery, video), index) for video in videos_of[:17]]
    targets += [segmented(gallery_target(toy_gallery, f"v{LONG + i:03d}"), index) for i in range(3)]
    rng = np.random.default_rng(0)
    videos = [np.flatnonzero(rng.random(len(videos_of)) < 0.9) for _ in targets]
    alone = [as_bytes(held.score(target, mine, settings)) for target, mine in zip(targets, videos, strict=True)]
    for others in GROUPS:
        for group in grouped(len(targets), others):
            together = held.score_many([targets[i] for i in group], [videos[i] for i in group], settings)
            assert [as_bytes(scores) for scores in together] == [alone[i] for i in group]


@pytest.mark.parametrize("scorer", ["native", "torch"], indirect=True)
@pytest.mark.parametrize("shortlist", [None, 12])
def test_a_search_of_a_target_is_the_same_alone_and_among_others(
    toy_gallery: Gallery, index: Index, scorer: str, shortlist: int | None
) -> None:
    settings = SearchSettings(top=7, shortlist=shortlist, shortlist_share=0.0, patience=5, evidence=False)
    index = replace(index, calibration=made_up_calibration(index, settings))
    targets = [gallery_target(toy_gallery, video) for video in index.videos["video_id"].to_pylist()[::2][:18]]

    def told(result: SearchResult) -> list:
        assert result.none_probability is not None
        assert len(result.leads) == 7
        leads = [
            (lead.rank, lead.video.video_id, lead.score, lead.probability, lead.prefilter_rank)  # numbers that are equal to a bit
            for lead in result.leads
        ]
        return [leads, result.none_probability, result.scored, result.passed_over]

    held = LocalPartitions(index, range(len(index.manifest["partitions"])))
    alone = [told(search(toy_gallery, index, held, target, settings)) for target in targets]
    for others in GROUPS:
        for group in grouped(len(targets), others):
            results = search_many(toy_gallery, index, held, [targets[i] for i in group], settings)
            assert [told(result) for result in results] == [alone[i] for i in group]


def test_a_sigmoid_does_not_depend_on_the_place_of_a_number() -> None:
    logits = 6 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    whole = scores_of(logits.T)
    np.testing.assert_allclose(whole, 1 / (1 + np.exp(-logits.T.double().numpy())), rtol=1e-6)
    for n in range(1, 41):
        assert np.array_equal(scores_of(logits[:, :n].T), whole[:n])
        assert np.array_equal(scores_of(logits[n:, 3].clone()), whole[3, n:])
    assert scores_of(torch.tensor([-1000.0, 1000.0])).tolist() == [0.0, 1.0]
    assert np.isnan(scores_of(torch.tensor([torch.nan]))).all()
