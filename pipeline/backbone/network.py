"""The ONNX network of a backbone, as bytes: read, fetched, or exported from a published checkpoint and kept in the cache."""

import logging
from collections.abc import Callable
from pathlib import Path

from pipeline.backbone.onnx_file import read_onnx
from pipeline.backbone.published import backbones_folder, with_weights
from pipeline.backbone.shipped import shipped_backbone
from pipeline.backbone.spec import BackboneSpec
from pipeline.errors import PipelineError
from pipeline.storage.downloads import cache_folder, check_private, fetch
from pipeline.storage.hashing import sha256
from pipeline.storage.location import resolve

log = logging.getLogger(__name__)


def onnx_network(spec: BackboneSpec) -> bytes:
    """The backbone's ONNX network with all its weights, fetched or exported if it is a published one.

    Raises PipelineError when it is not there or is another one than was looked up.
    """
    if spec.path is not None:
        network, digest = read_onnx(Path(spec.path))
        if digest != spec.weights_sha256:
            raise PipelineError(f"{spec.path} cannot be used, it is not the network that was looked up: its content differs")
        return network
    if (published := with_weights(spec.weights_sha256)) is not None:
        path = fetch(published.file, backbones_folder())
        weights = _checked_bytes(path, spec, "it was changed while it was read")
        return weights if published.file.name.endswith(".onnx") else _exported(spec, lambda: _from_checkpoint(weights, path))
    if (shipped := shipped_backbone(spec.name)) is not None:
        return _checked_bytes(shipped, spec, f"another version of {spec.name} ships with this installation")
    raise PipelineError(f"this installation has no backbone {spec.name}; say where it is with --backbone")


def _from_checkpoint(weights: bytes, path: Path) -> bytes:
    """An ONNX network from its authors' checkpoint. torch is loaded here alone: an ingest does without."""
    from pipeline.backbone.export import to_onnx
    from pipeline.backbone.osnet_checkpoint import read_checkpoint

    return to_onnx(read_checkpoint(weights, str(path)))


def _exported(spec: BackboneSpec, export: Callable[[], bytes]) -> bytes:
    """What `export` gives, an ONNX network of any height and width, kept in the user's cache from its first use on.

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
        return export()
    for path in sorted(folder.glob(f"{name}-*.onnx")):
        network = resolve(path).read_bytes()
        if path.name == f"{name}-{sha256(network)}.onnx":
            return network
        resolve(path).delete()
    network = export()
    resolve(folder / f"{name}-{sha256(network)}.onnx").write_atomically(network)
    return network


def _checked_bytes(path: Path, spec: BackboneSpec, otherwise: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PipelineError(f"the backbone {path} cannot be read: {error.strerror}") from error
    if sha256(data) != spec.weights_sha256:
        raise PipelineError(f"{path} cannot be used, {otherwise}")
    return data
