"""Training the backbone along with the head: the same loop with a torch network in front, on frames cached as pixels.

cache_frames     galleries' videos -> one file of uint8 frames, beside the labels that the galleries have
EndToEnd         the loop; each batch is cut, augmented, embedded and compared
train_end_to_end ties both together in one process; `pipeline.backbone.export` makes the network a backbone for ingest
run_end_to_end   the same from a plan, with a cache and checkpoints in its folder, so that it goes on where it was killed
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.backbone.spec import BackboneSpec, normalise_pixels
from pipeline.coattention.network import Coattention
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Piece, Rejected
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.storage.location import new_array, resolve
from pipeline.training.augmentation import AugmentationSettings, augment
from pipeline.training.checkpoint import EventFiles, RunFolder
from pipeline.training.features import FeatureSet, Source, load_features, split_identities
from pipeline.training.loop import Metrics, Training, validate
from pipeline.training.run import TrainingPlan
from pipeline.training.sampler import Batch
from pipeline.training.settings import TrainingSettings
from pipeline.training.start import StartSettings, identity_start

EMBED_FRAMES = 64  # frames a network call, outside training
START_VIDEOS = 256  # videos that the head's start point is made from
OTHERS = 8  # crops of other people that occluders of a batch are taken from


@dataclass(frozen=True)
class FrameSet:
    """Labelled videos as pixels.

    labels: without features. frames: uint8 [n, h, w, 3], RGB; rows: int64 [F], where in `frames` each frame of the labels lies.
    """

    labels: FeatureSet
    frames: NDArray[np.uint8]
    rows: NDArray[np.int64]

    def take(self, video_ids: Sequence[str]) -> "FrameSet":
        """The set of these videos."""
        places = {video_id: place for place, video_id in enumerate(self.labels.video_ids)}
        videos = np.array([places[video_id] for video_id in video_ids], np.int64)
        first, frames = self.labels.first_frame, self.labels.frames
        rows = np.concatenate([self.rows[first[v] : first[v] + frames[v]] for v in videos])
        return FrameSet(self.labels.take(videos), self.frames, rows)

    def split(self, share: float) -> tuple["FrameSet", "FrameSet | None"]:
        """(training, validation) as `split_identities` divides people."""
        sides = split_identities(self.labels, share)
        return self.take(sides[0].video_ids), self.take(sides[1].video_ids) if len(sides[1]) else None

    def embedded(self, backbone: nn.Module, spec: BackboneSpec, device: torch.device) -> FeatureSet:
        """The labels with the features float16 that a network gives these frames now."""
        backbone.eval()
        parts = []
        with torch.no_grad():
            for start in range(0, len(self.rows), EMBED_FRAMES):
                pixels = normalise_pixels(self.frames[self.rows[start : start + EMBED_FRAMES]], spec)
                parts.append(backbone(torch.from_numpy(pixels).to(device)).half().cpu().numpy())
        return replace(self.labels, features=np.concatenate(parts))


def cache_frames(
    sources: Sequence[Source], folder: str | Path, height: int, width: int, endpoints: Sequence[str] = ()
) -> FrameSet:
    """Decode the labelled videos of galleries once into folder/frames.npy; a finished cache of the same videos is used again.

    Frames are those that the galleries sampled, resized to height x width pixels; 24 kB a frame of 128 x 64. They are read below
    the galleries' roots, and at no other endpoints than the galleries' and these (`pipeline.storage.location.Reach`). Raises
    PipelineError when a video gives other frames than when it was ingested.
    """
    folder = Path(folder)
    labels = load_features(sources)
    labels = replace(labels, features=np.empty((len(labels.features), 0), np.float16))
    shape = (int(labels.frames.sum()), height, width, 3)
    rates = [(source.gallery.settings.rate, source.gallery.settings.image_rate) for source in sources]
    places = [(row["uri"], row["boxes_uri"], row["track"]) for source in sources for row in _labelled_rows(source)]
    parts = [labels.video_ids, labels.frames.tolist(), shape, rates, places]
    made_of = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    path, mark = folder / "frames.npy", folder / "frames.sha256"
    if not mark.exists() or mark.read_text() != made_of:
        folder.mkdir(parents=True, exist_ok=True)
        mark.unlink(missing_ok=True)
        frames = new_array(path, np.uint8, shape)
        at = 0
        for source in sources:
            at += _decode_all(source, frames[at:], endpoints)
        frames.flush()
        resolve(mark).write_atomically(made_of.encode())
    return FrameSet(labels, np.load(path, mmap_mode="r", allow_pickle=False), np.arange(shape[0]))


def _labelled_rows(source: Source) -> list[dict[str, Any]]:
    rows = source.gallery.snapshot().videos.sort_by("video_id").to_pylist()
    return [row for row in rows if row["person_id"] is not None]


def _decode_all(source: Source, frames: NDArray[np.uint8], endpoints: Sequence[str]) -> int:
    """Write the frames of a gallery's labelled videos, in the order of their ids, to the front of `frames`; returns how many."""
    settings = source.gallery.settings
    sampling = Sampling(
        rate=settings.rate,
        image_rate=settings.image_rate,
        height=frames.shape[1],
        width=frames.shape[2],
        roots=settings.roots,
        endpoints=(*source.gallery.reach().endpoints, *endpoints),
    )
    rows = _labelled_rows(source)
    ends = np.cumsum([row["sampled_frames"] for row in rows])
    places = {(row["uri"], row["track"]): end - row["sampled_frames"] for row, end in zip(rows, ends, strict=True)}
    wanted = {(row["uri"], row["track"]): row["sampled_frames"] for row in rows}
    written = dict.fromkeys(places, 0)
    refused: dict[str, str] = {}
    with Decoder(sampling) as decoder:
        for uri, boxes_uri, rate in dict.fromkeys((row["uri"], row["boxes_uri"], row["fps"]) for row in rows):
            for event in decoder.events(uri, boxes_uri, rate):  # a stream without times has the rate that it was ingested at
                if isinstance(event, Piece) and (uri, event.track) in places:
                    found = written[uri, event.track]
                    fitting = event.frames[: max(wanted[uri, event.track] - found, 0)]
                    frames[places[uri, event.track] + found :][: len(fitting)] = fitting
                    written[uri, event.track] += len(event.frames)
                elif isinstance(event, Rejected):
                    refused[uri] = f": {event.message}"
    for (uri, track), count in wanted.items():
        if written[uri, track] != count:
            raise PipelineError(f"{uri} gave {written[uri, track]} frames and {count} when it was ingested{refused.get(uri, '')}")
    return int(ends[-1]) if len(ends) else 0


