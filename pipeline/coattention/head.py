"""The co-attention head as a file, and the head that needs no training.

A head is a folder of two files: model.safetensors with the tensors, model.json with the sizes, the backbone that the
head belongs to, and the checksum of the tensors. Pickled weights are never opened, because opening one runs its code.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbone import shipped
from pipeline.backbone.spec import same_backbone
from pipeline.coattention.network import SAME, Coattention, CoattentionConfig
from pipeline.errors import PipelineError, UsageError
from pipeline.storage.documents import parsed
from pipeline.storage.formats import check_format, number_of
from pipeline.storage.hashing import sha256
from pipeline.storage.location import resolve

KIND = "co-attention head"
OLDEST_FORMAT, FORMAT = 1, 2  # 1 knows neither agreement nor unit encodings: it means 0 and False
TENSORS, DESCRIPTION = "model.safetensors", "model.json"
PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"}


@dataclass(frozen=True)
class HeadDescription:
    """What model.json says: sizes, hash of the backbone ("" if none is named), free words, sha256 of the tensors."""

    config: CoattentionConfig
    backbone_hash: str
    info: dict[str, Any]
    sha256: str


def save_head(
    head: Coattention, folder: str | os.PathLike[str], info: Mapping[str, Any], backbone_hash: str = ""
) -> HeadDescription:
    """Writes the head into `folder` (made if need be), tensors in float32.

    info: anything that JSON holds, such as training data and figures. backbone_hash: content hash of the backbone
    whose frame features the head was made for. Each file appears whole; a head that is replaced half-way is refused
    by its checksum.
    """
    folder = Path(folder)
    payload = safetensors.torch.save(_float32_tensors(head))
    description = HeadDescription(head.config, backbone_hash, dict(info), sha256(payload))
    document = {
        "format": f"{KIND} {FORMAT}",
        "sizes": asdict(description.config),
        "backbone_hash": description.backbone_hash,
        "info": description.info,
        "sha256": description.sha256,
    }
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    resolve(folder / TENSORS).write_atomically(payload)
    resolve(folder / DESCRIPTION).write_atomically(text.encode())
    return description


def load_head(folder: str | os.PathLike[str], backbone_hash: str | None = None) -> Coattention:
    """The head in `folder`, float32, on the CPU, in eval mode.

    backbone_hash: the backbone in use; a head that names another one is refused. Raises PipelineError, with the path, for
    whatever is not a whole, undamaged head: a missing file, damaged JSON, wrong sizes, tensors of another name, type or
    width, a checksum that does not match, numbers that are not finite, and pickled weights of any name.
    """
    folder = Path(folder)
    description = read_description(folder)
    if backbone_hash is not None and description.backbone_hash and not same_backbone(description.backbone_hash, backbone_hash):
        raise PipelineError(
            f"{folder} belongs to the backbone {description.backbone_hash}, not to {backbone_hash}: "
            "frame features of another backbone mean nothing to it"
        )
    path = folder / TENSORS
    payload = _read(path)
    if sha256(payload) != description.sha256:
        raise PipelineError(f"{path} does not match the sha256 checksum in {DESCRIPTION}: copy or save the head again")
    try:
        tensors = safetensors.torch.load(payload)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise PipelineError(f"{path} is not a safetensors file: {error}") from error
    tensors.setdefault("agreement", torch.zeros(()))
    _check_tensors(path, tensors, description.config)
    return _assemble(description.config, tensors)


def read_description(folder: str | os.PathLike[str]) -> HeadDescription:
    """What model.json in `folder` says, without reading the tensors. Raises as `load_head` does."""
    folder = Path(folder)
    if folder.suffix.lower() in PICKLES:
        raise PipelineError(
            f"{folder} is named like pickled weights, which are never opened because that runs their code: "
            f"give a folder with {TENSORS} and {DESCRIPTION}"
        )
    if not folder.is_dir():
        raise PipelineError(f"{folder} is not a folder: a head is a folder with {TENSORS} and {DESCRIPTION}")
    path = folder / DESCRIPTION
    try:
        document = parsed(_read(path))
    except ValueError as error:
        raise PipelineError(f"{path} is not JSON: {error}") from error
    try:
        number = number_of(document.get("format") if isinstance(document, dict) else None, KIND)
    except ValueError as error:
        raise PipelineError(f"{path} does not describe a {KIND}: {error}") from error
    check_format(f"the head {path}", number, OLDEST_FORMAT, FORMAT, "train it anew with jobs.train")
    for name, kind in (("sizes", dict), ("backbone_hash", str), ("info", dict), ("sha256", str)):
        if not isinstance(document.get(name), kind):
            raise PipelineError(f"{path} has no usable entry {name}")
    sizes = {"unit_encodings": False, "slack": 0.0} | document["sizes"]
    expected, found = set(CoattentionConfig.__dataclass_fields__), set(sizes)
    if expected != found:
        raise PipelineError(f"{path} has the wrong sizes: {', '.join(sorted(expected ^ found))} missing or unknown")
    try:
        config = CoattentionConfig(**sizes)
    except PipelineError as error:
        raise PipelineError(f"{path} has the wrong sizes: {error}") from error
    return HeadDescription(config, document["backbone_hash"], document["info"], document["sha256"])


def head_hash(head: Coattention) -> str:
    """Content hash of a head, 64 hex digits: its sizes and its tensors in float32, whatever file they lie in.

    Indexes and calibrations name heads by it, so that a head which uses neither agreement, unit encodings nor slack keeps the
    hash that it had before there were any.
    """
    sizes, tensors = asdict(head.config), _float32_tensors(head)
    for name in ("unit_encodings", "slack"):
        if not sizes[name]:
            del sizes[name]
    if tensors["agreement"] <= 0:
        del tensors["agreement"]
    parts: list[Any] = [json.dumps(sizes, sort_keys=True)]
    for name, tensor in sorted(tensors.items()):
        parts += [f"{name} {list(tensor.shape)}", tensor.numpy().astype("<f4").tobytes()]
    return sha256(*parts)


FORGET_BIAS = OUTPUT_BIAS = 8.0  # sigmoid(8) = 0.9997: gates that are open, yet not so flat that training cannot move them
CANDIDATE_SCALE = 1 / 16  # tanh(x) is x within 0.13 % for |x| <= 1/16
UNTRAINED_WEIGHT = UNTRAINED_BIAS = 4.0


def untrained_head(
    features: NDArray[Any],
    key_width: int = 128,
    value_width: int = 128,
    segment_length: int = 8,
    temperature: float | None = 1 / 8,
    *,
    centre: bool = True,
    candidate_scale: float = CANDIDATE_SCALE,
    key_scale: float = 1.0,
    weight: float = UNTRAINED_WEIGHT,
    bias: float = UNTRAINED_BIAS,
    agreement: float = 0.0,
    negative_weight: bool = True,
) -> Coattention:
    """A head made from a sample of a gallery's frame features, without training and without random numbers.

    Frame features are centred on the sample's mean and made unit vectors x. Keys and values are both P x, P the leading
    principal directions of the sample's x (orthonormal rows, each with its largest component positive). The score is

        sigmoid(4 - 4 * ||e_n - e_nj|| ** 2)

    so it falls with the distance of the encodings, and is 0.5 for unit vectors of cosine 0.5.

    The LSTM is set to accumulate: recurrent weights 0, forget and output gate open (f, o = 0.9997), input gate
    constant at i = 1 / (2 * segment_length), candidate tanh(P x / 16), where tanh is linear. After a segment its
    hidden state is o * tanh(sum_t f ** (T - t) * i * tanh(P x_t / 16)), which within 1 % is a constant times the mean
    of P x_t,

        constant = o * i / 16 * sum_t f ** (T - t)  at T = segment_length

    and the query map divides by the constant and the temperature: the attention logits are <mean target key,
    candidate key> / temperature. For segments of another length T the sum grows with T, and attention is sharper by T
    / segment_length (and flatter for shorter ones).

    features: [n, D] floating, n >= 1. key_width, value_width: at most D are used; where the sample spans fewer
    directions, P is completed to orthonormal rows from the coordinate axes. temperature: above 0; None or infinity
    give every frame the same attention: the query map is 0. The same sample gives the same head. Returns float32, eval mode,
    with `negative_weight`, so that training which starts here keeps the prefilter.

    For training to start elsewhere: centre takes the sample's mean off, or leaves features as they are. candidate_scale stands
    for the 1/16 above; key_scale multiplies the keys (and divides the query map), so that a small step of the query map moves
    attention. weight, bias: above 0, for the two 4s; agreement as in `Coattention`, negative_weight as in `CoattentionConfig`.
    Raises PipelineError for a sample that is empty or not finite, UsageError for sizes, a temperature or an agreement that cannot
    be meant.
    """
    features = np.asarray(features)
    if features.ndim != 2 or 0 in features.shape:
        raise PipelineError(f"an untrained head needs a sample of frame features [n, D], not {list(features.shape)}")
    width = features.shape[1]
    config = CoattentionConfig(width, min(key_width, width), min(value_width, width), negative_weight=negative_weight)
    if segment_length < 1:
        raise UsageError(f"a segment needs at least 1 frame, not {segment_length}")
    if temperature is not None and not temperature > 0:
        raise UsageError(f"the temperature of attention must be above 0, not {temperature}")
    if not 0 <= agreement < math.inf:
        raise UsageError(f"agreement must be a number of at least 0, not {agreement}")
    mean = features.mean(axis=0, dtype=np.float64)  # [D]
    if not np.isfinite(mean).all():
        raise PipelineError("an untrained head needs finite frame features: the sample has NaN or infinity")
    mean = mean if centre else np.zeros(width)
    rows = _principal_directions(features, mean, max(config.key_width, config.value_width))
    tensors = {
        "agreement": np.array(agreement, np.float64),
        "feature_mean": mean,
        **_linear("key", key_scale * rows[: config.key_width]),
        **_linear("value", rows[: config.value_width]),
        **_accumulator(rows[: config.key_width], segment_length, temperature, candidate_scale, key_scale),
        **_distance_classifier(config, weight, bias),
    }
    return _assemble(config, {name: torch.from_numpy(array).float() for name, array in tensors.items()})


def _principal_directions(features: NDArray[Any], mean: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Orthonormal rows [count, D]: leading right singular vectors of the centred unit vectors, then completion."""
    moment = np.zeros((features.shape[1],) * 2)  # [D, D]
    for start in range(0, len(features), 8192):  # blocks, so that a large float16 sample is not copied whole to float64
        block = features[start : start + 8192].astype(np.float64) - mean
        block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)
        moment += block.T @ block
    strengths, columns = np.linalg.eigh(moment)  # ascending
    kept = strengths > max(features.shape) * np.finfo(np.float64).eps * max(strengths[-1], 1e-12)
    rows = columns[:, kept].T[::-1][:count]  # [at most count, D]
    largest = rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)]
    # Rounded, since the last bits follow the number of threads: the same sample must give the same head on every machine.
    return np.round(_completed(rows * np.sign(largest)[:, None], count), 7)


