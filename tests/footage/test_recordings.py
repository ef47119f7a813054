"""Who filmed what when: names of recordings, clocks of cameras, and how recordings follow each other."""

import contextlib
import random
import unicodedata
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.catalog.inputs import read_catalog
from pipeline.decoding.sampling import Sampling
from pipeline.errors import UsageError
from pipeline.footage import watch
from pipeline.footage.coverage import coverage
from pipeline.footage.recordings import (
    RECORDERS,
    CameraClock,
    Clocks,
    Plan,
    name_pattern,
    plan_recordings,
    read_clocks,
    timeline,
)
from pipeline.footage.summary import FootageSummary
from pipeline.footage.watch import Recordings, watch_footage
from pipeline.gallery.detections import RECORDINGS_SCHEMA
from tests.conftest import touch
from tests.footage.made_up import START, footage_gallery, walk, write_recordings

NAMES = {
    "blueiris": ("/clips/Front.20260301_081500.mp4", "Front"),
    "frigate": ("/media/frigate/recordings/2026-03-01/08/front/15.00.mp4", "front"),
    "mediamtx": ("/recordings/gate/2026-03-01_08-15-00-000000.mp4", "gate"),
    "motioneye": ("/var/lib/motioneye/Camera1/2026-03-01/08-15-00.mp4", "Camera1"),
    "reolink": ("/ftp/Yard_00_20260301081500.mp4", "Yard_00"),
    "shinobi": ("/videos/aBc/2026-03-01T08-15-00.mp4", "aBc"),
}


@pytest.mark.parametrize("recorder", RECORDERS)
def test_a_recorder_is_known_by_name(recorder: str) -> None:
    uri, camera = NAMES[recorder]
    assert name_pattern(recorder).read(uri) == (camera, datetime(2026, 3, 1, 8, 15))


@pytest.mark.parametrize(
    ("pattern", "uri", "expected"),
    [
        ("{camera}/%Y%m%d_%H%M%S.mp4", "s3://b/nvr/hall 2/20260301_081500.mp4", ("hall 2", datetime(2026, 3, 1, 8, 15))),
        ("{camera}/%Y%m%d_%H%M%S.mp4", "s3://b/c/20260301_081500.mp4?region=x&y=/z", ("c", datetime(2026, 3, 1, 8, 15))),
        ("{camera}/%Y%m%d_%H%M%S.mp4", "/nvr/hall/20260301_081500.mp4?x", None),
        ("{camera}/%Y%m%d_%H%M%S.mp4", "/nvr/hall/20260301_081500.mkv", None),
        ("{camera}/%Y%m%d_%H%M%S.mp4", "/nvr/hall/20261301_081500.mp4", None),
        ("{camera}_%Y-%m-%d_%H.%M.*", "/a/b/c_d_2026-03-01_08.15.ts", ("c_d", datetime(2026, 3, 1, 8, 15))),
        ("%Y/%m/%d/{camera}/*_%Y%m%d%H%M%S.mp4", "/2026/03/01/hall/x_20260301081500.mp4", ("hall", datetime(2026, 3, 1, 8, 15))),
        ("%Y/%m/%d/{camera}/*_%Y%m%d%H%M%S.mp4", "/2025/03/01/hall/x_20260301081500.mp4", None),
        ("{camera}-%s.mp4", "/hall-1772352900.mp4", ("hall", datetime(2026, 3, 1, 8, 15))),
        ("{camera}/%Y%m%d%H%M%S%f.mp4", "/hall/20260301081500250.mp4", ("hall", datetime(2026, 3, 1, 8, 15, 0, 250000))),
    ],
)
def test_a_pattern_reads_the_end_of_a_path(pattern: str, uri: str, expected: Any) -> None:
    assert name_pattern(pattern).read(uri) == expected


@pytest.mark.parametrize("pattern", ["%Y%m%d_%H%M%S.mp4", "{camera}/%Y%m%d.mp4", "{camera}/%Y%m%d%H%M%Q.mp4", "nvr"])
def test_a_pattern_that_cannot_be_meant_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="pattern"):
        name_pattern(pattern)


