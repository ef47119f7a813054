"""An object store that throttles, fails, dawdles and cuts connections: what helps is tried again, the rest is one sentence."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.catalog.inputs import read_catalog
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Chunk, Rejected
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings
from pipeline.ingest.run import missing_sources
from pipeline.storage import faults
from pipeline.storage import location as storage
from pipeline.storage.faults import StorageError
from pipeline.storage.location import Location, resolve
from tests.conftest import add_videos, people_features, reaching, toy_spec
from tests.decoding.test_video import write_video
from tests.faulty_store import FAULTS, FaultyStore

SAMPLING = Sampling(height=8, width=4)


@pytest.fixture
def place(store: FaultyStore, request: pytest.FixtureRequest) -> Location:
    """A prefix of the bucket for one test."""
    return resolve(f"s3://bucket/{abs(hash(request.node.name))}?endpoint_override={store.endpoint}&region=us-east-1")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two tries, for what a test wants to see fail."""
    for module in (storage, faults):  # what asks, and what says how often
        monkeypatch.setattr(module, "S3_TRIES", 2)
    storage._object_store.cache_clear()
    yield
    storage._object_store.cache_clear()


@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation_is_tried_again_until_it_is_done(store: FaultyStore, place: Location, fault: str) -> None:
    content = [np.random.default_rng(i).bytes(50_000) for i in range(5)]
    with store.failing(fault, rate=0.1 if fault == "slow" else 0.3, seed=1, delay=4.0):
        for i, data in enumerate(content):
            place.join(f"{i}.bin").write_atomically(data)
        assert [file.read_bytes() for file in place.list()] == content
        place.join("0.bin").delete()
        assert not place.join("0.bin").exists()
        assert store.counts[fault] >= 2, "the seed lets no request fail"


def test_a_bad_hour_does_not_use_up_the_patience(store: FaultyStore, place: Location) -> None:
    """Some clients share a budget of retries among all of their requests."""
    place.join("a").write_atomically(b"1")
    with store.failing("throttled", "error", "refused", rate=0.4, seed=3):
        assert all(place.join("a").read_bytes() == b"1" for _ in range(200))
        assert sum(store.counts.values()) > 100


def test_a_location_is_as_patient_in_a_worker_as_here(store: FaultyStore, place: Location) -> None:
    place.join("a").write_atomically(b"1")
    there = pickle.loads(pickle.dumps(place))  # noqa: S301 - our own
    with store.failing("throttled", rate=0.75, seed=2):  # three tries, as pyarrow's pickled client has, would not do
        assert [there.join("a").read_bytes() for _ in range(2)] == [b"1", b"1"]
        assert store.counts["throttled"] >= 4


@pytest.mark.parametrize("fault", ["throttled", "error", "refused"])
@pytest.mark.usefixtures("impatient")
def test_a_store_that_stays_away_is_one_sentence(store: FaultyStore, fault: str) -> None:
    place = resolve(f"s3://bucket/away?endpoint_override={store.endpoint}&region=us-east-1")
    place.join("a").write_atomically(b"12")
    for verb, work in (
        ("list", place.list),
        ("read", place.join("a").read_bytes),
        ("write", lambda: place.join("b").write_atomically(b"1")),
    ):
        with store.failing(fault, rate=1.0), pytest.raises(StorageError) as refused:
            work()
        assert refused.value.kind == "unavailable" and refused.value.reject_reason("other") == "unavailable"
        assert str(refused.value).startswith(f"cannot {verb} s3://bucket/away") and "after 2 tries" in str(refused.value)
        assert "\n" not in str(refused.value)
    assert not place.join("b").exists()


@pytest.mark.usefixtures("impatient")
def test_a_commit_that_fails_half_way_is_not_there(store: FaultyStore) -> None:
    uri = f"s3://bucket/commits?endpoint_override={store.endpoint}&region=us-east-1"
    gallery = Gallery.open_or_create(uri, GallerySettings(toy_spec(), 10.0, None))
    videos = people_features(4, 2, 24, seed=3)
    add_videos(gallery, videos)
    failed = 0
    for seed in range(8):
        with store.failing("throttled", "answer lost", rate=0.8, seed=seed):
            try:
                add_videos(gallery, videos, first=100 * (seed + 1))
            except PipelineError:
                failed += 1
        after = gallery.snapshot()  # whole, whatever happened
        for row in after.videos.to_pylist():
            assert len(gallery.read_video(row)) == row["sampled_frames"]
    assert failed >= 2


@pytest.mark.usefixtures("impatient")
def test_a_video_whose_store_does_not_answer_is_tried_again_by_the_next_ingest(store: FaultyStore, tmp_path: Path) -> None:
    uri = f"s3://bucket/videos/a.mp4?endpoint_override={store.endpoint}&region=us-east-1"
    resolve(uri).write_atomically(write_video(tmp_path / "a.mp4").read_bytes())
    catalog = read_catalog(uri)
    gallery = Gallery.open_or_create(tmp_path / "gallery", GallerySettings(toy_spec(), 10.0, None))
    sampling = reaching(SAMPLING, uri)
    with Decoder(sampling) as decoder:
        assert sum(len(event.frames) for event in decoder.events(uri) if isinstance(event, Chunk)) == 30
    for fault in ("error", "half an answer"):
        with store.failing(fault, rate=1.0), Decoder(sampling) as decoder:
            (rejected,) = decoder.events(uri)
        assert isinstance(rejected, Rejected) and rejected.reason == "unavailable", rejected
    row = {"uri": uri, "video_id": "a", "reason": rejected.reason, "message": rejected.message}
    row["source_id"] = catalog.table["source_id"][0].as_py()
    gallery.commit(VIDEOS_SCHEMA.empty_table(), pa.Table.from_pylist([row], schema=REJECTS_SCHEMA))
    missing, _ = missing_sources(catalog.table, gallery.snapshot(), retry_rejected=False)
    assert len(missing) == 1


def test_a_large_prefix_is_listed_page_by_page(store: FaultyStore) -> None:
    from moto.s3.models import s3_backends

    bucket = next(iter(s3_backends.values()))["aws"]
    for i in range(10_000):
        bucket.put_object("bucket", f"many/cam{i % 7}/{i:05d}.mp4", b"x")
    with store.failing("throttled", rate=0.2, seed=4):
        catalog = read_catalog(f"s3://bucket/many?endpoint_override={store.endpoint}&region=us-east-1")
        assert len(set(catalog.table["uri"].to_pylist())) == len(catalog.table) == 10_000
        assert store.requests < 60  # a thousand keys a page, some of them twice
