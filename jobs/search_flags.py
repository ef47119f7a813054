"""Flags that commands which search have in common, and what is read off them."""

import math
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from jobs.command_line import output_folder, parse_time
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Box as PixelBox
from pipeline.errors import UsageError
from pipeline.settings import SearchSettings

target_argument = typer.Argument(metavar="TARGET", help="A video, a photo, a folder of images, or id:VIDEO_ID of the gallery.")
Box = Annotated[
    str | None, typer.Option(metavar="X,Y,W,H", help="Who is meant in the target's picture, in pixels; with --at in a video.")
]
At = Annotated[float | None, typer.Option(help="When --box shows the person: seconds from the start of the video.")]
Boxes = Annotated[str | None, typer.Option(help="Boxes file of the target (MOT format); --track says which track is meant.")]
Track = Annotated[int | None, typer.Option(help="Track of --boxes [default: the only one].")]
WholePicture = Annotated[
    bool, typer.Option(help="Take a target as it is even if it looks like a whole scene rather than one person.")
]
TargetCamera = Annotated[
    str | None, typer.Option(help="Camera id of the gallery that filmed the target, where it comes from outside it.")
]
CameraFilter = Annotated[list[str] | None, typer.Option(help="Only leads of this camera id; may be given again.")]
After = Annotated[
    str | None,
    typer.Option(help="Only leads in which somebody is seen at or after this time (ISO 8601; of --zone unless it says so)."),
]
Before = Annotated[str | None, typer.Option(help="Only leads in which somebody is seen before this time.")]
Zone = Annotated[str, typer.Option(help="Time zone of times in flags and of those shown, for example Europe/London.")]
IndexVersion = Annotated[str | None, typer.Option(help="Index version [default: the newest].")]
MovedBackbone = Annotated[str | None, typer.Option(help="Where the gallery's backbone is, if it has moved.")]
Actors = Annotated[
    int | None, typer.Option(min=0, help="Ray actors; 0: this process [default: by the gallery's size and cluster].")
]
TimeLimit = Annotated[float, typer.Option(help="Seconds without progress after which decoding a target is given up.")]
Report = Annotated[bool, typer.Option(help="Write report.html (decodes the shown frames again).")]
Clips = Annotated[bool, typer.Option(help="Put a clip of each lead into report.html, some 25 kB each.")]
ShowLabels = Annotated[bool, typer.Option(help="Mark leads whose label in the gallery is the target's.")]
HashSources = Annotated[
    bool, typer.Option(help="Put the SHA-256 of each lead's source into the results; reads local sources once.")
]
Reason = Annotated[str | None, typer.Option(help="Why this is done; goes into the audit log and the report.")]
Case = Annotated[str | None, typer.Option(help="Case or ticket number; goes into the audit log and the report.")]
Ratio = Annotated[
    float | None, typer.Option(help="Make the video score of this share of the best pair scores only (the patent's: 0.2).")
]
Neighbours = Annotated[
    int, typer.Option(help="Best videos of a search that it asks for others by, and by way of which these gain; 0: none.")
]
Aggregate = Annotated[str, typer.Option(help="mean (compares videos of any length) or sum (as in the patent).")]
Normalise = Annotated[
    str, typer.Option(help="cohort (measure each score against a sample of the gallery) or none (the patent's plain score).")
]


def parse_box(text: str | None) -> PixelBox | None:
    """(x, y, w, h) of a --box."""
    if text is None:
        return None
    try:
        x, y, w, h = (float(edge) for edge in text.split(","))
    except ValueError:
        x = y = w = h = math.nan
    if not (math.isfinite(x + y + w + h) and w > 0 and h > 0):
        raise UsageError(f"--box is X,Y,W,H in pixels, for example 120,80,60,160, not {text!r}")
    return x, y, w, h


def seen(after: str | None, before: str | None, zone: str) -> dict[str, Any]:
    """The fields of `SearchSettings` of --after, --before and --zone. Raises UsageError for what is no time and no zone."""
    SearchSettings(zone=zone)
    return {"after": parse_time(after, ZoneInfo(zone)), "before": parse_time(before, ZoneInfo(zone)), "zone": zone}


def check(out: str | None, time_limit: float, frame_rate: float | None = None) -> None:
    """Raise UsageError for limits that cannot be meant, and for a folder that results cannot be written to."""
    Sampling(time_limit=time_limit, frame_rate=frame_rate)
    if out is not None:
        output_folder(out, "results are written")
