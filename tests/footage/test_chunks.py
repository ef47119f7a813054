"""Long recordings in chunks: the same rows whatever their length, who reads them when, and what was killed meanwhile."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.catalog.inputs import read_catalog
from pipeline.decoding.dividing import NOT_AS_WHOLE
from pipeline.errors import UsageError
from pipeline.footage import run
from pipeline.footage.commit import Committer
from pipeline.footage.detect import DetectPeople
from pipeline.footage.recordings import Clocks, Plan, name_pattern, plan_recordings
from pipeline.footage.summary import FootageSummary
from pipeline.footage.tracks import track
from pipeline.gallery.detections import FORGOTTEN_BOXES_SCHEMA
from pipeline.gallery.forgotten import Forgotten
from pipeline.gallery.gallery import Gallery
from pipeline.ingest.gallery_sampling import gallery_sampling
from pipeline.ingest.source_changes import STILL_CHANGING, with_states
from tests.footage.made_up import candidates, footage_gallery
from tests.footage.red_squares import RedSquares, worker, write_square

PATTERN = "{camera}/%Y%m%d_%H%M%S.mp4"
GROUPS = {"g": "10", "keyint_min": "10", "bf": "2", "x264-params": "scenecut=0:open-gop=0"}  # a key frame a second, and B frames
OPEN = GROUPS | {"x264-params": "scenecut=0:open-gop=1"}
SECONDS, SHORT_LOOKED_AT = 23, 10


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two long recordings that continue each other, and a short one of another camera."""
    folder = tmp_path_factory.mktemp("nvr")
    write_square(folder / "gate/20260701_120000.mp4", 10 * SECONDS, GROUPS)
    write_square(folder / "gate/20260701_120023.mp4", 10 * SECONDS, GROUPS | {"crf": "20"})
    write_square(folder / "hall/20260701_120000.mp4", 20, GROUPS)
    return folder


def plan_of(folder: Path) -> Plan:
    return plan_recordings(read_catalog(folder), name_pattern(PATTERN), Clocks())


def ingested(
    folder: Path,
    gallery: Gallery,
    workers: list[DetectPeople],
    seconds: float,
    most: int | None = None,
    seed: int = 0,
    damage: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row,
) -> FootageSummary:
    """What `run._run` does, without Ray: rows go to the workers in a random order, and some answers come twice.

    most: answers after which all is killed. damage: what becomes of an answer on its way.
    """
    summary, rng = FootageSummary(), np.random.default_rng(seed)
    plan = with_states(plan_of(folder).table)
    missing = plan.filter(pa.array([one not in gallery.snapshot().finished_sources() for one in plan["source_id"].to_pylist()]))
    committer = Committer(missing, gallery, gallery.snapshot(), summary, seconds)
    answers = 0
    while len(asked := committer.asked()):
        for place in rng.permutation(len(asked)).tolist():
            (detected,) = workers[rng.integers(len(workers))](asked.slice(place, 1))
            rows = [damage(row) for row in detected.to_pylist()]
            for _ in range(1 + int(rng.integers(2))):
                committer.add(pa.Table.from_pylist(rows, schema=detected.schema))
            answers += 1
            if answers == most:
                return summary
    committer.flush()
    assert committer.taken == len(missing)
    track(gallery)
    return summary


def rows_of(gallery: Gallery) -> list[tuple[dict[str, Any], pa.Table]]:
    """Recordings and their detections, without what is another in every gallery."""
    rows = gallery.snapshot().recordings.drop_columns(["shard", "ingested_at"]).to_pylist()
    return [
        (row, gallery.read_detections(shard))
        for row, shard in zip(rows, gallery.snapshot().recordings["shard"].to_pylist(), strict=True)
    ]


def longest(gallery: Gallery) -> tuple[int, tuple[dict[str, Any], pa.Table]]:
    """One of those that are read in chunks, and its place among all."""
    return max(enumerate(rows_of(gallery)), key=lambda item: len(item[1][1]))


def files(gallery: Gallery) -> set[str]:
    return {file.name for file, _ in gallery.location.join("detections").infos()}


