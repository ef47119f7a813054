"""The plan: which camera a recording is of and when it began, and how a camera's recordings follow each other.

A recorder says both in names of folders and files, by a pattern (`name_pattern`); a manifest may say them too; and where neither
does, some files say when they were made. Recordings of a camera that follow each other within CONTINUES are one *run*, in which
people are followed from file to file. A run ends with its day (UTC), so that what is forgotten by age, or comes late, changes the
tracks of one day at most. Nothing is decoded here, and the same recordings give the same runs in whatever order they came.
"""

import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog.inputs import Catalog
from pipeline.catalog.manifest import LARGEST_OFFSET
from pipeline.errors import UsageError
from pipeline.storage.location import resolve
from pipeline.storage.reach import Reach

CONTINUES = (-2.0, 3.0)  # seconds from the end of a recording to the start of one that continues it: names have whole seconds
RECENT = 16  # runs of a camera that a recording may continue, the last to begin
# How recorders name what they write, as far as it is known for sure; `*` is any characters of one name.
RECORDERS = {
    "blueiris": "{camera}.%Y%m%d_%H%M%S*",
    "frigate": "%Y-%m-%d/%H/{camera}/%M.%S.*",
    "mediamtx": "{camera}/%Y-%m-%d_%H-%M-%S-%f.*",
    "motioneye": "{camera}/%Y-%m-%d/%H-%M-%S.*",
    "reolink": "{camera}_%Y%m%d%H%M%S.*",
    "shinobi": "{camera}/%Y-%m-%dT%H-%M-%S.*",
}
WRITE_UTC = frozenset({"frigate"})  # whatever zone the cameras are in
_DIGITS = {"Y": r"\d{4}", "m": r"\d\d", "d": r"\d\d", "H": r"\d\d", "M": r"\d\d", "S": r"\d\d", "f": r"\d{1,6}", "s": r"\d{9,11}"}
_PARTS = re.compile(r"\{camera\}|%.|\*|.", re.DOTALL)
_NEEDED = ("Y", "m", "d", "H", "M")


def as_named(text: str) -> str:
    """A name in Unicode's normal form C. macOS writes names of files in form D, people and other systems in C: an u with two dots
    is two characters there and one here, and a camera would be two.

    >>> as_named("Su\u0308d") == "S\u00fcd"
    True
    """
    return unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class NamePattern:
    """Reads camera and start time from the end of a uri. text: as it was given; utc: whether its times are, whatever the
    camera.
    """

    text: str
    expression: re.Pattern[str]
    utc: bool = False

    def read(self, uri: str) -> tuple[str, datetime] | None:
        """(camera, naive start time) of a recording; None where the name is another one or no date."""
        path = uri if uri.startswith("/") else uri.partition("?")[0]  # without a store's options
        match = self.expression.search(as_named(path))
        if match is None:
            return None
        camera, found = match["camera"], match.groupdict()
        try:
            if found.get("s"):
                return camera, datetime.fromtimestamp(int(found["s"]), UTC).replace(tzinfo=None)
            year, month, day, hour, minute = (int(found[code]) for code in _NEEDED)
            micros = int((found.get("f") or "0").ljust(6, "0"))
            return camera, datetime(year, month, day, hour, minute, int(found.get("S") or 0), micros)
        except (ValueError, OverflowError):
            return None


