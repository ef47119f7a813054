"""What a search gives: leads with their evidence, and the tables they are written to.

A lead is a candidate that deserves a look, not a verdict: rank and score order the looking, the evidence supports or refutes it.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.gallery.places import CameraPlace, with_right_time, wrong_clocks
from pipeline.gallery.video_ref import VideoRef
from pipeline.settings import ScoreSettings, SearchSettings
from pipeline.storage.location import Location, resolve

_SPAN = [("target_start_s", pa.float32()), ("target_end_s", pa.float32()), ("candidate_start_s", pa.float32())]
_FRAMES = [
    (f"{side}_{name}", pa.list_(kind))
    for side in ("target", "candidate")
    for name, kind in (("frames", pa.int32()), ("attention", pa.float32()))
]
_PAIR = pa.struct([*_SPAN, ("candidate_end_s", pa.float32()), ("score", pa.float32()), *_FRAMES])
RESULTS_SCHEMA = pa.schema(
    [
        ("target_id", pa.string()),
        ("rank", pa.int32()),
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("camera_id", pa.string()),
        ("start_time", pa.timestamp("us", tz="UTC")),
        ("score", pa.float64()),
        ("probability", pa.float64()),
        ("prefilter_rank", pa.int32()),
        ("best_pairs", pa.list_(_PAIR)),
        ("index_version", pa.string()),
        ("model", pa.string()),
        ("source_hash", pa.string()),
        ("ingested_hash", pa.string()),
        ("boxes_uri", pa.string()),
        ("track", pa.int64()),
        ("calibration", pa.string()),
        ("gallery", pa.string()),
        ("gallery_videos", pa.int64()),
        ("audit_head", pa.string()),
        ("seen_from", pa.timestamp("us", tz="UTC")),
        ("seen_to", pa.timestamp("us", tz="UTC")),
        ("eligible", pa.int64()),
        ("scored", pa.int64()),
        ("untimed", pa.int64()),
        ("none_probability", pa.float64()),
        ("expected_matches", pa.float64()),
        ("settings", pa.string()),
        ("filters", pa.list_(pa.string())),
        ("reason", pa.string()),
        ("case", pa.string()),
        ("searched_by", pa.string()),
        ("searched_at", pa.timestamp("us", tz="UTC")),
        ("strength", pa.string()),
    ]
)
# What is said of a search in each of its rows and, since it may have none, in the table's metadata.
_OF_SEARCH = (
    *("index_version", "model", "gallery", "gallery_videos", "eligible", "scored", "untimed", "none_probability"),
    *("expected_matches", "searched_at"),
)
PATH_SCHEMA = pa.schema(
    [
        ("target_id", pa.string()),
        ("place", pa.int32()),
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("camera_id", pa.string()),
        ("seen_from", pa.timestamp("us", tz="UTC")),
        ("seen_to", pa.timestamp("us", tz="UTC")),
        ("why", pa.string()),
        ("round", pa.int32()),
        ("score", pa.float64()),
        ("strangers", pa.float64()),
        ("elsewhere_at_once", pa.list_(pa.string())),
        ("index_version", pa.string()),
        ("audit_head", pa.string()),
    ]
)
_OPENS_FORMULA = re.compile(r"[=+\-@\t\r\n]")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class SegmentView:
    """One segment as evidence: its frames and how much each of them counted.

    frame_index: frames of the source, from 0; a short video's last frame repeats. time_s: seconds from the video's first frame.
    attention: sums to 1. All three have T entries.
    """

    frame_index: tuple[int, ...]
    time_s: tuple[float, ...]
    attention: tuple[float, ...]

    @property
    def start_s(self) -> float:
        return self.time_s[0]

    @property
    def end_s(self) -> float:
        return self.time_s[-1]


@dataclass(frozen=True)
class SegmentPair:
    """A target segment and a candidate segment, and the score of the two, 0..1."""

    target: SegmentView
    candidate: SegmentView
    score: float


@dataclass(frozen=True)
class Lead:
    """A candidate worth a look. score: the video score; probability: calibrated, None where the gallery supports none;
    strength: in words then (`pipeline.coattention.gallery_calibration`), None where not even these are known.

    prefilter_rank: place in the shortlist, from 1. best_pairs: the best segment pairs, best first. source_hash: of the source as
    it was when the search was made (see `pipeline.decoding.source_hash.source_hash`), None where it was not read.
    """

    rank: int
    video: VideoRef
    score: float
    probability: float | None
    prefilter_rank: int
    best_pairs: tuple[SegmentPair, ...]
    source_hash: str | None = None
    strength: str | None = None

    @property
    def source_changed(self) -> bool:
        """Whether the source is not what was ingested: its pictures then do not show what was scored."""
        return None not in (self.source_hash, self.video.ingested_hash) and self.source_hash != self.video.ingested_hash


@dataclass(frozen=True)
class Appearance:
    """A video that a person who is followed is taken to appear in, and why.

    why: "target", "confirmed" by a person, or "joined" automatically, in this `round`, from 1 (0 otherwise). score: against all
    that were in before, of what joined. strangers: how many of them were expected to score as well.
    """

    video: VideoRef
    why: str
    round: int = 0
    score: float | None = None
    strangers: float | None = None

    @property
    def words(self) -> str:
        """Why it is in, for a person to read."""
        if self.why != "joined":
            return self.why
        sure = [] if self.strangers is None else [f"{self.strangers:.2g} strangers expected to score so"]
        return ", ".join([f"joined in round {self.round}", f"score {self.score:.4f}", *sure])


@dataclass(frozen=True)
class Followed:
    """One person across a gallery. appearances: in the order of time, those without a time last.

    apart: pairs of videos that cannot both show one person, since they show somebody in two cameras at once; the first of each is
    an appearance, the second one too if both are confirmed. rounds: in which something joined. rule: what let leads join, in
    words.
    """

    appearances: tuple[Appearance, ...]
    apart: tuple[tuple[VideoRef, VideoRef], ...]
    rounds: int
    rule: str

    @property
    def why(self) -> dict[str, Appearance]:
        """The appearances by video id."""
        return {one.video.video_id: one for one in self.appearances}

    def elsewhere(self, video_id: str) -> list[str]:
        """Ids of videos that show somebody in another camera at the same time as this one."""
        pairs = [(one.video_id, other.video_id) for one, other in self.apart]
        return [other for one, other in pairs + [pair[::-1] for pair in pairs] if one == video_id]


@dataclass(frozen=True, eq=False)
class AllScores:
    """The scores of all videos that were scored in full. videos: int64 [m], rows of Index.videos; scores: float64 [m]."""

    videos: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class OnRecord:
    """What a search's record in the audit log says beside its ranking: who searched, why and for which case, as given.

    audit_head: of the log with the record in it, as `pipeline.gallery.audit.verify` takes it. All None of a search that nobody
    recorded.
    """

    searched_by: str | None = None
    reason: str | None = None
    case: str | None = None
    audit_head: str | None = None


@dataclass(frozen=True)
class SearchResult:
    """The leads for one target, best first, and what was searched.

    target_segments: segments of the target. gallery: its uri; gallery_videos: videos of it that the index holds; not_indexed:
    those that it does not hold yet, None where nobody looked; eligible: those of the index that pass the filters; untimed: those
    that a filter on times left out because they have none, None without one; scored: those scored in full; passed_over: those of
    the shortlist that were not, because the last ones that were brought no lead. settings: what was asked for; filters: in words.
    untrained: no trained head was used. seconds: of the search. record: who searched and why. score: how scores were made,
    normalise as it was in the end. expected_matches: the prior of the probabilities; none_probability: that no eligible video
    shows the target; both None where there are no probabilities. calibration: in words, what probabilities rest on, or why there
    are none. followed: where the target's person was followed to, None in a plain search; leads then hold what is in, too, each
    scored by all others that are. further: other targets of the same person, that scores are means over as well. all_scores: None
    where nobody kept them.
    """

    target: VideoRef
    target_segments: int
    leads: tuple[Lead, ...]
    gallery: str
    gallery_videos: int
    eligible: int
    scored: int
    index_version: str
    model: str
    untrained: bool
    filters: tuple[str, ...] = ()
    seconds: float = 0.0
    searched_at: datetime | None = None
    record: OnRecord = OnRecord()
    score: ScoreSettings = field(default_factory=lambda: ScoreSettings(normalise="none"))
    expected_matches: float | None = None
    none_probability: float | None = None
    calibration: str = ""
    passed_over: int = 0
    not_indexed: int | None = None
    untimed: int | None = None
    settings: SearchSettings = field(default_factory=SearchSettings)
    followed: Followed | None = None
    further: tuple[VideoRef, ...] = ()
    all_scores: AllScores | None = field(default=None, compare=False, repr=False)

    @property
    def targets(self) -> tuple[VideoRef, ...]:
        """The target, and the others that were searched for together with it."""
        return self.target, *self.further

    @property
    def exact(self) -> bool:
        """Whether all eligible videos were scored because that was asked for: no other can be among the leads."""
        return self.settings.exact and self.scored == self.eligible

    @property
    def copies(self) -> dict[int, int]:
        """Of leads (and their track) that lie in another file of the same bytes as a lead before: rank -> rank of the first."""
        first: dict[tuple[str, int | None], Lead] = {}
        copies: dict[int, int] = {}
        for lead in self.leads:
            if lead.video.ingested_hash is not None:
                one = first.setdefault((lead.video.ingested_hash, lead.video.track), lead)
                copies |= {lead.rank: one.rank} if one.video.uri != lead.video.uri else {}
        return copies

    def by_right_clocks(self, places: Mapping[str, CameraPlace]) -> "SearchResult":
        """With the times that right clocks would have given its videos, see `pipeline.gallery.places`."""
        if not wrong_clocks(places):
            return self

        def right(video: VideoRef) -> VideoRef:
            return with_right_time(video, places)

        followed = self.followed
        if followed is not None:
            there = tuple(replace(one, video=right(one.video)) for one in followed.appearances)
            followed = replace(followed, appearances=there, apart=tuple((right(a), right(b)) for a, b in followed.apart))
        leads = tuple(replace(lead, video=right(lead.video)) for lead in self.leads)
        further = tuple(map(right, self.further))
        return replace(self, target=right(self.target), leads=leads, followed=followed, further=further)

    @property
    def untimed_words(self) -> str | None:
        """How many videos a filter on times left out because they have none; None where there are none."""
        if not self.untimed:
            return None
        return (
            "1 video has no time and was left out"
            if self.untimed == 1
            else f"{self.untimed:,} videos have no time and were left out"
        )


def results_table(results: Sequence[SearchResult]) -> pa.Table:
    """All leads of all targets, one row each (RESULTS_SCHEMA), in the order of targets and ranks.

    The schema's metadata says what was searched, also where there is no lead: in "searches", a JSON list of an object per target.
    """
    searches = [_search_row(result) for result in results]
    rows = [
        {
            **of_search,
            "rank": lead.rank,
            **{name: getattr(lead.video, name) for name in ("video_id", "uri", "camera_id", "start_time")},
            **dict(zip(("seen_from", "seen_to"), lead.video.seen or (None, None), strict=True)),
            **{name: getattr(lead, name) for name in ("score", "probability", "prefilter_rank", "source_hash", "strength")},
            **{name: getattr(lead.video, name) for name in ("ingested_hash", "boxes_uri", "track")},
            "best_pairs": [_pair_row(pair) for pair in lead.best_pairs],
            "calibration": result.calibration or None,
        }
        for result, of_search in zip(results, searches, strict=True)
        for lead in result.leads
    ]
    more = ("target_segments", "not_indexed", "passed_over", "calibration", "seconds")
    said = [
        {
            **of_search,
            "settings": result.settings.plain(),
            "targets": [video.video_id for video in result.targets],
            **{name: getattr(result, name) for name in more},
        }
        for result, of_search in zip(results, searches, strict=True)
    ]
    metadata = {"searches": json.dumps(said, default=datetime.isoformat)}
    return pa.Table.from_pylist(rows, schema=RESULTS_SCHEMA.with_metadata(metadata))


def path_table(results: Sequence[SearchResult]) -> pa.Table:
    """All appearances of those who were followed, one row each (PATH_SCHEMA), in the order of targets and of time."""
    rows = [
        {
            "target_id": result.target.video_id,
            "place": place,
            **{name: getattr(one.video, name) for name in ("video_id", "uri", "camera_id")},
            **dict(zip(("seen_from", "seen_to"), one.video.seen or (None, None), strict=True)),
            **{name: getattr(one, name) for name in ("why", "round", "score", "strangers")},
            "elsewhere_at_once": result.followed.elsewhere(one.video.video_id),
            "index_version": result.index_version,
            "audit_head": result.record.audit_head,
        }
        for result in results
        if result.followed is not None
        for place, one in enumerate(result.followed.appearances, start=1)
    ]
    return pa.Table.from_pylist(rows, schema=PATH_SCHEMA)


def write_results(results: Sequence[SearchResult], folder: str | Path) -> None:
    """Write results.parquet and, for spreadsheets, results.csv into a folder or below a bucket prefix.

    Where somebody was followed, path.parquet and path.csv too (`path_table`); else those of an earlier search go. In a CSV file
    times are ISO 8601 in UTC, numbers are rounded, best_pairs is JSON without the single frames, and a text that a spreadsheet
    would take for a formula begins with an apostrophe.
    """
    location = resolve(folder)
    _write_table(results_table(results), location, "results")
    if any(result.followed is not None for result in results):
        _write_table(path_table(results), location, "path")
    else:
        location.join("path.parquet").delete()
        location.join("path.csv").delete()


def _write_table(table: pa.Table, folder: Location, name: str) -> None:
    """Write NAME.parquet and NAME.csv."""
    folder.join(f"{name}.parquet").write_atomically(lambda sink: pq.write_table(table, sink))
    folder.join(f"{name}.csv").write_atomically(table_csv(table).encode())


def table_csv(table: pa.Table) -> str:
    """A table of results as a spreadsheet reads it, see `write_results`."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(table.column_names)
    lines.writerows([_cell(value) for value in row.values()] for row in table.to_pylist())
    return text.getvalue()


