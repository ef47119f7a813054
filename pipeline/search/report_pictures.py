"""The pictures of a report: which frames it shows, each read and encoded once."""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.gallery.video_ref import VideoRef
from pipeline.search.results import SearchResult, SegmentView

Pictures = Callable[[VideoRef, Mapping[int, float | None]], Mapping[int, NDArray[np.uint8]]]
"""(video, frame numbers with their times in seconds) -> RGB crop [h, w, 3] by number; what cannot be read has no entry."""

FILM_BOX = (176, 144)  # width, height in pixels that a film frame must fit: 72 x 144 for a standing person
LARGE_BOX = (256, 208)  # the same for the frames compared at one look
JPEG_QUALITY = 80
TARGET_STRIP = 12  # frames that introduce a target

Frame = tuple[VideoRef, int]


@dataclass(frozen=True)
class Picture:
    """An encoded picture of the page; `name` is its anchor, width and height are in pixels."""

    name: str
    width: int
    height: int
    data_uri: str


@dataclass(frozen=True)
class Album:
    """All pictures of the page. film and large say which picture shows a frame; unreadable: frames without one."""

    pictures: tuple[Picture, ...]
    film: Mapping[Frame, Picture]
    large: Mapping[Frame, Picture]
    unreadable: frozenset[Frame]


def make_album(results: Sequence[SearchResult], pictures: Pictures) -> Album:
    wanted: dict[VideoRef, dict[int, float | None]] = {}
    for video, number, time_s in _all_frames(results):
        wanted.setdefault(video, {})[number] = time_s
    compared = set(_compared_frames(results))
    encoded: dict[bytes, Picture] = {}
    film: dict[Frame, Picture] = {}
    large: dict[Frame, Picture] = {}
    for video, numbers in wanted.items():
        crops = pictures(video, dict(sorted(numbers.items())))
        for number in sorted(numbers.keys() & crops.keys()):
            film[video, number] = _encode(crops[number], FILM_BOX, encoded)
            if (video, number) in compared:
                large[video, number] = _encode(crops[number], LARGE_BOX, encoded)
    unreadable = frozenset((video, number) for video, numbers in wanted.items() for number in numbers) - film.keys()
    return Album(tuple(encoded.values()), film, large, unreadable)


def _all_frames(results: Iterable[SearchResult]) -> Iterator[tuple[VideoRef, int, float | None]]:
    """Every frame that the page shows, with its time."""
    for result in results:
        yield from ((result.target, number, time_s) for number, time_s in target_strip(result))
        for lead in result.leads:
            for pair in lead.best_pairs:
                for video, segment in ((result.target, pair.target), (lead.video, pair.candidate)):
                    yield from ((video, *frame) for frame in zip(segment.frame_index, segment.time_s, strict=True))


def _compared_frames(results: Iterable[SearchResult]) -> Iterator[Frame]:
    for result in results:
        for lead in result.leads:
            for pair in lead.best_pairs[:1]:
                yield result.target, best_frame(pair.target)
                yield lead.video, best_frame(pair.candidate)


def best_frame(segment: SegmentView) -> int:
    """Number of the frame with the largest attention."""
    return segment.frame_index[int(np.argmax(segment.attention))]


def target_strip(result: SearchResult) -> list[tuple[int, float]]:
    """(frame number, time in s) of frames spread over the target's segments in the pairs; the first frame without pairs."""
    times = {
        number: time_s
        for lead in result.leads
        for pair in lead.best_pairs
        for number, time_s in zip(pair.target.frame_index, pair.target.time_s, strict=True)
    } or {0: 0.0}
    frames = sorted(times.items())
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), TARGET_STRIP)).round().astype(int)
    return [frames[place] for place in chosen]


def _encode(crop: NDArray[np.uint8], box: tuple[int, int], encoded: dict[bytes, Picture]) -> Picture:
    """The crop as a JPEG that fits the box and is never enlarged; the same bytes become the same picture."""
    if crop.ndim != 3 or crop.shape[2] != 3 or crop.dtype != np.uint8 or not crop.size:
        raise PipelineError(f"a picture for the report must be RGB uint8 [h, w, 3], not {crop.dtype} {list(crop.shape)}")
    height, width = crop.shape[:2]
    shrink = min(1.0, box[0] / width, box[1] / height)
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    small = cv2.resize(crop, size, interpolation=cv2.INTER_AREA) if shrink < 1 else crop
    parameters = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), parameters)
    data = jpeg.tobytes()
    if data not in encoded:
        uri = "data:image/jpeg;base64," + base64.b64encode(data).decode()
        encoded[data] = Picture(f"p{len(encoded)}", *size, uri)
    return encoded[data]
