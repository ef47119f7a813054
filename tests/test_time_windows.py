"""When somebody is seen: windows of time against a brute force minute by minute, and times in words."""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import UsageError
from pipeline.time_windows import TIME, moment_words, seen, seen_daily, seen_within, span_words

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
WINDOWS = [(time(22), time(2)), (time(1, 30), time(1, 45)), (time(0), time(0, 1)), (time(1, 10), time(1, 5)), (time(9), time(0))]

# A zone and a moment within some hours of which its clocks change, by an hour, half an hour, a day; none in the last two.
CHANGES = [
    ("Europe/London", datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ("Europe/London", datetime(2026, 10, 25, 1, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 11, 1, 6, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
    ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),
    ("Asia/Kathmandu", datetime(2026, 6, 1, tzinfo=UTC)),
    ("UTC", datetime(2026, 6, 1, tzinfo=UTC)),
]


def column(*times: datetime | None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(times, TIME)])


def seen_by_the_minute(first: datetime, last: datetime, opens: time, closes: time, zone: str) -> bool:
    """Whether a clock on the wall that is looked at once a minute ever shows a time in the window; all are whole minutes."""
    here = ZoneInfo(zone)
    for minute in range(int((last - first).total_seconds()) // 60 + 1):
        clock = (first + timedelta(minutes=minute)).astimezone(here).time()
        if opens <= clock < closes if opens < closes else clock >= opens or clock < closes:
            return True
    return False


@pytest.mark.parametrize(("zone", "around"), CHANGES, ids=[f"{zone} {around:%Y-%m}" for zone, around in CHANGES])
def test_a_daily_window_is_what_a_clock_on_the_wall_says(zone: str, around: datetime) -> None:
    rng = np.random.default_rng(5)
    firsts = [around + timedelta(minutes=int(minute)) for minute in rng.integers(-1800, 600, 60)]
    lengths = [int(minutes) for minutes in rng.choice([0, 1, 7, 59, 60, 61, 180, 1380, 1439, 1440, 1500, 2880, 4400], 60)]
    lasts = [first + timedelta(minutes=minutes) for first, minutes in zip(firsts, lengths, strict=True)]
    answers = set()
    for opens, closes in WINDOWS:
        by_hand = [seen_by_the_minute(first, last, opens, closes, zone) for first, last in zip(firsts, lasts, strict=True)]
        assert seen_daily(column(*firsts), column(*lasts), opens, closes, zone).tolist() == by_hand
        answers |= set(by_hand)
    assert answers == {True, False}


def test_an_hour_that_clocks_skip_is_in_no_short_video_and_one_that_they_show_twice_is_in_both() -> None:
    skipped, twice = datetime(2026, 3, 29, 0, 50, tzinfo=UTC), datetime(2026, 10, 25, 0, 40, tzinfo=UTC)
    shown = {
        first: seen_daily(column(first), column(first + timedelta(minutes=20)), time(1, 30), time(1, 55), "Europe/London").item()
        for first in (skipped, twice, twice + timedelta(hours=1), twice + timedelta(minutes=75, hours=1))
    }
    assert list(shown.values()) == [False, True, True, False]


def test_a_daily_window_is_closed_at_its_end_and_open_at_its_start() -> None:
    edges = column(*(datetime(2026, 6, 1, hour, tzinfo=UTC) for hour in (21, 22)))
    assert seen_daily(edges, edges, time(21), time(22), "UTC").tolist() == [True, False]
    assert seen_daily(edges, edges, time(20), time(21), "UTC").tolist() == [False, False]


def test_a_video_without_a_time_is_in_no_window() -> None:
    nothing, known = column(None, START), column(None, START)
    assert seen_daily(nothing, known, time(0), time(23, 59), "UTC").tolist() == [False, True]
    assert seen_within(nothing, known, START, None).tolist() == [False, True]
    assert seen_within(nothing, known, None, START + timedelta(seconds=1)).tolist() == [False, True]


def test_a_window_of_time_holds_whoever_is_seen_at_some_instant_of_it() -> None:
    minutes = [(a, a + length) for a in range(0, 50, 5) for length in (0, 5, 30)]
    first, last = (column(*(START + timedelta(minutes=pair[side]) for pair in minutes)) for side in (0, 1))
    for after, before in ((10, 20), (10, None), (None, 20), (0, 5)):
        by_hand = [
            any((after is None or minute >= after) and (before is None or minute < before) for minute in range(a, b + 1))
            for a, b in minutes
        ]
        bounds = [None if bound is None else START + timedelta(minutes=bound) for bound in (after, before)]
        assert seen_within(first, last, *bounds).tolist() == by_hand


def test_start_times_stand_in_where_it_is_not_known_when_somebody_is_seen() -> None:
    later, latest = START + timedelta(minutes=1), START + timedelta(minutes=2)
    older = pa.table({"start_time": column(START, None)})
    assert [times.to_pylist() for times in seen(older)] == [[START, None]] * 2
    rows = pa.table(
        {"start_time": column(START, START, None), "seen_from": column(later, None, None), "seen_to": column(latest, None, None)}
    )
    assert [times.to_pylist() for times in seen(rows)] == [[later, START, None], [latest, START, None]]


def test_a_zone_that_only_python_knows_is_refused() -> None:
    with pytest.raises(UsageError, match="has no 'right/UTC'; name one like Europe/London"):
        seen_daily(column(START), column(START), time(1), time(2), "right/UTC")


def test_times_in_words_name_their_zone_and_say_once_what_is_the_same() -> None:
    second = timedelta(seconds=1)
    assert moment_words(START.replace(tzinfo=None)) == "2026-03-01 12:00:00 UTC"
    assert span_words(START, START + second / 2) == "2026-03-01 12:00:00 UTC"
    assert span_words(START, START + 9 * second) == "2026-03-01 12:00:00 – 12:00:09 UTC"
    midnight = datetime(2026, 6, 1, 23, tzinfo=UTC)
    assert span_words(midnight - second, midnight, "Europe/London") == "2026-06-01 23:59:59 – 2026-06-02 00:00:00 BST"
    back = datetime(2026, 10, 25, 1, tzinfo=UTC)
    assert span_words(back - second, back, "Europe/London") == "2026-10-25 01:59:59 BST – 01:00:00 GMT"
    assert moment_words(datetime(9999, 12, 31, 23, 59, tzinfo=UTC), "Asia/Tokyo") == "9999-12-31 23:59:00 UTC"
