"""Ingest: every source ends in exactly one place, whatever its blocks, chunks, retries and failures were."""

import csv
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.ingest import describe, show
from jobs.progress import RenewedLine
from pipeline.backbone.runtime import load_backbone
from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.catalog.inputs import REJECT_REASONS, SOURCE_SCHEMA, Catalog, read_catalog
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.source_hash import source_hash
from pipeline.decoding.video import Event
from pipeline.errors import PipelineError
from pipeline.gallery.forgotten import Forgotten, write_forgotten
from pipeline.gallery.gallery import Gallery, GallerySettings, feature_matrix
from pipeline.index.build import build_index
from pipeline.index.freshness import index_lag
from pipeline.ingest import listing
from pipeline.ingest import progress as progress_module
from pipeline.ingest import run as ingest_module
from pipeline.ingest import stages as stages_module
from pipeline.ingest.commit import Committer
from pipeline.ingest.run import IngestProgress, IngestSummary, Workers, ingest
from pipeline.ingest.stages import (
    CHUNKS_SCHEMA,
    EMBEDDED_SCHEMA,
    WRITTEN_SCHEMA,
    DecodeAndEmbed,
    EmbedChunks,
    decode_source,
    with_features,
    write_chunks,
)
from pipeline.retention.compact import compact
from pipeline.retention.forget import Selection, forget, take_forgotten
from pipeline.retention.remains import files_with_forgotten
from pipeline.settings import IndexSettings
from tests.conftest import toy_spec
from tests.decoding.in_process import read_chunks
from tests.decoding.test_video import write_video

