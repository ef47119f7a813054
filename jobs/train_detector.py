"""Train the small detector of people on rendered recordings: python -m jobs.train_detector --out D"""

from pathlib import Path
from typing import Annotated

import typer

from jobs.command_line import local_folder, run
from jobs.progress import RenewedLine
from pipeline.training.detector import DetectorTraining, train_detector

USUAL = DetectorTraining()


def train(
    out: Annotated[Path, typer.Option(help="Folder for rendered scenes and the detector.")],
    name: Annotated[str, typer.Option(help="Name of the detector and of its file.")] = "rendered",
    rounds: Annotated[int, typer.Option(help="Camera networks to render, eight cameras and twelve people each.")] = USUAL.rounds,
    steps: Annotated[int, typer.Option(help="Steps of training.")] = USUAL.steps,
    seed: Annotated[int, typer.Option(help="Number that everything random is drawn from.")] = USUAL.seed,
    processes: Annotated[int, typer.Option(help="Processes that render.")] = 1,
) -> None:
    """Train a detector that finds rendered people, for jobs.ingest --detector OUT/NAME.onnx. It knows no real ones."""
    line = RenewedLine()

    def report(stage: str, done: int, total: int, loss: float) -> None:
        line.show(f"{done}/{total} {stage}" + (f", loss {loss:.3f}" if loss else ""), done == total)

    path = train_detector(local_folder(out), name, DetectorTraining(rounds, steps, seed=seed), processes, report)
    print(f"detector: {path}")


if __name__ == "__main__":
    run(train)
