"""The evidence of a search as JPEG: each lead's frames are decoded at once, when the first of them is asked for."""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from fastapi import HTTPException, Response

from pipeline.gallery.gallery import Gallery
from pipeline.gallery.video_ref import VideoRef
from pipeline.search.evidence import SourcePictures
from pipeline.search.results import Lead, SegmentView
from pipeline.service.searches import Search

KEPT = 400  # leads whose pictures stay in memory, about 100 kB each
QUALITY = 85


class Pictures:
    """Pictures for all searches, in one thread with one decoder process: that of the search that was looked at last."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "pictures")
        self._kept: OrderedDict[tuple[Any, ...], dict[int, bytes]] = OrderedDict()
        self._open: tuple[str, SourcePictures] | None = None

    def of_lead(self, search: Search, lead: Lead, frame: int) -> bytes | None:
        """A frame of a lead's evidence as JPEG, None where it is not part of it or cannot be read any more."""
        return self._thread.submit(
            self._read, search, lead.rank, lead.video, [p.candidate for p in lead.best_pairs], frame
        ).result()

    def of_target(self, search: Search, frame: int) -> bytes | None:
        """The same of the target, in all that speaks for the leads."""
        if search.result is None:
            return None
        segments = [pair.target for lead in search.result.leads for pair in lead.best_pairs]
        return self._thread.submit(self._read, search, 0, search.result.target, segments, frame).result()

    def of_video(self, gallery: Gallery, video: VideoRef, times: Mapping[int, float], frame: int) -> bytes | None:
        """A frame of a gallery's video as JPEG. times: of all frames that are decoded with it, seconds."""
        opens = f"{gallery.location.uri} {gallery.position()}", lambda: gallery_pictures(gallery)
        key = gallery.location.uri, video.video_id, tuple(sorted(times))
        return self._thread.submit(self._crop, opens, key, video, times, frame).result()

    def close(self) -> None:
        """End the decoder process; once more does nothing."""
        with contextlib.suppress(RuntimeError):  # of a thread that was shut down
            self._thread.submit(self._close).result()
        self._thread.shutdown()

    def _read(self, search: Search, place: int, video: VideoRef, segments: Iterable[SegmentView], frame: int) -> bytes | None:
        times = {n: t for one in segments for n, t in zip(one.frame_index, one.time_s, strict=True)}
        if search.answer is None:
            return None
        opens = search.search_id, search.answer.pictures
        return self._crop(opens, (search.search_id, place), video, times, frame)

    def _crop(
        self,
        opens: tuple[str, Callable[[], SourcePictures]],
        key: tuple[Any, ...],
        video: VideoRef,
        times: Mapping[int, float],
        frame: int,
    ) -> bytes | None:
        """opens: what reads the pictures, by a name that stays the same while it may stay open. key: of what is kept."""
        if key not in self._kept:
            if frame not in times:
                return None
            if self._open is None or self._open[0] != opens[0]:
                self._close()
                self._open = opens[0], opens[1]()
            crops = self._open[1](video, dict(sorted(times.items())))
            self._kept[key] = {number: _jpeg(crop) for number, crop in crops.items()}
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key].get(frame)

    def _close(self) -> None:
        if self._open is not None:
            with contextlib.suppress(OSError):
                self._open[1].close()
            self._open = None


def gallery_pictures(gallery: Gallery) -> SourcePictures:
    """What reads the pictures of a gallery's videos, in a decoder process; whoever asks for it closes it."""
    return SourcePictures(reach=gallery.reach(), gallery=gallery)


def jpeg(data: bytes | None) -> Response:
    """The answer to who asked for a picture. Raises HTTPException where there is none."""
    if data is None:
        raise HTTPException(404, "this frame is no evidence of this lead, or cannot be read any more")
    return Response(data, media_type="image/jpeg")


def _jpeg(crop: np.ndarray) -> bytes:
    """An RGB picture uint8 [h, w, 3] as JPEG."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return data.tobytes()
