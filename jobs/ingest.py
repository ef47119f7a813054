"""Decode and embed videos into a gallery: python -m jobs.ingest INPUT --gallery G"""

import functools
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Annotated, Any, NoReturn

import typer

from jobs.command_line import BACKBONE_HELP, FAILED, SOME_REJECTED, Address, Endpoints, InsecureCluster, now_words, printable, run
from jobs.footage_words import irregularity_lines, span
from jobs.progress import RenewedLine, say, time_left
from jobs.reject_words import reject_lines
from pipeline.backbone.runtime import load_backbone
from pipeline.backbone.spec import DEFAULT, find_backbone, parse_input_size
from pipeline.catalog.inputs import SOURCE_SCHEMA, Catalog, read_catalog
from pipeline.cluster import Cluster
from pipeline.decoding.sampling import Sampling
from pipeline.errors import EmptyInputError, UsageError
from pipeline.footage.detector import load_detector
from pipeline.footage.detector_spec import detector_names
from pipeline.footage.recordings import RECORDERS, name_pattern, plan_recordings, read_clocks
from pipeline.footage.run import CHUNK_MINUTES, ingest_footage
from pipeline.footage.summary import FootageSummary
from pipeline.footage.watch import Recordings, watch_footage
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.ingest.run import IngestProgress, IngestSummary, Workers
from pipeline.ingest.run import ingest as run_ingest
from pipeline.ingest.scenes import scenes_among
from pipeline.retention.forget import take_forgotten
from pipeline.storage.location import resolve
from pipeline.storage.reach import Reach

SHOWN = 10  # inputs that have changed
NAMED_DETECTORS = f"--detector {' or '.join(detector_names())}, or the path of an ONNX file with a sidecar"
FOR_SCENES = f"people in whole pictures are found by {NAMED_DETECTORS}, or named by a boxes file (boxes_uri in a manifest)"


