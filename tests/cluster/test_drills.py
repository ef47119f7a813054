"""Kills on a real two-node cluster: whatever dies, a gallery is that of an undisturbed run, and a search's answer is whole."""

import json
import multiprocessing
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.index.version_files import index_versions
from pipeline.index.versions import open_index
from pipeline.retention.compact import compact
from pipeline.retention.verify import verify_gallery
from pipeline.search.partitions import opened_partitions
from pipeline.search.search import search
from pipeline.search.targets import gallery_target
from pipeline.settings import IndexSettings, SearchSettings
from tests.cluster_drills import Reader, account, ingest_under_kills, undisturbed, write_clips
from tests.conftest import add_videos, people_features, save_toy_backbone, toy_spec
from tests.two_nodes import WORKER, TwoNodes, find_processes, two_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
EVERYTHING = SearchSettings(top=1000, shortlist=None, evidence=False)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    with two_nodes(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def test_an_ingest_loses_and_doubles_nothing_whatever_is_killed(cluster: TwoNodes, tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "clips", 24, 60)
    backbone = save_toy_backbone(tmp_path / "mean.onnx")
    expected = undisturbed(clips, backbone)
    kinds = ("embed actor", "decoder child", "node", "driver")
    drill = ingest_under_kills(cluster, kinds, clips, backbone, tmp_path / "gallery", expected, seed=1)
    print(drill)
    assert drill.kills and drill.polls > 10
    assert drill.clean(), f"{drill.account} {drill.reader_faults}\n{drill.output}"


def test_two_ingests_and_compactions_of_one_gallery_at_the_same_time(cluster: TwoNodes, tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "clips", 16, 40)
    backbone = save_toy_backbone(tmp_path / "mean.onnx")
    expected = undisturbed(clips, backbone)
    place = tmp_path / "gallery"
    flags = ["--gallery", place, "--backbone", backbone, "--decoders", "1", "--embedders", "1", "--shard-pieces", "1"]
    reader = Reader(place, expected)
    reader.start()
    output = [tmp_path / "one.log", tmp_path / "other.log"]
    drivers = [cluster.run("-m", "jobs.ingest", clips, *flags, stdout=log.open("w"), stderr=subprocess.STDOUT) for log in output]
    compactions = 0
    while any(driver.poll() is None for driver in drivers):
        if (place / "commits").exists():
            compact(Gallery.open(place))
            compactions += 1
        time.sleep(0.2)
    reader.stop()
    assert [driver.returncode for driver in drivers] == [0, 0], "".join(log.read_text() for log in output)
    assert compactions and not reader.faults
    assert account(Gallery.open(place), expected).clean()


def test_a_search_is_whole_whatever_dies_under_it(cluster: TwoNodes, tmp_path: Path) -> None:
    gallery, expected = searchable(tmp_path / "gallery")
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": (tmp_path / "log").open("w")}
    driver = cluster.run("-m", "tests.search_loop", gallery.location.path, "v003", "4", **streams)
    answers: list[dict[str, Any]] = []

    def listen() -> None:
        assert driver.stdout is not None
        for line in driver.stdout:
            if line.startswith("{"):
                answers.append(json.loads(line))

    def more(count: int) -> None:
        wanted, until = len(answers) + count, time.monotonic() + 240
        while len(answers) < wanted and time.monotonic() < until and driver.poll() is None:
            time.sleep(0.05)
        assert len(answers) >= wanted, f"no answer; so far {answers[-3:]}\n{(tmp_path / 'log').read_text()}"

    threading.Thread(target=listen, daemon=True).start()
    try:
        more(2)
        chance = random.Random(2)
        time.sleep(chance.random())
        chance.choice(find_processes(cluster, "search actor"))[1].kill()
        more(3)
        time.sleep(chance.random())
        cluster.kill_node(WORKER)
        cluster.start_node(WORKER)
        more(3)
    finally:
        driver.kill()
        driver.wait()
    whole = [answer for answer in answers if "leads" in answer]
    print([answer.get("error", round(answer["seconds"], 1)) for answer in answers])
    for answer in whole:
        assert [video for video, _ in answer["leads"]] == [video for video, _ in expected]
        assert [score for _, score in answer["leads"]] == pytest.approx([score for _, score in expected], abs=1e-6)
    assert whole and all(
        "search again" in answer["error"] or "partition" in answer["error"] for answer in answers if "error" in answer
    )


def searchable(place: Path) -> tuple[Gallery, list[tuple[str, float]]]:
    """A gallery with an index of eight partitions, and the leads for v003."""
    gallery = Gallery.open_or_create(place, GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, people_features(16, 5, 24, seed=1))
    build_index(gallery, IndexSettings(partition_videos=10))
    return gallery, leads(gallery)


def leads(gallery: Gallery) -> list[tuple[str, float]]:
    index = open_index(gallery)
    with opened_partitions(gallery, index, actors=0) as partitions:
        result = search(gallery, index, partitions, gallery_target(gallery, "v003"), EVERYTHING)
    return [(lead.video.video_id, lead.score) for lead in result.leads]


def state(gallery: Gallery) -> tuple[list[str], list[str]]:
    return index_versions(gallery), gallery.position()


def for_ever(work: str, place: str, begun: Any) -> None:
    begun.set()
    while True:
        if work == "index":
            build_index(Gallery.open(place), IndexSettings(partition_videos=10))
        else:
            compact(Gallery.open(place), keep_indexes=3)


@pytest.mark.parametrize("work", ["index", "compact"])
def test_a_search_sees_whole_versions_while_builds_and_compactions_are_killed(tmp_path: Path, work: str) -> None:
    gallery, expected = searchable(tmp_path / "gallery")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pipeline.retention.compact"])
    chance, ended = random.Random(3), threading.Event()
    faults, searches = [], 0

    def search_all_the_time() -> None:
        nonlocal searches
        while not ended.is_set():
            try:
                found = leads(gallery)
                searches += 1
            except PipelineError as error:
                faults.append(str(error))
                continue
            if [video for video, _ in found] != [video for video, _ in expected]:
                faults.append(f"{len(found)} leads instead of {len(expected)}, or others")

    reader = threading.Thread(target=search_all_the_time)
    reader.start()
    kills, one_takes = 0, 0.0
    try:
        while kills < 10:
            begun = processes.Event()
            child = processes.Process(target=for_ever, args=(work, gallery.location.path, begun), daemon=True)
            child.start()
            assert begun.wait(120)
            began = time.monotonic()
            if not one_takes:  # the first one publishes; the others are killed within about as much time
                before = state(gallery)
                while state(gallery) == before and time.monotonic() - began < 120:
                    time.sleep(0.01)
                one_takes = time.monotonic() - began
            time.sleep(chance.uniform(0, 1.2 * one_takes))
            child.kill()
            child.join()
            kills += 1
    finally:
        ended.set()
        reader.join()
    print(f"{kills} kills, {searches} searches, one takes {one_takes:.1f} s, {state(gallery)}")
    assert searches > 5 and not faults, faults
    assert verify_gallery(gallery) == []
    assert [video for video, _ in leads(gallery)] == [video for video, _ in expected]
