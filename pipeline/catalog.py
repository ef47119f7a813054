"""temporary"""
import csv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
import hashlib
import pyarrow as pa
SOURCE_SCHEMA = pa.schema([("source_id", pa.string()), ("uri", pa.string()), ("kind", pa.string()), ("camera_id", pa.string()), ("start_time", pa.timestamp("us", tz="UTC")), ("person_id", pa.string()), ("boxes_uri", pa.string()), ("reject_reason", pa.string()), ("reject_message", pa.string())])
@dataclass
class Catalog:
    table: pa.Table
    ignored: int = 0
def candidate_id(s, t): return f"{s}#{t}"
def default_video_id(uri): return Path(uri).stem + "-" + hashlib.sha256(uri.encode()).hexdigest()[:12]
def read_catalog(source, *, roots=None):
    base = Path(source).resolve().parent
    rows = []
    for r in csv.DictReader(open(source)):
        rows.append({"source_id": r.get("video_id") or default_video_id(str(base / r["uri"])), "uri": str(base / r["uri"]), "kind": "auto", "camera_id": r.get("camera_id") or None, "start_time": datetime.fromisoformat(r["start_time"]) if r.get("start_time") else None, "person_id": r.get("person_id") or None, "boxes_uri": str(base / r["boxes_uri"]) if r.get("boxes_uri") else None})
    return Catalog(pa.Table.from_pylist(rows, schema=SOURCE_SCHEMA).sort_by("source_id"))
REJECT_REASONS = dict.fromkeys("missing permission_denied empty not_a_video truncated undecodable no_frames boxes_missing boxes_invalid boxes_outside_frame time_limit too_large decoder_crash unreadable_image outside_roots".split(), "")
