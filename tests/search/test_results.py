"""The tables of a search: what they carry, what a spreadsheet makes of them, and what a search without leads leaves."""

import csv
import dataclasses
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from jobs.search import ranked_list
from pipeline.gallery.video_ref import VideoRef
from pipeline.search.results import RESULTS_SCHEMA, Lead, OnRecord, SearchResult, SegmentPair, SegmentView, write_results
from pipeline.settings import SearchSettings

START = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
COLUMNS_BEFORE = {  # of the first versions: what others wrote for these still reads what is written now
    **dict.fromkeys(("target_id", "video_id", "uri", "camera_id", "index_version", "model", "source_hash"), "string"),
    **dict.fromkeys(("ingested_hash", "boxes_uri", "calibration", "gallery", "audit_head"), "string"),
    **dict.fromkeys(("score", "probability"), "double"),
    **dict.fromkeys(("rank", "prefilter_rank"), "int32"),
    **dict.fromkeys(("track", "gallery_videos"), "int64"),
    "start_time": "timestamp[us, tz=UTC]",
}


def segment(first: int) -> SegmentView:
    attention = np.float32([0.1, 0.3, 0.6]).tolist()
    return SegmentView((first, first + 3, first + 6), tuple(np.float32([0.1, 0.4, 0.7]).tolist()), tuple(attention))


def lead(rank: int, **video: object) -> Lead:
    about = {"video_id": f"v{rank}", "uri": f"/videos/{rank}.mp4", "camera_id": "cam1", "start_time": START, **video}
    about = {"seen_from": START + timedelta(seconds=1), "seen_to": START + timedelta(seconds=9), **about}
    pair = SegmentPair(segment(0), segment(90), float(np.float32(0.3)))
    return Lead(rank, VideoRef(**about), float(np.float32(0.3)), 1.25e-7, rank, (pair,))  # type: ignore[arg-type]


def search(*leads: Lead, reason: str = "why", case: str = "17", **changes: object) -> SearchResult:
    settings = SearchSettings(after=START, zone="Asia/Tokyo")
    result = SearchResult(VideoRef("t", "/t.mp4"), 4, leads, "/gallery", 1200, 900, 100, "v3", "model", False)
    known = {"filters": settings.filters(), "settings": settings, "searched_at": START, "untimed": 3, "none_probability": 0.25}
    return dataclasses.replace(result, record=OnRecord("me", reason, case), **known | changes)  # type: ignore[arg-type]


def written(folder: Path, *results: SearchResult) -> tuple[list[dict], list[dict[str, str]]]:
    """Rows of the Parquet and of the CSV file."""
    write_results(results, folder)
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        return pq.read_table(folder / "results.parquet").to_pylist(), list(csv.DictReader(file))


def test_columns_of_before_keep_their_places_names_and_types() -> None:
    assert set(RESULTS_SCHEMA.names[:20]) == {*COLUMNS_BEFORE, "best_pairs"}
    assert {name: str(RESULTS_SCHEMA.field(name).type) for name in COLUMNS_BEFORE} == COLUMNS_BEFORE
    pair = RESULTS_SCHEMA.field("best_pairs").type.value_type
    assert [pair.field(i).name for i in range(5)] == [
        *("target_start_s", "target_end_s", "candidate_start_s", "candidate_end_s", "score")
    ]


def test_every_row_says_what_was_searched_how_and_by_whom(tmp_path: Path) -> None:
    result = search(lead(1))
    (row,), _ = written(tmp_path, result)
    for name in ("eligible", "scored", "untimed", "none_probability", "expected_matches"):
        assert row[name] == getattr(result, name)
    assert {name: row[name] for name in vars(result.record)} == vars(result.record)
    assert (row["searched_at"], row["filters"]) == (START, list(result.filters))
    assert json.loads(row["settings"]) == result.settings.plain()
    assert (row["seen_from"], row["seen_to"]) == (START + timedelta(seconds=1), START + timedelta(seconds=9))
    (pair,) = row["best_pairs"]
    assert (pair["target_frames"], pair["candidate_frames"]) == ([0, 3, 6], [90, 93, 96])
    assert np.float32(pair["candidate_attention"]).tolist() == np.float32([0.1, 0.3, 0.6]).tolist()


def test_a_search_without_leads_still_says_what_was_searched(tmp_path: Path) -> None:
    nothing, something = search(case="none"), search(lead(1), case="some")
    rows, flat = written(tmp_path, nothing, something)
    assert len(rows) == len(flat) == 1
    said = json.loads(pq.read_schema(tmp_path / "results.parquet").metadata[b"searches"])
    assert [(one["case"], one["untimed"], one["settings"]["zone"]) for one in said] == [
        ("none", 3, "Asia/Tokyo"),
        ("some", 3, "Asia/Tokyo"),
    ]
    assert written(tmp_path, nothing) == ([], [])
    assert (tmp_path / "results.csv").read_text().split(",")[0] == "target_id"


