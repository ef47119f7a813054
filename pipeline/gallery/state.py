"""What a gallery holds, from the entries of its log in their order: who is in it, where, and which files nobody needs.

An entry is a commit, or what a checkpoint has made of many. The newest entry that mentions a source decides on it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.gallery.detections import FORGOTTEN_BOXES_SCHEMA, RECORDINGS_SCHEMA
from pipeline.gallery.forgotten import REASON, Forgotten
from pipeline.gallery.tables import CORRECTABLE, TABLES, VIDEOS_SCHEMA
from pipeline.storage.many_rows import filtered, sorted_by, steps

CHANGES = ("videos", "rejects", "corrections", "mentions")  # tables that say otherwise which videos there are, or what of them
COMPARED_ROWS = 1_000_000  # whose sources are compared at a time
FOLDERS = {"videos": "frames", "recordings": "detections"}  # where the shards lie that the rows of a table name


@dataclass(frozen=True)
class Entry:
    """One entry of a log. document: its JSON (`pipeline.gallery.log`); tables: of TABLES, those that it has."""

    document: Mapping[str, Any]
    tables: Mapping[str, pa.Table] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        """Number of the last commit in it that changed which videos there are or what is true of them; 0: of none."""
        if "changed" in self.document:
            return self.document["changed"]
        held = {*self.document["rows"], *self.document["tables"]}
        return self.document["number"] if held.intersection(CHANGES) else 0

    @property
    def rows(self) -> int:
        return sum(map(len, self.tables.values()))


@dataclass(frozen=True)
class Snapshot:
    """A gallery at one moment.

    videos (VIDEOS_SCHEMA) and rejects (REJECTS_SCHEMA), each sorted by video_id; tombstones: what was deleted. recordings:
    RECORDINGS_SCHEMA, sorted by source_id, and tracking: run -> what its newest commit says of following people in it, the
    newest last (`pipeline.footage.tracks`); forgotten_boxes: FORGOTTEN_BOXES_SCHEMA.
    position: number of the newest commit; of a gallery in which an older version wrote all, the names of its commits. stale:
    files that hold what does not count any more, beside or without what does; settled: shards that a compaction need not look at
    again; emptied: number up to which it has emptied commits. changed: see `Entry`; committed_at: ISO time of the newest commit,
    by its writer's clock.
    """

    videos: pa.Table
    rejects: pa.Table
    tombstones: Forgotten = field(default_factory=Forgotten)
    recordings: pa.Table = field(default_factory=RECORDINGS_SCHEMA.empty_table)
    tracking: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    forgotten_boxes: pa.Table = field(default_factory=FORGOTTEN_BOXES_SCHEMA.empty_table)
    position: int | tuple[str, ...] = 0
    stale: frozenset[str] = frozenset()
    settled: frozenset[str] = frozenset()
    changed: int = 0
    emptied: int = 0
    committed_at: str | None = None

    @property
    def forgotten(self) -> frozenset[str]:
        """Ids of deleted videos."""
        return self.tombstones.ids

    @property
    def forgotten_uris(self) -> frozenset[str]:
        """Of what deleted videos were decoded from."""
        return self.tombstones.uris

    @property
    def live(self) -> frozenset[str]:
        """Data files that it names: frames/..., detections/..., tracking/..."""
        shards = ((folder, pc.unique(getattr(self, kind)["shard"]).to_pylist()) for kind, folder in FOLDERS.items())
        named = {f"{folder}/{shard}" for folder, names in shards for shard in names}
        return frozenset(named.union(_states(self.tracking)))

    def of_recordings(self, videos: pa.Table | None = None) -> pa.ChunkedArray:
        """Which videos (all, or these rows of them) are people who were followed in whole recordings, bool [n]."""
        videos = self.videos if videos is None else videos
        return pc.is_in(videos["source_id"], self.recordings["source_id"].combine_chunks())

    def finished_sources(self, count_rejected: bool = True) -> set[str]:
        """Ids of the catalog rows that need no more work; without count_rejected, none that has a reject.

        What was refused because its storage did not answer ("unavailable") is no video's fault and never finished; what was
        refused because it had been forgotten always is.
        """
        reasons = self.rejects["reason"]
        again = pc.equal(reasons, "unavailable") if count_rejected else pc.not_equal(reasons, REASON)
        unfinished = set(self.rejects.filter(again)["source_id"].to_pylist())
        finished = (table["source_id"].to_pylist() for table in (self.videos, self.rejects, self.recordings))
        return set().union(*finished) - unfinished


def folded(entries: Sequence[Entry], position: int | tuple[str, ...]) -> Snapshot:
    """The gallery after these entries, oldest first."""
    read = _read(entries)
    tables, stale = _decided(read)
    videos, recordings = tables["videos"], tables["recordings"]
    forgotten = Forgotten.in_table(read["forgotten"])
    videos, moved = _moved(videos, read["moves"], "video_id", "frames")
    recordings, moved_recordings = _moved(recordings, read["moves"], "source_id", "detections")
    videos = _corrected(videos, read["corrections"])
    gone = np.asarray(pc.is_in(videos["video_id"], pa.array(sorted(forgotten.ids), pa.string())))
    gone = gone | forgotten.covered(videos)  # by bytes too: an ingest may have committed in the same moment
    gone_recordings = forgotten.covered_recordings(recordings)
    stale |= moved | moved_recordings | _shards(videos, gone, "frames") | _shards(recordings, gone_recordings, "detections")
    runs, replaced = _runs(entries)
    stale = (stale | replaced | _files(entries, "stale")) - _files(entries, "deleted")
    return Snapshot(
        videos=sorted_by(filtered(videos, ~gone), "video_id"),
        rejects=sorted_by(tables["rejects"], "video_id"),
        tombstones=forgotten,
        recordings=recordings.filter(pa.array(~gone_recordings)).sort_by("source_id"),
        forgotten_boxes=read["forgotten_boxes"].select(FORGOTTEN_BOXES_SCHEMA.names),
        tracking={run: record for run, record in runs.items() if record is not None},
        position=position,
        stale=frozenset(stale),
        settled=frozenset(_files(entries, "settled") - stale),
        changed=max((entry.changed for entry in entries), default=0),
        emptied=_emptied(entries),
        committed_at=entries[-1].document.get("committed_at") if entries else None,
    )


def merged(entries: Sequence[Entry], *, first: bool) -> Entry:
    """One entry that says what these say one after another. first: there are none before them, so nothing needs to be said to
    those; rows of forgotten videos are left out then.
    """
    fields: dict[str, Any] = {"committed_at": entries[-1].document.get("committed_at"), "emptied": _emptied(entries)}
    if first:
        now = folded(entries, 0)
        kept = {"videos": now.videos, "rejects": now.rejects, "recordings": now.recordings}
        kept |= {"forgotten_boxes": now.forgotten_boxes, "forgotten": now.tombstones.table()}
        fields |= {"runs": dict(now.tracking), "settled": sorted(now.settled), "changed": now.changed}
        retired = _files(entries, "retired") - _files(entries, "deleted")
        return Entry(
            fields | {"stale": sorted(now.stale), "retired": sorted(retired)},
            {kind: table for kind, table in kept.items() if len(table)},
        )
    read = _read(entries)
    tables, stale = _decided(read)
    runs, replaced = _runs(entries)
    fields |= {"runs": runs, "changed": max(entry.changed for entry in entries)}
    said = {name: _files(entries, name) for name in ("settled", "deleted", "retired")}
    stale |= replaced | _files(entries, "stale")
    fields |= {name: sorted(values) for name, values in (said | {"stale": stale - said["deleted"]}).items()}
    kept = {kind: read[kind].drop_columns("entry") for kind in ("corrections", "moves", "forgotten", "forgotten_boxes")} | tables
    kept["mentions"] = _mentioned(read)
    return Entry(fields, {kind: table for kind, table in kept.items() if len(table)})


def _read(entries: Sequence[Entry]) -> dict[str, pa.Table]:
    """Rows of all entries, with the column `entry`: the number of theirs."""
    read = {}
    for kind, schema in TABLES.items():
        tables = [
            entry.tables[kind].append_column("entry", pa.array(np.full(len(entry.tables[kind]), number, np.int32)))
            for number, entry in enumerate(entries)
            if kind in entry.tables
        ]
        read[kind] = pa.concat_tables(tables) if tables else schema.append(pa.field("entry", pa.int32())).empty_table()
    return read


def _decided(read: Mapping[str, pa.Table]) -> tuple[dict[str, pa.Table], set[str]]:
    """videos, rejects and recordings that the newest entries leave, and the files of the others."""
    mentions = {table: read["mentions"].filter(pc.equal(read["mentions"]["table"], table)) for table in FOLDERS}
    videos, rejects, _ = _latest_of_each_source([read["videos"], read["rejects"], mentions["videos"]])
    recordings = read["recordings"].append_column("row", pa.array(np.arange(len(read["recordings"]))))
    if len(recordings):
        recordings, *_ = _latest_of_each_source([read["recordings"], read["rejects"], mentions["recordings"]])
    stale = set()
    for kind, left in (("videos", videos), ("recordings", recordings)):
        if len(left) < len(read[kind]):
            kept = np.zeros(len(read[kind]), bool)
            kept[np.asarray(left["row"])] = True
            stale |= _shards(read[kind], ~kept, FOLDERS[kind])
    decided = {"videos": videos, "rejects": rejects, "recordings": recordings}
    return {kind: table.drop_columns(["entry", "row"]) for kind, table in decided.items()}, stale


def _latest_of_each_source(tables: list[pa.Table]) -> list[pa.Table]:
    """Keep, for each source, only what the newest entry says that mentions it in any of the tables. The column `row` says which
    rows they were.
    """
    tables = [table.append_column("row", pa.array(np.arange(len(table)))) for table in tables]
    masks = _in_several_entries(tables)
    few = [table.filter(pa.array(mask)) for table, mask in zip(tables, masks, strict=True)]
    mentions = pa.concat_tables([table.select(["source_id", "entry"]) for table in few])
    newest = mentions.group_by("source_id").aggregate([("entry", "max")]).rename_columns(["source_id", "entry"])
    for table, mask in zip(few, masks, strict=True):
        stay = table.select(["source_id", "entry", "row"]).join(newest, ["source_id", "entry"], join_type="left semi")["row"]
        mask[:] = ~mask
        mask[np.asarray(stay)] = True
    return [filtered(table, stays) for table, stays in zip(tables, masks, strict=True)]


def _in_several_entries(tables: list[pa.Table]) -> list[np.ndarray]:
    """Which rows are of sources that more than one entry mentions, bool [n] of each table; by hashes of 64 bits: of a few others,
    too. Most galleries have few such, and grouping all sources by their names takes many times the memory.
    """
    hashes = np.concatenate([np.empty(0, np.int64), *(_hashes(part) for table in tables for part in steps(table))])
    entries = np.concatenate([np.asarray(table["entry"]) for table in tables])
    found = np.zeros(len(hashes), bool)
    turns = 1 + len(hashes) // COMPARED_ROWS
    for turn in range(turns):
        rows = np.flatnonzero(hashes % turns == turn)
        rows = rows[np.argsort(hashes[rows], kind="stable")]
        ordered = hashes[rows]
        others = (np.diff(ordered) == 0) & (np.diff(entries[rows]) != 0)
        found[rows] = np.isin(ordered, np.unique(ordered[1:][others]))
    return np.split(found, np.cumsum([len(table) for table in tables])[:-1])


def _hashes(table: pa.Table) -> np.ndarray:
    return np.fromiter(map(hash, table["source_id"].to_pylist()), np.int64, len(table))


def _mentioned(read: Mapping[str, pa.Table]) -> pa.Table:
    """MENTIONS_SCHEMA of all that the entries mention, by rows or without."""
    tables = []
    for table, kinds in (("videos", ("videos", "rejects")), ("recordings", ("recordings", "rejects"))):
        by_rows = [read[kind]["source_id"] for kind in kinds]
        by_name = read["mentions"].filter(pc.equal(read["mentions"]["table"], table))["source_id"]
        ids = pc.unique(pa.chunked_array([chunk for column in (*by_rows, by_name) for chunk in column.chunks], pa.string()))
        tables.append(pa.Table.from_arrays([ids, pa.array([table] * len(ids), pa.string())], schema=TABLES["mentions"]))
    return pa.concat_tables(tables)


def _moved(table: pa.Table, moves: pa.Table, key: str, folder: str) -> tuple[pa.Table, set[str]]:
    """Rows where compactions have put them, and the files of what they left and of moves that came too late."""
    moves = moves.filter(pc.equal(moves["folder"], folder)).select(["id", "shard", "to_shard", "to_first_row"])
    if len(moves) == 0:
        return table, set()
    numbered = moves.append_column("row", pa.array(np.arange(len(moves))))
    first = moves.take(numbered.group_by(["id", "shard"]).aggregate([("row", "min")])["row_min"])  # of two compactions at once
    while True:  # a move may lead on from another one
        keys = pa.table({"id": table[key], "shard": table["shard"], "row": np.arange(len(table))})
        found = keys.join(first, ["id", "shard"], join_type="inner")
        if len(found) == 0:
            break
        rows, shards = np.asarray(found["row"]), np.array(table["shard"].to_pylist(), object)
        shards[rows] = found["to_shard"].to_pylist()
        table = table.set_column(table.schema.get_field_index("shard"), "shard", pa.array(shards, pa.string()))
        if folder == "frames":
            first_rows = np.asarray(table["first_row"]).copy()
            first_rows[rows] = np.asarray(found["to_first_row"])
            table = table.set_column(table.schema.get_field_index("first_row"), "first_row", pa.array(first_rows, pa.int64()))
    there = pa.table({"id": table[key], "to_shard": table["shard"]})
    late = moves.select(["id", "to_shard"]).join(there, ["id", "to_shard"], join_type="left anti")
    left = {*moves["shard"].to_pylist(), *late["to_shard"].to_pylist()}
    return table, {f"{folder}/{shard}" for shard in left}


def _corrected(videos: pa.Table, corrections: pa.Table) -> pa.Table:
    """The videos (VIDEOS_SCHEMA) with the newest correction of each; one of an earlier ingest of the same video says nothing."""
    if len(corrections) == 0:
        return videos
    keyed, corrections_keyed = (
        pa.table(
            {"id": table["video_id"], "at": pc.fill_null(table["ingested_at"].cast(pa.int64()), -1), "row": np.arange(len(table))}
        )
        for table in (videos, corrections)
    )
    newest = corrections_keyed.group_by(["id", "at"]).aggregate([("row", "max")])
    row = keyed.join(newest, ["id", "at"], join_type="left outer").sort_by("row")["row_max"]
    for name in CORRECTABLE:
        column = pc.if_else(pc.is_valid(row), corrections[name].take(row), videos[name])
        videos = videos.set_column(videos.schema.get_field_index(name), VIDEOS_SCHEMA.field(name), column)
    return videos


def _runs(entries: Sequence[Entry]) -> tuple[dict[str, dict[str, Any] | None], set[str]]:
    """What is known of each run, the newest last, and the files of what was known before."""
    runs: dict[str, dict[str, Any] | None] = {}
    replaced: set[str] = set()
    for entry in entries:
        for run, record in entry.document.get("runs", {}).items():
            replaced |= _states({run: runs.pop(run, None)})  # popped, so that the newest is the last
            runs[run] = record
    return runs, replaced - _states(runs)


def _files(entries: Sequence[Entry], name: str) -> set[str]:
    """The union of a list of the entries' documents."""
    return set().union(*(entry.document.get(name, ()) for entry in entries))


def _emptied(entries: Sequence[Entry]) -> int:
    return max((entry.document.get("emptied", 0) for entry in entries), default=0)


def _states(runs: Mapping[str, dict[str, Any] | None]) -> set[str]:
    return {record["state"] for record in runs.values() if record is not None}


def _shards(table: pa.Table, chosen: np.ndarray, folder: str) -> set[str]:
    """Files of the chosen rows. chosen: bool [n]."""
    if not chosen.any():
        return set()
    return {f"{folder}/{shard}" for shard in pc.unique(table.filter(pa.array(chosen))["shard"]).to_pylist()}


def known_files(entries: Collection[Entry]) -> set[str]:
    """Data files that the rows and runs of entries name, whether they count or not."""
    files = set().union(*(_states(entry.document.get("runs", {})) for entry in entries))
    for entry in entries:
        for kind, folder in FOLDERS.items():
            if kind in entry.tables:
                files |= _shards(entry.tables[kind], np.ones(len(entry.tables[kind]), bool), folder)
    return files