def ingest(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="Folder (recursive), bucket prefix, manifest (.parquet, .csv, .jsonl) or one video."
        ),
    ],
    gallery: Annotated[str, typer.Option(help="Folder or bucket prefix of the gallery; made if absent.")],
    backbone: Annotated[str, typer.Option(help=BACKBONE_HELP)] = DEFAULT,
    input_size: Annotated[
        str | None, typer.Option(help="Frame size for the backbone, HEIGHTxWIDTH in pixels [default: its own].")
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            help="INPUT are recordings of cameras: find the people in them with this detector, by name "
            f"({', '.join(detector_names())}) or the path of an ONNX file with a sidecar .json, and follow them."
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="How recordings are named: {camera}, %Y %m %d %H %M %S and *, as '{camera}/%Y%m%d_%H%M%S.mp4', or a recorder: "
            f"{', '.join(RECORDERS)}."
        ),
    ] = None,
    zone: Annotated[str, typer.Option(help="Time zone of the times in names, for example Europe/London.")] = "UTC",
    cameras: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="CSV with camera_id and zone, clock_offset (seconds that a camera's clock is ahead)."),
    ] = None,
    watch: Annotated[
        bool, typer.Option(help="Look for recordings that are finished every minute until told to stop (with --detector).")
    ] = False,
    chunk_minutes: Annotated[
        float | None,
        typer.Option(
            help="Longer recordings are read in chunks of so many minutes, by several workers, and after a kill from the next "
            "chunk on; what is found is the same [default: 5; with --detector].",
            min=0.001,
        ),
    ] = None,
    sample_rate: Annotated[
        float | None, typer.Option(help="Frames looked at, a second of video [default: 10; with --detector 5].")
    ] = None,
    image_rate: Annotated[
        float | None, typer.Option(help="Frames a second of folders of images [default: every image is looked at].")
    ] = None,
    frame_rate: Annotated[
        float | None,
        typer.Option(help="Frames a second of streams that carry no times, such as raw H.264 [default: what they say, else 25]."),
    ] = None,
    root: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder or prefix that inputs must lie in; may be repeated. Those of the first ingest stay with the gallery; a "
            "later ingest may name some within them, for itself."
        ),
    ] = None,
    endpoint: Endpoints = None,
    max_frames: Annotated[int, typer.Option(help="Most sampled frames of one candidate; longer ones are rejected.")] = 20_000,
    max_bytes: Annotated[int, typer.Option(help="Largest video file, in bytes.")] = 16 << 30,
    min_box: Annotated[int, typer.Option(help="Pixels of a box that must lie inside the frame, each way.")] = 8,
    max_damage: Annotated[
        float, typer.Option(help="Share of a video's packets that may be passed over because they cannot be decoded.")
    ] = Sampling.max_damage,
    time_limit: Annotated[float, typer.Option(help="Seconds without progress after which a video is rejected.")] = 60.0,
    memory_limit: Annotated[int, typer.Option(help="MiB that decoding one video may take.")] = 3072,
    cpu_limit: Annotated[float, typer.Option(help="Seconds of processor time that one video may take.")] = Sampling.cpu_limit,
    retry_rejected: Annotated[bool, typer.Option(help="Try videos again that were rejected before.")] = False,
    forgotten: Annotated[
        list[str] | None,
        typer.Option(help="What another gallery has forgotten (jobs.forget --export): forgotten here too. May be given again."),
    ] = None,
    update: Annotated[
        bool, typer.Option(help="Take videos in again whose files, boxes or frame rate have changed since they were ingested.")
    ] = False,
    quiet_period: Annotated[
        float,
        typer.Option(
            help="Leave files for the next ingest that were modified in the last so many seconds [default: only those that "
            "change while this one runs].",
            min=0,
        ),
    ] = 0.0,
    strict: Annotated[bool, typer.Option(help="Exit with 3 when some inputs were rejected.")] = False,
    decoders: Annotated[
        str | None,
        typer.Option(
            metavar="N or MIN:MAX",
            help="Decoding actors, so many or as there is work and room [default: with GPUs half the CPUs, else the embedding "
            "actors decode].",
        ),
    ] = None,
    embedders: Annotated[
        str | None,
        typer.Option(
            metavar="N or MIN:MAX",
            help="Embedding actors [default: one a GPU, else one a CPU]; with --detector, recordings read at once.",
        ),
    ] = None,
    shard_chunks: Annotated[
        int | None,
        typer.Option(
            "--shard-pieces",
            help="Chunks of frames (about: videos) of a shard and commit [default: a 20th of the inputs, 16 to 512].",
            min=1,
        ),
    ] = None,
    address: Address = None,
    insecure_cluster: InsecureCluster = False,
) -> None:
    """Decode, sample, crop and embed candidate videos into a gallery. Run again, it does only what is missing.

    With --detector, INPUT are whole pictures of cameras: people are found in them and followed, and each track becomes a
    candidate CAMERA/START#N.

    INPUT is a folder (searched recursively), a bucket prefix (s3://, gs://), one video, or a manifest with a column uri and
    optionally video_id, camera_id, start_time, person_id, boxes_uri, frame_rate (frames a second of a recording that carries no
    times), clock_offset (seconds that the clock was ahead: taken off the times). A video is a video file, a folder of numbered
    images, or some of a folder's images by a pattern such as 0001/C1T0002*.jpg; with a boxes file (lines of frame,id,x,y,w,h from
    frame 1 in pixels, as in the MOT challenge, or columns named by a header) each track id becomes a candidate.
    """
    if detector is None and (pattern or cameras or watch or zone != "UTC" or chunk_minutes is not None):
        flags = "--pattern, --zone, --cameras, --chunk-minutes and --watch"
        raise UsageError(f"{flags} are for recordings: name a detector, {NAMED_DETECTORS}")
    spec = find_backbone(backbone, parse_input_size(input_size) if input_size else None)
    rate = sample_rate if sample_rate is not None else 10.0 if detector is None else 5.0
    sampling = Sampling(
        rate=rate,
        image_rate=image_rate,
        frame_rate=frame_rate,
        height=spec.height,
        width=spec.width,
        max_frames=max_frames,
        max_bytes=max_bytes,
        min_box=min_box,
        max_damage=max_damage,
        time_limit=time_limit,
        memory_limit=memory_limit << 20,
        cpu_limit=cpu_limit,
    )
    workers = Workers(actors(decoders, "--decoders"), actors(embedders, "--embedders"), shard_chunks=shard_chunks)
    if detector is not None and isinstance(workers.embedders, tuple):
        raise UsageError("with --detector, --embedders is one number: so many recordings are read at once")
    at_once = None if isinstance(workers.embedders, tuple) else workers.embedders
    names, clocks = name_pattern(pattern) if pattern else None, read_clocks(cameras, zone)
    catalog = listed(source, root, endpoint, watch)
    load_backbone(spec, device="cpu")  # a network that does not fit its sidecar must not make a gallery
    if detector is not None:
        load_detector(detector, device="cpu")
        planned = len(plan_recordings(catalog, names, clocks).table)  # a pattern that fits nothing must not either
    opened = Gallery.open_or_create(gallery, GallerySettings(spec, rate, image_rate, catalog.reach.roots))
    if detector is None:
        warn_of_scenes(catalog, opened, sampling)
    for file in forgotten or ():
        if gone := take_forgotten(opened, file):
            print(f"{len(gone)} videos of this gallery stand in {printable(file)} and were forgotten", file=sys.stderr)
    if not_read := catalog.not_read():
        print(printable(f"not read: {not_read}"), file=sys.stderr)
    if detector is not None:
        inputs = Recordings(source, names, clocks, tuple(root or ()), tuple(endpoint or ()))
        how: dict[str, Any] = {"retry_rejected": retry_rejected, "update": update, "quiet_period": quiet_period}
        how |= {"chunk_minutes": CHUNK_MINUTES if chunk_minutes is None else chunk_minutes}
        cluster = Cluster(address, insecure_cluster)
        if watch:
            with suppress(KeyboardInterrupt), interrupted_by_sigterm():
                for summary in watch_footage(inputs, opened, sampling, detector, at_once, cluster, told=told, **how):
                    print(describe_footage(summary, source, gallery, detector), flush=True)
            say("stopped watching; the same command goes on where it was")
            return
        progress = functools.partial(show, RenewedLine(), what="recordings and chunks")
        say(f"{counted(planned, 'recording')}; if any is new, Ray and its workers start now (10 to 20 s) ...")
        summary = ingest_footage(inputs.plan(), opened, sampling, detector, None, at_once, progress, cluster, source, **how)
        print(describe_footage(summary, source, gallery, detector))
        if summary.unaccounted or nothing_usable(summary):
            raise typer.Exit(FAILED)
        if strict and summary.reasons:
            raise typer.Exit(SOME_REJECTED)
        return
    say(f"{counted(len(catalog.table), 'input')}; if any is new, Ray and its workers start now (10 to 20 s) ...")
    progress = functools.partial(show, RenewedLine())
    taken = run_ingest(
        *(catalog, opened, sampling, workers, retry_rejected, progress, Cluster(address, insecure_cluster), source),
        update=update,
        quiet_period=quiet_period,
    )
    print(describe(taken, source, gallery, spec.identity))
    if taken.unaccounted or (taken.refused and not taken.usable):
        raise typer.Exit(FAILED)
    if strict and taken.refused:
        raise typer.Exit(SOME_REJECTED)


