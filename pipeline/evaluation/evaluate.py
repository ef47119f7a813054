"""How well an index finds people: labelled videos as queries, the search's own score beside baselines on the same features.

The rule is the field's: of a query's ranking, left out are the query itself, videos of the same person under the same camera, and
videos without a label. Rows of all tables are queries, columns are videos of the gallery sorted by id (see
`pipeline.evaluation.metrics`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import ArrayLike, NDArray

from pipeline.coattention.calibration import settings_of
from pipeline.coattention.cameras import camera_statistics
from pipeline.coattention.cohort import NEAREST
from pipeline.coattention.gallery_calibration import GalleryCalibration
from pipeline.datasets.labelled import LabelledData
from pipeline.errors import UsageError
from pipeline.evaluation.metrics import (
    RANKS,
    QueryFigures,
    camera_pairs,
    identity_interval,
    left_out,
    open_set_points,
    operating_points,
    query_figures,
    ranking_quality,
    shortlist_length,
    shortlist_recall,
)
from pipeline.evaluation.probabilities import probability_figures, strength_figures
from pipeline.gallery.gallery import Gallery, feature_matrix
from pipeline.index.versions import Index
from pipeline.scoring.candidates import TargetSegments
from pipeline.scoring.video_scores import rank_videos
from pipeline.search.leads import calibration_of
from pipeline.search.neighbours import near_leads, with_neighbours
from pipeline.search.partitions import Partitions
from pipeline.search.shortlist import segmented
from pipeline.search.targets import stored_target
from pipeline.settings import ScoreSettings

COATTENTION, COSINE, METRIC = "co-attention", "mean + cosine", "mean + learned metric"
ONE_QUERY = "co-attention, one query for all"  # candidates under a constant query vector: what a target's own is worth
NORMALISED = ", normalised"  # after the name of a baseline with cohort normalisation
CURVE_RANKS = 50
HISTOGRAM_BINS = 40
PARQUET_ROWS = 1_000_000  # about, a row group of the saved scores
FALSE_MATCH_RATES = (0.1, 0.01, 0.001, 0.0001)  # shown beside the one that was asked for, where the pairs suffice
FALSE_ALARM_RATES = (0.01, 0.05, 0.1, 0.2)
NO_CAMERA = "not given"

Floats = NDArray[np.float64]
Progress = Callable[[int, int], None]


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


@dataclass(frozen=True)
class Split:
    """One division of a data set. queries: video ids, None for every labelled video; gallery: video ids, None for all.

    sources: source ids of the data set's catalog; other videos of the index take no part.
    """

    queries: tuple[str, ...] | None
    gallery: frozenset[str] | None
    sources: frozenset[str]

    @classmethod
    def of(cls, labelled: LabelledData) -> "Split":
        """What a data set, or one of its splits, asks."""
        return cls(labelled.queries, labelled.gallery, frozenset(labelled.catalog.table["source_id"].to_pylist()))


@dataclass(frozen=True)
class JudgedPairs:
    """Which pairs count, and which are of the same person. One row a query of a split, one column a labelled video.

    query_rows int64 [Q], gallery_rows int64 [G]: rows of Index.videos. valid, same: bool [Q, G]. splits: int64 [Q], from 0.
    persons [Q], query_cameras [Q], gallery_cameras [G]: labels; NO_CAMERA where there is none. missing: videos that the splits
    name but that the index does not have, or not with a label.
    """

    query_rows: NDArray[np.int64]
    gallery_rows: NDArray[np.int64]
    valid: NDArray[np.bool_]
    same: NDArray[np.bool_]
    splits: NDArray[np.int64]
    persons: NDArray[np.str_]
    query_cameras: NDArray[np.str_]
    gallery_cameras: NDArray[np.str_]
    missing: int


def judged_pairs(videos: pa.Table, splits: Sequence[Split], data: str = "the data") -> JudgedPairs:
    """The pairs to judge, of all splits one after another; videos: Index.videos.

    Raises UsageError, which calls them `data`, when no query has a match.
    """
    ids, sources = videos["video_id"].to_pylist(), videos["source_id"].to_pylist()
    persons, cameras = videos["person_id"].to_pylist(), videos["camera_id"].to_pylist()
    row_of = {video_id: row for row, video_id in enumerate(ids) if persons[row] is not None}
    missing: set[str] = set()
    members: list[set[int]] = []
    query_rows: list[int] = []
    of_split: list[int] = []
    for number, split in enumerate(splits):
        inside = {video_id: row for video_id, row in row_of.items() if sources[row] in split.sources}
        named = sorted(inside) if split.queries is None else list(split.queries)
        gallery = inside.keys() if split.gallery is None else split.gallery
        missing |= {video_id for video_id in (*named, *(split.gallery or ())) if video_id not in row_of}
        query_rows += [row_of[video_id] for video_id in named if video_id in row_of]
        members.append({row_of[video_id] for video_id in gallery if video_id in row_of})
        of_split += [number] * (len(query_rows) - len(of_split))
    gallery_rows = np.array(sorted(set().union(*members), key=ids.__getitem__), np.int64)
    rows, belongs = np.array(query_rows, np.int64), np.array(of_split, np.int64)
    _, person = np.unique([name or "" for name in persons], return_inverse=True)
    names = np.array([NO_CAMERA if camera is None else camera for camera in cameras], np.str_)
    camera = np.where(pc.is_valid(videos["camera_id"]), np.unique(names, return_inverse=True)[1], -1)
    listed = np.array([[row in inside for row in gallery_rows.tolist()] for inside in members], np.bool_)
    same = person[rows][:, None] == person[gallery_rows]
    valid = listed.reshape(len(splits), len(gallery_rows))[belongs] & (rows[:, None] != gallery_rows)
    valid &= ~left_out(same, camera[rows][:, None], camera[gallery_rows])
    if not (valid & same).any():
        raise UsageError(f"{data}: no query has a match in its ranking; each person needs a second video, under another camera")
    labels = np.array([name or "" for name in persons], np.str_)[rows]
    return JudgedPairs(rows, gallery_rows, valid, same, belongs, labels, names[rows], names[gallery_rows], len(missing))


# ---- scores


def coattention_scores(
    gallery: Gallery,
    index: Index,
    partitions: Partitions,
    queries: NDArray[np.int64],
    candidates: NDArray[np.int64],
    settings: ScoreSettings,
    progress: Progress = lambda done, total: None,
    *,
    one_query: bool = False,
    alone: Floats | None = None,
) -> Floats:
    """The full score of the search for every pair, float64 [q, g]; queries [q] and candidates [g] are rows of Index.videos.

    progress is told queries done and in all. one_query: candidates' frames are judged by the constant query vector of the index
    in place of each target's own. alone: [q, g], takes the scores before neighbours had a say.
    """
    scores = np.empty((len(queries), len(candidates)))
    for done, (place, target) in enumerate(_encoded(gallery, index, queries), start=1):
        if one_query and index.query is not None:
            same = torch.from_numpy(index.query).expand_as(target.encoding.query_vectors).clone()
            target = replace(target, encoding=replace(target.encoding, query_vectors=same))
        scores[place] = partitions.score(target, candidates, settings)
        if alone is not None:
            alone[place] = scores[place]
        others = candidates != queries[place]  # the query itself has no say
        known = candidates[others], scores[place, others]
        scores[place, others] = with_neighbours(index, partitions, target.whole, *known, settings)
        progress(done, len(queries))
    return scores


def shortlisted(
    gallery: Gallery,
    index: Index,
    partitions: Partitions,
    pairs: JudgedPairs,
    alone: Floats,
    score: ScoreSettings,
    sizes: Sequence[str],
) -> NDArray[np.bool_]:
    """What searches score in full with shortlists of these sizes, of what counts: bool [sizes, Q, G].

    The first of the prefilter, and what is near to the best of them (`near_leads`); patience is not looked at. alone: scores
    [Q, G] before neighbours had a say.
    """
    ids = np.array(index.videos["video_id"].to_pylist(), np.str_)
    column = np.full(len(ids), -1, np.int64)
    column[pairs.gallery_rows] = np.arange(len(pairs.gallery_rows))
    chosen = np.zeros((len(sizes), *pairs.valid.shape), np.bool_)
    queries = np.unique(pairs.query_rows)
    for place, target in _encoded(gallery, index, queries):
        for row in np.flatnonzero(pairs.query_rows == queries[place]):
            allowed = np.zeros(len(ids), np.bool_)
            allowed[pairs.gallery_rows[pairs.valid[row]]] = True
            lengths = [shortlist_length(size, int(allowed.sum())) for size in sizes]
            found, logits = partitions.shortlist(target.for_prefilter, max(lengths), allowed)
            ranked = found[rank_videos(logits, ids[found])]
            for kept, length in zip(chosen, lengths, strict=True):
                first = ranked[:length]
                scores = alone[row, column[first]]
                near = near_leads(index, partitions, target.encoding, target.whole, first, scores, score, allowed)
                kept[row, column[np.concatenate([first, near])]] = True
    return chosen


def _encoded(gallery: Gallery, index: Index, queries: NDArray[np.int64]) -> Iterator[tuple[int, TargetSegments]]:
    """(place in `queries`, its segments) of every query, in the order of the shards, so that each is read once."""
    videos = index.videos.take(pa.array(queries))
    for place, frames in gallery.iter_videos(videos):
        yield place, segmented(stored_target(videos.slice(place, 1).to_pylist()[0], frames), index)


def video_means(gallery: Gallery, index: Index) -> tuple[Floats, Floats]:
    """Mean frame feature [V, D] and mean value under the index's head [V, d_v] of every video, float64.

    Where the index tells cameras apart both are, and of unit length.
    """
    features = np.empty((len(index.videos), gallery.feature_width))
    values = np.empty((len(index.videos), index.head.config.value_width))
    cameras = index.videos["camera_id"].to_pylist()
    for position, table in gallery.iter_videos(index.videos):
        of_frames = feature_matrix(table)
        features[position] = of_frames.mean(axis=0, dtype=np.float64)
        with torch.inference_mode():
            of_head = index.heads.of(cameras[position]).values(torch.from_numpy(np.array(of_frames)))
        values[position] = of_head.double().mean(dim=0).numpy()
    if index.cameras is None:
        return features, values
    return without_cameras(_unit(features), cameras), _unit(values)


def without_cameras(means: Floats, cameras: Sequence[str | None]) -> Floats:
    """Features of videos [V, D] changed as `pipeline.coattention.cameras` changes values, by statistics of all; unit vectors."""
    statistics = camera_statistics(means, cameras)
    rows = np.array([statistics.row(camera) for camera in cameras])
    changed = np.empty_like(means)
    for row in np.unique(rows):
        mean, by = (part[row].astype(np.float64) for part in (statistics.means, statistics.maps))
        changed[rows == row] = (means[rows == row] - mean) @ by
    return _unit(changed)


def _unit(vectors: Floats) -> Floats:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def cosine_scores(queries: ArrayLike, candidates: ArrayLike) -> Floats:
    """Cosine of mean frame features, float64 [q, g]; queries [q, D], candidates [g, D]."""
    left, right = (np.asarray(part, np.float64) for part in (queries, candidates))
    lengths = [np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in (left, right)]
    return (left / lengths[0]) @ (right / lengths[1]).T


def metric_scores(queries: ArrayLike, candidates: ArrayLike, weight: ArrayLike) -> Floats:
    """sum_d w_d (q_d - g_d)^2 of mean values, float64 [q, g]: the head's logit of one mean against another, less its bias.

    queries [q, d_v], candidates [g, d_v], weight [d_v] of any sign.
    """
    weight = np.asarray(weight, np.float64)
    left, right = (np.asarray(part, np.float64) for part in (queries, candidates))
    centre = right.mean(axis=0)  # keeps the terms of the opened square small
    left, right = left - centre, right - centre
    return (left**2 @ weight)[:, None] + right**2 @ weight - 2 * (left * weight) @ right.T


def cohort_normalised(scores: ArrayLike, query_cohort: ArrayLike, gallery_cohort: ArrayLike, share: float = NEAREST) -> Floats:
    """Scores of whole videos as `coattention.cohort` normalises those of segments: ((s - mu_q) / sd_q + (s - mu_g) / sd_g) / 2.

    scores [q, g]; query_cohort [q, C], gallery_cohort [g, C]: scores of each side against a cohort of videos, NaN where a video
    meets itself. mu and sd are taken over the nearest `share` of the cohort. A side without spread there is only centred.
    """
    scores = np.asarray(scores, np.float64)
    (query_mean, query_spread), (gallery_mean, gallery_spread) = (
        _nearest(np.asarray(cohort, np.float64), share) for cohort in (query_cohort, gallery_cohort)
    )
    return ((scores - query_mean[:, None]) / query_spread[:, None] + (scores - gallery_mean) / gallery_spread) / 2


def _nearest(cohort: Floats, share: float) -> tuple[Floats, Floats]:
    """Mean and standard deviation [n] of the best share of each row of a cohort's scores [n, C]."""
    descending = -np.sort(-cohort, axis=1)  # NaN comes last
    count = np.ceil(share * (~np.isnan(cohort)).sum(axis=1, keepdims=True))
    chosen = np.arange(cohort.shape[1]) < np.maximum(count, 1)
    total = np.maximum((chosen & ~np.isnan(descending)).sum(axis=1), 1)
    mean = np.where(chosen, np.nan_to_num(descending), 0.0).sum(axis=1) / total
    spread = np.sqrt(np.where(chosen, np.nan_to_num(descending - mean[:, None]) ** 2, 0.0).sum(axis=1) / total)
    return mean, np.where(spread > 1e-12, spread, 1.0)


