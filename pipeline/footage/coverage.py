"""What a gallery has of its cameras: how much was recorded, hour by hour, and how many tracks begin in it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pipeline.footage.recordings import Irregularity, Run, ends, timeline
from pipeline.gallery.gallery import Snapshot

HOUR = timedelta(hours=1)


@dataclass
class CameraCoverage:
    """One camera. recordings, seconds, detections: in all; tracks: candidates. recorded: hour (UTC) -> share of it that
    recordings show, from 0 to 1; begun: hour -> candidates that begin in it.
    """

    recordings: int = 0
    seconds: float = 0.0
    detections: int = 0
    tracks: int = 0
    recorded: Counter[datetime] = field(default_factory=Counter)
    begun: Counter[datetime] = field(default_factory=Counter)


def coverage(snapshot: Snapshot) -> tuple[dict[str, CameraCoverage], list[Irregularity]]:
    """Camera id ("" where it is not known) -> what there is of it, by name; and what is odd in the recordings."""
    cameras: dict[str, CameraCoverage] = {}
    runs, odd = timeline(snapshot.recordings)
    for run in runs:
        camera = cameras.setdefault(run.camera or "", CameraCoverage())
        camera.recordings += len(run.parts)
        camera.detections += sum(part.row["detections"] or 0 for part in run.parts)
        for begins, finish in _shown(run):
            camera.seconds += (finish - begins).total_seconds()
            for hour, share in _by_hour(begins, finish):
                camera.recorded[hour] += share  # type: ignore[assignment] # a share, not a whole number
        camera.seconds += sum(part.row["last_s"] or 0.0 for part in run.parts if run.start is None)
    videos = snapshot.videos.filter(snapshot.of_recordings())
    for name, seen in zip(videos["camera_id"].to_pylist(), videos["seen_from"].to_pylist(), strict=True):
        camera = cameras.setdefault(name or "", CameraCoverage())
        camera.tracks += 1
        if seen is not None:
            camera.begun[_hour(seen)] += 1
    return dict(sorted(cameras.items())), odd


def _shown(run: Run) -> Iterator[tuple[datetime, datetime]]:
    """What a run shows, as stretches of time that do not overlap."""
    last = datetime.min.replace(tzinfo=UTC)
    for part in run.parts if run.start is not None else ():
        begins, finish = max(part.row["start_time"], last), ends(part.row)
        if finish > begins:
            yield begins, finish
            last = finish


def _by_hour(begins: datetime, finish: datetime) -> Iterator[tuple[datetime, float]]:
    """Each hour that a stretch of time touches, and the share of the hour that it takes."""
    hour = _hour(begins)
    while hour < finish:
        yield hour, (min(finish, hour + HOUR) - max(begins, hour)) / HOUR
        hour += HOUR


def _hour(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
