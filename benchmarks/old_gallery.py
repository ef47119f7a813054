"""Opening a gallery of many commits in a bucket: python -m benchmarks.old_gallery [--commits 15007] [--delay-ms 20]

The commits, one video each, are made on the local disk, copied to moto's S3 server on loopback, and opened through a proxy that
answers each request after a delay. A table of requests and seconds, and as the last line the same as JSON. Exit code 1 where
opening takes more than REQUESTS or SECONDS.
"""

import json
import logging
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import boto3
import pyarrow as pa
import typer
from moto.server import ThreadedMotoServer
from rich.console import Console
from rich.table import Table

from jobs.command_line import run
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import VIDEOS_SCHEMA, Gallery, GallerySettings
from pipeline.storage.location import resolve
from tests.conftest import toy_spec
from tests.faulty_store import FaultyStore

REQUESTS, SECONDS = 50, 2.0


def old_gallery(
    commits: Annotated[
        list[int] | None, typer.Option(help="Commits; may be given again (1007, 15007: seven after a checkpoint).")
    ] = None,
    delay_ms: Annotated[float, typer.Option(help="Milliseconds that each request takes.", min=0)] = 20.0,
    times: Annotated[int, typer.Option(help="How often each is opened; the median counts.", min=1)] = 5,
) -> None:
    """Print what opening costs."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket="bucket")
    store = FaultyStore((host, port))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in commits or [1007, 15007]:
            local = Path(folder) / str(count)
            made = _made(local, count)
            uri = f"s3://bucket/{count}?endpoint_override=http://{host}:{port}&region=us-east-1"
            _copy(local, uri)
            rows.append(
                {"commits": count, "ms_per_commit": round(1000 * made / count, 1), **_opened(store, count, delay_ms, times)}
            )
    store.close()
    server.stop()
    table = Table("commits", "ms a commit, local disk", "requests to open", "seconds to open", "requests of a search's look")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=120).print(table)
    print(json.dumps({"benchmark": "old_gallery", "delay_ms": delay_ms, "rows": rows}))
    if any(row["requests"] > REQUESTS or row["seconds"] > SECONDS for row in rows):
        raise typer.Exit(1)


def _made(folder: Path, commits: int) -> float:
    """Seconds that the commits took."""
    gallery = Gallery.open_or_create(folder, GallerySettings(toy_spec(), 10.0, None))
    began = time.monotonic()
    for number in range(commits):
        name = f"v{number:06d}"
        row = {"video_id": name, "uri": f"/footage/{name}.mp4", "source_id": name, "camera_id": f"cam{number % 50}"}
        row |= {"shard": f"{number:032x}.parquet", "first_row": 0, "sampled_frames": 40}
        gallery.commit(pa.Table.from_pylist([row], schema=VIDEOS_SCHEMA))
    return time.monotonic() - began


def _copy(folder: Path, uri: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    root = resolve(uri)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: root.join(path.relative_to(folder).as_posix()).write_atomically(path.read_bytes()), files))


def _opened(store: FaultyStore, commits: int, delay_ms: float, times: int) -> dict[str, float]:
    """requests and median seconds of opening, and requests with which a search sees that nothing was forgotten since."""
    uri = f"s3://bucket/{commits}?endpoint_override={store.endpoint}&region=us-east-1"
    resolve(uri).exists()  # the client's first connection is not the gallery's
    seconds = []
    for _ in range(times):
        with store.failing("slow", rate=1.0, delay=delay_ms / 1000):
            began = time.monotonic()
            snapshot = Gallery.open(uri).snapshot()
            seconds.append(time.monotonic() - began)
            requests = store.requests
        if len(snapshot.videos) != commits:
            raise PipelineError(f"{len(snapshot.videos)} of {commits} videos are there")
    with store.failing("slow", rate=1.0, delay=delay_ms / 1000):
        Gallery.open(uri).forgotten(snapshot.position)
        look = store.requests
    return {"requests": requests, "seconds": round(statistics.median(seconds), 2), "look": look}


if __name__ == "__main__":
    run(old_gallery)
