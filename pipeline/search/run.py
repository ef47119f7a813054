"""One accountable search: the policy is checked, and the record written, before anybody sees an answer. Failures are recorded.

Jobs, notebooks and services search through `run`, so that all of them leave the same trace; `search.search_many` ranks and
records nothing.
"""

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cluster import Cluster
from pipeline.decoding.source_hash import source_hash
from pipeline.errors import UsageError
from pipeline.gallery.audit import append_record, check_policy, failures_recorded, head, on_behalf_of, unicode_only, user
from pipeline.gallery.gallery import Gallery, gallery_version
from pipeline.gallery.places import read_places
from pipeline.search.evidence import SourcePictures
from pipeline.search.results import Followed, OnRecord, SearchResult, results_table, write_results
from pipeline.search.targets import GALLERY_PREFIX, Target, Whom, read_targets, target_decoder
from pipeline.settings import FollowSettings, SearchSettings
from pipeline.stopping import Between, going_on, stoppable
from pipeline.storage.faults import StorageError
from pipeline.storage.location import resolve
from pipeline.storage.reach import Reach
from pipeline.storage.uris import canonical_uri

if TYPE_CHECKING:
    from pipeline.index.freshness import Lag
    from pipeline.index.versions import Index
    from pipeline.search.partitions import Partitions
    from pipeline.search.warm import WarmIndex


@dataclass(frozen=True)
class Answer:
    """What a search found, and by now recorded.

    results: one a target, in their order. remarks: what was guessed or mended in reading the targets, in words. named: canonical
    uris of what the caller named. reach: what may be opened for evidence. time_limit: seconds without progress after which
    decoding a picture is given up.
    """

    gallery: Gallery
    index: "Index"
    results: tuple[SearchResult, ...]
    remarks: tuple[str, ...]
    named: tuple[str, ...]
    reach: Reach
    time_limit: float

    @functools.cached_property
    def lag(self) -> "Lag":
        """What the index lacks of the gallery; of a large gallery it may take seconds."""
        from pipeline.index.freshness import index_lag

        return index_lag(self.gallery, self.index)

    def table(self) -> pa.Table:
        """All leads of all targets (RESULTS_SCHEMA), see `pipeline.search.results.results_table`."""
        return results_table(self.results)

    @property
    def changed_sources(self) -> list[str]:
        """Uris of leads whose files are no longer those that were ingested and scored, as far as `with_hashes` looked."""
        return sorted({lead.video.uri for result in self.results for lead in result.leads if lead.source_changed})

    def with_hashes(self, between: Between = going_on) -> "Answer":
        """With the hashes of the leads' local sources as they are now, each read once. between: called before each lead."""
        hashed = functools.cache(functools.partial(_source_hash, reach=self.reach))
        return replace(self, results=tuple(_with_hashes(result, hashed, between) for result in self.results))

    def pictures(self) -> SourcePictures:
        """What reads pictures and clips of targets and leads, in a decoder process; whoever asks for it closes it."""
        # The targets' own pictures may lie outside the gallery's roots: somebody named them.
        roots = self.reach.roots and (*self.reach.roots, *self.named)
        return SourcePictures(self.time_limit, replace(self.reach, roots=roots), self.gallery)

    def write(self, folder: str, report: bool = True, show_labels: bool = False, clips: bool = True) -> str | None:
        """Write results.parquet and results.csv and, if asked for, report.html, whose uri is returned; an older one goes.

        clips: put a clip of each lead into the report, and the scene it was cut out of, some 25 kB each.
        """
        results = [replace(result, not_indexed=self.lag.missing) for result in self.results]
        write_results(results, folder)
        resolve(folder).join("report.html").delete()  # of an earlier search
        if not report:
            return None
        from pipeline.search.report import write_report

        pictures = self.pictures()
        try:
            clip, scene = (pictures.clip, pictures.scene) if clips else (None, None)
            return write_report(results, folder, pictures, show_labels=show_labels, clips=clip, scenes=scene)
        finally:
            pictures.close()


