"""The HTTP interface, /api/v1: sessions and searches, the routes of the other files, and the page."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from http import HTTPStatus
from importlib import resources
from pathlib import PurePath
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp

from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.audit import SAID, required
from pipeline.gallery.gallery import Gallery
from pipeline.search.open_gallery import asked_settings
from pipeline.search.run import Answer
from pipeline.search.run import run as run_search
from pipeline.search.targets import GALLERY_PREFIX, Whom
from pipeline.service import (
    answers,
    cases,
    description,
    found,
    galleries,
    handover,
    jobs,
    leads,
    media,
    operation,
    plans,
    removals,
    view_answers,
)
from pipeline.service.access import RIGHTS, SESSION_SECONDS, Token
from pipeline.service.asking import (
    COOKIE,
    PROBLEMS,
    Asking,
    Key,
    LeadOf,
    Person,
    SearchOf,
    Service,
    ServiceOf,
    Wait,
    file_of,
    gallery_of,
    may,
)
from pipeline.service.casebook import ConflictError, NotNowError
from pipeline.service.guard import Guard
from pipeline.service.pictures import jpeg
from pipeline.service.reference import reference_page
from pipeline.service.searches import Search
from pipeline.service.uploads import UPLOAD_PREFIX
from pipeline.service.work import BusyError

ABOUT = "Search for people in the videos of galleries, judge what was found in cases, hand it over. Every search is on record."
KINDS = {
    ".svg": "image/svg+xml",
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
PAGE = {
    file.name: file.read_bytes() for file in resources.files("pipeline.service").joinpath("page").iterdir() if "." in file.name
}


api = APIRouter(prefix="/api/v1", tags=["session"], responses=PROBLEMS)


@api.post("/session")
def sign_in(asked: answers.SignIn, service: ServiceOf, response: Response) -> answers.Me:
    """Exchange a token for the session cookie of a browser; the one of the printed address is used up by it."""
    opened = service.access.sign_in(asked.token)
    if opened is None:
        raise HTTPException(401, "this token is not valid, or was used already", {"www-authenticate": "Bearer"})
    session, known = opened
    how: dict[str, Any] = {"httponly": True, "samesite": "strict", "secure": service.secure, "path": "/"}
    response.set_cookie(COOKIE, session, max_age=int(SESSION_SECONDS), **how)
    return _me(known)


@api.delete("/session", status_code=204)
def sign_out(request: Request, response: Response, service: ServiceOf, person: Person) -> None:
    """End the session."""
    service.access.sign_out(request.cookies.get(COOKIE, ""))
    response.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=service.secure)


@api.get("/me")
def get_me(asking: Asking) -> answers.Me:
    """Who is asking, and what their role lets them do."""
    return _me(asking)


@api.get("/openapi.json", include_in_schema=False)
def get_description(request: Request, person: Person) -> JSONResponse:
    """This interface in OpenAPI."""
    return JSONResponse(request.app.openapi())


@api.get("/reference", include_in_schema=False)
def get_reference(request: Request, person: Person) -> HTMLResponse:
    """This interface as a page for people."""
    return HTMLResponse(reference_page(request.app.openapi()))


investigation = APIRouter(prefix="/api/v1", tags=["searches"], responses=PROBLEMS, dependencies=[may("investigate")])


@investigation.post("/targets", status_code=201, openapi_extra={
    "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
})  # fmt: skip
async def upload_target(
    request: Request, service: ServiceOf, person: Person, name: Annotated[str, Query(min_length=1, max_length=500)]
) -> answers.UploadedTarget:
    """Bring a video or a photo, as the body of the request. name: of the file; its ending says what a photo is."""
    taken = await service.uploads.take(person, name, request.stream())
    return answers.UploadedTarget(target_id=taken.upload_id, bytes=taken.size, sha256=taken.sha256)


IN_TIME: dict[int | str, dict[str, Any]] = {
    201: {
        "model": answers.SearchFound,
        "description": "Done within the time that `Prefer: wait=SECONDS` gave.",
        "headers": {"Preference-Applied": {"schema": {"type": "string"}}, "Location": {"schema": {"type": "string"}}},
    }
}


@investigation.post("/searches", status_code=202, responses=IN_TIME, response_model=answers.SearchState)
async def begin_search(
    asked: answers.SearchAsked, service: ServiceOf, person: Person, response: Response, wait: Wait, key: Key = None
) -> answers.SearchState | Response:
    """Search for the person that a target shows. The answer tells where to ask for what was found, or says it: 201."""
    search = await to_thread.run_sync(_begun, service, person, asked, key)
    return await _in_time(search, wait, response)


async def _in_time(search: Search, wait: int | None, response: Response) -> answers.SearchState | Response:
    """What is answered to who has asked for a search: with its leads where it is done in so many seconds (RFC 7240)."""
    headers = {"location": f"/api/v1{search.address}"}
    if wait is not None:
        await search.ended(wait)
        headers["preference-applied"] = f"wait={wait}"
    state = await to_thread.run_sync(_state, search)
    if wait is not None and state.state == "done":
        found = answers.SearchFound(**dict(state), leads=await to_thread.run_sync(leads.all_leads, search))
        return Response(found.model_dump_json(), 201, headers, "application/json")
    response.headers.update(headers)
    return state


def _begun(service: Service, person: str, asked: answers.SearchAsked, key: str | None) -> Search:
    gallery = gallery_of(service, person, asked.gallery)
    given = {"reason": asked.reason, "case": asked.case}
    if missing := [name for name in required(gallery) if name in SAID and not (given[name] or "").strip()]:
        raise HTTPException(422, f"this gallery requires a {' and a '.join(missing)} for its audit log; nothing was done")
    run = _runner(service, gallery, person, asked)
    return service.once(person, key, asked, lambda: service.searches.begin(gallery, person, asked, run))


@investigation.get("/searches")
def list_searches(service: ServiceOf, person: Person) -> list[answers.SearchState]:
    """This person's searches since the service began, the newest first."""
    return [_state(search) for search in service.searches.all_of(person)]


