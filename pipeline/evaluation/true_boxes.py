"""Whom tracks of recordings show, by the true boxes of the people in them."""

import csv
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.gallery.detections import BOX
from pipeline.gallery.gallery import Gallery

SAME_BOX = 0.5  # intersection over union from which a box is taken for a person's

Appearance = tuple[str, int]
"""A recording's uri and the person."""

Truth = Mapping[str, Mapping[int, list[tuple[int, np.ndarray]]]]
"""uri -> frame from 0 -> (person, box float [4]: x, y, w, h in pixels) of everybody in it."""


def read_truth(path: Path) -> Truth:
    """The boxes of truth.csv, which `pipeline.rendering.recordings` writes; its uris are relative to its folder."""
    truth: dict[str, dict[int, list[tuple[int, np.ndarray]]]] = defaultdict(lambda: defaultdict(list))
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            box = np.array([float(row[side]) for side in BOX])
            truth[str((path.parent / row["uri"]).resolve())][int(row["frame"])].append((int(row["person"]), box))
    return truth


def votes_of_tracks(gallery: Gallery, truth: Truth) -> dict[str, Counter[Appearance | None]]:
    """Candidate of recordings -> whom its frames show, None: nobody. A frame shows whom its box overlaps most, by SAME_BOX."""
    snapshot = gallery.snapshot()
    uris = dict(zip(*(snapshot.recordings[name].to_pylist() for name in ("source_id", "uri")), strict=True))
    votes: dict[str, Counter[Appearance | None]] = {}
    for row in snapshot.videos.to_pylist():
        count = votes[row["video_id"]] = Counter()
        for place in gallery.read_video(row)["place"].to_pylist():
            uri, box = uris[place["recording_id"]], np.array([place[side] for side in BOX])
            overlaps = [(overlap(box, other), person) for person, other in truth[uri][place["frame"]]]
            best, person = max(overlaps, default=(0.0, -1))
            count[(uri, person) if best >= SAME_BOX else None] += 1
    return votes


def shown_by(votes: Mapping[str, Counter[Appearance | None]]) -> dict[str, Appearance | None]:
    """Whom each candidate shows for most of its frames, None: nobody."""
    return {name: count.most_common(1)[0][0] for name, count in votes.items()}


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes, (x, y, w, h)."""
    corner = np.maximum(one[:2], other[:2])
    inner = np.prod(np.maximum(np.minimum(one[:2] + one[2:], other[:2] + other[2:]) - corner, 0))
    return float(inner / (np.prod(one[2:]) + np.prod(other[2:]) - inner))
