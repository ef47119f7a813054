"""Train the co-attention head on labelled videos: python -m jobs.train --data DATASET --out W"""

from typing import Annotated

import typer

from jobs.command_line import Address, Endpoints, InsecureCluster, as_called, output_folder, run
from jobs.progress import say
from pipeline.backbone.spec import DEFAULT
from pipeline.cluster import Cluster, cluster_is_named
from pipeline.storage.location import Location
from pipeline.training.checkpoint import Checkpoint, newest_checkpoint
from pipeline.training.galleries import labelled_galleries
from pipeline.training.initial_head import StartSettings
from pipeline.training.loop import Metrics
from pipeline.training.outcome import write_head
from pipeline.training.recipe import TERMS, read_recipe
from pipeline.training.run import TrainingPlan, available_device, run_training
from pipeline.training.settings import TrainingSettings

Data = Annotated[
    list[str],
    typer.Option(help="Gallery folder, mars:PATH, ilids-vid:PATH, prid2011:PATH, ls-vid:PATH, or a manifest; may be repeated."),
]
Hidden = Annotated[
    list[str] | None,
    typer.Option(help="The same clips with people hidden: a gallery or a manifest, one for each --data, in the same order."),
]
SampleRate = Annotated[float, typer.Option(help="Frames looked at, a second of video, where videos are ingested.")]
Epochs = Annotated[int, typer.Option(help="Epochs.", min=1)]
Batches = Annotated[int, typer.Option(help="Batches an epoch.", min=1)]
People = Annotated[int, typer.Option(help="People a batch (P).")]
Tracklets = Annotated[int, typer.Option(help="Tracklets a person in a batch (K), across cameras.")]
SegmentLength = Annotated[int, typer.Option(help="Frames a segment (T).")]
LearningRate = Annotated[float, typer.Option(help="Adam's largest step.")]
KeyWidth = Annotated[int, typer.Option(help="Width of a key (d_k).")]
ValueWidth = Annotated[int, typer.Option(help="Width of a value (d_v).")]
ValidationShare = Annotated[float, typer.Option(help="Share of the people held out to choose the best epoch; 0: the last.")]
Seed = Annotated[int, typer.Option(help="Seed of all random choices.")]
Without = Annotated[list[str] | None, typer.Option(help=f"Switch a term off: {', '.join(TERMS)}; may be repeated.")]
FreeWeight = Annotated[
    bool, typer.Option("--free-weight", help="Let weights of the squared difference be above 0 (no prefilter by distance).")
]
Change = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE of any field of pipeline.training.settings or .start; may be repeated."),
]


def train(
    data: Data,
    out: Annotated[str, typer.Option(help="Folder or bucket prefix for head/, metrics.csv, checkpoints and what is ingested.")],
    hidden: Hidden = None,
    backbone: Annotated[
        str | None, typer.Option(help=f"Backbone by name or ONNX path [default: the galleries', or {DEFAULT}].")
    ] = None,
    sample_rate: SampleRate = 10.0,
    epochs: Epochs = TrainingSettings.epochs,
    batches: Batches = TrainingSettings.batches,
    people: People = TrainingSettings.people,
    tracklets: Tracklets = TrainingSettings.tracklets,
    segment_length: SegmentLength = TrainingSettings.segment_length,
    learning_rate: LearningRate = TrainingSettings.learning_rate,
    key_width: KeyWidth = StartSettings.key_width,
    value_width: ValueWidth = StartSettings.value_width,
    validation_share: ValidationShare = 0.2,
    seed: Seed = 0,
    without: Without = None,
    free_weight: FreeWeight = False,
    change: Change = None,
    workers: Annotated[
        int | None, typer.Option(help="Workers on Ray Train; 0: in this process [default: 0, or 1 on a named cluster].", min=0)
    ] = None,
    cpus: Annotated[int, typer.Option(help="CPUs of one worker on Ray.", min=1)] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="Each worker on Ray takes a GPU.")] = False,
    address: Address = None,
    insecure_cluster: InsecureCluster = False,
    endpoint: Endpoints = None,
) -> None:
    """Train a co-attention head on stored frame features and write it into OUT/head.

    Starts from a head that ranks like mean pooling, keeps the best epoch by mAP on people held out (never on a test part), and
    goes on from its last checkpoint when the same command is run again. What is no gallery yet is ingested into OUT/galleries.
    jobs.train_end_to_end trains the backbone too.
    """
    settings, start = read_recipe({**locals(), "negative_weight": not free_weight}, without or (), change or ())
    folder = output_folder(out, "a training is written")
    cluster = Cluster(address, insecure_cluster)
    galleries = labelled_galleries(
        *(data, hidden or (), folder.join("galleries"), backbone, sample_rate, cluster, endpoint or (), say)
    )
    plan = TrainingPlan(galleries.sources, folder.uri, validation_share, start, settings)
    progress = Progress(settings.epochs)
    if on_ray := workers if workers is not None else int(cluster_is_named(cluster)):
        from pipeline.training.distributed import WorkerSettings, train_on_ray

        train_on_ray(plan, WorkerSettings(on_ray, gpu, cpus), lambda: progress.follow(folder), cluster)
    else:
        run_training(plan, progress, available_device())
    checkpoint = write_head(plan, galleries.names, galleries.settings, as_called("train"))
    print(describe(checkpoint, folder.join("head").uri))


class Progress:
    """One line an epoch on stderr."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.shown = -1

    def __call__(self, metrics: Metrics) -> None:
        epoch = int(metrics["epoch"])
        if epoch > self.shown:
            self.shown = epoch
            say(f"epoch {epoch}/{self.epochs}  {_figures(metrics)}  {metrics['seconds']:.1f} s")

    def follow(self, folder: Location) -> None:
        """The epochs that other processes have finished."""
        checkpoint = newest_checkpoint(folder)
        for metrics in checkpoint.history if checkpoint is not None else []:
            self(metrics)


def describe(checkpoint: Checkpoint, head: str) -> str:
    """What came of the training, beside where it started."""
    seconds = sum(metrics["seconds"] for metrics in checkpoint.history)
    lines = [
        f"head          {head}",
        f"epoch         {checkpoint.best_epoch} of {len(checkpoint.history) - 1}, {seconds:.0f} s of training",
        f"at first      {_figures(checkpoint.history[0])}",
        f"at best       {_figures(checkpoint.best_metrics)}",
    ]
    if checkpoint.best_epoch == 0:
        lines.append("No epoch beat the start point on the people held out: the head ranks like mean pooling.")
    return "\n".join(lines)


def _figures(metrics: Metrics) -> str:
    parts = [f"loss {metrics['loss_all']:.3f}"] if "loss_all" in metrics else ["start point"]
    for condition in ("clean", "hidden"):
        if f"{condition}_map" in metrics:
            ours, mean = (f"{metrics[f'{condition}_{m}rank1']:.3f}/{metrics[f'{condition}_{m}map']:.3f}" for m in ("", "mean_"))
            parts.append(f"{condition} rank-1/mAP {ours} (mean pooling {mean})")
    return "  ".join(parts)


if __name__ == "__main__":
    run(train)
