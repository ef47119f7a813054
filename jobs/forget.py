"""Delete videos from a gallery: python -m jobs.forget --gallery G --video-id V --reason TEXT"""

from typing import Annotated

import typer

from jobs.command_line import FAILED, GalleryFolder, parse_time, printable, run
from pipeline.gallery.forgotten import write_forgotten
from pipeline.gallery.gallery import Gallery
from pipeline.retention.forget import Selection
from pipeline.retention.forget import forget as run_forget


def forget(
    gallery: GalleryFolder,
    reason: Annotated[str | None, typer.Option(help="Why; goes into the audit log. Needed for all but --export alone.")] = None,
    video_id: Annotated[list[str] | None, typer.Option(help="Video to forget; may be given again.")] = None,
    camera: Annotated[str | None, typer.Option(help="Forget everything of this camera id.")] = None,
    before: Annotated[
        str | None,
        typer.Option(
            help="Forget what ends before this time (ISO 8601; UTC unless it says so); where its end is not known, what starts "
            "before, and where no time is known, what was ingested before."
        ),
    ] = None,
    person: Annotated[str | None, typer.Option(help="Forget everything with this person label.")] = None,
    case: Annotated[str | None, typer.Option(help="Case or ticket number; goes into the audit log.")] = None,
    export: Annotated[
        str | None,
        typer.Option(help="File (Parquet) for what this gallery has forgotten by then, for jobs.ingest --forgotten elsewhere."),
    ] = None,
) -> None:
    """Forget videos: gone from results at once and for later ingests too, gone from the disk after jobs.compact.

    Copies, the same bytes under other ids, go along. Without anything to forget, --export only writes the list.
    """
    opened = Gallery.open(gallery)
    selection = Selection(tuple(video_id or ()), camera, parse_time(before), person)
    undated = selection.undated(opened.snapshot())
    if selection != Selection() or export is None:
        forgotten = run_forget(opened, selection, reason or "", case)
        if forgotten:
            print(printable(f"{len(forgotten)} videos forgotten: {', '.join(forgotten[:10])}"))
            print("They are in no result from now on; jobs.compact takes their features off the disk.")
        else:
            print(f"nothing was forgotten: no video is older than {before}")
    if export is not None:
        print(printable(f"{write_forgotten(opened.snapshot().tombstones, export)} forgotten videos listed in {export}"))
    if undated:
        some = ", ".join(undated[:10]) + (" and others" if len(undated) > 10 else "")
        print(printable(f"not judged, because no time of theirs is known: {len(undated)} videos ({some}); forget them by id"))
        raise typer.Exit(FAILED)


if __name__ == "__main__":
    run(forget)
