"""OSNet in torch: the omni-scale network (Zhou et al., ICCV 2019) that is trained here and that its authors publish.

A block sees its input through streams of 1, 2, 3 and 4 stacked 3 x 3 convolutions and lets one small gate, shared by the streams,
weigh their channels. Sizes in the shape comments: n frames, c channels,
h x w pixels.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class OSNetConfig:
    """widths: channels after the first convolution and after each of the three stages. features: D, width of a frame feature.

    unit_length: whether it is divided by its length, as all networks made here do and the published ones do not.
    """

    widths: tuple[int, int, int, int] = (16, 64, 96, 128)
    features: int = 512
    unit_length: bool = True


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

    A frame feature is of length 1 where `unit_length` says so. `parts` are the blocks and the layers between them in order, by
    name; distillation teaches each of them on its own.
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
                feature=_vector(fourth, self.config.features),
            )
        )

    def forward(self, frames: Tensor) -> Tensor:
        features = self.parts(frames)
        return F.normalize(features, dim=1) if self.config.unit_length else features  # [n, D]


def _vector(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, outside), nn.BatchNorm1d(outside), nn.ReLU())
