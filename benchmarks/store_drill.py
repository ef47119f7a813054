"""An object store that throttles, fails, dawdles and cuts connections, and what becomes of operations and commits meanwhile.

    python -m benchmarks.store_drill --rate 0.3 --seed 7

moto's S3 server on loopback behind a proxy (`tests.faulty_store`) that lets requests meet a fault with this probability. Under
each fault, objects are written, listed, read and deleted, and videos are committed to a gallery, all by one client; what is
answered must be right, a commit whole or not there, and an operation that fails is counted. The last line is the same as JSON.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import boto3
import numpy as np
import typer
from moto.server import ThreadedMotoServer
from rich.console import Console
from rich.table import Table

from jobs.command_line import run
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery, GallerySettings, feature_matrix
from pipeline.storage.location import Location, resolve
from tests.conftest import add_videos, people_features, toy_spec
from tests.faulty_store import FAULTS, FaultyStore

OBJECT_BYTES = 200_000
SLOW_SECONDS = 4.0


def store_drill(
    rate: Annotated[
        float, typer.Option(help="Probability that a request meets the fault (slow ones: a third).", min=0, max=1)
    ] = 0.3,
    objects: Annotated[int, typer.Option(help="Objects that are written, read and deleted under each fault.", min=1)] = 20,
    commits: Annotated[int, typer.Option(help="Commits under each fault.", min=1)] = 10,
    seed: Annotated[int, typer.Option(help="Decides which requests fail.")] = 7,
) -> None:
    """Print a table of faults, requests, failures and times; exit with 1 where anything was wrong."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket="bucket")
    store = FaultyStore((host, port))
    try:
        found = [under(store, (fault,), rate / 3 if fault == "slow" else rate, objects, commits, seed) for fault in FAULTS]
        found.append(under(store, FAULTS, rate, objects, commits, seed))
    finally:
        store.close()
        server.stop()
    columns = ("fault", "requests", "met it", "operations", "failed", "commits", "refused", "wrong", "worst s")
    table = Table(*columns)
    for row in found:
        table.add_row(*map(str, row.values()))
    Console(width=120).print(table)
    print(json.dumps({"rate": rate, "seed": seed, "faults": found}))
    if any(row["wrong"] for row in found):
        raise typer.Exit(1)


def under(store: FaultyStore, faults: tuple[str, ...], rate: float, objects: int, commits: int, seed: int) -> dict[str, Any]:
    """What a store with these faults does to operations on objects and to a gallery's commits."""
    name = faults[0] if len(faults) == 1 else "all of them"
    place = resolve(f"s3://bucket/{name.replace(' ', '-')}?endpoint_override={store.endpoint}&region=us-east-1")
    gallery = Gallery.open_or_create(place.join("gallery").uri, GallerySettings(toy_spec(), 10.0, None))
    asked = _Asked()
    wrong = 0
    with store.failing(*faults, rate=rate, seed=seed, delay=SLOW_SECONDS):
        wrong += _objects(asked, place.join("objects"), objects, seed)
        refused = 0
        for number in range(commits):
            try:
                add_videos(gallery, _videos(number), first=100 * number, videos_a_shard=100)
            except PipelineError:
                refused += 1
        requests, met = store.requests, sum(store.counts.values())
    wrong += _commits(gallery, commits, refused)
    counts = {"operations": asked.operations, "failed": asked.failed, "commits": commits, "refused": refused}
    return {"fault": name, "requests": requests, "met": met, **counts, "wrong": wrong, "worst_s": round(asked.worst, 1)}


class _Asked:
    """Operations that were tried: how many, how many of them ended with a sentence, and the longest, in seconds."""

    def __init__(self) -> None:
        self.operations = self.failed = 0
        self.worst = 0.0

    def __call__(self, work: Callable[[], Any]) -> Any:
        """What it gives; PipelineError goes on."""
        began = time.monotonic()
        self.operations += 1
        try:
            return work()
        except PipelineError:
            self.failed += 1
            raise
        finally:
            self.worst = max(self.worst, time.monotonic() - began)


def _objects(asked: _Asked, place: Location, count: int, seed: int) -> int:
    """Write, list, read and delete objects; how many were not what was written, or were there after they were deleted."""
    wrong, there = 0, dict[str, bytes]()
    for number in range(count):
        data = np.random.default_rng([seed, number]).bytes(OBJECT_BYTES)
        with suppress(PipelineError):
            asked(lambda data=data, number=number: place.join(f"{number}").write_atomically(data))
            there[f"{number}"] = data
    with suppress(PipelineError):
        wrong += not there.keys() <= {file.name for file in asked(place.list)}
    for name, data in there.items():
        with suppress(PipelineError):
            wrong += asked(place.join(name).read_bytes) != data
        with suppress(PipelineError):
            asked(place.join(name).delete)
            wrong += asked(place.join(name).exists)
    return wrong


def _commits(gallery: Gallery, commits: int, refused: int) -> int:
    """How many videos are not as they were committed, and commits that are neither whole nor absent. The store is sound again."""
    wrong, snapshot = 0, gallery.snapshot()
    rows = {row["video_id"]: row for row in snapshot.videos.to_pylist()}
    whole = 0
    for number in range(commits):
        videos = _videos(number)
        mine = [rows.get(f"v{100 * number + i:03d}") for i in range(len(videos))]
        if all(row is None for row in mine):
            continue
        whole += 1
        for row, (_, features) in zip(mine, videos, strict=True):
            wrong += row is None or not np.array_equal(feature_matrix(gallery.read_video(row)), features)
    return wrong + (whole < commits - refused)  # one whose answer was lost may be there though it was refused


def _videos(number: int) -> list[tuple[str, np.ndarray]]:
    return people_features(4, 2, 24, seed=number)


if __name__ == "__main__":
    run(store_drill)