def counted(count: int, what: str) -> str:
    """A number of things in words.

    >>> counted(1, "recording"), counted(3, "input")
    ('1 recording', '3 inputs')
    """
    return f"{count} {what}{'s'[: count != 1]}"


def listed(source: str, root: Sequence[str] | None, endpoint: Sequence[str] | None, watch: bool) -> Catalog:
    """The inputs; none where nothing is there yet that is to be watched."""
    try:
        return read_catalog(source, roots=root, endpoints=endpoint)
    except EmptyInputError:
        if not watch:
            raise
        uri = resolve(source).uri
        return Catalog(SOURCE_SCHEMA.empty_table(), uri, reach=Reach.of(uri, roots=root or (), endpoints=endpoint or ()))


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM, by which systemd and Kubernetes end a service, does what Ctrl-C does."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def told(sentence: str) -> None:
    """What a watch waits for, with the time: its log is read days later."""
    say(printable(f"{now_words()}: {sentence}"))


def warn_of_scenes(catalog: Catalog, gallery: Gallery, sampling: Sampling) -> None:
    """Say it before a night is lost on recordings of cameras, each of which would become one person."""
    reaching = replace(sampling, roots=catalog.reach.roots, endpoints=catalog.reach.endpoints)
    found = scenes_among(catalog.table, reaching, gallery.snapshot())
    if found.uris:
        count = f"{len(found.uris)} of {found.looked_at} inputs that were looked at"
        seen = f"{count} show whole scenes without boxes, such as {found.uris[0]}"
        say(printable(f"{seen}, and each becomes one candidate of all that it shows; {FOR_SCENES}"))


