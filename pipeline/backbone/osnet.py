"""OSNet in torch: the omni-scale network (Zhou et al., ICCV 2019) that is trained here and that its authors publish.

A block sees its input through streams of 1, 2, 3 and 4 stacked 3 x 3 convolutions and lets one small gate, shared by the streams,
weigh their channels. A side branch may give a second feature vector from the middle of the network, for a second teacher. Sizes
in the shape comments: n frames, c channels, h x w pixels.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class OSNetConfig:
    """widths: channels after the first convolution and after each of the three stages. features: width of the trunk's vector.

    branch_width: channels of the side branch, which leaves after the second stage, 0 for none; branch_features: of its vector.
    unit_length: whether each vector is divided by its length, as all networks made here do and the published ones do not.
    """

    widths: tuple[int, int, int, int] = (16, 64, 96, 128)
    features: int = 512
    branch_width: int = 0
    branch_features: int = 256
    unit_length: bool = True

    @property
    def feature_width(self) -> int:
        """D, width of a frame feature."""
        return self.features + (self.branch_features if self.branch_width else 0)


def convolution(inside: int, outside: int, size: int = 1, stride: int = 1, active: bool = True) -> nn.Sequential:
    """Convolution, batch normalisation and, if active, ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(inside, outside, size, stride, size // 2, bias=False), nn.BatchNorm2d(outside)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if active else []))


def light_convolution(channels: int) -> nn.Sequential:
    """A 3 x 3 convolution in two cheap steps: across channels, then one filter a channel."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class OmniScaleBlock(nn.Module):
    """Four streams of growing receptive field (3, 5, 7, 9 pixels), gated by channel, added, and added to the input."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        middle = outside // 4
        self.reduce = convolution(inside, middle)
        self.streams = nn.ModuleList(nn.Sequential(*(light_convolution(middle) for _ in range(depth))) for depth in (1, 2, 3, 4))
        narrow = max(middle // 16, 1)
        hidden = nn.Conv2d(middle, narrow, 1)
        nn.init.constant_(hidden.bias, 1.0)  # type: ignore[arg-type] # one or two numbers: none may start, and stay, behind its ReLU
        self.gate = nn.Sequential(hidden, nn.ReLU(inplace=True), nn.Conv2d(narrow, middle, 1))
        self.expand = convolution(middle, outside, active=False)
        self.shortcut = nn.Identity() if inside == outside else convolution(inside, outside, active=False)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)  # [n, outside / 4, h, w]
        streams = (stream(reduced) for stream in self.streams)
        first, *others = (seen * self.gate(F.adaptive_avg_pool2d(seen, 1)).sigmoid() for seen in streams)
        return F.relu(self.expand(sum(others, first)) + self.shortcut(x))  # [n, outside, h, w]


class OSNet(nn.Module):
    """Frames, float32 [n, 3, h, w], h and w multiples of 16 -> frame features, float32 [n, D].

    A frame feature is the trunk's vector followed by the branch's, each of length 1 where `unit_length` says so. `parts` are the
    trunk's blocks and the layers between them in order, by name; distillation teaches each of them on its own.
    """

    def __init__(self, config: OSNetConfig | None = None) -> None:
        super().__init__()
        self.config = config or OSNetConfig()
        first, second, third, fourth = self.config.widths
        self.parts = nn.Sequential(
            OrderedDict(
                stem=nn.Sequential(convolution(3, first, 7, 2), nn.MaxPool2d(3, 2, 1)),  # [n, 16, h / 4, w / 4]
                stage1a=OmniScaleBlock(first, second),
                stage1b=OmniScaleBlock(second, second),
                down1=nn.Sequential(convolution(second, second), nn.AvgPool2d(2)),  # [n, 64, h / 8, w / 8]
                stage2a=OmniScaleBlock(second, third),
                stage2b=OmniScaleBlock(third, third),
                down2=nn.Sequential(convolution(third, third), nn.AvgPool2d(2)),  # [n, 96, h / 16, w / 16]
                stage3a=OmniScaleBlock(third, fourth),
                stage3b=OmniScaleBlock(fourth, fourth),
                last=convolution(fourth, fourth),
                feature=_vector(fourth, self.config.features, active=True),
            )
        )
        width = self.config.branch_width
        self.branch = (
            nn.Sequential(
                OmniScaleBlock(third, width),
                OmniScaleBlock(width, width),
                convolution(width, 2 * width),
                _vector(2 * width, self.config.branch_features, active=False),
            )
            if width
            else None
        )

    def vectors(self, frames: Tensor) -> tuple[Tensor, Tensor | None]:
        """The trunk's vectors [n, features] and the branch's [n, branch_features], as they are."""
        x, branch = frames, None
        for name, part in self.parts.named_children():
            x = part(x)
            if name == "down2" and self.branch is not None:
                branch = self.branch(x)
        return x, branch

    def forward(self, frames: Tensor) -> Tensor:
        vectors = [vector for vector in self.vectors(frames) if vector is not None]
        if self.config.unit_length:
            vectors = [F.normalize(vector, dim=1) for vector in vectors]
        return torch.cat(vectors, dim=1)  # [n, D]


def _vector(inside: int, outside: int, active: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, outside), nn.BatchNorm1d(outside)]
    return nn.Sequential(*layers, *([nn.ReLU()] if active else []))
