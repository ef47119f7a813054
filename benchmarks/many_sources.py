"""How much memory the driver of an ingest takes for many sources, which are all absent: nothing is decoded.

    python -m benchmarks.many_sources --sources 100000 --sources 1000000
    python -m benchmarks.many_sources --sources 20000 --ingest        # with Ray, to the last reject
    python -m benchmarks.many_sources --sources 10000000 --refused 9900000 --ingest

Each number runs in a process of its own: a manifest is written, and this process lists it, asks for the state of each source, and
compares it with a gallery, which is empty or has refused some of them before. The last line is the same as JSON.
"""

import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table

from jobs.command_line import run
from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.catalog.inputs import read_catalog
from pipeline.gallery.gallery import REJECTS_SCHEMA, Gallery, GallerySettings
from pipeline.ingest.gallery_sampling import gallery_sampling
from pipeline.ingest.listing import missing_sources
from pipeline.ingest.run import ROUND_SOURCES, ingest
from pipeline.ingest.source_changes import find_changes, with_states
from pipeline.storage.many_rows import steps

WRITTEN_ROWS = 100_000


def many_sources(
    sources: Annotated[list[int], typer.Option(help="How many; may be given again.", min=1)],
    with_ray: Annotated[bool, typer.Option("--ingest", help="Ingest them, too.")] = False,
    listing_alone: Annotated[bool, typer.Option(help="Only list them.")] = False,
    refused: Annotated[int, typer.Option(help="As many of them stand in the gallery's rejects already.", min=0)] = 0,
    one: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Print a table of seconds and of the most memory, resident in all and of its own, in MB."""
    if one:
        print(json.dumps(measured(sources[0], with_ray, listing_alone, refused)))
        return
    flags = [*(["--ingest"] if with_ray else []), *(["--listing-alone"] if listing_alone else []), "--one"]
    flags += ["--refused", str(refused)]
    found = []
    for number in (1, *sources):
        command = [sys.executable, "-m", "benchmarks.many_sources", "--sources", str(number), *flags]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
    table = Table(*found[0])
    for row in found:
        table.add_row(*map(str, row.values()))
    Console(width=120).print(table)
    print(json.dumps(found))


def measured(sources: int, with_ray: bool, listing_alone: bool, refused: int) -> dict[str, float]:
    """What this process takes for so many."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_manifest(Path(folder), sources)
        if refused:
            before = multiprocessing.get_context("spawn").Process(target=refuse, args=(manifest, min(refused, sources)))
            before.start()
            before.join()
            if before.exitcode:
                raise SystemExit(f"committing the refused ones ended with {before.exitcode}")
        committing = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1000 if refused else 0
        began = time.monotonic()
        catalog = read_catalog(manifest)
        listed = time.monotonic() - began
        if not listing_alone:
            gallery = gallery_beside(Path(folder))
            if with_ray:
                ingest(catalog, gallery, gallery_sampling(gallery))
            else:
                table = with_states(catalog.table)
                snapshot = gallery.snapshot()
                changes = find_changes(table, gallery, snapshot)
                missing, _ = missing_sources(table, snapshot, False, changes.again)
                for part in steps(missing, ROUND_SOURCES):
                    len(part["uri"].to_pylist())
        seconds = time.monotonic() - began
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak, own = (int(status[name].split()[0]) // 1000 for name in ("VmHWM", "RssAnon"))
        return {
            "sources": sources,
            "listing s": round(listed, 1),
            "all s": round(seconds, 1),
            "peak MB": peak,
            "own MB now": own,
            "refusing MB": committing,
        }


def gallery_beside(folder: Path) -> Gallery:
    """The gallery in the folder of a manifest, made unless it is there."""
    return Gallery.open_or_create(folder / "gallery", GallerySettings(find_backbone(DEFAULT), 10.0, None))


def refuse(manifest: Path, count: int) -> None:
    """Commit the first sources of a manifest as absent, as an ingest does."""
    gallery = gallery_beside(manifest.parent)
    now = datetime.now(UTC)
    for part in steps(read_catalog(manifest).table.slice(0, count), ROUND_SOURCES):
        said = {"reason": "missing", "message": "No such file or directory", "rejected_at": now}
        columns = {"video_id": part["source_id"]}
        columns |= {name: pa.array([value] * len(part), REJECTS_SCHEMA.field(name).type) for name, value in said.items()}
        columns |= {name: part[name] for name in REJECTS_SCHEMA.names if name not in columns}
        gallery.commit(rejects=pa.table(columns).select(REJECTS_SCHEMA.names).cast(REJECTS_SCHEMA))


def write_manifest(folder: Path, sources: int) -> Path:
    """A manifest of files that are not there, of 400 cameras."""
    schema = pa.schema([("uri", pa.string()), ("camera_id", pa.string()), ("start_time", pa.timestamp("us", tz="UTC"))])
    path = folder / "manifest.parquet"
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, sources, WRITTEN_ROWS):
            rows = np.arange(first, min(sources, first + WRITTEN_ROWS))
            uris = [f"/absent/cam{row % 400:03d}/clip_{row:09d}.mp4" for row in rows]
            cameras = [f"cam{row % 400:03d}" for row in rows]
            times = pa.array(1_767_225_600_000_000 + rows * 1_000_000, pa.timestamp("us", tz="UTC"))
            writer.write_table(pa.table([pa.array(uris), pa.array(cameras), times], schema=schema))
    return path


if __name__ == "__main__":
    run(many_sources)
