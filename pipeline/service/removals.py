"""Routes that take away what others relied on: videos that are forgotten, and the tokens of a person.

Both are on record under the person's name before they hold, and neither can be undone here.
"""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query

from pipeline.gallery.audit import append_record, on_behalf_of
from pipeline.service import answers
from pipeline.service.access import read_tokens, revoke
from pipeline.service.asking import PROBLEMS, GalleryOf, Person, ServiceOf, may
from pipeline.service.galleries import listed

routes = APIRouter(prefix="/api/v1", tags=["removals"], responses=PROBLEMS, dependencies=[may("administer")])
VideoIds = Annotated[list[answers.VideoId], Query(alias="video_id", min_length=1, max_length=100)]


@routes.get("/galleries/{gallery}/forgotten/preview")
def preview_forgetting(opened: GalleryOf, videos: VideoIds) -> list[answers.Video]:
    """What would be forgotten with these videos: they themselves and their copies, the same bytes under other ids."""
    from pipeline.retention.forget import Selection  # loads what the service does not wait for

    return listed(opened, Selection(tuple(videos)).of(opened.snapshot()))


@routes.post("/galleries/{gallery}/forgotten", status_code=201)
def forget_videos(asked: answers.ForgetAsked, opened: GalleryOf, person: Person) -> answers.VideosForgotten:
    """Forget videos by id, with their copies: what jobs.forget does. They are in no result, case or clip from now on, and no
    ingest brings them back; their features leave the disk with the next jobs.compact.
    """
    from pipeline.retention.forget import Selection, forget  # loads what the service does not wait for

    return answers.VideosForgotten(videos=forget(opened, Selection(tuple(asked.videos)), asked.reason, asked.case, person))


@routes.delete("/tokens/{person:path}")
def revoke_tokens(person: str, service: ServiceOf, asking: Person) -> answers.TokensRevoked:
    """Remove all tokens of a person, as jobs.token --revoke does, and so end the sessions that these opened. The audit logs of
    all galleries say who did it.
    """
    file = service.access.tokens_file
    if file is None or not any(one.person == person for one in read_tokens(file)):
        raise HTTPException(404, "there is no token of this person")
    for gallery in service.galleries.values():
        append_record(gallery, "revoke", {**on_behalf_of(asking), "person": person})
    return answers.TokensRevoked(person=person, tokens=revoke(file, person))
