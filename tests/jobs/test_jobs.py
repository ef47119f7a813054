"""The commands as a person runs them: a rendered network from ingest to report, interruptions, and what bad input is told."""

import contextlib
import csv
import gc
import io
import json
import os
import pickle
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import av
import cv2
import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import ray
import typer.main
from onnx import TensorProto, helper

from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.catalog.inputs import default_video_id
from pipeline.coattention.head import save_head
from pipeline.gallery.audit import read_records
from pipeline.gallery.gallery import Gallery, GallerySettings, feature_matrix
from pipeline.index.build import build_index
from pipeline.index.version_files import FORMAT
from pipeline.rendering.network import render_network
from pipeline.retention.forget import Selection, forget
from pipeline.search.results import RESULTS_SCHEMA
from tests.conftest import add_videos, people_features
from tests.decoding.test_video import write_video

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "ingest",
    "index",
    "search",
    "follow",
    "evaluate",
    "forget",
    "compact",
    "status",
    "policy",
    "render",
    "demo",
    "serve",
    "token",
)
SIZE = ("--input-size", "128x64")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The last line on stderr, where an error stands."""
        return (self.err.strip().splitlines() or [""])[-1]


def command(name: str, *arguments: str) -> Ended:
    """Run a command within this process, as `python -m jobs.NAME` does, only seconds faster; Ray must not be started."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    no_ray = mock.patch.object(ray, "init", side_effect=AssertionError("Ray was started"))
    arguments_given = mock.patch.object(sys, "argv", [f"jobs.{name}", *arguments])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), no_ray, arguments_given, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # runpy warns of modules that were imported before
        try:
            runpy.run_module(f"jobs.{name}", run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()
            code = 1
        finally:
            gc.unfreeze()  # this process goes on
    return Ended(code, out.getvalue(), err.getvalue())


def process(name: str, *arguments: str) -> Ended:
    """Run a command as a process of its own."""
    line = [sys.executable, "-m", f"jobs.{name}", *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def waited_for(condition: Callable[[], object], seconds: float) -> bool:
    """Whether a condition comes true within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


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


def found(out: Path) -> list[dict]:
    return pq.read_table(out / "results.parquet").to_pylist()


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


# ---- bad input: one sentence and an exit code


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the command lines of the table name: {t} a folder full of bad things, {g} a good gallery with an index."""
    t = tmp_path_factory.mktemp("bad")
    spec = find_backbone(DEFAULT, (64, 32))
    settings = GallerySettings(spec, 10.0, None)
    good, unindexed = (Gallery.open_or_create(t / name, settings) for name in ("gallery", "unindexed"))
    Gallery.open_or_create(t / "without videos", settings)
    add_videos(good, people_features(3, 4, spec.dim, seed=1))
    add_videos(unindexed, people_features(1, 2, spec.dim, seed=1))
    index = build_index(good)
    save_head(index.head, t / "foreign head", {}, "osnet@0123456789abcdef")
    (t / "head.pt").write_bytes(pickle.dumps({}))
    (t / "pickled head").mkdir()
    (t / "pickled head" / "model.pt").write_bytes(pickle.dumps({}))

    def copied(name: str, file: str, content: str) -> None:
        shutil.copytree(t / "gallery", t / name)
        next((t / name).glob(file)).write_text(content)

    copied("cut gallery", "gallery.json", (t / "gallery" / "gallery.json").read_text()[:80])
    copied("list gallery", "gallery.json", "[]")
    fields = json.loads((t / "gallery" / "gallery.json").read_text())
    copied("rateless gallery", "gallery.json", json.dumps({**fields, "rate": None}))
    copied("cut commit", "commits/*.json", '{"kind": "ing')
    copied("bare commit", "commits/*.json", "{}")
    copied("list commit", "commits/*.json", "[]")
    copied("list manifest", "index/*/manifest.json", "[]")
    copied("bare manifest", "index/*/manifest.json", json.dumps({"format": FORMAT, "version": index.version}))

    write_video(t / "good.mp4")
    (t / "text.mp4").write_text("not a video")
    (t / "empty.mp4").touch()
    (t / "good.csv").write_text("uri\ngood.mp4\n")
    (t / "folder").mkdir()
    (t / "texts").mkdir()
    (t / "texts" / "notes.txt").write_text("nothing")
    (t / "others").mkdir()
    (t / "others" / "mine.txt").write_text("keep")
    (t / "no uri.csv").write_text("video_id\na\n")
    (t / "no rows.csv").write_text("uri\n")
    (t / "same uri.csv").write_text("uri,video_id\na.mp4,a\na.mp4,b\n")
    (t / "same id.csv").write_text("uri,video_id\na.mp4,a\nb.mp4,a\n")
    (t / "time.csv").write_text("uri,start_time\na.mp4,yesterday\n")
    (t / "latin.csv").write_bytes("uri\nMüller.mp4\n".encode("latin-1"))
    (t / "json.jsonl").write_text('{"uri": "a.mp4"}\n{"uri"\n')
    (t / "damaged.parquet").write_bytes(b"PAR1 and then nothing PAR1")
    (t / "input.xyz").write_text("what is this")
    (t / "net.pth").write_bytes(pickle.dumps({}))
    (t / "junk.onnx").write_bytes(b"junk")
    sidecar = {"height": 64, "width": 32, "channels": "RGB", "scale": 255, "mean": [0, 0, 0], "std": [1, 1, 1], "dim": 3}
    (t / "junk.json").write_text(json.dumps(sidecar))
    for name in ("alone", "mean"):
        save_mean_network(t / f"{name}.onnx")
    (t / "mean.json").write_text(json.dumps({**sidecar, "dim": 7}))
    return {"t": str(t), "g": str(t / "gallery")}


def save_mean_network(path: Path) -> None:
    """An ONNX network whose 3 features are the mean of each channel."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 64, 32])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    node = helper.make_node("ReduceMean", ["images", "axes"], ["features"], keepdims=0)
    graph = helper.make_graph([node], "mean", [images], [features], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))


INGEST = "ingest|{t}/good.csv|--gallery|{t}/new|--input-size|64x32"
SEARCH = "search|id:v000|--gallery|{g}"

# (command line with | between its words, exit code, words that the sentence has)
BAD_INPUT = [
    ("ingest|{t}/absent|--gallery|{t}/new", 2, "no file or folder {t}/absent"),
    ("ingest||--gallery|{t}/new", 2, "cannot be a path: it is empty"),
    ("ingest|{t}/folder|--gallery|{t}/new", 2, "{t}/folder holds no video"),
    ("ingest|{t}/texts|--gallery|{t}/new", 2, "{t}/texts holds no video"),
    ("ingest|{t}/input.xyz|--gallery|{t}/new", 2, "{t}/input.xyz is no input"),
    ("ingest|{t}/no uri.csv|--gallery|{t}/new", 2, "has no column uri"),
    ("ingest|{t}/no rows.csv|--gallery|{t}/new", 2, "has no rows"),
    ("ingest|{t}/same uri.csv|--gallery|{t}/new", 2, "1 uri values stand more than once"),
    ("ingest|{t}/same id.csv|--gallery|{t}/new", 2, "1 video_id values stand more than once"),
    ("ingest|{t}/time.csv|--gallery|{t}/new", 2, "row 1 of {t}/time.csv: start_time 'yesterday'"),
    ("ingest|{t}/latin.csv|--gallery|{t}/new", 2, "{t}/latin.csv is not UTF-8"),
    ("ingest|{t}/json.jsonl|--gallery|{t}/new", 2, "line 2 of {t}/json.jsonl is not JSON"),
    ("ingest|{t}/damaged.parquet|--gallery|{t}/new", 2, "{t}/damaged.parquet cannot be read as Parquet"),
    ("ingest|{t}/good.csv|--gallery|{t}/new|--backbone|resnet50", 2, "a backbone is 'osnet_x0_25_distilled' or"),
    ("ingest|{t}/good.csv|--gallery|{t}/new|--backbone|{t}/absent.onnx", 2, "backbone {t}/absent.onnx does not exist"),
    ("ingest|{t}/good.csv|--gallery|{t}/new|--backbone|{t}/net.pth", 2, "not '{t}/net.pth'; other formats are not loaded"),
    ("ingest|{t}/good.csv|--gallery|{t}/new|--backbone|{t}/alone.onnx", 2, "needs a sidecar alone.json"),
    ("ingest|{t}/good.csv|--gallery|{t}/new|--backbone|{t}/mean.onnx", 1, "features of shape (8, 3) for 8 frames, not (8, 7)"),
    ("ingest|{t}/good.csv|--gallery|{t}/new|--backbone|{t}/junk.onnx", 1, "{t}/junk.onnx is not an ONNX network"),
    ("ingest|{t}/good.csv|--gallery|{t}/new|--input-size|abc", 2, "HEIGHTxWIDTH in pixels, for example 256x128, not 'abc'"),
    ("ingest|{t}/good.csv|--gallery|{t}/new|--input-size|00x64", 2, "height must be a positive number"),
    (INGEST + "|--sample-rate|0", 2, "rate must be a positive number, not 0"),
    (INGEST + "|--sample-rate|-1", 2, "rate must be a positive number, not -1"),
    (INGEST + "|--sample-rate|nan", 2, "rate must be a positive number, not nan"),
    (INGEST + "|--image-rate|0", 2, "image rate must be a positive number"),
    (INGEST + "|--time-limit|0", 2, "time limit must be a positive number"),
    (INGEST + "|--memory-limit|0", 2, "memory limit must be a positive number"),
    (INGEST + "|--decoders|-1", 2, "decoders"),
    (INGEST + "|--embedders|0", 2, "embedders"),
    (INGEST + "|--shard-pieces|0", 2, "'--shard-pieces'"),
    ("ingest|{t}/good.csv", 2, "Missing option '--gallery'"),
    ("ingest|{t}/good.csv|--gallery|{t}/input.xyz", 2, "{t}/input.xyz is a file; a gallery is a folder"),
    ("ingest|{t}/good.csv|--gallery|{t}/input.xyz/gallery", 1, "{t}/input.xyz/gallery"),
    ("ingest|{t}/good.csv|--gallery|/proc/nothing/gallery", 1, "cannot write /proc/nothing/gallery"),
    ("ingest|{t}/good.csv|--gallery|{t}/others", 2, "{t}/others is not empty and not a gallery"),
    ("ingest|{t}/good.csv|--gallery|ftp://host/gallery", 2, "unknown scheme ftp://"),
    ("ingest|{t}/good.csv|--gallery|s3://key:secret@bucket/gallery", 2, "carries credentials"),
    ("ingest|{t}/good.csv|--gallery|{g}|--input-size|64x32|--sample-rate|5", 2, "sample rate 5.0 instead of 10.0"),
    ("ingest|{t}/good.csv|--gallery|{g}|--input-size|64x48", 2, "made with other settings: backbone osnet_x0_25_distilled@"),
    ("ingest|{t}/good.csv|--gallery|{t}/cut gallery|--input-size|64x32", 1, "{t}/cut gallery/gallery.json is damaged"),
    ("index|--gallery|{t}/absent", 2, "{t}/absent is not a gallery"),
    ("index|--gallery|{t}/without videos", 1, "has no videos yet; run jobs.ingest first"),
    ("index|--gallery|{g}|--segment-length|0", 2, "a segment needs at least 1 frame, not 0"),
    ("index|--gallery|{g}|--stride|-2", 2, "the stride between segments is at least 1 frame, not -2"),
    ("index|--gallery|{g}|--partition-videos|0", 2, "a partition holds at least 1 video"),
    ("index|--gallery|{g}|--head|{t}/absent", 1, "{t}/absent is not a folder: a head is a folder"),
    ("index|--gallery|{g}|--head|", 2, "'' cannot be a path"),
    ("index|--gallery|{g}|--head|{t}/foreign head", 1, "belongs to the backbone osnet@0123456789abcdef; the gallery has"),
    ("index|--gallery|{g}|--head|{t}/head.pt", 1, "pickled weights, which are never opened"),
    ("index|--gallery|{g}|--head|{t}/pickled head", 1, "there is model.pt, but pickled weights are never opened"),
    ("search|--gallery|{g}", 2, "Missing argument 'TARGET'"),
    ("search|id:v000|--gallery|{t}/absent", 2, "{t}/absent is not a gallery"),
    ("search|id:v000|--gallery|{t}/input.xyz", 2, "{t}/input.xyz is not a gallery"),
    ("search|id:v000|--gallery|{t}/unindexed", 2, "{t}/unindexed has no index yet; run jobs.index first"),
    ("search|id:v000|--gallery|{t}/cut gallery", 1, "{t}/cut gallery/gallery.json is damaged"),
    ("search|id:v000|--gallery|{t}/list gallery", 1, "{t}/list gallery/gallery.json is damaged"),
    ("search|id:v000|--gallery|{t}/rateless gallery", 1, "{t}/rateless gallery/gallery.json is damaged"),
    ("search|id:v000|--gallery|{t}/cut commit", 1, "the commit {t}/cut commit/commits/"),
    ("search|id:v000|--gallery|{t}/bare commit", 1, "the commit {t}/bare commit/commits/"),
    ("search|id:v000|--gallery|{t}/list commit", 1, "the commit {t}/list commit/commits/"),
    ("search|id:v000|--gallery|{t}/list manifest", 1, "the index {t}/list manifest/index/"),
    ("search|id:v000|--gallery|{t}/bare manifest", 1, "the index {t}/bare manifest/index/"),
    (SEARCH + "|--index-version|old", 2, "has no index version 'old'; it has "),
    ("search|id:v999|--gallery|{g}", 2, "has no video 'v999'"),
    ("search|{t}/absent.mp4|--gallery|{g}", 2, "the target cannot be used: {t}/absent.mp4 does not exist"),
    ("search|{t}/text.mp4|--gallery|{g}", 2, "the target cannot be used: {t}/text.mp4 is not in a video format"),
    ("search|{t}/empty.mp4|--gallery|{g}", 2, "the target cannot be used: {t}/empty.mp4 is an empty file"),
    ("search|{t}/folder|--gallery|{g}", 2, "the target cannot be used: {t}/folder has no frames"),
    ("search|{t}/good.mp4|--gallery|{g}|--backbone|{t}/alone.onnx", 2, "needs a sidecar alone.json"),
    (SEARCH + "|id:v000", 2, "the target v000 is given twice"),
    (SEARCH + "|--camera|cam9", 2, "the gallery has no camera 'cam9'; it has cam0, cam1"),
    (SEARCH + "|--after|2026-03-02|--before|2026-03-01", 2, "the time window is empty"),
    (SEARCH + "|--between|22-2", 2, "hours of the day are two times such as 22:00-02:00, not '22-2'"),
    (SEARCH + "|--between|10:00-25:00", 2, "hours of the day are two times such as 22:00-02:00, not '10:00-25:00'"),
    (SEARCH + "|--between|00:00-24:00", 2, "a daily window from 00:00 to 00:00 is empty; name two times"),
    (SEARCH + "|--zone|Mars/Olympus", 2, "'Mars/Olympus' is no time zone; name one of the time zone database"),
    (SEARCH + "|--zone|../etc/passwd", 2, "'../etc/passwd' is no time zone"),
    (SEARCH + "|--zone|", 2, "'' is no time zone"),
    (SEARCH + "|--after|nonsense", 2, "'nonsense' is not a time in ISO 8601"),
    (SEARCH + "|--after|0001-01-01T00:00:00+14:00", 2, "'0001-01-01T00:00:00+14:00' is not a time"),
    (SEARCH + "|--shortlist|0", 2, "--shortlist is a number of videos, a share such as 5%, or all, not '0'"),
    (SEARCH + "|--shortlist|" + 5000 * "1", 2, "--shortlist is a number of videos, a share such as 5%, or all, not '1"),
    (SEARCH + "|--time-limit|1e9", 2, "a time limit is at most 1000000 seconds, not 1e+09"),
    (SEARCH + "|--shortlist|-1", 2, "--shortlist is a number of videos, a share such as 5%, or all, not '-1'"),
    (SEARCH + "|--shortlist|abc", 2, "--shortlist is a number of videos, a share such as 5%, or all, not 'abc'"),
    (SEARCH + "|--patience|0", 2, "--patience is a number of videos of at least 1, or all, not '0'"),
    (SEARCH + "|--patience|some", 2, "--patience is a number of videos of at least 1, or all, not 'some'"),
    (SEARCH + "|--shortlist|²", 2, "--shortlist is a number of videos, a share such as 5%, or all, not '²'"),
    (SEARCH + "|--ratio|0", 2, "above 0 and at most 1, not 0.0"),
    (SEARCH + "|--ratio|2", 2, "above 0 and at most 1, not 2.0"),
    (SEARCH + "|--threshold|nan", 2, "threshold must be from 0 to 1, as scores are, not nan"),
    (SEARCH + "|--aggregate|max", 2, "by mean or sum, not by 'max'"),
    (SEARCH + "|--top|0", 2, "top"),
    (SEARCH + "|--top|many", 2, "'--top'"),
    (SEARCH + "|--pairs|0", 2, "pairs"),
    (SEARCH + "|--target-length|0", 2, "a segment needs at least 1 frame, not 0"),
    (SEARCH + "|--target-stride|0", 2, "the stride between segments is at least 1 frame, not 0"),
    (SEARCH + "|--actors|-1", 2, "actors"),
    (SEARCH + "|--time-limit|0", 2, "time limit must be a positive number"),
    (SEARCH + "|--out|{t}/input.xyz", 2, "{t}/input.xyz is a file"),
    (SEARCH + "|--out|/proc/nothing/out", 1, "/proc/nothing/out"),
    (SEARCH + "|--nonsense", 2, "No such option: --nonsense"),
    ("status|--gallery|{t}/absent", 2, "{t}/absent is not a gallery"),
    ("status|--gallery|{t}/rateless gallery", 1, "{t}/rateless gallery/gallery.json is damaged"),
    ("status|--gallery|{t}/list manifest|--verify", 1, "{t}/list manifest/index/"),
    ("forget|--gallery|{g}|--video-id|v000", 2, "a reason is needed: it goes into the audit log; nothing was forgotten"),
    ("forget|--gallery|{g}|--reason|x", 2, "say what to forget"),
    ("forget|--gallery|{g}|--reason|x|--video-id|v999", 2, "has no video 'v999'; nothing was forgotten"),
    ("forget|--gallery|{g}|--reason|x|--before|soon", 2, "'soon' is not a time in ISO 8601"),
    ("forget|--gallery|{g}|--reason| |--video-id|v000", 2, "reason"),
    ("forget|--gallery|{g}|--reason|x|--camera|cam1|--before|2000-01-01", 2, "one at a time; nothing was forgotten"),
    ("compact|--gallery|{t}/absent", 2, "{t}/absent is not a gallery"),
    ("compact|--gallery|{t}/unindexed|--orphan-hours|-1", 2, "orphan"),
    ("compact|--gallery|{t}/unindexed|--orphan-hours|nan", 2, "orphan"),
    ("status|--gallery|{g}|--audit-head|1:ab", 2, "--audit-head is compared with the log by --verify only"),
    ("render|s3://bucket/network", 2, "not into a bucket"),
    ("occlude|{t}|--out|s3://bucket/copies", 2, "not into a bucket"),
    ("render|{t}/others", 2, "{t}/others holds files that are not a rendered network"),
    ("render|{t}/input.xyz", 2, "{t}/input.xyz"),
    ("render|{t}/input.xyz/network", 1, "{t}/input.xyz/network"),
]


def files_below(folder: str) -> dict[Path, float]:
    return {path: path.stat().st_mtime for path in Path(folder).rglob("*") if "audit" not in path.parts and path.is_file()}


@pytest.mark.parametrize(("line", "code", "words"), BAD_INPUT, ids=[line for line, _, _ in BAD_INPUT])
def test_bad_input_is_told_in_one_sentence(places: dict[str, str], line: str, code: int, words: str) -> None:
    name, *arguments = line.format(**places).split("|")
    before = files_below(places["t"])
    ended = command(name, *arguments)
    assert "Traceback" not in ended.err, ended.err
    assert ended.code == code
    assert words.format(**places) in ended.sentence
    if ended.err.startswith("Usage:"):
        assert ended.sentence.startswith("Error: ") and len(ended.err.splitlines()) <= 4
    else:
        assert ended.sentence.startswith("error: ") and len(ended.err.splitlines()) <= 3
    assert ended.out == "" or code == 1
    assert files_below(places["t"]) == before, "something was written or deleted"


def test_hours_of_the_day_and_times_are_of_the_zone_and_stand_in_the_audit_log(places: dict[str, str], tmp_path: Path) -> None:
    # v000 to v011 begin a minute apart from 12:00 UTC on: 21:00 in Tokyo.
    for flags, inside in (
        (("--between", "21:03-21:05"), {"v003", "v004"}),
        (("--between", "21:10-24:00"), {"v010", "v011"}),
        (("--after", "2026-03-01T21:09"), {"v009", "v010", "v011"}),
        (("--after", "2026-03-01T12:10Z"), {"v010", "v011"}),
    ):
        asked = ("id:v000", "--gallery", places["g"], "--zone", "Asia/Tokyo", *flags, "--out", str(tmp_path), "--no-report")
        ended = command("search", *asked, "--shortlist", "all")
        assert ended.code == 0 and {row["video_id"] for row in found(tmp_path)} == inside
        assert f"2026-03-01 21:{max(inside)[2:]}:00 JST" in ended.out
        record = read_records(Gallery.open(places["g"]))[-1]
        assert (record["untimed"], record["settings"]["zone"]) == (0, "Asia/Tokyo")
        assert [name for name in ("after", "between") if record["settings"][name]] == [flags[0].removeprefix("--")]
    assert command("search", "id:v000", "--gallery", places["g"]).code == 0
    assert read_records(Gallery.open(places["g"]))[-1]["untimed"] is None


@pytest.mark.parametrize("line", ["ingest|{t}/absent|--gallery|{t}/new", SEARCH + "|--shortlist|abc", "search|--gallery|{g}"])
def test_a_process_ends_as_the_command_within_this_one_does(places: dict[str, str], line: str) -> None:
    name, *arguments = line.format(**places).split("|")
    here, there = command(name, *arguments), process(name, *arguments)
    assert (here.code, here.out) == (there.code, there.out)
    assert here.sentence == there.sentence and len(here.err.splitlines()) == len(there.err.splitlines())


@pytest.mark.parametrize("name", ["ingest", "search", "policy", "render"])
def test_a_command_that_needs_no_pytorch_does_not_wait_for_it(name: str) -> None:
    code = f"import sys, jobs.{name}; print(*{{'torch', 'faiss'}} & sys.modules.keys())"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_flag(name: str) -> None:
    shown = command(name, "--help")
    assert shown.code == 0 and shown.err == ""
    text = " ".join(shown.out.split())
    app = typer.Typer(add_completion=False)
    app.command()(runpy.run_module(f"jobs.{name}")[name])
    for parameter in typer.main.get_command(app).params:
        assert parameter.param_type_name == "argument" or parameter.opts[0] in text
        explanation = getattr(parameter, "help", None)
        assert explanation and " ".join(explanation.split()) in text, f"{parameter.name} is not explained"


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
