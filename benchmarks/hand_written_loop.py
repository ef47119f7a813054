"""What one writes by hand instead of jobs.ingest: python -m benchmarks.hand_written_loop FOLDER OUT

PyAV decodes front to back, which gives the frames that the file shows (decord is a few percent faster and does not, for a third
of the kinds of `benchmarks.recordings`), OpenCV scales, the same ONNX session embeds, and each process, one per core, has its own
share of the clips and one thread. No Ray, no crops, no mended stamps, no rejects, no commits: only features in one file per
process. The peer of `benchmarks.ingest`; the fastest of the arrangements that were tried (one process with as many threads as
cores is slower).
"""

import json
import multiprocessing
import time
from pathlib import Path
from typing import Annotated

import av
import cv2
import numpy as np
import typer
from av.video.reformatter import VideoReformatter

from jobs.command_line import run
from pipeline.backbone.runtime import load_backbone
from pipeline.backbone.spec import DEFAULT, BackboneSpec, find_backbone, parse_input_size


def sampled_frames(clip: Path, spec: BackboneSpec, rate: float) -> np.ndarray:
    """The first frame of each 1/rate seconds of a clip, by the frames' own times: uint8 [n, height, width, 3], RGB."""
    reformatter, frames, last = VideoReformatter(), [], -1
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            if (tick := int(frame.time * rate + 1e-3)) > last:
                last = tick
                picture = reformatter.reformat(frame, format="rgb24").to_ndarray()
                frames.append(cv2.resize(picture, (spec.width, spec.height), interpolation=cv2.INTER_AREA))
    return np.stack(frames)


def embed_clips(clips: list[Path], out: Path, spec: BackboneSpec, rate: float) -> tuple[int, float, float]:
    """Features of the clips' sampled frames, into `out` (float16 [n, dim]); (frames, CPU seconds decoding, and embedding)."""
    backbone = load_backbone(spec, threads=1, device="cpu")
    features, decoding, embedding = [], 0.0, 0.0
    for clip in clips:
        began = time.process_time()
        frames = sampled_frames(clip, spec, rate)
        decoded = time.process_time()
        features.append(backbone.embed(frames))
        decoding, embedding = decoding + decoded - began, embedding + time.process_time() - decoded
    np.save(out, np.concatenate(features))
    return sum(map(len, features)), decoding, embedding


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of clips.")],
    out: Annotated[Path, typer.Argument(help="Folder for the features.")],
    backbone: Annotated[str, typer.Option(help="Backbone by name or path.")] = DEFAULT,
    input_size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH, widths of 64 n, in pixels [default: its own].")] = None,
    sample_rate: Annotated[float, typer.Option(help="Frames a second of video.")] = 10.0,
    processes: Annotated[int | None, typer.Option(help="Processes [default: one a core].")] = None,
) -> None:
    """Print how many frames were embedded, and how many a CPU second decodes and embeds; the last line is JSON."""
    spec = find_backbone(backbone, parse_input_size(input_size) if input_size else None)
    clips = sorted(folder.glob("*.mp4"))
    count = min(processes or multiprocessing.cpu_count(), len(clips))
    out.mkdir(parents=True, exist_ok=True)
    shares = [(clips[i::count], out / f"{i}.npy", spec, sample_rate) for i in range(count)]
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        frames, decoding, embedding = map(sum, zip(*pool.starmap(embed_clips, shares, chunksize=1), strict=True))
    print(f"frames {frames}, decoded {frames / decoding:.0f}/s a core, embedded {frames / embedding:.0f}/s a core")
    print(json.dumps({"frames": frames, "decode_frames": frames / decoding, "embed_frames": frames / embedding}))


if __name__ == "__main__":
    run(main)
