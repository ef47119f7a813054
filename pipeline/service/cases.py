"""Routes about cases: what several people decide about leads, blind confirmation by a second one, and the path that comes out."""

import re
from dataclasses import asdict
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, Depends, Header, HTTPException, Query, Response

from pipeline.gallery import audit
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.places import read_places, with_right_times
from pipeline.gallery.video_ref import VideoRef
from pipeline.search.results import Lead
from pipeline.service import case_answers as answers
from pipeline.service import travel
from pipeline.service.access import Token
from pipeline.service.answers import Problem
from pipeline.service.asking import PROBLEMS, Asking, Key, Service, ServiceOf, file_of, gallery_of, may
from pipeline.service.case_pictures import keep_target, kept_picture
from pipeline.service.casebook import Case, Judged, of_lead, of_search
from pipeline.service.pictures import jpeg
from pipeline.service.searches import Search
from pipeline.service.uploads import UPLOAD_PREFIX

OF_CASES = PROBLEMS | {code: {"model": Problem} for code in (409, 412, 428)}
routes = APIRouter(prefix="/api/v1", tags=["cases"], responses=OF_CASES, dependencies=[may("look")])


def _case(service: ServiceOf, case: str, gallery: Annotated[str | None, Query(max_length=500)] = None) -> Case:
    """The case of a name. gallery: needed only where several galleries have a case of that name."""
    names = [name for name in service.galleries if gallery in (None, name)]
    found = [one for name in names if (one := service.casebook.open(service.galleries[name], name, case)) is not None]
    if len(found) > 1:
        raise HTTPException(409, f"several galleries have a case {case}; say which one with ?gallery=")
    if not found:
        raise HTTPException(404, "there is no such case here")
    return found[0]


CaseOf = Annotated[Case, Depends(_case)]


def _judged(case: CaseOf, video_id: str) -> Judged:
    if video_id not in case.judged:
        raise HTTPException(404, "nobody has decided on this video in this case")
    return case.judged[video_id]


JudgedOf = Annotated[Judged, Depends(_judged)]
IfMatch = Annotated[str | None, Header(alias="If-Match", max_length=100)]
IfNoneMatch = Annotated[str | None, Header(alias="If-None-Match", max_length=100)]


@routes.post("/cases", status_code=201, dependencies=[may("investigate")])
def begin_case(
    asked: answers.CaseBegun, service: ServiceOf, asking: Asking, response: Response, key: Key = None
) -> answers.CaseSummary:
    """Begin a case in a gallery."""
    gallery = gallery_of(service, asking.person, asked.gallery)

    def make() -> Case:
        return service.casebook.begin(gallery, asked.gallery, asked.name, asking, asked.title, asked.reason)

    made = service.once(asking.person, key, asked, make)
    response.headers["location"] = f"/api/v1/cases/{made.name}"
    return answers.CaseSummary(**_summary(made))


@routes.get("/cases")
def list_cases(service: ServiceOf, asking: Asking) -> list[answers.CaseSummary]:
    """All cases of all galleries here, those that changed last first."""
    found = [
        case
        for gallery_name, gallery in service.galleries.items()
        for name in service.casebook.names(gallery)
        if (case := service.casebook.open(gallery, gallery_name, name)) is not None
    ]
    found.sort(key=lambda case: case.records[-1]["at"], reverse=True)
    return [answers.CaseSummary(**_summary(case)) for case in found]


@routes.get("/cases/{case}")
def get_case(found: CaseOf, asking: Asking) -> answers.CaseFound:
    """A case with its leads and its history. From whoever may still confirm a decision, what it says is kept."""
    return _found(found, asking)


@routes.put("/cases/{case}/state", dependencies=[may("investigate")])
def set_case_state(found: CaseOf, asked: answers.CaseState, service: ServiceOf, asking: Asking) -> answers.CaseFound:
    """Close a case, or go on with it."""
    return _found(service.casebook.close(found, asking, asked.state == "closed"), asking)


@routes.get("/cases/{case}/decisions/{video_id:path}")
def get_decision(found: CaseOf, judged: JudgedOf, asking: Asking, response: Response) -> answers.JudgedLead:
    """What was decided on a video. Its ETag is what a change of it names in If-Match."""
    response.headers["etag"] = f'"{judged.tag}"'
    return _lead(judged, asking, rows(found.gallery, [judged.video_id]))


