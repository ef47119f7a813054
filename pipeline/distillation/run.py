"""A distillation from footage to backbone: people, pool, the loop, the export.

OUT/pool/     frames of people and the pool: arrays that are memory-mapped
OUT/run/      checkpoints
OUT/NAME.onnx and its sidecar, when all is done
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backbone.export import export_backbone, scaled_features
from pipeline.backbone.spec import normalise_pixels
from pipeline.catalog.inputs import Catalog
from pipeline.decoding.sampling import Sampling
from pipeline.distillation.checkpoint import Checkpoints, claim
from pipeline.distillation.loop import EVALUATED, Distillation, DistillationSettings, HeldOut, run_phases
from pipeline.distillation.people import People, gather_people
from pipeline.distillation.pool import build_pool
from pipeline.distillation.teacher import FEATURE, HintTeacher
from pipeline.errors import UsageError
from pipeline.storage.hashing import json_sha256
from pipeline.training.loop import Metrics
from pipeline.training.run import available_device


@dataclass(frozen=True)
class PoolSettings:
    """What the pool is made of. images: in it. frames: kept of a candidate, at most. held_out_share: of the people.

    shares: of the pool, one for each of the data; empty: the same for all. held_out_frames: most that are looked at.
    """

    images: int = 24_000
    frames: int = 12
    held_out_share: float = 0.1
    held_out_frames: int = 512
    shares: tuple[float, ...] = ()
    sampling: Sampling = field(default_factory=lambda: Sampling(rate=2.0))
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 1 or self.frames < 1 or not 0 <= self.held_out_share < 1:
            raise UsageError("a pool needs images, frames of each candidate and a held-out share of at least 0 and below 1")
        if (self.sampling.height, self.sampling.width) != (256, 128):
            raise UsageError("the pool's frames are 256 x 128 pixels")
        if any(not 0 <= share < float("inf") for share in self.shares):
            raise UsageError("a share of the pool is a number of 0 or more")


@dataclass(frozen=True)
class Outcome:
    """What a distillation left. difference: of ONNX Runtime's numbers from torch's."""

    backbone: Path
    candidates: int
    held_out_candidates: int
    rejected: Counter[str]
    history: list[Metrics]
    difference: float


Report = Callable[[str, int, int], None]


def distil(
    catalogs: Sequence[Catalog],
    out: Path,
    name: str,
    teacher: HintTeacher,
    pool_settings: PoolSettings | None = None,
    settings: DistillationSettings | None = None,
    about: dict[str, Any] | None = None,
    report: Report = lambda stage, done, total: None,
    report_metrics: Callable[[Metrics], None] = lambda metrics: None,
) -> Outcome:
    """Teach a student on the people in these catalogs and write OUT/NAME.onnx. Run again, it goes on where it was killed.

    report: called with what is done ("videos", "pool"), how far it is and how far it goes. about: what else the
    sidecar says. Raises UsageError when `out` holds a distillation of other data, teacher or settings, and as its stages do.
    """
    pool_settings, settings = pool_settings or PoolSettings(), settings or DistillationSettings()
    shares = pool_settings.shares or (1.0,) * len(catalogs)
    if len(shares) != len(catalogs):
        raise UsageError(f"there are {len(shares)} shares of the pool for {len(catalogs)} inputs; give one for each")
    pool_fields = asdict(pool_settings)
    del pool_fields["sampling"]["endpoints"]  # who was asked for the videos makes no other pool
    claim(out / "pool", {"data": _fingerprint(catalogs), "pool settings": pool_fields, "teacher": teacher.spec.identity})
    claim(out / "run", {"settings": asdict(settings), "teacher": teacher.spec.identity})

    people = gather_people(
        catalogs,
        out / "pool",
        pool_settings.sampling,
        pool_settings.frames,
        lambda done, total, kept: report("videos", done, total),
    )
    learning, held_out = people.split(pool_settings.held_out_share)
    pool = build_pool(
        people,
        learning,
        out / "pool",
        pool_settings.images,
        pool_settings.seed,
        shares,
        lambda done, total: report("pool", done, total),
    )
    work = Distillation(teacher, pool, settings, available_device())
    checkpoints = Checkpoints(out)
    checkpoints.restore(work)

    def keep(metrics: Metrics) -> None:
        checkpoints.save(work, metrics)
        report_metrics(metrics)

    run_phases(work, _held_out(people, held_out, pool_settings.held_out_frames, teacher), keep)
    path = out / f"{name}.onnx"
    student = scaled_features(work.student, work.scales[FEATURE])
    about = {"name": name, "teachers": [teacher.spec.identity], **(about or {})}
    difference = export_backbone(student, teacher.spec, path, about)
    return Outcome(path, len(learning), len(held_out), people.rejected, checkpoints.history, difference)


def _held_out(people: People, places: Sequence[int], most: int, teacher: HintTeacher) -> HeldOut:
    rows = [(place, number) for place in places for number in range(people.candidates[place].frames)]
    chosen = [rows[round(at)] for at in np.linspace(0, len(rows) - 1, min(most, len(rows))).tolist()]
    if not chosen:
        return HeldOut(np.empty((0, 256, 128, 3), np.uint8), np.empty((0, 0), np.float32))
    frames = np.stack([people.frame(*row) for row in chosen])
    batches = [frames[start : start + EVALUATED] for start in range(0, len(frames), EVALUATED)]
    taught = np.concatenate([teacher.maps(normalise_pixels(batch, teacher.spec))[FEATURE] for batch in batches])
    return HeldOut(frames, taught)


def _fingerprint(catalogs: Sequence[Catalog]) -> str:
    tables = [[c.table[name].to_pylist() for name in ("source_id", "uri", "boxes_uri", "person_id")] for c in catalogs]
    return json_sha256(tables)
