"""Search a gallery for the person in one or more targets: python -m jobs.search TARGET ... --gallery G --out R"""

import sys
from typing import Annotated, Any

import typer

from jobs import search_flags as flags
from jobs.command_line import Address, Endpoints, GalleryFolder, InsecureCluster, printable, run
from pipeline.cluster import Cluster
from pipeline.errors import UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.search.results import SearchResult
from pipeline.search.run import Answer
from pipeline.search.run import run as run_search
from pipeline.search.targets import Whom
from pipeline.settings import ScoreSettings, SearchSettings
from pipeline.time_windows import hours_of_day, span_words


def search(
    targets: Annotated[
        list[str],
        flags.target_argument,
    ],
    gallery: GalleryFolder,
    out: Annotated[str | None, typer.Option(help="Folder for results.parquet, results.csv and report.html.")] = None,
    box: flags.Box = None,
    at: flags.At = None,
    boxes: flags.Boxes = None,
    track: flags.Track = None,
    whole_picture: flags.WholePicture = False,
    target_camera: flags.TargetCamera = None,
    frame_rate: Annotated[
        float | None, typer.Option(help="Frames a second of a target that carries no times, such as raw H.264.")
    ] = None,
    top: Annotated[int, typer.Option(help="Leads a target; may exceed the gallery.")] = 20,
    shortlist: Annotated[
        str,
        typer.Option(
            help="Best by the prefilter, to be scored in full: a number, a share such as 5%, or all; auto: 1%, at least 1000."
        ),
    ] = "auto",
    patience: Annotated[
        str,
        typer.Option(
            help="Videos of the shortlist scored at a time, best first, until the last so many bring no lead; all: all of it."
        ),
    ] = str(SearchSettings.patience),
    exact: Annotated[
        bool,
        typer.Option(help="The true first leads of all eligible videos: all of them are scored."),
    ] = False,
    camera: flags.CameraFilter = None,
    other_cameras: Annotated[bool, typer.Option(help="Leave out the target's own camera.")] = False,
    after: flags.After = None,
    before: flags.Before = None,
    between: Annotated[
        str | None,
        typer.Option(help="Only videos in which somebody is seen at these hours of any day, by clocks in --zone: 22:00-02:00."),
    ] = None,
    zone: flags.Zone = SearchSettings.zone,
    ratio: flags.Ratio = ScoreSettings.ratio,
    neighbours: flags.Neighbours = ScoreSettings.neighbours,
    threshold: Annotated[
        float | None, typer.Option(help="Take all pair scores of at least this instead of a share (0..1).")
    ] = None,
    aggregate: flags.Aggregate = "mean",
    normalise: flags.Normalise = "cohort",
    expected_matches: Annotated[
        float | None,
        typer.Option(
            help="On how many of the eligible videos the person is expected, the prior of probabilities [default: as often as "
            "people recur in the gallery]."
        ),
    ] = None,
    pairs: Annotated[int, typer.Option(help="Segment pairs of evidence a lead.")] = 3,
    target_length: Annotated[int | None, typer.Option(help="Frames of a target segment [default: the index's].")] = None,
    target_stride: Annotated[int | None, typer.Option(help="Frames between target segments [default: the index's].")] = None,
    index_version: flags.IndexVersion = None,
    backbone: flags.MovedBackbone = None,
    endpoint: Endpoints = None,
    actors: flags.Actors = None,
    address: Address = None,
    insecure_cluster: InsecureCluster = False,
    time_limit: flags.TimeLimit = 60.0,
    report: flags.Report = True,
    clips: flags.Clips = True,
    show_labels: flags.ShowLabels = False,
    hash_sources: flags.HashSources = True,
    reason: flags.Reason = None,
    case: flags.Case = None,
) -> None:
    """Rank the gallery's videos by how likely they show the target's person, with the evidence. Leads to check, not verdicts.

    The search is written to the gallery's audit log.
    """
    settings = SearchSettings(
        top=top,
        **_shortlist(shortlist),
        patience=_patience(patience),
        exact=exact,
        cameras=tuple(camera or ()),
        other_cameras=other_cameras,
        **flags.seen(after, before, zone),
        between=hours_of_day(between) if between is not None else None,
        target_length=target_length,
        target_stride=target_stride,
        pairs=pairs,
        expected_matches=expected_matches,
        score=ScoreSettings(ratio, threshold, aggregate, normalise, neighbours),  # type: ignore[arg-type] # checked there
    )
    whom = Whom(flags.parse_box(box), at, boxes, track, whole_picture, target_camera)
    flags.check(out, time_limit, frame_rate)
    answer = run_search(
        *(Gallery.open(gallery), targets, settings, reason, case),
        whom=whom,
        frame_rate=frame_rate,
        time_limit=time_limit,
        backbone=backbone,
        index_version=index_version,
        endpoints=endpoint or (),
        out=out,
        actors=actors,
        cluster=Cluster(address, insecure_cluster),
    )
    remarks(answer)
    for result in answer.results:
        print(ranked_list(result, show_labels))
    leave(answer, out, report, clips, show_labels, hash_sources)


