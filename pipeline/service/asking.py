"""Who is asking, what they may do, and what of the service they ask about: the dependencies that all routes share.

Every route says by `may` which right it takes. A search belongs to the person who made it, and is not there for anybody else.
"""

import functools
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Depends, Header, HTTPException, Request, Response, Security
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from pipeline.decoding.sampling import Sampling
from pipeline.errors import UsageError
from pipeline.gallery.audit import append_record, on_behalf_of
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.kept import KeptGallery
from pipeline.search.results import Lead
from pipeline.service import answers
from pipeline.service.access import RIGHTS, Access, Right, Token
from pipeline.service.casebook import Casebook
from pipeline.service.clips import LIMITS, Clips, GalleryClips
from pipeline.service.export import Exports
from pipeline.service.intake import Ingests
from pipeline.service.pictures import Pictures
from pipeline.service.searches import Search, Searches
from pipeline.service.uploads import Uploads
from pipeline.service.work import Job

if TYPE_CHECKING:
    from pipeline.search.warm import WarmIndex

COOKIE = "resight-session"
KEYS = 1000  # the newest of all people
VIEWS = 20_000  # of all people, the newest: who looks at what else once more is on record once more; some 10 MB
WAITS = re.compile(r'\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(?:;.*)?', re.IGNORECASE)
LONGEST_WAIT_S = 30  # that a request is left open for its outcome

Made = TypeVar("Made")


class Once:
    """What was made of requests that carried an Idempotency-Key: one that comes again gets what the first one got."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, str], tuple[Any, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, person: str, key: str | None, asked: Any, make: Callable[[], Made]) -> Made:
        """What `make` gives, or gave for this key before. Raises UsageError where the key came with something else."""
        if key is None:
            return make()
        place = person, type(asked).__name__, key
        with self._lock:
            if place not in self._kept:
                self._kept[place] = asked, make()
                while len(self._kept) > KEYS:
                    self._kept.popitem(last=False)
            before, made = self._kept[place]
        if before != asked:
            raise UsageError("this Idempotency-Key came with another request before; take a new one")
        return made


@dataclass
class Service:
    """What the routes share. galleries: by the names that people see. secure: whether people come by https. keep: what keeps the
    index of a gallery open, by default this process. ending: whether the process ends, so that nobody is to be kept waiting.
    """

    galleries: Mapping[str, Gallery]
    access: Access
    secure: bool = False
    keep: "Callable[[Gallery], WarmIndex] | None" = None
    ending: bool = False
    uploads: Uploads = field(default_factory=Uploads)
    searches: Searches = field(default_factory=Searches)
    pictures: Pictures = field(default_factory=Pictures)
    once: Once = field(default_factory=Once)
    casebook: Casebook = field(default_factory=Casebook)
    exports: Exports = field(init=False)
    ingests: Ingests = field(default_factory=Ingests)
    _viewed: OrderedDict[tuple[object, ...], None] = field(default_factory=OrderedDict)  # the least recently seen first
    _clips: dict[Gallery, GalleryClips] = field(default_factory=dict)
    _warm: "dict[Gallery, WarmIndex]" = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.exports = Exports(self.casebook)

    def warm(self, gallery: Gallery) -> "WarmIndex":
        """What keeps the gallery's newest index open."""
        from pipeline.search.warm import WarmIndex  # loads PyTorch, which the service does not wait for

        with self._lock:
            if gallery not in self._warm:
                self._warm[gallery] = (self.keep or WarmIndex)(gallery)
            return self._warm[gallery]

    def clips(self, gallery: Gallery) -> GalleryClips:
        """The clips of a gallery's videos."""
        with self._lock:
            if gallery not in self._clips:
                self._clips[gallery] = GalleryClips(gallery)
            return self._clips[gallery]

    @functools.cached_property
    def upload_clips(self) -> Clips:
        """Those of uploads, each in its upload's folder."""
        return Clips(self.uploads.folder, Sampling(**LIMITS), at_once=1)

    def jobs(self, asking: Token) -> list[Job]:
        """The long work of whoever is asking, the newest first; whose role lets them ingest sees all that is taken in."""
        known: list[Job] = [*self.searches.all(), *self.exports.all(), *self.ingests.all()]
        theirs = [one for one in known if one.person == asking.person or (one.kind == "ingest" and asking.may("administer"))]
        return sorted(theirs, key=lambda one: one.made_at, reverse=True)

    def begin(self) -> None:
        """Open, in the background, what a first search or clip would wait for."""
        for gallery in self.galleries.values():
            self.clips(gallery).clips.begin()
            self.searches.prepare(partial(self._open, gallery))

    def _open(self, gallery: Gallery) -> None:
        self.warm(gallery).newest()

    def viewed(self, gallery: Gallery, person: str, of: dict[str, str]) -> None:
        """Record, once, that a person looks at pictures, before they do; again where VIEWS others came after it.

        Raises PipelineError where the log cannot be written.
        """
        seen = (gallery.location.uri, person, *of.items())
        with self._lock:
            if seen not in self._viewed:
                append_record(gallery, "view", {**on_behalf_of(person), **of})
                self._viewed[seen] = None
                while len(self._viewed) > VIEWS:
                    self._viewed.popitem(last=False)
            self._viewed.move_to_end(seen)

    def close(self) -> None:
        """End its threads and its decoder, and remove what was uploaded."""
        for work in (self.ingests, self.searches, self.exports):
            work.close()
        self.pictures.close()
        for clips in self._clips.values():
            clips.close()
        for warm in self._warm.values():
            warm.close()
        if "upload_clips" in vars(self):
            self.upload_clips.close()
        self.uploads.close()


