"""Published re-identification backbones by name: where their authors offer the weights, and the checksum these must have."""

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.storage.downloads import PinnedFile, cache_folder, cached, fetch

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Published:
    """One file of published weights: an ONNX network, or the authors' checkpoint of plain tensors (.pth).

    height, width: pixels; pixels are RGB, divided by 255, then normalised by mean and std. dim: width of a frame feature.
    """

    name: str
    file: PinnedFile
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dim: int

    def __post_init__(self) -> None:
        if self.file.url is not None and not self.file.url.startswith("https://"):
            raise ValueError(f"{self.name} must be published under https")


def _osnet(file: PinnedFile) -> Published:
    return Published("osnet_x0_25_msmt17", file, 256, 128, IMAGENET_MEAN, IMAGENET_STD, 512)


OSNET_X0_25 = (
    _osnet(
        PinnedFile("osnet_x0_25_msmt17.onnx", "61b2604171ef9d58d21758626f83b35a253c3d7123976523a6e03068c3c95d7b", 921_616, None)
    ),
    _osnet(
        PinnedFile(
            "osnet_x0_25_msmt17.pth",
            "cf55163d78fc44c62c82f85ab62d39f10438679b5abe8c698ae08cfa84aa6e18",
            9_336_983,
            "https://huggingface.co/kaiyangzhou/osnet/resolve/01af85e82a9db4f3a4f6ed3a72ed9150bd416d04/"
            "osnet_x0_25_msmt17_combineall_256x128_amsgrad_ep150_stp60_lr0.0015_b64_fb10_softmax_labelsmooth_flip_jitter.pth",
        )
    ),
)
"""OSNet x0.25 trained on MSMT17 (Zhou et al., ICCV 2019), MIT.

The .onnx is an export without an address of its own, used when a copy lies in the cache: its checksum was compared with the file
itself. The .pth is the authors': their README (github.com/KaiyangZhou/deep-person-reid) names huggingface.co/kaiyangzhou/osnet as
the place; revision, size and checksum are those that independent public projects have pinned, and no copy was at hand to compare.
`pipeline.backbone.osnet_checkpoint` reads it as plain tensors, which runs no code; it becomes an ONNX file in the cache.
"""

PUBLISHED: dict[str, tuple[Published, ...]] = {"osnet_x0_25": OSNET_X0_25, "osnet_x0_25_msmt17": OSNET_X0_25}

_MODEL_ZOO = "https://kaiyangzhou.github.io/deep-person-reid/MODEL_ZOO"
_INTEL = "https://github.com/openvinotoolkit/open_model_zoo"
ELSEWHERE = {
    r"osnet(_ain|_ibn)?_x[01]_\d+(_[a-z]+\d+)?": f"is offered as a checkpoint at {_MODEL_ZOO}; export it to ONNX",
    r"person-reidentification-retail-\d+": f"is offered as OpenVINO IR at {_INTEL}; convert it to ONNX",
}
"""Names that people try and that have no ONNX file with a checksum that could be pinned, and where their weights are."""


def obtain(name: str) -> Published | None:
    """The published backbone of that name, its weights in the cache, downloaded if need be; None if there is no such name.

    Of several files with the same network the first that lies in the cache is taken. Raises PipelineError when the weights cannot
    be had, UsageError for a known name that is not offered in a form that can be used.
    """
    for published in PUBLISHED.get(name, ()):
        if cached(published.file, backbones_folder()) is not None:
            return published
    for published in PUBLISHED.get(name, ()):
        if published.file.url is not None:
            fetch(published.file, backbones_folder())
            return published
    for pattern, where in ELSEWHERE.items():
        if re.fullmatch(pattern, name):
            raise UsageError(f"{name} {where}, write a sidecar beside it, and give the path of the .onnx file")
    return None


def with_weights(sha256: str) -> Published | None:
    """The published backbone whose file has this checksum."""
    every = (published for files in PUBLISHED.values() for published in files)
    return next((published for published in every if published.file.sha256 == sha256), None)


def backbones_folder() -> Path:
    """Where downloaded and copied weights lie."""
    return cache_folder() / "backbones"