@investigation.get("/searches/{search_id}")
async def get_search(search: SearchOf, wait: Annotated[float, Query(ge=0, le=30)] = 0) -> answers.SearchState:
    """How far a search is. wait: seconds to wait for its end."""
    await search.ended(wait)
    return await asyncio.to_thread(_state, search)


@investigation.delete("/searches/{search_id}")
def cancel_search(search: SearchOf, person: Person) -> answers.SearchState:
    """Cancel a search that has not ended; one that runs stops at the next piece of its work."""
    search.cancel(person)
    return _state(search)


@investigation.post("/searches/{search_id}/refine", status_code=202, responses=IN_TIME, response_model=answers.SearchState)
async def refine_search(
    asked: view_answers.Refined,
    search: SearchOf,
    service: ServiceOf,
    person: Person,
    response: Response,
    wait: Wait,
    key: Key = None,
) -> answers.SearchState | Response:
    """Search again, scored by the mean of the logits under the target and all that was confirmed, without what is hidden.

    What was confirmed or hidden before goes on to count, unless it is said otherwise now.
    """
    before = search.asked
    confirmed = [one for one in before.confirmed if one not in asked.hidden] + asked.confirmed
    hidden = [one for one in before.rejected if one not in asked.confirmed] + asked.hidden
    if not confirmed:
        raise HTTPException(422, "confirm a lead first: a search is refined by what shows the person")
    if both := set(asked.confirmed) & set(asked.hidden):
        raise HTTPException(422, f"{min(both)} is both confirmed and hidden")
    again = {"confirmed": list(dict.fromkeys(confirmed)), "rejected": list(dict.fromkeys(hidden))}
    return await begin_search(before.model_copy(update=again), service, person, response, wait, key)


_jpeg = file_of("image/jpeg")


