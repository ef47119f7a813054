"""What the service is asked and what it answers, as its OpenAPI description says."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PositiveFloat

from pipeline.service.access import Right, Role
from pipeline.service.work import Kind, State

Decision = Literal["same", "different", "unsure"]
VideoId = Annotated[str, Field(min_length=1, max_length=2000)]


class Asked(BaseModel):
    """What is sent here: nothing but what is known."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Problem(BaseModel):
    """Why something was refused or failed (RFC 9457)."""

    title: str
    status: int
    detail: str


class SignIn(Asked):
    token: Annotated[str, Field(max_length=200)]


class Me(BaseModel):
    """Who is asking. rights: what the role lets them do."""

    person: str
    role: Role
    rights: list[Right]


class PlanFacts(BaseModel):
    """A gallery's plan. width, height: of its picture in pixels; width_m, height_m: what it shows, in metres; places of cameras
    (x_m, y_m) are from its lower left corner. sha256: of the picture.
    """

    width: int
    height: int
    width_m: float
    height_m: float
    sha256: str


class GalleryFacts(BaseModel):
    """A gallery. requires: what a search must say of reason and case; index_version: the newest, None without an index; plan: if
    one was set.
    """

    name: str
    videos: int
    seen_from: datetime | None
    seen_to: datetime | None
    requires: list[str]
    index_version: str | None
    plan: PlanFacts | None


class CameraPlaced(Asked):
    """A camera as people say where it is, see `pipeline.gallery.places.CameraPlace`."""

    camera_id: Annotated[str, Field(min_length=1, max_length=500)]
    name: Annotated[str, Field(max_length=200)] | None = None
    zone: Annotated[str, Field(max_length=100)] | None = None
    latitude: float | None = None
    longitude: float | None = None
    x_m: float | None = None
    y_m: float | None = None
    clock_offset_s: float | None = None


class Cameras(Asked):
    """All cameras that have a name, a place or a clock that is wrong."""

    cameras: Annotated[list[CameraPlaced], Field(max_length=10_000)]


class Camera(BaseModel):
    camera_id: str | None
    name: str | None = None
    zone: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    x_m: float | None = None
    y_m: float | None = None
    clock_offset_s: float | None = None
    videos: int
    seen_from: datetime | None
    seen_to: datetime | None


class Video(BaseModel):
    video_id: str
    camera_id: str | None
    seen_from: datetime | None
    seen_to: datetime | None


class Videos(BaseModel):
    """One page of a gallery's videos in the order of ids. following: give it as `cursor` for the next one; None on the last."""

    videos: list[Video]
    following: str | None


class UploadedTarget(BaseModel):
    """An upload; it is searched for as `upload:TARGET_ID`."""

    target_id: str
    bytes: int
    sha256: str


class AuditRecord(BaseModel):
    """A record of the audit log. number: of its place, None in old ones; fields: all else that it says."""

    number: int | None
    at: datetime
    action: str
    who: str
    case: str | None
    reason: str | None
    fields: dict[str, Any]


class AuditPage(BaseModel):
    """Records, the newest first. following: give it as `cursor` for the next page; None on the last."""

    records: list[AuditRecord]
    following: int | None


class AuditChecked(BaseModel):
    """What is wrong with the audit log and the cases, in words. head: of the log, to be kept elsewhere."""

    head: str | None
    records: int
    faults: list[str]


class ProbabilityBin(BaseModel):
    """Leads with a probability in [low, high) on which people have decided: how many, how many of them show the same person, and
    what the probabilities said in the mean.
    """

    low: float
    high: float
    judged: int
    same: int
    mean_probability: float | None


class Evaluated(BaseModel):
    """The newest evaluation on record. mean_ap, rank_1: shares, None where the record has none."""

    at: datetime
    who: str
    data: str
    index_version: str
    queries: int
    mean_ap: float | None
    rank_1: float | None