def run(
    gallery: Gallery,
    targets: Sequence[str],
    settings: SearchSettings | None = None,
    reason: str | None = None,
    case: str | None = None,
    *,
    whom: Whom | Sequence[Whom] | None = None,
    frame_rate: float | None = None,
    time_limit: float = 60.0,
    backbone: str | None = None,
    index_version: str | None = None,
    endpoints: Sequence[str] = (),
    out: str | None = None,
    actors: int | None = None,
    cluster: Cluster | str | None = None,
    following: FollowSettings | None = None,
    person: str | None = None,
    warm: "WarmIndex | None" = None,
    watch: Callable[[str], object] | None = None,
    times_as_stored: bool = False,
) -> Answer:
    """Search a gallery for the people that targets show; or follow the one person that all of them show, recorded as that.

    targets: videos, photos or image folders by path or uri, or id:VIDEO_ID of the gallery. With `following` they show one person:
    one search, whose scores are means over all targets and all that is in, one result and one record. reason, case: why, for the
    record; a gallery's policy may require them. whom: who is meant in a single target, or in each; whole pictures are taken of
    all or of none. frame_rate: of targets that carry no times.
    time_limit: seconds without progress after which a target is given up. backbone: where the gallery's is, if it has moved.
    endpoints: object stores that targets may name besides the gallery's own. out: where results will be written, for the record.
    actors, cluster: see `partitions.opened_partitions`. following: how the target's person is followed, see
    `pipeline.search.follow`. person: who searches, where a service has made sure of that; the record then names the account that
    the service runs under beside. warm: the gallery's newest index, kept open between searches in this process; then
    index_version, actors and cluster say nothing. watch: told what is done ("targets", "shortlist", "score", "evidence", ...),
    before it and between its pieces; what it raises, such as `pipeline.stopping.StoppedError`, ends the search, recorded as one
    that failed with these words. times_as_stored: what is found has its times as the gallery has them, for who sets the clocks
    of cameras right later (`SearchResult.by_right_clocks`).

    Raises UsageError where the policy wants more, for a target that cannot be used and for settings that the gallery cannot
    serve, and PipelineError for what is damaged or missing.
    """
    settings, whom = settings or SearchSettings(), whom or Whom()
    meant = [whom] if isinstance(whom, Whom) else whom
    check_policy(gallery, reason, case)
    if following is not None and not targets:
        raise UsageError("say who is followed: a target, or several of one person")
    action = "search" if following is None else "follow"
    asked: dict[str, Any] = {
        "filters": settings.filters(),
        "settings": settings.plain(),
        "reason": reason,
        "case": case,
        "out": None if out is None else unicode_only(out),
        "started_at": _now(),
        **({} if person is None else on_behalf_of(person)),
    } | ({} if following is None else {"following": _unicode(following.plain())})
    unread = _records([{"target": unicode_only(target)} for target in targets], following)
    with failures_recorded(gallery, action, *({"gallery": gallery.location.uri} | one | asked for one in unread)):
        boxes = [one.boxes_uri for one in meant]
        named = [canonical_uri(name) for name in (*targets, *boxes) if name and not name.startswith(GALLERY_PREFIX)]
        reach = gallery.reach(*named, *([canonical_uri(out)] if out else []), endpoints=endpoints)
        whole = any(one.whole_picture for one in meant)
        with target_decoder(gallery, time_limit, whole, frame_rate, reach.endpoints) as decoder:
            if not all(name.startswith(GALLERY_PREFIX) for name in targets):
                decoder.start()
            with _imports():  # of PyTorch: a second, in which the decoder begins
                from pipeline.index.versions import open_index
                from pipeline.search.follow import follow
                from pipeline.search.partitions import WatchedPartitions, opened_partitions
                from pipeline.search.search import search_many

            if warm is None:
                index = open_index(gallery, index_version)
                opening: contextlib.AbstractContextManager[Partitions] = opened_partitions(gallery, index, actors, cluster)
            else:
                index, kept = warm.newest()
                opening = contextlib.nullcontext(kept)
            between = going_on if watch is None else functools.partial(watch, "targets")
            found = read_targets(list(targets), gallery, decoder, backbone, whom, between)
    asked |= {"gallery_version": gallery_version(gallery), "calibration_version": index.calibration_version}
    searched = {"gallery": gallery.location.uri, "index_version": index.version, "model": index.model}
    of_targets = _records([_of_target(target) for target in found], following)
    each = [searched | one | asked for one in of_targets]
    results = []
    with failures_recorded(gallery, action, *each), opening as opened:
        places = {} if times_as_stored else read_places(gallery)  # a damaged file is a failure on record, too
        partitions = opened if watch is None else cast("Partitions", WatchedPartitions(opened, watch))
        # Recorded while a cluster is still joined: what counts records reaches it.
        if following is None:
            searched_for = search_many(gallery, index, partitions, found, settings)
        else:
            searched_for = [follow(gallery, index, partitions, found[0], settings, following, found[1:])]
        for of_target, result in zip(of_targets, searched_for, strict=True):
            append_record(gallery, action, _of_result(result) | asked | of_target | {"ended_at": _now()})
            recorded = replace(result, record=OnRecord(person or user(), reason, case, head(gallery)))
            results.append(recorded.by_right_clocks(places))
    remarks = tuple(
        f"target {target.video.video_id}: {remark}"
        for target in found
        for remark in (*target.remarks, *_of_camera(target, index))
    )
    return Answer(gallery, index, tuple(results), remarks, tuple(named), reach, time_limit)