def show(line: RenewedLine, state: IngestProgress, what: str = "videos") -> None:
    """Inputs done, rejected, frames a second and time left."""
    speed = f"{state.frames / state.seconds:.0f} frames/s" if state.seconds >= 1 else "speed unknown"
    left = time_left(state.seconds, state.done, state.total)
    words = f"{state.done}/{state.total} {what}, {state.rejected} rejected, {state.frames} frames, {speed}, {left}"
    line.show(words, state.done == state.total)


def actors(text: str | None, flag: str) -> int | tuple[int, int] | None:
    """How many actors a flag asks for: "4", or at least and at most so many, "2:16"."""
    if text is None:
        return None
    least, mark, most = text.partition(":")
    if not re.fullmatch(r"-?\d+", least) or (mark and not re.fullmatch(r"-?\d+", most)):
        raise UsageError(
            f"{flag} is a number of actors, such as 4, or the least and the most of them, such as 2:16, not {text!r}"
        )
    return (int(least), int(most)) if mark else int(least)


def describe(summary: IngestSummary, source: str, gallery: str, backbone: str) -> str:
    """The summary to paste into a ticket."""
    working = max(summary.seconds - summary.startup_s, 1e-9)
    lines = [
        f"ingest of {source} into {gallery}",
        f"  inputs        {summary.sources} ({summary.already} were dealt with before)",
        f"  candidates    {summary.candidates} added, {summary.frames} frames",
        f"  rejected      {summary.rejected}",
        *(f"    {n:5d} {reason}" for reason, n in sorted(summary.reasons.items())),
        *reject_lines(summary.rejects, summary.rejected, gallery),
        *_changes(summary),
        *([f"  not read      {summary.not_read}"] if summary.not_read else []),
        *_scenes(summary),
        *summary.notes.lines(),
        f"  backbone      {backbone}",
        f"  time          {summary.seconds:.1f} s, {summary.startup_s:.1f} s of it start-up",
        f"  speed         {summary.frames / working:.0f} frames/s after the start-up",
    ]
    lines += _end("input", gallery, summary.unaccounted, bool(summary.refused) and not summary.usable)
    return "\n".join(map(printable, lines))


def describe_footage(summary: FootageSummary, source: str, gallery: str, detector: str) -> str:
    """The summary of an ingest of recordings, to paste into a ticket."""
    working = max(summary.seconds - summary.startup_s, 1e-9)
    lines = [
        f"ingest of {source} into {gallery}",
        f"  recordings    {summary.recordings} ({summary.already} were dealt with before)",
        f"  read          {span(summary.seconds_read)}, {summary.looked_at} frames looked at, {summary.detections} detections",
        f"  candidates    {summary.candidates} tracks in the gallery, of {summary.runs} continuous runs",
        f"  rejected      {summary.reasons.total()}",
        *(f"    {n:5d} {reason}" for reason, n in sorted(summary.reasons.items())),
        *reject_lines(summary.rejects, summary.reasons.total(), gallery),
        *_footage_changes(summary),
        *summary.notes.lines(),
        *irregularity_lines(summary.irregularities),
        f"  detector      {detector}",
        f"  time          {summary.seconds:.1f} s, {summary.startup_s:.1f} s of it start-up"
        + (f"; {summary.seconds_read / working:.1f} times as fast as recorded" if summary.seconds_read else ""),
    ]
    lines += _end("recording", gallery, summary.unaccounted, nothing_usable(summary))
    return "\n".join(map(printable, lines))


