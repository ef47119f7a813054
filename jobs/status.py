"""What is in a gallery, and whether it is sound: python -m jobs.status --gallery G [--verify]"""

import functools
import math
from datetime import UTC, datetime
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import typer

from jobs.command_line import GalleryFolder, printable, run
from jobs.footage_words import irregularity_lines, span
from jobs.reject_words import SHOWN, reject_lines
from pipeline.errors import PipelineError, UsageError
from pipeline.footage.coverage import coverage
from pipeline.gallery import audit
from pipeline.gallery.gallery import Gallery, Snapshot
from pipeline.gallery.source_notes import source_notes
from pipeline.index.freshness import Lag, index_lag
from pipeline.index.version_files import index_versions, read_manifest
from pipeline.index.versions import open_index
from pipeline.retention.remains import files_with_forgotten
from pipeline.retention.verify import verify_gallery
from pipeline.storage.location import resolve

CAMERAS_SHOWN = 20
SHADES = ".:-=+*#"  # of an hour: how much of it was recorded


def status(
    gallery: GalleryFolder,
    verify: Annotated[
        bool, typer.Option(help="Read every file and check it, and the audit log; exit with 1 on a fault.")
    ] = False,
    hours: Annotated[bool, typer.Option(help="Show of each camera how much of every hour was recorded, and its tracks.")] = False,
    listing: Annotated[
        str | None, typer.Option(help="Write the videos that count to this Parquet file, with the places of their frames.")
    ] = None,
    list_recordings: Annotated[
        str | None, typer.Option(help="Write the recordings that count to this Parquet file, with the files of their detections.")
    ] = None,
    list_rejects: Annotated[
        str | None, typer.Option(help="Write what was rejected to this file, with reasons: Parquet, or CSV by its name.")
    ] = None,
    audit_head: Annotated[
        str | None, typer.Option(help="COUNT:SHA256 that was kept; with --verify, the audit log must still hold that record.")
    ] = None,
) -> None:
    """Say what a gallery holds, how far its newest ingest is, what was rejected and why, and how current its index is."""
    if audit_head and not verify:
        raise UsageError("--audit-head is compared with the log by --verify only")
    opened = Gallery.open(gallery)
    snapshot = opened.snapshot()
    videos = snapshot.videos
    settings = opened.settings
    _say(f"gallery {opened.location.uri}")
    for file, table in ((listing, videos), (list_recordings, snapshot.recordings), (list_rejects, snapshot.rejects)):
        if file is not None:
            as_csv = table is snapshot.rejects and file.lower().endswith(".csv")
            resolve(file).write_atomically(functools.partial(pa_csv.write_csv if as_csv else pq.write_table, table))
    _say(f"  backbone      {settings.backbone.identity}, {settings.backbone.height} x {settings.backbone.width} pixels")
    _say(f"  sampling      {settings.rate:g} frames a second")
    cameras, people = (pc.count_distinct(videos[name]).as_py() for name in ("camera_id", "person_id"))
    frames = pc.sum(videos["sampled_frames"].cast(pa.int64())).as_py() or 0
    _say(f"  videos        {len(videos)}, {frames} frames, {cameras} cameras, {people} labels")
    _say(f"  rejected      {len(snapshot.rejects)}")
    counts = {row["values"]: row["counts"] for row in pc.value_counts(snapshot.rejects["reason"]).to_pylist()}
    for reason, count in sorted(counts.items()):
        _say(f"    {count:5d} {reason}")
    newest_rejects = snapshot.rejects.sort_by([("rejected_at", "descending")]).slice(0, SHOWN)
    for line in reject_lines(newest_rejects.to_pylist(), len(snapshot.rejects), gallery):
        _say(line)
    noted = ["source_id", "ingested_hash", "passed_over", "remarks"]
    clips = videos.filter(pc.invert(snapshot.of_recordings()))
    for line in source_notes(pa.concat_tables([table.select(noted) for table in (clips, snapshot.recordings)])).lines():
        _say(line)
    for line in footage_lines(snapshot, hours):
        _say(line)
    _say(f"  forgotten     {len(snapshot.forgotten)}")
    _say(f"  shards        {pc.count_distinct(videos['shard']).as_py()} after {_commits(snapshot)} commits")
    if snapshot.committed_at is not None:
        newest = datetime.fromisoformat(snapshot.committed_at)
        _say(f"  last commit   {newest:%Y-%m-%d %H:%M:%S} UTC, {_ago(newest)}")
    if (record := audit.newest(opened, "ingest")) is not None:
        _say(f"  last ingest   {ingest_state(record, snapshot)}")
        if not_read := record.get("not_read"):  # older versions did not say
            _say(f"  not read      {not_read}")
    for line in _indexes(opened):
        _say(f"  index         {line}")
    _say(f"  audit log     {audit.head(opened) or 'no records'}")
    if names := audit.required(opened):
        _say(f"  required      {' and '.join(names)}, see jobs.policy")
    if verify:
        faults = verify_gallery(opened)
        faults += [f"audit log: {fault}" for fault in audit.verify(opened, audit_head)] if audit_head else []
        faults = list(dict.fromkeys(faults))
        if held := files_with_forgotten(opened):
            _say(f"  on disk       {len(held)} files hold forgotten videos; jobs.compact removes them")
            for uri, count in sorted(held.items()):
                _say(f"    {count or 'unreadable'} in {uri}")
        elif snapshot.forgotten:
            _say("  on disk       no file holds a forgotten video")
        _say("  verified      " + ("no faults" if not faults else f"{len(faults)} faults"))
        for fault in faults:
            _say(f"    {fault}")
        if faults:
            raise PipelineError(f"{opened.location.uri} has {len(faults)} faults, the first: {faults[0]}")


