"""The default backbone beside its teacher: frames a second in ONNX Runtime, and how far their features agree on people held out.

    python -m benchmarks.default_backbone --shared ../shared

Speed: both in turn on the same frames, medians of several runs, all cores. Agreement: cosine of the two features of a frame, over
the tracklets of the four people of mini_mars that took no part in the distillation; both files run in ONNX Runtime as an ingest
runs them. The last line is the same as JSON.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer

from jobs.command_line import run
from pipeline.backbone.runtime import Backbone, load_backbone
from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.errors import UsageError

HELD_OUT = (6, 10, 11, 15)  # pid in mini_mars/train.json: the people with tracklets in two cameras
FRAMES = 256  # a run


def seconds(backbone: Backbone, frames: np.ndarray) -> float:
    """Of one run over frames uint8 [n, h, w, 3]."""
    began = time.perf_counter()
    backbone.embed(frames)
    return time.perf_counter() - began


def held_out_frames(folder: Path) -> np.ndarray:
    """All frames of the held-out people, uint8 [n, 256, 128, 3], RGB."""
    entries = json.loads((folder / "train.json").read_text())
    names = [name for entry in entries if entry["pid"] in HELD_OUT for name in entry["img_paths"]]
    return np.stack([cv2.cvtColor(cv2.imread(str(folder / name)), cv2.COLOR_BGR2RGB) for name in names])


def main(
    shared: Annotated[Path, typer.Option(help="Folder with the teacher and the real tracklets.")] = Path("../shared"),
    runs: Annotated[int, typer.Option(help="Timed runs of each.", min=1)] = 7,
) -> None:
    """Speed and agreement of the default backbone and its teacher."""
    teacher = shared / "models/osnet_x0_25_msmt17/osnet_x0_25_msmt17.onnx"
    if not teacher.is_file():
        raise UsageError(f"{shared} has no teacher {teacher.name}; name the folder with --shared")
    both = [load_backbone(find_backbone(name)) for name in (DEFAULT, str(teacher))]
    pixels = np.random.default_rng(0).integers(0, 256, (FRAMES, 256, 128, 3), np.uint8)
    for backbone in both:
        seconds(backbone, pixels)  # warm
    times = np.array([[seconds(backbone, pixels) for backbone in both] for _ in range(runs)])
    ours, theirs = FRAMES / np.median(times, axis=0)
    frames = held_out_frames(shared / "data/mini_mars")
    one, other = (backbone.embed(frames).astype(np.float64) for backbone in both)
    cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    ratio = float(np.median(times[:, 1] / times[:, 0]))
    print(
        f"frames a second   {ours:.0f} the default, {theirs:.0f} its teacher; {ratio:.2f} of it, medians of {runs} runs in turn"
    )
    print(
        f"agreement         cosine {cosine.mean():.4f}, worst {cosine.min():.4f}, {len(frames)} frames of {len(HELD_OUT)} people"
    )
    figures = {"default_fps": ours, "teacher_fps": theirs, "ratio": ratio, "cosine": cosine.mean(), "worst": cosine.min()}
    print(json.dumps(figures))


if __name__ == "__main__":
    run(main)
