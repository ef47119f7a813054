"""Training the backbone along with the head: the same loop with a torch network in front, on frames cached as pixels.

EndToEnd         the loop; each batch is cut, augmented, embedded and compared
start_network    the network that it starts from; start_training makes the head's start from what that network gives
run_end_to_end   from a plan, with frames and checkpoints in its folder, so that it goes on where it was killed
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.backbone.osnet import OSNet
from pipeline.backbone.shipped import read_network, shipped_network
from pipeline.backbone.spec import DEFAULT, BackboneSpec, find_backbone, normalise_pixels, parse_input_size
from pipeline.errors import UsageError
from pipeline.storage.hashing import sha256
from pipeline.storage.location import Location, resolve
from pipeline.training.augmentation import AugmentationSettings, augment
from pipeline.training.checkpoint import RunFolder
from pipeline.training.checkpoint_files import below
from pipeline.training.features import FeatureSet
from pipeline.training.frames import FrameSet, cache_frames
from pipeline.training.initial_head import identity_start
from pipeline.training.loop import Metrics, Training, validate
from pipeline.training.run import TrainingPlan, run_epochs
from pipeline.training.sampler import Batch
from pipeline.training.settings import TrainingSettings

BATCH = {"people": 8, "tracklets": 2, "segments": 1}  # a batch of 128 frames, not of 1,024, which take 25 GB
FRAME_MB = 25  # of memory that a frame of 256 x 128 pixels in a batch takes, measured on a CPU
START_VIDEOS = 256  # videos that the head's start point is made from
OTHERS = 8  # crops of other people that occluders of a batch are taken from


def start_network(begin_from: str | None = None, input_size: str | None = None) -> tuple[OSNet, BackboneSpec]:
    """The network that a training starts from, in eval mode, and the backbone that it is, with the size of its frames.

    begin_from: folder of an earlier training, of which the backbone is taken; None: DEFAULT. input_size: "HEIGHTxWIDTH" of the
    frames in pixels; None: the start's own. Raises UsageError for a size that the network cannot take, and for another folder.
    """
    size = parse_input_size(input_size) if input_size else None
    if size is not None and any(pixels % 16 or pixels < 32 for pixels in size):
        raise UsageError(f"--input-size {input_size}: height and width are multiples of 16 pixels and at least 32")
    if begin_from is None:
        return shipped_network(DEFAULT), find_backbone(DEFAULT, size)
    found = sorted(Path(begin_from, "backbone").glob("*.safetensors"))
    if len(found) != 1:
        raise UsageError(
            f"{begin_from} is no folder of one finished end-to-end training: {len(found)} backbones in its backbone/"
        )
    return read_network(found[0]), find_backbone(str(found[0].with_suffix(".onnx")), size)


def frames_folder(out: Location) -> Path:
    """OUT/frames. Raises UsageError for a bucket."""
    if not out.is_local:
        raise UsageError(f"{out.uri} is not local; frames are memory-mapped, so an end-to-end training needs a folder on a disk")
    return Path(out.path, "frames")


def batch_size(settings: TrainingSettings, spec: BackboneSpec) -> tuple[int, float]:
    """(frames of a batch, memory in GB that they take)."""
    frames = settings.people * settings.tracklets * settings.segments * settings.segment_length
    return frames, frames * FRAME_MB / 1e3 * spec.height * spec.width / (256 * 128)


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
        self.backbone.load_state_dict(below(tensors, "backbone."))
        self.best_backbone = below(tensors, "best_backbone.")

    def _copy_of_backbone(self) -> dict[str, Tensor]:
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.backbone.state_dict().items()}


def start_training(
    plan: TrainingPlan,
    frames: FrameSet,
    backbone: nn.Module,
    spec: BackboneSpec,
    device: torch.device | str = "cpu",
    **options: Any,
) -> EndToEnd:
    """A training at its start point, whose head is made from what `backbone` gives now; a checkpoint may be restored after that.

    frames: of the plan's galleries. options: augmentation, running_statistics of `EndToEnd`. Raises as `split_identities` does.
    """
    where = torch.device(device)
    learning, held_out = frames.split(plan.validation_share)
    sample = learning.take(learning.labels.video_ids[:: max(1, len(learning.labels) // START_VIDEOS)])
    return EndToEnd(
        learning.labels,
        held_out.labels if held_out is not None else None,
        identity_start(sample.embedded(backbone.to(where), spec, where), plan.start, plan.settings.segment_length),
        plan.settings,
        where,
        backbone=backbone,
        spec=spec,
        learning=learning,
        held_out=held_out,
        **options,
    )


def run_end_to_end(
    plan: TrainingPlan,
    backbone: nn.Module,
    spec: BackboneSpec,
    report: Callable[[Metrics], None] = lambda metrics: None,
    device: torch.device | str = "cpu",
    endpoints: Sequence[str] = (),
    **options: Any,
) -> nn.Module:
    """The backbone of the best epoch, trained in place; plan.out/run has checkpoints, with the head, plan.out/frames the pixels.

    backbone: frames float32 [n, 3, h, w] -> features float32 [n, D]; spec: as it starts, with the size of its frames. options: as
    in `start_training`. Goes on from the newest checkpoint; report is called with the metrics of each epoch of this run. Raises
    UsageError when plan.out is not local or holds another training, else as `cache_frames`, `start_training` and
    `Training.run_epoch` do.
    """
    out = resolve(plan.out)
    cache = frames_folder(out)
    frames = cache_frames(plan.galleries, cache, spec.height, spec.width, endpoints)
    training = start_training(plan, frames, backbone, spec, device, **options)
    made_of = {
        "data": [(cache / "frames.sha256").read_text(), _labels_hash(frames.labels)],
        "backbone": spec.identity,
        "augmentation": asdict(training.augmentation),
        "batch normalisation": "running statistics" if training.running_statistics else "statistics of the batch",
    }
    run_epochs(training, RunFolder(out, plan.made_of(made_of)), report)
    backbone.load_state_dict(training.best_backbone)
    return backbone.eval()


def _labels_hash(labels: FeatureSet) -> str:
    arrays = [array.tobytes() for array in (labels.person, labels.camera, labels.clip, labels.hidden) if array is not None]
    return sha256(json.dumps([labels.video_ids, labels.person_names]), *arrays)
