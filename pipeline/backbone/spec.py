"""What a backbone is: name, weights and preprocessing, and with them the identity that its features go by.

By name or by path. A name is a backbone that ships (`pipeline.backbone.shipped`) or a published one that is fetched
(`pipeline.backbone.published`). A path is an ONNX file with a JSON sidecar of the same stem that says height, width, channels
(RGB or BGR), scale (pixel values are divided by it), mean, std and dim. `pipeline.backbone.runtime` loads what is found here.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.backbone.onnx_file import read_onnx
from pipeline.backbone.published import PUBLISHED, obtain
from pipeline.backbone.shipped import shipped_backbone, shipped_backbones
from pipeline.errors import UsageError
from pipeline.storage.hashing import json_sha256

DEFAULT = "osnet_x0_25_distilled"
SIDECAR_FIELDS = ("height", "width", "channels", "scale", "mean", "std", "dim")


@dataclass(frozen=True)
class BackboneSpec:
    """What a backbone expects and gives.

    name: as shown to people. path: its ONNX file, or None for one known by name, which every machine finds for itself.
    weights_sha256: of the network's file and of files beside it that hold weights (`pipeline.backbone.onnx_file`).
    height, width: pixels. channels: "RGB" or "BGR". A pixel p in 0..255 becomes (p / scale - mean) / std per channel.
    dim: width of a frame feature.
    """

    name: str
    path: str | None
    weights_sha256: str
    height: int
    width: int
    channels: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dim: int

    @property
    def identity(self) -> str:
        """Name and hash of weights and preprocessing: features of backbones that differ in this never compare."""
        fields = [self.weights_sha256, *(getattr(self, name) for name in SIDECAR_FIELDS)]
        return f"{self.name}@{json_sha256(fields)[:16]}"


def same_backbone(one: str, other: str) -> bool:
    """Whether two identities, or the hashes at their ends, say the same weights and preprocessing, whatever their names.

    >>> same_backbone("town@0123456789abcdef", "copy@0123456789abcdef")
    True
    """
    return one.rpartition("@")[2] == other.rpartition("@")[2]


def backbone_names() -> tuple[str, ...]:
    """What a backbone can be called by: those that ship and those that are downloaded."""
    return (*shipped_backbones(), *PUBLISHED)


def find_backbone(name_or_path: str = DEFAULT, input_size: tuple[int, int] | None = None) -> BackboneSpec:
    """Look a backbone up without loading it; a published one is downloaded if it is not in the cache.

    name_or_path: a name, or the path of an ONNX file with its sidecar beside it. input_size: (height, width) in pixels instead
    of the backbone's own. Raises UsageError when there is no such backbone or its sidecar is unusable, PipelineError when a
    published one cannot be had.
    """
    if (path := shipped_backbone(name_or_path)) is not None:
        spec = replace(_read_sidecar(path), name=name_or_path, path=None)
    elif (published := obtain(name_or_path)) is not None:
        file, pixels = published, (published.height, published.width, "RGB", 255.0, published.mean, published.std, published.dim)
        spec = BackboneSpec(file.name, None, file.file.sha256, *pixels)
    else:
        spec = _read_sidecar(Path(name_or_path))
    if input_size is not None:
        spec = replace(spec, height=input_size[0], width=input_size[1])
    return spec


def parse_input_size(text: str) -> tuple[int, int]:
    """ "256x128" -> (256, 128): height x width in pixels. Raises UsageError."""
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text)
    if match is None:
        raise UsageError(f"an input size is HEIGHTxWIDTH in pixels, for example 256x128, not {text!r}")
    return int(match[1]), int(match[2])


class Pixels(Protocol):
    """What a network expects of pixels: a backbone's spec, or a detector's."""

    @property
    def channels(self) -> str: ...
    @property
    def scale(self) -> float: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


def normalise_pixels(frames: np.ndarray, spec: Pixels) -> np.ndarray:
    """Frames uint8 [n, h, w, 3], RGB -> float32 [n, 3, h, w] as the network expects them; h and w need not be the spec's."""
    if spec.channels == "BGR":
        frames = frames[..., ::-1]
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    pixels = np.multiply(frames.transpose(0, 3, 1, 2), 1.0 / (np.float32(spec.scale) * std), order="C")  # plane by plane
    pixels -= mean / std
    return pixels


def _read_sidecar(path: Path) -> BackboneSpec:
    if path.suffix != ".onnx":
        names = " or ".join(map(repr, backbone_names()))
        kinds = f"a backbone is {names} or the path of an .onnx file"
        raise UsageError(f"{kinds}, not {str(path)!r}; other formats are not loaded, since they can run code")
    if not path.is_file():
        raise UsageError(f"the backbone {path} does not exist")
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        raise UsageError(f"{path} needs a sidecar {sidecar.name} beside it with {', '.join(SIDECAR_FIELDS)}")
    try:
        fields = json.loads(sidecar.read_text())
        spec = BackboneSpec(
            name=str(fields.get("name", path.stem)),
            path=str(path.resolve()),
            weights_sha256=read_onnx(path)[1],
            height=int(fields["height"]),
            width=int(fields["width"]),
            channels=str(fields["channels"]),
            scale=float(fields["scale"]),
            mean=tuple(float(value) for value in fields["mean"]),
            std=tuple(float(value) for value in fields["std"]),
            dim=int(fields["dim"]),
        )
    except KeyError as error:
        raise UsageError(f"{sidecar} lacks {error.args[0]!r}; it needs {', '.join(SIDECAR_FIELDS)}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{sidecar} cannot be understood: {error}") from error
    sizes = (spec.height, spec.width, spec.dim, spec.scale)
    if min(sizes) <= 0 or spec.channels not in ("RGB", "BGR") or len(spec.mean) != 3 or len(spec.std) != 3 or 0 in spec.std:
        raise UsageError(f"{sidecar}: sizes and scale are positive, channels is RGB or BGR, mean and std are three numbers")
    return spec