def test_times_in_names_are_of_the_cameras_zone_and_corrected_by_its_clock(tmp_path: Path) -> None:
    touch(tmp_path, "hall/20260701_120000.mp4", "yard/20260701_120000.mp4", "gate/20260701_120000.mp4")
    (tmp_path / "cameras.csv").write_text("camera_id,zone,clock_offset\nyard,America/New_York,90\ngate,,-1.5\n")
    clocks = read_clocks(str(tmp_path / "cameras.csv"), "Europe/Berlin")
    table = plan_recordings(read_catalog(tmp_path), name_pattern("{camera}/%Y%m%d_%H%M%S.mp4"), clocks).table
    starts = dict(zip(table["camera_id"].to_pylist(), table["start_time"].to_pylist(), strict=True))
    assert starts["hall"] == datetime(2026, 7, 1, 10, tzinfo=UTC)
    assert starts["yard"] == datetime(2026, 7, 1, 15, 58, 30, tzinfo=UTC)
    assert starts["gate"] == datetime(2026, 7, 1, 10, 0, 1, 500000, tzinfo=UTC)
    assert set(table["start_from"].to_pylist()) == {"name"}
    utc = plan_recordings(read_catalog(tmp_path), name_pattern("{camera}/%Y%m%d_%H%M%S.mp4"), Clocks()).table
    assert set(utc["start_time"].to_pylist()) == {datetime(2026, 7, 1, 12, tzinfo=UTC)}


def test_a_manifest_says_more_than_a_name(tmp_path: Path) -> None:
    touch(tmp_path, "hall/20260701_120000.mp4", "x.mp4")
    manifest = tmp_path / "recordings.csv"
    manifest.write_text("uri,camera_id,start_time\nhall/20260701_120000.mp4,lobby,\nx.mp4,lobby,2026-07-01T13:00:00+01:00\n")
    plan = plan_recordings(read_catalog(manifest), name_pattern("{camera}/%Y%m%d_%H%M%S.mp4"), Clocks("Europe/Berlin"))
    found = {Path(row["uri"]).name: (row["camera_id"], row["start_time"], row["start_from"]) for row in plan.table.to_pylist()}
    assert found == {
        "20260701_120000.mp4": ("lobby", datetime(2026, 7, 1, 10, tzinfo=UTC), "name"),
        "x.mp4": ("lobby", datetime(2026, 7, 1, 12, tzinfo=UTC), "manifest"),
    }


def test_a_manifest_says_how_far_a_clock_was_ahead_before_the_cameras_file_does(tmp_path: Path) -> None:
    touch(tmp_path, *(f"hall/20260701_1{hour}0000.mp4" for hour in "2345"))
    (tmp_path / "cameras.csv").write_text("camera_id,clock_offset\nhall,60\n")
    manifest = tmp_path / "recordings.csv"
    said = ",", "10,", "10,2026-07-01T14:00:00Z", ",2026-07-01T15:00:00Z"
    lines = [f"hall/20260701_1{hour}0000.mp4,{rest}" for hour, rest in zip("2345", said, strict=True)]
    manifest.write_text("\n".join(["uri,clock_offset,start_time", *lines]) + "\n")
    pattern = name_pattern("{camera}/%Y%m%d_%H%M%S.mp4")
    table = plan_recordings(read_catalog(manifest), pattern, read_clocks(str(tmp_path / "cameras.csv"))).table
    found = {row["uri"][-10:-8]: (row["start_time"], row["clock_offset"]) for row in table.to_pylist()}
    at = datetime(2026, 7, 1, tzinfo=UTC)
    expected = {12: 60, 13: 10, 14: 10, 15: 60}
    assert found == {str(hour): (at + timedelta(hours=hour, seconds=-off), off) for hour, off in expected.items()}


def test_files_that_the_pattern_does_not_fit_are_left_out_and_said(tmp_path: Path) -> None:
    touch(tmp_path, "hall/20260701_120000.mp4", "hall/export.mp4")
    plan = plan_recordings(read_catalog(tmp_path), name_pattern("{camera}/%Y%m%d_%H%M%S.mp4"), Clocks())
    assert len(plan.table) == 1 and [Path(uri).name for uri in plan.unnamed] == ["export.mp4"]
    assert plan.not_read() == "1 file that the pattern does not fit"
    with pytest.raises(UsageError, match="fits none of 2 files"):
        plan_recordings(read_catalog(tmp_path), name_pattern("shinobi"), Clocks())


@pytest.mark.parametrize(
    "text",
    [
        "camera_id,zone\na,Mars/North",
        "camera_id,clock_offset\na,fast",
        "camera_id,clock_offset\na,nan",
        "camera_id,clock_offset\na,-inf",
        "camera_id,clock_offset\na,1e300",
        "camera_id,zone\na,UTC\na,Europe/Berlin",
        "camera_id,zone\n,UTC",
        "camera_id,zone\na,UTC,90",
        "camera,zone\na,UTC",
        "camera_id,zone",
    ],
)
def test_a_cameras_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "cameras.csv").write_text(text)
    with pytest.raises(UsageError):
        read_clocks(str(tmp_path / "cameras.csv"))
    assert CameraClock() == Clocks().cameras.get("a", CameraClock())


