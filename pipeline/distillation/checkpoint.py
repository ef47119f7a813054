"""What a distillation keeps on disk: its checkpoints (`pipeline.training.checkpoint_files`), and what each folder is made of.

run/1-00000250.safetensors   phase and step; tensors of student, scales and AdamW's moments; in its header, as JSON, how far it is
                             and the metrics so far
metrics.csv                  the metrics, one row a checkpoint
"""

import json
from pathlib import Path
from typing import Any

from pipeline.distillation.loop import Distillation
from pipeline.errors import UsageError
from pipeline.storage.location import resolve
from pipeline.training import checkpoint_files
from pipeline.training.checkpoint_files import below
from pipeline.training.loop import Metrics


def claim(folder: Path, made_of: dict[str, Any]) -> None:
    """Write down what a folder's content is made of. Raises UsageError when it holds something made of anything else."""
    note = resolve(folder / "made_of.json")
    if not note.exists():
        note.write_atomically(json.dumps(made_of, indent=1).encode())
    elif names := checkpoint_files.differing(json.loads(note.read_bytes()), made_of):
        raise UsageError(f"{folder} was made with another {names}; give another folder")


class Checkpoints:
    """The checkpoints and the metrics of the distillation in a folder."""

    def __init__(self, out: Path) -> None:
        self.out = resolve(out)
        self.history: list[Metrics] = []

    def restore(self, work: Distillation) -> bool:
        """Bring a distillation to its newest checkpoint; False when there is none. Raises PipelineError when it is damaged."""
        found = checkpoint_files.read_newest(self.out)
        if found is None:
            return False
        try:
            work.number = found.state["phase"]
            work.begin_phase()
            work.step, work.seconds = found.state["step"], found.state["seconds"]
            work.student.load_state_dict(below(found.tensors, "student."))
            work.scales = below(found.tensors, "scale.")
            found.restore_moments(work.optimizer)
            self.history = found.state["history"]
        except checkpoint_files.UNREADABLE as error:
            raise checkpoint_files.damaged(found.uri, error) from error
        checkpoint_files.write_metrics(self.out, self.history)
        return True

    def save(self, work: Distillation, metrics: Metrics) -> None:
        """Keep the state and the metrics of a checkpoint."""
        self.history = [*self.history, metrics]
        tensors = {f"student.{name}": tensor for name, tensor in work.student.state_dict().items()}
        tensors |= {f"scale.{name}": tensor for name, tensor in work.scales.items()} | checkpoint_files.moments(work.optimizer)
        state = {"phase": work.number, "step": work.step, "seconds": work.seconds, "history": self.history}
        checkpoint_files.write(self.out, f"{work.number}-{work.step:08d}", state, tensors)