@routes.put("/cases/{case}/decisions/{video_id:path}", dependencies=[may("investigate")])
def decide_in_case(
    found: CaseOf,
    video_id: str,
    asked: answers.LeadDecided,
    service: ServiceOf,
    asking: Asking,
    response: Response,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> answers.CaseFound:
    """Decide on a lead, anew too, or take it back: null. If-Match names the decision that it replaces, `If-None-Match: *` says
    that there is none; 412 where somebody was faster.
    """
    said = _said(found, video_id, asked, service, asking)
    tag = _tag(found, video_id, if_match, if_none_match)
    changed = service.casebook.decide(found, asking, video_id, tag, asked.decision, said)
    response.headers["etag"] = f'"{changed.tag(video_id)}"'
    return _found(changed, asking)


@routes.post("/cases/{case}/confirmations", status_code=201, dependencies=[may("confirm")])
def confirm_decision(found: CaseOf, asked: answers.LeadConfirmed, service: ServiceOf, asking: Asking) -> answers.JudgedLead:
    """Say, as a second person and before seeing it, what the first one was asked. The answer tells what that one said."""
    changed = service.casebook.confirm(found, asking, asked.video_id, asked.tag, asked.decision, asked.note)
    return _lead(changed.judged[asked.video_id], asking, rows(found.gallery, [asked.video_id]))


@routes.get("/cases/{case}/pictures/{side}/{frame}.jpg", **file_of("image/jpeg"))
def get_case_picture(
    found: CaseOf, side: str, frame: int, video_id: Annotated[str, Query(max_length=2000)], service: ServiceOf, asking: Asking
) -> Response:
    """A frame that speaks for a decided lead. side: target or candidate."""
    judged = _judged(found, video_id)
    segment = (judged.record["evidence"] or {}).get(side)
    if segment is None or frame not in segment["frames"]:
        raise HTTPException(404, "this frame is no evidence of this lead")
    service.viewed(found.gallery, asking.person, {"case": found.name, "video_id": video_id})
    times = dict(zip(segment["frames"], segment["times"], strict=True))
    shown = judged.target if side == "target" else video_id
    if shown is None:  # an upload
        if (kept := kept_picture(found, judged.record, frame)) is not None:
            return jpeg(kept)
        search = service.searches.known(judged.record["search"])
        return jpeg(None if search is None else service.pictures.of_target(search, frame))
    video = rows(found.gallery, [shown]).get(shown)
    return jpeg(None if video is None else service.pictures.of_video(found.gallery, video, times, frame))


@routes.get("/cases/{case}/path")
def get_case_path(
    found: CaseOf, asking: Asking, fastest: Annotated[float, Query(gt=0, le=1000)] = travel.METRES_PER_SECOND
) -> answers.CasePath:
    """The targets and the leads that were called the same person, over cameras and time. fastest: metres a second that somebody
    may go. What a second person did not agree to is left out.
    """
    return case_path(found, asking, fastest)


def case_path(case: Case, asking: Token, fastest: float = travel.METRES_PER_SECOND) -> answers.CasePath:
    """The path of a case as this person may see it; see `path`."""
    same = [one for one in case.same if not one.hidden_from(asking)]
    targets = [target for one in same for target in one.targets]
    why = {**dict.fromkeys(targets, "target"), **{one.video_id: "same person" for one in same}}
    videos, places = rows(case.gallery, list(why)), read_places(case.gallery)
    confirmed = {one.video_id for one in same if one.confirmed}
    return answers.CasePath(
        appearances=[_appearance(video, why, confirmed, places) for video in travel.in_order(videos.values())],
        legs=[answers.PathLeg(**asdict(leg)) for leg in travel.legs(videos.values(), places, fastest)],
        hidden=sum(one.hidden_from(asking) for one in case.judged.values()),
    )


def _appearance(video: VideoRef, why: dict[str, str], confirmed: set[str], places: dict[str, Any]) -> answers.Appearance:
    place = places.get(video.camera_id or "")
    of_place = {name: getattr(place, name, None) for name in ("latitude", "longitude", "x_m", "y_m")}
    return answers.Appearance(
        video_id=video.video_id,
        why=why[video.video_id],
        confirmed=video.video_id in confirmed,
        camera=getattr(place, "name", None),
        **_seen(video),
        **of_place,
    )


def _said(case: Case, video_id: str, asked: answers.LeadDecided, service: Service, asking: Token) -> dict[str, Any]:
    """What a decision's record says besides: the search and what it says of the lead. Raises HTTPException where it has none."""
    if asked.search is None:
        if asked.decision is not None:
            raise HTTPException(422, "say which search of yours found the lead")
        return {"note": asked.note}
    search = service.searches.of(asking.person, asked.search)
    if search is None or search.result is None:
        raise HTTPException(404, "there is no such search of yours that is done; search again")
    if search.gallery is not case.gallery:
        raise HTTPException(422, "the search was made in another gallery")
    lead = next((one for one in search.leads() if one.video.video_id == video_id), None)
    if lead is None:
        raise HTTPException(422, "the search has no such lead")
    return {"note": asked.note, **said_of(case, search, lead, service)}


def said_of(case: Case, search: Search, lead: Lead, service: Service) -> dict[str, Any]:
    """What the record of a decision says of a lead and of the search of the deciding person that found it. Of an uploaded target
    the pictures are kept first.
    """
    named = {name: value for name, value in search.fields().items() if name != "case"}
    upload = service.uploads.of(search.person, search.asked.target.removeprefix(UPLOAD_PREFIX))
    return named | of_search(search) | of_lead(lead) | keep_target(case, search, lead, upload, service.pictures)


def _tag(case: Case, video_id: str, if_match: str | None, if_none_match: str | None) -> int | None:
    """The decision that is to be replaced, None for whatever there is. Raises HTTPException 428 where nothing says so."""
    if if_none_match == "*":
        if video_id in case.judged:
            raise HTTPException(412, f"somebody has decided on {video_id} meanwhile; look again")
        return case.tag(video_id)
    if if_match is None:
        raise HTTPException(428, "say in If-Match which decision this replaces (its ETag), or If-None-Match: * for the first one")
    if if_match == "*":
        return None
    if not re.fullmatch(r'"\d{1,10}"', if_match):
        raise HTTPException(412, "this ETag is none of a decision")
    return int(if_match.strip('"'))


def _summary(case: Case) -> dict[str, Any]:
    first = case.records[0]
    return {
        "name": case.name,
        "gallery": case.gallery_name,
        "title": first["title"],
        "reason": first["reason"],
        "begun_by": first["who"],
        "begun_at": first["at"],
        "state": "open" if case.is_open else "closed",
        "judged": len(case.judged),
        "waiting": sum(one.confirmation is None for one in case.judged.values()),
        "changed_at": case.records[-1]["at"],
    }


def _found(case: Case, asking: Token) -> answers.CaseFound:
    videos = rows(case.gallery, list(case.judged))
    hidden = {video_id for video_id, one in case.judged.items() if one.hidden_from(asking)}
    return answers.CaseFound(
        **_summary(case),
        leads=[_lead(one, asking, videos) for one in case.judged.values()],
        events=[_event(record, hidden) for record in case.records],
        exports=[record["export"] for record in case.records if record["action"] == "export"],
        head=audit.head(case.gallery, case.chain),
        requires=list(audit.required(case.gallery)),
    )


def _event(record: dict[str, Any], hidden: set[str]) -> answers.CaseEvent:
    shown = record.get("video_id") not in hidden
    said: dict[str, Any] = {name: record.get(name) for name in ("number", "at", "action", "video_id")}
    said |= {name: record.get(name) if shown else None for name in ("who", "decision")}
    return answers.CaseEvent(**said)


def _lead(judged: Judged, asking: Token, videos: dict[str, VideoRef]) -> answers.JudgedLead:
    record, hidden = judged.record, judged.hidden_from(asking)
    said = judged.confirmation
    fields: dict[str, Any] = {name: record.get(name) for name in ("search", "target", "evidence")}
    kept = ("decision", "who", "note", "rank", "score", "probability")
    fields |= {name: None if hidden else record.get(name) for name in kept}
    return answers.JudgedLead(
        tag=judged.tag,
        hidden=hidden,
        at=record["at"],
        confirmation=None if said is None else answers.ConfirmationSaid(**asdict(said)),
        **fields,
        video_id=judged.video_id,
        **_seen(videos.get(judged.video_id)),
    )


def _seen(video: VideoRef | None) -> dict[str, Any]:
    if video is None:
        return {"camera_id": None, "seen_from": None, "seen_to": None}
    first, last = video.seen or (None, None)
    return {"camera_id": video.camera_id, "seen_from": first, "seen_to": last}


def rows(gallery: Gallery, video_ids: list[str]) -> dict[str, VideoRef]:
    """Videos of the gallery by id, by right clocks; those that are not there are left out."""
    table = gallery.snapshot().videos
    rows = table.filter(pc.is_in(table["video_id"], pa.array(video_ids, pa.string())))
    return {row["video_id"]: VideoRef.of(row) for row in with_right_times(rows, read_places(gallery)).to_pylist()}
