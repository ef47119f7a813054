"""Stage 1 of an ingest (`pipeline.ingest.run`): which sources of a catalog need work, in blocks."""

import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery

SOURCES_PER_BLOCK = 64  # at most; fewer where there are few videos, so that every worker has
BLOCKS_PER_WORKER = 32  # or more, and the last one at work keeps the others waiting for a thirty-second of the time at most


def missing_sources(
    catalog: pa.Table, gallery: Gallery, retry_rejected: bool, again: frozenset[str] = frozenset()
) -> tuple[pa.Table, int]:
    """The catalog's rows that need work, and how many are finished already. again: ids of finished ones that need it anew.

    What was forgotten, under whatever id, stays forgotten. Raises PipelineError when ids and uris are paired otherwise than in
    the gallery.
    """
    snapshot = gallery.snapshot()
    known = pa.concat_tables([snapshot.videos.select(["source_id", "uri"]), snapshot.rejects.select(["source_id", "uri"])])
    uris = dict(zip(known["source_id"].to_pylist(), known["uri"].to_pylist(), strict=True))
    ids = {uri: source_id for source_id, uri in uris.items()}
    rows = list(zip(catalog["source_id"].to_pylist(), catalog["uri"].to_pylist(), strict=True))
    _refuse("ids belong to other videos of the gallery", [f"{i} ({uris[i]})" for i, uri in rows if uris.get(i, uri) != uri])
    _refuse("videos are in the gallery under other ids", [f"{uri} ({ids[uri]})" for i, uri in rows if ids.get(uri, i) != i])
    forgotten = [i for i, uri in rows if i in snapshot.forgotten and uri not in snapshot.forgotten_uris]
    _refuse("ids belonged to videos that were forgotten", forgotten)
    finished = snapshot.finished_sources(count_rejected=not retry_rejected) - again
    wanted = pa.array([i not in finished and uri not in snapshot.forgotten_uris for i, uri in rows], pa.bool_())
    missing = catalog.filter(wanted)
    return missing, len(catalog) - len(missing)


def _refuse(what: str, clashes: list[str]) -> None:
    if clashes:
        raise PipelineError(f"{len(clashes)} {what}: {', '.join(clashes[:5])}; one video has one id, and one id one video")


def source_blocks(missing: pa.Table, workers: int) -> list[pa.Table]:
    """The rows in blocks that so many workers take one after another."""
    size = max(1, min(SOURCES_PER_BLOCK, len(missing) // (workers * BLOCKS_PER_WORKER)))
    return [missing.slice(start, size) for start in range(0, len(missing), size)]
