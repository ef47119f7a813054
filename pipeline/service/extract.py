"""What a package's report is made of: the case's records, the videos that they name, pictures and clips, all in the package.

Nothing else goes into it, so that whoever has the package, and no gallery, can make the same report from it (jobs.report).
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.video_ref import VideoRef
from pipeline.search.evidence import Clip, SourcePictures
from pipeline.search.report_pictures import target_strip
from pipeline.search.results import Lead, OnRecord, SearchResult, SegmentPair, SegmentView
from pipeline.service.casebook import OF_RECORD, OF_RESULT, Judged, judged_of, same_of
from pipeline.settings import ScoreSettings
from pipeline.storage.documents import parsed, typed
from pipeline.storage.formats import check_format
from pipeline.storage.hashing import file_sha256
from pipeline.storage.reach import Reach
from pipeline.storage.uris import canonical_uri

OLDEST_FORMAT, FORMAT = 2, 2  # of extract.json; 1 does not say where videos are and which clips there are
EXTRACT, SUMS, REPORT = "extract.json", "SHA256SUMS", "report.html"


@dataclass(frozen=True)
class ClipMade:
    """A clip of a package. start_s, end_s: of the video's time; why_not: why there is none, a sentence."""

    start_s: float
    end_s: float
    why_not: str | None = None


@dataclass(frozen=True)
class Side:
    """One side of a lead of a package. number: of the lead in the package, from 1; side: "target" or "lead"."""

    number: int
    side: str
    video: VideoRef
    segments: tuple[SegmentView, ...]
    frames: Mapping[int, float | None]

    @property
    def clip(self) -> str:
        """Of the clip around its best segment, in a package."""
        return f"clips/lead-{self.number}-{self.side}.mp4"

    def picture(self, frame: int) -> str:
        """Of the picture of a frame, in a package."""
        return f"pictures/lead-{self.number}/{self.side}-frame-{frame}.jpg"


def sides(results: Sequence[SearchResult]) -> list[Side]:
    """Both sides of all leads of a package, in their order, with the frames that its report shows."""
    leads = [(result, lead) for result in results for lead in result.leads]
    return [side for number, (result, lead) in enumerate(leads, 1) for side in _sides(number, result, lead)]


def _sides(number: int, result: SearchResult, lead: Lead) -> Iterator[Side]:
    for name, video in (("target", result.target), ("lead", lead.video)):
        segments = tuple(pair.target if name == "target" else pair.candidate for pair in lead.best_pairs)
        frames: dict[int, float | None] = {n: t for one in segments for n, t in zip(one.frame_index, one.time_s, strict=True)}
        if name == "target" and not any(one.best_pairs for one in result.leads):
            frames |= dict(target_strip(result))  # nothing speaks for any lead; the report introduces the target
        yield Side(number, name, video, segments, dict(sorted(frames.items())))


def results_of(case: str, gallery: str, same: Sequence[Judged], videos: Mapping[str, VideoRef]) -> list[SearchResult]:
    """The leads of a case as results of the searches that found them, one a search. gallery: its uri; videos: by id."""
    by_search: dict[str, list[Judged]] = {}
    for one in same:
        by_search.setdefault(one.record["search"], []).append(one)
    return [_result(case, gallery, leads, videos) for leads in by_search.values()]


def _result(case: str, gallery: str, judged: Sequence[Judged], videos: Mapping[str, VideoRef]) -> SearchResult:
    found = judged[0].record["found"]
    return SearchResult(
        target=videos.get(judged[0].target or "")
        or VideoRef(found["target"]["video_id"], "", ingested_hash=found["target"]["ingested_hash"]),
        leads=tuple(_lead(one.record, videos) for one in sorted(judged, key=lambda one: one.record["rank"])),
        gallery=gallery,
        searched_at=datetime.fromisoformat(found["searched_at"]) if found["searched_at"] else None,
        record=OnRecord(case=case, **{name: found[name] for name in OF_RECORD}),
        score=ScoreSettings(normalise=found["normalise"]),
        filters=("only what was called the same person in the case",),
        further=tuple(videos.get(video_id) or VideoRef(video_id, "") for video_id in found.get("further", ())),
        **{name: found[name] for name in OF_RESULT},
    )


def _lead(record: Mapping[str, Any], videos: Mapping[str, VideoRef]) -> Lead:
    evidence = record["evidence"]
    pairs = []
    if evidence is not None:
        segments = [
            SegmentView(*(tuple(evidence[side][name]) for name in ("frames", "times", "attention")))
            for side in ("target", "candidate")
        ]
        pairs.append(SegmentPair(segments[0], segments[1], evidence["score"]))
    same = ("rank", "score", "probability", "prefilter_rank", "source_hash", "strength")
    return Lead(video=videos[record["video_id"]], best_pairs=tuple(pairs), **{name: record[name] for name in same})


