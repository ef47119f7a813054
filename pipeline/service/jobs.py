"""Routes of long work: searches, exports and ingests alike, how far they are, and ingests themselves."""

import asyncio
from collections.abc import AsyncIterable

from anyio import to_thread
from fastapi import APIRouter, Response
from fastapi.sse import EventSourceResponse

from pipeline.service import answers
from pipeline.service.asking import PROBLEMS, Asking, GalleryOf, JobOf, Key, Person, ServiceOf, may
from pipeline.service.intake import check_source
from pipeline.service.work import Job

LOOKS_S = 0.2  # between two looks at a job that is watched
routes = APIRouter(prefix="/api/v1", tags=["jobs"], responses=PROBLEMS, dependencies=[may("investigate")])
intake = APIRouter(prefix="/api/v1", tags=["ingests"], responses=PROBLEMS, dependencies=[may("administer")])


@routes.get("/jobs")
def list_jobs(service: ServiceOf, asking: Asking) -> list[answers.JobState]:
    """This person's searches, exports and ingests since the service began, the newest first; an admin sees the ingests of all."""
    return [_state(one) for one in service.jobs(asking)]


@routes.get("/jobs/{job_id}")
def get_job(job: JobOf) -> answers.JobState:
    """How far a job is."""
    return _state(job)


@routes.delete("/jobs/{job_id}")
def cancel_job(job: JobOf, person: Person) -> answers.JobState:
    """Cancel a job that has not ended. It stops at the next piece of its work, and nothing of it is left half done."""
    job.cancel(person)
    return _state(job)


@routes.get("/jobs/{job_id}/events", response_class=EventSourceResponse)
async def watch_job(job: JobOf, service: ServiceOf) -> AsyncIterable[answers.JobState]:
    """How far a job is, as server-sent events: its state now and whenever that changes, until it has ended."""
    while not service.ending:
        known = job.changes
        yield await to_thread.run_sync(_state, job)  # it may wait while an outcome is made to hold
        if not job.is_open and job.changes == known:
            return
        while job.changes == known and not service.ending:
            await asyncio.sleep(LOOKS_S)


@intake.get("/galleries/{gallery}/ingests")
def list_ingests(gallery: str, opened: GalleryOf, service: ServiceOf) -> answers.Ingests:
    """What may be taken into a gallery, and what is being taken in."""
    from pipeline.footage.detector_spec import detector_names

    known = [_state(one) for one in service.ingests.all() if one.gallery_name == gallery]
    return answers.Ingests(roots=list(opened.settings.roots), detectors=list(detector_names()), jobs=known)


@intake.post("/galleries/{gallery}/ingests", status_code=202)
def begin_ingest(
    gallery: str,
    asked: answers.IngestAsked,
    opened: GalleryOf,
    service: ServiceOf,
    person: Person,
    response: Response,
    key: Key = None,
) -> answers.JobState:
    """Take videos into a gallery, and build its next index: what jobs.ingest and jobs.index do, as a job."""
    check_source(opened, asked)
    made = service.once(f"{person} {gallery}", key, asked, lambda: service.ingests.begin(opened, gallery, person, asked))
    response.headers["location"] = f"/api/v1/jobs/{made.job_id}"
    return _state(made)


def _state(job: Job) -> answers.JobState:
    with job.lock:
        same = ("job_id", "kind", "about", "address", "made_at", "state", "stage", "done", "total", "outcome", "error")
        return answers.JobState(gallery=job.gallery_name, made_by=job.person, **{name: getattr(job, name) for name in same})
