"""Checkpoints on disk, of a training or a distillation: each one file that appears whole, and no pickle.

    run/NAME.safetensors   tensors, with what they belong to before their names; in the header, as JSON, the state beside them
    metrics.csv            the metrics, one row a checkpoint

Names sort by age. Random numbers need no state: they follow from the seed and how far the training is.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor
from torch.optim import Optimizer

from pipeline.errors import PipelineError, first_line
from pipeline.storage.location import Location
from pipeline.training.loop import Metrics

KEPT = 2  # newest checkpoints that stay
UNREADABLE = (ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError)  # what damaged content leads to


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint read back. state: what its header says; tensors: by name, with what they belong to in front."""

    uri: str
    state: dict[str, Any]
    tensors: dict[str, Tensor]

    def restore_moments(self, optimizer: Optimizer) -> None:
        """Give an optimizer the moments of `moments`. Raises ValueError or KeyError when they are another optimizer's."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in below(self.tensors, "adam.").items():
            number, field = name.split(".")
            state.setdefault(int(number), {})[field] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def moments(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of an Adam or AdamW: "adam.NUMBER.FIELD" of each parameter, in the order of the optimizer."""
    state = optimizer.state_dict()["state"]
    return {f"adam.{number}.{field}": tensor for number, fields in state.items() for field, tensor in fields.items()}


def read_newest(out: Location) -> CheckpointFile | None:
    """The newest checkpoint in a folder, or None. Raises PipelineError when it is damaged."""
    found = _files(out)
    if not found:
        return None
    content = found[-1].read_bytes()
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return CheckpointFile(found[-1].uri, json.loads(header["__metadata__"]["state"]), safetensors.torch.load(content))
    except UNREADABLE as error:
        raise damaged(found[-1].uri, error) from error


def damaged(uri: str, error: Exception) -> PipelineError:
    """What to say of a checkpoint that cannot be read."""
    return PipelineError(f"the checkpoint {uri} is damaged: {first_line(error)}; delete it to go on from before")


def write(out: Location, name: str, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write run/NAME.safetensors, then metrics.csv from state["history"], and delete all but the newest checkpoints.

    In this order no row is twice in metrics.csv after a kill: what goes on from a checkpoint writes it anew.
    """
    copies = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
    payload = safetensors.torch.save(copies, {"state": json.dumps(state)})
    out.join("run", f"{name}.safetensors").write_atomically(payload)
    write_metrics(out, state["history"])
    for old in _files(out)[:-KEPT]:
        old.delete()


def write_metrics(out: Location, history: Sequence[Metrics]) -> None:
    """metrics.csv as the history has it."""
    out.join("metrics.csv").write_atomically(metrics_table(history).encode())


def metrics_table(history: Sequence[Metrics]) -> str:
    """The metrics as CSV text: one row a checkpoint, every column that any of them has; a figure that one lacks stays empty."""
    names = list(dict.fromkeys(name for metrics in history for name in metrics))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for metrics in history:
        writer.writerow({name: int(value) if name == "epoch" else f"{value:.6g}" for name, value in metrics.items()})
    return text.getvalue()


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The names, joined by commas, by which two records of what a folder is made of differ; both as JSON would have them."""
    one, other = (json.loads(json.dumps(record)) for record in (one, other))
    return ", ".join(name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name))


def _files(out: Location) -> list[Location]:
    return [file for file in out.join("run").list() if file.name.endswith(".safetensors")]
