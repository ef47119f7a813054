"""The training loop, the same in one process and in each worker of many: epoch by epoch, from a start point to the best head."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.coattention.network import Coattention
from pipeline.errors import PipelineError
from pipeline.training.features import FeatureSet
from pipeline.training.losses import IdentityNeck, Labels, batch_loss
from pipeline.training.sampler import Batch, Sampler
from pipeline.training.settings import TrainingSettings
from pipeline.training.validation import coattention_scores, conditions, mean_scores, quality

Metrics = dict[str, float]


@dataclass
class Training:
    """A training under way. Each epoch draws its random numbers from (seed, epoch, worker), so what ran before does not matter.

    videos: to learn from. validation: people held out, or None: then the last epoch is the best. head: trained in place.
    worker, workers: number of this process among how many; average: called with the gradients of each step, to be replaced in
    place by their mean over all workers. Only worker 0 validates.
    """

    videos: FeatureSet
    validation: FeatureSet | None
    head: Coattention
    settings: TrainingSettings
    device: torch.device
    worker: int = 0
    average: Callable[[list[Tensor]], None] | None = None
    epoch: int = field(default=0, init=False)  # finished ones; 0 is the start point
    best_epoch: int = field(default=0, init=False)
    best: float = field(default=-math.inf, init=False)

    def __post_init__(self) -> None:
        settings, videos = self.settings, self.videos
        self.head = self.head.to(self.device)
        self.start = {name: tensor.detach().clone() for name, tensor in self.head.named_parameters()}
        people = np.unique(videos.person)
        self.person_class = np.searchsorted(people, videos.person)  # [V]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.neck = IdentityNeck(self.head.config.value_width, len(people)).to(self.device)
        self.sampler = Sampler(videos, settings)
        self.features = torch.from_numpy(videos.features).to(self.device)
        self.optimizer = torch.optim.Adam(self.parameter_groups(), lr=settings.learning_rate)
        half = settings.mixed_precision and self.device.type == "cuda"
        self.half = (torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16) if half else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half is torch.float16)
        self.best_tensors = self._tensors()

    def start_point(self) -> Metrics:
        """Epoch 0: the start point judged, so that no result is worse than it on validation."""
        return self._finish({"epoch": 0.0, "seconds": 0.0}, time.monotonic())

    def run_epoch(self) -> Metrics:
        """Train one epoch and validate. Raises PipelineError when the loss is no longer finite."""
        began, settings = time.monotonic(), self.settings
        random = np.random.default_rng([settings.seed, self.epoch + 1, self.worker])
        noise = torch.Generator(self.device).manual_seed(int(random.integers(2**62)))
        sums: dict[str, Tensor] = {}
        self.head.train()
        for number, batch in enumerate(self.sampler.batches(random, settings.batches)):
            rate = learning_rate(self.epoch * settings.batches + number, settings)
            for name, value in self._step(batch, rate, random, noise).items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value
        self.head.eval()
        self.epoch += 1
        losses = {f"loss_{name}": float(value) / settings.batches for name, value in sums.items()}
        if not all(math.isfinite(value) for value in losses.values()):
            raise PipelineError(f"the training failed in epoch {self.epoch}: its loss is not finite; lower the learning rate")
        return self._finish({"epoch": float(self.epoch), "learning_rate": rate, **losses}, began)

    def result(self) -> Coattention:
        """The best head so far, float32, on the CPU, in eval mode."""
        head = copy.deepcopy(self.head).to("cpu")
        head.load_state_dict(self.best_tensors)
        return head.eval()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What Adam moves, and how many times the learning rate."""
        rates = {"lstm": self.settings.attention_rate, "query": self.settings.attention_rate, "key": self.settings.attention_rate}
        rates["classifier"] = self.settings.classifier_rate
        parts = self.head.named_children()
        groups = [{"params": list(part.parameters()), "multiplier": rates.get(name, 1.0)} for name, part in parts]
        groups.append({"params": list(self.head.parameters(recurse=False)), "multiplier": 1.0})  # agreement
        return [*groups, {"params": [p for p in self.neck.parameters() if p.requires_grad], "multiplier": 1.0}]

    def segments(self, batch: Batch, random: np.random.Generator) -> tuple[Tensor, Batch]:
        """Frame features [B, T, D] of a batch, and the batch as it is then labelled."""
        return self.features[torch.from_numpy(batch.rows).to(self.device)].float(), batch

    def judge(self) -> Metrics:
        """Figures on the people held out; none without them."""
        return validate(self.head, self.validation, self.settings) if self.validation is not None else {}

    def keep_best(self) -> None:
        """Remember what is trained as it is now."""
        self.best_tensors = self._tensors()

    def further_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside head, neck and Adam."""
        return {}

    def take_further_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back from a checkpoint what `further_tensors` gave; others may be among them."""

    def _step(self, batch: Batch, rate: float, random: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        settings = self.settings
        with torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None):
            features, batch = self.segments(batch, random)  # [B, T, D]
        counts = np.ones((len(batch.video),) * 2, bool)
        if settings.across_cameras:
            counts = self.videos.counts(batch.video[:, None], batch.video[None])
        counts &= self.videos.clip[batch.video][:, None] != self.videos.clip[batch.video][None]
        person, allowed, hidden = (
            torch.from_numpy(array).to(self.device) for array in (self.person_class[batch.video], counts, batch.hidden)
        )
        segments = disturbed(features.float(), settings, noise)
        with torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None):
            compared = self.head.compare(segments, segments)
        loss, terms = batch_loss(compared, Labels(person, allowed, hidden), self.neck, settings)

        self.optimizer.zero_grad(set_to_none=False)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        if self.average is not None:
            self.average(gradients)
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["multiplier"]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._pull(rate)
        return {"all": loss.detach(), **terms}

    @torch.no_grad()
    def _pull(self, rate: float) -> None:
        back = self.settings.pull / self.settings.batches * rate / self.settings.learning_rate
        for name, parameter in self.head.named_parameters():
            parameter.lerp_(self.start[name], min(back, 1.0))

    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.head.state_dict().items()}

    def _finish(self, metrics: Metrics, began: float) -> Metrics:
        """Validation and the choice of the best; the epoch's metrics."""
        if self.worker == 0:
            found = self.judge()
            metrics |= found
            score = found.get("validation_map", float(self.epoch))
            if score > self.best:
                self.best, self.best_epoch = score, self.epoch
                self.keep_best()
        return metrics | {"seconds": time.monotonic() - began}


