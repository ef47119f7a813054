"""A small detector of people: its network, which cells answer for whom, and the loss.

Cells of grids of 8, 16 and 32 pixels each give centre, logarithm of width and height and a score, as YOLOX reads them (Ge et al.,
arXiv:2107.08430), from inverted residuals (Sandler et al., "MobileNetV2", CVPR 2018) joined from coarse to fine (Lin et al.,
"Feature Pyramid Networks for Object Detection", CVPR 2017). Cells near the middle of a person answer for them (Tian et al.,
"FCOS", ICCV 2019); boxes are judged by generalised overlap (Rezatofighi et al., CVPR 2019), scores by how well their box fits
(Li et al., "Generalized Focal Loss", NeurIPS 2020).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (8, 16, 32)
HEIGHTS = ((0.0, 60.0), (40.0, 130.0), (90.0, float("inf")))  # pixels of a person, for whom cells of each stride answer
REACH = 1.5  # cells around a person's middle that answer for them
MOST_LOGARITHM = 6.0


class _Convolution(nn.Sequential):
    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, active: bool = True) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)]
        super().__init__(*layers, nn.BatchNorm2d(out), *([nn.ReLU(inplace=True)] if active else []))


class _Residual(nn.Module):
    """Wider by `widen`, filtered a channel at a time, narrow again; added to what came in where sizes agree."""

    def __init__(self, channels: int, out: int, stride: int = 1, widen: int = 3, kernel: int = 3) -> None:
        super().__init__()
        self.adds = stride == 1 and channels == out
        wide = channels * widen
        self.layers = nn.Sequential(
            _Convolution(channels, wide),
            _Convolution(wide, wide, kernel, stride, wide),
            _Convolution(wide, out, active=False),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.layers(maps) if self.adds else self.layers(maps)


class DetectorNetwork(nn.Module):
    """Frames float32 [n, 3, h, w], in 0..1, BGR, h and w multiples of 32 -> cells [n, cells, 6]: centre x and y and logarithms of
    width and height, in cells, score, and 1, the one class.
    """

    def __init__(self, widths: tuple[int, int, int, int, int] = (12, 16, 24, 48, 64), joined: int = 32) -> None:
        super().__init__()
        stem, first, *rest = widths
        self.stem = nn.Sequential(_Convolution(3, stem, 3, 2), _Residual(stem, first, 2, 2), _Residual(first, first, 1, 2))
        stages = []
        for before, width in zip((first, *rest), rest, strict=False):
            kernel = 3 if width == rest[0] else 5
            stages.append(nn.Sequential(_Residual(before, width, 2), *(_Residual(width, width, 1, 3, kernel) for _ in range(2))))
        self.stages = nn.ModuleList(stages)
        self.laterals = nn.ModuleList(_Convolution(width, joined, active=False) for width in rest)
        self.smooth = nn.ModuleList(_separable(joined) for _ in STRIDES)
        self.tower = nn.Sequential(_separable(joined), _separable(joined))
        self.outputs = nn.ModuleList(_output(joined) for _ in STRIDES)

    def raw(self, frames: Tensor) -> Tensor:
        """[n, cells, 5], the score as a logit."""
        maps, found = self.stem(frames), []
        for stage in self.stages:
            maps = stage(maps)
            found.append(maps)
        above: Tensor | None = None
        rows = []
        for level in reversed(range(len(STRIDES))):
            joined = self.laterals[level](found[level])
            if above is not None:
                joined = joined + F.interpolate(above, scale_factor=2.0)
            above = self.smooth[level](joined)
            rows.append(self.outputs[level](self.tower(above)).flatten(2))
        return torch.cat(rows[::-1], 2).transpose(1, 2)

    def forward(self, frames: Tensor) -> Tensor:
        raw = self.raw(frames)
        return torch.cat([raw[..., :4], raw[..., 4:].sigmoid(), torch.ones_like(raw[..., 4:])], 2)


def _output(width: int) -> nn.Conv2d:
    """At first boxes in the middle of their cell, as wide as one or two and five times as high; few cells see somebody."""
    output = nn.Conv2d(width, 5, 1)
    nn.init.normal_(output.weight, 0, 0.01)
    with torch.no_grad():
        output.bias.copy_(torch.tensor([0.5, 0.5, 0.5, 1.7, -4.0]))  # type: ignore[union-attr]
    return output


def _separable(width: int) -> nn.Sequential:
    return nn.Sequential(_Convolution(width, width, 5, 1, width), _Convolution(width, width))


@dataclass(frozen=True)
class Cells:
    """Where cells lie. corner: float32 [cells, 2], x and y in cells; stride: float32 [cells, 1], pixels; heights: [cells, 2], of
    people in pixels for whom they answer.
    """

    corner: Tensor
    stride: Tensor
    heights: Tensor

    @classmethod
    def of(cls, height: int, width: int) -> "Cells":
        corners, strides, heights = [], [], []
        for stride, span in zip(STRIDES, HEIGHTS, strict=True):
            y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
            corners.append(torch.stack([x.flatten(), y.flatten()], 1))
            strides.append(torch.full((x.numel(), 1), float(stride)))
            heights.append(torch.tensor([span]).expand(x.numel(), 2))
        return cls(torch.cat(corners).float(), torch.cat(strides), torch.cat(heights))

    def edges(self, raw: Tensor) -> Tensor:
        """[n, cells, 4], left, top, right, bottom in pixels."""
        centre = (raw[..., :2] + self.corner) * self.stride
        half = raw[..., 2:4].clamp(max=MOST_LOGARITHM).exp() * self.stride / 2
        return torch.cat([centre - half, centre + half], -1)

    def who(self, people: Tensor) -> Tensor:
        """Whom each cell answers for, int64 [cells], -1: nobody. people: edges, float32 [m, 4]."""
        if not len(people):
            return torch.full((len(self.stride),), -1)
        middle, height = (people[:, :2] + people[:, 2:]) / 2, people[:, 3] - people[:, 1]
        place = ((self.corner + 0.5) * self.stride)[:, None]
        away = (place - middle).abs()
        near = (away < REACH * self.stride[:, None]).all(2) & (place > people[:, :2]).all(2) & (place < people[:, 2:]).all(2)
        fits = (height >= self.heights[:, :1]) & (height < self.heights[:, 1:])
        distance = torch.where(near & fits, away.square().sum(2) / self.stride**2, torch.inf)
        least, person = distance.min(1)
        return torch.where(least < torch.inf, person, -1)

    def inside(self, edges: Tensor) -> Tensor:
        """Which cells have their middle in one of these boxes, bool [cells]."""
        place = ((self.corner + 0.5) * self.stride)[:, None]
        return ((place > edges[:, :2]) & (place < edges[:, 2:])).all(2).any(1)


def detector_loss(raw: Tensor, cells: Cells, people: list[Tensor], unclear: list[Tensor]) -> Tensor:
    """[] of raw [n, cells, 5]. people, unclear: edges of a frame, float32 [m, 4]; the unclear are neither right nor wrong."""
    edges = cells.edges(raw)
    of_scores, of_boxes, answering = raw.new_zeros(()), raw.new_zeros(()), 0
    for number, (boxes, hidden) in enumerate(zip(people, unclear, strict=True)):
        who, logit = cells.who(boxes), raw[number, :, 4]
        answers = who >= 0
        wanted, weight = torch.zeros_like(logit), (~cells.inside(hidden)).float()
        if answers.any():
            generalised, overlap = overlaps(edges[number][answers], boxes[who[answers]])
            of_boxes = of_boxes + (1 - generalised).sum()
            wanted[answers], weight[answers] = 0.5 + 0.5 * overlap.detach(), 1.0
            answering += int(answers.sum())
        focus = (logit.sigmoid() - wanted).abs().pow(1.5)
        of_scores = of_scores + (focus * weight * F.binary_cross_entropy_with_logits(logit, wanted, reduction="none")).sum()
    return (3 * of_scores + 2 * of_boxes) / max(answering, 1)


def overlaps(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Generalised intersection over union, and the plain one, [m], of edges [m, 4] in pairs."""
    inner = (torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])).clamp(min=0).prod(1)
    union = (one[:, 2:] - one[:, :2]).prod(1) + (other[:, 2:] - other[:, :2]).prod(1) - inner
    around = (torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2])).prod(1)
    plain = inner / union.clamp(min=1e-6)
    return plain - (around - union) / around.clamp(min=1e-6), plain
