"""What the service is asked and what it answers about cases, as its OpenAPI description says."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from pipeline.service.answers import Asked, Decision, VideoId
from pipeline.service.casebook import NAME
from pipeline.service.work import State

Note = Annotated[str, Field(max_length=2000)]
CaseProgress = Literal["open", "closed"]
CaseName = Annotated[str, Field(pattern=f"^{NAME}$")]


class CaseBegun(Asked):
    """A new case. name: as searches and the audit log call it, for example a file number."""

    gallery: str
    name: CaseName
    title: Annotated[str, Field(min_length=1, max_length=200)]
    reason: Note | None = None


class CaseState(Asked):
    """Whether a case goes on."""

    state: CaseProgress


class CaseSummary(BaseModel):
    """A case. judged: leads on which somebody has decided; waiting: of these, for a second person."""

    name: str
    gallery: str
    title: str
    reason: str | None
    begun_by: str
    begun_at: datetime
    state: CaseProgress
    judged: int
    waiting: int
    changed_at: datetime


class SegmentFrames(BaseModel):
    """Frames that speak for a lead. times: seconds from the start of their video."""

    frames: list[int]
    times: list[float]


class BestPair(BaseModel):
    """The two segments that resemble each other most."""

    target: SegmentFrames
    candidate: SegmentFrames


class ConfirmationSaid(BaseModel):
    """What a second person said. agrees: whether the first one said so too."""

    who: str
    at: datetime
    decision: Decision
    agrees: bool
    note: str | None


class JudgedLead(BaseModel):
    """A lead on which somebody has decided. tag: its ETag without the quotes. hidden: decision, who, rank, score and note are
    kept from whoever may still confirm it. search and target: which search found it, for whom.
    """

    video_id: str
    tag: int
    camera_id: str | None
    seen_from: datetime | None
    seen_to: datetime | None
    hidden: bool
    decision: Decision | None
    who: str | None
    at: datetime
    note: str | None
    search: str
    target: str
    rank: int | None
    score: float | None
    probability: float | None
    evidence: BestPair | None
    confirmation: ConfirmationSaid | None


class CaseEvent(BaseModel):
    """One record of a case, without what is hidden."""

    number: int
    at: datetime
    who: str | None
    action: str
    video_id: str | None
    decision: Decision | None


class CaseFound(CaseSummary):
    """A case with its leads and its history. head: of its chain, COUNT:SHA256; requires: the gallery's policy."""

    leads: list[JudgedLead]
    events: list[CaseEvent]
    exports: list[str]
    head: str | None
    requires: list[str]


class ExportAsked(Asked):
    """Why a case is handed over; the gallery's policy may require it."""

    reason: Note | None = None


class ExportState(BaseModel):
    """A package of a case and how far it is. sha256, bytes: of the zip, once it is done; error: why it failed."""

    export_id: str
    case: str
    made_by: str
    made_at: datetime
    state: State
    error: str | None
    sha256: str | None
    bytes: int | None


class LeadDecided(Asked):
    """A decision on a lead of a search of one's own; null takes back what was decided, and then no search is needed."""

    decision: Decision | None
    search: Annotated[str, Field(max_length=100)] | None = None
    note: Note | None = None


class LeadConfirmed(Asked):
    """What a second person says of a lead. tag: of the decision whose pictures were looked at."""

    video_id: VideoId
    tag: int
    decision: Decision
    note: Note | None = None


class Appearance(BaseModel):
    """Where the case's person is taken to have been. why: "target" or "same person"; confirmed: by a second person."""

    video_id: str
    why: str
    confirmed: bool
    camera_id: str | None
    camera: str | None
    seen_from: datetime | None
    seen_to: datetime | None
    latitude: float | None
    longitude: float | None
    x_m: float | None
    y_m: float | None


class PathLeg(BaseModel):
    """The way between two appearances. seconds: below 0 where they overlap; impossible: why nobody can have gone it."""

    start: str
    end: str
    seconds: float
    metres: float | None
    impossible: str | None


class CasePath(BaseModel):
    """The path of a case in the order of time. hidden: leads that are left out because this person may still confirm them."""

    appearances: list[Appearance]
    legs: list[PathLeg]
    hidden: int