def name_pattern(text: str) -> NamePattern:
    """A pattern by a recorder's name (RECORDERS), or as text: {camera}, %Y %m %d %H %M %S %f (or %s, seconds since 1970), and *.

    It is compared with the end of a path; {camera} and * stay within one name. Raises UsageError for a pattern that names no
    camera, no time, or something twice in different ways.

    >>> name_pattern("{camera}/%Y%m%d_%H%M%S.mp4").read("/nvr/gate/20260301_081500.mp4")
    ('gate', datetime.datetime(2026, 3, 1, 8, 15))
    """
    pattern, parts, seen = as_named(RECORDERS.get(text, text)), list[str](), set[str]()
    for part in _PARTS.findall(pattern):
        if part == "*":
            parts.append("[^/]*")
        elif part == "{camera}" or (part[0] == "%" and part[1:] in _DIGITS):
            name, digits = ("camera", "[^/]+?") if part == "{camera}" else (part[1:], _DIGITS[part[1:]])
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{digits})")
            seen.add(name)
        elif part[0] == "%" and len(part) == 2:
            raise UsageError(
                f"the pattern {text!r} has {part}, which is not read; known are {{camera}}, *, %{' %'.join(_DIGITS)}"
            )
        else:
            parts.append(re.escape(part))
    if "camera" not in seen or not ("s" in seen or seen.issuperset(_NEEDED)):
        names = ", ".join(RECORDERS)
        raise UsageError(
            f"the pattern {text!r} names no camera or no time: it needs {{camera}} and %Y %m %d %H %M or %s, or is one of {names}"
        )
    begins = "" if pattern.startswith("/") else "(?:^|/)"
    return NamePattern(text, re.compile(f"{begins}{''.join(parts)}$"), text in WRITE_UTC or "s" in seen)


@dataclass(frozen=True)
class CameraClock:
    """zone: of the times in names, a name of the time zone database. offset_s: seconds that the camera's clock is ahead."""

    zone: str | None = None
    offset_s: float = 0.0


