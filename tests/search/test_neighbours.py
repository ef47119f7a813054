"""What the best leads add to the others' scores, against the definition in odds, lead by lead in float64."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.gallery.gallery import Gallery
from pipeline.index.build import build_index
from pipeline.index.versions import Index
from pipeline.scoring.whole import resemblance
from pipeline.search.local_partitions import LocalPartitions
from pipeline.search.neighbours import with_neighbours
from pipeline.settings import IndexSettings, ScoreSettings

VIDEOS = np.array([31, 4, 17, 9, 22, 0, 38])
SCORES = np.array([0.31, 0.93, 0.2, 0.93, 0.6, 1.0, 1e-20])


@pytest.fixture
def index(toy_gallery: Gallery) -> Index:
    return build_index(toy_gallery, IndexSettings(8, 4, partition_videos=15))


@pytest.mark.parametrize(("count", "silent"), [(1, -1), (3, -1), (3, 0), (99, -1), (2, 30)])
def test_the_odds_by_way_of_each_of_the_best_are_added(index: Index, count: int, silent: int) -> None:
    partitions = LocalPartitions(index, range(len(index.manifest["partitions"])))
    whole = partitions.whole(VIDEOS)
    between = np.exp(resemblance(whole, whole, *index.heads.score_row()).astype(np.float64))
    cut = [min(max(score, 1e-13), 1 - 1e-13) for score in SCORES]
    odds = [score / (1 - score) for score in cut]
    heard = [place for place in range(len(VIDEOS)) if VIDEOS[place] != silent]
    best = sorted(heard, key=lambda place: (-odds[place], VIDEOS[place]))[: min(count, len(heard) - 1)]
    target = partitions.whole(np.array([12]))
    to_target = np.exp(resemblance(target, whole, *index.heads.score_row())[0].astype(np.float64))
    expected = []
    for place in range(len(VIDEOS)):
        total = odds[place]
        for lead in best:
            likest = max(between[lead, other] for other in heard if other != lead)
            to_video = likest if lead == place else between[lead, place]
            total += min(to_target[lead] / odds[lead], 1) / (1 / to_target[lead] + 1 / to_video)
        expected.append(total / (1 + total))
    found = with_neighbours(index, partitions, target, VIDEOS, SCORES, ScoreSettings(neighbours=count), silent)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (found >= np.array(cut) * (1 - 1e-9)).all()  # a way through others takes nothing from a video


def test_without_others_or_a_way_to_compare_scores_stay_as_they_are(index: Index) -> None:
    partitions = LocalPartitions(index, range(len(index.manifest["partitions"])))
    target = partitions.whole(np.array([12]))
    ways = (
        (index, VIDEOS, ScoreSettings(neighbours=0)),
        (index, VIDEOS, ScoreSettings(ratio=0.2)),
        (index, VIDEOS, ScoreSettings(normalise="none")),
        (index, VIDEOS[:1], ScoreSettings()),
        (index, VIDEOS[:0], ScoreSettings()),
        (replace(index, query=None), VIDEOS, ScoreSettings()),
    )
    for asked, videos, settings in ways:
        scores = SCORES[: len(videos)]
        assert with_neighbours(asked, partitions, target, videos, scores, settings) is scores
    assert with_neighbours(index, partitions, None, VIDEOS, SCORES, ScoreSettings()) is SCORES
    pair = with_neighbours(index, partitions, target, VIDEOS[:2], SCORES[:2], ScoreSettings(), silent=int(VIDEOS[0]))
    assert pair is not None and np.array_equal(pair, SCORES[:2])  # nobody else is left to resemble