def baseline_scores(gallery: Gallery, index: Index, pairs: JudgedPairs) -> Iterator[tuple[str, Floats]]:
    """(name, scores [Q, G]) of the baselines, each plain and, where the index has a usable cohort, normalised by its videos."""
    features, values = video_means(gallery, index)
    weight, _ = index.heads.score_row()
    cohort = np.unique(index.cohort.video.numpy())  # rows of Index.videos
    scored: dict[str, tuple[Floats, Callable[[Floats, Floats], Floats]]] = {
        COSINE: (features, cosine_scores),
        METRIC: (values, lambda queries, candidates: metric_scores(queries, candidates, weight)),
    }
    for name, (means, score) in scored.items():
        scores = score(means[pairs.query_rows], means[pairs.gallery_rows])
        yield name, scores
        if index.cohort.usable:
            of_queries, of_gallery = (_against(means, rows, cohort, score) for rows in (pairs.query_rows, pairs.gallery_rows))
            yield name + NORMALISED, cohort_normalised(scores, of_queries, of_gallery)


def _against(
    means: Floats, rows: NDArray[np.int64], cohort: NDArray[np.int64], score: Callable[[Floats, Floats], Floats]
) -> Floats:
    return np.where(rows[:, None] == cohort, np.nan, score(means[rows], means[cohort]))


