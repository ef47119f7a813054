"""What the user of an index and of a search decides, checked. No PyTorch here: commands read their flags' defaults without it."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, time
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pipeline.errors import UsageError
from pipeline.segments import segment_starts
from pipeline.time_windows import moment_words

PREFILTERS = ("auto", "exact", "compressed")
CAMERAS = ("auto", "ignore")
JOIN_BY = ("strangers", "nobody")
MOST_NEIGHBOURS = 100  # each is compared with every video that is scored
LONGEST_SEGMENT = 1024  # frames; longer ones are a mistake and would not fit into memory


@dataclass(frozen=True)
class IndexSettings:
    """segment_length: T, frames a segment; stride: frames between segments; partition_videos: videos a partition.

    prefilter: "exact" compares a target with the mean of every segment; "compressed" with those in the nearest inverted lists, as
    product-quantised vectors; "auto" is compressed where a new index has more than FLAT_SEGMENTS segments.
    cameras: "auto" takes off what each camera does to everybody (`pipeline.coattention.cameras`); "ignore" does not.
    """

    segment_length: int = 8
    stride: int = 4
    partition_videos: int = 20_000
    prefilter: str = "auto"
    cameras: str = "auto"

    def __post_init__(self) -> None:
        segment_starts(1, self.segment_length, self.stride)  # raises UsageError for sizes below 1
        if self.segment_length > LONGEST_SEGMENT:
            raise UsageError(f"a segment has at most {LONGEST_SEGMENT} frames, not {self.segment_length}")
        if self.prefilter not in PREFILTERS:
            raise UsageError(f"a prefilter is one of {', '.join(PREFILTERS)}, not {self.prefilter!r}")
        if self.cameras not in CAMERAS:
            raise UsageError(f"cameras are told apart by auto or by ignore, not by {self.cameras!r}")
        if self.partition_videos < 1:
            raise UsageError(f"a partition holds at least 1 video, not {self.partition_videos}")


@dataclass(frozen=True)
class ScoreSettings:
    """How a video's N x K pair scores become one video score ([0054], claim 9).

    ratio: the top share that counts, ceil(ratio * N * K) scores and so at least one; above 0, at most 1. The patent's
        text and the authors' code take 0.2. None: all pairs count, the better and the more visible the more
        (`pipeline.scoring.video_scores.visible_logits`); no share holds both where nobody is hidden and where people are for
        most of a video.
    threshold: if given, all scores of at least this value count instead of a share (compared in float64); a video
        with none scores 0.
    aggregate: "mean" or "sum" of the scores that count, where a share or a threshold says which. The patent adds them; but a
        sum over a share grows with N x K, so that long videos win by length. The mean compares videos of different length,
        and is what the authors' code does.
    normalise: "cohort" measures every score against a sample of the gallery (`pipeline.coattention.cohort`), "none" is the
    patent's.
    neighbours: by way of so many of the best videos others are reached (`pipeline.search.neighbours`); 0 leaves it out. Only
    where all pairs count and scores are normalised.

    Raises UsageError for values outside these ranges.
    """

    ratio: float | None = None
    threshold: float | None = None
    aggregate: Literal["mean", "sum"] = "mean"
    normalise: Literal["cohort", "none"] = "cohort"
    neighbours: int = 1

    @property
    def alone(self) -> "ScoreSettings":
        """The same without neighbours: what a video says by itself, which is what probabilities are of."""
        return replace(self, neighbours=0)

    @property
    def all_pairs(self) -> bool:
        """Whether neither a share nor a threshold says which pairs count."""
        return self.ratio is None and self.threshold is None

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise UsageError(f"the top share of scores must be above 0 and at most 1, not {self.ratio}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"the score threshold must be from 0 to 1, as scores are, not {self.threshold}")
        if self.aggregate not in ("mean", "sum"):
            raise UsageError(f"scores are aggregated by mean or sum, not by {self.aggregate!r}")
        if self.aggregate == "sum" and self.all_pairs:
            raise UsageError("a sum of scores needs to know which: give a top share (the patent's is 0.2) or a threshold")
        if self.normalise not in ("cohort", "none"):
            raise UsageError(f"scores are normalised by cohort or by none, not by {self.normalise!r}")
        if not 0 <= self.neighbours <= MOST_NEIGHBOURS:
            raise UsageError(f"the number of neighbours must be from 0 to {MOST_NEIGHBOURS}, not {self.neighbours}")


@dataclass(frozen=True)
class SearchSettings:
    """What is asked for.

    top: leads a target; shortlist: best videos of the prefilter, None for all, and at least shortlist_share of those that pass
    the filters. patience: so many of them are scored at a time, best first and twice as many at first, until the last so many
    hold none of the `top`; None: all of them are scored. cameras: only these; other_cameras: all but the target's own. after,
    before: only videos in which somebody is seen at some instant of [after, before), aware datetimes. between: only those in
    which somebody is seen while clocks in `zone` show a time in [between[0], between[1]), over midnight where the second is
    earlier. zone: a name of the time zone database, in which times are shown too. Videos without a time pass no filter on times.
    target_length, target_stride: frames of a target's segments, None for the index's own. pairs: segment pairs of evidence a
    lead; evidence: False leaves them out, where only the ranking is of interest. score: see ScoreSettings.
    expected_matches: on how many eligible videos the person is expected, the prior of the probabilities; None: as often as people
    recur in the gallery. exact: the true first
    `top` of all eligible videos, which are all scored, whatever the patience.
    """

    top: int = 20
    shortlist: int | None = 1000
    shortlist_share: float = 0.01
    patience: int | None = 1000
    exact: bool = False
    cameras: tuple[str, ...] = ()
    other_cameras: bool = False
    after: datetime | None = None
    before: datetime | None = None
    between: tuple[time, time] | None = None
    zone: str = "UTC"
    target_length: int | None = None
    target_stride: int | None = None
    pairs: int = 3
    evidence: bool = True
    expected_matches: float | None = None
    score: ScoreSettings = field(default_factory=ScoreSettings)

    def __post_init__(self) -> None:
        counts = (self.top, self.pairs, self.shortlist, self.patience)
        if any(count is not None and count < 1 for count in counts):
            raise UsageError("top, pairs, shortlist and patience must be at least 1")
        if not 0 <= self.shortlist_share <= 1:
            raise UsageError(f"a shortlist is a share from 0 to 1 of the videos, not {self.shortlist_share}")
        if self.expected_matches is not None:
            check_expected_matches(self.expected_matches)
        if self.after is not None and self.before is not None and self.after >= self.before:
            raise UsageError(f"the time window is empty: it starts at {self.after} and ends before {self.before}")
        if self.between is not None and self.between[0] == self.between[1]:
            raise UsageError(f"a daily window from {self.between[0]:%H:%M} to {self.between[1]:%H:%M} is empty; name two times")
        try:
            ZoneInfo(self.zone)
        except (KeyError, ValueError, OSError) as error:
            raise UsageError(f"{self.zone!r} is no time zone; name one of the time zone database, as Europe/London") from error

    @property
    def filters_times(self) -> bool:
        """Whether only videos of some times are asked for."""
        return not (self.after is None and self.before is None and self.between is None)

    def filters(self) -> tuple[str, ...]:
        """The filters in words."""
        words = [f"camera {', '.join(self.cameras)}"] if self.cameras else []
        words += ["not the target's own camera"] if self.other_cameras else []
        words += [f"seen at or after {moment_words(self.after, self.zone)}"] if self.after else []
        words += [f"seen before {moment_words(self.before, self.zone)}"] if self.before else []
        if self.between is not None:
            opens, closes = self.between
            words.append(f"seen between {opens:%H:%M} and {closes:%H:%M} {self.zone}")
        return tuple(words)

    def plain(self) -> dict[str, Any]:
        """As JSON has it, times in ISO 8601."""
        return json.loads(json.dumps(asdict(self), default=lambda moment: moment.isoformat()))


@dataclass(frozen=True)
class FollowSettings:
    """How one person is followed across a gallery (`pipeline.search.follow`).

    confirmed, rejected: ids of videos that a person has looked at. join_by: what lets other leads join:
    "strangers", where at most `most_strangers` strangers are expected to score as well; "nobody", only what is confirmed is in.
    rounds: of joining, at most.

    Raises UsageError for values out of range and for a video that is both confirmed and rejected.
    """

    confirmed: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    join_by: str = "strangers"
    most_strangers: float = 0.5
    rounds: int = 5

    def __post_init__(self) -> None:
        if self.join_by not in JOIN_BY:
            raise UsageError(f"leads join by one of {', '.join(JOIN_BY)}, not by {self.join_by!r}")
        if not 0 < self.most_strangers < math.inf:
            raise UsageError(f"the number of strangers expected must be above 0, not {self.most_strangers}")
        if self.rounds < 1:
            raise UsageError(f"a follow has at least 1 round, not {self.rounds}")
        if both := [video_id for video_id in self.confirmed if video_id in self.rejected]:
            raise UsageError(f"{both[0]} is both confirmed and rejected")

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return json.loads(json.dumps(asdict(self)))


def check_expected_matches(expected_matches: float) -> None:
    """Raises UsageError unless it is above 0 and finite."""
    if not 0 < expected_matches < math.inf:
        raise UsageError(f"the expected number of matches must be above 0, not {expected_matches}")
