"""What the nodes of a cluster fetch of an index in a bucket, search after search: partitions go to the node that has held them.

    python -m benchmarks.placement --work FOLDER [--videos 8000]

A synthetic gallery and its index in moto's S3 on this machine, behind a proxy that counts what it sends to which address, and two
nodes of Ray in network namespaces, each with a cache of its own (so this needs the right to make namespaces). Each search is a
process of its own with two actors; the first one for a target reads frames that none has asked for yet. Beside the placement
that is used (`pipeline.search.placement`), partitions dealt out by their numbers. Counted are bytes, and partitions that a node
had not held before, by their prefilters. The last line is the same as JSON.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import boto3
import typer
from moto.server import ThreadedMotoServer
from rich.console import Console
from rich.table import Table

from benchmarks.synthetic_gallery import SyntheticSettings, video_id, write_gallery
from jobs.command_line import run
from pipeline.errors import UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.index.build import build_index
from pipeline.index.versions import open_index
from pipeline.retention.forget import Selection, forget
from pipeline.settings import IndexSettings
from tests.faulty_store import FaultyStore
from tests.two_nodes import HOSTS, WORKER, TwoNodes, namespaces_allowed, two_nodes

OUTSIDE = "10.77.0.1"  # where the nodes reach the store
PARTITIONS = 8
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
BY_NUMBER = """
from pipeline.search import search_actors
search_actors.placed = lambda partitions, hosts: [tuple(range(n, len(partitions), len(hosts))) for n in range(len(hosts))]
from jobs.command_line import run
from jobs.search import search
run(search)
"""


@dataclass
class Bench:
    """A store with an index of `size` bytes at `uri`, and the nodes that search it. rows: what the searches so far fetched."""

    store: FaultyStore
    cluster: TwoNodes
    uri: str
    settings: IndexSettings
    size: int
    caches: list[Path]
    rows: list[dict[str, object]]

    def search(self, what: str, video: int, way: tuple[str, ...] = ("-m", "jobs.search")) -> None:
        """Search for a video of the gallery, and note the megabytes and the partitions that each node fetched for it."""
        self.store.sent_to.clear()
        arguments = (f"id:{video_id(video)}", "--gallery", self.uri, "--actors", "2", "--address", self.cluster.address)
        command = self.cluster.run(*way, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = command.communicate(timeout=600)
        if command.returncode != 0 or "not kept" in said:  # a cache that others may write to is not used
            raise RuntimeError(said)
        sent = Counter[str]()
        opened = Counter[str]()
        for (host, path), size in self.store.sent_to.items():
            sent[host] += size
            opened[host] += path.endswith("prefilter.faiss")
        row: dict[str, object] = {"search": what}
        for node, host in zip(("head", "worker"), HOSTS, strict=True):
            row |= {f"{node}_mb": round(sent[host] / 1e6, 1), f"{node}_partitions": opened[host]}
        self.rows.append(row)
        print(*row.values(), file=sys.stderr)

    def forget_everything(self) -> None:
        """The nodes' caches are empty again."""
        for cache in self.caches:
            shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir(parents=True)

    def build_one_anew(self) -> None:
        """The first partition loses its first video, and is the last one of a new version."""
        gallery = Gallery.open(self.uri)
        base = open_index(gallery)
        first = base.partition_videos(0)["video_id"][0].as_py()
        forget(gallery, Selection(video_ids=(first,)), "to build its partition anew")
        build_index(gallery, self.settings, base=base)


def placement(
    work: Annotated[Path, typer.Option(help="Folder for gallery and caches, below none that others may write to.")],
    videos: Annotated[int, typer.Option(help="Videos of the synthetic gallery.", min=PARTITIONS)] = 8000,
) -> None:
    """Print what each node fetched for each search."""
    if not namespaces_allowed():
        raise UsageError("this measures by network addresses, and this process may not make network namespaces")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ |= KEYS
    gallery = write_gallery(work / "gallery", SyntheticSettings(videos, shard_videos=-(-videos // PARTITIONS)))
    settings = IndexSettings(partition_videos=-(-videos // PARTITIONS))
    build_index(gallery, settings)
    caches = [work / "caches" / name for name in ("head", "worker")]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    own = [{"XDG_CACHE_HOME": str(cache)} for cache in caches]
    try:
        with two_nodes(work / "ray", cpus=1, environment=KEYS, own=own, outside=OUTSIDE) as cluster:
            store = FaultyStore(server.get_host_and_port(), OUTSIDE)
            try:
                uri = f"s3://bucket/gallery?endpoint_override={store.endpoint}&region=us-east-1"
                bench = Bench(store, cluster, uri, settings, _upload(gallery, server), caches, [])
                _searches(bench, videos)
            finally:
                store.close()
    finally:
        server.stop()
    table = Table("search", "to the head, MB", "partitions", "to the worker, MB", "partitions")
    for row in bench.rows:
        table.add_row(*map(str, row.values()))
    Console(width=120).print(table)
    print(json.dumps({"videos": videos, "index_mb": round(bench.size / 1e6, 1), "searches": bench.rows}))


def _searches(bench: Bench, videos: int) -> None:
    target, other = videos // 3, videos // 2 + 1  # neither is the first of a partition, which is forgotten
    for name, way in (("", ("-m", "jobs.search")), ("by number: ", ("-c", BY_NUMBER))):
        bench.forget_everything()
        bench.search(f"{name}the first", target, way)
        bench.search(f"{name}the same again", target, way)
        bench.search(f"{name}another target", other, way)
        bench.search(f"{name}the same again", other, way)
        bench.cluster.kill_node(WORKER)
        bench.cluster.start_node(WORKER)
        bench.search(f"{name}after the worker was started anew", other, way)
        for nth in range(1, 4):
            bench.build_one_anew()
            bench.search(f"{name}after one of {PARTITIONS} partitions was built anew, {nth}", other, way)


def _upload(gallery: Gallery, server: ThreadedMotoServer) -> int:
    """Put all files of a gallery into the bucket; returns the bytes of those of its index."""
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    root, size = Path(gallery.location.path), 0
    for file in filter(Path.is_file, root.rglob("*")):
        name = file.relative_to(root)
        client.upload_file(str(file), "bucket", f"gallery/{name.as_posix()}")
        size += file.stat().st_size if "index" in name.parts[0] else 0
    return size


if __name__ == "__main__":
    run(placement)
