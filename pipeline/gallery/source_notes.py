"""What a gallery's rows say of the files they were read from: damage, what was guessed or mended in reading, and equal bytes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.gallery.gallery import VIDEOS_SCHEMA
from pipeline.storage.many_rows import holding

COPIES_SCHEMA = pa.schema([("ingested_hash", pa.string()), ("source_ids", pa.list_(pa.string()))])
_SHOWN = 5
_IDS_SHOWN = 3  # of one group of copies


@dataclass(frozen=True)
class RemarkKind:
    """Remarks that differ in their numbers only. text: with N for each number; count: of sources that have one; example: such a
    source's id."""

    text: str
    count: int
    example: str


@dataclass(frozen=True)
class SourceNotes:
    """passed_over: packets or images that could not be decoded, of `damaged` sources. remarks: the most frequent kind first.
    copies: see `equal_bytes`."""

    passed_over: int = 0
    damaged: int = 0
    remarks: tuple[RemarkKind, ...] = ()
    copies: pa.Table = field(default_factory=COPIES_SCHEMA.empty_table)

    def lines(self) -> list[str]:
        """The notes in words, for a summary; those with two more leading blanks belong to the one before. Empty without any."""
        lines = []
        if self.passed_over:
            parts = (
                f"{self.passed_over} packets or images that cannot be decoded, of {self.damaged} input{'s'[: self.damaged > 1]}"
            )
            lines.append(f"  passed over   {parts}")
        if self.remarks:
            lines.append(
                f"  remarks       {len(self.remarks)} kind{'s'[: len(self.remarks) > 1]}: what was guessed or mended in reading"
            )
            lines += [f"    {kind.count:5d} {kind.text} (such as {kind.example})" for kind in self.remarks[:_SHOWN]]
            if others := self.remarks[_SHOWN:]:
                lines.append(f"    {sum(kind.count for kind in others):5d} of {len(others)} other kinds")
        if groups := len(self.copies):
            copied = pc.sum(pc.list_value_length(self.copies["source_ids"])).as_py()
            lines.append(f"  equal bytes   {copied} inputs have the same bytes as another one")
            for ids in self.copies["source_ids"].slice(0, _SHOWN).to_pylist():
                more = [f"{len(ids) - _IDS_SHOWN} more"] if len(ids) > _IDS_SHOWN else []
                lines.append(f"    {' = '.join(ids[:_IDS_SHOWN] + more)}")
            if groups > _SHOWN:
                lines.append(f"    and {groups - _SHOWN} more such groups")
        return lines


def source_notes(videos: pa.Table, source_ids: pa.Array | None = None) -> SourceNotes:
    """The notes on videos (rows of Snapshot.videos).

    source_ids: of these sources only; copies are then the groups that hold one of them, their other members too. What galleries
    of older versions do not say counts as nothing.
    """
    copies = videos
    if source_ids is not None:
        copies, videos = videos, holding(videos, source_id=source_ids)
        copies = holding(copies, ingested_hash=videos["ingested_hash"].combine_chunks().drop_null())
    damaged, remarked = pc.greater(videos["passed_over"], 0), pc.greater(pc.list_value_length(videos["remarks"]), 0)
    noted = pc.or_(pc.fill_null(damaged, False), pc.fill_null(remarked, False))
    sources = _one_row_each(videos.filter(noted), ["source_id", "passed_over", "remarks"])
    return SourceNotes(
        passed_over=pc.sum(sources["passed_over"].cast(pa.int64())).as_py() or 0,
        damaged=pc.sum(pc.greater(sources["passed_over"], 0)).as_py() or 0,
        remarks=tuple(_remark_kinds(sources)),
        copies=equal_bytes(copies),
    )


def equal_bytes(videos: pa.Table) -> pa.Table:
    """Groups of sources whose files had the same bytes when they were ingested (COPIES_SCHEMA), the largest group first.

    videos: rows of Snapshot.videos. Tracks of one source are no copies of each other; sources without a hash are in no group.

    >>> rows = [("a", "1f"), ("b", "1f"), ("b", "1f"), ("c", "77")]
    >>> videos = pa.table({"source_id": [row[0] for row in rows], "ingested_hash": [row[1] for row in rows]})
    >>> equal_bytes(videos)["source_ids"].to_pylist()
    [['a', 'b']]
    """
    digests = videos["ingested_hash"].combine_chunks().dictionary_encode().indices
    rows_of = np.bincount(digests.drop_null())
    repeated = pc.greater(pa.array(rows_of).take(digests), 1)  # null, as filter drops it, without a hash
    sources = _one_row_each(videos.filter(repeated), ["source_id", "ingested_hash"])
    counts = sources.group_by("ingested_hash").aggregate([([], "count_all")])
    shared = counts.filter(pc.greater(counts["count_all"], 1))["ingested_hash"].combine_chunks()
    members = sources.filter(pc.is_in(sources["ingested_hash"], shared)).sort_by("source_id")
    groups = members.group_by("ingested_hash", use_threads=False).aggregate([("source_id", "list")])
    groups = groups.select(["ingested_hash", "source_id_list"]).rename_columns(COPIES_SCHEMA.names).cast(COPIES_SCHEMA)
    sizes, first = pc.list_value_length(groups["source_ids"]), pc.list_element(groups["source_ids"], 0)
    order = pc.sort_indices(pa.table({"size": sizes, "first": first}), [("size", "descending"), ("first", "ascending")])
    return groups.take(order)


def _one_row_each(videos: pa.Table, names: list[str]) -> pa.Table:
    """The columns for one row of each source: all its rows say the same of it."""
    table = videos.select(names)
    numbered = table.select(["source_id"]).append_column("row", pa.array(np.arange(len(table))))
    return table.take(numbered.group_by("source_id").aggregate([("row", "min")])["row_min"])


def _remark_kinds(sources: pa.Table) -> Iterator[RemarkKind]:
    remarks = sources["remarks"].combine_chunks().cast(VIDEOS_SCHEMA.field("remarks").type)
    ids = sources["source_id"].combine_chunks().take(pc.list_parent_indices(remarks))
    texts = pc.list_flatten(remarks).dictionary_encode()
    kinds = pc.replace_substring_regex(texts.dictionary, r"[0-9]+([.,:][0-9]+)*", "N").take(texts.indices)
    each = pa.table({"kind": kinds, "id": ids}).group_by(["kind", "id"]).aggregate([])  # a source counts once for a kind
    counted = each.group_by("kind").aggregate([([], "count_all"), ("id", "min")])
    for row in counted.sort_by([("count_all", "descending"), ("kind", "ascending")]).to_pylist():
        yield RemarkKind(row["kind"], row["count_all"], row["id_min"])
