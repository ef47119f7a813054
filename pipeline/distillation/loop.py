"""The loop: parts of the student on small crops first, then the whole student on whole frames; each phase lasts a given time.

Random choices follow from the seed and the number of the step, so that a training that goes on needs no state of theirs.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbone.osnet import OSNet
from pipeline.backbone.spec import normalise_pixels
from pipeline.distillation.hints import channel_scales, divided, part_losses, whole_losses
from pipeline.distillation.teacher import FEATURE, HintTeacher
from pipeline.errors import PipelineError, UsageError
from pipeline.training.loop import Metrics

SCALE_FRAMES = 160  # of the pool, from which the channels' scales are taken
GRID = 16  # crops start at multiples of this many pixels, so that every part's map of them is whole
EVALUATED = 64  # frames a call
SETTLED = 300  # batches after which a batch normalisation keeps to its running statistics


@dataclass(frozen=True)
class Phase:
    """One phase. minutes: of learning, checks and checkpoints not counted. learning_rate: AdamW's largest; it rises over warm_up
    steps and falls to a hundredth along a cosine.

    parts: each part on its own (`part_losses`), on random crops of half the height and width; else the whole student.
    weights: of the losses, by name; hint_weight: of all others.
    """

    minutes: float
    learning_rate: float
    batch: int
    parts: bool
    weights: Mapping[str, float]
    hint_weight: float
    warm_up: int = 50


def hints_phase(minutes: float = 20.0, learning_rate: float = 6e-3, batch: int = 32) -> Phase:
    """The first phase: hints only, on crops."""
    return Phase(minutes, learning_rate, batch, True, {f"{FEATURE}.cosine": 4.0}, 1.0)


def whole_phase(minutes: float = 30.0, learning_rate: float = 1e-3, batch: int = 32) -> Phase:
    """The second phase: vectors and tables of cosines, hints with a small weight."""
    weights = {FEATURE: 2.0, f"{FEATURE}.cosine": 8.0, f"{FEATURE}.table": 10.0}
    return Phase(minutes, learning_rate, batch, False, weights, 0.3)


@dataclass(frozen=True)
class DistillationSettings:
    """phases: one after another. note_every: seconds of learning between checkpoints. clip: largest norm of a gradient."""

    phases: tuple[Phase, ...] = field(default_factory=lambda: (hints_phase(), whole_phase()))
    seed: int = 0
    weight_decay: float = 1e-4
    clip: float = 5.0
    note_every: float = 60.0

    def __post_init__(self) -> None:
        for phase in self.phases:
            if not (0 <= phase.minutes < math.inf and 0 < phase.learning_rate < 1 and phase.batch > 1):
                raise UsageError("a phase needs minutes of 0 or more, a learning rate between 0 and 1 and a batch of 2 or more")


class Distillation:
    """A student, its teacher and how far it is.

    pool: uint8 [p, 256, 128, 3], RGB.
    number, step, seconds: the phase, and in it the steps made and the time learned; all of it is in a checkpoint.
    """

    def __init__(
        self,
        teacher: HintTeacher,
        pool: np.ndarray,
        settings: DistillationSettings | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = settings or DistillationSettings()
        self.teacher, self.pool, self.device = teacher, pool, torch.device(device)
        if len(pool) < max(phase.batch for phase in self.settings.phases):
            raise UsageError(f"a pool of {len(pool)} images is smaller than a batch")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            self.student = OSNet(teacher.student_sizes()).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.scales = channel_scales(teacher.maps(normalise_pixels(pool[:SCALE_FRAMES], teacher.spec)))
        self.number = 0
        self.begin_phase()

    @property
    def finished(self) -> bool:
        return self.number == len(self.settings.phases)

    @property
    def phase(self) -> Phase:
        return self.settings.phases[self.number]

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        done = min(1.0, self.seconds / max(60 * self.phase.minutes, 1e-9))
        rise = min(1.0, (self.step + 1) / max(self.phase.warm_up, 1))
        return self.phase.learning_rate * rise * (0.5 * (1 + math.cos(math.pi * done)) + 0.01)

    def begin_phase(self) -> None:
        """Start the phase `number` from its first step, with an optimizer of its own."""
        self.step, self.seconds = 0, 0.0
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-3, weight_decay=self.settings.weight_decay)

    def learn(self) -> dict[str, float]:
        """One step. Returns the losses, unweighted, by name. Raises PipelineError when they are no longer finite."""
        phase = self.phase
        frames = self.pool[self._rows()]
        if phase.parts:
            rng = np.random.default_rng([self.settings.seed, self.number, self.step, 1])
            height, width = frames.shape[1] // 2, frames.shape[2] // 2
            top, left = (GRID * int(rng.integers(0, room // GRID + 1)) for room in (height, width))
            frames = frames[:, top : top + height, left : left + width]
        pixels = normalise_pixels(frames, self.teacher.spec)
        hints = divided(self.teacher.maps(pixels), self.scales, self.device)
        x = torch.from_numpy(pixels).to(self.device).to(memory_format=torch.channels_last)
        self._train()
        losses = (part_losses if phase.parts else whole_losses)(self.student, x, hints)
        loss = torch.stack([phase.weights.get(name, phase.hint_weight) * value for name, value in losses.items()]).sum()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.clip)
        if not torch.isfinite(norm):
            raise PipelineError(
                f"step {self.step} of phase {self.number + 1} diverged; lower its learning rate in another folder"
            )
        self.optimizer.step()
        self.step += 1
        return {name: value.item() for name, value in losses.items()}

    def _train(self) -> None:
        """Training mode; each batch normalisation on its running statistics once they have settled.

        The teacher's are fixed, and on a batch's own statistics no student can follow it: the error stayed ten times as high.
        """
        self.student.train()
        for module in self.student.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.train(int(module.num_batches_tracked or 0) < SETTLED)

    def _rows(self) -> slice:
        """The pool's rows of this step: neighbours, for the pool lies on a disk, in random order; every round in a new order."""
        batch = self.phase.batch
        batches = len(self.pool) // batch
        order = np.random.default_rng([self.settings.seed, self.number, self.step // batches, 0]).permutation(batches)
        start = int(order[self.step % batches]) * batch
        return slice(start, start + batch)

    def vectors(self, frames: np.ndarray) -> Tensor:
        """The student's vectors of frames, uint8 [n, h, w, 3], RGB, in eval mode: float32 [n, D] on the teacher's scale."""
        self.student.eval()
        found = []
        with torch.inference_mode():
            for start in range(0, len(frames), EVALUATED):
                pixels = torch.from_numpy(normalise_pixels(frames[start : start + EVALUATED], self.teacher.spec))
                vectors = self.student.parts(pixels.to(self.device).to(memory_format=torch.channels_last))
                found.append(vectors.cpu() * self.scales[FEATURE])
        return torch.cat(found)


@dataclass(frozen=True)
class HeldOut:
    """Frames of people that are not learned from, uint8 [n, 256, 128, 3], and what the teacher makes of them, float32 [n, D]."""

    frames: np.ndarray
    taught: np.ndarray

    def agreement(self, work: Distillation) -> Metrics:
        """Mean cosine of the student's vectors and the teacher's; nothing without frames."""
        if len(self.frames) == 0:
            return {}
        return {"teacher": F.cosine_similarity(work.vectors(self.frames), torch.from_numpy(self.taught)).mean().item()}


def run_phases(
    work: Distillation,
    held_out: HeldOut,
    keep: Callable[[Metrics], None] = lambda metrics: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Learn to the end of the last phase.

    keep: called every `note_every` seconds of learning and after each phase, with phase (from 1), step, minutes, learning_rate,
    images_per_second, the agreement on held-out people and the mean losses since the call before. clock: seconds.
    """
    while not work.finished:
        phase = work.phase
        sums: dict[str, float] = {}
        steps, since, before = 0, work.seconds, clock()
        while work.seconds < 60 * phase.minutes:
            for name, value in work.learn().items():
                sums[name] = sums.get(name, 0.0) + value
            now = clock()
            work.seconds += now - before
            steps, before = steps + 1, now
            if work.seconds - since >= work.settings.note_every:
                break
        metrics: Metrics = {"phase": work.number + 1, "step": work.step, "minutes": work.seconds / 60}
        metrics["learning_rate"] = work.learning_rate
        metrics["images_per_second"] = steps * phase.batch / max(work.seconds - since, 1e-9)
        metrics |= held_out.agreement(work) | {f"loss_{name}": total / steps for name, total in sums.items()}
        if work.seconds >= 60 * phase.minutes:
            work.number += 1
            work.begin_phase()
        keep(metrics)
