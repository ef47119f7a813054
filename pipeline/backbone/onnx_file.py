"""An ONNX network with all its weights as one value, and the hash of all that it was read from.

Large exports, and those of torch's newer exporter, keep weights in files beside the network ("external data"). For a network that
it gets as bytes, ONNX Runtime looks for such files in the current directory. It is therefore given one without: what it computes
with is what was hashed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, UsageError
from pipeline.storage.hashing import sha256

MOST_BYTES = 2**31 - 1  # of a protobuf message, and so of a network in memory


def read_onnx(path: Path) -> tuple[bytes, str]:
    """(the network, with its weights inside; the SHA-256 of its file, or of its file's and its weights' files' SHA-256).

    Files of weights lie in the network's own folder (that of the file itself, where `path` is a link) or below it. Raises
    UsageError when one is missing, lies elsewhere, is too short or all are too large, PipelineError when a file cannot be read or
    is no ONNX network.
    """
    try:
        content = path.read_bytes()
        digest = sha256(content)
        if b"location" not in content:  # ONNX Runtime reads no file for a tensor without this key
            return content, digest
        return _with_files(path.resolve(), content, digest)
    except OSError as error:
        raise PipelineError(f"the network {error.filename or path} cannot be read: {error.strerror}") from error


def _with_files(path: Path, content: bytes, digest: str) -> tuple[bytes, str]:
    import onnx  # takes 0.05 s, in every process of an ingest

    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf has a class of its own
        raise PipelineError(f"{path} is not an ONNX network that can be loaded: it cannot be parsed") from error
    tensors = [tensor for tensor in _tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in tensors]
    files = {name: _beside(path, name) for name in sorted({place.get("location", "") for place in places})}
    too_large = UsageError(f"{path} and the weights beside it are larger than 2 GiB together, which is more than is loaded")
    if len(content) + sum(file.stat().st_size for file in files.values()) > MOST_BYTES:
        raise too_large
    weights = {name: file.read_bytes() for name, file in files.items()}
    if files:
        digest = sha256(digest, *map(sha256, weights.values()))
    ranges = [_byte_range(path, place, weights) for place in places]
    if len(content) + sum(stop - start for start, stop in ranges) > MOST_BYTES:  # ranges may overlap
        raise too_large
    for tensor, place, (start, stop) in zip(tensors, places, ranges, strict=True):
        tensor.raw_data = weights[place["location"]][start:stop]
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    weights.clear()  # before the second copy is made
    model.DiscardUnknownFields()  # no tensor was looked for in them, and ONNX Runtime may know them
    return model.SerializeToString(), digest


def _tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto in a message of protobuf: initializers, sparse ones, attributes, also in subgraphs and functions."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "DESCRIPTOR") else value:
                yield from _tensors(part)


def _beside(network: Path, location: str) -> Path:
    """The file of weights that a network calls `location`."""
    file = network.parent / location
    if Path(location).is_absolute() or ".." in Path(location).parts:
        raise UsageError(
            f"{network} keeps weights in {location!r}; only a file in its own folder is read: export it again to one"
        )
    if not file.is_file():
        raise UsageError(f"{network} keeps weights in {location!r}, which is not beside it; copy that file there")
    if not file.resolve().is_relative_to(network.parent):
        raise UsageError(f"{file} is a link out of the folder of {network.name}; copy the weights themselves there")
    return file


def _byte_range(network: Path, place: dict[str, str], weights: dict[str, bytes]) -> tuple[int, int]:
    """Where a tensor starts and stops in its file."""
    location = place["location"]
    try:
        start = int(place.get("offset", 0))
        stop = start + int(place["length"]) if "length" in place else len(weights[location])
    except ValueError as error:
        raise UsageError(f"where {network} has its weights in {location!r} is not given in numbers; export it again") from error
    if not 0 <= start <= stop <= len(weights[location]):
        raise UsageError(
            f"{network} wants bytes {start} to {stop} of {location!r}, which has {len(weights[location])}; copy that file again"
        )
    return start, stop
