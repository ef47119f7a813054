"""The library as a newcomer meets it: four functions, each loaded when it is first used, and a search that leaves its record."""

import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline.errors import UsageError
from pipeline.gallery.audit import read_records, set_policy
from pipeline.search.open_gallery import OpenGallery
from pipeline.search.run import run
from tests.decoding.test_video import write_video


def test_importing_the_library_loads_nothing() -> None:
    code = "import sys, pipeline; print({name for name in sys.modules if name.startswith(('pipeline.', 'torch', 'ray'))} or None)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert said.stdout.strip() == "None"


def test_the_names_are_the_functions_whatever_was_imported_before() -> None:
    import pipeline.ingest.run
    import pipeline.search.run

    assert pipeline.search_gallery is run and pipeline.open_gallery == OpenGallery.open
    assert all(callable(getattr(pipeline, name)) for name in pipeline.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'serve'"):
        _ = pipeline.serve  # type: ignore[attr-defined]


@pytest.mark.ray
def test_a_newcomer_searches_and_the_search_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("a", "b", "c"):
        write_video(tmp_path / f"videos/{name}.mp4")
    summary = pipeline.ingest_videos(tmp_path / "videos", tmp_path / "gallery")
    assert (summary.usable, summary.refused) == (3, 0)
    gallery = pipeline.open_gallery(tmp_path / "gallery")
    pipeline.build_index(gallery)
    set_policy(gallery, ["reason"])
    target = str(tmp_path / "videos/a.mp4")
    with pytest.raises(UsageError, match="requires --reason"):
        pipeline.search_gallery(gallery, [target])
    answer = pipeline.search_gallery(gallery, [target], reason="a test")
    (result,) = answer.results
    assert len(result.leads) == 2 and result.record.reason == "a test" and answer.lag.missing == 0
    assert result.calibration == "the gallery has 3 videos: too little to judge by"
    table = gallery.search(tmp_path / "videos/a.mp4", reason="a test")
    assert table["video_id"].to_pylist() == [lead.video.video_id for lead in result.leads]
    assert table["source_hash"].to_pylist() == table["ingested_hash"].to_pylist() and None not in table["source_hash"].to_pylist()
    record = next(record for record in reversed(read_records(gallery)) if record["action"] == "search")
    assert (record["reason"], record["results"]) == ("a test", [lead.video.video_id for lead in result.leads])
    with pytest.raises(UsageError):
        pipeline.search_gallery(gallery, ["id:nobody"], reason="a test")
    assert "nobody" in read_records(gallery)[-1]["failed"]
