"""What a gallery has forgotten: by id and uri, and by the bytes, which other names do not hide."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.storage.location import resolve

# One row a forgotten candidate; null: not known, or (track) the whole source. Galleries of older versions kept no hashes, and ids
# apart from uris.
FORGOTTEN_SCHEMA = pa.schema(
    [("video_id", pa.string()), ("uri", pa.string()), ("ingested_hash", pa.string()), ("track", pa.int64())]
)
REASON = "forgotten"  # of `pipeline.catalog.inputs.REJECT_REASONS`
MESSAGE = "these bytes were forgotten (jobs.forget); they are not taken in again"


@dataclass(frozen=True)
class Forgotten:
    """ids and uris that were forgotten, and rows: the same with their hashes, each (video_id, uri, ingested_hash, track)."""

    ids: frozenset[str] = frozenset()
    uris: frozenset[str] = frozenset()
    rows: frozenset[tuple[str | None, str | None, str | None, int | None]] = frozenset()

    @classmethod
    def of(cls, commits: Iterable[Mapping[str, Any]]) -> "Forgotten":
        """What commits of a gallery say."""
        listed = list(commits)
        return cls(
            frozenset(video_id for commit in listed for video_id in commit.get("forgotten", ())),
            frozenset(uri for commit in listed for uri in commit.get("forgotten_uris", ())),
            frozenset(tuple(row) for commit in listed for row in commit.get("forgotten_rows", ())),
        )

    @classmethod
    def in_table(cls, table: pa.Table) -> "Forgotten":
        """What a table of `table` says."""
        rows = frozenset(zip(*(table[name].to_pylist() for name in FORGOTTEN_SCHEMA.names), strict=True))
        ids, uris = (frozenset(row[column] for row in rows if row[column] is not None) for column in (0, 1))
        return cls(ids, uris, rows)

    def __or__(self, other: "Forgotten") -> "Forgotten":
        return Forgotten(self.ids | other.ids, self.uris | other.uris, self.rows | other.rows)

    @property
    def content(self) -> frozenset[tuple[str, int | None]]:
        """(hash, track) of what is known by its bytes; track None: all that they show."""
        return frozenset((row[2], row[3]) for row in self.rows if row[2] is not None)

    def covered(self, videos: pa.Table) -> np.ndarray:
        """Which rows of VIDEOS_SCHEMA show bytes that were forgotten, bool [n]: the whole source, or this track of it."""
        content = self.content
        hashes = pa.array(sorted({digest for digest, _ in content}), pa.string())
        mask = np.asarray(pc.is_in(videos["ingested_hash"], value_set=hashes)).copy()
        for row in np.flatnonzero(mask):
            mask[row] = covers(content, *(videos[name][int(row)].as_py() for name in ("ingested_hash", "track")))
        return mask

    def covered_recordings(self, recordings: pa.Table) -> np.ndarray:
        """Which rows of RECORDINGS_SCHEMA were forgotten, by their ids or their bytes, bool [n]."""
        whole = pa.array(sorted(digest for digest, track in self.content if track is None), pa.string())
        by_id = pc.is_in(recordings["source_id"], pa.array(sorted(self.ids), pa.string()))
        return np.asarray(pc.or_(by_id, pc.is_in(recordings["ingested_hash"], whole)))

    def table(self) -> pa.Table:
        """FORGOTTEN_SCHEMA, for other galleries: no other data of the videos."""
        known_ids, known_uris = ({row[column] for row in self.rows} for column in (0, 1))
        rows = {*self.rows} | {(one, None, None, None) for one in self.ids - known_ids}
        rows |= {(None, uri, None, None) for uri in self.uris - known_uris}
        columns = zip(*rows, strict=True) if rows else [()] * len(FORGOTTEN_SCHEMA)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, FORGOTTEN_SCHEMA.types, strict=True)]
        return pa.Table.from_arrays(arrays, schema=FORGOTTEN_SCHEMA).sort_by(
            [(name, "ascending") for name in FORGOTTEN_SCHEMA.names]
        )


def covers(content: frozenset[tuple[str, int | None]], source_hash: str | None, track: int | None) -> bool:
    """Whether a candidate was forgotten: its source, or this track of it. content: see `Forgotten.content`."""
    return source_hash is not None and ((source_hash, None) in content or (source_hash, track) in content)


def write_forgotten(forgotten: Forgotten, uri: str) -> int:
    """Write `Forgotten.table` as a Parquet file; returns its number of rows."""
    table = forgotten.table()
    resolve(uri).write_atomically(lambda sink: pq.write_table(table, sink))
    return len(table)


def read_forgotten(uri: str) -> pa.Table:
    """The file of `write_forgotten`, as FORGOTTEN_SCHEMA. Raises UsageError for a file of another kind, StorageError."""
    content = resolve(uri).read_bytes()
    try:
        table = pq.read_table(pa.BufferReader(content))
        return table.select(FORGOTTEN_SCHEMA.names).cast(FORGOTTEN_SCHEMA)
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise UsageError(f"{uri} is no list of forgotten videos ({error}); write one with jobs.forget --export") from error
