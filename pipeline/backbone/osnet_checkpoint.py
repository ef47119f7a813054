"""OSNet (Zhou et al., ICCV 2019) as its authors publish it: a checkpoint of plain tensors -> frame features, for inference only.

The network is read off the checkpoint, so that every width of OSNet works. Sizes in the shape comments: n frames, c channels.
"""

import io
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import PipelineError, first_line


def read_checkpoint(data: bytes, source: str) -> "PublishedOSNet":
    """The network of a .pth file's bytes, read by torch's loader for plain tensors, which refuses whatever would run code.

    source: what the error names. Raises PipelineError when the bytes are not a checkpoint of an OSNet.
    """
    try:
        tensors: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        tensors = tensors.get("state_dict", tensors)
        network = PublishedOSNet({name.removeprefix("module."): tensor for name, tensor in tensors.items()})
        with torch.inference_mode():
            network(torch.zeros(1, 3, 64, 32))  # a tensor that is missing or misfits shows here
    except Exception as error:  # a pickle can fail in any way
        raise PipelineError(f"{source} is not a checkpoint of an OSNet: {first_line(error)}") from error
    return network


class PublishedOSNet(torch.nn.Module):
    """float32 [n, 3, h, w] -> frame features float32 [n, D].

    tensors: by the authors' names, for example conv2.0.conv1.bn.weight; their training's classifier is not looked at.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.tensors = dict(tensors)
        self.eval()

    def forward(self, frames: Tensor) -> Tensor:
        x = F.max_pool2d(self._convolved(frames, "conv1", stride=2, padding=3), 3, 2, 1)  # [n, c, h / 4, w / 4]
        for stage in ("conv2", "conv3", "conv4"):
            x = self._block(self._block(x, f"{stage}.0"), f"{stage}.1")
            if stage != "conv4":
                x = F.avg_pool2d(self._convolved(x, f"{stage}.2.0"), 2)
        pooled = self._convolved(x, "conv5").mean((2, 3))  # [n, c]
        return self._normalised(F.linear(pooled, self.tensors["fc.0.weight"], self.tensors["fc.0.bias"]), "fc.1").relu()

    def _block(self, x: Tensor, name: str) -> Tensor:
        """Streams of 1, 2, 3 and 4 light convolutions, weighed by one gate that they share."""
        reduced = self._convolved(x, f"{name}.conv1")  # [n, c / 4, h, w]
        mixed = self._gated(self._light(reduced, f"{name}.conv2a"), f"{name}.gate")
        for stream, depth in (("b", 2), ("c", 3), ("d", 4)):
            seen = reduced
            for step in range(depth):
                seen = self._light(seen, f"{name}.conv2{stream}.{step}")
            mixed = mixed + self._gated(seen, f"{name}.gate")
        shortcut = f"{name}.downsample"
        if f"{shortcut}.conv.weight" in self.tensors:
            x = self._convolved(x, shortcut, active=False)
        return (self._convolved(mixed, f"{name}.conv3", active=False) + x).relu()  # [n, c, h, w]

    def _light(self, x: Tensor, name: str) -> Tensor:
        x = F.conv2d(x, self.tensors[f"{name}.conv1.weight"])
        x = F.conv2d(x, self.tensors[f"{name}.conv2.weight"], padding=1, groups=x.shape[1])
        return self._normalised(x, f"{name}.bn").relu()

    def _gated(self, x: Tensor, name: str) -> Tensor:
        weigh = x.mean((2, 3), keepdim=True)  # [n, c, 1, 1]
        weigh = F.conv2d(weigh, self.tensors[f"{name}.fc1.weight"], self.tensors[f"{name}.fc1.bias"]).relu()
        return x * F.conv2d(weigh, self.tensors[f"{name}.fc2.weight"], self.tensors[f"{name}.fc2.bias"]).sigmoid()

    def _convolved(self, x: Tensor, name: str, stride: int = 1, padding: int = 0, active: bool = True) -> Tensor:
        x = self._normalised(F.conv2d(x, self.tensors[f"{name}.conv.weight"], None, stride, padding), f"{name}.bn")
        return x.relu() if active else x

    def _normalised(self, x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (self.tensors[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias)