def named(galleries: Sequence[Gallery]) -> dict[str, Gallery]:
    """The galleries by the last part of their uris; of several that share it, later ones carry a number."""
    found: dict[str, Gallery] = {}
    for gallery in galleries:
        stem = PurePath(gallery.location.uri.partition("?")[0]).name or "gallery"
        names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, len(galleries) + 2))
        found[next(name for name in names if name not in found)] = KeptGallery(gallery)
    return found


def _service(request: Request) -> Service:
    return request.app.state.service


ServiceOf = Annotated[Service, Depends(_service)]
_by_session = APIKeyCookie(name=COOKIE, auto_error=False, scheme_name="session")
_by_token = HTTPBearer(auto_error=False, scheme_name="token")


def _asking(
    request: Request,
    service: ServiceOf,
    session: Annotated[str | None, Security(_by_session)],
    token: Annotated[HTTPAuthorizationCredentials | None, Security(_by_token)],
) -> Token:
    """Who is asking; where a request has an Authorization header, that alone says so."""
    found = None
    if token is not None:
        found = service.access.of_token(token.credentials)
    elif session is not None and "authorization" not in request.headers:
        found = service.access.of_session(session)
    if found is None:
        raise HTTPException(401, "sign in first, or give a token that is valid", {"www-authenticate": "Bearer"})
    return found


Asking = Annotated[Token, Depends(_asking)]


def _person(asking: Asking) -> str:
    return asking.person


Person = Annotated[str, Depends(_person)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]


def may(right: Right) -> Any:
    """A dependency that refuses whoever has not the right."""

    def has(asking: Asking) -> None:
        if not asking.may(right):
            raise HTTPException(403, f"this takes the role {' or '.join(RIGHTS[right])}; yours is {asking.role}")

    return Depends(has)


def gallery_of(service: ServiceOf, person: Person, gallery: str) -> Gallery:
    """The gallery of a name. Raises HTTPException where there is none."""
    if gallery not in service.galleries:
        raise HTTPException(404, "there is no such gallery here")
    return service.galleries[gallery]


def _search(service: ServiceOf, person: Person, search_id: str) -> Search:
    search = service.searches.of(person, search_id)
    if search is None:
        raise HTTPException(
            404, "there is no such search of yours; those before the service began anew are in the audit log only"
        )
    return search


def _job(service: ServiceOf, asking: Asking, job_id: str) -> Job:
    found = next((one for one in service.jobs(asking) if one.job_id == job_id), None)
    if found is None:
        raise HTTPException(404, "there is no such job of yours since the service began")
    return found


def _wait(
    request: Request,
    _prefer: Annotated[str | None, Header(alias="Prefer", description="wait=SECONDS: how long to wait (RFC 7240).")] = None,
) -> int | None:
    """The seconds that a request asks to wait for its outcome, at most LONGEST_WAIT_S; what is not understood says nothing."""
    given = request.headers.getlist("prefer")  # described as one header, since generated clients send no list
    asked = [WAITS.fullmatch(one) for one in ",".join(given).split(",")]
    return next((min(int(one[1]), LONGEST_WAIT_S) for one in asked if one is not None), None)


Wait = Annotated[int | None, Depends(_wait)]


def _lead(search: Annotated[Search, Depends(_search)], rank: int) -> Lead:
    found = next((lead for lead in search.leads() if lead.rank == rank), None)
    if found is None:
        raise HTTPException(404, "the search has no such lead")
    return found


GalleryOf = Annotated[Gallery, Depends(gallery_of)]
SearchOf = Annotated[Search, Depends(_search)]
LeadOf = Annotated[Lead, Depends(_lead)]
JobOf = Annotated[Job, Depends(_job)]


def file_of(kind: str) -> dict[str, Any]:
    """How a route that answers with a file of a media type describes it."""
    content = {kind: {"schema": {"type": "string"} if kind.startswith("text/") else {"type": "string", "format": "binary"}}}
    return {"response_class": Response, "responses": {200: {"content": content}}}


PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": answers.Problem} for code in (400, 401, 403, 404, 405, 413, 421, 422, 429, 500, 503)
}
