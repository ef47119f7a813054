"""A training from a plan: what it learns from, how, and where it is kept; in this process or in each worker of many."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.gallery.gallery import Gallery
from pipeline.storage.hashing import sha256
from pipeline.storage.location import resolve
from pipeline.training.checkpoint import EventFiles, RunFolder
from pipeline.training.features import FeatureSet, Source, load_features, split_identities
from pipeline.training.loop import Metrics, Training
from pipeline.training.settings import TrainingSettings
from pipeline.training.start import StartSettings, identity_start


@dataclass(frozen=True)
class GallerySource:
    """A gallery by uri; network and hidden as in `pipeline.training.features.Source`."""

    uri: str
    network: str = ""
    hidden: bool = False


@dataclass(frozen=True)
class TrainingPlan:
    """All that a worker needs to know. out: folder or bucket prefix, the same for all workers."""

    galleries: tuple[GallerySource, ...]
    out: str
    validation_share: float = 0.2
    start: StartSettings = field(default_factory=StartSettings)
    settings: TrainingSettings = field(default_factory=TrainingSettings)

    def load(self) -> tuple[FeatureSet, FeatureSet | None]:
        """(training videos, validation videos or None). Raises UsageError as `load_features` and `split_identities` do."""
        sources = [Source(Gallery.open(source.uri), source.network, source.hidden) for source in self.galleries]
        learning, held_out = split_identities(load_features(sources), self.validation_share)
        return learning, held_out if len(held_out) else None

    def made_of(self, learning: FeatureSet, workers: int) -> dict[str, Any]:
        """What two runs must agree in for one to go on where the other stopped."""
        return {
            "settings": asdict(self.settings),
            "start": asdict(self.start),
            "validation share": self.validation_share,
            "data": sha256(json.dumps(learning.video_ids), learning.features.tobytes()),
            "number of workers": workers,
        }


def run_training(
    plan: TrainingPlan,
    report: Callable[[Metrics], None] = lambda metrics: None,
    device: torch.device | str = "cpu",
    worker: int = 0,
    workers: int = 1,
    average: Callable[[list[Tensor]], None] | None = None,
) -> Training:
    """Train, from the newest checkpoint in plan.out if there is one, to the plan's last epoch.

    report is called with the metrics of each epoch of this run. Only worker 0 writes. Raises as `TrainingPlan.load`,
    `RunFolder.restore` and `Training.run_epoch` do.
    """
    learning, held_out = plan.load()
    start = identity_start(learning, plan.start, plan.settings.segment_length)
    training = Training(learning, held_out, start, plan.settings, torch.device(device), worker, average)
    folder = RunFolder(resolve(plan.out), plan.made_of(learning, workers))
    resumed = folder.restore(training)
    if average is not None:  # all have looked before worker 0 writes: a slow one would go on from what the others only begin with
        average([torch.zeros(1, device=device)])
    events = EventFiles(folder.out, folder.history) if worker == 0 else None

    def keep(metrics: Metrics) -> None:
        if events is not None:
            folder.save(training, metrics)
            events.add(metrics)
        report(metrics)

    try:
        if resumed and worker == 0:
            folder.write_metrics()  # killed between checkpoint and table
        if not resumed:
            keep(training.start_point())
        while training.epoch < plan.settings.epochs:
            keep(training.run_epoch())
    finally:
        if events is not None:
            events.close()
    return training
