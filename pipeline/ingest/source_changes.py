"""What has become of sources since they were ingested: files that changed or still change, and manifests that were corrected.

A source's *state* is the size and the time of modification of its file and of its boxes file, as they were when they were listed
for an ingest. It costs no reading, and is kept with the source's rows. Where only the time differs, the file is read and its hash
decides: a copy of the same bytes has not changed.
"""

import functools
import operator
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from pipeline.catalog.image_folders import IMAGE_SUFFIXES, image_names, is_image_pattern, matches
from pipeline.catalog.inputs import SOURCE_STATE
from pipeline.decoding.source_hash import source_hash
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import VIDEOS_SCHEMA, Gallery, Snapshot
from pipeline.storage.location import resolve
from pipeline.storage.many_rows import gathered, holding, steps
from pipeline.storage.uris import canonical_uri

STATE = tuple(name for name, _ in SOURCE_STATE)
STILL_CHANGING = "still_changing"  # no reason of rejects/: such a source is in neither table until it rests
ABSENT = ("missing", "no_frames")  # reasons that end when there is a file
ASKED_FOR = 10_000  # sources whose states are in memory
ASKED_AT_ONCE = 32  # files in object stores, one request per file
HASHED_AT_ONCE = 4
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Sized = tuple[int, datetime] | tuple[None, None]
Listed = Callable[[str], dict[str, pafs.FileInfo]]


@dataclass(frozen=True)
class Changes:
    """What differs between a catalog and the gallery. Ids are source ids.

    changed: sources with videos whose files, boxes file or frame rate are not those that were ingested; what was forgotten is not
    among them. again: rejected sources of which that is so. corrections: VIDEOS_SCHEMA, rows of the gallery with what the catalog
    or the files say of them now; corrected: how many of them have another camera, start time or label.
    """

    changed: frozenset[str] = frozenset()
    again: frozenset[str] = frozenset()
    corrections: pa.Table = field(default_factory=VIDEOS_SCHEMA.empty_table)
    corrected: int = 0


def with_states(catalog: pa.Table) -> pa.Table:
    """The catalog (SOURCE_SCHEMA) with the states of its sources, but for those that are refused already.

    Null is what does not exist or cannot be asked: decoding says why.
    """
    listed = functools.lru_cache(maxsize=64)(_listed)
    return gathered((_with_states(part, listed) for part in steps(catalog, ASKED_FOR)), catalog.schema)


def _with_states(catalog: pa.Table, listed: Listed) -> pa.Table:
    columns = [catalog[name].to_pylist() for name in ("uri", "boxes_uri", "reject_reason")]

    def of(row: tuple[str, str | None, str | None]) -> tuple[Any, ...]:
        return (None,) * len(STATE) if row[2] is not None else source_state(row[0], row[1], listed)

    remote = any(not uri.startswith("/") for uri in columns[0])
    rows = zip(*columns, strict=True)
    if remote:
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            states = list(pool.map(of, rows))
    else:
        states = list(map(of, rows))
    for place, (name, kind) in enumerate(SOURCE_STATE):
        values = pa.array([state[place] for state in states], kind)
        catalog = catalog.set_column(catalog.schema.get_field_index(name), pa.field(name, kind), values)
    return catalog


def source_state(uri: str, boxes_uri: str | None, listed: Listed | None = None) -> tuple[Any, ...]:
    """The state of a source now, in the order of STATE.

    listed: lists a prefix of an object store, for folders of images; without it they have no state there.
    """
    return (*_file_state(uri, listed), *(_file_state(boxes_uri, listed) if boxes_uri is not None else (None, None)))


def is_changing(source: dict[str, Any]) -> bool:
    """Whether files of a source (a row of the catalog with its state) are others now than when they were listed.

    A file that is gone, and one that could not be asked, does not count: it is not being written.
    """
    listed = [source.get(name) for name in STATE]
    if listed == [None] * len(STATE):
        return False
    now = source_state(source["uri"], source["boxes_uri"])
    return any(None not in pair and pair[0] != pair[1] for pair in zip(listed, now, strict=True))


def too_young(catalog: pa.Table, quiet_period: float) -> pa.Array:
    """Which sources have a file that was modified in the last quiet_period seconds: bool, without null."""
    since = pa.scalar(datetime.now(UTC) - timedelta(seconds=quiet_period), pa.timestamp("us", tz="UTC"))
    young = [pc.fill_null(pc.greater(catalog[name], since), False) for name in ("source_mtime", "boxes_mtime")]
    return functools.reduce(pc.or_, young)


