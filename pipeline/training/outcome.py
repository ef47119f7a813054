"""What a finished training leaves in its folder: head/, and with a backbone that learned along backbone/NAME.onnx."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch

from pipeline.backbone.export import export_backbone
from pipeline.backbone.osnet import OSNet
from pipeline.backbone.spec import BackboneSpec, find_backbone
from pipeline.coattention.head import DESCRIPTION, TENSORS, save_head
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import GallerySettings
from pipeline.storage.location import resolve
from pipeline.training.checkpoint import Checkpoint, newest_checkpoint
from pipeline.training.run import TrainingPlan

PACKAGES = ("co-attention-search", "torch", "numpy", "ray")  # whose versions the head's description names


def write_head(
    plan: TrainingPlan, data: Sequence[str], gallery: GallerySettings, command: str, more: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Write the head of the best epoch into plan.out/head, with what it was made from; returns the newest checkpoint.

    data: names of what was learned from. gallery: the backbone that the head is for, and the rate of its frames. command: what
    was run. more: beside the recipe. Raises PipelineError when there is no checkpoint.
    """
    folder = resolve(plan.out)
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise PipelineError(f"the training left no checkpoint in {folder.uri}")
    settings = {"training": asdict(plan.settings), "start": asdict(plan.start), "validation_share": plan.validation_share}
    info = {
        "untrained": False,
        "data": list(data),
        "recipe": settings | dict(more or {}),
        "backbone": gallery.backbone.identity,
        "sample_rate": gallery.rate,
        "epoch": checkpoint.best_epoch,
        "validation": checkpoint.best_metrics,
        "command": command,
        "versions": {name: version(name) for name in PACKAGES},
        "trained_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    }
    with tempfile.TemporaryDirectory() as temporary:
        save_head(checkpoint.best_head(), temporary, info, gallery.backbone.identity)
        for name in (TENSORS, DESCRIPTION):
            folder.join("head", name).write_atomically(Path(temporary, name).read_bytes())
    return checkpoint


def write_backbone(network: OSNet, start: BackboneSpec, out: str, name: str, command: str) -> BackboneSpec:
    """Write OUT/backbone/NAME.onnx with its sidecar and, to go on from, its tensors; returns the backbone that it now is.

    start: what the network was, whose preprocessing stays. out: a local folder. Raises PipelineError as `export_backbone` does.
    """
    path = Path(resolve(out).path, "backbone", f"{name}.onnx")
    export_backbone(network, start, path, {"name": name, "start": start.identity, "command": command})
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    resolve(path.with_suffix(".safetensors")).write_atomically(safetensors.torch.save(tensors))
    return find_backbone(str(path))
