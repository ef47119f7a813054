"""What the best leads add to the others' scores, against the definition lead by lead in float64."""

import math
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
def test_each_of_the_best_adds_its_resemblance_by_how_far_it_is_ahead(index: Index, count: int, silent: int) -> None:
    partitions = LocalPartitions(index, range(len(index.manifest["partitions"])))
    whole = partitions.whole(VIDEOS)
    alike = resemblance(whole, whole, *index.heads.score_row()).astype(np.float64)
    logits = [math.log(min(max(s, 1e-13), 1 - 1e-13) / (1 - min(max(s, 1e-13), 1 - 1e-13))) for s in SCORES]
    heard = [place for place in range(len(VIDEOS)) if VIDEOS[place] != silent]
    best = sorted(heard, key=lambda place: (-logits[place], VIDEOS[place]))[: min(count, len(heard) - 1)]
    shares = [math.exp(logits[place] - logits[best[0]]) for place in best]
    target = partitions.whole(np.array([12]))
    with_target = resemblance(target, whole, *index.heads.score_row())[0].astype(np.float64)
    parts = [min(1.0, math.exp(with_target[place] - logits[place])) for place in best]
    expected = []
    for place, logit in enumerate(logits):
        added = 0.0
        for one, share, part in zip(best, shares, parts, strict=True):
            own = max(alike[one, other] for other in heard if other != one)
            added += share / sum(shares) * part * (own if one == place else alike[one, place])
        expected.append(1 / (1 + math.exp(-(logit + added))))
    found = with_neighbours(index, partitions, target, VIDEOS, SCORES, ScoreSettings(neighbours=count), silent)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


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
