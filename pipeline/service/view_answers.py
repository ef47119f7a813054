"""What the service answers of what is seen: boxes of videos, and what a search found as charts show it."""

from datetime import datetime

from pydantic import BaseModel, Field

from pipeline.service.answers import Asked, Pair, VideoId


class BoxAt(BaseModel):
    """Where somebody is in a picture: time_s, seconds of the video; the box in pixels of the picture."""

    time_s: float
    x: float
    y: float
    w: float
    h: float


class VideoBoxes(BaseModel):
    """Where a video's person is, for a page to draw. width, height: of the picture in pixels, None where nobody knows them; fps:
    frames a second; first_s, last_s: seconds of the video in which the person was looked at; boxes: of the stretch that was asked
    for, none where whole pictures show them.
    """

    video_id: str
    camera_id: str | None
    seen_from: datetime | None
    seen_to: datetime | None
    width: int | None
    height: int | None
    fps: float | None
    first_s: float
    last_s: float
    boxes: list[BoxAt]


class TargetFacts(BaseModel):
    """An upload that a person looks at before a search. width, height: of its pictures in pixels, in which boxes are given.
    is_scene: it looks like what a camera sees rather than like one person, so that a search needs a box.
    """

    target_id: str
    name: str
    bytes: int
    sha256: str
    width: int
    height: int
    is_photo: bool
    is_scene: bool


class Distribution(BaseModel):
    """How all scores of a search are distributed. edges: of the bins, ascending, one more than counts; the last bin has its upper
    edge in it. scored: how many videos there are in all bins; lowest_lead: the score of the last lead, None without leads.
    """

    edges: list[float]
    counts: list[int]
    scored: int
    lowest_lead: float | None


class TimelinePoint(BaseModel):
    """A video that was scored. rank: of the lead that it is, None for any other."""

    video_id: str
    camera_id: str | None
    seen_from: datetime | None
    seen_to: datetime | None
    score: float
    rank: int | None


class Timeline(BaseModel):
    """Cameras and times of the best videos of a search, best first. left_out: how many more were scored; untimed: how many of
    those that were not left out have no time.
    """

    cameras: list[str | None]
    points: list[TimelinePoint]
    left_out: int
    untimed: int


class FrameShare(BaseModel):
    """A frame of a lead and how much it counts in its best pairs: the largest attention in any of them, by the largest of all."""

    frame: int
    time_s: float
    share: float


class Evidence(BaseModel):
    """What speaks for a lead. shares: of the lead's frames in the order of time, 0..1. ingested_hash, source_hash: of the lead's
    source as it was ingested and as it was when it was searched.
    """

    rank: int
    video_id: str
    pairs: list[Pair]
    shares: list[FrameShare]
    ingested_hash: str | None
    source_hash: str | None


class Refined(Asked):
    """What a person says of leads. confirmed: they show the person; hidden: they shall not be among the leads."""

    confirmed: list[VideoId] = Field(default_factory=list, max_length=500)
    hidden: list[VideoId] = Field(default_factory=list, max_length=500)
