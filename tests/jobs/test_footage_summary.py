"""What the summary of an ingest of recordings says of rejects, chunks and clocks."""

from collections import Counter
from pathlib import Path

import pytest

from jobs.ingest import describe, describe_footage
from pipeline.footage.summary import FootageSummary
from pipeline.ingest.commit import REJECTS_NAMED
from pipeline.ingest.run import IngestSummary
from tests.footage.made_up import footage_gallery
from tests.footage.test_recording_changes import Reader, ingested


def lines(summary: FootageSummary) -> list[str]:
    return describe_footage(summary, "/nvr", "/g", "yolox_nano").splitlines()


def test_long_recordings_and_those_that_could_not_be_cut_are_counted_with_a_reason() -> None:
    undivided = {"/nvr/a.avi": "h264 in avi does not", "/nvr/b.avi": "h264 in avi does not", "/nvr/c.ts": "it has no key frame"}
    said = lines(FootageSummary(recordings=5, done=5, in_chunks=2, chunks=24, undivided=undivided))
    assert "  in chunks     24 chunks of 2 long recordings" in said
    at = said.index("  not in chunks 3 long recordings, read by one worker as a whole")
    assert said[at + 1] == "        2 h264 in avi does not (such as /nvr/a.avi)"
    assert said[at + 2] == "        1 it has no key frame (such as /nvr/c.ts)"


def test_clocks_that_were_wrong_are_said() -> None:
    assert "  clocks        -1.5 to +90 s ahead, of 3 recordings: taken off their times" in lines(
        FootageSummary(offsets=(90, -1.5, 9))
    )
    assert "  clocks        +90 s ahead, of 2 recordings: taken off their times" in lines(FootageSummary(offsets=(90, 90)))


def test_nothing_is_said_of_what_there_is_not() -> None:
    assert not [line for line in lines(FootageSummary()) if "chunks" in line or "clocks" in line]


REJECT = {"uri": "/nvr/a.mp4", "video_id": "a-1f", "reason": "truncated", "message": "/nvr/a.mp4 ends too early"}


def test_what_was_rejected_is_named_and_where_the_rest_is() -> None:
    tracks = FootageSummary(recordings=9, done=9, reasons=Counter(truncated=7), rejects=[REJECT] * 5, candidates=3)
    said = lines(tracks)
    at = said.index("        7 truncated")
    assert said[at + 1 : at + 6] == ["    /nvr/a.mp4: truncated: /nvr/a.mp4 ends too early"] * 5
    assert said[at + 6] == "    and 2 more; jobs.status --gallery /g --list-rejects FILE writes all of them"
    clips = describe(IngestSummary(9, reasons={"truncated": 1}, rejects=[REJECT], refused=1), "/in", "/g", "b")
    assert "    /nvr/a.mp4: truncated: /nvr/a.mp4 ends too early\n" in clips and "more" not in clips
    assert "NOTHING USABLE: every input was rejected; jobs.status --gallery /g names some, with --list-rejects FILE all" in clips


def test_an_ingest_keeps_the_first_rejects_to_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"20260701_12{minute:02d}00.mp4" for minute in range(REJECTS_NAMED + 2)]
    (tmp_path / "nvr/hall").mkdir(parents=True)
    for name in names:
        (tmp_path / "nvr/hall" / name).write_bytes(name.encode())
    reader = Reader(monkeypatch)
    reader.bad = set(names)
    summary = ingested(tmp_path / "nvr", footage_gallery(tmp_path / "gallery"))
    assert summary.reasons == {"truncated": len(names)} and len(summary.rejects) == REJECTS_NAMED
    assert {Path(row["uri"]).name for row in summary.rejects} < set(names) and summary.rejects[0]["message"] == "cut off"
    again = ingested(tmp_path / "nvr", footage_gallery(tmp_path / "gallery"))
    assert (again.reasons, again.rejects) == (Counter(), [])  # they are of another run
