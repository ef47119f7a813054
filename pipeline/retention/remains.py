"""What is left on disk of videos that were forgotten: the check behind "gone from the disk after compaction"."""

import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.gallery.forgotten import REASON
from pipeline.gallery.gallery import Gallery
from pipeline.storage.faults import StorageError
from pipeline.storage.location import Location


def files_with_forgotten(gallery: Gallery) -> dict[str, int]:
    """Uri of each file of the gallery, committed or not, that still names forgotten videos -> how many of them.

    Features lie in files that name their videos (shards) or beside one that does (partitions and cohorts of an index), so this
    finds them all. 0: a file that cannot be read, and so cannot be shown to be clean. After jobs.compact only what writers left
    who were killed within its --orphan-hours may be here.
    """
    snapshot = gallery.snapshot()
    # An ingest that came upon forgotten bytes under another id had begun to write them: it rejected them, and a shard holds them.
    refused = snapshot.rejects.filter(pc.equal(snapshot.rejects["reason"], REASON))["video_id"].to_pylist()
    forgotten = pa.array(sorted(snapshot.forgotten.union(refused)), pa.string())
    found: dict[str, int] = {}
    # These say what was refused and what was forgotten, and hold nothing of it.
    named = tuple(f"{gallery.location.join(folder).path}/" for folder in ("rejects", "forgotten"))
    files = [file for file, _ in gallery.location.infos(recursive=True) if not file.path.startswith(named)]
    for file in files if len(forgotten) else ():
        try:
            ids = _video_ids(file)
        except (OSError, ValueError, pa.ArrowException, StorageError):
            found[file.uri] = 0
            continue
        if ids is not None and (held := len(pc.unique(ids.filter(pc.is_in(ids, forgotten))))):
            found[file.uri] = held
    return found


def _video_ids(file: Location) -> pa.ChunkedArray | pa.Array | None:
    """The video ids that a Parquet file, an Arrow file, a list of ids in JSON or a commit's rows name (of detections: the ids of
    recordings); None for files of other kinds.
    """
    if "/commits/" in file.path and file.name.endswith(".json"):
        rows = json.loads(file.read_bytes()).get("rows", {})
        return pa.array([row["video_id"] for kind in ("videos", "corrections") for row in rows.get(kind, ())], pa.string())
    if file.name == "video_id.json":
        return pa.array(json.loads(file.read_bytes()), pa.string())
    with file.open_input() as source:
        kind = source.read(6)
        if kind == b"ARROW1":
            table = pa.ipc.open_file(source).read_all()
            return table["video_id"] if "video_id" in table.schema.names else None
        if kind[:4] == b"PAR1":
            parquet = pq.ParquetFile(source)
            named = next((name for name in ("video_id", "recording_id") if name in parquet.schema_arrow.names), None)
            return parquet.read(columns=[named])[named] if named is not None else None
    return None
