"""Frames -> frame features: a backbone in ONNX Runtime, on the CPU or, with its CUDA provider, on a GPU.

The network has one input, float [n, 3, height, width], n free or fixed, and one output, [n, dim]; its weights may lie in files
beside it (`pipeline.backbone.onnx_file`). Before it is used it is tried, so that a network that misfits makes no gallery.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.backbone.network import onnx_network
from pipeline.backbone.spec import BackboneSpec, normalise_pixels
from pipeline.errors import PipelineError, first_line

CPU_BATCH = 8  # frames a network call: more leave the cores' caches and take a tenth longer a frame
GPU_BATCH = 32
PIXEL_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}  # of a network's input
BATCH_TOLERANCE = 0.01  # of the largest feature: between a frame alone and in a batch; float16 and TF32 round by 0.0005 each time


class Backbone:
    """A loaded backbone; `load_backbone` makes it. batch: frames of one network call, whatever number is embedded."""

    def __init__(self, spec: BackboneSpec, threads: int | None, device: str) -> None:
        self.spec = spec
        label = spec.path or spec.name
        self.session = open_session(onnx_network(spec), label, threads, device)
        check_input(self.session, spec.height, spec.width, label)
        if len(outputs := self.session.get_outputs()) != 1:
            raise PipelineError(_not_one("output", outputs, label))
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


def load_backbone(spec: BackboneSpec, threads: int | None = None, device: str = "auto") -> Backbone:
    """Load a backbone.

    threads: CPU threads of a network call (None: one a core). device: "cpu", "cuda", or "auto" for CUDA where there is one.
    Frames that are made up are embedded in a batch as large as those in use, and the first and last of them alone. Raises
    PipelineError when the file is not an ONNX network, has changed since it was looked up, does not take or give what its sidecar
    says, gives no finite features, or others to a frame alone than in a batch.
    """
    backbone = Backbone(spec, threads, chosen_device(device))
    _check_features(backbone)
    return backbone


def chosen_device(device: str) -> str:
    """ "cuda" for "auto" where ONNX Runtime and the machine have CUDA, else "cpu"; other devices as they are."""
    import onnxruntime

    if device != "auto":
        return device
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "cpu"
    import torch  # takes a second to load, and is asked only if it matters

    return "cuda" if torch.cuda.is_available() else "cpu"


def open_session(network: bytes, label: str, threads: int | None, device: str) -> Any:
    """An ONNX Runtime session of a network with all its weights inside. label: what messages call it.

    threads: CPU threads of a network call (None: one a core). device: "cpu" or "cuda". Raises PipelineError.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3 if device == "cuda" else 4  # errors are raised as well, but for a CUDA that cannot be used
    if threads is not None:
        options.intra_op_num_threads = threads
    wanted = ["CUDAExecutionProvider"] if device == "cuda" else []
    available = onnxruntime.get_available_providers()
    providers = [name for name in [*wanted, "CPUExecutionProvider"] if name in available]
    options.add_session_config_entry("session.load_model_format", "ONNX")  # never its own, which is trusted more
    try:
        return onnxruntime.InferenceSession(network, options, providers=providers)
    except Exception as error:  # ONNX Runtime raises a family of classes of its own
        raise PipelineError(f"{label} is not an ONNX network that can be loaded: {first_line(error)}") from error


def check_input(session: Any, height: int, width: int, label: str) -> None:
    """Raise PipelineError unless a network of ONNX Runtime takes frames of that size in pixels, and nothing else."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise PipelineError(_not_one("input", inputs, label))
    (pixels,) = inputs
    wanted = [None, 3, height, width]
    shape = pixels.shape or wanted  # a network need not say
    free = [size is None or isinstance(size, str) for size in shape]
    if len(shape) != 4 or shape[0] == 0 or not all(free[i] or shape[i] == wanted[i] for i in (1, 2, 3)):
        size = f"{height} x {width}"
        raise PipelineError(
            f"{label} does not take {size} frames: its input is {described_shape(shape)}, not n x 3 x {size}; "
            "correct the sidecar's height and width, or export it again"
        )
    if pixels.type not in PIXEL_TYPES:
        raise PipelineError(f"{label} takes {pixels.type}; export it with an input of float32 or float16")


def described_shape(shape: Iterable[int | str | None]) -> str:
    """A shape in words: "free x 3 x 256 x 128"."""
    return " x ".join("free" if size is None else str(size) for size in shape)


def _not_one(kind: str, found: list[Any], label: str) -> str:
    names = ", ".join(repr(one.name) for one in found)
    return f"{label} has {len(found)} {kind}s ({names}) and must have one; export it with that one alone"


def _check_features(backbone: Backbone) -> None:
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
    apart, in_batch = np.concatenate(alone).astype(np.float32), features[[0, -1]].astype(np.float32)
    if not (np.isfinite(features).all() and np.isfinite(apart).all()):
        raise PipelineError(f"{spec.name} gives features that are not finite in float16 for ordinary frames; export it again")
    allowed = BATCH_TOLERANCE * np.abs(in_batch).max() + np.finfo(np.float16).smallest_subnormal
    if np.abs(in_batch - apart).max() > allowed:
        raise PipelineError(
            f"{spec.name} gives a frame other features alone than among {n}; export it in eval mode, or with n fixed at 1"
        )
