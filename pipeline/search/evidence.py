"""The pictures behind a result: crops of the frames that a lead's evidence names, decoded again from the source."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Box
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.video_ref import VideoRef
from pipeline.storage.location import Reach

HEIGHT, WIDTH = 192, 96  # pixels of a crop in a report


class SourcePictures:
    """Reads crops from the sources, in a decoder process. Close it when done."""

    def __init__(self, time_limit: float = 60.0, reach: Reach | None = None, gallery: Gallery | None = None) -> None:
        """time_limit: seconds without progress. reach: where sources may lie; None: anywhere, at the cloud's own endpoints.
        gallery: tells of tracks of whole recordings which box of which recording each of their frames is.
        """
        reach = reach or Reach()
        sampling = Sampling(height=HEIGHT, width=WIDTH, time_limit=time_limit, roots=reach.roots, endpoints=reach.endpoints)
        self.decoder = Decoder(sampling)
        self.gallery = gallery
        self._rows: dict[str, dict[str, Any]] | None = None
        self._uris: dict[str, str] = {}

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
        if self._rows is None:
            snapshot = gallery.snapshot()
            self._rows = {row["video_id"]: row for row in snapshot.videos.to_pylist() if row["track"] is not None}
            self._uris = dict(zip(*(snapshot.recordings[name].to_pylist() for name in ("source_id", "uri")), strict=True))
        if video.video_id not in self._rows:  # forgotten, or followed anew since
            return {}
        by_recording: dict[str, dict[int, dict[str, Any]]] = {}
        frames = gallery.read_video(self._rows[video.video_id])
        if "place" not in frames.schema.names:
            return self.decoder.frames(video.uri, None, None, wanted, video.box)
        for row in frames.select(["frame_index", "place"]).to_pylist():
            if row["frame_index"] in wanted:
                by_recording.setdefault(row["place"]["recording_id"], {})[row["frame_index"]] = row["place"]
        found: dict[int, np.ndarray] = {}
        for recording, places in by_recording.items():
            numbers = {place["frame"]: number for number, place in places.items()}
            boxes: dict[int, Box] = {p["frame"]: (p["x"], p["y"], p["w"], p["h"]) for p in places.values()}
            times = {place["frame"]: place["time_s"] for place in places.values()}
            crops = self.decoder.frames(self._uris.get(recording, video.uri), None, None, times, boxes)
            found |= {numbers[frame]: crop for frame, crop in crops.items()}
        return found

    def close(self) -> None:
        """End the decoder process."""
        self.decoder.close()