def train(
    videos: FeatureSet,
    validation: FeatureSet | None,
    start: Coattention,
    settings: TrainingSettings | None = None,
    device: torch.device | str = "cpu",
    report: Callable[[Metrics], None] = lambda metrics: None,
) -> tuple[Coattention, list[Metrics]]:
    """Train in this process, nothing kept on disk: (best head, the metrics of each epoch, the start point first).

    report is called with each epoch's metrics as it ends. The start is not changed. The same arguments on one device and the same
    number of threads give the same head.
    """
    training = Training(videos, validation, copy.deepcopy(start), settings or TrainingSettings(), torch.device(device))
    history = [training.start_point()]
    report(history[-1])
    for _ in range(training.settings.epochs):
        history.append(training.run_epoch())
        report(history[-1])
    return training.result(), history


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Adam's step size at a step counted from 0: linear rise over warm_up epochs, then half a cosine down to 0."""
    warm, steps = settings.warm_up * settings.batches, settings.epochs * settings.batches
    if step < warm:
        return settings.learning_rate * (step + 1) / (warm + 1)
    return settings.learning_rate * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1))) / 2


def disturbed(segments: Tensor, settings: TrainingSettings, random: torch.Generator) -> Tensor:
    """Frame features [B, T, D] with noise and dropout; the same numbers are dropped in all frames of a segment."""
    if settings.noise:
        spread = settings.noise * segments.norm(dim=-1, keepdim=True) / segments.shape[-1] ** 0.5
        segments = segments + spread * torch.randn(segments.shape, generator=random, device=segments.device)
    if settings.feature_dropout:
        shape = (len(segments), 1, segments.shape[-1])
        kept = torch.rand(shape, generator=random, device=segments.device) >= settings.feature_dropout
        segments = segments * kept / max(1 - settings.feature_dropout, 1e-6)
    return segments


def validate(head: Coattention, videos: FeatureSet, settings: TrainingSettings) -> Metrics:
    """rank1 and map of the head and of mean pooling + cosine, for each condition; validation_map is the mean over conditions."""
    metrics: Metrics = {}
    maps = []
    for name, side in conditions(videos).items():
        scores = coattention_scores(head, side, settings.segment_length, settings.validation_segments, settings.ratio)
        for method, table in (("", scores), ("mean_", mean_scores(side))):
            found = quality(table, side)
            metrics |= {f"{name}_{method}rank1": found.cmc[1], f"{name}_{method}map": found.mean_ap}
        maps.append(metrics[f"{name}_map"])
    return metrics | {"validation_map": float(np.mean(maps))}
