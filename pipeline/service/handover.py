"""Routes that hand a case over: exports, which are made in the background, and their packages."""

from functools import partial
from typing import Any

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import FileResponse

from pipeline.errors import PipelineError, UsageError, VideoError
from pipeline.gallery import audit
from pipeline.gallery.video_ref import VideoRef
from pipeline.search.source_places import LONGEST_S
from pipeline.service import case_answers as answers
from pipeline.service.access import Token
from pipeline.service.asking import Asking, Key, Service, ServiceOf, file_of, may
from pipeline.service.case_pictures import kept_frames
from pipeline.service.casebook import Case
from pipeline.service.cases import OF_CASES, CaseOf, case_path, rows
from pipeline.service.clips import GalleryClips
from pipeline.service.export import Export
from pipeline.service.package import NOTHING, write_package
from pipeline.service.pictures import gallery_pictures
from pipeline.service.work import BusyError

routes = APIRouter(prefix="/api/v1", tags=["exports"], responses=OF_CASES, dependencies=[may("investigate")])


@routes.post("/cases/{case}/exports", status_code=202)
def begin_export(
    found: CaseOf, asked: answers.ExportAsked, service: ServiceOf, asking: Asking, response: Response, key: Key = None
) -> answers.ExportState:
    """Begin a package that hands the case over: the report, the extract, pictures, the records and SHA256SUMS, as a zip."""
    service.exports.check(found, asking)  # first, since the others say something of what was decided
    audit.check_policy(found.gallery, asked.reason, found.name)
    if audit.CONFIRMATION in audit.required(found.gallery) and found.unconfirmed():
        raise UsageError(audit.UNCONFIRMED)
    if not found.same:
        raise UsageError(NOTHING)

    def make() -> Export:
        return service.exports.begin(found, asking, asked.reason, lambda export: _package(service, found, asking, export))

    made = service.once(f"{asking.person} {found.gallery_name} {found.name}", key, asked, make)
    response.headers["location"] = f"/api/v1{made.address}"
    return _state(made)


@routes.get("/cases/{case}/exports")
def list_exports(found: CaseOf, service: ServiceOf, asking: Asking) -> list[answers.ExportState]:
    """The exports of a case that the service still has, whoever made them, the newest first. The case itself lists all that were
    ever on record.
    """
    service.exports.check(found, asking)
    return [_state(one) for one in service.exports.all_of(found)]


@routes.get("/cases/{case}/exports/{export_id}")
def get_export(found: CaseOf, export_id: str, service: ServiceOf) -> answers.ExportState:
    """How far an export is."""
    return _state(_export(service, found, export_id))


@routes.get("/cases/{case}/exports/{export_id}/package.zip", **file_of("application/zip"))
def get_export_package(found: CaseOf, export_id: str, service: ServiceOf, asking: Asking) -> Response:
    """The package of an export that is done, whoever made it. Each time, who takes it is recorded first."""
    service.exports.check(found, asking)
    made = _export(service, found, export_id)
    if made.state != "done":
        raise HTTPException(409, f"the export is {made.state}")
    said = {"case": found.name, "export": export_id, "made_by": made.person, "package_sha256": made.sha256}
    audit.append_record(found.gallery, "download", {**audit.on_behalf_of(asking.person), **said})
    return FileResponse(made.path, media_type="application/zip", filename=f"{found.name}.zip")


def _export(service: Service, case: Case, export_id: str) -> Export:
    found = service.exports.of(case, export_id)
    if found is None:
        raise HTTPException(404, "there is no such export any more; make another one")
    return found


def _state(export: Export) -> answers.ExportState:
    fields: dict[str, Any] = {name: getattr(export, name) for name in ("made_at", "state", "error", "sha256", "bytes")}
    return answers.ExportState(export_id=export.job_id, case=export.case.name, made_by=export.person, **fields)


def _of_uploads(case: Case) -> dict[str, dict[str, Any]]:
    """What records say of the pictures of uploaded targets, by the id that each target had."""
    found: dict[str, dict[str, Any]] = {}
    for record in (one.record for one in case.same):
        if kept := record.get("target_pictures"):
            of_target = {"target_hash": record["target_hash"], "target_pictures": {}}
            found.setdefault(record["found"]["target"]["video_id"], of_target)["target_pictures"].update(kept)
    return found


def _package(service: Service, case: Case, asking: Token, export: Export) -> dict[str, str]:
    """Write the package of a case."""
    videos = rows(case.gallery, list(case.shown))
    of_gallery = gallery_pictures(case.gallery)
    searches = {one.record["search"] for one in case.same}
    known = [search for one in searches if (search := service.searches.known(one)) is not None]
    decided = _of_uploads(case)
    uploads = {search.result.target.video_id: search for search in known if search.result is not None}

    def pictures(video: VideoRef, wanted: Any) -> Any:
        if video.video_id in videos:
            return of_gallery(video, wanted)
        if kept := kept_frames(case, decided.get(video.video_id, {}), wanted):
            return kept
        search = uploads.get(video.video_id)
        if search is None or search.answer is None or search.result is None:
            return {}
        of_upload = search.answer.pictures()
        try:
            return of_upload(search.result.target, wanted)
        finally:
            of_upload.close()

    try:
        path = case_path(case, asking).model_dump(mode="json")
        return write_package(case, videos, path, pictures, partial(_clip, service.clips(case.gallery)), export.path, export.at)
    finally:
        of_gallery.close()


def _clip(clips: GalleryClips, video: VideoRef, start: float, end: float) -> bytes:
    """The person of a video in a stretch of it, as MP4. Raises VideoError and PipelineError where it cannot be made any more."""
    row = clips.row(video.video_id)
    if row is None:
        raise VideoError("missing", "the video is not in the gallery")
    try:
        places = clips.places(row)
        made = clips.clip(row, places.clip(*places.span(start, min(end, start + LONGEST_S)), crop=True))
        try:
            made.begun(whole=True)
            return made.path.read_bytes()
        finally:
            made.left()
    except (BusyError, OSError) as error:
        raise PipelineError(f"the clip cannot be made now: {error}") from error
