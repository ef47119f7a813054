"""The audit log in an object store, where a number may be taken twice."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.gallery import audit
from pipeline.gallery.audit import append_record, read_records, verify
from pipeline.gallery.gallery import Gallery, GallerySettings
from tests.conftest import toy_spec
from tests.gallery.audit_files import append_many


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
