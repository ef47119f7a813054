"""Train backbone and head together on labelled videos: python -m jobs.train_end_to_end --data DATASET --out W"""

import shlex
from dataclasses import replace
from typing import Annotated

import typer

from jobs import train
from jobs.command_line import Address, Endpoints, InsecureCluster, as_called, output_folder, run
from jobs.progress import say
from pipeline.backbone.export import check_name
from pipeline.backbone.shipped import shipped_backbones
from pipeline.backbone.spec import DEFAULT
from pipeline.cluster import Cluster
from pipeline.training.end_to_end import BATCH, batch_size, frames_folder, run_end_to_end, start_network
from pipeline.training.galleries import labelled_galleries
from pipeline.training.initial_head import StartSettings
from pipeline.training.outcome import write_backbone, write_head
from pipeline.training.recipe import read_recipe
from pipeline.training.run import TrainingPlan, available_device
from pipeline.training.settings import TrainingSettings

NAME = "osnet_x0_25_trained"


def train_end_to_end(
    data: train.Data,
    out: Annotated[str, typer.Option(help="Local folder for backbone/, head/, metrics.csv, checkpoints, frames and galleries.")],
    hidden: train.Hidden = None,
    begin_from: Annotated[
        str | None,
        typer.Option("--from", help=f"OUT of an earlier such training, to start from its backbone [default: {DEFAULT}]."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the backbone; OUT/backbone/NAME.onnx is written.")] = NAME,
    input_size: Annotated[
        str | None,
        typer.Option(
            help="HEIGHTxWIDTH of the frames in pixels, multiples of 16 from 32 on [default: the start's, 256x128]; "
            "128x64 takes a quarter of the time and memory."
        ),
    ] = None,
    batch_statistics: Annotated[
        bool,
        typer.Option(
            "--batch-statistics",
            help="Batch normalisation on each batch's statistics instead of the running ones that the backbone has.",
        ),
    ] = False,
    sample_rate: train.SampleRate = 10.0,
    epochs: train.Epochs = TrainingSettings.epochs,
    batches: train.Batches = TrainingSettings.batches,
    people: train.People = BATCH["people"],
    tracklets: train.Tracklets = BATCH["tracklets"],
    segment_length: train.SegmentLength = TrainingSettings.segment_length,
    learning_rate: train.LearningRate = TrainingSettings.learning_rate,
    key_width: train.KeyWidth = StartSettings.key_width,
    value_width: train.ValueWidth = StartSettings.value_width,
    validation_share: train.ValidationShare = 0.2,
    seed: train.Seed = 0,
    without: train.Without = None,
    free_weight: train.FreeWeight = False,
    change: train.Change = None,
    address: Address = None,
    insecure_cluster: InsecureCluster = False,
    endpoint: Endpoints = None,
) -> None:
    """Train a backbone on augmented frames along with its head, in this process: OUT/backbone/NAME.onnx, and OUT/head for it.

    The galleries give labels and say which frames to look at; any backbone may have made them, the same for all. What is no
    gallery yet is ingested into OUT/galleries. The backbone learns at backbone_rate times the head's rate (--set
    backbone_rate=X). The best epoch is kept, and a training goes on where it was killed, as in jobs.train. A frame of 256 x 128
    pixels takes 98 kB of disk and, in a batch, about 25 MB of memory.
    """
    settings, start = read_recipe({**BATCH, **locals(), "negative_weight": not free_weight}, without or (), change or ())
    folder = output_folder(out, "a training is written")
    frames_folder(folder)
    check_name(name, shipped_backbones())
    network, spec = start_network(begin_from, input_size)
    cluster = Cluster(address, insecure_cluster)
    galleries = labelled_galleries(
        *(data, hidden or (), folder.join("galleries"), None, sample_rate, cluster, endpoint or (), say)
    )
    plan = TrainingPlan(galleries.sources, folder.uri, validation_share, start, settings)
    frames, gigabytes = batch_size(settings, spec)
    say(
        f"{frames} frames of {spec.height} x {spec.width} pixels a batch, about {gigabytes:.1f} GB of memory; "
        "the videos are decoded into OUT/frames unless they are there"
    )
    run_end_to_end(
        *(plan, network, spec, train.Progress(settings.epochs), available_device()),
        running_statistics=not batch_statistics,
        endpoints=galleries.endpoints,
    )
    called = as_called("train_end_to_end")
    backbone = write_backbone(network, spec, plan.out, name, called)
    more = {"end_to_end": {"start": spec.identity, "batch_statistics": batch_statistics}}
    checkpoint = write_head(plan, galleries.names, replace(galleries.settings, backbone=backbone), called, more)
    print(train.describe(checkpoint, folder.join("head").uri))
    print(f"backbone      {backbone.path}")
    print(f"next          python -m jobs.ingest INPUT --backbone {shlex.quote(str(backbone.path))} --gallery GALLERY")
    print(f"              python -m jobs.index --gallery GALLERY --head {shlex.quote(folder.join('head').path)}")


if __name__ == "__main__":
    run(train_end_to_end)
