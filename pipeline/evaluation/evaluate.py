"""How well an index finds people: labelled videos as queries, the search's own score beside baselines on the same features.

The rule is the field's: of a query's ranking, left out are the query itself, videos of the same person under the same camera, and
videos without a label. Rows of all tables are queries, columns are videos of the gallery sorted by id (see
`pipeline.evaluation.metrics`).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.coattention.calibration import settings_of
from pipeline.coattention.gallery_calibration import GalleryCalibration
from pipeline.errors import UsageError
from pipeline.evaluation.as_searched import Floats, Progress, coattention_scores, prefilter_places, shortlisted
from pipeline.evaluation.baselines import COSINE, baseline_scores
from pipeline.evaluation.judged_pairs import JudgedPairs
from pipeline.evaluation.metrics import (
    RANKS,
    QueryFigures,
    camera_pairs,
    identity_interval,
    open_set_points,
    operating_points,
    query_figures,
    ranking_quality,
    shortlist_length,
    shortlist_recall,
)
from pipeline.evaluation.probabilities import probability_figures, strength_figures
from pipeline.gallery.gallery import Gallery
from pipeline.index.versions import Index
from pipeline.search.leads import calibration_of
from pipeline.search.partitions import Partitions
from pipeline.settings import ScoreSettings

COATTENTION = "co-attention"
ONE_QUERY = "co-attention, one query for all"  # candidates under a constant query vector: what a target's own is worth
CURVE_RANKS = 50
HISTOGRAM_BINS = 40
FALSE_MATCH_RATES = (0.1, 0.01, 0.001, 0.0001)  # shown beside the one that was asked for, where the pairs suffice
FALSE_ALARM_RATES = (0.01, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class EvaluationSettings:
    """What is reported beyond the ranking.

    false_match_rate: share of the pairs of different persons that may pass the threshold; false_alarm_rate: share of the searches
    for people who are not in the gallery that may give an answer all the same. shortlists: sizes, in videos ("100") or as a share
    ("5%"). bootstrap: resamples an interval, 0 for none; seed: of them. Raises UsageError for values that cannot be meant.
    """

    false_match_rate: float = 0.001
    false_alarm_rate: float = 0.1
    shortlists: tuple[str, ...] = ("10", "100", "1000", "1%", "10%")
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("false_match_rate", "false_alarm_rate"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', '-')} is a share between 0 and 1, not {getattr(self, name)}")
        if self.bootstrap < 0 or self.seed < 0:
            raise UsageError("bootstrap and seed must be 0 or more")
        for size in self.shortlists:
            try:
                shortlist_length(size, 1)
            except ValueError as error:
                raise UsageError(f"a shortlist is a number of videos or a share such as 5%, not {size!r}") from error


def evaluate_index(
    gallery: Gallery,
    index: Index,
    partitions: Partitions,
    pairs: JudgedPairs,
    score: ScoreSettings,
    settings: EvaluationSettings,
    keep: dict[str, Floats] | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """All figures of all methods as a document of plain numbers, ready for JSON and for `pipeline.evaluation.report`.

    keep: takes the scores [Q, G] of every method, where they are wanted afterwards. progress: of the full scores, in queries.
    """
    queries, inverse = np.unique(pairs.query_rows, return_inverse=True)
    alone = np.empty((len(queries), len(pairs.gallery_rows)))
    asked = gallery, index, partitions, queries, pairs.gallery_rows, score
    full = coattention_scores(*asked, progress, alone=alone)[inverse]
    per_query: dict[str, QueryFigures] = {}
    methods: dict[str, Any] = {}

    def judge(name: str, scores: Floats) -> None:
        per_query[name] = query_figures(scores, pairs.valid, pairs.same)
        methods[name] = _figures(scores, pairs, per_query[name], settings)
        if keep is not None:
            keep[name] = scores

    judge(COATTENTION, full)
    shortlists = _shortlists(gallery, index, partitions, pairs, full, alone[inverse], score, settings)
    probabilities = _probabilities(index, alone[inverse], pairs, score)
    del full, alone
    if index.query is not None:
        judge(ONE_QUERY, coattention_scores(*asked, one_query=True)[inverse])
    for name, scores in baseline_scores(gallery, index, pairs):
        judge(name, scores)
    return {
        "queries": len(pairs.query_rows),
        "gallery": len(pairs.gallery_rows),
        "persons": len(np.unique(pairs.persons)),
        "splits": int(pairs.splits.max()) + 1,
        "missing": pairs.missing,
        "methods": methods,
        "difference": _difference(per_query[COATTENTION], per_query[COSINE], pairs, settings),
        "shortlists": shortlists,
        "probabilities": probabilities,
    }


def _probabilities(index: Index, scores: Floats, pairs: JudgedPairs, score: ScoreSettings) -> dict[str, Any]:
    """What searches say of scores of videos alone, against the labels. words: what it rests on, or why there are no numbers."""
    cut = index.settings.segment_length, index.settings.stride
    known, why = calibration_of(index, settings_of(score.alone, *cut, cameras=index.settings.cameras))
    table = scores, pairs.valid, pairs.same
    if known is None:
        return {"words": why, "numbers": None, "strengths": []}
    if isinstance(known, GalleryCalibration) and why:
        return {"words": why, "numbers": None, "strengths": [asdict(one) for one in strength_figures(*table, known)]}
    return {"words": known.words, "numbers": asdict(probability_figures(*table, known)), "strengths": []}


def _figures(scores: Floats, pairs: JudgedPairs, figures: QueryFigures, settings: EvaluationSettings) -> dict[str, Any]:
    """The figures of one method."""
    table = scores, pairs.valid, pairs.same
    quality = ranking_quality(figures, range(1, CURVE_RANKS + 1))
    of_queries = {"rank_1": figures.found_by(1), "mean_ap": figures.average_precision}
    different = pairs.valid & ~pairs.same
    count = int(different.sum())
    rates = sorted({settings.false_match_rate, *(rate for rate in FALSE_MATCH_RATES if rate * count >= 1)}, reverse=True)
    alarms = sorted({settings.false_alarm_rate, *FALSE_ALARM_RATES})
    return {
        **asdict(quality),
        "cmc": {rank: quality.cmc[rank] for rank in RANKS},
        "intervals": {name: _interval(values, pairs, settings) for name, values in of_queries.items()},
        "by_split": {name: _means_of_splits(values, pairs) for name, values in of_queries.items()},
        "curve": list(quality.cmc.values()),
        "verification": [asdict(point) for point in operating_points(*table, rates)] if count else [],
        "open_set": [asdict(point) for point in open_set_points(*table, alarms)] if count else [],
        "camera_pairs": [asdict(pair) for pair in camera_pairs(*table, pairs.query_cameras, pairs.gallery_cameras)],
        "histogram": _histogram(scores[pairs.valid & pairs.same], scores[different]),
    }


def _interval(values: Floats, pairs: JudgedPairs, settings: EvaluationSettings) -> tuple[float, float] | None:
    if not settings.bootstrap:
        return None
    return identity_interval(values, pairs.persons, settings.bootstrap, settings.seed)


def _means_of_splits(values: Floats, pairs: JudgedPairs) -> list[float | None]:
    """Mean over the queries of each split that have a match; None where none has."""
    parts = [values[(pairs.splits == number) & ~np.isnan(values)] for number in range(int(pairs.splits.max()) + 1)]
    return [float(part.mean()) if len(part) else None for part in parts]


def _difference(mine: QueryFigures, other: QueryFigures, pairs: JudgedPairs, settings: EvaluationSettings) -> dict[str, Any]:
    """Co-attention less mean + cosine, on the same queries and resamples of persons."""
    differences = {"rank_1": mine.found_by(1) - other.found_by(1), "mean_ap": mine.average_precision - other.average_precision}
    return {
        "of": COATTENTION,
        "less": COSINE,
        **{
            name: {"value": float(np.nanmean(values)), "interval": _interval(values, pairs, settings)}
            for name, values in differences.items()
        },
    }


def _shortlists(
    gallery: Gallery,
    index: Index,
    partitions: Partitions,
    pairs: JudgedPairs,
    full: Floats,
    alone: Floats,
    score: ScoreSettings,
    settings: EvaluationSettings,
) -> list[dict[str, Any]]:
    if not settings.shortlists:
        return []
    longest = max(shortlist_length(size, len(pairs.gallery_rows)) for size in settings.shortlists)
    places = prefilter_places(gallery, index, partitions, pairs, longest)
    chosen = shortlisted(gallery, index, partitions, pairs, places, alone, score, settings.shortlists)
    recalls = [
        shortlist_recall(full, pairs.valid, pairs.same, kept, size)
        for kept, size in zip(chosen, settings.shortlists, strict=True)
    ]
    return [asdict(recall) for recall in sorted(recalls, key=lambda recall: recall.videos)]


def _histogram(same: Floats, different: Floats) -> dict[str, list[float]]:
    """Shares of the pairs of each kind in equal bins over all scores: edges [bins + 1], same and different [bins]."""
    values = np.concatenate([same, different])
    edges = np.histogram_bin_edges(values, HISTOGRAM_BINS)
    counts = [np.histogram(part, edges)[0] / max(1, len(part)) for part in (same, different)]
    return {"edges": edges.tolist(), "same": counts[0].tolist(), "different": counts[1].tolist()}
