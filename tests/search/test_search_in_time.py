"""Filters on time: a video is kept when somebody is seen in it within the window, whatever its partition's entry knows."""

import hashlib
import json
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.audit import read_records
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings
from pipeline.gallery.places import CameraPlace, write_places
from pipeline.index.build import build_index
from pipeline.index.partition_store import VIDEOS, write_videos
from pipeline.index.versions import Index, open_index
from pipeline.search import run as search_run
from pipeline.search.partitions import opened_partitions
from pipeline.search.results import SearchResult
from pipeline.search.search import search_many
from pipeline.search.targets import gallery_target
from pipeline.settings import IndexSettings, SearchSettings
from pipeline.storage.seals import sealed
from tests.conftest import add_videos, people_features, toy_spec

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
UNTIMED = ("v003", "v004", "v021")
TARGET = "v000"

Span = tuple[datetime, datetime] | None


@pytest.fixture
def timed_gallery(tmp_path: Path) -> Gallery:
    """40 videos, one starting every 6 minutes, the person in it from a minute later on, for up to 3 hours; three have no time."""
    gallery = Gallery.open_or_create(tmp_path / "timed", GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, people_features(10, 4, 24, seed=1))
    rows, rng = gallery.snapshot().videos.to_pylist(), np.random.default_rng(3)
    for number, row in enumerate(rows):
        if row["video_id"] in UNTIMED:
            row["start_time"] = None
        else:
            row["start_time"] = START + timedelta(minutes=6 * number)
            row["seen_from"] = row["start_time"] + timedelta(minutes=1)
            row["seen_to"] = row["seen_from"] + timedelta(minutes=int(rng.choice([0, 3, 30, 180])))
    gallery.commit(pa.Table.from_pylist(rows, schema=VIDEOS_SCHEMA), REJECTS_SCHEMA.empty_table())
    return gallery


@pytest.fixture
def timed_index(timed_gallery: Gallery) -> Index:
    return build_index(timed_gallery, IndexSettings(partition_videos=8))


def older(gallery: Gallery, index: Index, *, columns: bool) -> Index:
    """The index as older versions made it: entries know when videos start only. columns: whether its tables know more."""
    manifest = dict(index.manifest)
    for part in manifest["partitions"]:
        del part["first_seen"], part["last_seen"]
        if not columns:
            path = Path(index.store.join(part["id"], VIDEOS).path)
            table = pa.ipc.open_file(path.read_bytes()).read_all().drop_columns(["seen_from", "seen_to"])
            write_videos(table, path)
            part["files"][VIDEOS]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    index.location.join("manifest.json").write_atomically(sealed(manifest, indent=1))
    return open_index(gallery)


def found(gallery: Gallery, index: Index, settings: dict, targets: tuple[str, ...] = (TARGET,)) -> list[SearchResult]:
    asked = SearchSettings(top=100, shortlist=None, evidence=False, **settings)
    with opened_partitions(gallery, index, actors=0) as partitions:
        return search_many(gallery, index, partitions, [gallery_target(gallery, target) for target in targets], asked)


def spans(gallery: Gallery, *, starts_only: bool) -> dict[str, Span]:
    """When somebody is seen in each video but the target."""
    rows = [row for row in gallery.snapshot().videos.to_pylist() if row["video_id"] != TARGET]
    names = ("start_time", "start_time") if starts_only else ("seen_from", "seen_to")
    return {row["video_id"]: (row[names[0]], row[names[1]]) if row["start_time"] else None for row in rows}


