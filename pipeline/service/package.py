"""The package that hands a case over: a zip that anybody can check and read without this program.

report.html            the offline report of all leads that were called the same person; it plays the clips beside it, and is made
                       from what lies here alone (pipeline.service.extract)
extract.json           the case: what was decided by whom, confirmations, the path, what the searches rest on, where videos are
extract.parquet        the leads as a search's results, with what was decided
pictures/              the frames that speak for each lead, as they were scored
clips/                 the stretches of video around them, where they could be made
records/               the case's chain of records, as they lie in the gallery
AUDIT_HEAD             the heads of the gallery's audit log and of the case's chain, COUNT:SHA256
SHA256SUMS             of all of these, as `sha256sum -c` takes them
"""

import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError, UsageError, VideoError
from pipeline.gallery import audit
from pipeline.gallery.video_ref import VideoRef
from pipeline.search.results import SearchResult, results_table
from pipeline.service.casebook import Case, Judged
from pipeline.service.extract import EXTRACT, SUMS, ClipMade, Side, results_of, said_of_report, sides, write_report_of
from pipeline.storage.hashing import file_sha256

Pictures = Callable[[VideoRef, Mapping[int, float | None]], Mapping[int, np.ndarray]]
"""As `pipeline.search.report_pictures.Pictures`."""
MakesClip = Callable[[VideoRef, float, float], bytes]
"""(video, start, end in seconds) -> an MP4 file; raises VideoError or PipelineError, which say why there is none."""
At = Callable[[str, int | None, int | None], object]
"""(stage, done, total): told how far it is; it may raise to stop that."""
NOTHING = "no lead of this case was called the same person, so there is nothing to hand over"
AROUND_S = 2.0  # of a clip, before and after the segment


def write_package(
    case: Case,
    videos: Mapping[str, VideoRef],
    path: Mapping[str, Any],
    pictures: Pictures,
    clip: MakesClip,
    out: Path,
    at: At = lambda _stage, _done, _total: None,
) -> dict[str, str]:
    """Write the zip and return the SHA-256 of each file in it, by name.

    videos: of the gallery, by id, at least the leads that were called the same person and gallery targets. path: as the interface
    gives it. at: what it raises leaves no zip. Raises UsageError where no lead was called the same person.
    """
    same = [one for one in case.same if one.video_id in videos]
    if not same:
        raise UsageError(NOTHING)
    with tempfile.TemporaryDirectory(prefix="resight-export-") as name:
        folder = Path(name)
        _write_files(case, same, videos, path, pictures, clip, folder, at)
        at("zip", None, None)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        sums = {str(file.relative_to(folder)): _sha256(file) for file in files}
        (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in [*files, folder / SUMS]:
                archive.write(file, f"{case.name}/{file.relative_to(folder)}")
        return {**sums, SUMS: _sha256(folder / SUMS)}


def _write_files(
    case: Case,
    same: list[Judged],
    videos: Mapping[str, VideoRef],
    path: Mapping[str, Any],
    pictures: Pictures,
    clip: MakesClip,
    folder: Path,
    at: At,
) -> None:
    results = results_of(case.name, case.gallery.location.uri, same, videos)
    shown = sides(results)
    leads = shown[-1].number
    clips: dict[str, ClipMade] = {}
    for side in shown:
        at("clips", side.number - 1, leads)
        if side.segments:
            clips[side.clip] = _write_clip(clip, side, folder)
    for side in shown:
        at("pictures", side.number - 1, leads)
        for frame, crop in pictures(side.video, side.frames).items():
            _write(folder / side.picture(frame), _jpeg(crop))
    pq.write_table(_extract(results, case), folder / "extract.parquet")
    document = _document(case, results, path) | said_of_report(videos, clips)
    _write(folder / EXTRACT, json.dumps(document, indent=1, ensure_ascii=False, default=datetime.isoformat))
    at("report", None, None)
    write_report_of(folder, folder)
    for record in case.records:
        name = f"{record['number']:010d}.json"
        _write(folder / "records" / name, json.dumps(record, ensure_ascii=False) + "\n")
    heads = f"{audit.head(case.gallery)}  audit log\n{audit.head(case.gallery, case.chain)}  case {case.name}\n"
    _write(folder / "AUDIT_HEAD", heads)


def _write_clip(clip: MakesClip, side: Side, folder: Path) -> ClipMade:
    """What the report plays around a side's best segment; or why there is nothing."""
    segment = side.segments[0]
    start, end = max(0.0, segment.start_s - AROUND_S), segment.end_s + AROUND_S
    try:
        _write(folder / side.clip, clip(side.video, start, end))
    except (VideoError, PipelineError) as error:
        return ClipMade(start, end, str(error))
    return ClipMade(start, end)


def _extract(results: list[SearchResult], case: Case) -> pa.Table:
    """The leads as `results_table` has them, and who decided and confirmed them."""
    table = results_table(results)
    nothing = pa.nulls(len(table), pa.string())  # the search's record in the audit log says what it was asked
    table = table.set_column(table.schema.get_field_index("settings"), "settings", nothing).replace_schema_metadata(None)
    judged = [case.judged[video_id] for video_id in table["video_id"].to_pylist()]
    more = {
        "decision": [one.decision for one in judged],
        "decided_by": [one.record["who"] for one in judged],
        "decided_at": [one.record["at"] for one in judged],
        "note": [one.record["note"] for one in judged],
        "confirmed_by": [one.confirmation.who if one.confirmation and one.confirmation.agrees else None for one in judged],
    }
    for name, values in more.items():
        table = table.append_column(name, pa.array(values, pa.string()))
    return table


def _document(case: Case, results: list[SearchResult], path: Mapping[str, Any]) -> dict[str, Any]:
    first = case.records[0]
    searches = json.loads(results_table(results).schema.metadata[b"searches"])
    for search in searches:
        del search["settings"], search["filters"]  # the search's record in the audit log says what it was asked
    return {
        "case": case.name,
        **{name: first[name] for name in ("title", "reason")},
        "begun_by": first["who"],
        "begun_at": first["at"],
        "gallery": case.gallery.location.uri,
        "made_at": datetime.now(UTC).isoformat(),
        "path": path,
        "searches": searches,
        "records": list(case.records),
    }


def _write(file: Path, content: str | bytes) -> None:
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_bytes(content.encode("utf-8", "replace") if isinstance(content, str) else content)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return file_sha256(opened)


def _jpeg(crop: np.ndarray) -> bytes:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))
    return data.tobytes()
