"""The audit log: a record that was removed, changed or moved is found."""

import hashlib
import json
import os
import pwd
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.gallery import audit
from pipeline.gallery.audit import append_record, head, newest, read_records, user, verify
from pipeline.gallery.gallery import Gallery
from pipeline.retention.verify import verify_gallery
from pipeline.storage.location import Location
from tests.gallery.audit_files import append_many, files
from tests.jobs.commands import command

RECORDS = 5


@pytest.fixture
def logged(toy_gallery: Gallery) -> Gallery:
    """A gallery with five searches in its log."""
    for number in range(RECORDS):
        append_record(
            toy_gallery, "search", {"target": f"v00{number}", "reason": f"reason {number}", "results": ["v030", "v031"]}
        )
    return toy_gallery


def change(file: Path) -> None:
    file.write_text(file.read_text().replace("reason", "excuse"))


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def close_the_gap(removed: Path) -> None:
    """Remove a record and give those after it the numbers before theirs."""
    following = [file for file in sorted(removed.parent.glob("0*.json")) if file > removed]
    removed.unlink()
    for file in following:
        file.rename(file.with_name(f"{int(file.name[:10]) - 1:010d}{file.name[10:]}"))


def test_a_record_says_who_did_what_when_and_where(toy_gallery: Gallery) -> None:
    before = datetime.now(UTC)
    name = append_record(toy_gallery, "forget", {"reason": "request 7 – Übung", "videos": ["v001"]})
    (record,) = read_records(toy_gallery)
    assert files(toy_gallery)[0].name == name
    assert record["action"] == "forget" and record["reason"] == "request 7 – Übung" and record["videos"] == ["v001"]
    assert (record["who"], record["host"]) == (user(), socket.gethostname())
    assert before <= datetime.fromisoformat(record["at"]) <= datetime.now(UTC)


def test_the_account_is_the_systems_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody else")
    assert user() == pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # as in a container without an entry for its account
    assert user() == f"uid {2**31 - 7}"


def test_records_are_read_oldest_first_and_form_a_whole_chain(logged: Gallery) -> None:
    assert [record["target"] for record in read_records(logged)] == [f"v00{number}" for number in range(RECORDS)]
    assert verify(logged) == [] and verify_gallery(logged) == []


def test_a_log_without_records_is_whole(toy_gallery: Gallery) -> None:
    assert verify(toy_gallery) == [] and read_records(toy_gallery) == []


@pytest.mark.parametrize("number", range(RECORDS))
def test_a_removed_record_is_found(logged: Gallery, number: int) -> None:
    files(logged)[number].unlink()
    assert verify(logged) and verify_gallery(logged) == [f"audit log: {fault}" for fault in verify(logged)]


@pytest.mark.parametrize("number", range(RECORDS))
def test_a_removed_record_is_found_when_the_rest_is_numbered_anew(logged: Gallery, number: int) -> None:
    close_the_gap(files(logged)[number])
    assert len(files(logged)) == RECORDS - 1 and verify(logged)


@pytest.mark.parametrize("number", range(RECORDS))
def test_a_changed_record_is_found(logged: Gallery, number: int) -> None:
    change(files(logged)[number])
    assert verify(logged)


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 3), (3, 4), (0, 4)])
def test_reordered_records_are_found(logged: Gallery, one: int, other: int) -> None:
    swap(files(logged)[one], files(logged)[other])
    assert verify(logged)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"\xff\xfe", b"{}", b'{"previous": {}, "sha256": "0"}', b'{"previous": [[]], "sha256": "0"}'),
        b'{"previous": null, "sha256": "0", "reason": "\\ud800"}',
    ],
)
def test_a_damaged_record_is_found_and_named(logged: Gallery, content: bytes) -> None:
    files(logged)[2].write_bytes(content)
    assert any(files(logged)[2].name in fault for fault in verify(logged))


def test_all_faults_after_a_whole_record_are_found_at_once(logged: Gallery) -> None:
    for number in (0, 2):
        change(files(logged)[number])
    faults = " ".join(verify(logged))
    assert all(files(logged)[number].name in faults or files(logged)[number + 1].name in faults for number in (0, 2))


def test_the_log_goes_on_after_a_record_was_removed_and_the_fault_stays_visible(logged: Gallery) -> None:
    files(logged)[1].unlink()
    append_record(logged, "search", {"target": "later"})
    assert json.loads(files(logged)[-1].read_bytes())["target"] == "later"
    assert verify(logged)


@pytest.mark.parametrize("removed", range(1, RECORDS + 1))
def test_removing_the_newest_records_is_found_and_stays_visible_when_the_log_goes_on(logged: Gallery, removed: int) -> None:
    for file in files(logged)[RECORDS - removed :]:
        file.unlink()
    assert any("newest records are missing" in fault for fault in verify(logged))
    append_record(logged, "search", {"target": "later"})
    assert verify(logged)


def test_a_log_that_was_cut_back_with_its_head_contradicts_the_head_that_was_kept(logged: Gallery) -> None:
    kept, head_file = head(logged), files(logged)[0].with_name("head.json")
    assert kept is not None and verify(logged, kept) == []
    shorter = Gallery(logged.location, logged.settings)
    files(logged)[-1].unlink()
    last = hashlib.sha256(files(logged)[-1].read_bytes()).hexdigest()
    head_file.write_text(json.dumps({"records": RECORDS - 1, "sha256": last}))
    assert verify(shorter) == []  # what head.json cannot protect from
    assert any("head that was kept" in fault for fault in verify(shorter, kept))
    append_record(logged, "search", {"target": "in its place"})
    assert verify(logged) == [] and any("head that was kept" in fault for fault in verify(logged, kept))


