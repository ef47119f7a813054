"""Forgetting videos: they leave every result and their clips the disk at once, the rest with the next compaction."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.footage.forgotten_people import blanked, places_of
from pipeline.footage.recordings import ends
from pipeline.gallery.audit import append_record, check_policy, on_behalf_of
from pipeline.gallery.clip_cache import delete_clips
from pipeline.gallery.forgotten import FORGOTTEN_SCHEMA, Forgotten, read_forgotten
from pipeline.gallery.gallery import Gallery, Snapshot


@dataclass(frozen=True)
class Selection:
    """Videos to forget, by one of the criteria.

    before: aware datetime. A video is older than that when it ends before (seen_to); where that is not known, when it starts
    before; where no time is known, when it was ingested before.
    """

    video_ids: tuple[str, ...] = ()
    camera: str | None = None
    before: datetime | None = None
    person: str | None = None

    def of(self, snapshot: Snapshot) -> pa.Table:
        """The rows of Snapshot.videos that are chosen, and their copies: what shows the same bytes (`Forgotten.covered`).

        Raises UsageError for an id, a camera or a label that no video has, and unless there is one criterion to choose by.
        """
        videos = snapshot.videos
        given = [
            (column, value, compare)
            for column, value, compare in (
                ("video_id", self.video_ids, pc.is_in),
                ("camera_id", self.camera, pc.equal),
                ("person_id", self.person, pc.equal),
                ("time", self.before, pc.less),
            )
            if value
        ]
        if not given:
            raise UsageError("say what to forget: a video id, a camera, a time or a person")
        if len(given) > 1:
            raise UsageError("choose by ids, by camera, by time or by person, one at a time; nothing was forgotten")
        if unknown := set(self.video_ids) - set(videos["video_id"].to_pylist()):
            raise UsageError(f"the gallery has no video {min(unknown)!r}; nothing was forgotten")
        ((column, value, compare),) = given
        held = _time(videos) if column == "time" else videos[column]
        wanted = pa.array(value, held.type) if column == "video_id" else pa.scalar(value, held.type)
        chosen = videos.filter(compare(held, wanted))
        if len(chosen) == 0 and column in ("camera_id", "person_id") and not len(self.recordings(snapshot)):
            words = {"camera_id": "camera", "person_id": "person label"}[column]
            raise UsageError(f"the gallery has no video with the {words} {value!r}; nothing was forgotten")
        recordings = self.recordings(snapshot)["source_id"].combine_chunks()  # whoever begins in one goes with it
        gone = np.asarray(pc.is_in(videos["video_id"], chosen["video_id"].combine_chunks()))
        gone = gone | np.asarray(pc.is_in(videos["source_id"], recordings))
        return videos.filter(pa.array(gone | _tombstones(snapshot, chosen).covered(videos)))

    def recordings(self, snapshot: Snapshot) -> pa.Table:
        """The rows of Snapshot.recordings that are chosen as a whole: by their camera, or since they end before."""
        table = snapshot.recordings
        if self.camera is not None:
            return table.filter(pc.equal(table["camera_id"], self.camera))
        if self.before is None:
            return table.slice(0, 0)
        old = [
            (ends(row) if row["start_time"] is not None else row["ingested_at"]) < self.before
            for row in table.select(["start_time", "last_s", "fps", "ingested_at"]).to_pylist()
        ]
        return table.filter(pa.array(old, pa.bool_()))

    def undated(self, snapshot: Snapshot) -> list[str]:
        """Ids of the videos that `before` cannot judge, because no time of theirs is known."""
        return snapshot.videos.filter(pc.is_null(_time(snapshot.videos)))["video_id"].to_pylist() if self.before else []


def _time(videos: pa.Table) -> pa.ChunkedArray:
    """When videos end, else start, else were ingested; null where none of these is known."""
    return pc.coalesce(videos["seen_to"], videos["start_time"], videos["ingested_at"])


def _tombstones(snapshot: Snapshot, videos: pa.Table, recordings: pa.Table | None = None) -> Forgotten:
    """What is kept of videos, and of recordings as a whole, that are forgotten.

    Of a track of a recording its id: the number of a track says nothing elsewhere, and the boxes are kept (`forgotten_people`).
    """
    footage = snapshot.of_recordings(videos)
    ids = videos.filter(footage)["video_id"].to_pylist()
    videos = videos.filter(pc.invert(footage))
    rows = list(zip(*(videos[name].to_pylist() for name in FORGOTTEN_SCHEMA.names), strict=True))
    for row in recordings.to_pylist() if recordings is not None else ():
        rows.append((row["source_id"], row["uri"], row["ingested_hash"], None))
    named = frozenset(row[0] for row in rows), frozenset(row[1] for row in rows), frozenset(rows)
    return Forgotten(*named) | Forgotten(ids=frozenset(ids), rows=frozenset((one, None, None, None) for one in ids))


def forget(gallery: Gallery, selection: Selection, reason: str, case: str | None = None, person: str | None = None) -> list[str]:
    """Forget videos: they are in no result from now on, and never come back by another ingest. Returns their ids.

    Copies, the same bytes under other ids, are forgotten along; of a recording of which one track is forgotten the others stay.
    By camera and by time whole recordings go too, with everybody in them. The audit log says who and why first. Their features
    leave the disk with the next compaction. person: who asks for it, where a service has made sure of that; the record then names
    the account that the process runs under as well.
    """
    if not reason.strip():
        raise UsageError("a reason is needed: it goes into the audit log; nothing was forgotten")
    check_policy(gallery, reason, case)
    snapshot = gallery.snapshot()
    chosen = selection.of(snapshot)
    recordings = selection.recordings(snapshot)
    ids = chosen["video_id"].to_pylist()
    if not ids and not len(recordings):
        return []
    who = {} if person is None else on_behalf_of(person)
    record = {**who, "reason": reason, "case": case, "videos": ids}
    append_record(gallery, "forget", record | ({"recordings": recordings["source_id"].to_pylist()} if len(recordings) else {}))
    _commit(gallery, snapshot, chosen, _tombstones(snapshot, chosen, recordings))
    return ids


def take_forgotten(gallery: Gallery, uri: str) -> list[str]:
    """Forget here too what another gallery has forgotten; returns the ids of the videos that were here already, and went.

    uri: a file of `pipeline.gallery.forgotten.write_forgotten`. What has a hash is known by it and its track; what has none, by
    its uri. Ids are of the other gallery and do not count. The audit log is told first. Raises UsageError for a file of another
    kind.
    """
    table = read_forgotten(uri)
    hashed = pc.is_valid(table["ingested_hash"])
    content = [table.filter(hashed)[name].to_pylist() for name in ("ingested_hash", "track")]
    uris = frozenset(pc.drop_null(table.filter(pc.invert(hashed))["uri"]).to_pylist())
    taken = Forgotten(uris=uris, rows=frozenset((None, None, *row) for row in zip(*content, strict=True)))
    snapshot = gallery.snapshot()
    if taken.rows <= snapshot.tombstones.rows and taken.uris <= snapshot.forgotten_uris:
        return []
    gone = taken.covered(snapshot.videos) | np.asarray(pc.is_in(snapshot.videos["uri"], pa.array(sorted(uris), pa.string())))
    here = snapshot.videos.filter(pa.array(gone))
    ids = here["video_id"].to_pylist()
    append_record(gallery, "take_forgotten", {"source": uri, "listed": len(table), "videos": ids})
    _commit(gallery, snapshot, here, taken | _tombstones(snapshot, here))
    return ids


def _commit(gallery: Gallery, snapshot: Snapshot, videos: pa.Table, forgotten: Forgotten) -> None:
    """videos: rows that are forgotten; of people in recordings that stay, all detections are blanked."""
    kept = snapshot.recordings.filter(pa.array(~forgotten.covered_recordings(snapshot.recordings)))
    people = videos.filter(pc.and_(snapshot.of_recordings(videos), _may_be_in(kept, videos)))
    recordings, boxes = blanked(gallery, kept, places_of(gallery, people)) if len(people) else (None, None)
    gallery.commit(None, None, recordings, boxes, kind="forget", forgotten=forgotten)
    of_several = pc.any(pc.is_valid(videos["track"])).as_py()  # the clips of the others may show them
    delete_clips(gallery, None if of_several else videos["video_id"].to_pylist())


def _may_be_in(recordings: pa.Table, videos: pa.Table) -> pa.Array:
    """Which videos may show people of recordings (RECORDINGS_SCHEMA): a camera's that end after one of them begins; bool [n]."""
    begins: dict[str | None, datetime | None] = {}
    for camera, start in zip(recordings["camera_id"].to_pylist(), recordings["start_time"].to_pylist(), strict=True):
        known = begins.get(camera, start)
        begins[camera] = None if known is None or start is None else min(known, start)
    last = zip(videos["camera_id"].to_pylist(), videos["seen_to"].to_pylist(), strict=True)
    starts = [(camera in begins, begins.get(camera), seen) for camera, seen in last]
    return pa.array([there and (start is None or seen is None or seen >= start) for there, start, seen in starts], pa.bool_())
