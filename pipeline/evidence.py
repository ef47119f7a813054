"""The pictures behind a result: crops of the frames that a lead's evidence names, decoded again from the source."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.decoder import Decoder
from pipeline.results import VideoRef
from pipeline.sampling import Sampling

HEIGHT, WIDTH = 192, 96  # pixels of a crop in a report


class SourcePictures:
    """Reads crops from the sources, in a decoder process. Close it when done."""

    def __init__(self, time_limit: float = 60.0) -> None:
        self.decoder = Decoder(Sampling(height=HEIGHT, width=WIDTH, time_limit=time_limit))

    def __call__(self, video: VideoRef, frame_index: Sequence[int]) -> Mapping[int, np.ndarray]:
        """Frame number -> RGB crop uint8 [192, 96, 3]; frames that cannot be read any more are left out."""
        return self.decoder.frames(video.uri, video.boxes_uri, video.track, sorted(set(frame_index)))

    def close(self) -> None:
        """End the decoder process."""
        self.decoder.close()