@pytest.fixture(scope="module")
def whole(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    gallery = footage_gallery(tmp_path_factory.mktemp("whole") / "gallery")
    summary = ingested(recordings, gallery, [worker(gallery)], 3600.0)
    assert summary.in_chunks == 0 and len(candidates(gallery)) > 4
    return gallery


@pytest.mark.parametrize(("seconds", "chunks", "workers"), [(2.0, 22, 2), (7.0, 6, 1), (7.0, 6, 2)])
def test_rows_tracks_and_ids_do_not_depend_on_the_chunks(
    seconds: float, chunks: int, workers: int, whole: Gallery, gallery: Gallery, recordings: Path
) -> None:
    summary = ingested(recordings, gallery, [worker(gallery) for _ in range(workers)], seconds, seed=workers)
    assert rows_of(gallery) == rows_of(whole) and candidates(gallery) == candidates(whole)
    assert (summary.in_chunks, summary.chunks, summary.undivided) == (2, chunks, {})
    assert len(files(gallery)) == 3  # no draft is left


def test_after_a_kill_only_what_was_not_finished_is_read_again(whole: Gallery, gallery: Gallery, recordings: Path) -> None:
    ingested(recordings, gallery, [worker(gallery)], 2.0, most=13)  # three recordings looked at, ten chunks read
    there = files(gallery)
    assert len(gallery.snapshot().recordings) == 0 and len(there) == 10 + 1
    done = sum(len(gallery.read_detections(name)) for name in there) - SHORT_LOOKED_AT  # one detection a frame
    looked: list[int] = []
    again = worker(gallery)
    again.told.add = looked.append  # type: ignore[method-assign]
    ingested(recordings, gallery, [again], 2.0)
    assert rows_of(gallery) == rows_of(whole) and candidates(gallery) == candidates(whole)
    assert sum(looked) == 5 * 2 * SECONDS + SHORT_LOOKED_AT - done
    assert len(files(gallery) & there) == 1  # what was read of the short one, but not committed


def test_who_was_forgotten_meanwhile_is_not_in_a_draft_of_before(whole: Gallery, gallery: Gallery, recordings: Path) -> None:
    """A draft that holds somebody who was forgotten since is not used."""
    place, (row, detections) = longest(whole)
    gone = detections.slice(40, 1).to_pylist()[0]
    box = {"ingested_hash": row["ingested_hash"], **{name: gone[name] for name in ("frame_index", "x", "y", "w", "h")}}
    ingested(recordings, gallery, [worker(gallery)], 7.0, most=3 + 6 - 1)
    boxes = pa.Table.from_pylist([box], schema=FORGOTTEN_BOXES_SCHEMA)
    ingested(recordings, gallery, [worker(gallery, boxes=boxes)], 7.0)
    left = rows_of(gallery)[place][1]
    assert len(left) == len(detections) - 1 and gone["frame_index"] not in left["frame_index"].to_pylist()


def test_a_forgotten_recording_is_refused_before_it_is_read(whole: Gallery, gallery: Gallery, recordings: Path) -> None:
    digest = longest(whole)[1][0]["ingested_hash"]
    ingested(recordings, gallery, [worker(gallery, Forgotten(rows=frozenset({("x", "/x", digest, None)})))], 7.0)
    assert gallery.snapshot().rejects["reason"].to_pylist() == ["forgotten"]
    assert digest not in gallery.snapshot().recordings["ingested_hash"].to_pylist()


def test_a_recording_that_cannot_be_cut_safely_is_read_whole_and_it_is_said(gallery: Gallery, tmp_path: Path) -> None:
    write_square(tmp_path / "nvr/gate/20260701_120000.mp4", 120, OPEN)
    summary = ingested(tmp_path / "nvr", gallery, [worker(gallery)], 2.0)
    ((uri, why),) = summary.undivided.items()
    assert uri.endswith("120000.mp4") and "key frame" in why and summary.in_chunks == 0
    assert rows_of(gallery)[0][0]["source_frames"] == 120


@pytest.mark.parametrize("reason", [NOT_AS_WHOLE, "decoder_crash"])
def test_a_chunk_that_cannot_be_used_has_the_whole_recording_read(
    reason: str, whole: Gallery, gallery: Gallery, recordings: Path
) -> None:
    def damage(row: dict[str, Any]) -> dict[str, Any]:
        bad = row["stretch"] is not None and row["stretch"]["number"] == 1 and row["uri"].endswith("120000.mp4")
        return row | {"reason": reason, "message": "as it happens"} if bad else row

    summary = ingested(recordings, gallery, [worker(gallery)], 7.0, damage=damage)
    assert rows_of(gallery) == rows_of(whole) and candidates(gallery) == candidates(whole)
    assert list(summary.undivided.values()) == ["as it happens"] and summary.in_chunks == 1 and not summary.reasons


def test_where_drafts_are_gone_the_whole_recording_is_read(whole: Gallery, gallery: Gallery, recordings: Path) -> None:
    """Another ingest of the same recordings ended first, and deleted what both had found."""

    def damage(row: dict[str, Any]) -> dict[str, Any]:
        if row["stretch"] is not None and row["uri"].endswith("120023.mp4"):
            gallery.location.join("detections", row["shard"]).delete()
        return row

    summary = ingested(recordings, gallery, [worker(gallery)], 7.0, damage=damage)
    assert rows_of(gallery) == rows_of(whole) and candidates(gallery) == candidates(whole)
    assert list(summary.undivided.values()) == ["what was found in its chunks was taken away meanwhile"]


def test_a_recording_that_changes_between_its_chunks_is_left(gallery: Gallery, recordings: Path) -> None:
    def damage(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"reason": STILL_CHANGING, "message": ""} if row["stretch"] is not None else row

    summary = ingested(recordings, gallery, [worker(gallery)], 7.0, damage=damage)
    assert (summary.left, summary.done) == (2, 1) and len(gallery.snapshot().recordings) == 1


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_chunks_of_no_length_are_refused(
    minutes: float, gallery: Gallery, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "load_detector", lambda *_, **__: RedSquares())
    with pytest.raises(UsageError, match="cannot be meant"):
        run.ingest_footage(plan_of(recordings), gallery, gallery_sampling(gallery), "red", chunk_minutes=minutes)
