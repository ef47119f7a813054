"""Routes of what a search found besides its list of leads: all scores, cameras and times, what speaks for a lead, and tables."""

import io
from dataclasses import replace
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import APIRouter, HTTPException, Query, Response

from pipeline import time_windows
from pipeline.gallery.places import read_places, with_right_times
from pipeline.search.results import SegmentView, results_table, table_csv
from pipeline.service import answers, view_answers
from pipeline.service.asking import PROBLEMS, LeadOf, SearchOf, file_of, may
from pipeline.service.searches import Search

routes = APIRouter(
    prefix="/api/v1/searches/{search_id}", tags=["searches"], responses=PROBLEMS, dependencies=[may("investigate")]
)


@routes.get("/distribution")
def get_distribution(search: SearchOf, bins: Annotated[int, Query(ge=2, le=200)] = 50) -> view_answers.Distribution:
    """How all scores are distributed: counts in bins from 0 to 1, or over their range where scores are sums."""
    _, scores = _all_scores(search)
    bounded = len(scores) == 0 or (scores.min() >= 0 and scores.max() <= 1)
    span = (0.0, 1.0) if bounded else (float(scores.min()), float(scores.max()))
    counts, edges = np.histogram(scores, bins, span)
    leads = [lead.score for lead in search.leads()]
    return view_answers.Distribution(
        edges=edges.tolist(), counts=counts.tolist(), scored=len(scores), lowest_lead=min(leads, default=None)
    )


@routes.get("/timeline")
def get_timeline(search: SearchOf, limit: Annotated[int, Query(ge=1, le=5000)] = 1000) -> view_answers.Timeline:
    """Where and when the best of all scored videos are: what a page draws as cameras by time."""
    videos, scores = _all_scores(search)
    best = np.argsort(-scores, kind="stable")[:limit]
    places = read_places(search.gallery)
    rows = with_right_times(videos.take(pa.array(best)), places)
    ranks = {lead.video.video_id: lead.rank for lead in search.leads()}
    first, last = time_windows.seen(rows)
    columns = (rows["video_id"], rows["camera_id"], first, last)
    points = [
        view_answers.TimelinePoint(
            video_id=video_id, camera_id=camera, seen_from=start, seen_to=end, score=score, rank=ranks.get(video_id)
        )
        for (video_id, camera, start, end), score in zip(
            zip(*(column.to_pylist() for column in columns), strict=True), scores[best].tolist(), strict=True
        )
    ]
    cameras = sorted({one.camera_id for one in points}, key=lambda one: (one is None, one))
    untimed = sum(one.seen_from is None for one in points)
    return view_answers.Timeline(cameras=cameras, points=points, left_out=len(scores) - len(best), untimed=untimed)


@routes.get("/leads/{rank}/evidence")
def get_evidence(lead: LeadOf) -> view_answers.Evidence:
    """What speaks for a lead: its best pairs of segments, and how much each of its frames counts, with its time."""
    shares: dict[int, view_answers.FrameShare] = {}
    for pair in lead.best_pairs:
        view = pair.candidate
        for frame, time_s, attention in zip(view.frame_index, view.time_s, view.attention, strict=True):
            if frame not in shares or shares[frame].share < attention:
                shares[frame] = view_answers.FrameShare(frame=frame, time_s=time_s, share=attention)
    largest = max((one.share for one in shares.values()), default=1.0)
    return view_answers.Evidence(
        rank=lead.rank,
        video_id=lead.video.video_id,
        pairs=[
            answers.Pair(target=segment(pair.target), candidate=segment(pair.candidate), score=pair.score)
            for pair in lead.best_pairs
        ],
        shares=[one.model_copy(update={"share": one.share / largest}) for _, one in sorted(shares.items())],
        ingested_hash=lead.video.ingested_hash,
        source_hash=lead.source_hash,
    )


PARQUET = "application/vnd.apache.parquet"


@routes.get("/results.parquet", **file_of(PARQUET))
def get_results_parquet(search: SearchOf) -> Response:
    """The leads with all that made them, as results.parquet has them (docs/results.md); none that was forgotten since."""
    sink = io.BytesIO()
    pq.write_table(_table(search), sink)
    return _download(sink.getvalue(), PARQUET, "results.parquet")


@routes.get("/results.csv", **file_of("text/csv"))
def get_results_csv(search: SearchOf) -> Response:
    """The same for a spreadsheet."""
    return _download(table_csv(_table(search)).encode(), "text/csv; charset=utf-8", "results.csv")


def _table(search: Search) -> pa.Table:
    if search.result is None:
        raise HTTPException(404, f"the search is {search.state}")
    search.view()
    result = replace(search.result, leads=tuple(search.leads()))
    return results_table([result.by_right_clocks(read_places(search.gallery))])


def _download(content: bytes, kind: str, name: str) -> Response:
    return Response(content, media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'})


def segment(view: SegmentView) -> answers.Segment:
    """A segment as it is answered."""
    return answers.Segment(frames=list(view.frame_index), times=list(view.time_s), attention=list(view.attention))


def _all_scores(search: Search) -> tuple[pa.Table, np.ndarray]:
    """The scored videos, rows of the index's, and their scores, float64 [m]; none that was forgotten since."""
    if search.answer is None or search.result is None or search.result.all_scores is None:
        raise HTTPException(404, f"the search is {search.state}")
    scored = search.result.all_scores
    videos = search.answer.index.videos.take(pa.array(scored.videos))
    gone = search.gallery.forgotten(search.known)
    kept = np.array([video_id not in gone for video_id in videos["video_id"].to_pylist()], bool) if gone else None
    return (videos, scored.scores) if kept is None else (videos.filter(pa.array(kept)), scored.scores[kept])
