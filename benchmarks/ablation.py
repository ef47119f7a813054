"""What each term of the training is worth: the head trained again without it, judged on the same people held out.

    python -m benchmarks.ablation --data GALLERY --hidden GALLERY [--epochs 6] [--batches 60] [--seeds 2]

GALLERY: of labelled clips, and of their copies with people hidden (jobs.occlude). Each row is a training of its own from the
same start; figures are means over seeds of the best epoch, rank-1 / mAP, clean and hidden videos each among themselves, scores
normalised by the cohort. The last line is the same as JSON.
"""

import json
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
import typer

from jobs.command_line import run
from pipeline.training.features import Source, load_features, split_identities
from pipeline.training.initial_head import StartSettings, identity_start
from pipeline.training.loop import Metrics, train, validate
from pipeline.training.settings import TrainingSettings

OFF = {
    "pair loss": {"pair_weight": 0.0},
    "video loss": {"video_weight": 0.0},
    "identity loss": {"identity_weight": 0.0},
    "triplet loss": {"triplet_weight": 0.0},
    "attention supervision": {"attention_weight": 0.0},
    "mixing with other people": {"mix_share": 0.0},
    "noise": {"noise": 0.0},
    "pull to the start": {"pull": 0.0},
    "hidden copies": {"hidden_share": 0.0},
}


def ablation(
    data: Annotated[str, typer.Option(help="Gallery of labelled clips.")],
    hidden: Annotated[str, typer.Option(help="Gallery of their copies with people hidden.")],
    epochs: Annotated[int, typer.Option(help="Epochs of each training.")] = 6,
    batches: Annotated[int, typer.Option(help="Batches an epoch.")] = 60,
    seeds: Annotated[int, typer.Option(help="Trainings a row.")] = 2,
    key_width: Annotated[int, typer.Option(help="d_k.")] = StartSettings.key_width,
    value_width: Annotated[int, typer.Option(help="d_v.")] = StartSettings.value_width,
) -> None:
    """Print what is lost without each term."""
    learning, held_out = split_identities(load_features([Source(data), Source(hidden, "", True)]))
    settings = TrainingSettings(epochs=epochs, batches=batches)
    start = StartSettings(key_width, value_width)
    rows: dict[str, dict[str, float]] = {}

    def row(name: str, settings: TrainingSettings, start: StartSettings) -> None:
        found = []
        for seed in range(seeds):
            head, _ = train(learning, held_out, identity_start(learning, start), replace(settings, seed=seed))
            found.append(validate(head, held_out, settings))
        show(name, found)

    def show(name: str, found: list[Metrics]) -> None:
        rows[name] = {key: float(np.mean([metrics[key] for metrics in found])) for key in found[0]}
        clean, covered = ([rows[name][f"{side}_{figure}"] for figure in ("rank1", "map")] for side in ("clean", "hidden"))
        print(f"{name:<32}{clean[0]:.3f} / {clean[1]:.3f}   {covered[0]:.3f} / {covered[1]:.3f}", flush=True)

    torch.set_num_threads(2)
    print(f"{len(np.unique(learning.person))} people to learn from, {len(np.unique(held_out.person))} to judge by; rank-1 / mAP")
    print(f"{'':<32}{'clean':<16}hidden")
    judged = validate(identity_start(learning, start), held_out, settings)
    means = {f"{side}_{figure}": judged[f"{side}_mean_{figure}"] for side in ("clean", "hidden") for figure in ("rank1", "map")}
    show("mean pooling + cosine", [means])
    show("the start point", [judged])
    row("all terms", settings, start)
    for name, change in OFF.items():
        row(f"without {name}", replace(settings, **change), start)
    row("weights free of sign", settings, replace(start, negative_weight=False))
    print(json.dumps({"epochs": epochs, "batches": batches, "seeds": seeds, "rows": rows}))


if __name__ == "__main__":
    run(ablation)
