"""What a detector is: its network, what it takes and gives, and with them the identity that its detections go by.

By name or by path. A name is a published detector, fetched from its official place, or the one that ships, which knows rendered
people only. A path is an ONNX file with a JSON sidecar of the same stem that says decode (how boxes are read from what the
network gives), height, width, channels ("RGB" or "BGR") and, where they differ from the defaults, scale, mean, std, letterbox,
person_class, threshold, nms_iou and name. Pixel values are divided by scale, then normalised by mean and std.
`pipeline.footage.detector` loads what is found here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.backbone.onnx_file import read_onnx
from pipeline.errors import PipelineError, UsageError
from pipeline.storage.documents import parsed, typed
from pipeline.storage.downloads import PinnedFile, cache_folder, cached, fetch
from pipeline.storage.hashing import json_sha256

NEEDED = "decode, height, width and channels"
SHIPPED_FOLDER = Path(__file__).parents[1] / "weights/detectors"
WEIGHTS_LICENCE = (
    "its repository is under Apache-2.0; whether that covers the weights was asked there and not answered "
    "(Megvii-BaseDetection/YOLOX, issue 1865)"
)


@dataclass(frozen=True)
class _Sidecar:
    """A sidecar's entries, as the JSON file has them. license, source: for people, and not used."""

    decode: Literal["yolox", "ssd", "boxes_scores"]
    height: int
    width: int
    channels: Literal["RGB", "BGR", "rgb", "bgr"]
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    letterbox: bool | None = None
    person_class: int | None = None
    threshold: float = 0.3
    nms_iou: float = 0.5
    name: str | None = None
    license: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.scale, *map(abs, self.std)) <= 0:
            raise ValueError("height, width and scale are positive, and std is not 0")
        if self.decode == "yolox" and (self.height % 32 or self.width % 32):
            raise ValueError(f"yolox has grids of 32 pixels, which {self.height} x {self.width} is no multiple of")
        if not (0 < self.threshold < 1 and 0 < self.nms_iou <= 1 and (self.person_class or 0) >= 0):
            raise ValueError("threshold and nms_iou are shares above 0, and person_class is not negative")


@dataclass(frozen=True)
class DetectorSpec:
    """What a detector expects and gives.

    name: as shown to people. path: its ONNX file. sha256: of the network's file and of files beside it that hold weights.
    decode: how boxes of people are read from the network's outputs (`pipeline.footage.detector`). height, width: of the network's
    input in pixels. channels: "RGB" or "BGR". A pixel p in 0..255 becomes (p / scale - mean) / std per channel. letterbox: frames
    keep their proportions, at the top left of a ground of 114; else they are stretched. person_class: the number of the class
    person. threshold: the least score of a detection. nms_iou: of two boxes that overlap by more, the better one counts.
    remark: what whoever uses it should know, a sentence or nothing.
    """

    name: str
    path: str
    sha256: str
    decode: str
    height: int
    width: int
    channels: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    letterbox: bool
    person_class: int
    threshold: float
    nms_iou: float
    remark: str = ""

    @property
    def identity(self) -> str:
        """Name and hash of the weights and of all that decides what is detected."""
        fields = {name: value for name, value in vars(self).items() if name not in ("name", "path", "remark")}
        return f"{self.name}@{json_sha256(fields, sort_keys=True)[:16]}"


def _yolox(name: str, size: int, sha256: str, pixels: int) -> tuple[PinnedFile, _Sidecar]:
    url = f"https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/{name}.onnx"
    return PinnedFile(f"{name}.onnx", sha256, size, url), _Sidecar("yolox", pixels, pixels, "BGR", name=name)


PUBLISHED = {
    "yolox_nano": _yolox("yolox_nano", 3_659_407, "c789161ed43c8269fcd4e67c67eeeb4e80c622da2eb296a20bc6007bd18a0b7d", 416),
    "yolox_tiny": _yolox("yolox_tiny", 20_219_662, "427cc366d34e27ff7a03e2899b5e3671425c262ea2291f88bb942bc1cc70b0f7", 416),
    "yolox_s": _yolox("yolox_s", 35_858_002, "c5c2d13e59ae883e6af3b45daea64af4833a4951c92d116ec270d9ddbe998063", 640),
}
"""YOLOX (Ge et al., 2021), as its authors' release offers it. Sizes and checksums are those that public projects have pinned."""


SHIPPED = {"rendered": "the detector rendered knows people of jobs.render only; for real ones take yolox_nano"}
"""Detectors that ship, and what whoever uses them should know."""


def detector_names() -> tuple[str, ...]:
    """What a detector can be called by: those that are downloaded, and the shipped one."""
    return (*PUBLISHED, *SHIPPED)


def find_detector(name_or_path: str) -> DetectorSpec:
    """Look a detector up without loading it; a published one is downloaded if it is not in the cache.

    Raises UsageError when there is no such detector or its sidecar is unusable, PipelineError when a published one cannot be had.
    """
    if name_or_path in PUBLISHED:
        file, sidecar = PUBLISHED[name_or_path]
        folder = cache_folder() / "detectors"
        path = cached(file, folder) or fetch(file, folder)
        return _spec(path, sidecar, f"the detector {name_or_path}: {WEIGHTS_LICENCE}")
    path = Path(name_or_path)
    if name_or_path in SHIPPED:
        path = SHIPPED_FOLDER / f"{name_or_path}.onnx"
    if path.suffix != ".onnx":
        names = ", ".join(detector_names())
        raise UsageError(f"a detector is one of {names}, or the path of an .onnx file, not {name_or_path!r}")
    if not path.is_file():
        raise UsageError(f"the detector {path} does not exist")
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise UsageError(f"{path} needs a sidecar {beside.name} beside it with {NEEDED}")
    try:
        sidecar = typed(_Sidecar, parsed(beside.read_bytes()))
    except ValueError as error:
        raise UsageError(f"{beside} cannot be understood: {error}; it needs {NEEDED}") from error
    except OSError as error:
        raise PipelineError(f"{beside} cannot be read: {error.strerror}") from error
    return _spec(path, sidecar, SHIPPED.get(name_or_path, ""))


def _spec(path: Path, sidecar: _Sidecar, remark: str = "") -> DetectorSpec:
    letterbox, person = sidecar.letterbox, sidecar.person_class
    return DetectorSpec(
        name=sidecar.name or path.stem,
        path=str(path.resolve()),
        sha256=read_onnx(path)[1],
        decode=sidecar.decode,
        height=sidecar.height,
        width=sidecar.width,
        channels=sidecar.channels.upper(),
        scale=sidecar.scale,
        mean=sidecar.mean,
        std=sidecar.std,
        letterbox=sidecar.decode == "yolox" if letterbox is None else letterbox,
        person_class=int(sidecar.decode == "ssd") if person is None else person,  # an SSD's class 0 is the background
        threshold=sidecar.threshold,
        nms_iou=sidecar.nms_iou,
        remark=remark,
    )
