"""What is to be read next of recordings, and the commits of those that are done."""

import contextlib
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import telemetry
from pipeline.errors import PipelineError
from pipeline.footage.detect import ASKED, joined
from pipeline.footage.summary import FootageSummary
from pipeline.gallery.detections import RECORDINGS_SCHEMA
from pipeline.gallery.gallery import REJECTS_SCHEMA, Gallery, Snapshot
from pipeline.ingest.commit import OUT_OF_REACH, REJECTS_NAMED
from pipeline.ingest.source_changes import STILL_CHANGING
from pipeline.storage.faults import StorageError

COMMIT_SECONDS = 5.0  # between two commits while recordings are done


@dataclass
class _Stretches:
    """A recording of which stretches are read. row: of DETECTED_SCHEMA, without its detections; drafts: what was found, by the
    number of the stretch: (file, rows).
    """

    row: dict[str, Any]
    drafts: dict[int, tuple[str, int]] = field(default_factory=dict)


class Committer:
    """Says what is to be read next, and commits recordings that are done, together where they come quickly.

    taken: how many are; answers: rows that came of them and of their stretches.
    """

    def __init__(self, missing: pa.Table, gallery: Gallery, snapshot: Snapshot, summary: FootageSummary, divide_s: float) -> None:
        self.gallery, self.summary = gallery, summary
        self.there = set(snapshot.recordings["source_id"].to_pylist())
        self.missing, self.schema = missing, pa.schema([*missing.schema, *ASKED])
        asks = [pa.array([value] * len(missing), one.type) for value, one in zip((divide_s, None), ASKED, strict=True)]
        self.first: pa.Table | None = pa.table([*missing.columns, *asks], schema=self.schema)
        self.next: list[dict[str, Any]] = []
        self.stretches: dict[str, _Stretches] = {}
        self.waiting: dict[str, dict[str, Any]] = {}
        self.seen: set[str] = set()
        self.answers = 0
        self.committed_at = time.monotonic()

    @property
    def taken(self) -> int:
        return len(self.seen)

    def asked(self) -> pa.Table:
        """What is to be read next, rows of the plan with ASKED: all recordings, then what came of long ones."""
        table, self.first = self.first, None
        rows, self.next = self.next, []
        return table if table is not None else pa.Table.from_pylist(rows, schema=self.schema)

    def add(self, detected: pa.Table) -> None:
        """Take rows of DETECTED_SCHEMA; one that comes twice, of a task that was run again, counts once."""
        for row in detected.to_pylist():
            source_id = row["source_id"]
            self.answers += 1
            if source_id in self.seen:
                continue
            if row["stretch"] is not None:
                self._add_stretch(row)
            elif row["stretches"]:
                if source_id not in self.stretches:
                    self.stretches[source_id] = _Stretches(row)
                    self.next += [self._asks(source_id, stretch) for stretch in row["stretches"]]
            else:
                self._done(row)
        if time.monotonic() - self.committed_at >= COMMIT_SECONDS:
            self.flush()

    def _asks(self, source_id: str, stretch: dict[str, Any] | None) -> dict[str, Any]:
        place = pc.index(self.missing["source_id"], source_id).as_py()
        return self.missing.slice(place, 1).to_pylist()[0] | {"divide_s": None, "stretch": stretch}

    def _add_stretch(self, row: dict[str, Any]) -> None:
        """Take what was found in a stretch. Where it cannot be used, reading the whole recording says what is true of it."""
        source_id, whole = row["source_id"], self.stretches.get(row["source_id"])
        if whole is None:  # it is to be read whole already
            return
        if row["reason"] is not None and self._is_left(row):
            self._discard(self.stretches.pop(source_id))
            self._done(row)
            return
        if row["reason"] is not None:
            self._read_whole(row, row["message"])
            return
        whole.drafts[row["stretch"]["number"]] = row["shard"], row["detections"]
        if len(whole.drafts) == len(whole.row["stretches"]):
            drafts = [whole.drafts[number] for number in sorted(whole.drafts)]
            try:
                shard = joined(self.gallery, (draft for draft, _ in drafts))
            except PipelineError as error:  # another ingest of the same recording ended first, or a compaction
                if isinstance(error, StorageError) and error.kind != "missing":
                    raise
                self._read_whole(row, "what was found in its chunks was taken away meanwhile")
                return
            looked_at = sum(stretch["looked_at"] for stretch in whole.row["stretches"])
            found = {"shard": shard, "detections": sum(count for _, count in drafts), "looked_at": looked_at}
            self._done(whole.row | found)

    def _read_whole(self, row: dict[str, Any], why: str) -> None:
        """Have the recording of a stretch read as a whole after all."""
        self._discard(self.stretches.pop(row["source_id"]))
        self.summary.undivided[row["uri"]] = why
        self.next.append(self._asks(row["source_id"], None))

    def _done(self, row: dict[str, Any]) -> None:
        self.seen.add(row["source_id"])
        self.waiting[row["source_id"]] = row

    def _discard(self, whole: _Stretches) -> None:
        """Delete drafts that nobody needs any more; what cannot be deleted, a compaction takes away."""
        for draft, _ in whole.drafts.values():
            with contextlib.suppress(StorageError):
                self.gallery.location.join("detections", draft).delete()

    def flush(self) -> None:
        """Commit what waits."""
        self.committed_at = time.monotonic()
        rows, self.waiting = list(self.waiting.values()), {}
        left = [row for row in rows if self._is_left(row)]
        rejected = [row for row in rows if row["reason"] is not None and row not in left]
        found = [row for row in rows if row["reason"] is None]
        self.summary.left += len(left)
        if not rejected and not found:
            return
        now = datetime.now(UTC)
        rejects = [row | {"video_id": row["source_id"], "rejected_at": now} for row in rejected]
        with telemetry.timed("coattention_ingest_seconds", stage="commit"):
            self.gallery.commit(
                None,
                pa.Table.from_pylist(rejects, schema=REJECTS_SCHEMA),
                pa.Table.from_pylist(found, schema=RECORDINGS_SCHEMA),
                kind="detect",
            )
        for row in found:
            if (whole := self.stretches.pop(row["source_id"], None)) is not None:
                self._discard(whole)
                self.summary.in_chunks += 1
                self.summary.chunks += len(whole.drafts)
        summary = self.summary
        summary.done += len(rows) - len(left)
        summary.undivided |= {row["uri"]: row["undivided"] for row in found if row["undivided"] is not None}
        summary.reasons.update(row["reason"] for row in rejected)
        summary.rejects = [*summary.rejects, *rejects][:REJECTS_NAMED]
        summary.looked_at += sum(row["looked_at"] for row in found)
        summary.detections += sum(row["detections"] for row in found)
        summary.seconds_read += sum(row["last_s"] for row in found)

    def _is_left(self, row: dict[str, Any]) -> bool:
        return row["reason"] == STILL_CHANGING or (row["reason"] in OUT_OF_REACH and row["source_id"] in self.there)
