"""What a training keeps on disk after each epoch, so that it goes on where it was killed.

    run/epoch-0007.safetensors   tensors of head, identity neck, best head and Adam's moments; in its header, as JSON, the epoch,
                                 the best so far, the metrics of all epochs and what the training is made of
    metrics.csv                  the metrics, one row an epoch
    run/tensorboard/             the same as event files

A checkpoint is one file that appears whole, and no pickle. Random numbers need no state: each epoch draws its own from the seed.
"""

import csv
import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from pipeline.coattention.network import Coattention, CoattentionConfig
from pipeline.errors import PipelineError, UsageError
from pipeline.storage.location import Location
from pipeline.training.loop import Metrics, Training

KEPT = 2  # newest checkpoints that stay
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back. state: what its header says; tensors: by name, with what they belong to in front."""

    uri: str
    state: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def history(self) -> list[Metrics]:
        """The metrics of all epochs, the start point first."""
        return self.state["history"]

    @property
    def best_epoch(self) -> int:
        return self.state["best_epoch"]

    def best_head(self) -> Coattention:
        """The head of the best epoch, float32, on the CPU, in eval mode."""
        head = Coattention(CoattentionConfig(**self.state["sizes"]))
        head.load_state_dict(self.below("best."))
        return head.eval()

    def below(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def into(self, training: Training) -> None:
        """Bring a training to this state. Raises PipelineError when it is not the checkpoint of such a training."""
        moments: dict[int, dict[str, torch.Tensor]] = {}
        try:
            training.head.load_state_dict(self.below("head."))
            training.neck.load_state_dict(self.below("neck."))
            for name, tensor in self.below("adam.").items():
                number, field = name.split(".")
                moments.setdefault(int(number), {})[field] = tensor
            training.optimizer.load_state_dict({**training.optimizer.state_dict(), "state": moments})
            training.take_further_tensors(self.tensors)
        except (ValueError, KeyError, RuntimeError) as error:
            raise PipelineError(f"the checkpoint {self.uri} does not fit this training: {error}") from error
        if training.scaler.is_enabled():
            training.scaler.load_state_dict({**training.scaler.state_dict(), "scale": self.state["scale"]})
        training.best_tensors = self.below("best.")
        training.epoch, training.best_epoch, training.best = (self.state[name] for name in ("epoch", "best_epoch", "best"))


def newest_checkpoint(out: Location) -> Checkpoint | None:
    """The newest checkpoint of the training in a folder, or None. Raises PipelineError when it is damaged."""
    found = _checkpoints(out)
    if not found:
        return None
    content = found[-1].read_bytes()
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        state, tensors = json.loads(header["__metadata__"]["state"]), safetensors.torch.load(content)
        if missing := {"epoch", "best_epoch", "best", "scale", "history", "made_of", "sizes"} - state.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise PipelineError(f"the checkpoint {found[-1].uri} is damaged: {error}; delete it to go on from before") from error
    return Checkpoint(found[-1].uri, state, tensors)


def _checkpoints(out: Location) -> list[Location]:
    return [file for file in out.join("run").list() if file.name.endswith(".safetensors")]


class RunFolder:
    """The folder of one training, local or in a bucket. made_of: settings and data, by name; another training is refused."""

    def __init__(self, out: Location, made_of: dict[str, Any]) -> None:
        self.out = out
        self.made_of = json.loads(json.dumps(made_of))
        self.history: list[Metrics] = []

    def restore(self, training: Training) -> bool:
        """Bring a training to where the newest checkpoint left it; False when there is none.

        Raises UsageError when the folder belongs to a training of other settings or data, PipelineError for a damaged checkpoint.
        """
        checkpoint = newest_checkpoint(self.out)
        if checkpoint is None:
            return False
        theirs = checkpoint.state["made_of"]
        names = sorted(theirs.keys() | self.made_of.keys())
        if differing := [name for name in names if theirs.get(name) != self.made_of.get(name)]:
            raise UsageError(f"{self.out.uri} holds a training of other {', '.join(differing)}; give another folder")
        checkpoint.into(training)
        self.history = checkpoint.history
        return True

    def save(self, training: Training, metrics: Metrics) -> None:
        """Keep the state after an epoch: first the checkpoint, then metrics.csv, so that no epoch is in it twice."""
        self.history = [*self.history, metrics]
        state = {
            "epoch": training.epoch,
            "best_epoch": training.best_epoch,
            "best": training.best,
            "scale": training.scaler.get_scale(),
            "history": self.history,
            "made_of": self.made_of,
            "sizes": asdict(training.head.config),
        }
        payload = safetensors.torch.save(_tensors_of(training), {"state": json.dumps(state)})
        self.out.join("run", f"epoch-{training.epoch:04d}.safetensors").write_atomically(payload)
        self.write_metrics()
        for old in _checkpoints(self.out)[:-KEPT]:
            old.delete()

    def write_metrics(self) -> None:
        """metrics.csv as the history has it."""
        self.out.join("metrics.csv").write_atomically(metrics_table(self.history).encode())


def metrics_table(history: Sequence[Metrics]) -> str:
    """The metrics as CSV text: one row an epoch, every column that any epoch has."""
    names = list(dict.fromkeys(name for metrics in history for name in metrics))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for metrics in history:
        writer.writerow({name: int(value) if name == "epoch" else f"{value:.6g}" for name, value in metrics.items()})
    return text.getvalue()


class EventFiles:
    """TensorBoard's event file of a training. On a local disk it grows as it is watched; in a bucket it is put anew each epoch.

    history: metrics of the epochs before, written again, since files of an earlier process are removed: no epoch twice.
    """

    def __init__(self, out: Location, history: Sequence[Metrics]) -> None:
        from tensorboardX import SummaryWriter

        self.folder = out.join("run", "tensorboard")
        for file in self.folder.list():
            file.delete()
        self.temporary = None if out.is_local else tempfile.TemporaryDirectory()
        self.path = Path(self.folder.path if self.temporary is None else self.temporary.name)
        self.path.mkdir(parents=True, exist_ok=True)
        self.writer = SummaryWriter(str(self.path))
        for metrics in history:
            self._write(metrics)
        self._publish()

    def add(self, metrics: Metrics) -> None:
        self._write(metrics)
        self._publish()

    def close(self) -> None:
        self.writer.close()
        self._publish()
        if self.temporary is not None:
            self.temporary.cleanup()

    def _write(self, metrics: Metrics) -> None:
        for name, value in metrics.items():
            if name != "epoch":
                group, _, rest = name.partition("_")
                self.writer.add_scalar(f"{group}/{rest}" if rest else name, value, int(metrics["epoch"]))

    def _publish(self) -> None:
        self.writer.flush()
        if self.temporary is not None:
            for path in self.path.iterdir():
                self.folder.join(path.name).write_atomically(path.read_bytes())


def _tensors_of(training: Training) -> dict[str, torch.Tensor]:
    tensors = {f"head.{name}": tensor for name, tensor in training.head.state_dict().items()}
    tensors |= {f"neck.{name}": tensor for name, tensor in training.neck.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in training.best_tensors.items()}
    tensors |= training.further_tensors()
    for number, moments in training.optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": moments[name] for name in (*MOMENTS, "step")}
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