def test_a_camera_with_a_clock_and_no_recording_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "hall/20260701_120000.mp4")
    clocks = Clocks(cameras={"hall": CameraClock("Europe/Berlin"), "hal": CameraClock("Asia/Tokyo")})
    assert plan_recordings(read_catalog(tmp_path), name_pattern("{camera}/%Y%m%d_%H%M%S.mp4"), clocks).unfilmed == ("hal",)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
def test_a_camera_is_one_in_whichever_form_its_name_is_written(tmp_path: Path, form: str, other: str) -> None:
    """macOS writes names of files in form D, and people write cameras files in form C."""
    camera = "S\u00fcd"
    touch(tmp_path, f"nvr/{unicodedata.normalize(form, camera)}/20260701_120000.mp4")
    (tmp_path / "cameras.csv").write_text(f"camera_id,zone\n{unicodedata.normalize(other, camera)},Europe/Berlin\n")
    (tmp_path / "m.csv").write_text(f"uri,camera_id\n/x.mp4,{unicodedata.normalize(form, camera)}\n")
    pattern = name_pattern(unicodedata.normalize(other, "{camera}/%Y%m%d_%H%M%S.mp4"))
    clocks = read_clocks(str(tmp_path / "cameras.csv"))
    plan = plan_recordings(read_catalog(tmp_path / "nvr"), pattern, clocks)
    assert plan.table["camera_id"].to_pylist() == [camera] and plan.unfilmed == ()
    assert plan.table["start_time"].to_pylist() == [datetime(2026, 7, 1, 10, tzinfo=UTC)]  # by that camera's zone
    assert plan_recordings(read_catalog(tmp_path / "m.csv"), None, clocks).table["camera_id"].to_pylist() == [camera]
    assert name_pattern(unicodedata.normalize(other, "S\u00fcd/{camera}/%s.mp4")).read(
        unicodedata.normalize(form, "/S\u00fcd/a/1772352900.mp4")
    ) == ("a", datetime(2026, 3, 1, 8, 15))


def test_a_camera_that_stands_in_both_forms_stands_twice(tmp_path: Path) -> None:
    (tmp_path / "cameras.csv").write_text("camera_id,zone\nS\u00fcd,UTC\nSu\u0308d,UTC\n")
    with pytest.raises(UsageError, match=r"row 2 .* stands there before"):
        read_clocks(str(tmp_path / "cameras.csv"))


def test_a_date_that_no_calendar_has_is_no_name(tmp_path: Path) -> None:
    touch(tmp_path, "hall/00010101_000000.mp4", "hall/20260701_120000.mp4")
    plan = plan_recordings(read_catalog(tmp_path), name_pattern("{camera}/%Y%m%d_%H%M%S.mp4"), Clocks("Asia/Tokyo"))
    assert len(plan.table) == 1 and [Path(uri).name for uri in plan.unnamed] == ["00010101_000000.mp4"]


@pytest.mark.parametrize("column", ["boxes_uri", "person_id"])
def test_recordings_of_which_it_is_said_who_is_where_are_no_recordings(tmp_path: Path, column: str) -> None:
    touch(tmp_path, "x.mp4", "boxes.txt")
    (tmp_path / "recordings.csv").write_text(f"uri,{column}\nx.mp4,boxes.txt\n")
    with pytest.raises(UsageError, match="1 of 1 inputs have a boxes file or a person's label"):
        plan_recordings(read_catalog(tmp_path / "recordings.csv"), None, Clocks())


def test_the_hour_that_a_clock_shows_twice_is_the_first_and_the_one_that_it_leaves_out_the_next(tmp_path: Path) -> None:
    touch(tmp_path, "hall/20261025_013000.mp4", "hall/20260329_013000.mp4")
    plan = plan_recordings(read_catalog(tmp_path), name_pattern("{camera}/%Y%m%d_%H%M%S.mp4"), Clocks("Europe/London"))
    expected = [datetime(2026, 3, 29, 1, 30, tzinfo=UTC), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)]
    assert sorted(plan.table["start_time"].to_pylist()) == expected


def recording(name: str, begins: float, seconds: float = 60.0, camera: str | None = "gate", digest: str | None = None) -> dict:
    start = None if camera is None else START + timedelta(seconds=begins)
    row = {"source_id": name, "uri": f"/{name}.mp4", "camera_id": camera, "start_time": start, "ingested_hash": digest or name}
    return row | {"fps": 10.0, "last_s": seconds - 0.1, "source_frames": int(seconds * 10), "detections": 0}


