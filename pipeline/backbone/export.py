"""A trained OSNet as a backbone: an ONNX file that gives torch's numbers, with the sidecar that `spec` reads."""

import copy
import io
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.backbone.osnet import OSNet
from pipeline.backbone.spec import BackboneSpec
from pipeline.errors import PipelineError, UsageError
from pipeline.storage.location import resolve

TOLERANCE = 1e-4  # largest difference between ONNX Runtime's numbers and torch's
OPSET = 17


def check_name(name: str, taken: Sequence[str] = ()) -> None:
    """Raise UsageError for a backbone's name that is no file name everywhere, or that is one of the names taken."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is None:
        raise UsageError(f"--name {name!r} is no file name of letters, digits, dots, dashes and underscores")
    if name in taken:
        raise UsageError(f"--name {name}: a backbone of that name ships; give another")


def scaled_features(network: OSNet, scale: Tensor) -> OSNet:
    """A copy whose features, before they have length 1, are multiplied by `scale`, positive, float32 [D].

    The scale is merged into the last normalisation.
    """
    if not bool((scale > 0).all()):
        raise ValueError("only positive scales pass through the ReLU behind the normalisation")
    network = copy.deepcopy(network)
    normalisation = next(layer for layer in network.parts[-1].children() if isinstance(layer, nn.BatchNorm1d))
    with torch.no_grad():
        for parameter in (normalisation.weight, normalisation.bias):
            parameter.mul_(scale.to(parameter.device))
    return network


def export_backbone(network: OSNet, preprocessing: BackboneSpec, path: str | Path, about: dict[str, Any]) -> float:
    """Write a network and its sidecar; the number of frames, their height and their width stay free.

    preprocessing: height, width, channels, scale, mean and std of the frames. about: what else the sidecar says. Returns the
    largest difference between ONNX Runtime and torch on random frames; raises PipelineError, leaving nothing, above TOLERANCE.
    """
    path = Path(path)
    network = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    content = to_onnx(network, preprocessing.height, preprocessing.width)
    difference = largest_difference(network, content, preprocessing.height, preprocessing.width)
    if not difference <= TOLERANCE:
        raise PipelineError(f"the exported {path.name} differs by {difference:.1e} from the network it was made from")
    names = ("height", "width", "channels", "scale", "mean", "std")
    sidecar = {name: getattr(preprocessing, name) for name in names} | {"dim": network.config.features, **about}
    resolve(path.with_suffix(".json")).write_atomically((json.dumps(sidecar, indent=1) + "\n").encode())
    resolve(path).write_atomically(content)
    return difference


def to_onnx(network: nn.Module, height: int = 256, width: int = 128) -> bytes:
    """A network of frames float32 [n, 3, h, w] in eval mode as ONNX, of any n, h and w. height, width: that it is traced with."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, height, width),),
            content,  # type: ignore[arg-type]  # it takes files as well
            dynamo=False,
            input_names=["frames"],
            output_names=["features"],
            dynamic_axes={"frames": {0: "n", 2: "height", 3: "width"}, "features": {0: "n"}},
            opset_version=OPSET,
        )
    return content.getvalue()


def largest_difference(network: OSNet, content: bytes, height: int, width: int) -> float:
    """Between an ONNX network in ONNX Runtime and torch, on random frames of this size and of half of it, one and several."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    found = []
    for shape in ((1, 3, height, width), (3, 3, height, width), (2, 3, height // 2, width // 2)):
        frames = rng.normal(size=shape).astype(np.float32)
        with torch.inference_mode():
            ours = network(torch.from_numpy(frames)).numpy()
        found.append(np.abs(session.run(None, {"frames": frames})[0] - ours).max())
    return float(np.max(found))