SPEC = find_backbone(DEFAULT, (64, 32))
SAMPLING = Sampling(height=64, width=32)
SETTINGS = GallerySettings(SPEC, 10.0, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven good videos of different length, one with two boxed tracks and one track outside the frame, and five bad ones."""
    folder = tmp_path_factory.mktemp("videos")
    rows = [{"uri": write_video(folder / f"good{i}.mp4", frames=5 + 9 * i).name, "video_id": f"good{i}"} for i in range(7)]
    write_video(folder / "crowd.mp4", frames=20)
    boxes = [f"{i},1,4,4,20,40" for i in range(1, 11)] + [f"{i},2,30,0,30,48" for i in range(5, 21)] + ["3,3,500,500,20,40"]
    (folder / "crowd.txt").write_text("\n".join(boxes))
    rows.append({"uri": "crowd.mp4", "video_id": "crowd", "boxes_uri": "crowd.txt", "person_id": "ignored"})
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video")
    (folder / "cut.mp4").write_bytes((folder / "good6.mp4").read_bytes()[:-700])
    bad = ["empty.mp4", "text.mp4", "cut.mp4", "absent.mp4"]
    rows += [{"uri": name, "video_id": name.removesuffix(".mp4")} for name in bad]
    write_video(folder / "noboxes.mp4")
    rows.append({"uri": "noboxes.mp4", "video_id": "noboxes", "boxes_uri": "absent.txt"})
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["uri", "video_id", "boxes_uri", "person_id"])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def manifest(folder: Path, text: str) -> Catalog:
    (folder / "m.csv").write_text(text)
    return read_catalog(str(folder / "m.csv"))


def row_of(gallery: Gallery, video_id: str) -> dict:
    videos = gallery.snapshot().videos
    return videos.filter(pc.equal(videos["video_id"], video_id)).to_pylist()[0]


def contents(gallery: Gallery) -> dict[str, np.ndarray]:
    snapshot = gallery.snapshot()
    return {row["video_id"]: feature_matrix(gallery.read_video(row)) for row in snapshot.videos.to_pylist()}


GOOD = {*(f"good{i}" for i in range(7)), "crowd#1", "crowd#2"}
BAD = {"empty": "empty", "text": "not_a_video", "cut": "truncated", "absent": "missing", "noboxes": "boxes_missing"}


@dataclass(frozen=True)
class Ingested:
    """The folder in a gallery. told: the progress that was told, as (done, total)."""

    gallery: Gallery
    summary: IngestSummary
    told: list[tuple[int, int]]


@pytest.fixture(scope="module")
def ingested(running_ray: None, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    gallery = Gallery.open_or_create(tmp_path_factory.mktemp("ingested") / "g", SETTINGS)
    told: list[tuple[int, int]] = []
    catalog, workers = read_catalog(str(folder / "manifest.csv")), Workers(shard_chunks=4)
    summary = ingest(catalog, gallery, SAMPLING, workers, progress=lambda state: told.append((state.done, state.total)))
    return Ingested(gallery, summary, told)


@pytest.mark.ray
def test_every_input_ends_in_one_place_and_a_second_ingest_adds_nothing(ingested: Ingested, folder: Path) -> None:
    gallery, summary, snapshot = ingested.gallery, ingested.summary, ingested.gallery.snapshot()
    assert set(snapshot.videos["video_id"].to_pylist()) == GOOD
    rejects = dict(zip(snapshot.rejects["video_id"].to_pylist(), snapshot.rejects["reason"].to_pylist(), strict=True))
    assert rejects == {**BAD, "crowd#3": "boxes_outside_frame"}
    assert (summary.sources, summary.candidates, summary.rejected, summary.unaccounted) == (13, 9, 6, 0)
    assert ingested.told[-1] == (13, 13)
    assert all(row["person_id"] is None for row in snapshot.videos.to_pylist())
    files = sorted(Path(gallery.location.path).rglob("*"))
    for row in gallery.snapshot().videos.to_pylist():
        assert row["ingested_hash"] == source_hash(row["uri"]) is not None
    again = ingest(read_catalog(str(folder / "manifest.csv")), gallery, SAMPLING)
    assert (again.already, again.candidates) == (13, 0)
    assert sorted(Path(gallery.location.path).rglob("*")) == files


def test_an_actor_that_decodes_and_embeds_keeps_its_decoder_from_block_to_block(folder: Path) -> None:
    counter = SimpleNamespace(add=SimpleNamespace(remote=lambda frames: None))
    actor = DecodeAndEmbed(SAMPLING, Forgotten(), SPEC, 1, counter)
    catalog = read_catalog(str(folder / "manifest.csv")).table
    processes, kinds = set(), []
    for start in range(0, len(catalog), 4):
        for table in actor(catalog.slice(start, 4)):
            kinds += table["kind"].to_pylist()
        processes.add(actor.decode.decoder._process and actor.decode.decoder._process.pid)
    assert len(processes) == 1 and None not in processes
    assert kinds.count("end") == len(catalog) and kinds.count("chunk") >= 9


def test_an_actor_that_was_left_half_way_begins_anew_with_the_next_block(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages_module, "TABLE_BYTES", 0)  # a table a row
    counter = SimpleNamespace(add=SimpleNamespace(remote=lambda frames: None))
    actor = DecodeAndEmbed(replace(SAMPLING, chunk=3), Forgotten(), SPEC, 1, counter)
    catalog = read_catalog(str(folder / "manifest.csv")).table
    ids = catalog["source_id"].to_pylist()
    block = catalog.take([ids.index("good6"), ids.index("good3"), ids.index("good2")])
    whole = pa.concat_tables(list(actor(block)))
    for taken in (1, 5, len(whole) - 1):
        left = actor(block)
        begun = list(itertools.islice(left, taken))
        assert pa.concat_tables(begun).equals(whole.slice(0, taken))
        left.close()  # type: ignore[attr-defined]
        assert pa.concat_tables(list(actor(block))).equals(whole)


def test_the_counter_is_told_of_all_frames_but_not_of_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [100.0], []
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    embed = EmbedChunks(SPEC, 1, SimpleNamespace(add=SimpleNamespace(remote=told.append)))
    for seconds, frames in ((0, 3), (0.4, 5), (0.4, 0), (0.4, 2), (5, 0), (0, 4)):
        now[0] += seconds
        assert embed.embed(np.zeros((frames, 64, 32, 3), np.uint8)).shape == (frames, 512)
    assert told == [3, 7, 4]


@pytest.mark.ray
def test_features_are_those_of_the_backbone_on_the_decoded_frames(ingested: Ingested, folder: Path) -> None:
    backbone = load_backbone(SPEC)
    with Decoder(SAMPLING) as decoder:
        source = {"source_id": "good3", "uri": str(folder / "good3.mp4"), "boxes_uri": None, "frame_rate": None}
        frames = next(decode_source(decoder, source))["frames"]
    stored = contents(ingested.gallery)["good3"]
    assert np.abs(stored.astype(np.float32) - backbone.embed(frames).astype(np.float32)).max() < 2e-3 * np.abs(stored).max()


@pytest.mark.ray
def test_blocks_chunks_and_shards_do_not_change_what_is_stored(
    ingested: Ingested, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = read_catalog(str(folder / "manifest.csv"))
    other = Gallery.open_or_create(tmp_path / "other", SETTINGS)
    monkeypatch.setattr(listing, "SOURCES_PER_BLOCK", 1)
    ingest(catalog, other, replace(SAMPLING, chunk=3), Workers(decoders=2, shard_chunks=2))  # videos cut into many shards
    assert len(list(Path(other.location.path, "frames").iterdir())) > 10
    expected, found = contents(ingested.gallery), contents(other)
    assert expected.keys() == found.keys()
    for video_id, features in expected.items():
        assert np.allclose(features.astype(np.float32), found[video_id].astype(np.float32), rtol=1e-2, atol=2e-3), video_id


@pytest.mark.ray
def test_rounds_and_pools_that_grow_change_nothing(
    ingested: Ingested, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = read_catalog(str(folder / "manifest.csv"))
    other = Gallery.open_or_create(tmp_path / "other", SETTINGS)
    monkeypatch.setattr(ingest_module, "ROUND_SOURCES", -(-len(catalog.table) // 2))
    told: list[tuple[int, int]] = []
    summary = ingest(
        catalog, other, SAMPLING, Workers(embedders=(1, 2)), progress=lambda state: told.append((state.done, state.total))
    )
    assert told == sorted(told) and told[-1] == (len(catalog.table), len(catalog.table))
    compared = ("sources", "refused", "usable", "candidates", "frames", "reasons", "unaccounted")
    assert [getattr(summary, name) for name in compared] == [getattr(ingested.summary, name) for name in compared]
    expected, found = contents(ingested.gallery), contents(other)
    assert expected.keys() == found.keys()


@pytest.mark.ray
def test_rejected_videos_are_tried_again_when_asked_or_changed(running_ray: None, folder: Path, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes((folder / "good1.mp4").read_bytes())
    (tmp_path / "a.mp4").write_bytes(b"")
    gallery = Gallery.open_or_create(tmp_path / "g", SETTINGS)
    ingest(read_catalog(str(tmp_path / "a.mp4")), gallery, SAMPLING)
    assert len(gallery.snapshot().rejects) == 1
    assert ingest(read_catalog(str(tmp_path / "a.mp4")), gallery, SAMPLING).rejected == 0  # not tried again
    assert ingest(read_catalog(str(tmp_path / "a.mp4")), gallery, SAMPLING, retry_rejected=True).rejected == 1
    (tmp_path / "a.mp4").write_bytes((folder / "good1.mp4").read_bytes())  # an upload that was completed
    assert ingest(read_catalog(str(tmp_path / "a.mp4")), gallery, SAMPLING).candidates == 1
    snapshot = gallery.snapshot()
    assert (len(snapshot.videos), len(snapshot.rejects)) == (1, 0)


@pytest.mark.ray
def test_a_gallery_that_cannot_be_written_is_one_sentence_and_resumable(running_ray: None, folder: Path, tmp_path: Path) -> None:
    gallery = Gallery.open_or_create(tmp_path / "g", SETTINGS)
    (tmp_path / "g" / "frames").write_text("a file in the way")
    catalog = read_catalog(str(folder / "good0.mp4"))
    with pytest.raises(
        PipelineError, match=r"the ingest stopped: cannot write .*/frames/.*; 0 of 1 inputs are committed; run the same"
    ):
        ingest(catalog, gallery, SAMPLING)
    (tmp_path / "g" / "frames").unlink()
    assert ingest(catalog, gallery, SAMPLING).candidates == 1


def chunk_row(video_id: str, chunk: int, frames: int, value: float) -> dict:
    feature = np.full((frames, 24), value, np.float16).tobytes()
    index = list(range(10 * chunk, 10 * chunk + frames))
    row = dict.fromkeys(CHUNKS_SCHEMA.names) | {"kind": "chunk", "source_id": video_id, "video_id": video_id, "chunk": chunk}
    row |= {"frame_index": index, "time_s": [i / 10 for i in index], "fps": 10.0, "source_frames": 99, "width": 8, "height": 8}
    return {name: value for name, value in row.items() if name != "frames"} | {"feature": feature}


def written(gallery: Gallery, rows: list[dict]) -> pa.Table:
    return write_chunks(pa.Table.from_pylist(rows, schema=EMBEDDED_SCHEMA), gallery)


def end_row(source_id: str, chunks: int, **values: object) -> dict:
    row = dict.fromkeys([name for name in CHUNKS_SCHEMA.names if name != "frames"])
    return row | {
        "kind": "end",
        "source_id": source_id,
        "chunks": chunks,
        "rejects": 0,
        "fatal": False,
        "feature": None,
        **values,
    }


@pytest.fixture
def committer(tmp_path: Path) -> Committer:
    gallery = Gallery.open_or_create(tmp_path / "g", GallerySettings(toy_spec(), 10.0, None))
    catalog = pa.Table.from_pylist([{"source_id": name, "uri": f"/{name}"} for name in "abc"], schema=SOURCE_SCHEMA)
    return Committer(gallery, catalog)


def test_nothing_is_committed_before_a_video_is_complete(committer: Committer) -> None:
    gallery = committer.gallery
    first = written(gallery, [chunk_row("a", 0, 10, 1), chunk_row("b", 0, 10, 2), end_row("b", 1)])
    assert first.schema.equals(WRITTEN_SCHEMA)
    committer.add(first)
    assert list(contents(gallery)) == ["b"] and committer.committed == {"b"}


def test_rows_that_come_twice_count_once(committer: Committer) -> None:
    gallery = committer.gallery
    twice = written(gallery, [chunk_row("a", 0, 10, 1), chunk_row("a", 0, 10, 1)])
    committer.add(twice)
    committer.add(written(gallery, [chunk_row("a", 0, 10, 1), end_row("a", 1)]))
    committer.add(written(gallery, [chunk_row("a", 0, 10, 1), end_row("a", 1)]))
    assert contents(gallery)["a"].shape == (10, 24) and gallery.position() == 1
    assert committer.committed == {"a"}


def test_a_video_that_fails_half_way_leaves_only_its_reject(committer: Committer) -> None:
    gallery = committer.gallery
    committer.add(written(gallery, [chunk_row("a", 0, 10, 1)]))
    committer.add(written(gallery, [end_row("a", 1, fatal=True, video_id="a", reason="truncated", message="cut off")]))
    assert contents(gallery) == {} and gallery.snapshot().rejects["reason"].to_pylist() == ["truncated"]


def test_the_log_names_what_was_rejected_and_counts_what_was_committed(
    committer: Committer, caplog: pytest.LogCaptureFixture
) -> None:
    refused = end_row("b", 0, fatal=True, video_id="b", reason="truncated", message="cut off")
    with caplog.at_level("INFO", logger="coattention.ingest"):
        committer.add(written(committer.gallery, [chunk_row("a", 0, 10, 1)]))
        assert caplog.records == []  # nothing is complete yet
        committer.add(written(committer.gallery, [end_row("a", 1), refused]))
    rejected, committed = [vars(record) | {"text": record.getMessage()} for record in caplog.records]
    assert (rejected["levelname"], rejected["text"]) == ("WARNING", "rejected: cut off")
    assert (rejected["source_id"], rejected["video_id"], rejected["reason"]) == ("b", "b", "truncated")
    assert committed["text"] == "committed"
    assert [committed[name] for name in ("sources", "videos", "frames", "rejected")] == [2, 1, 10, 1]


@pytest.mark.ray
def test_a_video_whose_chunks_lie_in_several_shards_becomes_one(running_ray: None, committer: Committer) -> None:
    gallery = committer.gallery
    committer.add(written(gallery, [chunk_row("a", 1, 5, 2), chunk_row("b", 0, 3, 9)]))
    committer.add(written(gallery, [chunk_row("a", 0, 10, 1), end_row("a", 2)]))
    row = gallery.snapshot().videos.to_pylist()[0]
    frames = gallery.read_video(row)
    assert frames["frame_index"].to_pylist() == list(range(15))
    assert feature_matrix(frames)[:, 0].tolist() == [1.0] * 10 + [2.0] * 5


def test_an_id_of_another_video_is_refused_by_name(committer: Committer, tmp_path: Path) -> None:
    committer.add(written(committer.gallery, [chunk_row("a", 0, 10, 1), end_row("a", 1)]))
    (tmp_path / "other.mp4").write_bytes(b"x")
    (tmp_path / "m.csv").write_text("uri,video_id\nother.mp4,a\n")
    with pytest.raises(PipelineError, match="1 ids belong to other videos of the gallery: a "):
        ingest_module.missing_sources(read_catalog(str(tmp_path / "m.csv")).table, committer.gallery.snapshot(), False)


def test_reasons_are_of_the_fixed_vocabulary() -> None:
    assert {*BAD.values(), "boxes_outside_frame"} <= set(REJECT_REASONS)


def test_what_was_forgotten_does_not_come_back_under_another_id(committer: Committer, tmp_path: Path) -> None:
    gallery = committer.gallery
    committer.add(written(gallery, [chunk_row("a", 0, 10, 1), end_row("a", 1)]))
    forget(gallery, Selection(("a",)), "a test")
    renamed = pa.Table.from_pylist([{"source_id": "x", "uri": "/a"}, {"source_id": "y", "uri": "/y"}], schema=SOURCE_SCHEMA)
    missing, already = ingest_module.missing_sources(renamed, gallery.snapshot(), retry_rejected=True)
    assert missing["source_id"].to_pylist() == ["y"] and already == 1


def test_bytes_that_are_forgotten_while_they_are_ingested_are_rejected_and_not_retried(committer: Committer) -> None:
    gallery = committer.gallery
    committer.add(written(gallery, [chunk_row("a", 0, 10, 1), end_row("a", 1, source_hash="file:aa")]))
    rest = written(
        gallery, [chunk_row("b", 0, 10, 1), chunk_row("c", 0, 5, 1), end_row("b", 1, source_hash="file:aa"), end_row("c", 1)]
    )
    forget(gallery, Selection(("a",)), "a test")
    committer.add(rest)
    snapshot = gallery.snapshot()
    assert snapshot.videos["video_id"].to_pylist() == ["c"] and committer.reasons == {"forgotten": 1}
    assert [(row["video_id"], row["reason"]) for row in snapshot.rejects.to_pylist()] == [("b", "forgotten")]
    again = pa.Table.from_pylist([{"source_id": "b", "uri": "/b"}, {"source_id": "c", "uri": "/c"}], schema=SOURCE_SCHEMA)
    assert ingest_module.missing_sources(again, gallery.snapshot(), retry_rejected=True)[1] == 2
    assert files_with_forgotten(gallery) and compact(gallery) and not files_with_forgotten(gallery)


class Decoded:
    """In place of a decoder: the events of a source, and how many were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def events(self, uri: str, boxes_uri: str | None, frame_rate: float | None) -> Iterator[Event]:
        for event in read_chunks(uri, boxes_uri, replace(SAMPLING, chunk=3)):
            self.taken += 1
            yield event


def test_of_a_forgotten_source_nothing_is_embedded_and_of_a_forgotten_track_no_frame(folder: Path) -> None:
    crowd = {"source_id": "crowd", "uri": f"{folder}/crowd.mp4", "boxes_uri": f"{folder}/crowd.txt", "frame_rate": None}
    content, decoder = source_hash(crowd["uri"]), Decoded()
    *before, end = decode_source(decoder, crowd, frozenset({(content, None)}))
    assert (end["kind"], end["fatal"], end["reason"]) == ("end", True, "forgotten")
    assert "chunk" not in {row["kind"] for row in before} and decoder.taken == len(before) + 1  # it ends at the first frames
    rows = list(decode_source(decoder, crowd, frozenset({(content, 2), ("file:another", None)})))
    assert {row["track"] for row in rows if row["kind"] == "chunk"} == {1}
    rejects = {row["video_id"]: row["reason"] for row in rows if row["kind"] == "reject"}
    assert rejects == {"crowd#2": "forgotten", "crowd#3": "boxes_outside_frame"}
    assert (rows[-1]["chunks"], rows[-1]["rejects"]) == (sum(row["kind"] == "chunk" for row in rows), 2)
    whole = list(decode_source(decoder, crowd | {"boxes_uri": None}, frozenset({(content, 2)})))
    assert {row["kind"] for row in whole} == {"chunk", "end"}  # one track is not the recording


@pytest.mark.ray
def test_a_copy_of_a_forgotten_file_gives_no_video_here_nor_in_a_gallery_that_was_told(
    running_ray: None, folder: Path, tmp_path: Path
) -> None:
    for name in ("mount", "elsewhere"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "good1.mp4", tmp_path / name / f"{name}.mp4")
    write_video(tmp_path / "elsewhere/other.mp4", frames=7)
    here, there = (Gallery.open_or_create(tmp_path / name, SETTINGS) for name in ("here", "there"))
    ingest(read_catalog(str(tmp_path / "mount")), here, SAMPLING)
    forget(here, Selection(tuple(here.snapshot().videos["video_id"].to_pylist())), "asked to")
    write_forgotten(here.snapshot().tombstones, str(tmp_path / "list"))
    take_forgotten(there, str(tmp_path / "list"))
    for gallery in (here, there):
        summary = ingest(read_catalog(str(tmp_path / "elsewhere")), gallery, SAMPLING)
        assert (summary.candidates, summary.reasons) == (1, {"forgotten": 1})
        shards = Path(gallery.location.path, "frames").iterdir()
        assert max(len(pc.unique(pq.read_table(shard)["video_id"])) for shard in shards) == 1
        again = ingest(read_catalog(str(tmp_path / "elsewhere")), gallery, SAMPLING, retry_rejected=True)
        assert (again.already, again.candidates) == (2, 0)


def test_one_video_has_one_id_and_one_id_one_video(committer: Committer) -> None:
    gallery = committer.gallery
    committer.add(written(gallery, [chunk_row("a", 0, 10, 1), end_row("a", 1), chunk_row("b", 0, 5, 1), end_row("b", 1)]))
    renamed = pa.Table.from_pylist([{"source_id": "x", "uri": "/a"}], schema=SOURCE_SCHEMA)
    with pytest.raises(PipelineError, match=r"under other ids: /a \(a\)"):
        ingest_module.missing_sources(renamed, gallery.snapshot(), False)
    forget(gallery, Selection(("b",)), "a test")
    reused = pa.Table.from_pylist([{"source_id": "b", "uri": "/new"}], schema=SOURCE_SCHEMA)
    with pytest.raises(PipelineError, match="ids belonged to videos that were forgotten: b"):
        ingest_module.missing_sources(reused, gallery.snapshot(), False)


def test_features_that_are_not_finite_make_a_reject(committer: Committer) -> None:
    row = chunk_row("a", 0, 10, 1)
    features = np.frombuffer(row["feature"], np.float16).reshape(-1, 24).copy()
    features[3, 5] = np.inf
    end = np.empty((0, 24), np.float16)
    committer.add(write_chunks(with_features([(row, features), (end_row("a", 1), end)]), committer.gallery))
    assert contents(committer.gallery) == {} and committer.reasons == {"bad_features": 1}


def test_a_shard_that_went_away_is_not_committed(committer: Committer) -> None:
    rows = written(committer.gallery, [chunk_row("a", 0, 10, 1), end_row("a", 1)])
    for shard in Path(committer.gallery.location.path, "frames").iterdir():
        shard.unlink()
    with pytest.raises(PipelineError, match="went away before it was committed"):
        committer.add(rows)
    assert contents(committer.gallery) == {}


@pytest.mark.parametrize(("decoders", "embedders", "cpus"), [(1, 1, 1), (1, 1, 2), (8, 8, 8), (32, 16, 64), (40, 1, 2)])
def test_what_the_stages_reserve_fits_the_cluster(decoders: int, embedders: int, cpus: int) -> None:
    decode, embed, write = ingest_module._cpu_shares(decoders, embedders, cpus)
    assert decoders * decode + embedders * embed + write <= cpus and min(decode, embed, write) > 0


@pytest.mark.parametrize(("seconds", "words"), [(1e-5, "speed unknown"), (0.0, "speed unknown"), (2.0, "36 frames/s")])
def test_a_speed_is_told_once_there_is_one(capsys: pytest.CaptureFixture[str], seconds: float, words: str) -> None:
    show(RenewedLine(), IngestProgress(total=137, frames=71, seconds=seconds))
    assert f"71 frames, {words}, time left unknown" in capsys.readouterr().err


@pytest.mark.ray
def test_changes_are_named_and_with_update_the_new_videos_stand_for_the_old_ones(running_ray: None, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    crowd = write_video(folder / "crowd.mp4", frames=30)
    whole = write_video(tmp_path / "whole.mp4", frames=30).read_bytes()
    (folder / "upload.mp4").write_bytes(whole[:-700])
    write_video(folder / "still.mp4", frames=12)
    (folder / "crowd.txt").write_text("".join(f"{i},{track},4,4,20,40\n" for i in range(1, 21) for track in (1, 2)))
    text = "uri,video_id,boxes_uri,camera_id\ncrowd.mp4,crowd,crowd.txt,\nupload.mp4,upload,,\nstill.mp4,still,,\n"
    gallery = Gallery.open_or_create(tmp_path / "g", SETTINGS)
    ingest(manifest(folder, text), gallery, SAMPLING)
    assert sorted(contents(gallery)) == ["crowd#1", "crowd#2", "still"]
    index = build_index(gallery, IndexSettings())
    before = row_of(gallery, "crowd#1")

    (folder / "upload.mp4").write_bytes(whole)
    (folder / "crowd.txt").write_text("".join(f"{i},1,4,4,20,40\n" for i in range(1, 11)))
    text = text.replace("still,,", "still,,cam7")
    told = ingest(manifest(folder, text), gallery, SAMPLING)
    assert (told.changed, told.updated, told.corrected, told.candidates) == ((str(crowd),), 0, 1, 1)
    words = describe(told, "in", "g", "b")
    assert "1 input has changed since the ingest; --update" in words and f"    {crowd}\n" in words
    assert row_of(gallery, "crowd#1") == before and row_of(gallery, "still")["camera_id"] == "cam7"
    assert not len(gallery.snapshot().rejects)  # the upload was completed and tried again unasked

    commits = gallery.log.head()
    done = ingest(manifest(folder, text), gallery, SAMPLING, update=True)
    assert (done.updated, done.candidates, done.unaccounted, gallery.log.head() - commits) == (1, 1, 0, 1)
    assert sorted(contents(gallery)) == ["crowd#1", "still", "upload"]
    assert row_of(gallery, "crowd#1")["sampled_frames"] == 10 < before["sampled_frames"]
    lag = index_lag(gallery, index)
    assert (lag.missing, lag.outdated) == (1, 3)  # upload; crowd#1 anew, crowd#2 gone, still corrected
    again = ingest(manifest(folder, text), gallery, SAMPLING, update=True)
    assert (again.changed, again.already, again.candidates) == ((), 3, 0)