@dataclass(frozen=True)
class Clocks:
    """The clocks of cameras by camera id (`as_named`), and the zone of those that have none there."""

    zone: str = "UTC"
    cameras: Mapping[str, CameraClock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for zone in {self.zone, *(clock.zone for clock in self.cameras.values() if clock.zone)}:
            try:
                ZoneInfo(zone)
            except (KeyError, ValueError, OSError) as error:
                raise UsageError(f"{zone!r} is no time zone; name one of the time zone database, as Europe/London") from error

    def of(self, camera: str | None) -> CameraClock:
        """The clock of a camera, its zone filled in."""
        clock = self.cameras.get(as_named(camera or ""), CameraClock())
        return CameraClock(clock.zone or self.zone, clock.offset_s)


def read_clocks(uri: str | None, zone: str = "UTC") -> Clocks:
    """The clocks in a cameras file: CSV with the columns camera_id and zone, clock_offset (seconds ahead) or both.

    Raises UsageError naming the row (from 1, without the header) for what cannot be meant, and for a camera that stands twice.
    """
    if uri is None:
        return Clocks(zone)
    try:
        rows = list(csv.DictReader(io.StringIO(resolve(uri).read_bytes().decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"the cameras file {uri} is not CSV in UTF-8: {error}") from error
    names = set(rows[0]) if rows else set()
    if "camera_id" not in names or not names & {"zone", "clock_offset"}:
        raise UsageError(f"the cameras file {uri} needs the column camera_id and zone or clock_offset, and a row")
    cameras: dict[str, CameraClock] = {}
    for number, row in enumerate(rows, start=1):
        camera, offset = as_named(row["camera_id"] or ""), row.get("clock_offset")
        if not camera or None in row:
            raise UsageError(f"row {number} of {uri} {'has more values than the header' if camera else 'names no camera'}")
        if camera in cameras:
            raise UsageError(f"row {number} of {uri}: the camera {camera!r} stands there before")
        try:
            seconds = float(offset or 0)
        except ValueError:
            seconds = math.nan
        if not abs(seconds) <= LARGEST_OFFSET:
            raise UsageError(f"row {number} of {uri}: clock_offset {offset!r} is no number of seconds that a clock is wrong by")
        cameras[camera] = CameraClock(row.get("zone") or None, seconds)
    return Clocks(zone, cameras)


def corrected_by(start: datetime, offset_s: float) -> datetime | None:
    """A start by a clock that is so many seconds ahead, in UTC; None where no calendar has it. start: aware."""
    try:
        return start.astimezone(UTC) - timedelta(seconds=offset_s)
    except OverflowError:
        return None


@dataclass(frozen=True)
class Plan:
    """Recordings to look for people in.

    table: SOURCE_SCHEMA and start_from as in RECORDINGS_SCHEMA; a start_time is corrected by its own clock_offset, else by its
    camera's clock, and clock_offset says by how much.
    unnamed: uris that the pattern does not fit, and that are left out. unfilmed: cameras that have a clock, and no recording.
    reach: where uris may lead.
    """

    table: pa.Table
    unnamed: tuple[str, ...] = ()
    unfilmed: tuple[str, ...] = ()
    reach: Reach = field(default_factory=Reach)

    def not_read(self) -> str:
        """What is left out, in words; "" for nothing."""
        count = len(self.unnamed)
        return f"{count} file{'s'[: count > 1]} that the pattern does not fit" if count else ""


def plan_recordings(catalog: Catalog, pattern: NamePattern | None, clocks: Clocks) -> Plan:
    """Who filmed what when, by the catalog's own columns, else by the pattern. Cameras are called as `as_named` has it.

    Raises UsageError where the pattern fits nothing, and for rows that say who is where already.
    """
    if named_people := pc.sum(pc.or_(*(pc.is_valid(catalog.table[name]) for name in ("boxes_uri", "person_id")))).as_py():
        raise UsageError(
            f"{named_people} of {len(catalog.table)} inputs have a boxes file or a person's label: "
            "they show who is known already; ingest them without a detector"
        )
    rows, unnamed = [], []
    for row in catalog.table.to_pylist():
        named = pattern.read(row["uri"]) if pattern is not None else None
        if pattern is not None and named is None and (row["camera_id"] is None or row["start_time"] is None):
            unnamed.append(row["uri"])
            continue
        start, start_from = row["start_time"], "manifest" if row["start_time"] is not None else None
        camera = as_named(row["camera_id"]) if row["camera_id"] is not None else named[0] if named is not None else None
        clock, ahead = clocks.of(camera), row["clock_offset"]  # of this recording; its start in the manifest is right already
        if start is None and named is not None:
            zone = "UTC" if pattern is not None and pattern.utc else clock.zone or "UTC"
            start, start_from = named[1].replace(tzinfo=ZoneInfo(zone)), "name"
        if start is not None and (ahead is None or start_from == "name"):
            start = corrected_by(start, clock.offset_s if ahead is None else ahead)
            if start is None:
                unnamed.append(row["uri"])  # a date that no calendar has
                continue
        offset = clock.offset_s if ahead is None else ahead
        rows.append(row | {"camera_id": camera, "start_time": start, "start_from": start_from, "clock_offset": offset})
    if unnamed and not rows and pattern is not None:
        raise UsageError(f"the pattern {pattern.text!r} fits none of {len(unnamed)} files, such as {unnamed[0]}")
    unfilmed = sorted(clocks.cameras.keys() - {row["camera_id"] for row in rows})
    table = pa.Table.from_pylist(rows, pa.schema([*catalog.table.schema, pa.field("start_from", pa.string())]))
    return Plan(table, tuple(unnamed), tuple(unfilmed), catalog.reach)


@dataclass(frozen=True)
class RunPart:
    """A recording of a run. begins_s: its start in seconds from the run's; row: of RECORDINGS_SCHEMA."""

    begins_s: float
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """Recordings of one camera that continue each other, in their order. name: what its tracks are called by, before "#"."""

    name: str
    camera: str | None
    start: datetime | None
    parts: tuple[RunPart, ...]


@dataclass(frozen=True)
class Irregularity:
    """What is odd in a camera's recordings. kind: "gap", "overlap" (seconds that stand twice are looked at once), "clock" (a
    recording begins so long before the one before it ends that the clock was set back, or there are two of them; both are kept),
    "copy" (the same bytes again, left out) or "no start". at: where; seconds: how much.
    """

    kind: str
    camera: str | None
    at: datetime | None
    seconds: float
    uri: str


def timeline(recordings: pa.Table) -> tuple[list[Run], list[Irregularity]]:
    """The runs of recordings (RECORDINGS_SCHEMA), and what is odd in them; both by camera and time."""
    runs: list[Run] = []
    odd: list[Irregularity] = []
    by_camera: dict[str, list[dict]] = {}
    for row in recordings.to_pylist():
        if row["camera_id"] is None or row["start_time"] is None:
            runs.append(Run(row["source_id"], row["camera_id"], row["start_time"], (RunPart(0.0, row),)))
            if row["start_time"] is None:
                odd.append(Irregularity("no start", row["camera_id"], None, 0.0, row["uri"]))
        else:
            by_camera.setdefault(row["camera_id"], []).append(row)
    for camera, rows in sorted(by_camera.items()):
        rows.sort(key=lambda row: (row["start_time"], row["source_id"]))
        found, strange = _runs_of(camera, list(_without_copies(rows, odd)))
        runs += found
        odd += strange
    return runs, odd


def _without_copies(rows: Iterable[dict], odd: list[Irregularity]) -> Iterable[dict]:
    """Without those of the same bytes and start as one before."""
    seen = set()
    for row in rows:
        key = row["ingested_hash"], row["start_time"]
        if row["ingested_hash"] is not None and key in seen:
            odd.append(Irregularity("copy", row["camera_id"], row["start_time"], 0.0, row["uri"]))
            continue
        seen.add(key)
        yield row


def ends(row: Mapping) -> datetime:
    """When a recording with a start ends: its last frame lasts as long as its frames do."""
    return row["start_time"] + timedelta(seconds=(row["last_s"] or 0.0) + (1 / row["fps"] if row["fps"] else 0.0))


def _runs_of(camera: str, rows: list[dict]) -> tuple[list[Run], list[Irregularity]]:
    """rows: in the order of their starts. Each continues the run whose end is nearest, if one is near enough."""
    runs: list[list[dict]] = []
    odd = []
    last_end: datetime | None = None
    for row in rows:
        gaps = [(row["start_time"] - ends(run[-1])).total_seconds() for run in runs[-RECENT:]]
        same_day = [run[0]["start_time"].date() == row["start_time"].date() for run in runs[-RECENT:]]
        fitting = [place for place, gap in enumerate(gaps) if CONTINUES[0] <= gap <= CONTINUES[1] and same_day[place]]
        apart = (row["start_time"] - last_end).total_seconds() if last_end is not None else 0.0
        if fitting:
            best = min(fitting, key=lambda place: (abs(gaps[place]), -place))
            runs[-RECENT:][best].append(row)
            kind, apart = ("overlap" if gaps[best] < -0.5 else ""), gaps[best]
        else:
            runs.append([row])
            kind = "" if CONTINUES[0] <= apart <= CONTINUES[1] else "gap" if apart > 0 else "clock"
        if kind:
            odd.append(Irregularity(kind, camera, row["start_time"], abs(apart), row["uri"]))
        last_end = ends(row) if last_end is None else max(last_end, ends(row))
    named: dict[str, list[list[dict]]] = {}
    for run in runs:
        named.setdefault(f"{camera}/{_moment(run[0]['start_time'])}", []).append(run)
    found = [
        Run(name if place == 0 else f"{name}~{run[0]['source_id']}", camera, run[0]["start_time"], tuple(_parts(run)))
        for name, same in named.items()
        for place, run in enumerate(same)
    ]
    return found, odd


def _parts(rows: list[dict]) -> Iterable[RunPart]:
    return (RunPart((row["start_time"] - rows[0]["start_time"]).total_seconds(), row) for row in rows)


def _moment(start: datetime) -> str:
    text = f"{start:%Y%m%dT%H%M%S}"
    return f"{text}.{start.microsecond:06d}Z" if start.microsecond else f"{text}Z"
