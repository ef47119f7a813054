"""Where a gallery's cameras are: names for people, places and time zones, in cameras.json of the gallery."""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from zoneinfo import ZoneInfo

from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.storage.documents import typed
from pipeline.storage.location import StorageError
from pipeline.storage.seals import sealed, unsealed

EARTH_METRES = 6_371_008.8  # mean radius, IUGG
FORMAT = 1


@dataclass(frozen=True)
class CameraPlace:
    """A camera. name: for people; zone: IANA name; latitude, longitude: WGS 84 degrees; x_m, y_m: metres on a plan of one's own.

    Raises UsageError for half a place, one beyond the globe and a zone that is none.
    """

    camera_id: str
    name: str | None = None
    zone: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    x_m: float | None = None
    y_m: float | None = None

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


def write_places(gallery: Gallery, cameras: Collection[CameraPlace]) -> None:
    """Replace what is known of cameras. Raises UsageError where two have one id."""
    if len({one.camera_id for one in cameras}) < len(cameras):
        raise UsageError("two cameras have one id")
    document = {"format": FORMAT, "cameras": [asdict(one) for one in sorted(cameras, key=lambda one: one.camera_id)]}
    gallery.location.join("cameras.json").write_atomically(sealed(document, indent=1))
