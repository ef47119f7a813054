"""The report page: the leads of a search with their evidence, as one HTML file that opens offline.

`render_report` reads the pictures of each video once, encodes each picture once and fills `report.html.j2`. The page asks
nothing of the network (its Content-Security-Policy forbids it) and needs no script: that of `report.js`, the only one that
may run, lets clips play under the pointer. Its words are deliberate: a lead is to be checked by a person, the page never says
that a person was found.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import resources
from pathlib import Path

import jinja2
import markupsafe

from pipeline.errors import PipelineError, UsageError, VideoError
from pipeline.gallery.video_ref import VideoRef
from pipeline.search.evidence import Clip, Scene
from pipeline.search.report_pictures import Album, Picture, Pictures, best_frame, make_album, target_strip
from pipeline.search.report_words import (
    clock_words,
    counts,
    css_string,
    facts_of,
    label_of,
    label_summary,
    margins,
    percent,
    position,
    seen_words,
    why_no_leads,
)
from pipeline.search.results import Appearance, Followed, Lead, SearchResult, SegmentPair, SegmentView
from pipeline.storage.location import resolve
from pipeline.time_windows import moment_words

Clips = Callable[[VideoRef, SegmentView], Clip]
"""(video, segment) -> a clip that shows it; raises VideoError or PipelineError, which say why there is none."""
Scenes = Callable[[VideoRef, SegmentView], Scene | None]
"""(video, segment) -> the whole picture of its best frame, None where nothing was cut out of one; raises as Clips does."""


@dataclass(frozen=True)
class _FilmFrame:
    """A frame in a filmstrip. bar: attention as a share of the pair's largest, 0..1; repeated: padding of a short video."""

    picture: Picture | None
    number: int
    time_s: float
    attention: float
    bar: float
    repeated: bool


@dataclass(frozen=True)
class _Strip:
    """One side of a segment pair. even: height of the bar that equal attention would give, 0..1."""

    side: str
    frames: tuple[_FilmFrame, ...]
    start_s: float
    end_s: float
    even: float


@dataclass(frozen=True)
class _PairView:
    """A segment pair as two strips with common columns. wide: its pictures lie (whole frames), not stand (persons)."""

    score: float
    strips: tuple[_Strip, _Strip]
    columns: int
    wide: bool
    clock: str | None


@dataclass(frozen=True)
class _Mark:
    """A frame's attention below a clip. left: its place in the clip's time, in per cent; bar: as in _FilmFrame."""

    left: float
    bar: float
    words: str


@dataclass(frozen=True)
class _ClipView:
    """A clip as it is played. source: a data: or relative uri, None where there is no clip, and why_not then. bytes: inside."""

    source: str | None
    start_s: float = 0.0
    end_s: float = 0.0
    marks: tuple[_Mark, ...] = ()
    bytes: int = 0
    why_not: str = ""

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True)
class _SceneView:
    """The whole picture of a frame: its data: uri, None where it cannot be read, and why_not then; box: in its pixels."""

    source: str | None
    width: int = 0
    height: int = 0
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    time_s: float = 0.0
    why_not: str = ""


@dataclass(frozen=True)
class _LeadView:
    """A lead as its card shows it. seen, first_seen: when somebody is; clock: when the best segment was recorded. label: (kind,
    words) where labels are shown; copy_of: rank of a lead before of which the file has the same bytes; within: why it is in the
    path of somebody who was followed. before, after: anchors of the leads beside it. clip: None where clips are left out. scene:
    None where these are, too, or the source shows nobody else.
    """

    lead: Lead
    anchor: str
    before: str | None
    after: str | None
    clip: _ClipView | None
    scene: _SceneView | None
    target_picture: Picture | None
    picture: Picture | None
    seen: str | None
    first_seen: str | None
    clock: str | None
    pairs: tuple[_PairView, ...]
    label: tuple[str, str] | None
    copy_of: int | None
    within: str | None

    @property
    def wide(self) -> bool:
        return any(picture is not None and picture.width > picture.height for picture in (self.target_picture, self.picture))


