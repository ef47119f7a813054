"""Routes of what is seen of videos: clips, pictures, and the boxes that a page draws over them. Who looks is recorded first."""

import functools
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from starlette.concurrency import iterate_in_threadpool

from pipeline.catalog.image_folders import IMAGE_SUFFIXES
from pipeline.decoding.requests import StillRequest
from pipeline.decoding.sampling import looks_like_a_scene
from pipeline.decoding.video import ClipStart, Rejected
from pipeline.errors import UsageError, VideoError
from pipeline.gallery.places import read_places, with_right_time
from pipeline.gallery.video_ref import VideoRef
from pipeline.search.source_places import Part, Places
from pipeline.service import view_answers
from pipeline.service.asking import PROBLEMS, GalleryOf, Person, ServiceOf, file_of, may
from pipeline.service.clips import Clip
from pipeline.service.uploads import Upload

routes = APIRouter(prefix="/api/v1", tags=["media"], responses=PROBLEMS, dependencies=[may("look")])
View = Literal["crop", "scene"]
Shown = Annotated[View, Query(description="crop: the person, where a box says where they are; scene: all of the picture.")]
Start = Annotated[float | None, Query(ge=0, le=1e7, description="Seconds of the video; by default when the person comes.")]
End = Annotated[float | None, Query(ge=0, le=1e7, description="Seconds of the video, at most 60 after the start.")]
Frame = Annotated[int, Path(ge=0, lt=1 << 31, description="Number of the frame in the source.")]
SearchId = Annotated[
    str | None, Query(alias="search", max_length=100, description="Search that the video was found by, for the record.")
]
_mp4, _jpeg = file_of("video/mp4"), file_of("image/jpeg")


def _seen_video(
    service: ServiceOf,
    person: Person,
    opened: GalleryOf,
    video_id: Annotated[str, Path(max_length=2000)],
    search: SearchId = None,
) -> dict[str, Any]:
    """The row of a video, once it is on record that this person looks at it."""
    row = service.clips(opened).row(video_id)
    if row is None:
        raise HTTPException(404, "the gallery has no such video")
    found = service.searches.of(person, search) if search else None
    why = {} if found is None else {"search": found.search_id, "reason": found.asked.reason, "case": found.asked.case}
    service.viewed(opened, person, {"video_id": video_id, **{name: word for name, word in why.items() if word}})
    return row


SeenVideo = Annotated[dict[str, Any], Depends(_seen_video)]


@routes.get("/galleries/{gallery}/videos/{video_id:path}/clip.mp4", **_mp4)
async def get_clip(
    request: Request,
    service: ServiceOf,
    opened: GalleryOf,
    row: SeenVideo,
    start: Start = None,
    end: End = None,
    view: Shown = "scene",
) -> Response:
    """A stretch of a video, fragmented MP4 without sound, in its true shape, whose bytes come as they are made."""
    places = await to_thread.run_sync(service.clips(opened).places, row)
    asked = places.clip(*places.span(start, end), crop=view == "crop")
    return await _given(request, await to_thread.run_sync(service.clips(opened).clip, row, asked), "video/mp4")


@routes.get("/galleries/{gallery}/videos/{video_id:path}/frames/{frame}.jpg", **_jpeg)
async def get_frame(
    request: Request, service: ServiceOf, opened: GalleryOf, row: SeenVideo, frame: Frame, view: Shown = "scene"
) -> Response:
    """A frame of a video that was looked at when it was ingested, by its number in the source, in its true shape."""
    asked = await to_thread.run_sync(service.clips(opened).still, row, frame, view == "crop")
    if asked is None:
        raise HTTPException(404, "this frame was not looked at when the video was ingested")
    return await _given(request, await to_thread.run_sync(service.clips(opened).clip, row, asked), "image/jpeg")


@routes.get("/galleries/{gallery}/videos/{video_id:path}/boxes")
def get_boxes(
    service: ServiceOf, opened: GalleryOf, row: SeenVideo, start: Start = None, end: End = None
) -> view_answers.VideoBoxes:
    """Where the person of a video is in its pictures, for a page that draws boxes over a clip of the same stretch."""
    places = service.clips(opened).places(row)
    found = places.near(*places.span(start, end)) if places.boxes else ()
    first, last = with_right_time(VideoRef.of(row), read_places(opened)).seen or (None, None)
    return view_answers.VideoBoxes(
        **{name: row[name] for name in ("video_id", "camera_id", "width", "height", "fps")},
        seen_from=first,
        seen_to=last,
        first_s=places.first_s,
        last_s=places.last_s,
        boxes=[view_answers.BoxAt(time_s=time, x=x, y=y, w=w, h=h) for time, (x, y, w, h) in found],
    )


def _upload(service: ServiceOf, person: Person, target_id: str) -> Upload:
    upload = service.uploads.of(person, target_id)
    if upload is None:
        raise HTTPException(404, "there is no such upload of yours; bring it again")
    return upload


UploadOf = Annotated[Upload, Depends(_upload)]


@routes.get("/targets/{target_id}", dependencies=[may("investigate")])
def get_target(service: ServiceOf, upload: UploadOf) -> view_answers.TargetFacts:
    """What an upload is, by its first picture. What cannot be read is refused with the reason."""
    size = (0, 0)
    for event in service.upload_clips.answers(StillRequest(str(upload.path), 0)):
        if isinstance(event, Rejected):
            raise UsageError(f"the target cannot be used: {event.message.replace(str(upload.path), upload.path.name)}")
        if isinstance(event, ClipStart):
            size = event.source_width, event.source_height
    return view_answers.TargetFacts(
        target_id=upload.upload_id,
        name=upload.path.name,
        bytes=upload.size,
        sha256=upload.sha256,
        width=size[0],
        height=size[1],
        is_photo=upload.path.suffix.lower() in IMAGE_SUFFIXES,
        is_scene=looks_like_a_scene(size[1], size[0]),
    )


@routes.get("/targets/{target_id}/clip.mp4", dependencies=[may("investigate")], **_mp4)
async def get_target_clip(
    request: Request, service: ServiceOf, upload: UploadOf, start: Start = None, end: End = None
) -> Response:
    """A stretch of what this person uploaded, so that a box can be drawn where a browser plays no such files; a photo too."""
    whole = Places((Part(str(upload.path), 0.0, 0.0),), (), 0.0, 60.0)
    asked = whole.clip(*whole.span(start, end), crop=False)
    made = functools.partial(service.upload_clips.clip, upload.path.parent, asked, upload.sha256, upload.path.exists)
    return await _given(request, await to_thread.run_sync(made), "video/mp4")


async def _given(request: Request, made: Clip, kind: str) -> Response:
    """A clip or picture as an answer: in any byte ranges once it is made, from its start while it is."""
    wanted = request.headers.get("range", "bytes=0-")
    try:
        await to_thread.run_sync(made.begun, wanted != "bytes=0-" or kind != "video/mp4")
    except VideoError as error:
        made.left()
        raise HTTPException(404, f"there is no picture: {error.message}") from error
    except BaseException:
        made.left()
        raise
    media_type = f'{kind}; codecs="{made.codec}"' if made.codec else kind
    if made.done:
        made.left()
        return FileResponse(made.path, media_type=media_type)

    async def blocks() -> AsyncIterator[bytes]:
        try:
            async for block in iterate_in_threadpool(made.blocks()):
                yield block
        finally:
            made.left()

    return StreamingResponse(blocks(), media_type=media_type)
