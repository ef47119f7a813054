"""The evidence of a search as JPEG: each lead's frames are decoded at once, when the first of them is asked for."""

import contextlib
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

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
        self._kept: OrderedDict[tuple[str, int], dict[int, bytes]] = OrderedDict()
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

    def close(self) -> None:
        """End the decoder process; once more does nothing."""
        with contextlib.suppress(RuntimeError):  # of a thread that was shut down
            self._thread.submit(self._close).result()
        self._thread.shutdown()

    def _read(self, search: Search, place: int, video: VideoRef, segments: Iterable[SegmentView], frame: int) -> bytes | None:
        key = search.search_id, place
        if key not in self._kept:
            times = {n: t for one in segments for n, t in zip(one.frame_index, one.time_s, strict=True)}
            if frame not in times or search.answer is None:
                return None
            if self._open is None or self._open[0] != search.search_id:
                self._close()
                self._open = search.search_id, search.answer.pictures()
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


def _jpeg(crop: np.ndarray) -> bytes:
    """An RGB picture uint8 [h, w, 3] as JPEG."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return data.tobytes()