def test_numbers_and_times_of_the_csv_are_for_people(tmp_path: Path) -> None:
    _, (row,) = written(tmp_path, search(lead(1), expected_matches=1_500_000.0))
    assert (row["score"], row["probability"], row["expected_matches"], row["rank"]) == ("0.3", "1.25e-07", "1500000", "1")
    assert (row["start_time"], row["seen_from"]) == ("2026-03-01T12:00:00.250Z", "2026-03-01T12:00:01.250Z")
    assert not re.search(r"\d\.\d{7}", (tmp_path / "results.csv").read_text())
    assert pd.read_csv(tmp_path / "results.csv", parse_dates=["seen_to"])["seen_to"][0] == START + timedelta(seconds=9)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|'/c calc'!A1"])
def test_no_text_of_the_csv_is_a_formula(text: str, tmp_path: Path) -> None:
    hostile = search(lead(1, video_id=text, camera_id=text), reason=text, case=f"a{text}")
    (row,), (flat,) = written(tmp_path, hostile)
    assert row["video_id"] == row["reason"] == text  # the table of record keeps what was said
    for name in ("video_id", "camera_id", "reason"):
        assert flat[name].startswith("'") and flat[name].endswith(text.lstrip())
    assert flat["case"].startswith("a") and flat["score"] == "0.3"


def test_the_csv_keeps_lines_and_quotes_and_holds_no_control_characters(tmp_path: Path) -> None:
    _, (row,) = written(tmp_path, search(lead(1, camera_id='a "b", c\x1b[31m\x00\x85'), reason="one\r\ntwo\nthree"))
    assert (
        row["reason"] == "one\ntwo\nthree"
        and row["camera_id"] == 'a "b", c\N{REPLACEMENT CHARACTER}[31m' + 2 * "\N{REPLACEMENT CHARACTER}"
    )
    raw = (tmp_path / "results.csv").read_bytes().decode()
    assert not [one for one in raw if one != "\n" and not one.isprintable()]


def test_copies_are_leads_of_other_files_with_the_bytes_of_a_lead_before() -> None:
    same = {"ingested_hash": "file:1"}
    result = search(
        lead(1, **same),
        lead(2, ingested_hash="file:2"),
        lead(3, **same),
        lead(4, **same, uri="/videos/1.mp4"),
        lead(5, **same, uri="/videos/5.mp4"),
        lead(6, **same, track=7),  # somebody else in that recording
        lead(7),
        lead(8),
    )
    assert result.copies == {3: 1, 5: 1}
    marked = [line for line in ranked_list(result).splitlines() if "same bytes as lead 1" in line]
    assert [line.split()[0] for line in marked] == ["3", "5"]


def test_the_terminal_shows_when_somebody_is_seen_in_the_zone_asked_for() -> None:
    shown = ranked_list(search(lead(1), lead(2, start_time=None, seen_from=None, seen_to=None)))
    assert "2026-03-01 21:00:01 – 21:00:09 JST" in shown and shown.splitlines()[4].endswith(" -")
    assert "2026-03-01 12:00:01 – 12:00:09 UTC" in ranked_list(search(lead(1), settings=SearchSettings()))


@pytest.mark.parametrize(
    ("untimed", "words"),
    [(3, "3 videos have no time and were left out"), (1, "1 video has no time and was left out"), (0, None), (None, None)],
)
def test_the_terminal_says_how_many_videos_have_no_time(untimed: int | None, words: str | None) -> None:
    lines = ranked_list(search(lead(1), untimed=untimed)).splitlines()
    assert words in lines if words else not [line for line in lines if "no time" in line]


def test_labels_of_the_leads_are_compared_only_with_a_target_that_has_one() -> None:
    leads = (lead(1, person_id="p1"), lead(2), lead(3, person_id="p2"))
    unlabelled = ranked_list(search(*leads), show_labels=True)
    assert "the target has no label" in unlabelled and " of the 3 leads" not in unlabelled and "*" not in unlabelled
    labelled = ranked_list(search(*leads, target=VideoRef("t", "/t.mp4", person_id="p1")), show_labels=True)
    assert "* the label is the target's: 1 of the 3 leads" in labelled
    assert "label" not in ranked_list(search(), show_labels=True) and "no leads" in ranked_list(search())
