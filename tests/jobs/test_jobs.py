"""The commands as a person runs them: a rendered network from ingest to report, and interruptions."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.catalog.inputs import default_video_id
from pipeline.gallery.audit import read_records
from pipeline.gallery.gallery import Gallery, feature_matrix
from pipeline.rendering.network import render_network
from pipeline.retention.forget import Selection, forget
from pipeline.search.results import RESULTS_SCHEMA
from tests.jobs.commands import ROOT, SIZE, Ended, command, found, process, waited_for

# ---- a rendered network, ingested and indexed


@dataclass(frozen=True)
class World:
    """A rendered network in a gallery. clips: manifest rows by video id; ingested, indexed: how those commands ended."""

    manifest: Path
    gallery: Path
    clips: dict[str, dict[str, str]]
    ingested: Ended
    indexed: Ended

    def clip(self, video_id: str) -> Path:
        return self.manifest.parent / self.clips[video_id]["uri"]

    def clips_of(self, choose: Callable[[dict[str, str]], bool], without: str) -> set[str]:
        return {video_id for video_id, row in self.clips.items() if choose(row) and video_id != without}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Five people in three cameras and one full-frame video, with one missing and one unreadable video in the manifest."""
    folder = tmp_path_factory.mktemp("world")
    rendered = render_network(folder / "network", people=5, cameras=3, processes=2)
    with rendered.open(newline="") as file:
        rows = list(csv.DictReader(file))
    (folder / "network" / "text.mp4").write_text("not a video")
    manifest = folder / "network" / "all.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows([*rows, {"uri": "absent.mp4", "video_id": "absent"}, {"uri": "text.mp4", "video_id": "text"}])
    gallery = folder / "gallery"
    ingested = process("ingest", str(manifest), "--gallery", str(gallery), *SIZE, "--strict")
    indexed = process("index", "--gallery", str(gallery))
    clips = {row["video_id"]: row for row in rows if not row["boxes_uri"]}
    return World(manifest, gallery, clips, ingested, indexed)


@pytest.fixture
def own_gallery(world: World, tmp_path: Path) -> Path:
    """A copy of the world's gallery that a test may change."""
    return Path(shutil.copytree(world.gallery, tmp_path / "gallery"))


def searched(world: World, out: Path, *arguments: str, gallery: Path | None = None) -> list[dict]:
    """The rows of results.parquet of a search within this process, without a report."""
    ended = command("search", *arguments, "--gallery", str(gallery or world.gallery), "--out", str(out), "--no-report")
    assert ended.code == 0, ended.err
    return found(out)


def ranking(rows: list[dict]) -> list[tuple]:
    """What two searches for the same must agree on; scores of batches differ in the last bits."""
    return [(row["target_id"], row["rank"], row["video_id"], pytest.approx(row["score"], abs=1e-5)) for row in rows]


def stored_features(gallery: Path) -> dict[str, np.ndarray]:
    opened = Gallery.open(gallery)
    return {row["video_id"]: feature_matrix(opened.read_video(row)) for row in opened.snapshot().videos.to_pylist()}


@pytest.mark.ray
def test_ingest_says_what_it_did_and_strict_exits_with_3_for_rejects(world: World) -> None:
    assert world.ingested.code == 3, world.ingested.err
    candidates = len(Gallery.open(world.gallery).snapshot().videos)
    assert f"{candidates} added" in world.ingested.out and candidates > len(world.clips)
    assert re.search(r"rejected +2\n +1 missing\n +1 not_a_video\n", world.ingested.out)
    assert "Traceback" not in world.ingested.err and "16 inputs" in world.ingested.err


@pytest.mark.ray
def test_index_says_what_it_holds(world: World) -> None:
    assert world.indexed.code == 0, world.indexed.err
    videos = Gallery.open(world.gallery).snapshot().videos
    assert re.search(rf"videos +{len(videos)}, {sum(videos['sampled_frames'].to_pylist())} frames", world.indexed.out)
    assert "No trained head ships for this backbone and none was given" in world.indexed.out


