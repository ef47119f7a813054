"""The audit log: nothing is answered without a record, and a record that was removed, changed or moved is found."""

import hashlib
import json
import os
import pwd
import re
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.catalog.inputs import read_catalog
from pipeline.decoding.source_hash import source_hash
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery import audit
from pipeline.gallery.audit import NEED_POLICY, append_record, head, newest, read_records, required, set_policy, user, verify
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings, feature_matrix
from pipeline.index.build import build_index
from pipeline.retention.verify import verify_gallery
from pipeline.settings import IndexSettings, ScoreSettings
from pipeline.storage.location import Location
from tests.conftest import toy_spec
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


def files(gallery: Gallery) -> list[Path]:
    return sorted(Path(gallery.location.path, "audit").glob("0*.json"))


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


# object stores: no exclusive writes, so a number may be taken twice


@pytest.fixture
def bucket(s3_options: str, request: pytest.FixtureRequest) -> Gallery:
    number = hashlib.sha256(request.node.name.encode()).hexdigest()[:8]
    return Gallery.open_or_create(f"s3://bucket/{number}{s3_options}", GallerySettings(toy_spec(), 10.0, None))


def test_two_writers_of_one_instant_keep_both_records_and_the_next_one_names_both(
    bucket: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_record(bucket, "search", {"target": "first"})
    place = audit._place(bucket.location.join("audit"))
    monkeypatch.setattr(audit, "_place", lambda _: place)  # both look before either writes
    names = [append_record(bucket, "search", {"target": target}) for target in ("one", "other")]
    monkeypatch.undo()
    assert names[0] != names[1] and names[0][:10] == names[1][:10] == "0000000001"
    assert verify(bucket) == []
    append_record(bucket, "search", {"target": "last"})
    records = read_records(bucket)
    assert sorted(record["target"] for record in records) == ["first", "last", "one", "other"]
    assert len(records[-1]["previous"]) == 2 and verify(bucket) == []
    for name in names:
        removed = bucket.location.join("audit", name)
        data = removed.read_bytes()
        removed.delete()
        assert verify(bucket)
        removed.write_atomically(data)
    assert verify(bucket) == []


def test_a_record_that_arrives_late_is_named_by_the_next_one(bucket: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    append_record(bucket, "search", {"target": "first"})
    place = audit._place(bucket.location.join("audit"))
    for target in ("second", "third"):
        append_record(bucket, "search", {"target": target})
    monkeypatch.setattr(audit, "_place", lambda _: place)
    late = append_record(bucket, "search", {"target": "late"})
    monkeypatch.undo()
    append_record(bucket, "search", {"target": "last"})
    assert verify(bucket) == [] and len(read_records(bucket)) == 5
    bucket.location.join("audit", late).delete()
    assert verify(bucket)


def test_a_listing_that_lags_behind_the_head_keeps_the_chain_whole(bucket: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two records of one number, one that names both, and a writer whose listing does not show that one yet."""
    folder = bucket.location.join("audit")
    append_record(bucket, "search", {"target": "first"})
    place = audit._place(folder)
    with monkeypatch.context() as patched:
        patched.setattr(audit, "_place", lambda _: place)
        for target in ("one", "other"):
            append_record(bucket, "search", {"target": target})
    stale = audit._records(folder)
    append_record(bucket, "search", {"target": "names both"})
    with monkeypatch.context() as patched:
        patched.setattr(audit, "_records", lambda _: stale)
        late = append_record(bucket, "search", {"target": "late"})
    assert late[:10] == "0000000003"
    assert verify(bucket) == []


def test_many_writers_into_a_bucket_lose_nothing(bucket: Gallery) -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(append_many, bucket, writer, 5) for writer in range(4)]:
            done.result(120)
    written = sorted((record["writer"], record["number_of_writer"]) for record in read_records(bucket))
    assert written == [(writer, number) for writer in range(4) for number in range(5)] and verify(bucket) == []


# what a gallery requires


@pytest.mark.parametrize(
    ("names", "reason", "case", "missing"),
    [
        (["reason"], None, "7", "--reason"),
        (["case"], "lost child", None, "--case"),
        (["reason", "case"], " ", "", "--reason and --case"),
    ],
)
def test_what_a_gallery_requires_must_be_given(
    toy_gallery: Gallery, names: list[str], reason: str | None, case: str | None, missing: str
) -> None:
    set_policy(toy_gallery, names)
    for action in NEED_POLICY:
        with pytest.raises(UsageError, match=f"requires {missing} for its audit log"):
            append_record(toy_gallery, action, {"reason": reason, "case": case})
    append_record(toy_gallery, "search", {"reason": "lost child", "case": "7"})
    assert [record["action"] for record in read_records(toy_gallery)] == ["policy", "search"] and verify(toy_gallery) == []


def test_a_policy_that_was_changed_behind_the_log_is_found(toy_gallery: Gallery) -> None:
    set_policy(toy_gallery, ["reason"], "by order")
    Path(toy_gallery.location.path, "audit", "policy.json").unlink()
    assert verify(toy_gallery) == ["policy.json was changed without a record"]
    set_policy(toy_gallery, [])
    assert verify(toy_gallery) == [] and required(toy_gallery) == ()


def test_a_forged_policy_record_is_found_and_does_not_end_the_check(toy_gallery: Gallery) -> None:
    """With a hash of its own that is right, as somebody who knows the format would write it."""
    set_policy(toy_gallery, ["reason"], "by order")
    (file,) = files(toy_gallery)
    for forged in ([{}], 5, {"reason": 1}, None):
        record = {name: value for name, value in json.loads(file.read_bytes()).items() if name != "sha256"} | {"required": forged}
        own = hashlib.sha256(json.dumps(record, ensure_ascii=False).encode()).hexdigest()
        file.write_text(json.dumps(record | {"sha256": own}, ensure_ascii=False))
        assert "policy.json was changed without a record" in verify(toy_gallery)


def test_a_policy_that_was_away_for_an_hour_shows_in_the_records_of_that_hour(toy_gallery: Gallery) -> None:
    append_record(toy_gallery, "search", {"target": "v001"})  # nothing is required yet
    set_policy(toy_gallery, ["reason", "case"], "by order")
    append_record(toy_gallery, "search", {"reason": "lost child", "case": "7"})
    policy = Path(toy_gallery.location.path, "audit", "policy.json")
    content = policy.read_bytes()
    policy.unlink()
    append_record(toy_gallery, "search", {"reason": " ", "case": "7"})
    append_record(toy_gallery, "ingest", {"source": "videos"})  # needs neither
    append_record(toy_gallery, "forget", {"videos": ["v001"]})
    policy.write_bytes(content)
    append_record(toy_gallery, "search", {"reason": "lost child", "case": "8"})
    assert verify(toy_gallery) == [
        "0000000003.json says no reason, which the policy of that moment required",
        "0000000005.json says no reason and no case, which the policy of that moment required",
    ]
    set_policy(toy_gallery, ["case"], "less")
    append_record(toy_gallery, "search", {"case": "9"})
    set_policy(toy_gallery, [], "none")
    append_record(toy_gallery, "search", {})
    assert len(verify(toy_gallery)) == 2


def test_a_search_that_comes_while_a_policy_is_set_says_what_it_requires_or_stands_before_it(
    toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed, append = audit._place, audit.append_record

    def after_another_policy(folder: Location) -> tuple:
        place = placed(folder)
        monkeypatch.setattr(audit, "_place", placed)
        set_policy(toy_gallery, ["reason"], "by order")
        return place

    monkeypatch.setattr(audit, "_place", after_another_policy)
    with pytest.raises(UsageError, match="requires --reason"):
        append(toy_gallery, "search", {"target": "v001"})

    def with_a_search_just_after(gallery: Gallery, action: str, fields: dict) -> str:
        name = append(gallery, action, fields)
        with pytest.raises(UsageError, match="requires --case"):
            append(gallery, "search", {"reason": "a reason alone"})
        return name

    monkeypatch.setattr(audit, "append_record", with_a_search_just_after)
    set_policy(toy_gallery, ["reason", "case"], "more")
    assert verify(toy_gallery) == [] and len(read_records(toy_gallery)) == 2


def test_a_policy_whose_record_cannot_be_written_is_not_set(toy_gallery: Gallery) -> None:
    set_policy(toy_gallery, ["case"], "by order")
    with pytest.raises(UsageError, match="Unicode"):
        set_policy(toy_gallery, ["reason"], "\udce9")
    assert required(toy_gallery) == ("case",) and verify(toy_gallery) == []


def test_only_a_reason_and_a_case_can_be_required(toy_gallery: Gallery) -> None:
    with pytest.raises(UsageError, match="'colour' cannot be required"):
        set_policy(toy_gallery, ["colour"])
    assert read_records(toy_gallery) == []


def test_a_search_without_what_is_required_is_refused_before_anything_is_read(toy_gallery: Gallery) -> None:
    set_policy(toy_gallery, ["reason", "case"])
    asked = ["search", "/no/such/target.mp4", "--gallery", toy_gallery.location.uri, "--reason", "x"]
    ended = command(*asked)
    assert ended.code == 2 and "requires --case" in ended.sentence and len(read_records(toy_gallery)) == 1
    assert "requires" not in command(*asked, "--case", "7").sentence


def test_a_search_that_fails_is_recorded_too(toy_gallery: Gallery) -> None:
    asked = ["search", "id:v003", "--gallery", toy_gallery.location.uri, "--reason", "lost child", "--camera", "cam9"]
    build_index(toy_gallery, IndexSettings(8, 4))
    ended = command(*asked)
    assert ended.code == 2
    (record,) = read_records(toy_gallery)
    assert record["failed"] == "the gallery has no camera 'cam9'; it has cam0, cam1"
    assert (record["action"], record["target"], record["reason"], record["filters"]) == (
        "search",
        "v003",
        "lost child",
        ["camera cam9"],
    )
    assert record["target_hash"].startswith("features:") and "results" not in record and verify(toy_gallery) == []


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("id:v999", "v999"),
        ("/nowhere/\udce9.mp4", "is not UTF-8"),
        ("/nowhere/a.mp4", "has no backbone toy"),
        ("id:v003", "has no index yet"),
    ],
    ids=["an unknown id", "a name that is not UTF-8", "no backbone", "no index"],
)
def test_a_search_that_fails_before_its_targets_are_read_is_recorded_too(toy_gallery: Gallery, target: str, words: str) -> None:
    if "no index" not in words:
        build_index(toy_gallery, IndexSettings(8, 4))
    ended = command("search", target, "id:v004", "--gallery", toy_gallery.location.uri, "--reason", "lost child")
    assert ended.code in (1, 2) and ended.out == ""
    records = read_records(toy_gallery)
    assert [record["target"] for record in records] == [target.replace("\udce9", "\\udce9"), "id:v004"]
    for record in records:
        assert words in record["failed"] and "results" not in record
        assert (record["action"], record["reason"], record["who"]) == ("search", "lost child", user())
        assert datetime.fromisoformat(record["started_at"]) <= datetime.fromisoformat(record["ended_at"])
    assert verify(toy_gallery) == []


def test_an_interrupted_search_is_recorded_too(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    build_index(toy_gallery, IndexSettings(8, 4))
    monkeypatch.setattr("pipeline.search.search.search_many", interrupted)
    assert command("search", "id:v003", "--gallery", toy_gallery.location.uri).code == 130
    (record,) = read_records(toy_gallery)
    assert (record["target"], record["failed"]) == ("v003", "cancelled")


def test_an_evaluation_that_fails_is_recorded_too(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri,person_id,camera_id\nabsent.mp4,p1,c1\n")
    Gallery.open_or_create(tmp_path / "out/gallery", GallerySettings(find_backbone(DEFAULT), 10.0, None)).commit(
        VIDEOS_SCHEMA.empty_table(), absent_reject(tmp_path)
    )
    ended = command("evaluate", "--data", str(tmp_path / "m.csv"), "--out", str(tmp_path / "out"), "--reason", "a test")
    assert ended.code in (1, 2), ended.err
    (record,) = read_records(Gallery.open(tmp_path / "out/gallery"))
    assert (record["action"], record["data"], record["reason"]) == ("evaluate", str(tmp_path / "m.csv"), "a test")
    assert record["failed"] and "queries" not in record


def absent_reject(folder: Path) -> pa.Table:
    """That the one input was refused before: nothing is ingested, and Ray need not start."""
    (row,) = read_catalog(str(folder / "m.csv")).table.to_pylist()
    reject = {"uri": row["uri"], "video_id": row["source_id"], "source_id": row["source_id"], "reason": "missing"}
    return pa.Table.from_pylist([reject], schema=REJECTS_SCHEMA)


def test_unfinished_writes_are_no_records(logged: Gallery) -> None:
    (files(logged)[0].parent / ".writing-0123").write_bytes(b"{")
    assert verify(logged) == [] and len(read_records(logged)) == RECORDS


def append_many(gallery: Gallery, writer: int, count: int) -> None:
    for number in range(count):
        append_record(gallery, "search", {"writer": writer, "number_of_writer": number})


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
        assert (record["action"], record["who"], record["host"]) == ("search", user(), socket.gethostname())
        assert (record["reason"], record["case"]) == ("lost child", "2026/117")
        assert (record["gallery"], record["index_version"], record["filters"]) == (
            toy_gallery.location.uri,
            index.version,
            ["camera cam1"],
        )
        assert record["settings"]["score"] == asdict(ScoreSettings()) and record["settings"]["expected_matches"] is None
        assert record["gallery_videos"] == 40
    assert [video_id for record in records for video_id in record["results"]] == ranked_ids(ended.out)
    assert len(ranked_ids(ended.out)) == 12 and verify(toy_gallery) == []
    for record in records:
        assert datetime.fromisoformat(record["started_at"]) < datetime.fromisoformat(record["ended_at"])
        row = next(row for row in toy_gallery.snapshot().videos.to_pylist() if row["video_id"] == record["target"])
        features = feature_matrix(toy_gallery.read_video(row)).tobytes()
        assert record["target_hash"] == f"features:{hashlib.sha256(features).hexdigest()}"
        assert record["gallery_version"] == str(toy_gallery.log.head())
        assert record["calibration_version"] is None and record["model"] == index.model


def test_a_source_is_named_by_what_sha256sum_says_of_it(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"bytes of a video")
    assert source_hash(str(tmp_path / "video.mp4")) == f"file:{hashlib.sha256(b'bytes of a video').hexdigest()}"
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("0002.jpg", "0001.jpg", "notes.txt"):
        (folder / name).write_bytes(name.encode())
    listed = subprocess.run(["sha256sum", "0001.jpg", "0002.jpg"], cwd=folder, capture_output=True, check=True).stdout
    assert source_hash(str(folder)) == source_hash(f"{folder}/*.jpg") == f"images:{hashlib.sha256(listed).hexdigest()}"


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


def test_a_policy_is_set_shown_and_kept_to_by_the_commands(toy_gallery: Gallery) -> None:
    gallery = ("--gallery", toy_gallery.location.uri)
    assert "neither" in command("policy", *gallery).out
    refused = command("policy", *gallery, "--require", "case")
    assert refused.code == 2 and "--reason" in refused.sentence and required(toy_gallery) == ()
    assert command("policy", *gallery, "--require", "colour", "--reason", "x").code == 2
    assert "requires case\n" in command("policy", *gallery, "--require", "case", "--reason", "by order").out
    forgetting = ("forget", *gallery, "--video-id", "v001", "--reason", "asked to")
    ended = command(*forgetting)
    assert ended.code == 2 and "requires --case" in ended.sentence
    assert "v001" in toy_gallery.snapshot().videos["video_id"].to_pylist()
    assert command(*forgetting, "--case", "2026/7").code == 0
    assert read_records(toy_gallery)[-1]["case"] == "2026/7"
    assert command("policy", *gallery, "--require", "none", "--reason", "order withdrawn").code == 0
    assert required(toy_gallery) == () and verify(toy_gallery) == []


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


def test_what_a_check_raises_leaves_no_record_and_a_record_that_comes_between_is_seen_by_it(toy_gallery: Gallery) -> None:
    seen: list[int] = []

    def check() -> None:
        seen.append(len(read_records(toy_gallery, "cases/7")))
        if len(seen) == 1:  # somebody else is faster
            append_record(toy_gallery, "decision", {}, chain="cases/7")

    append_record(toy_gallery, "close", {}, chain="cases/7", check=check)
    assert seen == [0, 1] and [one["action"] for one in read_records(toy_gallery, "cases/7")] == ["decision", "close"]
    with pytest.raises(UsageError, match="meanwhile"):
        append_record(toy_gallery, "close", {}, chain="cases/7", check=lambda: refuse("meanwhile"))
    assert len(read_records(toy_gallery, "cases/7")) == 2


def refuse(words: str) -> None:
    raise UsageError(words)


def test_an_export_that_nobody_confirmed_is_refused_where_that_is_required_and_found_where_it_was_slipped_in(
    toy_gallery: Gallery,
) -> None:
    set_policy(toy_gallery, ["confirmation"], "by order")
    policy = Path(toy_gallery.location.path, "audit", "policy.json")
    with pytest.raises(UsageError, match="second person"):
        append_record(toy_gallery, "export", {"case": "7", "confirmation": None})
    append_record(toy_gallery, "search", {})  # asks for nothing
    append_record(toy_gallery, "export", {"case": "7", "confirmation": "all by a second person"})
    content = policy.read_bytes()
    policy.unlink()
    append_record(toy_gallery, "export", {"case": "7", "confirmation": None})
    policy.write_bytes(content)
    assert verify(toy_gallery) == ["0000000003.json says no confirmation, which the policy of that moment required"]
