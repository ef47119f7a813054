"""The backbones that ship with the package, in the folder pipeline/weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError, UsageError, first_line

if TYPE_CHECKING:
    from pipeline.backbone.osnet import OSNet

WEIGHTS = Path(__file__).parents[1] / "weights"


def shipped_backbones() -> list[str]:
    """Names of the backbones that ship."""
    return sorted(path.stem for path in (WEIGHTS / "backbones").glob("*.onnx"))


def shipped_backbone(name: str) -> Path | None:
    """The ONNX file of a backbone that ships; its sidecar lies beside it."""
    return WEIGHTS / "backbones" / f"{name}.onnx" if name in shipped_backbones() else None


def shipped_network(name: str) -> "OSNet":
    """A backbone that ships as the torch network that it was exported from, for training to go on from; in eval mode.

    Raises UsageError when no tensors of that name ship.
    """
    path = WEIGHTS / "backbones" / f"{name}.safetensors"
    if not path.is_file():
        raise UsageError(f"no tensors of a backbone {name!r} ship, so no training can start from it")
    return read_network(path)


def read_network(path: Path) -> "OSNet":
    """An OSNet from its safetensors file, in eval mode. Raises PipelineError, with the path."""
    import safetensors
    import safetensors.torch

    from pipeline.backbone.osnet import OSNet

    network = OSNet()
    try:
        network.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise PipelineError(f"{path} does not hold the tensors of an OSNet: {first_line(error)}") from error
    return network.eval()
