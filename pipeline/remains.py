"""What is left on disk of videos that were forgotten: the check behind "gone from the disk after compaction"."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import PipelineError
from pipeline.gallery import Gallery, feature_matrix
from pipeline.storage import Location


def files_with_forgotten(gallery: Gallery) -> dict[str, int]:
    """Uri of each Parquet file of the gallery, committed or not, that still holds forgotten videos -> how many of them.

    Features lie in files that name their videos (shards), or beside one that does (partitions of an index), so this finds them
    all. After jobs.compact only files of writers that were killed within its --orphan-hours may be left. Raises PipelineError
    for a file that cannot be read: what cannot be read cannot be shown to be clean.
    """
    forgotten = pa.array(sorted(gallery.forgotten()), pa.string())
    found: dict[str, int] = {}
    for file in _files(gallery) if len(forgotten) else ():
        if (ids := _video_ids(file)) is not None:
            held = len(pc.unique(ids.filter(pc.is_in(ids, forgotten))))
            found |= {file.uri: held} if held else {}
    return found


def files_with_rows(gallery: Gallery, rows: Sequence[np.ndarray]) -> list[str]:
    """Uris of all files of the gallery whose bytes hold any of these arrays, in Parquet files any row of their features.

    rows: vectors as they would be stored (float16 or float32). Reads every file whole: for tests and audits, not for every day.
    """
    needles = {np.ascontiguousarray(row).tobytes() for row in rows}
    found = []
    for file in _files(gallery):
        data = file.read_bytes()
        if any(needle in data for needle in needles) or (file.name.endswith(".parquet") and _stored_rows(data) & needles):
            found.append(file.uri)
    return found


def _files(gallery: Gallery) -> list[Location]:
    return [*gallery.location.list(recursive=True), *gallery.location.leftovers()]


def _video_ids(file: Location) -> pa.ChunkedArray | None:
    """The column video_id of a Parquet file; None for files of other kinds."""
    with file.open_input() as source:
        if source.read(4) != b"PAR1":
            return None
    try:
        with file.open_input() as source:
            table = pq.ParquetFile(source)
            return table.read(columns=["video_id"])["video_id"] if "video_id" in table.schema_arrow.names else None
    except (OSError, pa.ArrowException) as error:
        if file.name.startswith("."):  # of a writer that was killed before its end: no Parquet reader opens it
            return None
        raise PipelineError(
            f"{file.uri} cannot be read, so it cannot be shown to be free of forgotten videos: {error}"
        ) from error


def _stored_rows(data: bytes) -> set[bytes]:
    table = pq.read_table(pa.BufferReader(data))
    return {row.tobytes() for row in feature_matrix(table)} if "feature" in table.schema.names and len(table) else set()
