"""What searches and deletions of a gallery must say: python -m jobs.policy --gallery G [--require reason,case --reason TEXT]"""

from typing import Annotated

import typer

from jobs.command_line import GalleryFolder, run
from pipeline.errors import UsageError
from pipeline.gallery.audit import required, set_policy
from pipeline.gallery.gallery import Gallery


def policy(
    gallery: GalleryFolder,
    require: Annotated[
        str | None,
        typer.Option(
            help="What must be given from now on, separated by commas: reason, case, and confirmation by a second person of what "
            "jobs.serve exports; or none [default: only show it]."
        ),
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why it is changed; goes into the audit log.")] = None,
) -> None:
    """Show or set what jobs.search, jobs.evaluate and jobs.forget must be given for this gallery's audit log, or they refuse."""
    opened = Gallery.open(gallery)
    if require is not None:
        if not (reason or "").strip():
            raise UsageError("say why with --reason: the change goes into the audit log; nothing was changed")
        names = [] if require == "none" else [name.strip() for name in require.split(",")]
        set_policy(opened, names, reason)
    print(f"{opened.location.uri} requires {' and '.join(required(opened)) or 'neither a reason nor a case nor a confirmation'}")


if __name__ == "__main__":
    run(policy)
