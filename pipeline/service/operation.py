"""Routes for those who run the service: the audit log, whether all is well, and figures for Prometheus."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from pipeline import telemetry
from pipeline.errors import PipelineError
from pipeline.gallery import audit
from pipeline.gallery.gallery import Gallery
from pipeline.index.version_files import index_versions
from pipeline.service import answers
from pipeline.service.access import read_tokens
from pipeline.service.asking import PROBLEMS, Asking, GalleryOf, ServiceOf, file_of, gallery_of, may

if TYPE_CHECKING:
    from pipeline.index.versions import Index

routes = APIRouter(prefix="/api/v1", tags=["operation"], responses=PROBLEMS)
probes = APIRouter(include_in_schema=False)
GalleryName = Annotated[str, Query(max_length=500)]
BINS = 5
OWN = ("action", "at", "who", "number", "case", "reason")


@routes.get("/audit", dependencies=[may("administer")])
def list_audit_records(
    gallery: GalleryName,
    service: ServiceOf,
    asking: Asking,
    cursor: Annotated[int | None, Query(ge=0, le=10**10)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> answers.AuditPage:
    """Records of a gallery's audit log, the newest first. cursor: what the page before ended with."""
    opened = gallery_of(service, asking.person, gallery)
    end = audit.count_records(opened) if cursor is None else cursor
    first = max(0, end - limit)
    records = audit.read_records(opened, first=first, count=end - first)
    return answers.AuditPage(records=[_record(one) for one in reversed(records)], following=first or None)


@routes.get("/audit/verify", dependencies=[may("oversee")])
def verify_audit_log(
    gallery: GalleryName, service: ServiceOf, asking: Asking, head: Annotated[str | None, Query(max_length=100)] = None
) -> answers.AuditChecked:
    """What is wrong with a gallery's audit log and cases. head: one that was kept elsewhere, COUNT:SHA256."""
    opened = gallery_of(service, asking.person, gallery)
    faults = [f"audit log: {fault}" for fault in audit.verify(opened, head)]
    for case in audit.cases(opened):
        faults += [f"case {case}: {fault}" for fault in audit.verify(opened, chain=f"{audit.CASES}/{case}")]
    return answers.AuditChecked(head=audit.head(opened), records=audit.count_records(opened), faults=faults)


@routes.get("/galleries/{gallery}/quality", dependencies=[may("look")])
def get_quality(gallery: str, opened: GalleryOf, service: ServiceOf, asking: Asking) -> answers.Quality:
    """How well a gallery's index finds people, as far as that was measured or can be told from what people decided."""
    from pipeline.index.freshness import index_lag  # loads PyTorch, which the service does not wait for

    facts: dict[str, Any] = dict.fromkeys(("index_version", "model", "sample", "links", "right", "advice", "head_calibration"))
    facts |= {"untrained": False, "cameras_known": 0, "calibrated": False, "calibration": "there is no index yet"}
    videos = len(opened.snapshot().videos)
    facts["not_indexed"] = videos
    if index_versions(opened):
        index, _ = service.warm(opened).newest()
        facts |= {"index_version": index.version, "model": index.model, "untrained": index.untrained}
        facts |= {"not_indexed": index_lag(opened, index).missing, "advice": index.rebuild_advice()}
        facts |= {"cameras_known": 0 if index.cameras is None else len(index.cameras.names)}
        facts |= _calibrated(index)
    judged = [
        one.record
        for name in service.casebook.names(opened)
        if (case := service.casebook.open(opened, gallery, name)) is not None
        for one in case.judged.values()
        if not one.hidden_from(asking) and one.decision != "unsure"
    ]
    return answers.Quality(**facts, videos=videos, evaluation=_evaluated(opened), own=_bins(judged), judged=len(judged))


@routes.get("/tokens", dependencies=[may("administer")])
def list_tokens(service: ServiceOf) -> list[answers.TokenKnown]:
    """Whose tokens there are and until when; jobs.token issues and revokes them."""
    file = service.access.tokens_file
    known = [] if file is None else read_tokens(file)
    return [answers.TokenKnown(person=one.person, role=one.role, expires=one.expires) for one in known]