@dataclass(frozen=True)
class _StopView:
    """An appearance in a path. anchor: of its card, None without one. lane: of its camera, from 0. left, right: on the axis of
    time, 0..100; None without a time.
    """

    appearance: Appearance
    anchor: str | None
    picture: Picture | None
    seen: str | None
    lane: int | None
    left: float | None
    right: float | None


@dataclass(frozen=True)
class _PathView:
    """Where somebody was followed to. cameras: a lane each. ends: of the axis of time in words, None where no time is known.

    line: points (x 0..100, lane) from appearance to appearance. apart: (appearance, other, whether both are in).
    """

    followed: Followed
    stops: tuple[_StopView, ...]
    cameras: tuple[str, ...]
    ends: tuple[str, str] | None
    line: tuple[tuple[float, float], ...]
    apart: tuple[tuple[VideoRef, VideoRef, bool], ...]


@dataclass(frozen=True)
class _TargetView:
    """A target's section: its facts that differ from the other targets', its frames, its path if followed, and its leads."""

    result: SearchResult
    anchor: str
    seen: str | None
    facts: tuple[tuple[str, str], ...]
    strip: tuple[tuple[Picture | None, float], ...]
    clip: _ClipView | None
    leads: tuple[_LeadView, ...]
    label_summary: str | None
    no_leads: str
    path: _PathView | None


def write_report(
    results: Sequence[SearchResult],
    folder: str | Path,
    pictures: Pictures,
    *,
    show_labels: bool = False,
    clips: Clips | None = None,
    scenes: Scenes | None = None,
) -> str:
    """Write report.html into a folder or below a bucket prefix and return its uri; the rest is as in `render_report`.

    Raises StorageError when the file cannot be written; then nothing is.
    """
    location = resolve(folder).join("report.html")
    page = render_report(results, pictures, show_labels=show_labels, clips=clips, scenes=scenes)
    # A command line may carry bytes that are no text (surrogates); they must not cost the user the report.
    location.write_atomically(page.encode("utf-8", "replace"))
    return location.uri


