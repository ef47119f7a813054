"""A video of a gallery, or of a target, as others speak of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class VideoRef:
    """Where a video is and what is known of it. track: the track id in the boxes file, or None for the whole frame.

    ingested_hash: of the source when it was ingested (see `pipeline.decoding.source_hash.source_hash`), None where it is not
    known. seen_from, seen_to: when somebody is first and last seen in it; None where only start_time is known, or nothing. box:
    (x, y, w, h) in pixels, of a target that is what a box shows.
    """

    video_id: str
    uri: str
    camera_id: str | None = None
    start_time: datetime | None = None
    person_id: str | None = None
    boxes_uri: str | None = None
    track: int | None = None
    ingested_hash: str | None = None
    seen_from: datetime | None = None
    seen_to: datetime | None = None
    box: tuple[float, float, float, float] | None = None

    @property
    def seen(self) -> tuple[datetime, datetime] | None:
        """When somebody is first and last seen; the start time twice where no more is known, None without a time."""
        first = self.seen_from or self.start_time
        return None if first is None else (first, self.seen_to or first)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "VideoRef":
        """Of a row of a gallery's or an index's videos; older ones lack the newest columns."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__ if name in row})


def at_once(one: VideoRef, other: VideoRef) -> bool:
    """Whether two videos show somebody in two cameras at the same instant, as far as is known."""
    if one.seen is None or other.seen is None or None in (one.camera_id, other.camera_id) or one.camera_id == other.camera_id:
        return False
    return one.seen[0] <= other.seen[1] and other.seen[0] <= one.seen[1]
