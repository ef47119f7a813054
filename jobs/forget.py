"""Delete videos from a gallery: python -m jobs.forget --gallery G --video-id V --reason TEXT"""

from typing import Annotated

import typer

from jobs.command_line import parse_time, printable, run
from pipeline.gallery import Gallery
from pipeline.retention import Selection
from pipeline.retention import forget as run_forget


def forget(
    gallery: Annotated[str, typer.Option(help="Folder or bucket prefix of the gallery.")],
    reason: Annotated[str, typer.Option(help="Why; goes into the audit log.")],
    video_id: Annotated[list[str] | None, typer.Option(help="Video to forget; may be given again.")] = None,
    camera: Annotated[str | None, typer.Option(help="Forget everything of this camera id.")] = None,
    before: Annotated[
        str | None, typer.Option(help="Forget what starts before this time (ISO 8601; UTC unless it says so).")
    ] = None,
    person: Annotated[str | None, typer.Option(help="Forget everything with this person label.")] = None,
    case: Annotated[str | None, typer.Option(help="Case or ticket number; goes into the audit log.")] = None,
) -> None:
    """Forget videos: gone from results at once and for later ingests too, gone from the disk after jobs.compact."""
    selection = Selection(tuple(video_id or ()), camera, parse_time(before), person)
    forgotten = run_forget(Gallery.open(gallery), selection, reason, case)
    print(printable(f"{len(forgotten)} videos forgotten" + (f": {', '.join(forgotten[:10])}" if forgotten else "")))
    if forgotten:
        print("They are in no result from now on; jobs.compact takes their features off the disk.")


if __name__ == "__main__":
    run(forget)