def find_changes(catalog: pa.Table, gallery: Gallery, snapshot: Snapshot) -> Changes:
    """Compare a catalog with states (see `with_states`) with what the gallery has of its sources.

    What a catalog does not say (null) neither changes nor corrects anything: a folder has no cameras.
    """
    found = [_changes(part, gallery, snapshot) for part in steps(catalog)]
    return Changes(
        changed=frozenset().union(*(one.changed for one in found)),
        again=frozenset().union(*(one.again for one in found)),
        corrections=pa.concat_tables([VIDEOS_SCHEMA.empty_table(), *(one.corrections for one in found)]),
        corrected=sum(one.corrected for one in found),
    )


def _changes(catalog: pa.Table, gallery: Gallery, snapshot: Snapshot) -> Changes:
    """`find_changes` of some sources: all that is compared is what the gallery has of them."""
    ids = catalog["source_id"].combine_chunks()
    videos, rejects = (holding(known, source_id=ids) for known in (snapshot.videos, snapshot.rejects))
    changed, same = changed_files(catalog, videos)
    has_videos = pc.is_in(catalog["source_id"], videos["source_id"].combine_chunks())
    forgotten = catalog.filter(pc.is_in(catalog["uri"], pa.array(sorted(snapshot.forgotten_uris), pa.string())))
    rows = list(_corrections(catalog, gallery, videos, same))
    return Changes(
        changed=changed.difference(forgotten["source_id"].to_pylist()),
        again=rejects_to_try_again(catalog.filter(pc.invert(has_videos)), rejects),
        corrections=pa.Table.from_pylist([row for row, _ in rows], VIDEOS_SCHEMA),
        corrected=sum(said for _, said in rows),
    )


def changed_files(catalog: pa.Table, known: pa.Table) -> tuple[frozenset[str], frozenset[str]]:
    """Ids of sources whose files, boxes file or frame rate are not those that were ingested, and of those that were only written
    anew, with the same bytes.

    catalog: with states (see `with_states`). known: source_id, ingested_at, ingested_hash, frame_rate, boxes_uri and SOURCE_STATE
    of ingested sources.
    """
    ids = catalog["source_id"].combine_chunks()
    place = pc.index_in(ids, value_set=known["source_id"].combine_chunks())
    certain, suspect = (pc.and_(pc.is_valid(place), one) for one in _differing(catalog, known.take(place), "ingested_at"))
    suspects = catalog.filter(suspect)
    hashes = known["ingested_hash"].take(place).filter(suspect).to_pylist()
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        verdicts = list(pool.map(_has_hash, suspects["uri"].to_pylist(), hashes))
    by_verdict: dict[bool | None, set[str]] = {True: set(), False: set(), None: set()}
    for source_id, verdict in zip(suspects["source_id"].to_pylist(), verdicts, strict=True):
        by_verdict[verdict].add(source_id)
    return frozenset({*ids.filter(certain).to_pylist(), *by_verdict[False]}), frozenset(by_verdict[True])


def rejects_to_try_again(catalog: pa.Table, rejects: pa.Table) -> frozenset[str]:
    """Ids of rejected sources whose files are others now than those that were rejected. catalog: with states."""
    place = pc.index_in(catalog["source_id"], value_set=rejects["source_id"].combine_chunks())
    then = rejects.take(place)
    appeared = [
        pc.and_(pc.is_in(then["reason"], pa.array(reasons)), pc.and_(pc.is_null(then[name]), pc.is_valid(catalog[name])))
        for reasons, name in ((ABSENT, "source_size"), (("boxes_missing",), "boxes_size"))
    ]
    differing = functools.reduce(pc.or_, [*_differing(catalog, then, "rejected_at"), *appeared])
    return frozenset(catalog["source_id"].filter(pc.and_(pc.is_valid(place), differing)).to_pylist())


def _differing(catalog: pa.Table, then: pa.Table, ingested: str) -> tuple[Any, Any]:
    """(certainly another source, perhaps another one): bool, one per row, without null.

    then: what the gallery has of each row of the catalog. ingested: its column that says when a source was dealt with; where no
    state was kept, a file that was modified after that may be another one.
    """

    def compared(name: str, operation: Callable[[Any, Any], Any] = pc.not_equal, with_name: str | None = None) -> Any:
        return pc.fill_null(operation(catalog[name], then[with_name or name]), False)

    known, given = pc.is_valid(then["source_size"]), pc.is_valid(catalog["frame_rate"])
    other_rate = pc.and_(known, pc.and_(given, pc.invert(compared("frame_rate", pc.equal))))
    named = pc.and_(pc.is_valid(catalog["boxes_uri"]), pc.invert(compared("boxes_uri", pc.equal)))
    other_boxes = pc.and_(named, pc.or_(known, pc.is_valid(then["boxes_uri"])))
    later = [pc.and_(pc.invert(known), compared(name, pc.greater, ingested)) for name in ("source_mtime", "boxes_mtime")]
    certain = [*map(compared, ("source_size", "boxes_size", "boxes_mtime")), other_rate, other_boxes, later[1]]
    sure = functools.reduce(pc.or_, certain)
    return sure, pc.and_(pc.invert(sure), pc.or_(compared("source_mtime"), later[0]))


