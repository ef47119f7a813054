"""What a report says in words: facts of the search, of a target and of a lead."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import markupsafe

from pipeline.gallery.video_ref import VideoRef
from pipeline.search.results import SearchResult, SegmentView
from pipeline.settings import ScoreSettings
from pipeline.time_windows import moment_words, span_words

SCORE_WORDS = {
    "cohort": "measured against a sample of the gallery; 0.5: as alike as the nearest third of it",
    "none": "the network's own, not normalised",
}


def margins(results: Sequence[SearchResult]) -> tuple[str, str]:
    """What every printed page says at its head: of which case it is, and who searched when."""
    cases = list(dict.fromkeys(result.record.case for result in results if result.record.case))
    people = list(dict.fromkeys(result.record.searched_by for result in results if result.record.searched_by))
    when = min((result.searched_at for result in results if result.searched_at), default=None)
    searched = [*([f"by {', '.join(people)}"] if people else []), *([moment_words(when)] if when else [])]
    return f"Case {', '.join(cases)}" if cases else "No case number", f"Searched {', '.join(searched)}" if searched else ""


def facts_of(result: SearchResult) -> list[tuple[str, str]]:
    """What was searched, how and why, as (term, words); facts that are not known are left out."""
    facts: list[tuple[str, str | None]] = [
        ("Searched", moment_words(result.searched_at) if result.searched_at is not None else None),
        ("Targets", "\n".join(video.video_id for video in result.targets) if len(result.targets) > 1 else None),
        ("Searched by", result.record.searched_by),
        ("Case", result.record.case),
        ("Reason", result.record.reason),
        ("Gallery", result.gallery),
        ("Filters", "\n".join(result.filters) or "none"),
        ("Index version", result.index_version),
        ("Model", result.model),
        ("Scores", f"{SCORE_WORDS[result.score.normalise]}; {_aggregate_words(result.score)}"),
        ("Probabilities", _calibration_words(result)),
        ("None of these", _none_words(result)),
        ("Audit record", result.record.audit_head),
        ("Followed", None if result.followed is None else f"leads join by {result.followed.rule}"),
        ("Time taken", f"{result.seconds:.1f} s"),
    ]
    return [(term, words) for term, words in facts if words]


def _calibration_words(result: SearchResult) -> str | None:
    if result.none_probability is None:
        return f"none: {result.calibration}" if result.calibration else None
    expected = result.expected_matches or 0.0
    matches = f"{expected:.2g} match{'es' if expected != 1 else ''}"
    return f"calibrated on {result.calibration}; {matches} expected among the eligible videos"


def _aggregate_words(score: ScoreSettings) -> str:
    if score.all_pairs:
        words, count = "all pair scores: the better, and the more visible, the more they count", score.neighbours
        if score.normalise == "none":
            return words
        best = "best lead" if count == 1 else f"best {count} leads"
        return f"{words}; the videos as wholes" + (f"; others by way of the {best}, whom they resemble" if count else "")
    best = f"best {100 * (score.ratio or 1):g} %" if score.threshold is None else f"those of at least {score.threshold:g}"
    return f"{score.aggregate} of the pair scores: {best}"


def _none_words(result: SearchResult) -> str | None:
    if result.none_probability is None:
        return None
    return f"probability {result.none_probability:.3f} that no eligible video shows the person (1 in 2 before the search)"


def counts(result: SearchResult) -> tuple[object, ...]:
    """What `funnel` shows."""
    names = ("gallery_videos", "not_indexed", "eligible", "untimed", "scored", "passed_over", "exact")
    return tuple(getattr(result, name) for name in names)


def why_no_leads(result: SearchResult) -> str:
    if not result.gallery_videos:
        return "The index holds no videos, so there was nothing to search."
    if not result.eligible and result.filters:
        return "No video of the gallery passes the filters, so nothing was scored. Wider filters may give leads."
    if not result.eligible:
        return "The gallery holds no video that could be searched for this target, so nothing was scored."
    return f"{result.scored:,} of {result.eligible:,} eligible videos were scored in full, and none of them was kept as a lead."


def label_of(target: VideoRef, candidate: VideoRef) -> tuple[str, str]:
    if candidate.person_id is None:
        return "unknown", "– no label"
    if target.person_id == candidate.person_id:
        return "same", "✓ same label"
    return "other", "✗ other label"


def label_summary(result: SearchResult) -> str | None:
    if not result.leads:
        return None
    if result.target.person_id is None:
        return "The target carries no label, so the leads cannot be compared with it."
    same = sum(lead.video.person_id == result.target.person_id for lead in result.leads)
    return f"{same} of the top {len(result.leads)} leads carry the target’s label ({result.target.person_id})."


def percent(share: float) -> str:
    """A share of 1 in whole per cent, for a label under a narrow picture."""
    return "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def css_string(words: str) -> markupsafe.Markup:
    """A string of CSS, each character but the plainest by its number: none ends the string or the style."""
    plain = "".join(c if c.isascii() and c.isalnum() else f"\\{ord(c):x} " for c in words)
    return markupsafe.Markup(f'"{plain}"')  # noqa: S704 - nothing of it is markup


def position(seconds: float) -> str:
    """A place in a video: seconds and, from one minute on, what a player shows."""
    if seconds < 60:
        return f"{seconds:.2f} s"
    return f"{seconds:.2f} s ({timedelta(seconds=int(seconds))})"


def seen_words(video: VideoRef, result: SearchResult) -> str | None:
    """When somebody is seen in a video; None where its time is not known."""
    return span_words(*video.seen, result.settings.zone) if video.seen else None


def clock_words(start_time: datetime | None, segment: SegmentView, zone: str) -> str | None:
    """When a segment was recorded, to a tenth of a second; None where the video's start is not known."""
    if start_time is None:
        return None
    try:
        first, last = (start_time + timedelta(seconds=round(time_s, 1)) for time_s in (segment.start_s, segment.end_s))
    except OverflowError:  # past the year 9999, which some write for "not known"
        return None
    return span_words(first, last, zone, tenths=True)