@investigation.get("/searches/{search_id}/leads/{rank}/frames/{frame}.jpg", **_jpeg)
def get_lead_frame(service: ServiceOf, search: SearchOf, lead: LeadOf, frame: int) -> Response:
    """A frame of a lead's evidence, cut out as it was scored."""
    search.view()
    return jpeg(service.pictures.of_lead(search, lead, frame))


@investigation.get("/searches/{search_id}/target/frames/{frame}.jpg", **_jpeg)
def get_target_frame(service: ServiceOf, search: SearchOf, frame: int) -> Response:
    """A frame of the target that speaks for a lead."""
    if search.asked.target.removeprefix(GALLERY_PREFIX) in search.gallery.forgotten(search.known):
        raise HTTPException(404, "the target was forgotten")
    search.view()
    return jpeg(service.pictures.of_target(search, frame))


@investigation.put("/searches/{search_id}/leads/{rank}/decision", status_code=204)
def decide_lead(service: ServiceOf, asking: Asking, search: SearchOf, lead: LeadOf, decided: answers.Decided) -> None:
    """Say of a lead that it shows the same person, a different one, or that one cannot tell. It is written to the audit log, and
    where the search was made for a case, into that.
    """
    case = service.casebook.open(search.gallery, search.asked.gallery, search.asked.case or "")
    if case is None:
        search.decide(lead, decided.decision)
        return
    video_id = lead.video.video_id
    if video_id in case.judged and case.judged[video_id].record["who"] != asking.person:
        raise ConflictError(f"somebody else has decided on {video_id} in the case {case.name}; change it there")
    said = {"note": None} | cases.said_of(case, search, lead, service)
    service.casebook.decide(case, asking, video_id, case.tag(video_id), decided.decision, said)
    search.keep(lead, decided.decision)


pages = APIRouter(include_in_schema=False)


@pages.get("/")
def index_page() -> Response:
    """The page."""
    return page_file("index.html")


@pages.get("/page/{name}")
def page_file(name: str) -> Response:
    """A file of the page."""
    if name not in PAGE:
        raise HTTPException(404, "there is no such file")
    return Response(PAGE[name], media_type=KINDS[PurePath(name).suffix])


