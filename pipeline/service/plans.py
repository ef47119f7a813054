"""Routes of a gallery's plan, on which the page draws cameras and paths."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, HTTPException, Query, Request, Response

from pipeline.decoding.requests import StillRequest
from pipeline.decoding.video import ClipPart, ClipStart, Rejected
from pipeline.errors import UsageError
from pipeline.gallery.audit import append_record, on_behalf_of
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.plan import WIDEST, Plan, delete_plan, read_picture, read_plan, write_plan
from pipeline.service import answers
from pipeline.service.asking import PROBLEMS, GalleryOf, Person, Service, ServiceOf, file_of, may
from pipeline.service.galleries import plan_facts
from pipeline.storage.hashing import sha256

routes = APIRouter(prefix="/api/v1", tags=["galleries"], responses=PROBLEMS, dependencies=[may("look")])
FITS = 2400, 2400  # pixels
BEGINS = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg"}
NEITHER = "a plan is a PNG or JPEG picture; a drawing such as SVG, which may hold programs, is not taken"
_binary: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


@routes.get("/galleries/{gallery}/plan")
def get_plan(opened: GalleryOf) -> answers.PlanFacts:
    """What is known of a gallery's plan."""
    return plan_facts(_plan(opened))


@routes.get("/galleries/{gallery}/plan.jpg", **file_of("image/jpeg"))
def get_plan_picture(opened: GalleryOf) -> Response:
    """The picture of a gallery's plan."""
    return Response(read_picture(opened, _plan(opened)), media_type="image/jpeg")


@routes.put("/galleries/{gallery}/plan", dependencies=[may("administer")], openapi_extra=_binary)
async def set_plan(
    request: Request,
    service: ServiceOf,
    opened: GalleryOf,
    person: Person,
    width_m: Annotated[float, Query(gt=0, le=WIDEST, description="Metres that the picture shows from left to right.")],
) -> answers.PlanFacts:
    """Set a gallery's plan: a PNG or JPEG picture as the body. It is decoded in confinement, and kept as a JPEG of its own."""
    content = await request.body()
    return plan_facts(await to_thread.run_sync(_set, service, opened, person, content, width_m))


@routes.delete("/galleries/{gallery}/plan", status_code=204, dependencies=[may("administer")])
def remove_plan(opened: GalleryOf, person: Person) -> None:
    """Remove a gallery's plan; cameras keep their places."""
    if read_plan(opened) is not None:
        append_record(opened, "plan", {**on_behalf_of(person), "plan_sha256": None})
        delete_plan(opened)


def _set(service: Service, gallery: Gallery, person: str, content: bytes, width_m: float) -> Plan:
    ending = next((ending for begin, ending in BEGINS.items() if content.startswith(begin)), None)
    if ending is None:
        raise UsageError(NEITHER)
    size, made = (0, 0), b""
    with tempfile.TemporaryDirectory(prefix="resight-plan-") as folder:
        file = Path(folder, f"plan{ending}")
        file.write_bytes(content)
        for event in service.upload_clips.answers(StillRequest(str(file), 0, fits=FITS)):
            if isinstance(event, Rejected):
                raise UsageError(f"the plan cannot be used: {event.message.replace(str(file), 'its picture')}")
            if isinstance(event, ClipStart):
                size = event.width, event.height
            if isinstance(event, ClipPart):
                made += event.data
    plan = Plan(*size, width_m, sha256(made))
    append_record(gallery, "plan", {**on_behalf_of(person), "plan_sha256": plan.sha256, "width_m": width_m})
    write_plan(gallery, plan, made)
    return plan


def _plan(gallery: Gallery) -> Plan:
    found = read_plan(gallery)
    if found is None:
        raise HTTPException(404, "this gallery has no plan")
    return found
