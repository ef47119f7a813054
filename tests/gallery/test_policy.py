"""What a gallery requires of those who search it, and what becomes of that in the log."""

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.gallery import audit
from pipeline.gallery.audit import NEED_POLICY, append_record, read_records, required, set_policy, verify
from pipeline.gallery.gallery import Gallery
from pipeline.storage.location import Location
from tests.gallery.audit_files import files
from tests.jobs.commands import command


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
