"""What a training keeps on disk after each epoch, so that it goes on where it was killed.

run/epoch-0007.safetensors   tensors of head, identity neck, best head and Adam's moments; in its header, as JSON, the epoch,
                             the best so far, the metrics of all epochs and what the training is made of
metrics.csv                  the metrics, one row an epoch
run/tensorboard/             the same as event files
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.coattention.network import Coattention, CoattentionConfig
from pipeline.errors import PipelineError, UsageError
from pipeline.storage.location import Location
from pipeline.training import checkpoint_files
from pipeline.training.checkpoint_files import CheckpointFile, below
from pipeline.training.loop import Metrics, Training

STATE = ("epoch", "best_epoch", "best", "scale", "history", "made_of", "sizes")


class Checkpoint(CheckpointFile):
    """A checkpoint of a training, read back."""

    @property
    def history(self) -> list[Metrics]:
        """The metrics of all epochs, the start point first."""
        return self.state["history"]

    @property
    def best_epoch(self) -> int:
        return self.state["best_epoch"]

    @property
    def best_metrics(self) -> Metrics:
        """The metrics of the best epoch."""
        return next(metrics for metrics in self.history if metrics["epoch"] == self.best_epoch)

    def best_head(self) -> Coattention:
        """The head of the best epoch, float32, on the CPU, in eval mode."""
        head = Coattention(CoattentionConfig(**self.state["sizes"]))
        head.load_state_dict(below(self.tensors, "best."))
        return head.eval()

    def into(self, training: Training) -> None:
        """Bring a training to this state. Raises PipelineError when it is not the checkpoint of such a training."""
        try:
            training.head.load_state_dict(below(self.tensors, "head."))
            training.neck.load_state_dict(below(self.tensors, "neck."))
            self.restore_moments(training.optimizer)
            training.take_further_tensors(self.tensors)
        except (ValueError, KeyError, RuntimeError) as error:
            raise PipelineError(f"the checkpoint {self.uri} does not fit this training: {error}") from error
        if training.scaler.is_enabled():
            training.scaler.load_state_dict({**training.scaler.state_dict(), "scale": self.state["scale"]})
        training.best_tensors = below(self.tensors, "best.")
        training.epoch, training.best_epoch, training.best = (self.state[name] for name in ("epoch", "best_epoch", "best"))


def newest_checkpoint(out: Location) -> Checkpoint | None:
    """The newest checkpoint of the training in a folder, or None. Raises PipelineError when it is damaged."""
    found = checkpoint_files.read_newest(out)
    if found is None:
        return None
    if missing := [name for name in sorted(STATE) if name not in found.state]:
        raise checkpoint_files.damaged(found.uri, ValueError(f"it lacks {', '.join(missing)}"))
    return Checkpoint(found.uri, found.state, found.tensors)


class RunFolder:
    """The folder of one training, local or in a bucket. made_of: settings and data, by name; another training is refused."""

    def __init__(self, out: Location, made_of: dict[str, Any]) -> None:
        self.out = out
        self.made_of = made_of
        self.history: list[Metrics] = []

    def restore(self, training: Training) -> bool:
        """Bring a training to where the newest checkpoint left it; False when there is none.

        Raises UsageError when the folder belongs to a training of other settings or data, PipelineError for a damaged checkpoint.
        """
        checkpoint = newest_checkpoint(self.out)
        if checkpoint is None:
            return False
        if names := checkpoint_files.differing(checkpoint.state["made_of"], self.made_of):
            raise UsageError(f"{self.out.uri} holds a training of other {names}; give another folder")
        checkpoint.into(training)
        self.history = checkpoint.history
        return True

    def save(self, training: Training, metrics: Metrics) -> None:
        """Keep the state after an epoch."""
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
        named = {"head": training.head.state_dict(), "neck": training.neck.state_dict(), "best": training.best_tensors}
        tensors = {f"{part}.{name}": tensor for part, tensors in named.items() for name, tensor in tensors.items()}
        tensors |= training.further_tensors() | checkpoint_files.moments(training.optimizer)
        checkpoint_files.write(self.out, f"epoch-{training.epoch:04d}", state, tensors)

    def write_metrics(self) -> None:
        """metrics.csv as the history has it: a training may have been killed between checkpoint and table."""
        checkpoint_files.write_metrics(self.out, self.history)


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