class References(HTMLParser):
    """Everything in a page that a browser would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "poster", "action")]


@pytest.mark.ray
def test_search_writes_tables_by_the_contract_and_a_report_that_opens_offline(world: World, tmp_path: Path) -> None:
    arguments = [
        "id:cam00_p001_0",
        "--gallery",
        str(world.gallery),
        "--out",
        str(tmp_path / "out"),
        "--reason",
        "test of the report",
    ]
    ended = process("search", *arguments)
    assert ended.code == 0 and ended.err == ""
    table = pq.read_table(tmp_path / "out" / "results.parquet")
    assert table.schema.equals(RESULTS_SCHEMA)
    contract = "target_id rank video_id uri camera_id start_time score probability prefilter_rank best_pairs index_version model"
    provenance = "source_hash ingested_hash boxes_uri track calibration gallery gallery_videos audit_head"
    asked = "eligible scored untimed none_probability expected_matches settings filters reason case searched_by searched_at"
    assert table.column_names == [*contract.split(), *provenance.split(), "seen_from", "seen_to", *asked.split(), "strength"]
    rows = table.to_pylist()
    gallery = {row["video_id"]: row for row in Gallery.open(world.gallery).snapshot().videos.to_pylist()}
    assert {row["video_id"] for row in rows} == gallery.keys() - {"cam00_p001_0"}
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert sorted(row["prefilter_rank"] for row in rows) == list(range(1, len(rows) + 1))
    for row in rows:
        assert row["target_id"] == "cam00_p001_0" and 0 <= row["score"] <= 1
        assert {name: row[name] for name in ("uri", "camera_id", "start_time")} == {
            name: gallery[row["video_id"]][name] for name in ("uri", "camera_id", "start_time")
        }
        assert row["index_version"] in world.indexed.out and row["model"] in world.indexed.out
        scores = [pair["score"] for pair in row["best_pairs"]]
        assert 1 <= len(scores) <= 3 and scores == sorted(scores, reverse=True)
        assert all(
            0 <= pair[f"{side}_start_s"] <= pair[f"{side}_end_s"]
            for pair in row["best_pairs"]
            for side in ("target", "candidate")
        )
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        flat = list(csv.DictReader(file))
    assert list(flat[0]) == table.column_names
    assert [(row["video_id"], int(row["rank"]), float(row["score"])) for row in flat] == [
        (row["video_id"], row["rank"], pytest.approx(row["score"], abs=1e-6)) for row in rows
    ]
    for row, of_table in zip(flat, rows, strict=True):
        for pair, full in zip(json.loads(row["best_pairs"]), of_table["best_pairs"], strict=True):
            assert pair == {name: pytest.approx(full[name], rel=1e-5) for name in full if isinstance(full[name], float)}
    page = (tmp_path / "out" / "report.html").read_text()
    references = References(page)
    assert [address for address in references.addresses if not address.startswith(("#", "data:"))] == []
    assert not {"link", "iframe", "object", "embed"} & set(references.tags)
    assert references.tags.count("script") == 1 and page.count('<video src="data:video/mp4;base64,') == 1 + len(rows)
    assert not re.search(r"@import|url\((?![\"']?(data:|#))", page)
    assert page.count("data:image/") > len(rows) and "test of the report" in page
    assert all(row["video_id"] in page for row in rows)
    assert str(tmp_path / "out" / "report.html") in ended.out


@pytest.mark.ray
def test_a_copy_of_a_clip_as_the_target_finds_the_clip_first(world: World, tmp_path: Path) -> None:
    copy = Path(shutil.copy(world.clip("cam01_p002_0"), tmp_path / "seen on a phone.mp4"))
    rows = searched(world, tmp_path / "out", str(copy))
    assert rows[0]["video_id"] == "cam01_p002_0" and rows[0]["target_id"] == default_video_id(str(copy))


@pytest.mark.ray
def test_the_file_of_a_gallery_video_is_not_its_own_result(world: World, tmp_path: Path) -> None:
    rows = searched(world, tmp_path / "out", str(world.clip("cam01_p002_0")))
    assert "cam01_p002_0" not in [row["video_id"] for row in rows] and len(rows) == len(stored_features(world.gallery)) - 1


@pytest.mark.ray
def test_a_folder_of_images_is_a_target(world: World, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    with av.open(str(world.clip("cam01_p002_0"))) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % 3 == 0:
                cv2.imwrite(str(images / f"{number:04d}.png"), frame.to_ndarray(format="bgr24"))
    rows = searched(world, tmp_path / "out", str(images))
    assert rows[0]["video_id"] == "cam01_p002_0"


@pytest.mark.ray
def test_a_track_of_a_full_frame_video_is_a_target_and_finds_its_neighbours(world: World, tmp_path: Path) -> None:
    tracks = sorted(video_id for video_id in stored_features(world.gallery) if "#" in video_id)
    rows = searched(world, tmp_path / "out", f"id:{tracks[0]}")
    assert rows[0]["target_id"] == tracks[0] and {row["video_id"] for row in rows} >= set(tracks[1:])


@pytest.mark.ray
def test_top_and_shortlist_say_how_many_leads_there_are(world: World, tmp_path: Path) -> None:
    alone = ("--neighbours", "0")  # a lead that speaks for others sees those that are scored
    everything = searched(world, tmp_path / "all", "id:cam00_p001_0", "--top", "100000", "--shortlist", "all", *alone)
    assert len(everything) == len(stored_features(world.gallery)) - 1
    scores = {row["video_id"]: row["score"] for row in everything}
    assert len(searched(world, tmp_path / "top", "id:cam00_p001_0", "--top", "2")) == 2
    few = searched(world, tmp_path / "few", "id:cam00_p001_0", "--top", "1", "--shortlist", "9", "--patience", "1")
    assert [row["video_id"] for row in few] == [everything[0]["video_id"]]
    short = searched(world, tmp_path / "short", "id:cam00_p001_0", "--top", "100000", "--shortlist", "4", *alone)
    assert {row["prefilter_rank"] for row in short} == {1, 2, 3, 4}
    assert all(row["score"] == pytest.approx(scores[row["video_id"]], abs=1e-6) for row in short)


@pytest.mark.ray
def test_filters_leave_only_their_cameras_and_times(world: World, tmp_path: Path) -> None:
    target = "cam00_p001_0"
    for number, cameras in enumerate([("cam01",), ("cam00", "cam02")]):
        flags = [flag for camera in cameras for flag in ("--camera", camera)]
        rows = searched(world, tmp_path / f"camera{number}", f"id:{target}", *flags)
        assert {row["video_id"] for row in rows} == world.clips_of(
            lambda row, cameras=cameras: row["camera_id"] in cameras, target
        )
    times = sorted(row["start_time"] for row in world.clips.values())
    after, before = times[3], times[-3]
    rows = searched(world, tmp_path / "times", f"id:{target}", "--after", after, "--before", before)
    inside = {row["video_id"] for row in rows if "#" not in row["video_id"]}
    assert inside == world.clips_of(lambda row: after <= row["start_time"] < before, target)
    local = after.replace("Z", "+00:00")
    again = searched(world, tmp_path / "zone", f"id:{target}", "--after", local, "--before", before)
    assert ranking(again) == ranking(rows)
    nothing = command("search", f"id:{target}", "--gallery", str(world.gallery), "--after", "2100-01-01")
    assert nothing.code == 0 and "0 of" in nothing.out


@pytest.mark.ray
def test_two_targets_are_ranked_as_each_alone(world: World, tmp_path: Path) -> None:
    targets = ["id:cam00_p001_0", str(world.clip("cam01_p002_0"))]
    alone = [row for number, target in enumerate(targets) for row in searched(world, tmp_path / str(number), target)]
    assert ranking(searched(world, tmp_path / "both", *targets)) == ranking(alone)


@pytest.mark.ray
def test_status_tells_what_is_there_and_verify_finds_no_fault(world: World) -> None:
    ended = command("status", "--gallery", str(world.gallery), "--verify")
    assert ended.code == 0 and ended.err == ""
    videos = Gallery.open(world.gallery).snapshot().videos
    assert re.search(
        rf"videos +{len(videos)}, {sum(videos['sampled_frames'].to_pylist())} frames, 4 cameras, 5 labels", ended.out
    )
    assert re.search(r"rejected +2\n +1 missing\n +1 not_a_video\n", ended.out)
    assert "current" in ended.out and "no faults" in ended.out


def cut_short(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def flip_a_bit(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    chunk = pq.ParquetFile(shard).metadata.row_group(0).column(3)
    data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    shard.write_bytes(data)


@pytest.mark.ray
@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, Path.unlink])
def test_verify_finds_a_damaged_shard_and_exits_with_1(own_gallery: Path, damage: Callable[[Path], None]) -> None:
    shard = sorted((own_gallery / "frames").iterdir())[0]
    damage(shard)
    ended = command("status", "--gallery", str(own_gallery), "--verify")
    assert ended.code == 1 and shard.name in ended.out and "Traceback" not in ended.err


@pytest.mark.ray
@pytest.mark.parametrize("file", ["keys.npy", "prefilter.faiss", "model.safetensors", "manifest.json", "videos.arrow"])
def test_verify_finds_a_damaged_index_and_exits_with_1(own_gallery: Path, file: str) -> None:
    (damaged,) = (own_gallery / "index").rglob(file)
    damaged.write_bytes(damaged.read_bytes()[:-7])
    ended = command("status", "--gallery", str(own_gallery), "--verify")
    assert ended.code == 1 and "Traceback" not in ended.err
    assert damaged.parent.name in ended.out + ended.err or damaged.name in ended.out + ended.err


@pytest.mark.ray
def test_verify_finds_an_audit_record_that_was_removed(own_gallery: Path) -> None:
    for target in ("id:cam00_p001_0", "id:cam01_p002_0"):
        assert command("search", target, "--gallery", str(own_gallery)).code == 0
    first = sorted((own_gallery / "audit").iterdir())[0]
    first.unlink()
    ended = command("status", "--gallery", str(own_gallery), "--verify")
    assert ended.code == 1 and "audit log" in ended.out


@pytest.mark.ray
def test_forget_search_compact_search(world: World, own_gallery: Path, tmp_path: Path) -> None:
    gallery, target = str(own_gallery), "id:cam00_p001_0"
    best = searched(world, tmp_path / "before", target, gallery=own_gallery)[0]["video_id"]
    ended = process("forget", "--gallery", gallery, "--video-id", best, "--reason", "asked to")
    assert ended.code == 0 and f"1 videos forgotten: {best}" in ended.out
    after = searched(world, tmp_path / "after", target, gallery=own_gallery)
    assert best not in [row["video_id"] for row in after]
    refused = command("search", f"id:{best}", "--gallery", gallery)
    assert refused.code == 2 and best in refused.sentence
    compacted = process("compact", "--gallery", gallery)
    assert compacted.code == 0 and "run jobs.index" in compacted.out
    assert command("search", target, "--gallery", gallery).sentence.endswith("has no index yet; run jobs.index first")
    assert command("index", "--gallery", gallery).code == 0
    again = searched(world, tmp_path / "again", target, gallery=own_gallery)
    assert {row["video_id"] for row in again} == {row["video_id"] for row in after}
    status = command("status", "--gallery", gallery, "--verify")
    assert status.code == 0 and re.search(r"forgotten +1\n", status.out) and "no faults" in status.out


@pytest.mark.ray
def test_an_index_is_as_current_after_a_compaction_as_before(own_gallery: Path) -> None:
    assert command("compact", "--gallery", str(own_gallery)).code == 0
    ended = command("search", "id:cam00_p001_0", "--gallery", str(own_gallery))
    assert ended.code == 0 and ended.err == ""
    assert "behind" not in command("status", "--gallery", str(own_gallery)).out


@pytest.mark.ray
def test_an_index_that_is_damaged_can_be_built_again(own_gallery: Path) -> None:
    (manifest,) = (own_gallery / "index").rglob("manifest.json")
    manifest.write_text("{")
    rebuilt = command("index", "--gallery", str(own_gallery))
    assert rebuilt.code == 0, rebuilt.err
    assert command("search", "id:cam00_p001_0", "--gallery", str(own_gallery)).code == 0


@pytest.mark.ray
def test_a_second_ingest_does_nothing_and_does_not_start_ray(world: World) -> None:
    files = sorted(world.gallery.rglob("*"))
    ended = command("ingest", str(world.manifest), "--gallery", str(world.gallery), *SIZE)
    assert ended.code == 0, ended.err
    assert "0 added" in ended.out
    assert sorted(path for path in world.gallery.rglob("*") if "audit" not in path.parts) == [
        path for path in files if "audit" not in path.parts
    ]


@pytest.mark.ray
def test_strict_still_exits_with_3_when_the_rejects_are_of_an_earlier_run(world: World) -> None:
    assert command("ingest", str(world.manifest), "--gallery", str(world.gallery), *SIZE, "--strict").code == 3


@pytest.mark.ray
def test_an_ingest_in_which_everything_is_rejected_never_looks_like_success(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.mp4").write_text("not a video")
    (tmp_path / "in" / "empty.mp4").touch()
    arguments = [str(tmp_path / "in"), "--gallery", str(tmp_path / "gallery"), *SIZE]
    first = process("ingest", *arguments)
    assert first.code == 1 and "NOTHING USABLE" in first.out and "Traceback" not in first.err
    assert re.search(r"rejected +2\n +1 empty\n +1 not_a_video\n", first.out)
    second = command("ingest", *arguments)
    assert second.code == 1 and "Traceback" not in second.err


def processes_of(mark: str) -> list[int]:
    """Processes that carry a mark in their environment, as all descendants of one that was started with it do."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts commands in sessions of their own and ends what is left of those at the end of the test."""
    running: list[subprocess.Popen[str]] = []

    def start(name: str, *arguments: str, mark: str = "") -> subprocess.Popen[str]:
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", f"jobs.{name}", *arguments],
                cwd=ROOT,
                env={**os.environ, "TEST_OF_JOBS": mark},
                start_new_session=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return running[-1]

    yield start
    for one in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)
        one.communicate()