@contextlib.contextmanager
def _imports() -> Iterator[None]:
    """For large imports: without Python's search for cycles among what they make, a fifth of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _of_camera(target: Target, index: "Index") -> list[str]:
    """What is guessed of a target's camera, in words, where the index tells several apart."""
    if index.cameras is None or not index.cameras.names:
        return []
    camera = index.camera_of(target.video, target.content)
    if camera is None:
        return ["its camera is not known, so it is compared as by no camera in particular; --target-camera names it"]
    if not pc.is_in(pa.scalar(camera), index.videos["camera_id"].combine_chunks()).as_py():
        return [f"the index has no camera {camera!r}, so it is compared as by no camera in particular"]
    return []


def _records(of_targets: list[dict[str, Any]], following: FollowSettings | None) -> list[dict[str, Any]]:
    """What the records of a search say of its targets: one record a target, or one of a person who is followed from several."""
    if following is None or len(of_targets) == 1:
        return of_targets
    return [of_targets[0] | {"further_targets": of_targets[1:]}]


def _of_target(target: Target) -> dict[str, Any]:
    return {"target": target.video.video_id, "target_uri": target.video.uri, "target_hash": target.content}


def _of_result(result: SearchResult) -> dict[str, Any]:
    names = ("gallery", "index_version", "model", "calibration", "gallery_videos", "eligible", "untimed", "scored", "passed_over")
    return (
        {name: getattr(result, name) for name in names}
        | {
            "normalise": result.score.normalise,
            "ratio": result.score.ratio,
            "seconds": round(result.seconds, 3),
            "results": [lead.video.video_id for lead in result.leads],
        }
        | ({} if result.followed is None else {"path": _path(result.followed)})
    )


def _path(followed: Followed) -> dict[str, Any]:
    """Who is in and why, and what cannot be one person, by video id."""
    return {
        "in": {one.video.video_id: one.words for one in followed.appearances},
        "two_places_at_once": [[one.video_id, other.video_id] for one, other in followed.apart],
        "rounds": followed.rounds,
        "rule": followed.rule,
    }


def _unicode(settings: dict[str, Any]) -> dict[str, Any]:
    """With names as a record can hold them."""
    return {name: [*map(unicode_only, value)] if isinstance(value, list) else value for name, value in settings.items()}


def _source_hash(uri: str, reach: Reach) -> str | None:
    """Of a source as it is now; None for one in an object store, out of reach or that went away."""
    try:
        return source_hash(uri, reach) if uri.startswith("/") else None
    except StorageError:
        return None


def _with_hashes(result: SearchResult, hashed: Callable[[str], str | None], between: Between) -> SearchResult:
    """With the hashes of the leads' sources."""
    leads = stoppable(result.leads, between)
    return replace(result, leads=tuple(replace(lead, source_hash=hashed(lead.video.uri)) for lead in leads))