def _has_hash(uri: str, digest: str | None) -> bool | None:
    """Whether a source has the bytes that were ingested; None where it cannot be read now."""
    if digest is None:
        return False
    try:
        return source_hash(uri) == digest
    except PipelineError:
        return None


def _corrections(
    catalog: pa.Table, gallery: Gallery, videos: pa.Table, same: Collection[str]
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Rows of the gallery as they should be, and whether the catalog said so. same: sources whose bytes are those ingested."""
    place = pc.index_in(videos["source_id"], value_set=catalog["source_id"].combine_chunks())
    now = catalog.take(place)
    whole = pc.is_null(videos["track"])  # a source's label is not each track's, see pipeline.ingest.commit
    other = {}
    for name in ("camera_id", "start_time", "person_id"):
        differs = pc.and_(pc.is_valid(now[name]), pc.invert(pc.fill_null(pc.equal(now[name], videos[name]), False)))
        other[name] = np.asarray(pc.and_(differs, whole) if name == "person_id" else differs)
    said = functools.reduce(operator.or_, other.values())
    touched = np.asarray(pc.is_in(videos["source_id"], pa.array(sorted(same), pa.string())))
    for number in np.flatnonzero(said | touched).tolist():
        row, source = (table.slice(number, 1).to_pylist()[0] for table in (videos, now))
        if other["start_time"][number]:
            row |= _moved_to(source["start_time"], row, gallery)
        row |= {name: source[name] for name in ("camera_id", "person_id") if other[name][number]}
        if touched[number]:
            row |= {name: source[name] for name in STATE}
        yield row, bool(said[number])


def _moved_to(start: datetime, row: dict[str, Any], gallery: Gallery) -> dict[str, Any]:
    """When a video begins and somebody is seen in it, by another start time; one that had none has its frames' times."""
    if row["start_time"] is not None and None not in (row["seen_from"], row["seen_to"]):
        offsets = [row[name] - row["start_time"] for name in ("seen_from", "seen_to")]
    else:
        times = gallery.read_video(row)["time_s"]
        offsets = [timedelta(seconds=times[place].as_py()) for place in (0, len(times) - 1)]
    seen: dict[str, datetime | None] = {}
    for name, offset in zip(("seen_from", "seen_to"), offsets, strict=True):
        try:
            seen[name] = start + offset
        except OverflowError:  # past what a calendar has
            seen[name] = None
    return {"start_time": start, **seen}


def _file_state(uri: str, listed: Listed | None) -> Sized:
    try:
        location = resolve(uri)
        info = location.info()
        if info.is_file:
            return _sized([info])
        if info.type == pafs.FileType.Directory:
            folder, pattern = location, "*"
        elif is_image_pattern(location.name):
            folder, pattern = resolve(canonical_uri("..", uri)), location.name
        else:
            return None, None
        if folder.is_local:
            return _sized([folder.filesystem.get_file_info(folder.join(name).path) for name in image_names(folder, pattern)])
        infos = listed(folder.uri) if listed is not None else {}
        return _sized([info for name, info in infos.items() if matches(name, pattern)])
    except (PipelineError, OSError):
        return None, None


def _listed(uri: str) -> dict[str, pafs.FileInfo]:
    """The images of a prefix by name."""
    files = ((file.name, info) for file, info in resolve(uri).infos())
    return {name: info for name, info in files if name.lower().endswith(tuple(IMAGE_SUFFIXES)) and not name.startswith(".")}


def _sized(infos: list[pafs.FileInfo]) -> Sized:
    """Bytes in all and the latest time of modification, in whole microseconds as Arrow keeps them."""
    times = [info.mtime_ns for info in infos if info.is_file and info.mtime_ns is not None]
    if not times:
        return None, None
    return sum(info.size for info in infos if info.is_file), _EPOCH + timedelta(microseconds=max(times) // 1000)
