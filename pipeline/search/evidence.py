"""The pictures and clips behind a result: of the frames that a lead's evidence names, decoded again from the source."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.decoding.decoder import Decoder
from pipeline.decoding.requests import StillRequest
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Box, ClipPart, ClipStart, Rejected
from pipeline.errors import VideoError
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.kept import KeptGallery
from pipeline.gallery.video_ref import VideoRef
from pipeline.ingest.gallery_sampling import gallery_sampling
from pipeline.search.results import SegmentView
from pipeline.search.source_places import PAST_LAST_S, Part, Places, boxes_in_time, read_places
from pipeline.storage.reach import Reach

HEIGHT, WIDTH = 192, 96  # pixels of a crop in a report
SCENE_SIZE = (512, 384)  # that the picture of a scene in a report fits into
CLIP_S = 4.0  # of a clip, unless its segment is longer
LONGEST_CLIP_S = 8.0  # and then at most


@dataclass(frozen=True)
class Clip:
    """A stretch of a video as MP4. start_s, end_s: of the video's time; its own begins at start_s.

    content: the file, or the relative uri of one that lies beside whatever shows it.
    """

    start_s: float
    end_s: float
    content: bytes | str


@dataclass(frozen=True)
class Scene:
    """The whole picture that a frame was cut out of, JPEG, and where in it the person is: box, x, y, w, h as shares of its sides.

    width, height: of the JPEG, pixels. time_s: of the video's time.
    """

    content: bytes
    width: int
    height: int
    box: Box
    time_s: float


def stretch_around(segment: SegmentView, first_s: float, last_s: float) -> tuple[float, float]:
    """Start and end of a clip that shows a segment, in seconds of the video: CLIP_S of what lies between first_s and last_s.

    A longer segment is shown whole, of one beyond LONGEST_CLIP_S that much around the frame with most attention.

    >>> stretch_around(SegmentView((30, 40), (3.0, 4.0), (0.5, 0.5)), 0.0, 60.0)
    (1.5, 5.5)
    """
    whole = segment.end_s - segment.start_s
    length = min(max(CLIP_S, whole + PAST_LAST_S), LONGEST_CLIP_S)
    middle = segment.start_s + whole / 2 if whole <= LONGEST_CLIP_S else segment.time_s[int(np.argmax(segment.attention))]
    start = max(first_s, min(middle - length / 2, last_s + PAST_LAST_S - length))
    return start, min(start + length, last_s + PAST_LAST_S)


class SourcePictures:
    """Reads crops and clips from the sources, in a decoder process. Close it when done."""

    def __init__(self, time_limit: float = 60.0, reach: Reach | None = None, gallery: Gallery | None = None) -> None:
        """time_limit: seconds without progress. reach: where sources may lie; None: anywhere, at the cloud's own endpoints.
        gallery: tells of tracks of whole recordings which box of which recording each of their frames is.
        """
        reach = reach or Reach()
        shown: dict[str, Any] = {"height": HEIGHT, "width": WIDTH, "time_limit": time_limit}
        shown |= {"roots": reach.roots, "endpoints": reach.endpoints}
        self.decoder = Decoder(Sampling(**shown) if gallery is None else gallery_sampling(gallery, **shown))
        self.gallery = gallery if gallery is None or isinstance(gallery, KeptGallery) else KeptGallery(gallery)

    def __call__(self, video: VideoRef, wanted: Sequence[int] | Mapping[int, float | None]) -> Mapping[int, np.ndarray]:
        """Frame number -> RGB crop uint8 [192, 96, 3]; frames that cannot be read any more are left out.

        wanted: frame numbers, better with the times in seconds that they had when they were scored.
        """
        if video.track is not None and video.boxes_uri is None and self.gallery is not None:
            return self._of_track(video, wanted, self.gallery)
        return self.decoder.frames(video.uri, video.boxes_uri, video.track, wanted, video.box)

    def _of_track(
        self, video: VideoRef, wanted: Sequence[int] | Mapping[int, float | None], gallery: Gallery
    ) -> Mapping[int, np.ndarray]:
        """Crops of a track that was followed through recordings, from one recording after the other."""
        row = self._row(video.video_id)
        if row is None:  # forgotten, or followed anew since
            return {}
        by_recording: dict[str, dict[int, dict[str, Any]]] = {}
        frames = gallery.read_video(row)
        if "place" not in frames.schema.names:
            return self.decoder.frames(video.uri, None, None, wanted, video.box)
        for row in frames.select(["frame_index", "place"]).to_pylist():
            if row["frame_index"] in wanted:
                by_recording.setdefault(row["place"]["recording_id"], {})[row["frame_index"]] = row["place"]
        table = gallery.snapshot().recordings
        uris = dict(zip(*(table[name].to_pylist() for name in ("source_id", "uri")), strict=True))
        found: dict[int, np.ndarray] = {}
        for recording, places in by_recording.items():
            numbers = {place["frame"]: number for number, place in places.items()}
            boxes: dict[int, Box] = {p["frame"]: (p["x"], p["y"], p["w"], p["h"]) for p in places.values()}
            times = {place["frame"]: place["time_s"] for place in places.values()}
            crops = self.decoder.frames(uris.get(recording, video.uri), None, None, times, boxes)
            found |= {numbers[frame]: crop for frame, crop in crops.items()}
        return found

    def clip(self, video: VideoRef, segment: SegmentView) -> Clip:
        """The person of a video around a segment (`stretch_around`), MP4 of some 25 kB.

        Raises VideoError and PipelineError, which say why there is none.
        """
        if segment.end_s <= segment.start_s:
            raise VideoError("no_frames", "it shows one moment only")
        places = self._places(video, segment)
        start, end = stretch_around(segment, *places.within(segment.start_s))
        parts = []
        for event in self.decoder.answers(places.clip(start, end, crop=True, small=True)):
            if isinstance(event, Rejected):
                raise VideoError(event.reason, event.message)
            parts += [event.data] if isinstance(event, ClipPart) else []
        return Clip(start, end, b"".join(parts))

    def scene(self, video: VideoRef, segment: SegmentView) -> Scene | None:
        """The whole picture of the segment's frame with most attention; None where the person is all that the source shows.

        Raises VideoError and PipelineError, which say why there is none.
        """
        most = int(np.argmax(segment.attention))
        number, time_s = segment.frame_index[most], segment.time_s[most]
        if video.box is not None:
            box, part, at = video.box, Part(video.uri, 0.0, 0.0), time_s
        else:
            places = self._places(video, segment) if video.track is not None else None
            if places is None or not places.boxes:
                return None
            box = min(places.boxes, key=lambda one: abs(one[0] - time_s))[1]
            part = places.part(time_s)
            at = time_s - part.offset_s
            number = self._number_in_file(video, number)
        request = StillRequest(part.uri, number, at, None, part.frame_rate, SCENE_SIZE, part.blanked(at, at))
        start, content = None, b""
        for event in self.decoder.answers(request):
            if isinstance(event, Rejected):
                raise VideoError(event.reason, event.message)
            start = event if isinstance(event, ClipStart) else start
            content += event.data if isinstance(event, ClipPart) else b""
        if start is None:
            raise VideoError("no_frames", "the source has no such frame")
        x, y, w, h = box
        shares = x / start.source_width, y / start.source_height, w / start.source_width, h / start.source_height
        return Scene(content, start.width, start.height, shares, time_s)

    def _number_in_file(self, video: VideoRef, number: int) -> int:
        """The number that a frame of a video has in the file that shows it: another one where recordings follow each other."""
        row = self._row(video.video_id) if video.boxes_uri is None else None
        if row is None or self.gallery is None:
            return number
        frames = self.gallery.read_video(row)
        place = pc.index(frames["frame_index"], number).as_py()
        if place < 0 or "place" not in frames.schema.names:
            return number
        in_file: int = frames["place"][place].as_py()["frame"]
        return in_file

    def _places(self, video: VideoRef, segment: SegmentView) -> Places:
        """Where a video is in its sources; of a target from outside the gallery, as far as its segment tells."""
        row = self._row(video.video_id)
        of_recordings = video.track is not None and video.boxes_uri is None  # which may have been moved since they were indexed
        same = ("boxes_uri", "track") if of_recordings else ("uri", "boxes_uri", "track")
        if self.gallery is not None and row is not None and all(row[name] == getattr(video, name) for name in same):
            return read_places(self.gallery, row, self.decoder.answers)
        if video.track is None:
            return Places((Part(video.uri, 0.0, 0.0),), (), 0.0, math.inf)
        if video.boxes_uri is None:
            raise VideoError("missing", "the track is not in the gallery any more")
        frames, first = np.unique(segment.frame_index, return_index=True)
        times = np.asarray(segment.time_s, np.float64)[first]
        rate = (frames[-1] - frames[0]) / (times[-1] - times[0])
        boxes = boxes_in_time(self.decoder.answers, video.boxes_uri, video.track, frames, times, float(rate))
        if not boxes:
            raise VideoError("no_usable_boxes", f"{video.boxes_uri} has no track {video.track} any more")
        return Places((Part(video.uri, 0.0, 0.0),), boxes, boxes[0][0], boxes[-1][0])

    def _row(self, video_id: str) -> dict[str, Any] | None:
        """The gallery's row of a video (VIDEOS_SCHEMA), None where it has none."""
        if self.gallery is None:
            return None
        videos = self.gallery.snapshot().videos
        place = pc.index(videos["video_id"], video_id).as_py()
        return None if place < 0 else videos.slice(place, 1).to_pylist()[0]

    def close(self) -> None:
        """End the decoder process."""
        self.decoder.close()