def remarks(answer: Answer) -> None:
    """Say what was guessed or mended in reading the targets."""
    for remark in answer.remarks:
        print(printable(remark), file=sys.stderr)


def leave(answer: Answer, out: str | None, report: bool, clips: bool, show_labels: bool, hash_sources: bool) -> None:
    """Write what was found, if a folder is given for it, and say what the index lacks."""
    if out is not None:
        answer = answer.with_hashes() if hash_sources else answer
        for changed in answer.changed_sources:
            print(printable(f"note: {changed} is no longer the file that was ingested and scored"), file=sys.stderr)
        if (written := answer.write(out, report, show_labels, clips)) is not None:
            print(f"report: {written}")
    if answer.lag.missing:
        print(
            f"note: {answer.lag.missing} videos of the gallery are not in this index yet; jobs.index takes them in",
            file=sys.stderr,
        )
    if answer.lag.outdated:
        changes = "were ingested anew, corrected or taken out since this index was made"
        note = f"note: {answer.lag.outdated} videos {changes}, and searched as they were; jobs.index brings it up to date"
        print(note, file=sys.stderr)


def ranked_list(result: SearchResult, show_labels: bool = False) -> str:
    """The leads as a table for a terminal; with labels, those of the target's person are marked with *."""
    target, copies, zone = result.target, result.copies, result.settings.zone
    show_labels = show_labels and bool(result.leads)
    width = max([11, *(len(lead.strength or "") for lead in result.leads)])
    within = result.followed.why if result.followed is not None else {}
    lines = [
        f"target {target.video_id}: {result.eligible} of {result.gallery_videos} videos eligible, "
        f"{result.scored} {f'of {result.scored + result.passed_over} shortlisted ' if result.passed_over else ''}"
        f"scored in full, {result.seconds:.2f} s",
        *(["exact: every eligible video was scored"] if result.exact else []),
        *([result.untimed_words] if result.untimed_words else []),
        f"{'rank':>4}  {'score':>6}  {'probability':>{width}}  {'':1} {'video':<36} {'camera':<12} seen"
        if result.leads
        else "no leads",
    ]
    for lead in result.leads:
        video = lead.video
        same = show_labels and video.person_id is not None and video.person_id == target.person_id
        when = span_words(*video.seen, zone) if video.seen else "-"
        when += f"  same bytes as lead {copies[lead.rank]}" if lead.rank in copies else ""
        probability = lead.strength or "-" if lead.probability is None else f"{lead.probability:.3f}"
        when += f"  {within[video.video_id].why}" if video.video_id in within else ""
        lines.append(
            f"{lead.rank:>4}  {lead.score:6.4f}  {probability:>{width}}  {'*' if same else ' '} {video.video_id:<36} "
            f"{video.camera_id or '-':<12} {when}"
        )
    if result.none_probability is not None:
        lines.append(f"      none of these: probability {result.none_probability:.3f} that no eligible video shows the person")
    elif result.leads and result.calibration:
        lines.append(f"      no probabilities: {result.calibration}")
    if show_labels and target.person_id is None:
        lines.append("      the target has no label, so no lead is marked")
    elif show_labels:
        hits = sum(lead.video.person_id == target.person_id for lead in result.leads)
        lines.append(f"      * the label is the target's: {hits} of the {len(result.leads)} leads")
    return "\n".join(map(printable, lines))


def _shortlist(text: str) -> dict[str, Any]:
    """The settings that a --shortlist means."""
    if text == "auto":
        return {}
    if text == "all":
        return {"shortlist": None}
    number, share = text.removesuffix("%"), text.endswith("%")
    digits = number.replace(".", "", 1 if share else 0)
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10) or float(number) == 0:
        raise UsageError(f"--shortlist is a number of videos, a share such as 5%, or all, not {text!r}")
    return (
        {"shortlist": 1, "shortlist_share": float(number) / 100} if share else {"shortlist": int(number), "shortlist_share": 0.0}
    )


def _patience(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise UsageError(f"--patience is a number of videos of at least 1, or all, not {text!r}")
    return int(text)


if __name__ == "__main__":
    run(search)
