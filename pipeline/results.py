"""What a search gives: leads with their evidence, and the tables they are written to.

A lead is a candidate that deserves a look, not a verdict: rank and score order the looking, the evidence supports or refutes it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.settings import ScoreSettings
from pipeline.storage import resolve

_SPAN = [("target_start_s", pa.float32()), ("target_end_s", pa.float32()), ("candidate_start_s", pa.float32())]
_PAIR = pa.struct([*_SPAN, ("candidate_end_s", pa.float32()), ("score", pa.float32())])
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
    ]
)


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
class VideoRef:
    """Where a video is and what is known of it. track: the track id in the boxes file, or None for the whole frame.

    ingested_hash: of the source when it was ingested (see `pipeline.provenance.source_hash`), None where it is not known.
    box: (x, y, w, h) in pixels, of a target that is what a box shows.
    """

    video_id: str
    uri: str
    camera_id: str | None = None
    start_time: datetime | None = None
    person_id: str | None = None
    boxes_uri: str | None = None
    track: int | None = None
    ingested_hash: str | None = None
    box: tuple[float, float, float, float] | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "VideoRef":
        """Of a row of a gallery's or an index's videos; older ones lack the newest columns."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__ if name in row})


@dataclass(frozen=True)
class Lead:
    """A candidate worth a look. score: the video score; probability: calibrated, None without a calibration.

    prefilter_rank: place in the shortlist, from 1. best_pairs: the best segment pairs, best first. source_hash: of the source as
    it was when the search was made (see `pipeline.provenance.source_hash`), None where it was not read.
    """

    rank: int
    video: VideoRef
    score: float
    probability: float | None
    prefilter_rank: int
    best_pairs: tuple[SegmentPair, ...]
    source_hash: str | None = None

    @property
    def source_changed(self) -> bool:
        """Whether the source is not what was ingested: its pictures then do not show what was scored."""
        return None not in (self.source_hash, self.video.ingested_hash) and self.source_hash != self.video.ingested_hash


@dataclass(frozen=True)
class Proof:
    """Why no other eligible video can be among the leads of an exact search.

    scored: videos that were scored in full; threshold: the score of the last lead, -inf where fewer are eligible; largest_bound:
    no other video can score above it, -inf where all were scored; bounded: videos that each stage of bounds looked at.
    """

    scored: int
    threshold: float
    largest_bound: float
    bounded: tuple[int, ...]


@dataclass(frozen=True)
class SearchResult:
    """The leads for one target, best first, and what was searched.

    target_segments: segments of the target. gallery: its uri; gallery_videos: videos of it that the index holds; not_indexed:
    those that it does not hold yet, None where nobody looked; eligible: those of the index that pass the filters; scored: those
    scored in full; passed_over: those of the shortlist that were not, because the last ones that were brought no lead. filters:
    in words. untrained: no trained head was used. seconds: of the search. reason, case: why it was searched, as given. score: how
    scores were made, normalise as it was in the end. expected_matches: the prior of the probabilities. none_probability: that no
    eligible video shows the target, None without a calibration. calibration: in words, what probabilities rest on, or why there
    are none. proof: of an exact search, else None. audit_head: of the audit log with the record of this search in it, as
    `pipeline.audit.verify` takes it.
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
    searched_by: str | None = None
    reason: str | None = None
    case: str | None = None
    score: ScoreSettings = field(default_factory=lambda: ScoreSettings(normalise="none"))
    expected_matches: float = 1.0
    none_probability: float | None = None
    calibration: str = ""
    proof: Proof | None = None
    audit_head: str | None = None
    passed_over: int = 0
    not_indexed: int | None = None


def results_table(results: Sequence[SearchResult]) -> pa.Table:
    """All leads of all targets, one row each (RESULTS_SCHEMA), in the order of targets and ranks."""
    rows = [
        {
            "target_id": result.target.video_id,
            "rank": lead.rank,
            **{name: getattr(lead.video, name) for name in ("video_id", "uri", "camera_id", "start_time")},
            **{name: getattr(lead, name) for name in ("score", "probability", "prefilter_rank")},
            "best_pairs": [_pair_row(pair) for pair in lead.best_pairs],
            "index_version": result.index_version,
            "model": result.model,
            "source_hash": lead.source_hash,
            "ingested_hash": lead.video.ingested_hash,
            **{name: getattr(lead.video, name) for name in ("boxes_uri", "track")},
            "calibration": result.calibration if lead.probability is not None else None,
            **{name: getattr(result, name) for name in ("gallery", "gallery_videos", "audit_head")},
        }
        for result in results
        for lead in result.leads
    ]
    return pa.Table.from_pylist(rows, schema=RESULTS_SCHEMA)


def write_results(results: Sequence[SearchResult], folder: str | Path) -> None:
    """Write results.parquet and results.csv (best_pairs as JSON) into a folder or below a bucket prefix."""
    table = results_table(results)
    location = resolve(folder)
    location.join("results.parquet").write_atomically(lambda sink: pq.write_table(table, sink))
    pairs = pa.array([json.dumps(row) for row in table["best_pairs"].to_pylist()], pa.string())
    flat = table.set_column(table.schema.get_field_index("best_pairs"), "best_pairs", pairs)
    location.join("results.csv").write_atomically(lambda sink: pyarrow.csv.write_csv(flat, sink))


def _pair_row(pair: SegmentPair) -> dict[str, float]:
    return {
        "target_start_s": pair.target.start_s,
        "target_end_s": pair.target.end_s,
        "candidate_start_s": pair.candidate.start_s,
        "candidate_end_s": pair.candidate.end_s,
        "score": pair.score,
    }
