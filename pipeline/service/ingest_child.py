"""The process of an ingest: reads from stdin what to take in, writes to stdout how far it is, a JSON object a line each.

    {"gallery": URI, "person": NAME, "asked": {fields of answers.IngestAsked, without the reason}}
    {"stage": "ingest", "done": 3, "total": 20} ... {"brought": WORDS} or {"error": SENTENCE}

It is interrupted when its stdin is closed, by whatever has become of the service.
"""

import atexit
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery

NICE = 5  # searches go first
INTERRUPTED = 130

At = Callable[[str, int, int], object]


def taken_in(gallery: Gallery, person: str, asked: Mapping[str, Any], at: At) -> str:
    """Take a source in and build the next index; returns what came of it, in words. at: told stage, what is done, of how much.

    Raises PipelineError as `pipeline.ingest.run.ingest`, `pipeline.footage.run.ingest_footage` and
    `pipeline.index.build.build_index` do.
    """
    from pipeline.catalog.inputs import read_catalog
    from pipeline.footage.recordings import name_pattern, plan_recordings, read_clocks
    from pipeline.footage.run import ingest_footage
    from pipeline.ingest.gallery_sampling import gallery_sampling
    from pipeline.ingest.progress import IngestProgress
    from pipeline.ingest.run import ingest

    def progress(state: IngestProgress) -> None:
        at("ingest", state.done, state.total)

    how: dict[str, Any] = {name: asked[name] for name in ("update", "retry_rejected", "quiet_period")}
    how |= {"source": asked["source"], "person": person, "progress": progress}
    catalog, sampling = read_catalog(asked["source"], roots=gallery.settings.roots), gallery_sampling(gallery)
    at("ingest", 0, len(catalog.table))
    if asked["detector"] is None:
        taken = ingest(catalog, gallery, sampling, **how)
        lost = taken.unaccounted
        words = f"{taken.candidates} videos added, {taken.rejected} rejected, {taken.already} inputs were there"
    else:
        names = name_pattern(asked["pattern"]) if asked["pattern"] else None
        plan = plan_recordings(catalog, names, read_clocks(None, asked["zone"]))
        found = ingest_footage(plan, gallery, sampling, asked["detector"], **how)
        lost, rejected = found.unaccounted, found.reasons.total()
        words = f"{found.done - rejected} recordings read, {rejected} rejected, {found.candidates} tracks in the gallery"
    if lost:
        raise PipelineError(f"{lost} inputs were lost on the way; ask for the ingest again to take them up")
    if asked["index"] and len(gallery.snapshot().videos):
        words += f"; {_indexed(gallery, at)}"
    return words


def _indexed(gallery: Gallery, at: At) -> str:
    """Build the next index of what the gallery holds, with settings and head of the one before; returns which it is, in words."""
    from pipeline.index.freshness import current_index, extensible_index
    from pipeline.index.heads import find_head
    from pipeline.index.version_files import index_versions
    from pipeline.index.versions import open_index
    from pipeline.search.worth import build_measured_index
    from pipeline.settings import IndexSettings

    head, calibration = find_head(None, gallery)
    settings = IndexSettings()
    if index_versions(gallery):
        before = open_index(gallery)
        settings = before.settings
        head, calibration = (None, None) if before.untrained else (before.head, before.calibration)
    if (current := current_index(gallery, settings, head, calibration)) is not None:
        return f"the index {current.version} holds all of it"
    base = extensible_index(gallery, settings, head)

    def progress(done: int, total: int) -> None:
        at("index", done, total)

    built = build_measured_index(gallery, settings, head=head, progress=progress, calibration=calibration, base=base)
    return f"index {built.version}"


def main() -> int:
    """Do what stdin says. Returns the exit code."""
    atexit.register(_end_others)  # the first, so that it runs last: Ray's own comes before
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the service ignores it
    with os.fdopen(0, "rb", buffering=0, closefd=False) as given:
        request = json.loads(given.readline())
    threading.Thread(target=_interrupted_at_the_end, daemon=True).start()
    os.nice(NICE)

    def tell(**said: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # then stdin is closed, too
            told.write(json.dumps(said) + "\n")
            told.flush()

    try:
        gallery = Gallery.open(request["gallery"])
        at = lambda stage, done, total: tell(stage=stage, done=done, total=total)  # noqa: E731
        tell(brought=taken_in(gallery, request["person"], request["asked"], at))
    except KeyboardInterrupt:
        return INTERRUPTED
    except PipelineError as error:
        tell(error=str(error))
        return 1
    except OSError as error:
        tell(error=f"{error.filename or 'a file'} cannot be used: {error.strerror or error}")
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is nothing left to interrupt
    return 0


def _end_others() -> None:
    """End what is left of this process's group, where that is its own: agents of a Ray that was interrupted as it started."""
    if os.getpgrp() == os.getpid():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)


def _interrupted_at_the_end() -> None:
    """Interrupt this process when nobody holds its stdin any more."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
