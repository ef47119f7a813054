"""Drafts: what a build of an index has made so far, for the next build to go on with where it was killed; and leases on that.

index/builds/<build>/lease.json     renewed while the build runs: until LEASE after that a compaction leaves its partitions alone
                     draft.json     of its version what is settled before the first partition is built; written once
                     head/, ...     what its partitions share, as in a version
                     cohort_videos.arrow     the gallery's rows of the cohort's videos
                     finished/<partition>.json     the entry of a partition, written when all of its files are there

The id of a partition begins with that of its build. Times are those of the storage, whoever's clock goes wrong: a lease is as old
as another file that is written there now says.
"""

import contextlib
import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.coattention.head import head_hash
from pipeline.coattention.network import Coattention
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery
from pipeline.index.partition_store import VIDEOS, delete_partition, read_videos, write_videos
from pipeline.index.version_files import FORMAT, partition_store
from pipeline.index.versions import MOST_GROWTH, Index, read_index
from pipeline.settings import IndexSettings
from pipeline.storage.faults import StorageError
from pipeline.storage.local_paths import temporary_folder
from pipeline.storage.location import Location
from pipeline.storage.seals import sealed, unsealed

LEASE = timedelta(hours=24)  # since it was last renewed: time for somebody to see that a build was killed, and to start it again
RENEW_SECONDS = 60.0
PREFIX = 16  # digits that the ids of a build and of its partitions share
_LEASE, _DRAFT, _COHORT = "lease.json", "draft.json", "cohort_videos.arrow"
_OF_LINEAGE = ("cohort/query.npy", "cameras/", "prefilter/", "head/model.")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draft:
    """What a build that was not finished has left. index: what its partitions share, with the cohort's videos as its videos.

    finished: entries of its partitions, with first_video counted through them; videos: their rows, one partition after another.
    """

    build: str
    index: Index
    finished: list[dict[str, Any]]
    videos: pa.Table


def builds(gallery: Gallery) -> Location:
    """Where the drafts of all builds lie."""
    return gallery.location.join("index", "builds")


def new_build() -> str:
    """An id that no other build has."""
    return uuid.uuid4().hex


@contextlib.contextmanager
def leased(gallery: Gallery, build: str, partitions: Sequence[str] = ()) -> Iterator[None]:
    """Hold a lease on what a build makes as long as the context is open, and on partitions of others that it counts on (ids).

    In the end the draft goes, lease and all; where the context fails, it stays if there are partitions for the next build.
    """
    location, content = builds(gallery).join(build, _LEASE), json.dumps({"partitions": list(partitions)}).encode()
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_SECONDS):
            try:
                location.write_atomically(content)
            except StorageError as error:  # it lasts for a day yet
                log.warning("the lease of an index build was not renewed: %s", error)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    try:
        location.write_atomically(content)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
    except BaseException:
        if not _has_finished(gallery, build):
            delete_draft(gallery, build)
        raise
    delete_draft(gallery, build)


def write_draft(gallery: Gallery, build: str, fields: dict[str, Any], cohort_videos: pa.Table, base: Index | None) -> None:
    """Write what is settled of a version; the files that its partitions share lie in the draft's folder already.

    fields: as in a version's manifest; partitions: entries of what an earlier build had finished. base: see `build_index`.
    """
    location = builds(gallery).join(build)
    with temporary_folder() as folder:
        write_videos(cohort_videos, folder / _COHORT)
        location.join(_COHORT).write_atomically((folder / _COHORT).read_bytes())
    location.join(_DRAFT).write_atomically(sealed({**fields, "base": lineage(base)}))


def record_finished(gallery: Gallery, build: str, entry: dict[str, Any]) -> None:
    """Say that a partition is there, by its entry; where that fails, it goes."""
    try:
        builds(gallery).join(build, "finished", f"{entry['id']}.json").write_atomically(sealed(entry))
    except BaseException:
        delete_partition(gallery, entry["id"])
        raise


def lineage(base: Index | None) -> dict[str, str] | None:
    """What the partitions of all versions share that were made of one another by additions: file -> sha256."""
    if base is None:
        return None
    return {name: entry["sha256"] for name, entry in base.manifest["files"].items() if name.startswith(_OF_LINEAGE)}


def find_draft(
    gallery: Gallery, settings: IndexSettings, head: Coattention | None, base: Index | None, gallery_videos: int
) -> Draft | None:
    """The newest draft that a build with these arguments (see `build_index`) can go on with, None where there is none.

    Not one that was drawn from so much fewer videos than there are now (`MOST_GROWTH`) that an index should be built anew.
    """
    folders = _by_age(gallery)
    for build, age in folders:
        if age is None or age > LEASE:  # a compaction may be taking it away
            continue
        with contextlib.suppress(PipelineError, ValueError, LookupError, TypeError, OSError, pa.ArrowException):
            draft = _read(gallery, build, lineage(base))
            if draft is None or draft.index.settings != settings:
                continue
            of_head = draft.index.untrained if head is None else draft.index.manifest["head"] == head_hash(head)
            if of_head and gallery_videos < MOST_GROWTH * draft.index.manifest["drawn"]["gallery_videos"]:
                return draft
    return None