@pytest.mark.parametrize("index_of", ["now", "older", "oldest"])
def test_a_window_keeps_who_is_seen_in_it_in_every_kind_of_index(
    timed_gallery: Gallery, timed_index: Index, index_of: str
) -> None:
    index = timed_index if index_of == "now" else older(timed_gallery, timed_index, columns=index_of == "older")
    assert ("seen_to" in index.videos.schema.names) == (index_of != "oldest")
    seen = spans(timed_gallery, starts_only=index_of == "oldest")
    hours = [None, *(START + timedelta(minutes=minutes) for minutes in (1, 59, 133, 241, 420))]
    kept = set()
    for after in hours:
        for before in hours:
            if (after or before) and not (after and before and after >= before):
                (result,) = found(timed_gallery, index, {"after": after, "before": before})
                by_hand = {
                    name
                    for name, span in seen.items()
                    if span and (after is None or span[1] >= after) and (before is None or span[0] < before)
                }
                assert {lead.video.video_id for lead in result.leads} == by_hand
                assert (result.eligible, result.untimed) == (len(by_hand), len(UNTIMED))
                kept.add(len(by_hand))
    assert len(kept) > 4


def test_partitions_are_left_out_by_when_somebody_is_seen_and_not_by_when_videos_start(
    timed_gallery: Gallery, timed_index: Index
) -> None:
    count = len(timed_index.manifest["partitions"])
    late = max(part["last_start"] for part in timed_index.manifest["partitions"][:-1])
    after = datetime.fromisoformat(late) + timedelta(minutes=1)
    matching = timed_index.partitions_matching((), after, None)
    assert len(matching) > 1 and timed_index.partitions_matching((), START + timedelta(days=1), None) == []
    early = START + timedelta(seconds=30)  # the first video has started, nobody is seen yet
    assert timed_index.partitions_matching((), None, early) == []
    before_this_version = older(timed_gallery, timed_index, columns=True)
    assert before_this_version.partitions_matching((), START + timedelta(days=1), None) == list(range(count))
    assert before_this_version.partitions_matching((), None, early) == [0]


def test_a_daily_window_goes_over_midnight_in_the_clocks_of_its_zone(timed_gallery: Gallery, timed_index: Index) -> None:
    seen = spans(timed_gallery, starts_only=False)
    # 14:30 to 15:10 UTC is 23:30 to 0:10 in Tokyo.
    opens, closes = START + timedelta(hours=2, minutes=30), START + timedelta(hours=3, minutes=10)
    (result,) = found(timed_gallery, timed_index, {"between": (time(23, 30), time(0, 10)), "zone": "Asia/Tokyo"})
    by_hand = {name for name, span in seen.items() if span and span[1] >= opens and span[0] < closes}
    assert {lead.video.video_id for lead in result.leads} == by_hand and 0 < len(by_hand) < len(seen) - len(UNTIMED)
    assert result.untimed == len(UNTIMED) and result.filters == ("seen between 23:30 and 00:10 Asia/Tokyo",)


def test_untimed_videos_are_counted_where_a_filter_on_time_alone_left_them_out(
    timed_gallery: Gallery, timed_index: Index
) -> None:
    untimed = {"after": START - timedelta(days=1)}
    odd = [name for name in UNTIMED if int(name[1:]) % 2]
    first, second = found(timed_gallery, timed_index, untimed | {"cameras": ("cam1",)}, (TARGET, odd[0]))
    assert (first.untimed, second.untimed) == (len(odd), len(odd) - 1)  # the target itself is not left out for its time
    assert found(timed_gallery, timed_index, {"cameras": ("cam1",)})[0].untimed is None


def test_leads_carry_when_somebody_is_seen(timed_gallery: Gallery, timed_index: Index) -> None:
    seen = spans(timed_gallery, starts_only=False)
    (result,) = found(timed_gallery, timed_index, {})
    assert {lead.video.video_id: lead.video.seen for lead in result.leads} == seen
    (result,) = found(timed_gallery, older(timed_gallery, timed_index, columns=False), {})
    assert {lead.video.video_id: lead.video.seen for lead in result.leads} == spans(timed_gallery, starts_only=True)


