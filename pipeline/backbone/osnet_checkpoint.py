"""OSNet as its authors publish it (github.com/KaiyangZhou/deep-person-reid): a checkpoint of plain tensors -> `OSNet`."""

import io
from typing import Any

import torch

from pipeline.backbone.osnet import OSNet, OSNetConfig
from pipeline.errors import PipelineError, first_line


def read_checkpoint(data: bytes, source: str) -> OSNet:
    """The network of a .pth file's bytes, in eval mode, read by torch's loader for plain tensors, which refuses to run code.

    Its widths are read off the tensors; the classifier of its training is left out. source: what the error names. Raises
    PipelineError when the bytes are not a checkpoint of an OSNet.
    """
    try:
        loaded: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        loaded = loaded.get("state_dict", loaded)
        ours, tensors = our_modules(), {}
        for name, tensor in loaded.items():
            module, _, field = name.removeprefix("module.").rpartition(".")
            if module != "classifier":
                tensors[f"parts.{ours[module]}.{field}"] = tensor
        widths = [len(tensors[f"parts.{part}.0.weight"]) for part in ("stem.0", "down1.0", "down2.0", "last")]
        first, second, third, fourth = widths
        features = len(tensors["parts.feature.2.weight"])
        network = OSNet(OSNetConfig((first, second, third, fourth), features, unit_length=False))
        network.load_state_dict(tensors)
    except Exception as error:  # a pickle can fail in any way
        raise PipelineError(f"{source} is not a checkpoint of an OSNet: {first_line(error)}") from error
    return network.eval()


def our_modules() -> dict[str, str]:
    """The authors' name of each module of an OSNet, for example conv2.0.conv1.bn, and its name in `OSNet.parts`."""
    units = {"conv1": "stem.0", "conv2.2.0": "down1.0", "conv3.2.0": "down2.0", "conv5": "last"}  # convolution and normalisation
    modules = {"fc.0": "feature.2", "fc.1": "feature.3"}
    for stage in (1, 2, 3):
        for place, letter in enumerate("ab"):
            theirs, ours = f"conv{stage + 1}.{place}", f"stage{stage}{letter}"
            units |= {f"{theirs}.conv1": f"{ours}.reduce", f"{theirs}.conv3": f"{ours}.expand"}
            units |= {f"{theirs}.downsample": f"{ours}.shortcut"}
            modules |= {f"{theirs}.gate.fc1": f"{ours}.gate.0", f"{theirs}.gate.fc2": f"{ours}.gate.2"}
            for number, stream in enumerate("abcd"):
                for depth in range(number + 1):
                    name = f"{theirs}.conv2{stream}" + (f".{depth}" if number else "")
                    layers = enumerate(("conv1", "conv2", "bn"))
                    modules |= {f"{name}.{part}": f"{ours}.streams.{number}.{depth}.{i}" for i, part in layers}
    for theirs, ours in units.items():
        modules |= {f"{theirs}.conv": f"{ours}.0", f"{theirs}.bn": f"{ours}.1"}
    return modules