class HeadCalibration(BaseModel):
    """What the index's head says its scores are worth, fitted on labelled videos of other people. in_use: whether searches here
    take it, which they do where the gallery's own was not measured. fitted_on, date, people, same_pairs, different_pairs: on what
    and when; error: how far its probabilities were off on people that the fit had not seen, in the mean, 0..1; cost,
    least_cost: of its log-likelihood ratios in bits (Cllr), 0 for perfect and 1 for useless ones, and what the best map of these
    scores would have.
    """

    in_use: bool
    fitted_on: str
    date: str
    people: int
    same_pairs: int
    different_pairs: int
    error: float
    cost: float
    least_cost: float


class Quality(BaseModel):
    """What is known of how well a gallery's index finds people. calibration: what probabilities rest on, or why there are none;
    calibrated: whether there are any; head_calibration: what the index's head says, None where it says nothing. sample, links,
    right: videos that the gallery's own was measured on, pairs among them that are likelier matches than not, and the share of
    these that is taken to be right. advice: why the index should be built anew. own: what people decided on the leads of their
    cases.
    """

    index_version: str | None
    model: str | None
    untrained: bool
    videos: int
    not_indexed: int
    cameras_known: int
    calibrated: bool
    calibration: str
    head_calibration: HeadCalibration | None
    sample: int | None
    links: int | None
    right: float | None
    advice: str | None
    evaluation: Evaluated | None
    own: list[ProbabilityBin]
    judged: int


class TokenKnown(BaseModel):
    """A token that was issued. expires: seconds since 1970."""

    person: str
    role: Role
    expires: float


class TokensRevoked(BaseModel):
    """The tokens of a person that were removed: how many."""

    person: str
    tokens: int


class ForgetAsked(Asked):
    """Videos to forget, by id, and why; the gallery's policy may require a case."""

    videos: Annotated[list[VideoId], Field(min_length=1, max_length=100)]
    reason: Annotated[str, Field(min_length=1, max_length=2000)]
    case: Annotated[str, Field(max_length=200)] | None = None


class VideosForgotten(BaseModel):
    """The ids of all videos that were forgotten, copies too."""

    videos: list[str]


class TargetAsked(Asked):
    """Who is searched for. target: `id:VIDEO_ID` of the gallery or `upload:TARGET_ID`. box: x, y, width, height in pixels of the
    picture; time_s: when the box shows the person, seconds of the video. target_camera: that filmed an upload.
    """

    target: Annotated[str, Field(max_length=2100)]
    box: tuple[float, float, PositiveFloat, PositiveFloat] | None = None
    time_s: Annotated[float, Field(ge=0)] | None = None
    target_camera: Annotated[str, Field(max_length=500)] | None = None


class SearchAsked(TargetAsked):
    """A search. further_targets: others that show the same person: scores are then means of the logits under all of them, and
    none of them is a lead; filters on the target's camera, and evidence, are those of the first. whole_picture: take pictures of
    scenes as they are, of all targets. between: hours of any day by the clocks of zone, such as 22:00-02:00. confirmed, rejected:
    videos that a person has looked at; the search then follows the person (`pipeline.search.follow`), joining nothing by itself.
    """

    gallery: str
    further_targets: Annotated[list[TargetAsked], Field(max_length=15)] = []
    reason: Annotated[str, Field(max_length=2000)] | None = None
    case: Annotated[str, Field(max_length=200)] | None = None
    whole_picture: bool = False
    top: Annotated[int, Field(ge=1, le=500)] = 20
    cameras: Annotated[list[Annotated[str, Field(max_length=500)]], Field(max_length=1000)] = []
    other_cameras: bool = False
    after: AwareDatetime | None = None
    before: AwareDatetime | None = None
    between: Annotated[str, Field(max_length=20)] | None = None
    zone: Annotated[str, Field(max_length=100)] = "UTC"
    exact: bool = False
    confirmed: Annotated[list[VideoId], Field(max_length=500)] = []
    rejected: Annotated[list[VideoId], Field(max_length=500)] = []


