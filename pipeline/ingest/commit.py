"""Stage 5 of an ingest (`pipeline.ingest.run`): which sources are complete, and their commit."""

import logging
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipeline import telemetry
from pipeline.errors import PipelineError
from pipeline.gallery.forgotten import MESSAGE, REASON, Forgotten, covers
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, Position, feature_matrix, frames_table
from pipeline.ingest.source_changes import STATE, STILL_CHANGING

LOGGER = logging.getLogger("coattention.ingest")
REJECTS_NAMED = 5  # by the summary of an ingest
OUT_OF_REACH = ("missing", "permission_denied", "unavailable")  # reasons that say nothing of what a file holds


@dataclass
class PendingSource:
    """What has been written of a source that is not complete yet. Keys make a row that comes twice count once."""

    chunks: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    rejects: dict[str, dict[str, Any]] = field(default_factory=dict)
    end: dict[str, Any] | None = None

    def complete(self) -> bool:
        """Whether all has been written that its end counts."""
        if self.end is None:
            return False
        return self.end["fatal"] or (len(self.chunks) == self.end["chunks"] and len(self.rejects) == self.end["rejects"])


class Committer:
    """Gathers written rows until sources are complete, and commits those.

    replaced: ids of sources that have videos in the gallery, which give way to the new ones. committed: source ids; left: of
    sources that are not committed and belong to the next ingest: files that still change, and such with videos in the gallery
    that cannot be reached now. candidates, frames: how many; reasons: reject reason -> candidates; rejects: rows of
    REJECTS_SCHEMA of the first few.
    """

    def __init__(self, gallery: Gallery, catalog: pa.Table, replaced: Collection[str] = ()) -> None:
        self.gallery = gallery
        self.catalog = catalog
        self.position = {source_id: i for i, source_id in enumerate(catalog["source_id"].to_pylist())}
        self.pending: dict[str, PendingSource] = defaultdict(PendingSource)
        self.replaced = frozenset(replaced)
        self.committed: set[str] = set()
        self.left: set[str] = set()
        self.candidates = self.frames = 0
        self.reasons: Counter[str] = Counter()
        self.rejects: list[dict[str, Any]] = []
        self.known: Position = 0  # up to where the log was read for what follows
        self.forgotten = Forgotten()
        self.retired: frozenset[str] = frozenset()  # files that compactions are deleting
        self._forgotten_by_now()

    @property
    def done(self) -> int:
        """Sources that are dealt with."""
        return len(self.committed) + len(self.left)

    def add(self, written: pa.Table) -> None:
        """Take rows (WRITTEN_SCHEMA) and commit the sources that are complete with them.

        Raises StorageError where the gallery cannot be written, and PipelineError where a shard went away meanwhile.
        """
        with telemetry.timed("coattention_ingest_seconds", stage="commit"):
            committed = self._add(written)
        for row in written.filter(pc.is_valid(written["reason"])).to_pylist():
            fields = {name: row[name] for name in ("source_id", "video_id", "reason")}
            what = "left for the next ingest" if row["source_id"] in self.left else "rejected"
            LOGGER.warning("%s: %s", what, row["message"], extra=fields)
        if committed:
            fields = {"videos": self.candidates, "frames": self.frames, "rejected": self.reasons.total()}
            LOGGER.info("committed", extra={"sources": len(self.committed), **fields})

    def _add(self, written: pa.Table) -> bool:
        touched: dict[str, PendingSource] = {}
        for row in written.to_pylist():
            source_id = row["source_id"]
            if source_id in self.committed or source_id in self.left:  # a task was run again after its rows had arrived
                continue
            source = touched[source_id] = self.pending[source_id]
            if row["kind"] == "chunk":
                source.chunks[row["video_id"], row["chunk"]] = row
            elif row["kind"] == "reject":
                source.rejects[row["video_id"]] = row
            else:
                source.end = row
        complete = {source_id: source for source_id, source in touched.items() if source.complete()}
        for source_id in [source_id for source_id, source in complete.items() if self._is_left(source_id, source)]:
            del self.pending[source_id], complete[source_id]
            self.left.add(source_id)
        if complete:
            self._commit(complete)
            for source_id in complete:
                del self.pending[source_id]
            self.committed |= complete.keys()
        return bool(complete)

    def _is_left(self, source_id: str, source: PendingSource) -> bool:
        reason = source.end["reason"] if source.end is not None and source.end["fatal"] else None
        return reason == STILL_CHANGING or (reason in OUT_OF_REACH and source_id in self.replaced)

    def _commit(self, sources: dict[str, PendingSource]) -> None:
        videos: list[dict[str, Any]] = []
        rejects: list[dict[str, Any]] = []
        stale: set[str] = set()  # shards that hold frames which do not count, or not there
        forgotten = self._forgotten_by_now()
        for source_id, source in sources.items():
            if source.end is not None and source.end["fatal"]:
                rejects.append(self._reject_row(source_id, source.end))
                continue
            rejects += [self._reject_row(source_id, row) for row in source.rejects.values()]
            by_video = defaultdict(list)
            for (video_id, _), row in sorted(source.chunks.items()):
                by_video[video_id].append(row)
            for video_id, rows in by_video.items():
                if video_id in source.rejects:  # what came before it was refused
                    stale |= {f"frames/{row['shard']}" for row in rows}
                    continue
                bad = next((row for row in rows if row["reason"] is not None), None)
                if covers(forgotten, (source.end or {}).get("source_hash"), rows[0]["track"]):
                    bad = rows[0] | {"reason": REASON, "message": MESSAGE}
                shards = {f"frames/{row['shard']}" for row in rows}
                if bad is not None or len(shards) > 1:
                    stale |= shards
                if bad is None:
                    videos.append(self._video_row(source_id, rows, source.end or {}))
                else:
                    rejects.append(self._reject_row(source_id, bad))
        for row in videos:
            if isinstance(row["shard"], ray.ObjectRef):  # of a video that came in several; all are being written by now
                row["shard"] = ray.get(row["shard"])
        self._check_shards(videos)
        self.gallery.commit(
            pa.Table.from_pylist(videos, schema=VIDEOS_SCHEMA),
            pa.Table.from_pylist(rejects, schema=REJECTS_SCHEMA),
            checked=self.known,
            stale=sorted(stale),
        )
        frames = sum(row["sampled_frames"] for row in videos)
        self.candidates, self.frames = self.candidates + len(videos), self.frames + frames
        telemetry.count("coattention_ingest_videos", len(videos))
        telemetry.count("coattention_ingest_frames", frames)
        self.rejects = [*self.rejects, *rejects][:REJECTS_NAMED]
        for row in rejects:
            self.reasons[row["reason"]] += 1
            telemetry.count("coattention_ingest_rejects", reason=row["reason"])

    def _forgotten_by_now(self) -> frozenset[tuple[str, int | None]]:
        """What was forgotten before the ingest began, and meanwhile. Only commits that are new are read."""
        position = self.gallery.position()
        forgotten, retired = self.gallery.news(self.known)
        self.forgotten, self.retired = self.forgotten | forgotten, self.retired | retired
        self.known = position
        return self.forgotten.content

    def _video_row(self, source_id: str, chunks: list[dict[str, Any]], end: dict[str, Any]) -> dict[str, Any]:
        row = chunks[0]
        split = any(chunk["shard"] != row["shard"] for chunk in chunks)
        source = self._source(source_id)
        # A boxes file holds many people: the source's label, if any, is not each track's.
        person_id = source["person_id"] if row["track"] is None else None
        start = source["start_time"]
        return {
            **{name: row[name] for name in ("video_id", "track")},
            **{name: end[name] for name in ("fps", "source_frames", "width", "height", "passed_over", "remarks")},
            **{name: source[name] for name in ("uri", "camera_id", "start_time", "boxes_uri", "frame_rate", *STATE)},
            "ingested_hash": end["source_hash"],
            "seen_from": _later(start, row["first_s"]),
            "seen_to": _later(start, chunks[-1]["last_s"]),
            "person_id": person_id,
            "sampled_frames": sum(chunk["rows"] for chunk in chunks),
            "shard": join_chunks.remote(self.gallery, chunks) if split else row["shard"],
            "first_row": 0 if split else row["first_row"],
            "backbone": self.gallery.settings.backbone.identity,
            "ingested_at": datetime.now(UTC),
            "source_id": source_id,
        }

    def _check_shards(self, videos: list[dict[str, Any]]) -> None:
        for shard in sorted({row["shard"] for row in videos}):
            if f"frames/{shard}" in self.retired or not self.gallery.location.join("frames", shard).exists():
                raise PipelineError(f"the shard {shard} went away before it was committed; run the ingest again")

    def _source(self, source_id: str) -> dict[str, Any]:
        return self.catalog.slice(self.position[source_id], 1).to_pylist()[0]

    def _reject_row(self, source_id: str, row: dict[str, Any]) -> dict[str, Any]:
        copied = {name: row[name] for name in ("video_id", "reason", "message")}
        source = self._source(source_id)
        copied |= {name: source[name] for name in ("uri", "boxes_uri", "frame_rate", *STATE)}
        return copied | {"source_id": source_id, "rejected_at": datetime.now(UTC)}


def _later(start: datetime | None, seconds: float) -> datetime | None:
    """None without a start, and where that is past what a calendar has."""
    try:
        return start + timedelta(seconds=seconds) if start is not None else None
    except OverflowError:
        return None


@ray.remote(num_cpus=0)
def join_chunks(gallery: Gallery, chunks: list[dict[str, Any]]) -> str:
    """A video whose chunks came to lie in several shards, as one shard of its own; returns the shard's name."""
    tables = [gallery.read_shard(chunk["shard"], chunk["first_row"], chunk["rows"]) for chunk in chunks]
    frames = pa.concat_tables(tables)
    index, times = np.asarray(frames["frame_index"]), np.asarray(frames["time_s"])
    return gallery.write_shard(frames_table([chunks[0]["video_id"]], [len(frames)], index, times, feature_matrix(frames)))
