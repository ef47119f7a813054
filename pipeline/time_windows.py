"""When somebody is seen: of a table of videos, in a window of days or of hours of the day, and in words."""

import re
from datetime import UTC, datetime, time
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError

DAY = 86_400_000_000  # in microseconds, as all times here

TIME = pa.timestamp("us", tz="UTC")


def hours_of_day(text: str) -> tuple[time, time]:
    """Two times of day, from the first up to the second, over midnight where that is earlier. Raises UsageError.

    >>> hours_of_day("22:00-02:00")
    (datetime.time(22, 0), datetime.time(2, 0))
    """
    if not (found := re.fullmatch(r"((?:[01]\d|2[0-3]):[0-5]\d)-((?:[01]\d|2[0-3]):[0-5]\d|24:00)", text, re.ASCII)):
        raise UsageError(f"hours of the day are two times such as 22:00-02:00, not {text!r}")
    return time.fromisoformat(found[1]), time() if found[2] == "24:00" else time.fromisoformat(found[2])


def seen(videos: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """When somebody is first and last seen in each video, timestamp[us, UTC]; null where its time is not known.

    Galleries and indexes of older versions have start times only, which then are both.
    """
    first = last = videos["start_time"]
    if "seen_from" in videos.schema.names:
        first = pc.coalesce(videos["seen_from"], first)
        last = pc.coalesce(videos["seen_to"], first)
    return first, last


def seen_within(first: pa.ChunkedArray, last: pa.ChunkedArray, after: datetime | None, before: datetime | None) -> np.ndarray:
    """Which intervals [first, last] have an instant in [after, before), aware datetimes or None: bool [v], False for null."""
    inside = np.ones(len(first), np.bool_)
    for times, bound, compare in ((last, after, pc.greater_equal), (first, before, pc.less)):
        if bound is not None:
            inside &= np.asarray(pc.fill_null(compare(times, pa.scalar(bound, TIME)), False))
    return inside


def seen_daily(first: pa.ChunkedArray, last: pa.ChunkedArray, opens: time, closes: time, zone: str) -> np.ndarray:
    """Which intervals [first, last] have an instant when the clocks of a zone show a time in [opens, closes): bool [v].

    first, last: timestamp[us, UTC]; null gives False. The window goes over midnight where closes is before opens. Raises
    UsageError for a zone that the time zone database lacks.

    >>> seen = [datetime(2026, 7, 1, hour, 30, tzinfo=UTC) for hour in (6, 20)]
    >>> first = last = pa.chunked_array([pa.array(seen, TIME)])
    >>> seen_daily(first, last, time(22), time(6), "Europe/Berlin").tolist()  # two hours ahead of UTC in July
    [False, True]
    """
    start, end = (np.asarray(pc.fill_null(times.cast(pa.int64()), 0)) for times in (first, last))
    window = _microseconds(opens), (_microseconds(closes) - _microseconds(opens)) % DAY
    ahead_at_start, ahead_at_end = _ahead(start, zone), _ahead(end, zone)
    # No zone changes its clocks twice within two days, so that one of any two days has every hour.
    met = (end - start >= 2 * DAY) | _meets(start + ahead_at_start, end + ahead_at_end, *window)
    (changed,) = np.nonzero((ahead_at_start != ahead_at_end) & (end - start < 2 * DAY))
    if len(changed):  # clocks changed meanwhile: each side of that instant by its own offset
        before, after = start[changed], end[changed]
        while (after - before > 1).any():
            middle = before + (after - before) // 2
            same = _ahead(middle, zone) == ahead_at_start[changed]
            before, after = np.where(same, middle, before), np.where(same, after, middle)
        sides = (start[changed], before, ahead_at_start[changed]), (after, end[changed], ahead_at_end[changed])
        met[changed] = np.any([_meets(one + ahead, other + ahead, *window) for one, other, ahead in sides], axis=0)
    return met & np.asarray(pc.is_valid(first))


def _meets(start: np.ndarray, end: np.ndarray, opens: int, length: int) -> np.ndarray:
    """Whether an interval begins within the daily window, or the window opens before it ends; all in local time."""
    return ((start - opens) % DAY < length) | ((opens - start) % DAY <= end - start)


def _ahead(instants: np.ndarray, zone: str) -> np.ndarray:
    """How far the clocks of a zone are ahead of UTC at instants, int64."""
    try:
        local = pc.local_timestamp(pa.array(instants, pa.timestamp("us", tz=zone)))
    except pa.ArrowInvalid as error:
        raise UsageError(f"the time zone database of this machine has no {zone!r}; name one like Europe/London") from error
    return np.asarray(local.cast(pa.int64())) - instants


def _microseconds(clock: time) -> int:
    return ((clock.hour * 60 + clock.minute) * 60 + clock.second) * 1_000_000 + clock.microsecond


def moment_words(moment: datetime, zone: str = "UTC", *, tenths: bool = False) -> str:
    """To the second or its tenth, with the zone; a time without one is UTC. In UTC where the zone's calendar does not reach."""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    try:
        local = moment.astimezone(ZoneInfo(zone))
    except OverflowError:
        local = moment.astimezone(UTC)
    return f"{local:%Y-%m-%d %H:%M:%S}{f'.{local.microsecond // 100_000}' if tenths else ''} {local:%Z}"


def span_words(first: datetime, last: datetime, zone: str = "UTC", *, tenths: bool = False) -> str:
    """From one time to another, as `moment_words`; what both have in common stands once."""
    start, end = (moment_words(moment, zone, tenths=tenths) for moment in (first, last))
    if start == end:
        return start
    day, clock, name = start.split(" ")
    return f"{day} {clock if end.endswith(f' {name}') else f'{clock} {name}'} – {end.removeprefix(f'{day} ')}"
