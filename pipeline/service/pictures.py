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
from pipeline.service.uploads import UPLOAD_PREFIX

KEPT = 400  # leads whose pictures stay in memory, about 100 kB each
OPEN = 3  # decoder processes: galleries share theirs among all searches, an upload has its search's
QUALITY = 85


class Pictures:
    """Pictures for all searches, in one thread with the decoder processes that were asked last."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "pictures")
        self._kept: OrderedDict[tuple[Any, ...], dict[int, bytes]] = OrderedDict()
        self._open: OrderedDict[str, SourcePictures] = OrderedDict()

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
        key = gallery.location.uri, video.video_id, tuple(sorted(times))
        return self._thread.submit(self._crop, _of_gallery(gallery), key, video, times, frame).result()

    def close(self) -> None:
        """End the decoder process; once more does nothing."""
        with contextlib.suppress(RuntimeError):  # of a thread that was shut down
            self._thread.submit(self._close_all).result()
        self._thread.shutdown()

    def _read(self, search: Search, place: int, video: VideoRef, segments: Iterable[SegmentView], frame: int) -> bytes | None:
        times = {n: t for one in segments for n, t in zip(one.frame_index, one.time_s, strict=True)}
        if search.answer is None:
            return None
        of_upload = place == 0 and search.asked.target.startswith(UPLOAD_PREFIX)
        opens = (search.search_id, search.answer.pictures) if of_upload else _of_gallery(search.gallery)
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
            crops = self._opened(*opens)(video, dict(sorted(times.items())))
            self._kept[key] = {number: _jpeg(crop) for number, crop in crops.items()}
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key].get(frame)

    def _opened(self, name: str, open_one: Callable[[], SourcePictures]) -> SourcePictures:
        if name not in self._open:
            self._open[name] = open_one()
            while len(self._open) > OPEN:
                self._close(next(iter(self._open)))
        self._open.move_to_end(name)
        return self._open[name]

    def _close(self, name: str) -> None:
        with contextlib.suppress(OSError):
            self._open.pop(name).close()

    def _close_all(self) -> None:
        for name in list(self._open):
            self._close(name)


def _of_gallery(gallery: Gallery) -> tuple[str, Callable[[], SourcePictures]]:
    """What `_crop` opens for a gallery's videos: anew after each commit, which may have forgotten some."""
    return f"{gallery.location.uri} {gallery.position()}", lambda: gallery_pictures(gallery)


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