def render_report(
    results: Sequence[SearchResult],
    pictures: Pictures,
    *,
    show_labels: bool = False,
    clips: Clips | None = None,
    scenes: Scenes | None = None,
) -> str:
    """The report on one or several targets as one HTML page, complete in itself unless clips lie beside it.

    pictures: gives the crops; it is called once a video, and where it leaves frames out the page shows a grey field and
    says so. show_labels: say of each lead whether it carries the target's label (person_id), for labelled galleries. clips: gives
    a clip of each lead's best segment and of each target's in its first lead; where it raises, the lead says why it has none.
    scenes: gives the whole picture around each lead's best frame, in the same way.
    Raises UsageError without results, PipelineError for a crop that is not RGB uint8 [h, w, 3].
    """
    if not results:
        raise UsageError("a report needs the result of at least one target")
    album = make_album(results, pictures)
    facts = [facts_of(result) for result in results]
    shared = tuple(fact for fact in facts[0] if all(fact in others for others in facts))
    targets = [
        _target_view(result, number, own, shared, album, show_labels, clips, scenes)
        for number, (result, own) in enumerate(zip(results, facts, strict=True), 1)
    ]
    clips_of = [[target.clip, *(lead.clip for lead in target.leads)] for target in targets]
    shown = [clip for row in clips_of for clip in row if clip is not None]
    return _template().render(
        results=results,
        shared_facts=(*shared, *_clip_facts(shown)),
        same_counts=len({counts(result) for result in results}) == 1,
        targets=targets,
        album=album,
        plays=any(clip.source is not None for clip in shown),
        linked_clips=any(clip.source is not None and not clip.bytes for clip in shown),
        margins=margins(results),
        unreadable_videos=len({video for video, _ in album.unreadable}),
        untrained=any(result.untrained for result in results),
        calibrated=any(lead.probability is not None for result in results for lead in result.leads),
        worded=any(lead.strength is not None for result in results for lead in result.leads),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "position": position, "css_string": css_string}
    script = resources.files("pipeline.search").joinpath("report.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {"script": markupsafe.Markup(script), "script_hash": f"sha256-{digest}"}  # noqa: S704 - ours
    return environment.from_string(resources.files("pipeline.search").joinpath("report.html.j2").read_text("utf-8"))


def _target_view(
    result: SearchResult,
    number: int,
    facts: Sequence[tuple[str, str]],
    shared: Sequence[tuple[str, str]],
    album: Album,
    show_labels: bool,
    clips: Clips | None,
    scenes: Scenes | None,
) -> _TargetView:
    anchor = f"target-{number}"
    anchors = [f"{anchor}-lead-{lead.rank}" for lead in result.leads]
    around = zip(result.leads, (None, *anchors), anchors, (*anchors[1:], None), strict=False)
    leads = tuple(_lead_view(result, lead, beside, album, show_labels, clips, scenes) for lead, *beside in around)
    first = result.leads[0].best_pairs[:1] if result.leads else ()
    strip = tuple((album.film.get((result.target, frame)), time_s) for frame, time_s in target_strip(result))
    return _TargetView(
        result=result,
        anchor=anchor,
        seen=seen_words(result.target, result),
        facts=tuple(fact for fact in facts if fact not in shared),
        strip=strip,
        clip=_clip_view(clips, result.target, first[0].target, _scale(first[0])) if clips and first else None,
        leads=leads,
        label_summary=label_summary(result) if show_labels else None,
        no_leads=why_no_leads(result),
        path=None if result.followed is None else _path_view(result, result.followed, leads, strip[0][0]),
    )


def _path_view(result: SearchResult, followed: Followed, leads: Sequence[_LeadView], of_target: Picture | None) -> _PathView:
    cards = {view.lead.video.video_id: view for view in leads}
    timed = [one.video for one in followed.appearances if one.video.seen]
    cameras = tuple(dict.fromkeys(video.camera_id for video in timed if video.camera_id is not None))
    first = min((video.seen[0] for video in timed if video.seen), default=None)
    last = max((video.seen[1] for video in timed if video.seen), default=None)
    stops = []
    for one in followed.appearances:
        card, seen = cards.get(one.video.video_id), one.video.seen
        left, right = (100 * _share(moment, first, last) for moment in seen) if seen else (None, None)
        lane = cameras.index(one.video.camera_id) if seen and one.video.camera_id is not None else None
        picture = card.picture if card else of_target if one.why == "target" else None
        stops.append(_StopView(one, card.anchor if card else None, picture, seen_words(one.video, result), lane, left, right))
    line = tuple(
        (x, stop.lane + 0.5) for stop in stops if stop.lane is not None for x in (stop.left, stop.right) if x is not None
    )
    ends = (moment_words(first, result.settings.zone), moment_words(last, result.settings.zone)) if first and last else None
    apart = tuple((one, other, other.video_id in followed.why) for one, other in followed.apart)
    return _PathView(followed, tuple(stops), cameras, ends, line, apart)


def _share(moment: datetime, first: datetime | None, last: datetime | None) -> float:
    """Where a moment lies between two, 0..1; half way where these are one."""
    if first is None or last is None or last <= first:
        return 0.5
    return (moment - first) / (last - first)


def _lead_view(
    result: SearchResult,
    lead: Lead,
    anchors: Sequence[str | None],
    album: Album,
    show_labels: bool,
    clips: Clips | None,
    scenes: Scenes | None,
) -> _LeadView:
    """anchors: of the lead before, of this one and of the one after it."""
    before, own, after = anchors
    best = lead.best_pairs[0] if lead.best_pairs else None
    labelled = show_labels and result.target.person_id is not None
    return _LeadView(
        lead=lead,
        anchor=own or "",
        before=before,
        after=after,
        clip=_clip_view(clips, lead.video, best.candidate, _scale(best)) if clips and best else None,
        scene=_scene_view(scenes, lead.video, best.candidate) if scenes and best else None,
        target_picture=album.large.get((result.target, best_frame(best.target))) if best else None,
        picture=album.large.get((lead.video, best_frame(best.candidate))) if best else None,
        seen=seen_words(lead.video, result),
        first_seen=moment_words(lead.video.seen[0], result.settings.zone) if lead.video.seen else None,
        clock=clock_words(lead.video.start_time, best.candidate, result.settings.zone) if best else None,
        pairs=tuple(_pair_view(result, lead.video, pair, album) for pair in lead.best_pairs),
        label=label_of(result.target, lead.video) if labelled else None,
        copy_of=result.copies.get(lead.rank),
        within=result.followed.why[lead.video.video_id].why
        if result.followed is not None and lead.video.video_id in result.followed.why
        else None,
    )


def _pair_view(result: SearchResult, candidate: VideoRef, pair: SegmentPair, album: Album) -> _PairView:
    columns, scale = _columns(pair), _scale(pair)
    strips = (
        _strip("Target", result.target, pair.target, scale, album),
        _strip("Candidate", candidate, pair.candidate, scale, album),
    )
    shown = [frame.picture for strip in strips for frame in strip.frames if frame.picture]
    wide = any(picture.width > picture.height for picture in shown)
    clock = clock_words(candidate.start_time, pair.candidate, result.settings.zone)
    return _PairView(pair.score, strips, columns, wide, clock)


def _columns(pair: SegmentPair) -> int:
    return max(len(pair.target.frame_index), len(pair.candidate.frame_index))


def _scale(pair: SegmentPair) -> float:
    """The attention of a whole bar: one scale for both sides, so that their bars compare."""
    return max(*pair.target.attention, *pair.candidate.attention, 1 / _columns(pair))


def _clip_view(clips: Clips, video: VideoRef, segment: SegmentView, scale: float) -> _ClipView:
    try:
        clip = clips(video, segment)
    except (VideoError, PipelineError) as error:
        return _ClipView(None, why_not=str(error))
    marks = {
        time_s: _Mark(100 * (time_s - clip.start_s) / (clip.end_s - clip.start_s), weight / scale, f"{time_s:.2f} s")
        for time_s, weight in zip(segment.time_s, segment.attention, strict=True)
    }
    within = tuple(mark for mark in marks.values() if 0 <= mark.left <= 100)
    if isinstance(clip.content, str):
        return _ClipView(clip.content, clip.start_s, clip.end_s, within)
    uri = "data:video/mp4;base64," + base64.b64encode(clip.content).decode()
    return _ClipView(uri, clip.start_s, clip.end_s, within, len(clip.content))


def _scene_view(scenes: Scenes, video: VideoRef, segment: SegmentView) -> _SceneView | None:
    try:
        scene = scenes(video, segment)
    except (VideoError, PipelineError) as error:
        return _SceneView(None, why_not=str(error))
    if scene is None:
        return None
    uri = "data:image/jpeg;base64," + base64.b64encode(scene.content).decode()
    x, y, w, h = scene.box
    box = x * scene.width, y * scene.height, w * scene.width, h * scene.height
    return _SceneView(uri, scene.width, scene.height, box, scene.time_s)


def _clip_facts(clips: Sequence[_ClipView]) -> list[tuple[str, str]]:
    """How many clips there are, and their size."""
    there = [clip for clip in clips if clip.source is not None]
    inside = sum(clip.bytes for clip in there)
    if not clips:
        return []
    sizes = f", {inside / 1000:,.0f} kB in all, {inside / 1000 / len(there):,.0f} kB each" if inside else ""
    missing = f"; {len(clips) - len(there)} could not be made, and why stands with each" if len(there) < len(clips) else ""
    return [("Clips", f"{len(there)}{sizes}{missing}")]


def _strip(side: str, video: VideoRef, segment: SegmentView, scale: float, album: Album) -> _Strip:
    before = (None, *segment.frame_index[:-1])
    frames = tuple(
        _FilmFrame(album.film.get((video, number)), number, time_s, attention, attention / scale, number == previous)
        for number, time_s, attention, previous in zip(
            segment.frame_index, segment.time_s, segment.attention, before, strict=True
        )
    )
    return _Strip(side, frames, segment.start_s, segment.end_s, 1 / len(frames) / scale)