def footage_lines(snapshot: Snapshot, hours: bool = False) -> list[str]:
    """What there is of whole recordings, in words; empty without any.

    hours: a row a day and camera: a character an hour (UTC), from . for nothing to # for all of it, and the tracks of the day.
    """
    if not len(snapshot.recordings):
        return []
    cameras, odd = coverage(snapshot)
    total = sum(camera.seconds for camera in cameras.values())
    found = pc.sum(snapshot.recordings["detections"]).as_py() or 0
    lines = [f"  recordings    {len(snapshot.recordings)} of {len(cameras)} cameras, {span(total)}, {found} detections"]
    for name, camera in list(cameras.items())[: None if hours else CAMERAS_SHOWN]:
        times = f"{camera.recordings} recordings, {span(camera.seconds)}, {camera.detections} detections, {camera.tracks} tracks"
        lines.append(f"    {name or 'no camera'}: {times}")
        days = sorted({hour.date() for hour in camera.recorded}) if hours else []
        for day in days:
            shares = [camera.recorded[datetime(day.year, day.month, day.day, hour, tzinfo=UTC)] for hour in range(24)]
            tracks = sum(count for hour, count in camera.begun.items() if hour.date() == day)
            lines.append(f"      {day} |{''.join(map(_shade, shares))}| {tracks} tracks")
    if not hours and len(cameras) > CAMERAS_SHOWN:
        lines.append(f"    and {len(cameras) - CAMERAS_SHOWN} more; --hours shows all")
    return lines + irregularity_lines(odd)


def _commits(snapshot: Snapshot) -> int:
    return snapshot.position if isinstance(snapshot.position, int) else len(snapshot.position)


def _shade(share: float) -> str:
    return SHADES[min(len(SHADES) - 1, math.ceil(share * (len(SHADES) - 1) - 0.01))]


def _say(line: str) -> None:
    print(printable(line))


def ingest_state(record: dict[str, Any], snapshot: Snapshot) -> str:
    """How far an ingest is, in words. record: what it wrote into the audit log when it began."""
    since = pa.scalar(datetime.fromisoformat(record["at"]), pa.timestamp("us", tz="UTC"))
    times = ((snapshot.videos, "ingested_at"), (snapshot.rejects, "rejected_at"), (snapshot.recordings, "ingested_at"))
    done = [table.filter(pc.fill_null(pc.greater_equal(table[name], since), False))["source_id"] for table, name in times]
    sources = pa.chunked_array([chunk for column in done for chunk in column.chunks], pa.string())
    finished = min(record["already"] + pc.count_distinct(sources).as_py(), record["inputs"])
    return f"{record['source']}: {finished} of {record['inputs']} inputs, begun {record['at'][:19]} UTC by {record['who']}"


def _indexes(gallery: Gallery) -> list[str]:
    """A line a version; only the newest is opened, to say what is not in it yet."""
    lines, versions = [], index_versions(gallery)
    for version in versions:
        try:
            manifest = read_manifest(gallery, version)
            lag = index_lag(gallery, open_index(gallery, version)) if version == versions[-1] else None
        except PipelineError as error:
            lines.append(f"{version}: {error}")
            continue
        state = "older" if lag is None else _behind(lag)
        untrained = ", untrained head" if manifest["untrained"] else ""
        lines.append(f"{version}: {manifest['videos']} videos in {len(manifest['partitions'])} partitions, {state}{untrained}")
    return lines


def _behind(lag: Lag) -> str:
    parts = [f"{lag.missing} videos behind"] if lag.missing else []
    parts += [f"{lag.outdated} videos changed since"] if lag.outdated else []
    return ", ".join(parts) or "current"


def _ago(moment: datetime) -> str:
    seconds = (datetime.now(UTC) - moment).total_seconds()
    return (
        f"{seconds:.0f} s ago"
        if seconds < 120
        else f"{seconds / 60:.0f} min ago"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h ago"
    )


if __name__ == "__main__":
    run(status)