def _end(what: str, gallery: str, unaccounted: int, nothing: bool) -> list[str]:
    if unaccounted:
        return [f"  NOT FINISHED  {unaccounted} {what}s were lost on the way; run the same command again to take them up"]
    why = f"jobs.status --gallery {gallery} names some, with --list-rejects FILE all"
    return [f"  NOTHING USABLE: every {what} was rejected; {why}"] if nothing else []


def nothing_usable(summary: FootageSummary) -> bool:
    """Whether all that there was to read was rejected, and nobody stands in the gallery from before."""
    return bool(summary.reasons) and summary.done == summary.reasons.total() and not summary.candidates


def _footage_changes(summary: FootageSummary) -> list[str]:
    lines = []
    if summary.unnamed:
        unfit = f"{counted(len(summary.unnamed), 'file')} that the pattern does not fit"
        lines.append(f"  not read      {unfit}, such as {summary.unnamed[0]}")
    if summary.updated:
        lines.append(f"  taken again   {summary.updated} recordings had changed since they were ingested")
    elif summary.changed:
        lines.append(f"  changed       {len(summary.changed)} recordings since the ingest; --update takes them in again")
        lines += _first(summary.changed)
    if summary.unfilmed:
        lines.append(
            f"  no recording  of {len(summary.unfilmed)} cameras that --cameras names: {', '.join(summary.unfilmed[:SHOWN])}"
        )
    if summary.offsets:
        first, last = min(summary.offsets), max(summary.offsets)
        ahead = f"{first:+g} s" if first == last else f"{first:+g} to {last:+g} s"
        lines.append(f"  clocks        {ahead} ahead, of {len(summary.offsets)} recordings: taken off their times")
    if summary.in_chunks:
        lines.append(
            f"  in chunks     {summary.chunks} chunks of {summary.in_chunks} long recording{'s'[: summary.in_chunks > 1]}"
        )
    if count := len(summary.undivided):
        lines.append(f"  not in chunks {count} long recording{'s'[: count > 1]}, read by one worker as a whole")
        whys = Counter(summary.undivided.values())
        for why, times in whys.most_common(SHOWN):
            lines.append(f"    {times:5d} {why} (such as {next(uri for uri, one in summary.undivided.items() if one == why)})")
    if summary.corrected:
        lines.append(f"  corrected     {summary.corrected} recordings: camera or start, without decoding them")
    if summary.moved:
        lines.append(f"  moved         {summary.moved} recordings lie elsewhere now: the same files, which are not decoded again")
    if summary.left:
        lines.append(
            f"  left          {summary.left} recordings change still or cannot be reached now; the next ingest tries them"
        )
    return lines


def _changes(summary: IngestSummary) -> list[str]:
    lines, count = [], len(summary.changed)
    if summary.updated:
        lines.append(
            f"  taken again   {summary.updated} inputs had changed since they were ingested: the new videos stand for the old"
        )
    elif count:
        has = "1 input has" if count == 1 else f"{count} inputs have"
        lines.append(f"  changed       {has} changed since the ingest; --update takes what has changed in again")
        lines += _first(summary.changed)
    if summary.corrected:
        lines.append(f"  corrected     {summary.corrected} videos: camera, start time or label, without decoding them")
    if summary.left:
        lines.append(f"  left          {summary.left} inputs change still or cannot be reached now; the next ingest tries them")
    return lines


def _scenes(summary: IngestSummary) -> list[str]:
    if not summary.scenes:
        return []
    count, more = summary.scenes, summary.scenes - len(summary.such_scenes)
    look = "1 video looks like a whole scene and has" if count == 1 else f"{count} videos look like whole scenes and have"
    lines = [f"  whole scenes  {look} no boxes, so that each is searched as one person; {FOR_SCENES}"]
    return [*lines, *(f"    {uri}" for uri in summary.such_scenes), *([f"    and {more} more"] if more else [])]


def _first(uris: Sequence[str]) -> list[str]:
    more = [f"    and {len(uris) - SHOWN} more"] if len(uris) > SHOWN else []
    return [*(f"    {uri}" for uri in uris[:SHOWN]), *more]


if __name__ == "__main__":
    run(ingest)