def _completed(rows: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Orthonormal rows [r, D] completed to [count, D], each time by the axis that the rows so far span least."""
    for _ in range(count - len(rows)):
        outside = 1 - np.square(rows).sum(axis=0)  # [D], squared length of each axis outside the span
        axis = int(np.round(outside, 6).argmax())  # rounded: among equals the first, whatever the last bits say
        row = np.zeros(rows.shape[1])
        row[axis] = 1.0
        row -= rows.T @ (rows @ row)
        rows = np.vstack([rows, row / np.linalg.norm(row)])
    return rows


def _linear(name: str, weight: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    return {f"{name}.weight": weight, f"{name}.bias": np.zeros(len(weight))}


def _accumulator(
    rows: NDArray[np.float64], segment_length: int, temperature: float | None, candidate_scale: float, key_scale: float
) -> dict[str, NDArray[np.float64]]:
    """LSTM and query map of `untrained_head`, rows [d_k, D]; torch orders gates input, forget, candidate, output."""
    width, feature_width = rows.shape
    input_gate = 1 / (2 * segment_length)
    weight = np.zeros((4, width, feature_width))
    weight[2] = candidate_scale * rows
    bias = np.zeros((4, width))
    bias[0], bias[1], bias[3] = math.log(input_gate / (1 - input_gate)), FORGET_BIAS, OUTPUT_BIAS
    forget, output = 1 / (1 + math.exp(-FORGET_BIAS)), 1 / (1 + math.exp(-OUTPUT_BIAS))
    constant = output * input_gate * candidate_scale * sum(forget**step for step in range(segment_length))
    gain = 0.0 if temperature is None else 1 / (constant * temperature * key_scale)
    return {
        "lstm.weight_ih_l0": weight.reshape(4 * width, feature_width),
        "lstm.weight_hh_l0": np.zeros((4 * width, width)),
        "lstm.bias_ih_l0": bias.reshape(4 * width),
        "lstm.bias_hh_l0": np.zeros(4 * width),
        **_linear("query", gain * np.eye(width)),
    }


def _distance_classifier(config: CoattentionConfig, weight: float, bias: float) -> dict[str, NDArray[np.float64]]:
    """Full connection of which the row is -weight throughout; with `negative_weight` it is stored as softplus takes it."""
    full, biases = np.zeros((2, config.value_width)), np.zeros(2)
    full[SAME], biases[SAME] = -weight if not config.negative_weight else weight + math.log(-math.expm1(-weight)), bias
    return {"classifier.weight": full, "classifier.bias": biases}


def _float32_tensors(head: Coattention) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in head.state_dict().items()}


def _assemble(config: CoattentionConfig, tensors: Mapping[str, Tensor]) -> Coattention:
    """The network with these tensors in place, without drawing the random numbers of an ordinary start."""
    with torch.device("meta"):
        head = Coattention(config)
    head.load_state_dict(tensors, assign=True)
    return head.eval()


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], config: CoattentionConfig) -> None:
    with torch.device("meta"):
        expected = Coattention(config).state_dict()
    if expected.keys() != tensors.keys():
        wrong = ", ".join(sorted(expected.keys() ^ tensors.keys()))
        raise PipelineError(f"{path} does not hold the tensors of a co-attention head: {wrong} missing or unknown")
    for name, tensor in sorted(tensors.items()):
        if tensor.shape != expected[name].shape:
            raise PipelineError(
                f"{path} does not fit the sizes in {DESCRIPTION}: {name} is {list(tensor.shape)}, "
                f"not {list(expected[name].shape)}"
            )
        if tensor.dtype != torch.float32:
            raise PipelineError(f"{path} holds {name} as {tensor.dtype}, not as torch.float32")
        if not tensor.isfinite().all():
            raise PipelineError(f"{path} holds numbers in {name} that are not finite: the training has failed")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        pickles = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix.lower() in PICKLES)
        hint = f" (there is {pickles[0]}, but pickled weights are never opened)" if pickles else ""
        raise PipelineError(f"{path} is missing{hint}: a head is a folder with {TENSORS} and {DESCRIPTION}") from error
    except OSError as error:
        raise PipelineError(f"{path} cannot be read: {error}") from error


def shipped_head(identity: str) -> Path | None:
    """The folder of the head that ships for a backbone, None if there is none.

    identity: `BackboneSpec.identity`; its hash decides, so a copy of a backbone under another name gets its head too. Raises
    PipelineError for a damaged head.
    """
    for description in sorted((shipped.WEIGHTS / "heads").glob("*/model.json")):
        backbone = read_description(description.parent).backbone_hash
        if backbone and same_backbone(backbone, identity):
            return description.parent
    return None
