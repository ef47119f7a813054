"""Stage 1 of an ingest (`pipeline.ingest.run`): which sources of a catalog need work, in blocks."""

from dataclasses import replace

import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Snapshot
from pipeline.storage.many_rows import gathered, holding, steps

SOURCES_PER_BLOCK = 64  # at most; fewer where there are few videos, so that every worker has
BLOCKS_PER_WORKER = 32  # or more, and the last one at work keeps the others waiting for a thirty-second of the time at most


def missing_sources(
    catalog: pa.Table, snapshot: Snapshot, retry_rejected: bool, again: frozenset[str] = frozenset()
) -> tuple[pa.Table, int]:
    """The catalog's rows that need work, and how many are finished already. again: ids of finished ones that need it anew.

    What was forgotten, under whatever id, stays forgotten. Raises PipelineError when ids and uris are paired otherwise than in
    the snapshot.
    """
    clashes: dict[str, list[str]] = {
        "ids belong to other videos of the gallery": [],
        "videos are in the gallery under other ids": [],
        "ids belonged to videos that were forgotten": [],
    }
    parts = (_missing(part, snapshot, retry_rejected, again, [*clashes.values()]) for part in steps(catalog))
    missing = gathered(parts, catalog.schema)
    for what, found in clashes.items():
        if found:
            raise PipelineError(f"{len(found)} {what}: {', '.join(found[:5])}; one video has one id, and one id one video")
    return missing, len(catalog) - len(missing)


def _missing(
    catalog: pa.Table, snapshot: Snapshot, retry_rejected: bool, again: frozenset[str], clashes: list[list[str]]
) -> pa.Table:
    """Rows of some sources that need work. clashes: lists that take what is paired otherwise, see `missing_sources`."""
    there = of_sources(snapshot, catalog)
    known = pa.concat_tables([table.select(["source_id", "uri"]) for table in (there.videos, there.rejects)])
    uris = dict(zip(known["source_id"].to_pylist(), known["uri"].to_pylist(), strict=True))
    ids = {uri: source_id for source_id, uri in uris.items()}
    rows = list(zip(catalog["source_id"].to_pylist(), catalog["uri"].to_pylist(), strict=True))
    clashes[0] += [f"{i} ({uris[i]})" for i, uri in rows if uris.get(i, uri) != uri]
    clashes[1] += [f"{uri} ({ids[uri]})" for i, uri in rows if ids.get(uri, i) != i]
    clashes[2] += [i for i, uri in rows if i in snapshot.forgotten and uri not in snapshot.forgotten_uris]
    finished = there.finished_sources(count_rejected=not retry_rejected) - again
    wanted = [i not in finished and uri not in snapshot.forgotten_uris for i, uri in rows]
    return catalog.filter(pa.array(wanted, pa.bool_()))


def of_sources(snapshot: Snapshot, catalog: pa.Table) -> Snapshot:
    """A snapshot's videos, rejects and recordings that have the id or the uri of a source of the catalog."""
    ids, uris = (catalog[name].combine_chunks() for name in ("source_id", "uri"))
    tables = snapshot.videos, snapshot.rejects, snapshot.recordings
    of_them = [holding(table, source_id=ids, uri=uris) for table in tables]
    return replace(snapshot, videos=of_them[0], rejects=of_them[1], recordings=of_them[2])


def source_blocks(missing: pa.Table, workers: int) -> list[pa.Table]:
    """The rows in blocks that so many workers take one after another."""
    size = max(1, min(SOURCES_PER_BLOCK, len(missing) // (workers * BLOCKS_PER_WORKER)))
    return [missing.slice(start, size) for start in range(0, len(missing), size)]
