"""A training from a plan: what it learns from, how, and where it is kept; in this process or in each worker of many."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.storage.hashing import sha256
from pipeline.storage.location import resolve
from pipeline.training.checkpoint import EventFiles, RunFolder
from pipeline.training.features import Source, load_features, split_identities
from pipeline.training.initial_head import StartSettings, identity_start
from pipeline.training.loop import Metrics, Training
from pipeline.training.settings import TrainingSettings


@dataclass(frozen=True)
class TrainingPlan:
    """All that a worker needs to know. out: folder or bucket prefix, the same for all workers."""

    galleries: tuple[Source, ...]
    out: str
    validation_share: float = 0.2
    start: StartSettings = field(default_factory=StartSettings)
    settings: TrainingSettings = field(default_factory=TrainingSettings)

    def made_of(self, more: dict[str, Any]) -> dict[str, Any]:
        """What two runs must agree in for one to go on where the other stopped; more: beside the plan's own settings."""
        own = {"settings": asdict(self.settings), "start": asdict(self.start), "validation share": self.validation_share}
        return own | more


def available_device() -> str:
    """ "cuda" where torch finds a CUDA device, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def run_training(
    plan: TrainingPlan,
    report: Callable[[Metrics], None] = lambda metrics: None,
    device: torch.device | str = "cpu",
    worker: int = 0,
    workers: int = 1,
    average: Callable[[list[Tensor]], None] | None = None,
) -> Training:
    """Train, from the newest checkpoint in plan.out if there is one, to the plan's last epoch.

    report is called with the metrics of each epoch of this run. worker, workers, average: as in `Training`. Raises as
    `load_features`, `split_identities`, `RunFolder.restore` and `Training.run_epoch` do.
    """
    learning, held_out = split_identities(load_features(plan.galleries), plan.validation_share)
    start = identity_start(learning, plan.start, plan.settings.segment_length)
    validation = held_out if len(held_out) else None
    training = Training(learning, validation, start, plan.settings, torch.device(device), worker, average)
    data = sha256(json.dumps(learning.video_ids), learning.features.tobytes())
    folder = RunFolder(resolve(plan.out), plan.made_of({"data": data, "number of workers": workers}))
    run_epochs(training, folder, report)
    return training


def run_epochs(training: Training, folder: RunFolder, report: Callable[[Metrics], None] = lambda metrics: None) -> None:
    """Go on from the folder's newest checkpoint, or else from the start point, to the last epoch; only worker 0 writes.

    report is called with the metrics of each epoch of this run, after they are kept.
    """
    resumed = folder.restore(training)
    if training.average is not None:  # all have looked before worker 0 writes: a slow one would resume what the others only begin
        training.average([torch.zeros(1, device=training.device)])
    events = EventFiles(folder.out, folder.history) if training.worker == 0 else None

    def keep(metrics: Metrics) -> None:
        if events is not None:
            folder.save(training, metrics)
            events.add(metrics)
        report(metrics)

    try:
        if resumed and training.worker == 0:
            folder.write_metrics()
        if not resumed:
            keep(training.start_point())
        while training.epoch < training.settings.epochs:
            keep(training.run_epoch())
    finally:
        if events is not None:
            events.close()
