"""The audit log: nothing is answered without a record, and a record that was removed, changed or moved is found."""

import getpass
import json
import re
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import pytest

from pipeline.audit import append_record, read_records, user, verify
from pipeline.errors import PipelineError
from pipeline.gallery import Gallery
from pipeline.index import build_index
from pipeline.verification import verify_gallery
from tests.test_jobs import command

RECORDS = 5


@pytest.fixture
def logged(toy_gallery: Gallery) -> Gallery:
    """A gallery with five searches in its log."""
    for number in range(RECORDS):
        append_record(
            toy_gallery, "search", {"target": f"v00{number}", "reason": f"reason {number}", "results": ["v030", "v031"]}
        )
    return toy_gallery


def files(gallery: Gallery) -> list[Path]:
    return sorted(Path(gallery.location.path, "audit").glob("*.json"))


def change(file: Path) -> None:
    file.write_text(file.read_text().replace("reason", "excuse"))


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def close_the_gap(removed: Path) -> None:
    """Remove a record and give those after it the numbers before theirs."""
    following = [file for file in sorted(removed.parent.glob("*.json")) if file > removed]
    removed.unlink()
    for file in following:
        file.rename(file.with_name(f"{int(file.name[:10]) - 1:010d}{file.name[10:]}"))


def test_a_record_says_who_did_what_when_and_where(toy_gallery: Gallery) -> None:
    before = datetime.now(UTC)
    name = append_record(toy_gallery, "forget", {"reason": "request 7 – Übung", "videos": ["v001"]})
    (record,) = read_records(toy_gallery)
    assert files(toy_gallery)[0].name == name
    assert record["action"] == "forget" and record["reason"] == "request 7 – Übung" and record["videos"] == ["v001"]
    assert (record["who"], record["host"]) == (getpass.getuser(), socket.gethostname())
    assert before <= datetime.fromisoformat(record["at"]) <= datetime.now(UTC)


def test_a_process_without_an_account_is_named_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_account() -> str:
        raise OSError("no username set in the environment")

    monkeypatch.setattr(getpass, "getuser", no_account)
    assert user() == "unknown"


def test_records_are_read_oldest_first_and_form_a_whole_chain(logged: Gallery) -> None:
    assert [record["target"] for record in read_records(logged)] == [f"v00{number}" for number in range(RECORDS)]
    assert verify(logged) == [] and verify_gallery(logged) == []


def test_a_log_without_records_is_whole(toy_gallery: Gallery) -> None:
    assert verify(toy_gallery) == [] and read_records(toy_gallery) == []


# The last record cannot be here: nothing that is left knows of it.
@pytest.mark.parametrize("number", range(RECORDS - 1))
def test_a_removed_record_is_found(logged: Gallery, number: int) -> None:
    files(logged)[number].unlink()
    assert verify(logged) and verify_gallery(logged) == [f"audit log: {fault}" for fault in verify(logged)]


@pytest.mark.parametrize("number", range(RECORDS - 1))
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


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"{}"])
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


def test_unfinished_writes_are_no_records(logged: Gallery) -> None:
    (files(logged)[0].parent / ".writing-0123").write_bytes(b"{")
    assert verify(logged) == [] and len(read_records(logged)) == RECORDS


def append_many(gallery: Gallery, writer: int, count: int) -> None:
    for number in range(count):
        append_record(gallery, "search", {"writer": writer, "number": number})


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
    written = [(record["writer"], record["number"]) for record in read_records(toy_gallery)]
    assert sorted(written) == [(writer, number) for writer in range(writers) for number in range(each)]
    for writer in range(writers):
        assert [number for other, number in written if other == writer] == list(range(each))


def ranked_ids(output: str) -> list[str]:
    """The video ids of the tables that jobs.search prints."""
    return re.findall(r"^ *\d+  [\d.]+  +[\d.-]+  [ *] (\S+)", output, re.MULTILINE)


def test_a_search_is_recorded_with_its_reason_case_user_and_results(toy_gallery: Gallery) -> None:
    index = build_index(toy_gallery)
    asked = ["--top", "6", "--camera", "cam1", "--reason", "lost child", "--case", "2026/117"]
    ended = command("search", "id:v000", "id:v017", "--gallery", toy_gallery.location.uri, *asked)
    assert ended.code == 0, ended.err
    records = read_records(toy_gallery)
    assert [record["target"] for record in records] == ["v000", "v017"]
    for record in records:
        assert (record["action"], record["who"], record["host"]) == ("search", getpass.getuser(), socket.gethostname())
        assert (record["reason"], record["case"]) == ("lost child", "2026/117")
        assert (record["gallery"], record["index_version"], record["filters"]) == (
            toy_gallery.location.uri,
            index.version,
            ["camera cam1"],
        )
    assert [video_id for record in records for video_id in record["results"]] == ranked_ids(ended.out)
    assert len(ranked_ids(ended.out)) == 12 and verify(toy_gallery) == []


def test_a_search_without_a_reason_is_recorded_too(toy_gallery: Gallery) -> None:
    build_index(toy_gallery)
    assert command("search", "id:v000", "--gallery", toy_gallery.location.uri).code == 0
    (record,) = read_records(toy_gallery)
    assert (record["target"], record["reason"], record["case"]) == ("v000", None, None)


def test_the_record_comes_before_the_answer(toy_gallery: Gallery, tmp_path: Path) -> None:
    build_index(toy_gallery)
    Path(toy_gallery.location.path, "audit").write_text("a file where the log should be")
    ended = command("search", "id:v000", "--gallery", toy_gallery.location.uri, "--out", str(tmp_path / "out"))
    assert ended.code == 1 and "audit" in ended.sentence
    assert ended.out == "" and not (tmp_path / "out").exists()


def test_a_log_that_cannot_be_written_is_an_error_that_names_it(toy_gallery: Gallery) -> None:
    Path(toy_gallery.location.path, "audit").write_text("a file where the log should be")
    with pytest.raises(PipelineError, match="audit"):
        append_record(toy_gallery, "search", {})
