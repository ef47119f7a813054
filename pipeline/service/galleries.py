"""Routes about galleries: what is in them, their cameras and videos."""

from dataclasses import asdict
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from pipeline import time_windows
from pipeline.gallery.audit import append_record, on_behalf_of, required
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.places import CameraPlace, check_places, read_places, with_right_times, write_places
from pipeline.gallery.plan import Plan, read_plan
from pipeline.index.version_files import index_versions
from pipeline.service import answers
from pipeline.service.asking import PROBLEMS, GalleryOf, Person, ServiceOf, may

routes = APIRouter(prefix="/api/v1", tags=["galleries"], responses=PROBLEMS, dependencies=[may("look")])


@routes.get("/galleries")
def list_galleries(service: ServiceOf) -> list[answers.GalleryFacts]:
    """All galleries here."""
    return [_facts(name, gallery) for name, gallery in service.galleries.items()]


@routes.get("/galleries/{gallery}")
def get_gallery(gallery: str, opened: GalleryOf) -> answers.GalleryFacts:
    """What is in a gallery, and what it requires of a search."""
    return _facts(gallery, opened)


@routes.get("/galleries/{gallery}/cameras")
def list_cameras(opened: GalleryOf) -> list[answers.Camera]:
    """The cameras of a gallery, with how much they filmed and what is known of their places; videos of no known camera last."""
    places = read_places(opened)
    videos = with_right_times(opened.snapshot().videos, places)
    filmed = set(pc.unique(videos["camera_id"]).to_pylist())
    return [
        answers.Camera(**_place(camera, places.get(camera or "")), **_extent(videos.filter(_of_camera(videos, camera))))
        for camera in sorted(filmed | set(places), key=lambda one: (one is None, one))
    ]


@routes.put("/galleries/{gallery}/cameras", dependencies=[may("administer")])
def place_cameras(asked: answers.Cameras, opened: GalleryOf, person: Person) -> list[answers.Camera]:
    """Say where cameras are, what people call them and how far their clocks are ahead; of cameras that are left out nothing is
    known any more.
    """
    places = [CameraPlace(**one.model_dump()) for one in asked.cameras]
    check_places(places)  # no record of what is refused
    append_record(opened, "cameras", {**on_behalf_of(person), "cameras": [asdict(one) for one in places]})
    write_places(opened, places)
    return list_cameras(opened)


@routes.get("/galleries/{gallery}/videos")
def list_videos(
    opened: GalleryOf,
    camera: Annotated[str | None, Query(max_length=500)] = None,
    starts_with: Annotated[str, Query(max_length=2000)] = "",
    seen_after: AwareDatetime | None = None,
    seen_before: AwareDatetime | None = None,
    cursor: Annotated[str, Query(max_length=2000)] = "",
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> answers.Videos:
    """Videos of a gallery by id: all, or those in which somebody is seen then and there. cursor: what the page before ended
    with.
    """
    table = with_right_times(opened.snapshot().videos, read_places(opened))
    wanted = pc.and_(pc.starts_with(table["video_id"], starts_with), pc.greater(table["video_id"], cursor))
    if seen_after is not None or seen_before is not None:
        inside = time_windows.seen_within(*time_windows.seen(table), seen_after, seen_before)
        wanted = pc.and_(wanted, pa.chunked_array([pa.array(inside)]))
    if camera is not None:
        wanted = pc.and_(wanted, _of_camera(table, camera))
    found = _videos(table.filter(pc.fill_null(wanted, False)).slice(0, limit + 1))
    return answers.Videos(videos=found[:limit], following=found[limit - 1].video_id if len(found) > limit else None)


def listed(gallery: Gallery, rows: pa.Table) -> list[answers.Video]:
    """Rows of a gallery's videos as they are answered, by right clocks."""
    return _videos(with_right_times(rows, read_places(gallery)))


def _videos(rows: pa.Table) -> list[answers.Video]:
    return [
        answers.Video(
            video_id=row["video_id"],
            camera_id=row["camera_id"],
            seen_from=row["seen_from"] or row["start_time"],
            seen_to=row["seen_to"] or row["start_time"],
        )
        for row in rows.to_pylist()
    ]


def _facts(name: str, gallery: Gallery) -> answers.GalleryFacts:
    versions = index_versions(gallery)
    return answers.GalleryFacts(
        name=name,
        requires=list(required(gallery)),
        index_version=versions[-1] if versions else None,
        plan=None if (plan := read_plan(gallery)) is None else plan_facts(plan),
        **_extent(with_right_times(gallery.snapshot().videos, read_places(gallery))),
    )


def plan_facts(plan: Plan) -> answers.PlanFacts:
    """A plan as it is answered."""
    return answers.PlanFacts(
        width=plan.width, height=plan.height, width_m=plan.width_m, height_m=plan.height_m, sha256=plan.sha256
    )


def _place(camera_id: str | None, place: CameraPlace | None) -> dict[str, Any]:
    return {"camera_id": camera_id, **({} if place is None else {k: v for k, v in asdict(place).items() if k != "camera_id"})}


def _extent(videos: pa.Table) -> dict[str, Any]:
    """How many videos, and when somebody is first and last seen in them."""
    first, last = time_windows.seen(videos)
    return {"videos": len(videos), "seen_from": pc.min(first).as_py(), "seen_to": pc.max(last).as_py()}


def _of_camera(videos: pa.Table, camera: str | None) -> pa.ChunkedArray:
    return pc.is_null(videos["camera_id"]) if camera is None else pc.equal(videos["camera_id"], camera)
