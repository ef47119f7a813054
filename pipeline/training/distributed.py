"""The same training on Ray Train: one worker or many, on one machine or a cluster, on CPUs or GPUs.

Each worker draws batches of its own; gradients are averaged over the workers at each step. Checkpoints are this package's own, in
the plan's folder, which all machines must reach; a worker that dies is started again by Ray and goes on from the newest.
"""

import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.cluster import Cluster, connected, words_of
from pipeline.errors import PipelineError, UsageError
from pipeline.storage.location import resolve
from pipeline.training.run import TrainingPlan, run_training


@dataclass(frozen=True)
class WorkerSettings:
    """How a training is spread. workers: processes, at least 1; gpu: one GPU each; cpus: CPUs (and torch threads) each;
    failures: times that workers may die before the training is given up."""

    workers: int = 1
    gpu: bool = False
    cpus: int = 1
    failures: int = 3

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cpus < 1:
            raise UsageError(f"a distributed training needs at least 1 worker with 1 CPU, not {self.workers} with {self.cpus}")


def train_on_ray(
    plan: TrainingPlan,
    workers: WorkerSettings | None = None,
    progress: Callable[[], None] = lambda: None,
    address: Cluster | str | None = None,
) -> None:
    """Run the plan on Ray Train; the result is what the workers leave in plan.out (see `pipeline.training.checkpoint`).

    progress is called about every 2 s, from this thread. address: see `pipeline.cluster.connected`. Raises PipelineError, with
    the worker's own sentence, when the training fails.
    """
    workers = workers or WorkerSettings()
    cpus = max(workers.workers * workers.cpus, os.cpu_count() or 1)
    with connected(address, cpus):
        fitting = _begun(_trainer(plan, workers).fit)
        while not wait([fitting], timeout=2.0).done:
            progress()
        progress()
        try:
            fitting.result()
        except Exception as error:  # Ray's classes for this differ between its versions
            raise _explained(error) from error


def _begun(work: Callable[[], Any]) -> Future[Any]:
    """Work under way in a thread that nobody waits for: when interrupted, what waits for a result of Ray may do so for ever."""
    future: Future[Any] = Future()

    def finish() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=finish, daemon=True).start()
    return future


def _trainer(plan: TrainingPlan, workers: WorkerSettings) -> Any:
    import ray.train
    from ray.train.torch import TorchTrainer

    storage = resolve(plan.out).join("run", "ray")
    return TorchTrainer(
        _work,
        train_loop_config={"plan": plan, "cpus": workers.cpus},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.workers, use_gpu=workers.gpu, resources_per_worker={"CPU": workers.cpus, "GPU": int(workers.gpu)}
        ),
        run_config=ray.train.RunConfig(
            name=f"training-{time.time_ns()}",  # Ray's own state is not what is gone on from
            storage_path=storage.path,
            storage_filesystem=storage.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=workers.failures),
        ),
    )


def _work(config: dict[str, Any]) -> None:
    """One worker, in a process of its own with torch's process group in place."""
    import ray.train
    import ray.train.torch

    torch.set_num_threads(config["cpus"])
    context = ray.train.get_context()
    count = context.get_world_size()
    try:
        run_training(
            config["plan"],
            report=lambda metrics: ray.train.report(dict(metrics)),
            device=ray.train.torch.get_device(),
            worker=context.get_world_rank(),
            workers=count,
            average=average_gradients if count > 1 else None,
        )
    except PipelineError as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


def average_gradients(gradients: list[Tensor]) -> None:
    """Replace gradients by their mean over the workers of the process group, as one message."""
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _explained(error: BaseException) -> PipelineError:
    """The worker's own sentence, read from the text that crosses the processes."""
    text = str(error)
    if ours := re.findall(r"RuntimeError: (Usage|Pipeline|Storage)Error: (.*)", text):
        kind, sentence = ours[-1]
        return UsageError(sentence) if kind == "Usage" else PipelineError(sentence)
    return PipelineError(f"the training stopped: {words_of(error)}; run the same command again to go on from its last checkpoint")