class Found(BaseModel):
    """What a search found, besides its leads. none_probability: that no eligible video shows the target's person, None where
    there are no probabilities; calibration: what these rest on, or why there are none; remarks: what was guessed; seconds: of the
    search. audit_head: of the gallery's audit log with this search's record in it.
    """

    index_version: str
    model: str
    untrained: bool
    gallery_videos: int
    eligible: int
    scored: int
    untimed: int | None
    filters: list[str]
    none_probability: float | None
    calibration: str
    remarks: list[str]
    not_indexed: int
    seconds: float
    audit_head: str | None


class SearchState(BaseModel):
    """A search and how far it is. asked: as it was; error: why it failed; found: once it is done."""

    search_id: str
    gallery: str
    target: str
    reason: str | None
    case: str | None
    made_at: datetime
    asked: SearchAsked
    state: State
    error: str | None
    found: Found | None


class Segment(BaseModel):
    """A segment and how much each of its frames counted. frames: numbers in the source; times: seconds; attention: sums to 1."""

    frames: list[int]
    times: list[float]
    attention: list[float]


class Pair(BaseModel):
    """Two segments that resemble each other, and their score, 0..1."""

    target: Segment
    candidate: Segment
    score: float


class LeadFound(BaseModel):
    """A lead, to be checked by a person. probability and strength as in `pipeline.search.results.Lead`; source_changed: the file
    is no longer the one that was ingested and scored; copy_of: rank of a lead before that is a file of the same bytes; within:
    why it is in the path of somebody who is followed; decision: what this person said of it.
    """

    rank: int
    video_id: str
    camera_id: str | None
    seen_from: datetime | None
    seen_to: datetime | None
    seen: str | None
    score: float
    probability: float | None
    strength: str | None
    source_changed: bool
    copy_of: int | None
    within: str | None
    decision: Decision | None
    pairs: list[Pair]


class Leads(BaseModel):
    """One page of a search's leads. following: give it as `cursor`, with the same `sort`, for the next one; None on the last."""

    leads: list[LeadFound]
    following: int | None


class SearchFound(SearchState):
    """A search that was done in the time that was waited for it, with its leads, best first."""

    leads: list[LeadFound]


class Decided(Asked):
    """What the person says of a lead; null takes it back."""

    decision: Decision | None


class JobState(BaseModel):
    """Long work and how far it is. about: what is searched for, handed over or taken in; address: below /api/v1, of what it
    makes, None where that is videos of the gallery. stage: what is being done, in a word; done, total: how much of it. outcome:
    what it brought, in words; error: why it failed.
    """

    job_id: str
    kind: Kind
    gallery: str
    about: str
    address: str | None
    made_by: str
    made_at: datetime
    state: State
    stage: str | None
    done: int | None
    total: int | None
    outcome: str | None
    error: str | None


class IngestAsked(Asked):
    """What is taken into a gallery, as jobs.ingest takes it. source: folder, prefix, manifest or video, absolute, below the
    gallery's roots. detector: by name, where the source holds recordings of cameras; pattern and zone: how these are named and in
    which time zone. index: whether the next index is built afterwards.
    """

    source: Annotated[str, Field(min_length=1, max_length=2000)]
    detector: Annotated[str, Field(max_length=100)] | None = None
    pattern: Annotated[str, Field(max_length=200)] | None = None
    zone: Annotated[str, Field(max_length=100)] = "UTC"
    update: bool = False
    retry_rejected: bool = False
    quiet_period: Annotated[float, Field(ge=0, le=1e7)] = 0.0
    index: bool = True
    reason: Annotated[str, Field(max_length=2000)] | None = None


class Ingests(BaseModel):
    """What may be taken into a gallery over this interface, and what is or was since the service began, the newest first. roots:
    below which a source may lie; none: nothing may. detectors: by name.
    """

    roots: list[str]
    detectors: list[str]
    jobs: list[JobState]
