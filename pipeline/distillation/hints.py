"""What the student is told: hints inside of the network (Romero et al., FitNets, ICLR 2015), and vectors at its ends.

A teacher's map is divided by one positive number a channel. ReLU, pooling and convolutions carry such a number through, so the
divided maps are those of an equally good network, and no batch normalisation of the student has far to go. Losses are float32
scalars by name.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.backbone.osnet import OmniScaleBlock, OSNet
from pipeline.distillation.teacher import FEATURE

STREAMS = 4

Maps = Mapping[str, Tensor]


def channel_scales(maps: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The number of each channel, float32 [c] by map: its root mean square over frames and pixels, and a tenth of the map's.

    maps: as `HintTeacher.maps` gives them. The streams of a block are added and share a gate: their ends have one scale.
    The second block of a stage adds its own input, so that it has the first one's.
    """
    scales = {}
    for name, values in maps.items():
        size = torch.from_numpy(np.sqrt(np.square(values).mean(axis=(0, *range(2, values.ndim)))))  # [c]
        scales[name] = size + 0.1 * size.mean() + torch.finfo(torch.float32).tiny
    blocks = [name for name in maps if f"{name}.reduce" in maps]
    for block in blocks:
        ends = [f"{block}.streams.{stream}.{stream}" for stream in range(STREAMS)]
        shared = torch.stack([scales[end] for end in ends]).mean(0)
        scales |= dict.fromkeys(ends, shared)
    for first, second in zip(blocks[::2], blocks[1::2], strict=True):
        scales[second] = scales[first]  # its shortcut carries its input through as it is
    return scales


def divided(maps: Mapping[str, np.ndarray], scales: Maps, device: torch.device) -> dict[str, Tensor]:
    """Maps as the student is to make them, float32 [n, c, h, w] or [n, c]."""
    result = {}
    for name, values in maps.items():
        tensor = torch.from_numpy(values).to(device)
        if tensor.ndim == 4:
            tensor = tensor.to(memory_format=torch.channels_last)
        result[name] = tensor / scales[name].to(device).view(1, -1, *[1] * (tensor.ndim - 2))
    return result


def part_losses(student: OSNet, pixels: Tensor, hints: Maps) -> dict[str, Tensor]:
    """Every part on its own: given the teacher's map before it, how far it is from the teacher's map after it.

    pixels: float32 [n, 3, h, w]. hints: divided maps. The steps inside of a block are parts as well; "stage1a.inside" is their
    sum. So no layer waits for those before it, and all learn at once.
    """
    losses, before = {}, pixels
    for name, part in student.parts.named_children():
        hint = hints[name]
        if isinstance(part, OmniScaleBlock):
            losses[f"{name}.inside"], made = _inside_block(name, part, before, hints)
        else:
            made = part(before)
        losses[name] = F.mse_loss(made, hint)
        if name == FEATURE:
            losses[f"{name}.cosine"] = cosine_loss(made, hint)
        before = hint
    return losses


def _inside_block(name: str, block: OmniScaleBlock, before: Tensor, hints: Maps) -> tuple[Tensor, Tensor]:
    """(loss of the steps, the block's output with the teacher's maps for its streams)."""
    reduced = hints[f"{name}.reduce"]
    loss = F.mse_loss(block.reduce(before), reduced)
    ends = []
    for number, stream in enumerate(block.streams):
        seen = reduced
        for depth, layer in enumerate(stream.children()):
            hint = hints[f"{name}.streams.{number}.{depth}"]
            loss = loss + F.mse_loss(layer(seen), hint)
            seen = hint
        ends.append(seen)
    gated = [end * block.gate(F.adaptive_avg_pool2d(end, 1)).sigmoid() for end in ends]
    return loss, F.relu(block.expand(torch.stack(gated).sum(dim=0)) + block.shortcut(before))


def whole_losses(student: OSNet, pixels: Tensor, hints: Maps) -> dict[str, Tensor]:
    """The student end to end against the maps and the feature.

    "...table" compares the batch's tables of cosines: which frames are alike.
    """
    losses, x = {}, pixels
    for name, part in student.parts.named_children():
        x = part(x)
        losses[name] = F.mse_loss(x, hints[name])
    losses[f"{FEATURE}.cosine"] = cosine_loss(x, hints[FEATURE])
    losses[f"{FEATURE}.table"] = table_loss(x, hints[FEATURE])
    return losses


def cosine_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    """1 - cosine, of [n, d] each, mean over n."""
    return (1 - F.cosine_similarity(ours, theirs)).mean()


def table_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared difference of the two n x n tables of cosines, of [n, d] each."""
    ours, theirs = F.normalize(ours), F.normalize(theirs)
    return F.mse_loss(ours @ ours.T, theirs @ theirs.T)
