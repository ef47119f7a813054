"""Recordings whose files lie elsewhere now: archived, renamed, on another disk. What is known of them stays, and points there.

A recording is known by the id that its first uri gave it, and all that was found in it says that id: detections, frames of
tracks, tombstones. So the row keeps the id and gets the new uri, by which the file is known from then on. Nothing is decoded. It
is the same recording if its bytes and its start are, and the file that was read is gone; where that is still there, the other one
is a copy of it (`pipeline.footage.recordings.Irregularity`).
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog.inputs import default_video_id
from pipeline.decoding.source_hash import source_hash
from pipeline.errors import PipelineError
from pipeline.gallery.detections import RECORDINGS_SCHEMA
from pipeline.gallery.gallery import VIDEOS_SCHEMA, Snapshot
from pipeline.ingest.source_changes import HASHED_AT_ONCE, STATE
from pipeline.storage.location import resolve
from pipeline.storage.reach import Reach

COMPARED = ("source_id", "uri", "camera_id", "start_time", *STATE)
Row = dict[str, Any]


@dataclass(frozen=True)
class Moved:
    """table: the plan under the ids that the gallery has for its files. source_ids: of recordings that lie elsewhere now.
    copies: RECORDINGS_SCHEMA, what is to stand of those whose place they took.
    """

    table: pa.Table
    source_ids: frozenset[str] = frozenset()
    copies: pa.Table = field(default_factory=RECORDINGS_SCHEMA.empty_table)

    def videos(self, snapshot: Snapshot) -> pa.Table:
        """VIDEOS_SCHEMA: the candidates that begin in them, by their new uris."""
        there = snapshot.videos.filter(pc.is_in(snapshot.videos["source_id"], pa.array(sorted(self.source_ids), pa.string())))
        now = dict(zip(self.table["source_id"].to_pylist(), self.table["uri"].to_pylist(), strict=True))
        return pa.Table.from_pylist([row | {"uri": now[row["source_id"]]} for row in there.to_pylist()], VIDEOS_SCHEMA)


def with_moved(table: pa.Table, snapshot: Snapshot, reach: Reach) -> Moved:
    """Compare a plan with states (`pipeline.footage.recordings.Plan`, `with_states`) with a gallery's recordings.

    reach: where the gallery's own uris may be asked for. Files are read only where size, start and time of modification leave
    open whether they are the same.
    """
    known = snapshot.recordings.select([*COMPARED, "start_from", "ingested_hash"]).to_pylist()
    by_id, by_uri = {row["source_id"]: row for row in known}, {row["uri"]: row for row in known}
    planned = table.select([*COMPARED, "reject_reason"]).to_pylist()
    there = {row["uri"] for row in planned}
    gone = _Gone(there, reach)
    ids: dict[str, str] = {}  # uri -> id that the gallery has, or is to have, for it
    moved, copies = set[str](), list[Row]()
    for row in planned:
        if (own := by_uri.get(row["uri"])) is not None and row["source_id"] in (own["source_id"], default_video_id(row["uri"])):
            ids[row["uri"]] = own["source_id"]
    for first, other in _unused_copies(known, there, gone):
        ids[other["uri"]] = first["source_id"]
        moved.add(first["source_id"])
        whole = snapshot.recordings.filter(pc.equal(snapshot.recordings["source_id"], other["source_id"])).to_pylist()[0]
        copies.append(whole | {name: first[name] for name in ("uri", *STATE)})
    for row, found in _same(planned, by_id, by_uri, gone):
        if found["source_id"] not in moved:
            ids[row["uri"]] = found["source_id"]
            moved.add(found["source_id"])
    column = pa.array([ids.get(row["uri"]) or _free_id(row, by_id) for row in planned], pa.string())
    table = table.set_column(table.schema.get_field_index("source_id"), table.schema.field("source_id"), column)
    return Moved(table, frozenset(moved), pa.Table.from_pylist(copies, RECORDINGS_SCHEMA))


def _free_id(row: Row, by_id: Mapping[str, Row]) -> str:
    """The id of a file that the gallery does not know: where it lies now, one lay that is known by that id elsewhere."""
    own = str(row["source_id"])
    if own not in by_id or own != default_video_id(row["uri"]):  # who gave an id is told of the clash
        return own
    return next(one for number in itertools.count(2) if (one := f"{own}-{number}") not in by_id)


class _Gone:
    """Whether the file of a uri is there no more; each is asked for once. there: uris that were just listed."""

    def __init__(self, there: set[str], reach: Reach) -> None:
        self.there, self.refusal = there, reach.refusals()
        self.answers: dict[str, bool] = {}

    def __call__(self, uri: str) -> bool:
        if uri in self.there:
            return False
        if uri not in self.answers:
            try:
                self.answers[uri] = self.refusal(uri) is None and not resolve(uri).exists()
            except PipelineError:  # storage that does not answer says nothing of the file
                self.answers[uri] = False
        return self.answers[uri]


def _unused_copies(known: list[Row], there: set[str], gone: _Gone) -> list[tuple[Row, Row]]:
    """Of recordings that were read twice, since they lay in two places: the one that counts, whose file is gone, and one that was
    left out as its copy, and is there.
    """
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in sorted(known, key=lambda row: row["source_id"]):
        if row["ingested_hash"] is not None and row["camera_id"] is not None and row["start_time"] is not None:
            groups[row["ingested_hash"], row["camera_id"], row["start_time"]].append(row)
    pairs = []
    for first, *others in groups.values():
        present = [row for row in others if row["uri"] in there]
        if present and gone(first["uri"]):
            pairs.append((first, present[0]))
    return pairs


def _same(planned: list[Row], by_id: Mapping[str, Row], by_uri: Mapping[str, Row], gone: _Gone) -> list[tuple[Row, Row]]:
    """Rows of a plan that the gallery does not know, and the recording that each is: of the same bytes and start, gone from where
    it was.
    """
    by_size: dict[int, list[Row]] = defaultdict(list)
    for row in sorted(by_id.values(), key=lambda row: row["source_id"]):
        if row["source_size"] is not None and row["ingested_hash"] is not None:
            by_size[row["source_size"]].append(row)
    maybe: list[tuple[Row, Row]] = []
    for row in planned:
        if row["uri"] in by_uri or row["reject_reason"] is not None:
            continue
        # Who gave an id means that one recording, by whatever uri.
        like = [by_id[row["source_id"]]] if row["source_id"] in by_id else by_size.get(row["source_size"], [])
        maybe += [
            (row, one) for one in like if one["source_size"] == row["source_size"] and _starts_as(row, one) and gone(one["uri"])
        ]
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        same = list(pool.map(lambda pair: _has_bytes(*pair), maybe))
    taken, found = set[str](), []
    for (row, one), is_same in zip(maybe, same, strict=True):
        if is_same and row["uri"] not in taken:
            taken.add(row["uri"])
            found.append((row, one))
    return found


def _starts_as(planned: Row, row: Row) -> bool:
    """Whether a plan says the start that a recording has; one that it leaves open, the same file says again."""
    return planned["start_time"] == row["start_time"] or (planned["start_time"] is None and row["start_from"] in (None, "file"))


def _has_bytes(planned: Row, row: Row) -> bool:
    """Whether a planned file is the one that was read. What was moved keeps its time: with camera, start and size that is enough,
    as it is for files that stay (`pipeline.ingest.source_changes`).
    """
    same = ("camera_id", "source_size", "source_mtime")
    if planned["start_time"] is not None and row["source_mtime"] is not None and all(planned[name] == row[name] for name in same):
        return True
    try:
        return source_hash(planned["uri"]) == row["ingested_hash"]
    except PipelineError:
        return False
