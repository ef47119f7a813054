"""What an ingest of recordings did, counted as it goes on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.footage.recordings import Irregularity
from pipeline.gallery.source_notes import SourceNotes


@dataclass
class FootageSummary:
    """What an ingest of recordings did.

    recordings: of the plan; already: that were dealt with before; changed: uris whose files are others by now; updated: how many
    of them were taken in again; corrected: recordings that got another camera or start; moved: that lie elsewhere now; left: for
    the next ingest. seconds_read: of recordings; looked_at: frames; detections: people in them; reasons: reject reason ->
    recordings, of this run, and rejects: rows of the first few (uri, video_id, reason, message). in_chunks: recordings that were
    read in so many `chunks`; undivided: uris of long ones that were read as a whole -> why. unnamed: files that the pattern does
    not fit. unfilmed: cameras that have a clock, and no recording. offsets: seconds that clocks are ahead, of the plan's
    recordings whose times are corrected by that. notes: on the plan's recordings, those of before too. runs, candidates: see
    `tracks.TrackingSummary`.
    """

    recordings: int = 0
    already: int = 0
    changed: tuple[str, ...] = ()
    updated: int = 0
    corrected: int = 0
    moved: int = 0
    left: int = 0
    done: int = 0
    seconds_read: float = 0.0
    looked_at: int = 0
    detections: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    in_chunks: int = 0
    chunks: int = 0
    undivided: dict[str, str] = field(default_factory=dict)
    unaccounted: int = 0
    unnamed: tuple[str, ...] = ()
    unfilmed: tuple[str, ...] = ()
    offsets: tuple[float, ...] = ()
    notes: SourceNotes = field(default_factory=SourceNotes)
    runs: int = 0
    candidates: int = 0
    irregularities: Sequence[Irregularity] = ()
    startup_s: float = 0.0
    seconds: float = 0.0
