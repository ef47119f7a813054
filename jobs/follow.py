"""Follow one person across a gallery, over cameras and time: python -m jobs.follow TARGET ... --gallery G --out R"""

from typing import Annotated

import typer

from jobs import search_flags as flags
from jobs.command_line import Address, Endpoints, GalleryFolder, InsecureCluster, printable, run
from jobs.search import leave, ranked_list, remarks
from pipeline.cluster import Cluster
from pipeline.errors import UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.search.results import SearchResult
from pipeline.search.run import run as run_search
from pipeline.search.targets import GALLERY_PREFIX, Whom
from pipeline.settings import JOIN_BY, FollowSettings, SearchSettings
from pipeline.storage.location import resolve
from pipeline.time_windows import span_words

USUAL = FollowSettings()


def follow(
    targets: Annotated[list[str], flags.target_argument],
    gallery: GalleryFolder,
    confirm: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Video that shows the person, as somebody saw; may be given again. @FILE: an id a line."),
    ] = None,
    reject: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Video that shows somebody else; again, or @FILE, as --confirm."),
    ] = None,
    join_by: Annotated[
        str,
        typer.Option(
            help=f"What lets other leads join ({', '.join(JOIN_BY)}): how many strangers are expected to score as well, or "
            "nobody, so that only what is confirmed is in."
        ),
    ] = USUAL.join_by,
    most_strangers: Annotated[
        float, typer.Option(help="Strangers expected to score as well, up to which a lead joins.")
    ] = USUAL.most_strangers,
    rounds: Annotated[int, typer.Option(help="Rounds of joining, at most.")] = USUAL.rounds,
    out: Annotated[
        str | None, typer.Option(help="Folder for path.parquet, path.csv, results.parquet, results.csv and report.html.")
    ] = None,
    box: flags.Box = None,
    at: flags.At = None,
    boxes: flags.Boxes = None,
    track: flags.Track = None,
    whole_picture: flags.WholePicture = False,
    target_camera: flags.TargetCamera = None,
    top: Annotated[int, typer.Option(help="Leads besides those that are in; may exceed the gallery.")] = 20,
    exact: Annotated[bool, typer.Option(help="Score all eligible videos, not only shortlists.")] = False,
    camera: flags.CameraFilter = None,
    after: flags.After = None,
    before: flags.Before = None,
    zone: flags.Zone = SearchSettings.zone,
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
    """Where and when does the target's person appear? Confirmed and confident leads are in, and search with the target. Several
    targets show one person.

    What joins by itself is to be checked like any lead: confirm it or reject it, and follow again. Everything is written to the
    gallery's audit log, in one record.
    """
    settings = SearchSettings(top=top, exact=exact, cameras=tuple(camera or ()), **flags.seen(after, before, zone))
    following = FollowSettings(_ids(confirm), _ids(reject), join_by, most_strangers, rounds)
    whom = Whom(flags.parse_box(box), at, boxes, track, whole_picture, target_camera)
    flags.check(out, time_limit)
    answer = run_search(
        *(Gallery.open(gallery), targets, settings, reason, case),
        whom=whom,
        time_limit=time_limit,
        backbone=backbone,
        index_version=index_version,
        endpoints=endpoint or (),
        out=out,
        actors=actors,
        cluster=Cluster(address, insecure_cluster),
        following=following,
    )
    remarks(answer)
    (result,) = answer.results
    print(ranked_list(result, show_labels))
    print(path_list(result))
    leave(answer, out, report, clips, show_labels, hash_sources)


def path_list(result: SearchResult) -> str:
    """Where the person was followed to, in the order of time, as a table for a terminal."""
    if result.followed is None:
        return ""
    followed, zone = result.followed, result.settings.zone
    cameras = {one.video.camera_id for one in followed.appearances} - {None}
    lines = [
        f"path of {result.target.video_id}: {len(followed.appearances)} appearances in {len(cameras)} cameras, joined in "
        f"{followed.rounds} round{'' if followed.rounds == 1 else 's'} ({followed.rule})",
        f"{'':>4}  {'seen':<38} {'camera':<12} {'video':<36} why",
    ]
    for place, one in enumerate(followed.appearances, start=1):
        when = span_words(*one.video.seen, zone) if one.video.seen else "-"
        lines.append(f"{place:>4}  {when:<38} {one.video.camera_id or '-':<12} {one.video.video_id:<36} {one.words}")
    if not followed.rounds and result.leads:
        lines.append("      nothing joined by itself; confirm leads with --confirm, or see --join-by")
    lines += [
        f"two places at once: {one.video_id} (camera {one.camera_id}) and {other.video_id} (camera {other.camera_id}); "
        f"{'both are in, since they are confirmed' if other.video_id in followed.why else 'the second is not in'}: "
        "look at both, confirm one and reject the other"
        for one, other in followed.apart
    ]
    return "\n".join(map(printable, lines))


def _ids(given: list[str] | None) -> tuple[str, ...]:
    """The ids that flags name: themselves, as id:VIDEO_ID, or those in @FILE, one a line. Raises UsageError for no such file."""
    ids: list[str] = []
    for name in given or ():
        if not name.startswith("@"):
            ids.append(name.removeprefix(GALLERY_PREFIX))
            continue
        file = resolve(name[1:])
        if not file.info().is_file:
            raise UsageError(f"{name[1:]} is no file; @FILE names one with the id of a video on each line")
        lines = file.read_bytes().decode("utf-8", "replace").splitlines()
        ids += [line.strip().removeprefix(GALLERY_PREFIX) for line in lines if line.strip()]
    return tuple(ids)


if __name__ == "__main__":
    run(follow)
