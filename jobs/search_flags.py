"""Flags that commands which search have in common."""

from typing import Annotated

import typer

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
Neighbours = Annotated[int, typer.Option(help="Best videos of a search that add how they resemble the others; 0: none.")]
Aggregate = Annotated[str, typer.Option(help="mean (compares videos of any length) or sum (as in the patent).")]
Normalise = Annotated[
    str, typer.Option(help="cohort (measure each score against a sample of the gallery) or none (the patent's plain score).")
]