@routes.get("/metrics", dependencies=[may("oversee")], **file_of("text/plain"))
def get_metrics(service: ServiceOf) -> Response:
    """Figures of this process for Prometheus: searches, records, memory, open files."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    now = CollectorRegistry()
    states = Gauge("coattention_service_searches", "Searches that the service knows, by state.", ["state"], registry=now)
    for state, count in Counter(one.state for one in service.searches.all()).items():
        states.labels(state=state).set(count)
    sessions = Gauge("coattention_service_sessions", "Sessions that are open.", registry=now)
    sessions.set(service.access.sessions)
    return Response(generate_latest(telemetry.registry()) + generate_latest(now), media_type="text/plain; version=0.0.4")


@probes.get("/healthz")
def health() -> dict[str, str]:
    """That the process answers."""
    return {"status": "ok"}


@probes.get("/readyz")
def ready(service: ServiceOf) -> Response:
    """Whether requests will be answered: galleries and the file of tokens can be read, and what searches need is loaded."""
    try:
        for gallery in service.galleries.values():
            gallery.position()
        if service.access.tokens_file is not None:
            read_tokens(service.access.tokens_file)
    except PipelineError:  # says more to who asks with a token
        return JSONResponse({"status": "a gallery or the file of tokens cannot be read"}, 503)
    return JSONResponse({"status": "ready"}) if service.searches.is_prepared else JSONResponse({"status": "loading"}, 503)


def _bins(judged: list[dict[str, Any]]) -> list[answers.ProbabilityBin]:
    """Decisions by the probability that the search gave, five bins from 0 to 1; none where no lead had one."""
    known = [one for one in judged if one["probability"] is not None]
    by_bin: list[list[dict[str, Any]]] = [[] for _ in range(BINS)]
    for one in known:
        by_bin[min(int(one["probability"] * BINS), BINS - 1)].append(one)
    return [
        answers.ProbabilityBin(
            low=number / BINS,
            high=(number + 1) / BINS,
            judged=len(of_bin),
            same=sum(one["decision"] == "same" for one in of_bin),
            mean_probability=sum(one["probability"] for one in of_bin) / len(of_bin) if of_bin else None,
        )
        for number, of_bin in enumerate(by_bin if known else [])
    ]


def _calibrated(index: "Index") -> dict[str, Any]:
    """What a search with default scores would say of probabilities, of the gallery's own calibration and of the head's."""
    from pipeline.search.leads import calibration_of
    from pipeline.search.worth import default_settings

    own, shipped = index.gallery_calibration, index.calibration
    known, why = calibration_of(index, default_settings(index))
    facts: dict[str, Any] = {"calibrated": known is not None and not why, "calibration": why or (known.words if known else "")}
    if own is None and shipped is None:
        facts["calibration"] = "it was not measured; run jobs.index"
    if own is not None:
        facts |= {"sample": own.videos, "links": own.links, "right": own.right}
    if shipped is not None:
        on, quality = shipped.fitted_on, shipped.quality
        facts["head_calibration"] = answers.HeadCalibration(
            in_use=known is shipped and not why,
            fitted_on=on.name,
            date=on.date,
            people=on.identities,
            same_pairs=on.same_pairs,
            different_pairs=on.different_pairs,
            error=quality.ece,
            cost=quality.cllr,
            least_cost=quality.min_cllr,
        )
    return facts


def _evaluated(gallery: Gallery) -> answers.Evaluated | None:
    record = audit.newest(gallery, "evaluate")
    if record is None or "queries" not in record:  # none, or one that failed
        return None
    said: dict[str, Any] = {name: record[name] for name in ("at", "who", "data", "index_version", "queries")}
    figures = record.get("figures", {})  # older records have none
    return answers.Evaluated(**said, mean_ap=figures.get("mean_ap"), rank_1=figures.get("rank_1"))


def _record(record: dict[str, Any]) -> answers.AuditRecord:
    fields = {name: value for name, value in record.items() if name not in OWN}
    said: dict[str, Any] = {name: record.get(name) for name in OWN}
    return answers.AuditRecord(**said, fields=fields)
