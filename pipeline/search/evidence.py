"""The pictures behind a result: crops of the frames that a lead's evidence names, decoded again from the source."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from pipeline.gallery.video_ref import VideoRef
from pipeline.storage.location import Reach

HEIGHT, WIDTH = 192, 96  # pixels of a crop in a report


class SourcePictures:
    """Reads crops from the sources, in a decoder process. Close it when done."""

    def __init__(self, time_limit: float = 60.0, reach: Reach | None = None) -> None:
        """time_limit: seconds without progress. reach: where sources may lie; None: anywhere, at the cloud's own endpoints."""
        reach = reach or Reach()
        sampling = Sampling(height=HEIGHT, width=WIDTH, time_limit=time_limit, roots=reach.roots, endpoints=reach.endpoints)
        self.decoder = Decoder(sampling)

    def __call__(self, video: VideoRef, wanted: Sequence[int] | Mapping[int, float | None]) -> Mapping[int, np.ndarray]:
        """Frame number -> RGB crop uint8 [192, 96, 3]; frames that cannot be read any more are left out.

        wanted: frame numbers, better with the times in seconds that they had when they were scored.
        """
        return self.decoder.frames(video.uri, video.boxes_uri, video.track, wanted, video.box)

    def close(self) -> None:
        """End the decoder process."""
        self.decoder.close()
