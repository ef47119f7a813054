"""The student backbone, against an implementation of OSNet written apart from it and against what its paper says."""

import pytest
import torch
from torch import nn

from pipeline.backbone.osnet import OmniScaleBlock, OSNet, OSNetConfig
from pipeline.backbone.osnet_checkpoint import PublishedOSNet

TINY = OSNetConfig((8, 16, 24, 32), 40, 16, 12)


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


def authors_names(network):
    """The trunk's tensors under the names that OSNet's authors gave them in their checkpoints."""
    modules = {"stem.0": "conv1", "down1.0": "conv2.2.0", "down2.0": "conv3.2.0", "last": "conv5"}
    plain = {"feature.2": "fc.0", "feature.3": "fc.1"}
    for stage, group in ((1, 2), (2, 3), (3, 4)):
        for place, block in enumerate("ab"):
            ours, theirs = f"stage{stage}{block}", f"conv{group}.{place}"
            modules |= {f"{ours}.reduce": f"{theirs}.conv1", f"{ours}.expand": f"{theirs}.conv3"}
            modules |= {f"{ours}.shortcut": f"{theirs}.downsample"}
            plain |= {f"{ours}.gate.0": f"{theirs}.gate.fc1", f"{ours}.gate.2": f"{theirs}.gate.fc2"}
            for k, stream in enumerate("abcd"):
                for depth in range(k + 1):
                    layer = f"{ours}.streams.{k}.{depth}"
                    name = f"{theirs}.conv2{stream}" + (f".{depth}" if k else "")
                    plain |= {f"{layer}.{i}": f"{name}.{part}" for i, part in enumerate(("conv1", "conv2", "bn"))}
    plain |= {f"{ours}.{i}": f"{theirs}.{part}" for ours, theirs in modules.items() for i, part in enumerate(("conv", "bn"))}
    renamed = {}
    for name, tensor in network.parts.state_dict().items():
        module, _, field = name.rpartition(".")
        renamed[f"{plain[module]}.{field}"] = tensor
    return renamed


def test_the_trunk_computes_what_the_published_network_computes():
    network = lively(TINY)
    frames = torch.randn(3, 3, 64, 32)
    with torch.inference_mode():
        ours, theirs = network.vectors(frames)[0], PublishedOSNet(authors_names(network))(frames)
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_frame_feature_is_two_vectors_of_length_1():
    network = lively(TINY)
    with torch.inference_mode():
        features, (trunk, branch) = network(x := torch.randn(4, 3, 48, 32)), network.vectors(x)
    assert features.shape == (4, TINY.feature_width) and TINY.feature_width == 52
    for part, vector in ((features[:, :40], trunk), (features[:, 40:], branch)):
        torch.testing.assert_close(part, vector / vector.square().sum(1, keepdim=True).sqrt())
        torch.testing.assert_close(part.square().sum(1), torch.ones(4))


def test_without_a_branch_the_trunk_is_the_feature():
    network = lively(OSNetConfig((8, 16, 24, 32), 40, 0))
    with torch.inference_mode():
        assert network(torch.randn(2, 3, 32, 16)).shape == (2, 40) and network.vectors(torch.randn(2, 3, 32, 16))[1] is None


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