def create_app(service: Service, hosts: Sequence[str], only_here: bool = False) -> ASGIApp:
    """The application, guarded. hosts, only_here: who may ask, see `Guard`. It closes the service when it ends."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.begin()  # not before: from here on an interruption ends no import half-way
        try:
            yield
        finally:
            await asyncio.to_thread(service.close)

    described: dict[str, Any] = {"title": "resight", "version": "1", "description": ABOUT}
    described |= {"generate_unique_id_function": description.operation_id}
    app = FastAPI(**described, docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.service = service
    routers = (
        api,
        galleries.routes,
        media.routes,
        found.routes,
        leads.routes,
        investigation,
        cases.routes,
        handover.routes,
        jobs.routes,
        jobs.intake,
        plans.routes,
        removals.routes,
        operation.routes,
        operation.probes,
    )
    for router in routers:
        app.include_router(router)
    app.include_router(pages)
    app.openapi = lambda: description.described(app)  # type: ignore[method-assign] # as FastAPI's documentation has it
    app.exception_handler(StarletteHTTPException)(_refused)
    app.exception_handler(RequestValidationError)(_misunderstood)
    app.exception_handler(UsageError)(lambda _request, error: _problem(422, str(error)))
    app.exception_handler(PipelineError)(lambda _request, error: _problem(503, str(error)))
    app.exception_handler(ConflictError)(lambda _request, error: _problem(412, str(error)))
    app.exception_handler(NotNowError)(lambda _request, error: _problem(409, str(error)))
    app.exception_handler(BusyError)(lambda _request, error: _problem(429, str(error), {"retry-after": str(error.seconds)}))
    app.exception_handler(Exception)(lambda _request, _error: _problem(500, "a fault of the program; its error output says more"))
    return Guard(app, hosts, service.secure, only_here)


def _me(asking: Token) -> answers.Me:
    return answers.Me(person=asking.person, role=asking.role, rights=[right for right in RIGHTS if asking.may(right)])


def _meant(service: Service, gallery: Gallery, person: str, asked: answers.TargetAsked, whole_picture: bool) -> tuple[str, Whom]:
    """A target and who in it is meant. Raises UsageError for what cannot be meant; paths of this machine are never a target."""
    target = asked.target
    if target.startswith(UPLOAD_PREFIX):
        upload = service.uploads.of(person, target.removeprefix(UPLOAD_PREFIX))
        if upload is None:
            raise HTTPException(404, "there is no such upload of yours; bring it again")
        target = str(upload.path)
    elif target.startswith(GALLERY_PREFIX) and asked.box is not None:
        return _meant_by_box(service, gallery, asked)
    elif not target.startswith(GALLERY_PREFIX):
        raise UsageError(f"a target is {GALLERY_PREFIX}VIDEO_ID or {UPLOAD_PREFIX}TARGET_ID")
    return target, Whom(asked.box, asked.time_s, whole_picture=whole_picture, camera=asked.target_camera)


def _meant_by_box(service: Service, gallery: Gallery, asked: answers.TargetAsked) -> tuple[str, Whom]:
    """Whom a box shows in a picture of a gallery's video. time_s: of the video's own time."""
    clips = service.clips(gallery)
    row = clips.row(asked.target.removeprefix(GALLERY_PREFIX))
    if row is None:
        raise HTTPException(404, "the gallery has no such video")
    part = clips.places(row).part(asked.time_s or 0.0)
    time_s = max(0.0, (asked.time_s or 0.0) - part.offset_s)
    if asked.box is not None and part.shows_forgotten(asked.box, time_s):
        raise UsageError("the box shows what is blanked, somebody who was forgotten; nobody can be searched for by that")
    return part.uri, Whom(asked.box, time_s, camera=asked.target_camera or row["camera_id"])


def _runner(service: Service, gallery: Gallery, person: str, asked: answers.SearchAsked) -> Callable[[Search], Answer]:
    """What makes the search. Raises UsageError for targets and settings that cannot be meant."""
    of_each = (asked, *asked.further_targets)
    targets, whom = zip(*(_meant(service, gallery, person, one, asked.whole_picture) for one in of_each), strict=True)
    names = ("top", "exact", "cameras", "other_cameras", "after", "before", "between", "zone", "confirmed", "rejected")
    settings, following = asked_settings(len(targets), **{name: getattr(asked, name) for name in names})
    why = asked.reason, asked.case
    how: dict[str, Any] = {"whom": whom, "following": following, "person": person}
    how["times_as_stored"] = True  # the clocks of cameras may be set right at any time
    return lambda search: run_search(gallery, targets, settings, *why, **how, warm=service.warm(gallery), watch=search.at)


def _state(search: Search) -> answers.SearchState:
    facts, result = None, search.result
    if search.answer is not None and result is not None:
        same = ("index_version", "model", "untrained", "gallery_videos", "eligible", "scored", "untimed", "none_probability")
        facts = answers.Found(
            **{name: getattr(result, name) for name in (*same, "calibration", "seconds")},
            audit_head=result.record.audit_head,
            filters=list(result.filters),
            remarks=list(search.answer.remarks),
            not_indexed=search.answer.lag.missing,
        )
    of_search = {name: getattr(search, name) for name in ("search_id", "made_at", "asked", "state", "error")}
    given = {name: getattr(search.asked, name) for name in ("gallery", "target", "reason", "case")}
    return answers.SearchState(**of_search, **given, found=facts)


def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)  # noqa: S101 - for mypy
    return _problem(error.status_code, error.detail, error.headers)


def _misunderstood(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - for mypy
    words = [f"{'.'.join(str(step) for step in one['loc'])}: {one['msg']}" for one in error.errors()]
    return _problem(422, "; ".join(words))


def _problem(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": sentence}
    return JSONResponse(body, status, dict(headers or {}), "application/problem+json")