def test_a_head_that_was_kept_holds_for_a_log_that_has_grown(logged: Gallery) -> None:
    kept = head(logged)
    append_record(logged, "search", {"target": "later"})
    assert kept is not None and verify(logged, kept) == [] and head(logged) != kept


@pytest.mark.parametrize("text", ["5", "x:1", f"0:{'0' * 64}", f"5:{'g' * 64}"])
def test_a_head_of_another_form_is_refused(logged: Gallery, text: str) -> None:
    with pytest.raises(UsageError, match="COUNT:SHA256"):
        verify(logged, text)


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"records": Infinity, "sha256": ""}', b'{"records": [], "sha256": ""}'])
def test_a_missing_or_damaged_head_is_found_and_mended_by_the_next_record(logged: Gallery, content: bytes | None) -> None:
    file = files(logged)[0].with_name("head.json")
    file.unlink() if content is None else file.write_bytes(content)
    assert any("head.json" in fault for fault in verify(logged))
    append_record(logged, "search", {"target": "later"})
    assert verify(logged) == [] and len(read_records(logged)) == RECORDS + 1


def test_a_record_that_comes_while_the_log_is_verified_is_no_fault(logged: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = audit._records

    def appended_after_listing(folder: Location) -> list[Location]:
        found = listed(folder)
        monkeypatch.setattr(audit, "_records", listed)
        append_record(logged, "search", {"target": "meanwhile"})
        return found

    monkeypatch.setattr(audit, "_records", appended_after_listing)
    assert verify(logged) == [] and len(read_records(logged)) == RECORDS + 1


def test_damage_does_not_hide_the_newest_record_of_a_kind(logged: Gallery) -> None:
    append_record(logged, "ingest", {"source": "videos"})
    for content in (b"{", b"[]", b"[" * 100_000):
        append_record(logged, "search", {"target": "later"})
        files(logged)[-1].write_bytes(content)
        found = newest(logged, "ingest")
        assert found is not None and found["source"] == "videos"
        assert any("damaged" in fault for fault in verify(logged))
        append_record(logged, "search", {"target": "later"})


def test_a_reason_that_is_no_text_is_refused_before_anything_is_read(toy_gallery: Gallery) -> None:
    asked = ["search", "/no/such/target.mp4", "--gallery", toy_gallery.location.uri, "--reason", "\udce9"]
    assert "not Unicode" in command(*asked).sentence and read_records(toy_gallery) == []


def test_a_log_of_the_format_before_the_head_is_whole_and_goes_on(toy_gallery: Gallery) -> None:
    folder, previous = Path(toy_gallery.location.path, "audit"), None
    folder.mkdir()
    for number in range(3):
        record = {"action": "search", "target": f"v00{number}", "previous": previous}
        record["sha256"] = hashlib.sha256(json.dumps(record).encode()).hexdigest()
        (folder / f"{number:010d}.json").write_text(json.dumps(record) + "\n")
        previous = hashlib.sha256((folder / f"{number:010d}.json").read_bytes()).hexdigest()
    assert verify(toy_gallery) == []
    append_record(toy_gallery, "search", {"target": "v003"})
    assert verify(toy_gallery) == [] and len(read_records(toy_gallery)) == 4


def test_an_append_does_not_read_or_list_the_whole_log(logged: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **flags: object) -> list[Location]:
        raise AssertionError("the log was listed")

    monkeypatch.setattr(Location, "list", refused)
    append_record(logged, "search", {"target": "later"})
    monkeypatch.undo()
    assert verify(logged) == []


def test_unfinished_writes_are_no_records(logged: Gallery) -> None:
    (files(logged)[0].parent / ".writing-0123").write_bytes(b"{")
    assert verify(logged) == [] and len(read_records(logged)) == RECORDS


@pytest.mark.parametrize(
    "executor",
    [lambda: ThreadPoolExecutor(8), lambda: ProcessPoolExecutor(2, get_context("spawn"))],
    ids=["threads", "processes"],
)
def test_writers_at_the_same_time_give_one_whole_chain(
    toy_gallery: Gallery, executor: Callable[[], ThreadPoolExecutor | ProcessPoolExecutor]
) -> None:
    writers, each = 8, 10
    with executor() as pool:
        for done in [pool.submit(append_many, toy_gallery, writer, each) for writer in range(writers)]:
            done.result(120)
    assert verify(toy_gallery) == []
    written = [(record["writer"], record["number_of_writer"]) for record in read_records(toy_gallery)]
    assert sorted(written) == [(writer, number) for writer in range(writers) for number in range(each)]
    for writer in range(writers):
        assert [number for other, number in written if other == writer] == list(range(each))


def test_another_chain_is_counted_and_checked_by_itself(toy_gallery: Gallery) -> None:
    append_record(toy_gallery, "search", {})
    for number in range(3):
        append_record(toy_gallery, "decision", {"video_id": f"v{number}"}, chain="cases/7")
    assert [record["number"] for record in read_records(toy_gallery, "cases/7")] == [0, 1, 2]
    assert [record["number"] for record in read_records(toy_gallery, "cases/7", first=1, count=1)] == [1]
    assert (audit.count_records(toy_gallery), audit.count_records(toy_gallery, "cases/7")) == (1, 3)
    assert audit.cases(toy_gallery) == ["7"] and verify(toy_gallery, head(toy_gallery, "cases/7"), "cases/7") == []
    Path(toy_gallery.location.path, "cases", "7", "0000000002.json").unlink()
    assert verify(toy_gallery) == [] and verify(toy_gallery, chain="cases/7") != []
