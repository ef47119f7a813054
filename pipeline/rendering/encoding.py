"""Frames into H.264 files, the same bytes for the same frames."""

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt


def write_video(path: Path, frames: npt.NDArray[np.uint8], frame_rate: int, crf: int) -> None:
    """Writes frames (F, h, w, 3) uint8 RGB, h and w even, as MP4 (H.264, yuv420p); crf is x264's quality, 0..51.

    One thread only: x264 makes other bytes with another number of threads. Without mbtree: on
    pictures this small its choices differ from run to run (seen with x264's assembler code on). The file appears when
    it is complete.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    with av.open(unfinished, "w", format="mp4") as container:
        options = {"crf": str(crf), "preset": "veryfast", "x264-params": "threads=1:lookahead_threads=1:mbtree=0"}
        output = container.add_stream("libx264", rate=frame_rate, options=options)
        output.height, output.width = frames.shape[1:3]
        output.pix_fmt = "yuv420p"
        output.thread_count = 1
        for frame in frames:
            container.mux(output.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(output.encode())
    unfinished.replace(path)