# ---- figures


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
    chosen = shortlisted(gallery, index, partitions, pairs, alone, score, settings.shortlists)
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


def write_pair_scores(scores: dict[str, Floats], index: Index, pairs: JudgedPairs, sink: IO[bytes]) -> None:
    """Every pair that counts as a row of a Parquet file: split, query_id, video_id, same, and a float32 column a method."""
    ids = index.videos["video_id"]
    queries, gallery = (ids.take(pa.array(rows)) for rows in (pairs.query_rows, pairs.gallery_rows))
    schema = pa.schema(
        [("split", pa.int32()), ("query_id", pa.string()), ("video_id", pa.string()), ("same", pa.bool_())]
        + [(name, pa.float32()) for name in scores]
    )
    block = max(1, math.ceil(PARQUET_ROWS / len(pairs.gallery_rows)))
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, len(pairs.query_rows), block):
            part = slice(start, start + block)
            rows, columns = np.nonzero(pairs.valid[part])
            arrays = [
                pa.array(pairs.splits[part][rows], pa.int32()),
                queries.take(pa.array(rows + start)).combine_chunks(),
                gallery.take(pa.array(columns)).combine_chunks(),
                pa.array(pairs.same[part][rows, columns]),
                *(pa.array(table[part][rows, columns].astype(np.float32)) for table in scores.values()),
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
