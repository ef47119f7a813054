"""What the summary of an ingest of recordings says of chunks and clocks."""

from jobs.ingest import describe_footage
from pipeline.footage.run import FootageSummary


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
