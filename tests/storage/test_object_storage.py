"""The whole path over a real S3 protocol on loopback: input, gallery, index and results in a bucket."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.catalog.inputs import read_catalog
from pipeline.coattention.calibration import save_calibration, settings_of
from pipeline.coattention.calibration_fit import fit_calibration
from pipeline.coattention.head import head_hash, save_head, untrained_head
from pipeline.decoding.sampling import Sampling
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.index.heads import find_head
from pipeline.index.versions import open_index
from pipeline.ingest.run import Workers, ingest
from pipeline.retention.compact import compact
from pipeline.retention.forget import Selection, forget
from pipeline.retention.verify import verify_gallery
from pipeline.search.evidence import SourcePictures
from pipeline.search.partitions import opened_partitions
from pipeline.search.report import write_report
from pipeline.search.results import write_results
from pipeline.search.search import search
from pipeline.search.targets import gallery_target
from pipeline.settings import ScoreSettings, SearchSettings
from pipeline.storage.location import resolve
from tests.conftest import save_toy_backbone
from tests.decoding.test_video import write_video
from tests.faulty_store import FaultyStore


@pytest.fixture(scope="module")
def on_ray(s3_endpoint: str) -> Iterator[None]:
    """Ray whose workers have the credentials of the S3 server."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.ray
def test_an_ingest_between_buckets_survives_a_bad_store(on_ray: None, store: FaultyStore, tmp_path: Path) -> None:
    options = f"?endpoint_override={store.endpoint}&region=us-east-1"
    for number in range(4):
        video = write_video(tmp_path / f"{number}.mp4", frames=8 + number).read_bytes()
        resolve(f"s3://bucket/in/{number}.mp4{options}").write_atomically(video)
    spec = find_backbone(str(save_toy_backbone(tmp_path / "mean.onnx")))
    gallery = Gallery.open_or_create(f"s3://bucket/out{options}", GallerySettings(spec, 10.0, None))
    catalog = read_catalog(f"s3://bucket/in{options}")
    with store.failing("throttled", "error", "refused", "half an answer", "answer lost", rate=0.15, seed=5):
        summary = ingest(catalog, gallery, Sampling(height=8, width=4), Workers(shard_chunks=1))
        faults = sum(store.counts.values())
    assert (summary.candidates, summary.rejected, summary.unaccounted) == (4, 0, 0) and faults > 5
    lengths = {row["sampled_frames"]: len(gallery.read_video(row)) for row in gallery.snapshot().videos.to_pylist()}
    assert lengths == {n: n for n in range(8, 12)}


@pytest.mark.ray
def test_everything_can_live_in_a_bucket(on_ray: None, s3_options: str, tmp_path: Path) -> None:
    prefix, options = "s3://bucket/", s3_options
    for number in range(4):
        video = write_video(tmp_path / "a.mp4", frames=10 + 3 * number).read_bytes()
        resolve(f"{prefix}videos/cam1/v{number}.mp4{options}").write_atomically(video)
    resolve(f"{prefix}videos/broken.mp4{options}").write_atomically(b"not a video")
    spec = find_backbone(DEFAULT, (64, 32))
    gallery = Gallery.open_or_create(f"{prefix}galleries/town{options}", GallerySettings(spec, 10.0, None))
    catalog = read_catalog(f"{prefix}videos{options}")
    summary = ingest(catalog, gallery, Sampling(height=64, width=32))
    assert (summary.candidates, summary.reasons) == (4, {"not_a_video": 1})
    ray.shutdown()  # what follows is done in this process
    assert ingest(catalog, gallery, Sampling(height=64, width=32)).already == 5
    build_index(gallery)
    index = open_index(gallery)
    target = gallery_target(gallery, index.videos["video_id"][0].as_py())
    with opened_partitions(gallery, index, actors=0) as partitions:
        result = search(gallery, index, partitions, target, SearchSettings())
    assert len(result.leads) == 3
    write_results([result], f"{prefix}results{options}")
    pictures = SourcePictures(reach=gallery.reach())
    page = resolve(write_report([result], f"{prefix}results{options}", pictures)).read_bytes()
    pictures.close()
    assert page.count(b"data:image/jpeg") > 8
    with resolve(f"{prefix}results/results.parquet{options}").open_input() as file:
        assert pq.read_table(file)["video_id"].to_pylist() == [lead.video.video_id for lead in result.leads]
    forget(gallery, Selection((result.leads[0].video.video_id,)), "a test")
    compact(gallery)
    assert len(gallery.snapshot().videos) == 3 and verify_gallery(gallery) == []


def test_a_head_and_its_calibration_can_live_in_a_bucket(s3_options: str, toy_gallery: Gallery, tmp_path: Path) -> None:
    head = untrained_head(np.random.default_rng(0).normal(size=(50, 24)).astype(np.float32))
    save_head(head, tmp_path / "head", {})
    place = f"s3://bucket/runs/head{s3_options}"
    with pytest.raises(PipelineError, match="is not a head: it holds no"):
        find_head(place, toy_gallery)
    for file in (tmp_path / "head").iterdir():
        resolve(place).join(file.name).write_atomically(file.read_bytes())
    found, calibration = find_head(place, toy_gallery)
    assert found is not None and head_hash(found) == head_hash(head) and calibration is None
    rng, people = np.random.default_rng(1), np.array([f"p{i}" for i in range(12)])
    one, other = (side.ravel() for side in np.meshgrid(people.repeat(2), people.repeat(2)))
    scores = np.where(one == other, 0.8, 0.4) + 0.05 * rng.normal(size=len(one))
    fitted = fit_calibration(
        scores, one, other, head=head_hash(head), settings=settings_of(ScoreSettings(), 8, 4), bounded=True, name="a test"
    )
    assert save_calibration(fitted, place) == resolve(place).join("calibration.json").uri
    assert find_head(place, toy_gallery)[1] == fitted
