"""Teach a small backbone by a larger one on unlabelled footage: python -m jobs.distil --data INPUT --teacher T.onnx --out W"""

import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from jobs.command_line import Endpoints, as_called, now_words, output_folder, run
from jobs.progress import RenewedLine, say
from pipeline.backbone.export import check_name
from pipeline.datasets.read import read_labelled
from pipeline.decoding.sampling import Sampling
from pipeline.distillation.loop import DistillationSettings, hints_phase, whole_phase
from pipeline.distillation.run import Outcome, PoolSettings, distil
from pipeline.distillation.teacher import HintTeacher
from pipeline.errors import UsageError
from pipeline.training.loop import Metrics


def main(
    data: Annotated[
        list[str],
        typer.Option(help="What jobs.ingest takes (folder, prefix, manifest, video) or a data set (mars:PATH); may be repeated."),
    ],
    teacher: Annotated[str, typer.Option(help="OSNet in ONNX with its sidecar; its inner maps teach the student.")],
    out: Annotated[str, typer.Option(help="Local folder for the pool, checkpoints, metrics.csv and the backbone.")],
    name: Annotated[str, typer.Option(help="Name of the backbone; OUT/NAME.onnx is written.")] = "distilled_osnet",
    minutes_hints: Annotated[float, typer.Option(help="Minutes in which every part learns on its own, on crops.", min=0)] = 20.0,
    minutes_whole: Annotated[float, typer.Option(help="Minutes in which the whole learns, on whole frames.", min=0)] = 30.0,
    rate_hints: Annotated[float, typer.Option(help="Largest learning rate of the first phase.")] = 6e-3,
    rate_whole: Annotated[float, typer.Option(help="Largest learning rate of the second phase.")] = 1e-3,
    batch_hints: Annotated[int, typer.Option(help="Crops a step of the first phase.", min=2)] = 32,
    batch_whole: Annotated[int, typer.Option(help="Frames a step of the second phase.", min=2)] = 32,
    pool: Annotated[int, typer.Option(help="Augmented images to learn from; 98 kB of disk each.", min=1)] = 24_000,
    frames: Annotated[int, typer.Option(help="Most frames kept of a candidate; 98 kB of disk each.", min=1)] = 12,
    sample_rate: Annotated[float, typer.Option(help="Frames looked at, a second of video.")] = 2.0,
    share: Annotated[
        list[float] | None,
        typer.Option(help="Share of the pool for each --data, in the same order [default: the same for all]."),
    ] = None,
    held_out_share: Annotated[
        float, typer.Option(help="Share of the people (by person_id) kept out, on whom agreement is measured.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.", min=0)] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads [default: one a core].", min=1)] = None,
    endpoint: Endpoints = None,
) -> None:
    """Distil an OSNet into a student of the same channels, and export it to ONNX.

    No labels are needed; person_id, where it is given, decides who is held out. Run again, it goes on where it was killed. The
    backbone goes wherever a backbone's path is asked for: python -m jobs.ingest INPUT --backbone OUT/NAME.onnx --gallery G
    """
    check_name(name)
    if "://" in out and not out.startswith("file://"):
        raise UsageError(f"{out} is not local; the pool is memory-mapped, so --out is a folder on a disk")
    folder = output_folder(out, "a distillation is written")
    if threads is not None:
        torch.set_num_threads(threads)
    settings = DistillationSettings(
        (hints_phase(minutes_hints, rate_hints, batch_hints), whole_phase(minutes_whole, rate_whole, batch_whole)),
        seed,
    )
    pool_settings = PoolSettings(
        pool, frames, held_out_share, shares=tuple(share or ()), sampling=Sampling(rate=sample_rate), seed=seed
    )
    labelled = [read_labelled(source, part="train", endpoints=endpoint or ()) for source in data]
    about = {"command": as_called("distil"), "made_at": now_words()}
    outcome = distil(
        [source.catalog for source in labelled],
        Path(folder.path),
        name,
        HintTeacher(teacher, threads),
        pool_settings,
        settings,
        about,
        Progress(),
        lambda metrics: say(describe_metrics(metrics)),
    )
    print(describe(outcome))


class Progress:
    """How far a stage is and how fast."""

    def __init__(self) -> None:
        self.stage, self.began, self.first, self.line = "", 0.0, 0, RenewedLine()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.stage, self.began, self.first, self.line = stage, time.monotonic(), done, RenewedLine(at_once=False)
        seconds = time.monotonic() - self.began
        speed = f", {(done - self.first) / seconds:.1f}/s" if seconds > 1 else ""
        self.line.show(f"{stage}: {done} of {total}{speed}", done >= total)


def describe_metrics(metrics: Metrics) -> str:
    """One line a checkpoint."""
    loss = sum(value for name, value in metrics.items() if name.startswith("loss_"))
    return (
        f"phase {metrics['phase']:.0f}  {metrics['minutes']:.1f} min  step {metrics['step']:.0f}  "
        f"{metrics['images_per_second']:.0f} images/s  losses {loss:.3f}  {_agreement(metrics)}"
    )


def _agreement(metrics: Metrics) -> str:
    found = metrics.get("teacher")
    return "no labelled people held out" if found is None else f"held-out cosine with the teacher {found:.4f}"


def describe(outcome: Outcome) -> str:
    """What came of it."""
    size = outcome.backbone.stat().st_size / 1e6
    lines = [
        f"backbone      {outcome.backbone}, {size:.1f} MB; ONNX Runtime differs by {outcome.difference:.1e} from torch",
        f"candidates    {outcome.candidates} learned from, {outcome.held_out_candidates} held out",
        f"rejected      {', '.join(f'{n} {reason}' for reason, n in outcome.rejected.most_common()) or 'none'}",
    ]
    if outcome.history:
        lines.append(f"at the end    {_agreement(outcome.history[-1])}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