@pytest.mark.ray
def test_an_ingest_that_was_killed_goes_on_where_it_was(
    world: World, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    gallery, mark = tmp_path / "gallery", f"mark-{uuid.uuid4().hex}"
    arguments = [str(world.manifest), "--gallery", str(gallery), *SIZE, "--shard-pieces", "1"]
    killed = started("ingest", *arguments, mark=mark)

    def committed() -> bool:
        return bool(list((gallery / "commits").glob("*.json"))) or killed.poll() is not None

    assert waited_for(committed, 150)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait(30) == -signal.SIGKILL, killed.communicate()[1]
    expected = stored_features(world.gallery)
    half = stored_features(gallery)
    assert 0 < len(half) < len(expected)
    assert waited_for(lambda: not processes_of(mark), 60), "processes of the killed ingest are left"
    commits = set((gallery / "commits").iterdir())
    again = process("ingest", *arguments)
    assert again.code == 0, again.err
    assert f"{len(expected) - len(half)} added" in again.out
    assert commits < set((gallery / "commits").iterdir())
    features = stored_features(gallery)
    assert features.keys() == expected.keys()
    for video_id, stored in features.items():  # in other batches, the last bits of a network's results differ
        assert np.allclose(stored.astype(np.float32), expected[video_id].astype(np.float32), rtol=1e-2, atol=2e-3), video_id
    rejects = [Gallery.open(place).snapshot().rejects.select(["video_id", "reason"]) for place in (gallery, world.gallery)]
    assert rejects[0].equals(rejects[1])
    assert command("status", "--gallery", str(gallery), "--verify").code == 0


def test_a_command_that_is_interrupted_says_how_to_go_on(tmp_path: Path, started: Callable[..., subprocess.Popen[str]]) -> None:
    rendering = started("render", str(tmp_path / "network"), "--people", "60")
    assert waited_for(lambda: list((tmp_path / "network").rglob("*.mp4")) or rendering.poll() is not None, 60)
    rendering.send_signal(signal.SIGINT)
    _, err = rendering.communicate(timeout=90)
    assert (rendering.returncode, err) == (130, "error: interrupted; run the same command again to go on\n")


def test_evaluate_judges_every_labelled_video_beside_the_baseline(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.gallery, tmp_path / "out" / "gallery")
    ended = command("evaluate", "--data", str(world.manifest), "--out", str(tmp_path / "out"), *SIZE)
    assert ended.code == 0, ended.err
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {"co-attention", "mean + cosine", "mean + learned metric"} <= set(written["methods"]) and written["rejected"] == 2
    for quality in written["methods"].values():
        assert quality["queries"] + quality["unmatched"] == len(world.clips)
        assert 0 < quality["mean_ap"] <= 1 and list(quality["cmc"]) == ["1", "5", "10", "20"]
    assert "co-attention" in ended.out and "mean + cosine" in ended.out
    assert read_records(Gallery.open(tmp_path / "out" / "gallery"))[-1]["action"] == "evaluate"


def test_evaluate_without_labels_is_refused(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.gallery, tmp_path / "out" / "gallery")
    clip = next(iter(world.clips))
    (tmp_path / "plain.csv").write_text(f"uri,video_id\n{world.clip(clip)},{clip}\n")
    gallery = Gallery.open(tmp_path / "out" / "gallery")
    forget(gallery, Selection(tuple(v for v in world.clips if v != clip)), "a test")
    ended = command("evaluate", "--data", str(tmp_path / "plain.csv"), "--out", str(tmp_path / "out"), *SIZE)
    assert ended.code == 2 and "no query has a match in its ranking" in ended.sentence
