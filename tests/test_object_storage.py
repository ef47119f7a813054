"""The whole path over a real S3 protocol on loopback: input, gallery, index and results in a bucket."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from pipeline.backbone import DEFAULT, find_backbone
from pipeline.catalog import read_catalog
from pipeline.evidence import SourcePictures
from pipeline.gallery import Gallery, GallerySettings
from pipeline.index import open_index
from pipeline.index_build import build_index
from pipeline.ingest import ingest
from pipeline.partitions import opened_partitions
from pipeline.report import write_report
from pipeline.results import write_results
from pipeline.retention import Selection, compact, forget
from pipeline.sampling import Sampling
from pipeline.search import search
from pipeline.settings import SearchSettings
from pipeline.storage import resolve
from pipeline.targets import gallery_target
from pipeline.verification import verify_gallery
from tests.test_video import write_video


@pytest.mark.ray
def test_everything_can_live_in_a_bucket(s3_options: str, tmp_path: Path) -> None:
    prefix, options = "s3://bucket/", s3_options
    for number in range(4):
        video = write_video(tmp_path / "a.mp4", frames=10 + 3 * number).read_bytes()
        resolve(f"{prefix}videos/cam1/v{number}.mp4{options}").write_atomically(video)
    resolve(f"{prefix}videos/broken.mp4{options}").write_atomically(b"not a video")
    spec = find_backbone(DEFAULT, (64, 32))
    gallery = Gallery.open_or_create(f"{prefix}galleries/town{options}", GallerySettings(spec, 10.0, None))
    catalog = read_catalog(f"{prefix}videos{options}")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        summary = ingest(catalog, gallery, Sampling(height=64, width=32))
        assert (summary.candidates, summary.reasons) == (4, {"not_a_video": 1})
    finally:
        ray.shutdown()
    assert ingest(catalog, gallery, Sampling(height=64, width=32)).already == 5
    build_index(gallery)
    index = open_index(gallery)
    target = gallery_target(gallery, index.videos["video_id"][0].as_py())
    with opened_partitions(gallery, index, actors=0) as partitions:
        result = search(gallery, index, partitions, target, SearchSettings())
    assert len(result.leads) == 3
    write_results([result], f"{prefix}results{options}")
    pictures = SourcePictures()
    page = resolve(write_report([result], f"{prefix}results{options}", pictures)).read_bytes()
    pictures.close()
    assert page.count(b"data:image/jpeg") > 8
    with resolve(f"{prefix}results/results.parquet{options}").open_input() as file:
        assert pq.read_table(file)["video_id"].to_pylist() == [lead.video.video_id for lead in result.leads]
    forget(gallery, Selection((result.leads[0].video.video_id,)), "a test")
    compact(gallery)
    assert len(gallery.snapshot().videos) == 3 and verify_gallery(gallery) == []