def _search_row(result: SearchResult) -> dict[str, Any]:
    return {
        "target_id": result.target.video_id,
        **{name: getattr(result, name) for name in _OF_SEARCH},
        **vars(result.record),
        "settings": json.dumps(result.settings.plain()),
        "filters": list(result.filters),
    }


def _pair_row(pair: SegmentPair) -> dict[str, Any]:
    return {
        "target_start_s": pair.target.start_s,
        "target_end_s": pair.target.end_s,
        "candidate_start_s": pair.candidate.start_s,
        "candidate_end_s": pair.candidate.end_s,
        "score": pair.score,
        "target_frames": pair.target.frame_index,
        "target_attention": pair.target.attention,
        "candidate_frames": pair.candidate.frame_index,
        "candidate_attention": pair.candidate.attention,
    }


def _cell(value: Any) -> Any:
    """A value of a table as a person reads it in a spreadsheet, which must not run it."""
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1 else f"{round(value, 4):.15g}"
    if isinstance(value, datetime):
        whole = "milliseconds" if value.microsecond else "seconds"
        return value.astimezone(UTC).isoformat(timespec=whole).replace("+00:00", "Z")
    if isinstance(value, list) and value and isinstance(value[0], dict):
        names = [name for name in value[0] if not isinstance(value[0][name], list)]
        return json.dumps([{name: float(_cell(pair[name])) for name in names} for pair in value])
    if isinstance(value, list):
        value = "; ".join(value)
    if not isinstance(value, str):
        return value
    safe = f"'{value}" if _OPENS_FORMULA.match(value) else value
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", safe.replace("\r\n", "\n"))