def _read(gallery: Gallery, build: str, of_base: dict[str, str] | None) -> Draft | None:
    location, store = builds(gallery).join(build), partition_store(gallery)
    fields = unsealed(location.join(_DRAFT).read_bytes())
    if fields["format"] != FORMAT or fields["base"] != of_base:
        return None
    if fields["backbone"] != gallery.settings.backbone.identity:
        return None
    tables, finished, first = [], [], 0
    for entry in (*fields["partitions"], *(unsealed(file.read_bytes()) for file in location.join("finished").list())):
        with contextlib.suppress(StorageError, ValueError, OSError, pa.ArrowException):  # taken away: it is built again
            tables.append(read_videos(store.join(entry["id"]), entry["files"][VIDEOS]["sha256"]))
            finished.append({**entry, "first_video": first})
            first += len(tables[-1])
    cohort = pa.ipc.open_file(pa.py_buffer(location.join(_COHORT).read_bytes())).read_all()
    index = read_index(location, store, fields, cohort)
    return Draft(build, index, finished, pa.concat_tables(tables) if tables else cohort.slice(0, 0))


def delete_draft(gallery: Gallery, build: str) -> None:
    """Remove what a build has written beside its partitions, the lease last."""
    location = builds(gallery).join(build)
    files = location.list(recursive=True)
    for file in sorted(files, key=lambda file: (file.name == _LEASE, file.name != _DRAFT)):
        file.delete()
    _remove_folders(location)


def held_partitions(gallery: Gallery) -> Callable[[str], bool]:
    """Whether a partition, by its id, is held by the lease of a build.

    Ask after the partitions were listed, and before it is looked which of them versions name: a build that ends publishes first.
    """
    held: set[str] = set()
    for build, age in _by_age(gallery):
        if age is not None and age <= LEASE:
            with contextlib.suppress(PipelineError, ValueError, TypeError, LookupError):
                held.update(json.loads(builds(gallery).join(build, _LEASE).read_bytes())["partitions"])
            held.add(build[:PREFIX])
    return lambda name: name in held or name[:PREFIX] in held


def delete_drafts(gallery: Gallery, forgotten: pa.Array) -> None:
    """Delete drafts whose lease has run out, and at once those whose cohort holds any of the videos (ids).

    The lease of the latter stays: the build may be running, and takes itself back in the end.
    """
    for build, age in _by_age(gallery):
        location = builds(gallery).join(build)
        if age is None or age > LEASE:
            delete_draft(gallery, build)
        elif _holds_any(location, forgotten):
            for file in location.list(recursive=True):
                if file.name != _LEASE and file.path.split("/")[-2] != "finished":
                    file.delete()


def _holds_any(location: Location, video_ids: pa.Array) -> bool:
    try:
        ids = pa.array(json.loads(location.join("cohort", "video_id.json").read_bytes()), pa.string())
        return bool(pc.any(pc.is_in(ids, video_ids)).as_py())
    except (StorageError, ValueError, TypeError):  # not drawn yet
        return False


def _has_finished(gallery: Gallery, build: str) -> bool:
    """Whether there are partitions in its draft."""
    with contextlib.suppress(StorageError, ValueError, LookupError):
        location = builds(gallery).join(build)
        return bool(location.join("finished").list() or unsealed(location.join(_DRAFT).read_bytes())["partitions"])
    return False


def _by_age(gallery: Gallery) -> list[tuple[str, timedelta | None]]:
    """All builds and how long ago their leases were renewed, by the storage's clock, the newest first; None: without a lease."""
    place = builds(gallery)
    renewed: dict[str, datetime | None] = {}
    for file, info in place.infos(recursive=True):
        build = file.path[len(place.path) + 1 :].split("/")[0]
        if len(build) == 32:
            renewed.setdefault(build, None)
            if file.name == _LEASE:
                renewed[build] = info.mtime
    if not renewed:
        return []
    clock = place.join(f"clock-{uuid.uuid4().hex}")
    clock.write_atomically(b"now")
    now = clock.info().mtime
    clock.delete()
    ages = {build: None if at is None or now is None else now - at for build, at in renewed.items()}
    return sorted(ages.items(), key=lambda item: timedelta.max if item[1] is None else item[1])


def _remove_folders(location: Location) -> None:
    """Remove the empty folders of a local draft."""
    if location.is_local:
        for folder in (*sorted(Path(location.path).glob("*/"), reverse=True), Path(location.path)):
            with contextlib.suppress(OSError):
                folder.rmdir()
