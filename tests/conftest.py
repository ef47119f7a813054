"""Fixtures that several test files share."""

import contextlib
import json
import logging
import os
import platform
import shutil
import signal
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from moto.server import ThreadedMotoServer
from onnx import TensorProto, helper

from pipeline.backbone.spec import BackboneSpec
from pipeline.decoding.sampling import Sampling
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings, frames_table
from pipeline.scoring import compiled
from pipeline.storage.reach import Reach
from tests.faulty_store import FaultyStore

# A shell's background job ignores interrupts, and so would all commands that tests start from it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[2] / "shared"
PROCESSORS = {  # that C sources are compiled for, and what this one must be to run that (`torch.backends.cpu`)
    "native": (),
    "x86-64-v2": ("DEFAULT", "AVX2", "AVX512"),
    "x86-64-v3": ("AVX2", "AVX512"),
    "x86-64-v4": ("AVX512",),
}
TOY_SIDECAR = {"height": 8, "width": 4, "channels": "RGB", "scale": 255, "mean": [0.5, 0.25, 0], "std": [0.5, 0.25, 1], "dim": 3}


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests wait for a good part of their time, for Ray to start, for stores and for timers."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the files, those that start Ray or run a benchmark come first, then those of many tests.

    They are the long ones: begun last, one would run on alone when everything else is done.
    """
    if not hasattr(config, "workerinput"):
        return
    slow = {item.path for item in items if item.get_closest_marker("ray") or item.get_closest_marker("cluster")}
    slow |= {item.path for item in items if item.path.parent.name == "benchmarks"}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -tests[item.path]))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where pytest itself failed, it would keep to itself which tests had failed until then."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if exitstatus == pytest.ExitCode.INTERNAL_ERROR and reporter is not None:
        reporter.summary_failures()
        reporter.summary_errors()
        reporter.short_test_summary()


def save_toy_backbone(path: Path) -> Path:
    """Write an ONNX network whose 3 features are the mean of each channel as it receives them, and its sidecar TOY_SIDECAR."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 8, 4])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    node = helper.make_node("ReduceMean", ["images", "axes"], ["features"], keepdims=0)
    graph = helper.make_graph([node], "mean", [images], [features], [axes])
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    path.with_suffix(".json").write_text(json.dumps(TOY_SIDECAR))
    return path


def compile_for(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """C sources are compiled for one of PROCESSORS from here on: lesser ones have narrower vectors. Skips where it cannot run."""
    able = PROCESSORS[processor]
    if able and (platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability() not in able):
        pytest.skip(f"this processor cannot run what is compiled for {processor}")
    monkeypatch.setattr(compiled, "PROCESSOR", processor)
    if compiled.library("pair_kernel") is None:
        pytest.skip(f"no compiled kernel: {compiled.why_not('pair_kernel')}")


@pytest.fixture(params=list(PROCESSORS))
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What C sources are compiled for."""
    compile_for(request.param, monkeypatch)
    return request.param


@pytest.fixture(autouse=True)
def scheduling() -> Iterator[None]:
    """No test leaves its process ahead of all others, as SVT-AV1 does: what runs beside it then starves."""
    before = os.sched_getscheduler(0)
    yield
    assert os.sched_getscheduler(0) == before


def touch(root: Path, *names: str) -> None:
    """Make empty files below a folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def reaching(sampling: Sampling, uri: str) -> Sampling:
    """The sampling of somebody who named the endpoint of a uri."""
    return replace(sampling, endpoints=Reach.of(uri).endpoints)


def toy_spec(dim: int = 24) -> BackboneSpec:
    """A backbone that is never loaded: galleries of made-up features name it."""
    return BackboneSpec("toy", None, "0" * 64, 32, 16, "RGB", 255.0, (0.5,) * 3, (0.5,) * 3, dim)


def people_features(people: int, videos_each: int, dim: int, seed: int) -> list[tuple[str, np.ndarray]]:
    """(person id, features float16 [n, dim]) of made-up videos of 3 to 40 frames, scattered about a centre a person."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, dim))
    return [
        (f"p{person:02d}", (centre + 0.4 * rng.normal(size=(rng.integers(3, 41), dim))).astype(np.float16))
        for person, centre in enumerate(centres)
        for _ in range(videos_each)
    ]


def add_videos(gallery: Gallery, videos: list[tuple[str, np.ndarray]], first: int = 0, videos_a_shard: int = 7) -> None:
    """Commit made-up videos v000, v001, ...: two cameras in turn, one a minute."""
    start = datetime(2026, 3, 1, 12, tzinfo=UTC)
    for at in range(0, len(videos), videos_a_shard):
        part = videos[at : at + videos_a_shard]
        ids = [f"v{first + at + i:03d}" for i in range(len(part))]
        lengths = [len(features) for _, features in part]
        index = np.concatenate([np.arange(n) for n in lengths])
        shard = gallery.write_shard(frames_table(ids, lengths, index, index / 10, np.concatenate([f for _, f in part])))
        rows = [
            {
                "video_id": video_id,
                "uri": f"/videos/{video_id}.mp4",
                "camera_id": f"cam{(first + at + i) % 2}",
                "start_time": start + timedelta(minutes=first + at + i),
                "person_id": person,
                "sampled_frames": len(features),
                "shard": shard,
                "first_row": sum(lengths[:i]),
                "source_id": video_id,
            }
            for i, (video_id, (person, features)) in enumerate(zip(ids, part, strict=True))
        ]
        gallery.commit(pa.Table.from_pylist(rows, schema=VIDEOS_SCHEMA), REJECTS_SCHEMA.empty_table())


@pytest.fixture
def toy_backbone(tmp_path: Path) -> Path:
    """The file of `save_toy_backbone`, mean.onnx in the test's own folder, with its sidecar beside it."""
    return save_toy_backbone(tmp_path / "mean.onnx")


@pytest.fixture
def toy_gallery(tmp_path: Path) -> Gallery:
    """40 made-up videos of 10 people in shards of 7."""
    gallery = Gallery.open_or_create(tmp_path / "gallery", GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, people_features(10, 4, 24, seed=1))
    return gallery


@contextlib.contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """With one, sums are in a fixed order, and nothing waits for threads over small batches."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For all tests of a module: see `threads_of_torch`."""
    with threads_of_torch(1):
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium, driven by Playwright. What asks for it is skipped where one of them is not installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright, of the dev extra, is not installed")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=flags)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    """An S3 server on loopback, and its credentials in the environment; it holds an empty bucket named `bucket`."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            endpoint = f"http://{host}:{port}"
            urllib.request.urlopen(f"{endpoint}/moto-api/reset", data=b"").close()  # noqa: S310 - all servers of a process share their buckets
            boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="bucket")
            yield endpoint
        finally:
            server.stop()


@pytest.fixture(scope="module")
def store(s3_endpoint: str) -> Iterator[FaultyStore]:
    """A proxy before the S3 server, which counts, and fails when it is told to."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    host, _, port = s3_endpoint.removeprefix("http://").partition(":")
    proxy = FaultyStore((host, int(port)))
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def s3_options(s3_endpoint: str) -> str:
    """The connection options of `s3_endpoint` in a uri."""
    return f"?endpoint_override={s3_endpoint}&region=us-east-1"
