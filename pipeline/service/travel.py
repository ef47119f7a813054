"""The path of a case: its leads over cameras and time, and the ways between them that nobody can have gone."""

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.gallery.places import CameraPlace
from pipeline.gallery.video_ref import VideoRef, at_once

LATEST = datetime.max.replace(tzinfo=UTC)
METRES_PER_SECOND = 10.0  # faster than people run over any distance; in a car they are faster


@dataclass(frozen=True)
class Leg:
    """The way from one appearance to another. seconds: from when somebody is last seen in the first one until the second begins,
    below 0 where they overlap. metres: as the crow flies, None where a place is not known. impossible: why nobody can have gone
    it, in words; None where nothing speaks against it.
    """

    start: str
    end: str
    seconds: float
    metres: float | None
    impossible: str | None


def in_order(videos: Collection[VideoRef]) -> list[VideoRef]:
    """By when somebody is first seen, those without a time last."""
    return sorted(videos, key=lambda one: (one.seen or (LATEST, LATEST), one.video_id))


def legs(videos: Collection[VideoRef], places: Mapping[str, CameraPlace], fastest: float = METRES_PER_SECOND) -> list[Leg]:
    """The ways from each appearance to the next one, and all pairs in two cameras at once. fastest: metres a second."""
    timed = [one for one in in_order(videos) if one.seen is not None]
    pairs = list(itertools.pairwise(timed))
    pairs += [(one, other) for i, one in enumerate(timed) for other in timed[i + 2 :] if at_once(one, other)]
    return [_leg(one, other, places, fastest) for one, other in pairs]


def _leg(one: VideoRef, other: VideoRef, places: Mapping[str, CameraPlace], fastest: float) -> Leg:
    seconds = (_seen(other)[0] - _seen(one)[1]).total_seconds()
    here, there = (places.get(video.camera_id or "") for video in (one, other))
    metres = None if here is None or there is None else here.metres_to(there)
    impossible = None
    if at_once(one, other):
        impossible = "seen in two cameras at once"
    elif metres is not None and metres > fastest * max(seconds, 0.0):
        impossible = f"{metres:,.0f} m in {max(seconds, 0.0):,.0f} s: more than {fastest:g} m a second"
    return Leg(one.video_id, other.video_id, seconds, metres, impossible)


def _seen(video: VideoRef) -> tuple[datetime, datetime]:
    assert video.seen is not None  # noqa: S101 - for mypy
    return video.seen