def runs_of(*rows: dict) -> tuple[list[list[str]], list[tuple[str, float]]]:
    runs, odd = timeline(pa.Table.from_pylist(list(rows), schema=RECORDINGS_SCHEMA))
    return [[part.row["source_id"] for part in run.parts] for run in runs], [(one.kind, one.seconds) for one in odd]


@pytest.mark.parametrize(
    ("gap", "one_run", "odd"),
    [
        (0.0, True, []),
        (3.0, True, []),
        (3.5, False, [("gap", 3.5)]),
        (-0.4, True, []),
        (-2.0, True, [("overlap", 2.0)]),
        (-30.0, False, [("clock", 30.0)]),
    ],
)
def test_recordings_continue_each_other_within_seconds(gap: float, one_run: bool, odd: list[tuple[str, float]]) -> None:
    runs, found = runs_of(recording("a", 0), recording("b", 60 + gap))
    assert runs == ([["a", "b"]] if one_run else [["a"], ["b"]]) and found == odd


def test_two_recorders_of_one_camera_are_two_runs_whatever_the_order() -> None:
    rows = [recording(f"{name}{k}", 60 * k + shift) for k in range(4) for name, shift in (("a", 0), ("b", 20))]
    expected = [[f"a{k}" for k in range(4)], [f"b{k}" for k in range(4)]]
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        assert runs_of(*rows)[0] == expected


def test_a_run_ends_with_its_day() -> None:
    begins = 16 * 3600 - 90  # START is 08:00
    runs, odd = runs_of(*(recording(name, begins + 60 * k) for k, name in enumerate("abcd")))
    assert runs == [["a", "b"], ["c", "d"]] and odd == []


def test_what_has_no_start_or_camera_is_a_run_of_its_own_and_copies_count_once() -> None:
    runs, odd = runs_of(recording("a", 0), recording("b", 0, digest="a"), recording("c", 0, camera=None))
    assert sorted(runs) == [["a"], ["c"]] and sorted(odd) == [("copy", 0.0), ("no start", 0.0)]


def test_names_of_runs_are_cameras_and_starts() -> None:
    rows = [recording("a", 0), recording("b", 0, camera="hall"), recording("c", 0.25, camera="yard")]
    runs, _ = timeline(pa.Table.from_pylist(rows, schema=RECORDINGS_SCHEMA))
    assert [run.name for run in runs] == ["gate/20260301T080000Z", "hall/20260301T080000Z", "yard/20260301T080000.250000Z"]


def test_coverage_counts_every_second_once(tmp_path: Path) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    write_recordings(gallery, walk(seed=1), (10.0, 20.0), start=START + timedelta(minutes=59, seconds=30))
    write_recordings(gallery, walk(seed=2), (30.0,), camera="yard")
    cameras, odd = coverage(gallery.snapshot())
    assert list(cameras) == ["gate", "yard"] and odd == []
    gate = cameras["gate"]
    assert gate.recordings == 3 and gate.seconds == pytest.approx(60, abs=0.01)
    assert {hour.hour: share for hour, share in gate.recorded.items()} == pytest.approx({8: 30 / 3600, 9: 30 / 3600}, rel=1e-3)
    assert {hour.date() for hour in gate.recorded} == {date(2026, 3, 1)}


def test_watching_takes_in_what_came_since_and_waits_for_files_that_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "nvr/hall/20260701_120000.mp4")
    given: list[tuple[list[str], float]] = []

    def ingest(plan: Plan, *_: object, quiet_period: float, **__: object) -> FootageSummary:
        given.append(([Path(uri).name for uri in plan.table["uri"].to_pylist()], quiet_period))
        touch(tmp_path, "nvr/hall/20260701_120100.mp4")
        return FootageSummary(done=len(plan.table) % 3)

    monkeypatch.setattr(watch, "ingest_footage", ingest)
    monkeypatch.setattr(watch, "connected", lambda _: contextlib.nullcontext())
    inputs = Recordings(str(tmp_path / "nvr"), name_pattern("{camera}/%Y%m%d_%H%M%S.mp4"))
    gallery = footage_gallery(tmp_path / "gallery")
    summaries = list(watch_footage(inputs, gallery, Sampling(), "made-up", every_s=0.01, rounds=3))
    first, second = "20260701_120000.mp4", "20260701_120100.mp4"
    assert [sorted(names) for names, _ in given] == [[first], [first, second], [first, second]]
    assert {quiet for _, quiet in given} == {0.01} and len(summaries) == 3
