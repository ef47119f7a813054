"""What a distillation keeps on disk: checkpoints that appear whole, no pickle, and what it is made of.

run/1-00000250.safetensors   phase and step; tensors of student, scales and AdamW's moments; in its header, as JSON, how far it is
                             and the metrics so far
metrics.csv                  the metrics, one row a checkpoint
"""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from pipeline.distillation.loop import Distillation, Metrics
from pipeline.errors import PipelineError, UsageError, first_line
from pipeline.storage.location import Location, resolve
from pipeline.training.checkpoint import metrics_table

KEPT = 2  # newest checkpoints that stay


def claim(folder: Path, made_of: dict[str, Any]) -> None:
    """Write down what a folder's content is made of. Raises UsageError when it holds something made of anything else."""
    made_of = json.loads(json.dumps(made_of))
    note = resolve(folder / "made_of.json")
    if note.exists():
        theirs = json.loads(note.read_bytes())
        names = sorted(theirs.keys() | made_of.keys())
        if differing := [name for name in names if theirs.get(name) != made_of.get(name)]:
            raise UsageError(f"{folder} was made with another {', '.join(differing)}; give another folder")
    else:
        note.write_atomically(json.dumps(made_of, indent=1).encode())


class Checkpoints:
    """The checkpoints and the metrics of the distillation in a folder."""

    def __init__(self, out: Path) -> None:
        self.out = resolve(out)
        self.history: list[Metrics] = []

    def restore(self, work: Distillation) -> bool:
        """Bring a distillation to its newest checkpoint; False when there is none. Raises PipelineError when it is damaged."""
        found = self._files()
        if not found:
            return False
        content = found[-1].read_bytes()
        try:
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            state = json.loads(header["__metadata__"]["state"])
            tensors = safetensors.torch.load(content)
            work.number = state["phase"]
            work.begin_phase()
            work.step, work.seconds = state["step"], state["seconds"]
            work.student.load_state_dict(_below(tensors, "student."))
            work.scales = _below(tensors, "scale.")
            moments: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in _below(tensors, "adam.").items():
                number, field = name.split(".")
                moments.setdefault(int(number), {})[field] = tensor
            work.optimizer.load_state_dict({**work.optimizer.state_dict(), "state": moments})
            self.history = state["history"]
        except (ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
            reason = first_line(error)
            raise PipelineError(f"the checkpoint {found[-1].uri} is damaged: {reason}; delete it to go on from before") from error
        self._write_metrics()
        return True

    def save(self, work: Distillation, metrics: Metrics) -> None:
        """Keep the state: first the checkpoint, then metrics.csv, so that no row is in it twice."""
        self.history = [*self.history, metrics]
        tensors = {f"student.{name}": tensor for name, tensor in work.student.state_dict().items()}
        tensors |= {f"scale.{name}": tensor for name, tensor in work.scales.items()}
        for number, moments in work.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": tensor for name, tensor in moments.items()}
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        state = {"phase": work.number, "step": work.step, "seconds": work.seconds, "history": self.history}
        payload = safetensors.torch.save(tensors, {"state": json.dumps(state)})
        self.out.join("run", f"{work.number}-{work.step:08d}.safetensors").write_atomically(payload)
        self._write_metrics()
        for old in self._files()[:-KEPT]:
            old.delete()

    def _write_metrics(self) -> None:
        self.out.join("metrics.csv").write_atomically(metrics_table(self.history).encode())

    def _files(self) -> list[Location]:
        return [file for file in self.out.join("run").list() if file.name.endswith(".safetensors")]


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
