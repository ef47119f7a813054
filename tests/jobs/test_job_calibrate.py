"""jobs.calibrate keeps what scores are worth beside the head; an index built with it gives probabilities."""

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import jobs.calibrate as command
from jobs.search import ranked_list
from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.coattention.calibration import load_calibration
from pipeline.coattention.head import head_hash, save_head
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.index.heads import find_head
from pipeline.search.partitions import opened_partitions
from pipeline.search.search import search
from pipeline.search.targets import gallery_target
from pipeline.settings import ScoreSettings, SearchSettings
from tests.conftest import add_videos, people_features


@pytest.fixture
def ingested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the command leaves it once videos are ingested: 48 made-up ones of 12 people, a manifest, a head."""
    gallery = Gallery.open_or_create(tmp_path / "out/gallery", GallerySettings(find_backbone(DEFAULT), 10.0, None))
    videos = people_features(12, 4, gallery.feature_width, seed=3)
    add_videos(gallery, videos)
    rows = [f"v{i:03d}.mp4,v{i:03d},{person},cam{i % 2}" for i, (person, _) in enumerate(videos)]
    (tmp_path / "labels.csv").write_text("\n".join(["uri,video_id,person_id,camera_id", *rows]) + "\n")
    save_head(build_index(gallery).head, tmp_path / "head", {}, gallery.settings.backbone.identity)
    monkeypatch.setattr(command, "ingest", lambda *arguments, **settings: SimpleNamespace(refused=0))
    return tmp_path


def run(folder: Path, *flags: str) -> str:
    app = command.typer.Typer()
    app.command()(command.calibrate)
    places = ["--data", str(folder / "labels.csv"), "--head", str(folder / "head"), "--out", str(folder / "out")]
    ended = CliRunner().invoke(app, [*places, *flags], catch_exceptions=False)
    assert ended.exit_code == 0
    return ended.output


def test_searches_give_probabilities_once_the_head_is_calibrated(ingested: Path) -> None:
    said = run(ingested, "--name", "made-up people")
    assert "12 people, 96 pairs of one person" in said and "calibration error" in said
    gallery = Gallery.open(ingested / "out/gallery")
    head, calibration = find_head(str(ingested / "head"), gallery)
    assert calibration == load_calibration(ingested / "head")
    index = build_index(gallery, head=head, calibration=calibration)
    target = gallery_target(gallery, "v000")
    with opened_partitions(gallery, index, actors=0) as partitions:
        result = search(gallery, index, partitions, target, SearchSettings(top=47, shortlist=None))
        nothing = search(gallery, index, partitions, target, SearchSettings(after=datetime(2100, 1, 1, tzinfo=UTC)))
        other = search(gallery, index, partitions, target, SearchSettings(score=ScoreSettings(ratio=0.5)))
    probabilities = [lead.probability for lead in result.leads]
    assert probabilities == sorted(probabilities, reverse=True) and all(0 < p < 1 for p in probabilities)
    same = [lead.probability for lead in result.leads if lead.video.person_id == "p00"]
    assert min(same) > 5 * max(lead.probability for lead in result.leads if lead.video.person_id != "p00")
    assert 0 < result.none_probability < 1 and result.calibration == "made-up people"
    assert all(lead.probability is None for lead in other.leads) and other.none_probability is None
    assert other.calibration == "the calibration is for ratio none, not 0.5"
    assert (nothing.eligible, nothing.none_probability, nothing.calibration) == (0, None, "no video was scored")
    assert "none of these" not in ranked_list(nothing) and "none of these" in ranked_list(result)


def test_a_calibration_of_another_head_is_refused_until_it_is_fitted_again(ingested: Path) -> None:
    run(ingested)
    gallery = Gallery.open(ingested / "out/gallery")
    head, _ = find_head(str(ingested / "head"), gallery)
    head.classifier.bias.data += 1
    save_head(head, ingested / "head", {}, gallery.settings.backbone.identity)
    with pytest.raises(PipelineError, match=r"belongs to another head; fit it again with jobs\.calibrate"):
        find_head(str(ingested / "head"), gallery)
    run(ingested)  # as the sentence says
    again, calibration = find_head(str(ingested / "head"), gallery)
    assert calibration is not None and calibration.head == head_hash(again)


def test_too_few_people_are_one_sentence(ingested: Path) -> None:
    lines = (ingested / "labels.csv").read_text().splitlines()
    (ingested / "labels.csv").write_text("\n".join(lines[:13]) + "\n")
    with pytest.raises(UsageError, match="needs at least 10 people"):
        run(ingested)