@dataclass(kw_only=True)
class EndToEnd(Training):
    """A training in which the backbone learns too, at settings.backbone_rate times the head's rate.

    backbone: frames float32 [n, 3, h, w] -> features [n, D]; trained in place. learning, held_out: the pixels of `videos` and of
    `validation`. spec: how pixels enter the network. running_statistics: batch normalisation in the backbone uses, and keeps, the
    statistics that it came with, as the exported network does; in distillation the error on a batch's own was ten times as high.
    """

    backbone: nn.Module
    spec: BackboneSpec
    learning: FrameSet
    held_out: FrameSet | None
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    running_statistics: bool = True

    def __post_init__(self) -> None:
        self.backbone = self.backbone.to(self.device)
        super().__post_init__()
        self.best_backbone = self._copy_of_backbone()

    def parameter_groups(self) -> list[dict]:
        return [
            *super().parameter_groups(),
            {"params": list(self.backbone.parameters()), "multiplier": self.settings.backbone_rate},
        ]

    def segments(self, batch: Batch, random: np.random.Generator) -> tuple[Tensor, Batch]:
        """Frame features [B, T, D] of augmented frames, and the batch with the frames that occluders hide."""
        self.backbone.train()
        if self.running_statistics:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        rows = self.learning.rows[batch.rows]  # [B, T]
        others = self.learning.frames[np.sort(random.choice(self.learning.rows, OTHERS))]
        pixels, covered = [], []
        for segment in rows:
            frames, hidden = augment(self.learning.frames[segment], random, self.augmentation, others)
            pixels.append(normalise_pixels(frames, self.spec))
            covered.append(hidden)
        features = self.backbone(torch.from_numpy(np.concatenate(pixels)).to(self.device))
        occluded = np.stack(covered)
        changed = replace(batch, hidden=batch.hidden | occluded)
        return features.view(*rows.shape, -1), changed

    def judge(self) -> Metrics:
        if self.held_out is None:
            return {}
        return validate(self.head, self.held_out.embedded(self.backbone, self.spec, self.device), self.settings)

    def keep_best(self) -> None:
        super().keep_best()
        self.best_backbone = self._copy_of_backbone()

    def further_tensors(self) -> dict[str, Tensor]:
        kept = {f"best_backbone.{name}": tensor for name, tensor in self.best_backbone.items()}
        return kept | {f"backbone.{name}": tensor for name, tensor in self.backbone.state_dict().items()}

    def take_further_tensors(self, tensors: dict[str, Tensor]) -> None:
        named = {
            prefix: {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
            for prefix in ("backbone.", "best_backbone.")
        }
        self.backbone.load_state_dict(named["backbone."])
        self.best_backbone = named["best_backbone."]

    def _copy_of_backbone(self) -> dict[str, Tensor]:
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.backbone.state_dict().items()}