def said_of_report(videos: Mapping[str, VideoRef], clips: Mapping[str, ClipMade]) -> dict[str, Any]:
    """What extract.json says for the report, besides the case's records. clips: by their names in the package."""
    of_videos = {video_id: asdict(replace(video, person_id=None)) for video_id, video in videos.items()}
    return {"format": FORMAT, "videos": of_videos, "clips": {name: asdict(clip) for name, clip in clips.items()}}


def remake_report(package: Path, out: Path) -> tuple[Path, bool]:
    """Make the report of a package that came from elsewhere anew, in another folder, with the clips that it plays; and say
    whether it is the one in the package, byte for byte.

    The package is compared with its SHA256SUMS first; its pictures are decoded in a confined process, as recordings are. Raises
    UsageError where there is no package and PipelineError for one that is damaged or not as it was handed over.
    """
    if out.resolve() == package.resolve():
        raise UsageError("name another folder: the package stays as it was handed over")
    sums = _checked_sums(package)
    with contextlib.closing(SourcePictures(reach=Reach((canonical_uri(str(package)),)))) as confined:

        def read(file: Path) -> np.ndarray | None:
            return confined(VideoRef(file.name, str(file.resolve())), {0: 0.0}).get(0)

        written = write_report_of(package, out, read)
    for clip in sorted(name for name in sums if Path(name).parent == Path("clips")):
        (out / "clips").mkdir(exist_ok=True)
        shutil.copyfile(package / clip, out / clip)
    return written, REPORT in sums and written.read_bytes() == (package / REPORT).read_bytes()


def write_report_of(package: Path, out: Path, read: Callable[[Path], np.ndarray | None] | None = None) -> Path:
    """Make the report of an unpacked package from its extract, pictures and clips, and write it into a folder.

    It shows the clips that lie beside it. read: gives a picture of a file, RGB uint8 [h, w, 3], or None for one that is none; by
    default in this process, for files that it has written. Raises UsageError where there is no package and PipelineError for a
    damaged one.
    """
    from pipeline.search.report import write_report  # loads the templates' language

    results, clips = _read(package)
    shown = sides(results)
    by_segment = {(side.video, side.segments[0]): side.clip for side in shown if side.segments}

    def clip(video: VideoRef, segment: SegmentView) -> Clip:
        name = by_segment[video, segment]
        made = clips[name]
        if made.why_not is not None:
            raise PipelineError(made.why_not)
        return Clip(made.start_s, made.end_s, name)

    def pictures(video: VideoRef, wanted: Mapping[int, float | None]) -> dict[int, np.ndarray]:
        files = {frame: package / side.picture(frame) for side in shown if side.video == video for frame in side.frames}
        return {frame: picture(files[frame]) for frame in wanted if files[frame].is_file()}

    def picture(file: Path) -> np.ndarray:
        found = (read or _own_picture)(file)
        if found is None:
            raise PipelineError(f"{file} is damaged: it is no picture")
        return found

    write_report(results, str(out), pictures, clips=clip)
    return out / REPORT


def _read(package: Path) -> tuple[list[SearchResult], dict[str, ClipMade]]:
    """The results that a package's report shows, and its clips by name."""
    file = package / EXTRACT
    try:
        document = parsed(file.read_bytes())
        check_format(f"the extract {file}", document.get("format", 1), OLDEST_FORMAT, FORMAT, "its own report.html shows it")
        videos = typed(dict[str, VideoRef], document["videos"])
        same = [one for one in same_of(judged_of(document["records"]).values()) if one.video_id in videos]
        results = results_of(document["case"], document["gallery"], same, videos)
        clips = typed(dict[str, ClipMade], document["clips"])
        if missing := [side.clip for side in sides(results) if side.segments and side.clip not in clips]:
            raise ValueError(f"it does not say whether there is {missing[0]}")
        return results, clips
    except FileNotFoundError as error:
        raise UsageError(f"{package} is not an unpacked package: it has no {EXTRACT}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"{file} is damaged: {error}") from error


def _own_picture(file: Path) -> np.ndarray | None:
    decoded = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR)
    return None if decoded is None else cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def _checked_sums(package: Path) -> dict[str, str]:
    """The SHA-256 that an unpacked package's SHA256SUMS gives each file. Raises UsageError where there is none, and
    PipelineError naming the first file that is missing or is not as it was handed over.
    """
    try:
        lines = (package / SUMS).read_text().splitlines()
    except FileNotFoundError as error:
        raise UsageError(f"{package} is not an unpacked package: it has no {SUMS}") from error
    except UnicodeDecodeError as error:
        raise PipelineError(f"{package / SUMS} is damaged: {error}") from error
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name, digest in sums.items():
        file = package / name
        if not file.is_file():
            raise PipelineError(f"{file} is missing, which {SUMS} names")
        with file.open("rb") as opened:
            if file_sha256(opened) != digest:
                raise PipelineError(f"{file} is not as it was handed over: its SHA-256 is another than {SUMS} gives")
    return sums
