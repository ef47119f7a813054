"""OSNet, against an implementation written apart from it and against what its paper says."""

import io
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbone.osnet import OmniScaleBlock, OSNet, OSNetConfig
from pipeline.backbone.osnet_checkpoint import our_modules, read_checkpoint

TINY = OSNetConfig((8, 16, 24, 32), 40)


def lively(config, seed=0):
    """A network in eval mode whose batch normalisations do not stand at their start values."""
    torch.manual_seed(seed)
    network = OSNet(config).eval()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


class AuthorsOSNet(nn.Module):
    """The oracle, written off the authors' description: float32 [n, 3, h, w] -> frame features float32 [n, D], of any length.

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


def authors_tensors(network):
    """The trunk's tensors under the names that OSNet's authors gave them in their checkpoints."""
    theirs = {ours: name for name, ours in our_modules().items()}
    parts = [(*name.rpartition("."), tensor) for name, tensor in network.parts.state_dict().items()]
    return {f"{theirs[module]}.{field}": tensor for module, _, field, tensor in parts}


def test_the_trunk_computes_what_the_published_network_computes():
    network = lively(TINY)
    frames = torch.randn(3, 3, 64, 32)
    tensors = authors_tensors(network)
    checkpoint = io.BytesIO()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, checkpoint)
    with torch.inference_mode():
        expected = AuthorsOSNet(tensors)(frames)
        ours, read = network.parts(frames), read_checkpoint(checkpoint.getvalue(), "it")(frames)
    assert expected.std() > 0.01
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read, expected, rtol=1e-4, atol=1e-5)


def test_a_frame_feature_is_of_length_1():
    network = lively(TINY)
    with torch.inference_mode():
        features, plain = network(x := torch.randn(4, 3, 48, 32)), network.parts(x)
    assert features.shape == (4, 40)
    torch.testing.assert_close(features, plain / plain.square().sum(1, keepdim=True).sqrt())
    torch.testing.assert_close(features.square().sum(1), torch.ones(4))


@pytest.mark.parametrize("stream", range(4))
def test_stream_k_sees_a_square_of_2_k_plus_1_pixels(stream):
    torch.manual_seed(0)
    layers = OmniScaleBlock(16, 16).streams[stream].eval()
    pixels = torch.rand(1, 4, 21, 21, requires_grad=True)
    with torch.no_grad():  # every weight and activation positive: nothing that is seen can cancel
        for parameter in layers.parameters():
            parameter.abs_().add_(0.1)
    layers(pixels)[0, :, 10, 10].sum().backward()
    rows, columns = (pixels.grad[0].abs().sum(0) > 0).nonzero().T
    reach = stream + 1
    assert {rows.min().item(), columns.min().item()} == {10 - reach} and {rows.max().item(), columns.max().item()} == {10 + reach}