def test_settings_are_plain_json_and_say_their_times() -> None:
    settings = SearchSettings(after=START, between=(time(22), time(2)), zone="Europe/London")
    plain = json.loads(json.dumps(settings.plain()))
    assert (plain["after"], plain["between"], plain["zone"]) == (
        "2026-03-01T12:00:00+00:00",
        ["22:00:00", "02:00:00"],
        "Europe/London",
    )
    assert plain["score"]["ratio"] is None and plain["score"]["neighbours"] == 1 and plain["before"] is None
    assert settings.filters() == ("seen at or after 2026-03-01 12:00:00 GMT", "seen between 22:00 and 02:00 Europe/London")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"between": (time(5), time(5))}, "a daily window from 05:00 to 05:00 is empty"),
        ({"zone": "Europe"}, "'Europe' is no time zone"),
        ({"zone": "/etc/passwd"}, "'/etc/passwd' is no time zone"),
    ],
)
def test_times_that_cannot_be_meant_are_refused(wrong: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SearchSettings(**wrong)


def test_filters_compare_what_right_clocks_would_have_said(timed_gallery: Gallery, timed_index: Index) -> None:
    """The clock of one camera is two hours ahead: its videos are found where they belong, in partitions of any time."""
    rows = {row["video_id"]: row for row in timed_gallery.snapshot().videos.to_pylist() if row["video_id"] != TARGET}
    wrong = rows["v038"]["camera_id"]
    after, before = START + timedelta(minutes=70), START + timedelta(minutes=110)

    def inside(ahead: timedelta) -> set[str]:
        kept = set()
        for video_id, row in rows.items():
            off = ahead if row["camera_id"] == wrong else timedelta()
            if row["seen_to"] is not None and row["seen_to"] - off >= after and row["seen_from"] - off < before:
                kept.add(video_id)
        return kept

    settings = {"after": after, "before": before}
    for ahead in (timedelta(), timedelta(hours=2), timedelta(hours=-2)):
        write_places(timed_gallery, [CameraPlace(wrong, clock_offset_s=ahead.total_seconds())])
        (result,) = found(timed_gallery, timed_index, settings)
        assert {lead.video.video_id for lead in result.leads} == inside(ahead)
    assert inside(timedelta(hours=2)) - inside(timedelta()) and inside(timedelta()) - inside(timedelta(hours=2))


def test_what_is_found_has_the_times_of_right_clocks(timed_gallery: Gallery, timed_index: Index) -> None:
    asked = SearchSettings(top=39, shortlist=None)
    (stored,) = search_run.run(timed_gallery, [f"id:{TARGET}"], asked).results
    wrong = next(lead.video for lead in stored.leads if lead.video.seen)
    assert wrong.camera_id is not None and wrong.seen is not None
    write_places(timed_gallery, [CameraPlace(wrong.camera_id, clock_offset_s=60.0)])
    (right,) = search_run.run(timed_gallery, [f"id:{TARGET}"], asked).results
    (as_stored,) = search_run.run(timed_gallery, [f"id:{TARGET}"], asked, times_as_stored=True).results
    minute = timedelta(minutes=1)
    for before, after, same in zip(stored.leads, right.leads, as_stored.leads, strict=True):
        assert before.video == same.video
        off = minute if before.video.camera_id == wrong.camera_id else timedelta()
        assert after.video.seen == (before.video.seen and tuple(time - off for time in before.video.seen))
        assert after.video.start_time == (before.video.start_time and before.video.start_time - off)


def test_cameras_that_cannot_be_read_fail_a_search_on_record(timed_gallery: Gallery, timed_index: Index) -> None:
    Path(timed_gallery.location.path, "cameras.json").write_text("{}")
    with pytest.raises(PipelineError, match="set the cameras again"):
        search_run.run(timed_gallery, [f"id:{TARGET}"], reason="asked")
    last = read_records(timed_gallery)[-1]
    assert (last["target"], last["reason"]) == (TARGET, "asked") and "set the cameras again" in last["failed"]
