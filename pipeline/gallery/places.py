"""Where a gallery's cameras are: names for people, places, time zones and clocks, in cameras.json of the gallery.

A clock that is wrong is set right where times are shown, compared and filtered by (`with_right_times`, `with_right_time`); what
the gallery holds stays as its ingest said it, which may have corrected a clock already
(`pipeline.footage.recordings.CameraClock`).
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.video_ref import VideoRef
from pipeline.storage.documents import typed
from pipeline.storage.faults import StorageError
from pipeline.storage.seals import sealed, unsealed

EARTH_METRES = 6_371_008.8  # mean radius, IUGG
FORMAT = 1
LARGEST_OFFSET = 100 * 366 * 86400.0  # seconds that a clock may be wrong by: one that was never set says 1970
TIMES = ("start_time", "seen_from", "seen_to")  # of a video


@dataclass(frozen=True)
class CameraPlace:
    """A camera. name: for people; zone: IANA name; latitude, longitude: WGS 84 degrees; x_m, y_m: metres on a plan of one's own,
    to the right and up from its lower left corner; clock_offset_s: seconds that the times of its videos are ahead.

    Raises UsageError for half a place, one beyond the globe, a zone that is none and a clock that is off by more than a century.
    """

    camera_id: str
    name: str | None = None
    zone: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    x_m: float | None = None
    y_m: float | None = None
    clock_offset_s: float | None = None

    def __post_init__(self) -> None:
        for one, other in ((self.latitude, self.longitude), (self.x_m, self.y_m)):
            if (one is None) != (other is None):
                raise UsageError(f"camera {self.camera_id}: a place has two numbers, latitude and longitude or x_m and y_m")
        if (
            self.latitude is not None
            and self.longitude is not None
            and not (-90 <= self.latitude <= 90 and -180 <= self.longitude <= 180)
        ):
            raise UsageError(f"camera {self.camera_id}: latitude goes from -90 to 90, longitude from -180 to 180 degrees")
        if not abs(self.clock_offset_s or 0.0) <= LARGEST_OFFSET:
            raise UsageError(f"camera {self.camera_id}: {self.clock_offset_s:g} s is no time that a clock is wrong by")
        if self.zone is not None:
            try:
                ZoneInfo(self.zone)
            except (KeyError, ValueError, OSError) as error:
                raise UsageError(f"camera {self.camera_id}: {self.zone!r} is no time zone; one is Europe/London") from error

    def metres_to(self, other: "CameraPlace") -> float | None:
        """The way to another camera as the crow flies, None where the two have no place of one kind.

        >>> round(CameraPlace("a", latitude=0.0, longitude=0.0).metres_to(CameraPlace("b", latitude=0.0, longitude=1.0)))
        111195
        """
        if self.latitude is not None and other.latitude is not None:
            return _on_globe(self.latitude, self.longitude or 0.0, other.latitude, other.longitude or 0.0)
        if self.x_m is not None and other.x_m is not None:
            return math.hypot(self.x_m - other.x_m, (self.y_m or 0.0) - (other.y_m or 0.0))
        return None


def wrong_clocks(places: Mapping[str, CameraPlace]) -> list[str]:
    """Ids of the cameras whose clocks are wrong."""
    return [one.camera_id for one in places.values() if one.clock_offset_s]


def with_right_times(videos: pa.Table, places: Mapping[str, CameraPlace]) -> pa.Table:
    """Rows of videos with the times that a right clock would have given them. videos: camera_id and some of TIMES."""
    wrong = {one.camera_id: one.clock_offset_s for one in places.values() if one.clock_offset_s}
    if not wrong:
        return videos
    of_clock = pc.index_in(videos["camera_id"].combine_chunks(), value_set=pa.array(list(wrong), pa.string()))
    micros = pa.array(np.round(np.array(list(wrong.values())) * 1e6).astype(np.int64))
    durations = pc.fill_null(micros.take(of_clock), 0).cast(pa.duration("us"))
    for name in set(TIMES) & set(videos.schema.names):
        at = videos.schema.get_field_index(name)
        videos = videos.set_column(at, videos.schema.field(at), pc.subtract(videos[name].combine_chunks(), durations))
    return videos


def with_right_time(video: VideoRef, places: Mapping[str, CameraPlace]) -> VideoRef:
    """A video with the times that a right clock would have given it."""
    place = places.get(video.camera_id or "")
    if place is None or not place.clock_offset_s:
        return video
    ahead = timedelta(seconds=place.clock_offset_s)
    times = {name: getattr(video, name) for name in TIMES}
    return replace(video, **{name: time - ahead for name, time in times.items() if time is not None})


def _on_globe(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """The haversine formula, metres."""
    one, other = math.radians(latitude), math.radians(other_latitude)
    east = math.radians(other_longitude - longitude)
    half = math.sin((other - one) / 2) ** 2 + math.cos(one) * math.cos(other) * math.sin(east / 2) ** 2
    return 2 * EARTH_METRES * math.asin(min(1.0, math.sqrt(half)))


def read_places(gallery: Gallery) -> dict[str, CameraPlace]:
    """What is known of cameras, by id; nothing where nobody has said it. Raises PipelineError for a damaged file."""
    file = gallery.location.join("cameras.json")
    try:
        document = unsealed(file.read_bytes())
        return {one.camera_id: one for one in typed(list[CameraPlace], document["cameras"])}
    except StorageError as error:
        if error.kind == "missing":
            return {}
        raise
    except (ValueError, KeyError, TypeError, UsageError) as error:
        raise PipelineError(f"{file.uri} is damaged: {error}; set the cameras again") from error


def check_places(cameras: Collection[CameraPlace]) -> None:
    """Raise UsageError where two have one id."""
    if len({one.camera_id for one in cameras}) < len(cameras):
        raise UsageError("two cameras have one id")


def write_places(gallery: Gallery, cameras: Collection[CameraPlace]) -> None:
    """Replace what is known of cameras. Raises UsageError where two have one id."""
    check_places(cameras)
    document = {"format": FORMAT, "cameras": [asdict(one) for one in sorted(cameras, key=lambda one: one.camera_id)]}
    gallery.location.join("cameras.json").write_atomically(sealed(document, indent=1))
