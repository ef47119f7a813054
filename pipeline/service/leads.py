"""The list of a search's leads: all at once for who waited, or page by page in an order of one's choice."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query

from pipeline import time_windows
from pipeline.gallery.places import read_places, with_right_time
from pipeline.search.results import Lead, SearchResult
from pipeline.service import answers, found
from pipeline.service.asking import PROBLEMS, SearchOf, may
from pipeline.service.searches import Search

routes = APIRouter(prefix="/api/v1", tags=["searches"], responses=PROBLEMS, dependencies=[may("investigate")])

LeadOrder = Literal["score", "time", "camera"]
Seen = tuple[datetime, datetime] | None


def _by_time(lead: Lead, seen: Seen) -> tuple[Any, ...]:
    return (seen is None, *(seen or ()), lead.rank)


def _by_camera(lead: Lead, seen: Seen) -> tuple[Any, ...]:
    camera = lead.video.camera_id
    return (camera is None, camera or "", *_by_time(lead, seen))


ORDERS: dict[LeadOrder, Callable[[Lead, Seen], tuple[Any, ...]]] = {
    "score": lambda lead, _seen: (lead.rank,),
    "time": _by_time,
    "camera": _by_camera,
}


@routes.get("/searches/{search_id}/leads")
def list_leads(
    search: SearchOf,
    sort: Annotated[
        LeadOrder,
        Query(
            description="score: the best first; time: the earliest first, by right clocks, those without a time last; camera: by "
            "the camera's id, then by time, those without a camera last."
        ),
    ] = "score",
    cursor: Annotated[int | None, Query(ge=1, le=10**9, description="`following` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> answers.Leads:
    """The leads of a search that is done, a page at a time; none that was forgotten since."""
    result = _result(search)
    rows = sorted(_seen(search, result.leads), key=lambda row: ORDERS[sort](*row))
    if cursor is not None:
        # Of all leads, those that were forgotten too: what a page ended with may be one by now.
        places = [place for place, (lead, _) in enumerate(rows, 1) if lead.rank == cursor]
        if not places:
            raise HTTPException(422, "this cursor is of another search; begin without one")
        rows = rows[places[0] :]
    there = {lead.rank for lead in search.leads()}
    rows = [row for row in rows if row[0].rank in there]
    following = rows[limit - 1][0].rank if len(rows) > limit else None
    return answers.Leads(leads=[_found(search, result, *row) for row in rows[:limit]], following=following)


def all_leads(search: Search) -> list[answers.LeadFound]:
    """All leads of a search that is done, the best first; none that was forgotten since."""
    result = _result(search)
    return [_found(search, result, *row) for row in _seen(search, search.leads())]


def _result(search: Search) -> SearchResult:
    if search.result is None:
        raise HTTPException(404, f"the search is {search.state}")
    return search.result


def _seen(search: Search, leads: Sequence[Lead]) -> list[tuple[Lead, Seen]]:
    """Leads, and when somebody is seen in each by right clocks."""
    places = read_places(search.gallery)
    return [(lead, with_right_time(lead.video, places).seen) for lead in leads]


def _found(search: Search, result: SearchResult, lead: Lead, seen: Seen) -> answers.LeadFound:
    """A lead as it is answered. seen: when somebody is first and last seen in it."""
    within = {} if result.followed is None else result.followed.why
    first, last = seen or (None, None)
    return answers.LeadFound(
        rank=lead.rank,
        video_id=lead.video.video_id,
        camera_id=lead.video.camera_id,
        seen_from=first,
        seen_to=last,
        seen=time_windows.span_words(*seen, result.settings.zone) if seen else None,
        score=lead.score,
        probability=lead.probability,
        strength=lead.strength,
        source_changed=lead.source_changed,
        copy_of=result.copies.get(lead.rank),
        within=within[lead.video.video_id].words if lead.video.video_id in within else None,
        decision=search.decisions.get(lead.rank),
        pairs=[
            answers.Pair(target=found.segment(pair.target), candidate=found.segment(pair.candidate), score=pair.score)
            for pair in lead.best_pairs
        ],
    )