def train_end_to_end(
    backbone: nn.Module,
    spec: BackboneSpec,
    frames: FrameSet,
    settings: TrainingSettings | None = None,
    *,
    validation_share: float = 0.2,
    start: StartSettings | None = None,
    augmentation: AugmentationSettings | None = None,
    running_statistics: bool = True,
    device: torch.device | str = "cpu",
    report: Callable[[Metrics], None] = lambda metrics: None,
    begin: Callable[[EndToEnd], None] = lambda training: None,
) -> tuple[nn.Module, Coattention, list[Metrics]]:
    """Train backbone and head together: (backbone, in place, and head of the best epoch; metrics, the start point first).

    begin: called before the first epoch, for example to restore a checkpoint; `backbone` must then be what it first was, since
    the head's start is made from it. running_statistics: as in `EndToEnd`. Raises as `split_identities` and `Training.run_epoch`
    do.
    """
    settings, where = settings or TrainingSettings(), torch.device(device)
    learning, held_out = frames.split(validation_share)
    sample = learning.take(learning.labels.video_ids[:: max(1, len(learning.labels) // START_VIDEOS)])
    head = identity_start(sample.embedded(backbone.to(where), spec, where), start, settings.segment_length)
    training = EndToEnd(
        learning.labels,
        held_out.labels if held_out is not None else None,
        head,
        settings,
        where,
        backbone=backbone,
        spec=spec,
        learning=learning,
        held_out=held_out,
        augmentation=augmentation or AugmentationSettings(),
        running_statistics=running_statistics,
    )
    begin(training)
    history: list[Metrics] = []
    while training.epoch < settings.epochs:
        if not math.isfinite(training.best):  # no checkpoint was restored, not even that of the start point
            history.append(training.start_point())
            report(history[-1])
        history.append(training.run_epoch())
        report(history[-1])
    backbone.load_state_dict(training.best_backbone)
    return backbone.eval(), training.result(), history


def run_end_to_end(
    plan: TrainingPlan,
    backbone: nn.Module,
    spec: BackboneSpec,
    report: Callable[[Metrics], None] = lambda metrics: None,
    device: torch.device | str = "cpu",
    *,
    augmentation: AugmentationSettings | None = None,
    running_statistics: bool = True,
    endpoints: Sequence[str] = (),
) -> nn.Module:
    """The backbone of the best epoch, trained in place; plan.out/run has checkpoints, with the head, plan.out/frames the pixels.

    spec: the backbone as it starts and the size of its frames. Goes on from the newest checkpoint; report is called with the
    metrics of each epoch of this run. Raises UsageError when plan.out is not local or holds another training, else as
    `cache_frames` and `train_end_to_end` do.
    """
    out = resolve(plan.out)
    if not out.is_local:
        raise UsageError(f"{plan.out} is not local; frames are memory-mapped, so an end-to-end training needs a folder on a disk")
    cache = Path(out.path) / "frames"
    sources = [Source(Gallery.open(source.uri), source.network, source.hidden) for source in plan.galleries]
    frames = cache_frames(sources, cache, spec.height, spec.width, endpoints)
    augmentation = augmentation or AugmentationSettings()
    folder = RunFolder(
        out,
        {
            "settings": asdict(plan.settings),
            "start": asdict(plan.start),
            "validation share": plan.validation_share,
            "data": [(cache / "frames.sha256").read_text(), _labels_hash(frames.labels)],
            "backbone": spec.identity,
            "augmentation": asdict(augmentation),
            "batch normalisation": "running statistics" if running_statistics else "statistics of the batch",
        },
    )
    training: EndToEnd
    events: EventFiles | None = None

    def begin(started: EndToEnd) -> None:
        nonlocal training, events
        training = started
        if folder.restore(training):
            folder.write_metrics()  # killed between checkpoint and table
        events = EventFiles(out, folder.history)

    def keep(metrics: Metrics) -> None:
        folder.save(training, metrics)
        if events is not None:
            events.add(metrics)
        report(metrics)

    try:
        trained, _, _ = train_end_to_end(
            backbone,
            spec,
            frames,
            plan.settings,
            validation_share=plan.validation_share,
            start=plan.start,
            augmentation=augmentation,
            running_statistics=running_statistics,
            device=device,
            report=keep,
            begin=begin,
        )
    finally:
        if events is not None:
            events.close()
    return trained


def _labels_hash(labels: FeatureSet) -> str:
    found = hashlib.sha256(json.dumps([labels.video_ids, labels.person_names]).encode())
    for array in (labels.person, labels.camera, labels.clip, labels.hidden):
        found.update(array.tobytes() if array is not None else b"")
    return found.hexdigest()
