"""Train the co-attention head, or backbone and head, on labelled videos: python -m jobs.train --data DATASET --out W"""

import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
import typer

from jobs.command_line import Endpoints, InsecureCluster, run
from pipeline.backbone.osnet import OSNet
from pipeline.backbone.shipped import read_network, shipped_backbones, shipped_network
from pipeline.backbone.spec import DEFAULT, BackboneSpec, find_backbone, parse_input_size
from pipeline.cluster import Cluster, cluster_is_named
from pipeline.coattention.head import DESCRIPTION, TENSORS, save_head
from pipeline.datasets.read import read_labelled
from pipeline.decoding.sampling import Sampling
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.storage.location import Location, resolve
from pipeline.training.checkpoint import Checkpoint, newest_checkpoint
from pipeline.training.loop import Metrics
from pipeline.training.run import GallerySource, TrainingPlan, run_training
from pipeline.training.settings import TrainingSettings
from pipeline.training.start import StartSettings

TERMS = {"pair": "pair_weight", "video": "video_weight", "identity": "identity_weight", "triplet": "triplet_weight"}
TERMS |= {"attention": "attention_weight", "mixing": "mix_share", "noise": "noise"}
TERMS |= {"pull": "pull", "clipping": "clip"}
TOGETHER = {"people": 8, "tracklets": 2, "segments": 1}  # a batch end to end: 128 frames, not 1,024, which take 25 GB
MEGABYTES = 25  # of memory that a frame of 256 x 128 pixels in a batch takes, measured on a CPU
NAME = "osnet_x0_25_trained"


def train(
    data: Annotated[
        list[str],
        typer.Option(
            help="Gallery folder, mars:PATH, ilids-vid:PATH, prid2011:PATH, ls-vid:PATH, or a manifest; may be repeated."
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder or bucket prefix for head/, metrics.csv, checkpoints and what is ingested.")],
    hidden: Annotated[
        list[str] | None,
        typer.Option(help="The same clips with people hidden: a gallery or a manifest, one for each --data, in the same order."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help=f"Backbone by name or ONNX path [default: the galleries', or {DEFAULT}].")
    ] = None,
    sample_rate: Annotated[float, typer.Option(help="Frames looked at, a second of video, where videos are ingested.")] = 10.0,
    epochs: Annotated[int, typer.Option(help="Epochs.", min=1)] = TrainingSettings.epochs,
    batches: Annotated[int, typer.Option(help="Batches an epoch.", min=1)] = TrainingSettings.batches,
    people: Annotated[
        int | None,
        typer.Option(help=f"People a batch (P) [default: {TrainingSettings.people}; {TOGETHER['people']} with --end-to-end]."),
    ] = None,
    tracklets: Annotated[
        int | None,
        typer.Option(
            help="Tracklets a person in a batch (K), across cameras "
            f"[default: {TrainingSettings.tracklets}; {TOGETHER['tracklets']} with --end-to-end]."
        ),
    ] = None,
    segment_length: Annotated[int, typer.Option(help="Frames a segment (T).")] = TrainingSettings.segment_length,
    learning_rate: Annotated[float, typer.Option(help="Adam's largest step.")] = TrainingSettings.learning_rate,
    key_width: Annotated[int, typer.Option(help="Width of a key (d_k).")] = StartSettings.key_width,
    value_width: Annotated[int, typer.Option(help="Width of a value (d_v).")] = StartSettings.value_width,
    validation_share: Annotated[
        float, typer.Option(help="Share of the people held out to choose the best epoch; 0: the last.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 0,
    without: Annotated[list[str] | None, typer.Option(help=f"Switch a term off: {', '.join(TERMS)}; may be repeated.")] = None,
    free_weight: Annotated[
        bool, typer.Option("--free-weight", help="Let weights of the squared difference be above 0 (no prefilter by distance).")
    ] = False,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE of any field of pipeline.training.settings or .start; may be repeated."),
    ] = None,
    end_to_end: Annotated[
        bool,
        typer.Option(
            "--end-to-end",
            help=f"Train the backbone too: from {DEFAULT} (or --from), in this process, on frames decoded again into OUT/frames. "
            f"A frame of 256 x 128 pixels takes 98 kB of disk and, in a batch, about {MEGABYTES} MB of memory. The backbone "
            f"learns at {TrainingSettings.backbone_rate} times the head's rate (--set backbone_rate=X).",
        ),
    ] = False,
    begin_from: Annotated[
        str | None,
        typer.Option(
            "--from", help=f"End to end: OUT of an earlier such training, to start from its backbone [default: {DEFAULT}]."
        ),
    ] = None,
    backbone_name: Annotated[
        str,
        typer.Option("--name", help="End to end: name of the backbone; OUT/backbone/NAME.onnx is written."),
    ] = NAME,
    input_size: Annotated[
        str | None,
        typer.Option(
            help="End to end: HEIGHTxWIDTH of the frames in pixels, multiples of 16 from 32 on [default: the start's, 256x128]; "
            "128x64 takes a quarter of the time and memory."
        ),
    ] = None,
    batch_statistics: Annotated[
        bool,
        typer.Option(
            "--batch-statistics",
            help="End to end: batch normalisation on each batch's statistics instead of the running ones that the backbone has.",
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Workers on Ray Train; 0: in this process [default: 0, or 1 on a named cluster].", min=0)
    ] = None,
    cpus: Annotated[int, typer.Option(help="CPUs of one worker on Ray.", min=1)] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="Each worker on Ray takes a GPU.")] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster to use [default: RAY_ADDRESS, else this machine].")] = None,
    insecure_cluster: InsecureCluster = False,
    endpoint: Endpoints = None,
) -> None:
    """Train a co-attention head on stored frame features and write it into OUT/head.

    Starts from a head that ranks like mean pooling, keeps the best epoch by mAP on people held out (never on a test part), and
    goes on from its last checkpoint when the same command is run again. What is no gallery yet is ingested into OUT/galleries.

    With --end-to-end the backbone learns along, on augmented frames, and is written into OUT/backbone; the head in OUT/head is
    for it. The galleries give labels and say which frames to look at; any backbone may have made them, the same for all.
    """
    batch = TOGETHER if end_to_end else {}
    given = {"people": people, "tracklets": tracklets}
    settings, start = _recipe(
        {
            "epochs": epochs,
            "batches": batches,
            "segment_length": segment_length,
            "learning_rate": learning_rate,
            "seed": seed,
            **batch,
            **{name: value for name, value in given.items() if value is not None},
        },
        {"key_width": key_width, "value_width": value_width, "negative_weight": not free_weight},
        without or [],
        change or [],
    )
    folder = resolve(out)
    if folder.info().is_file:
        raise UsageError(f"{out} is a file; a training is written into a folder")
    if hidden and len(hidden) != len(data):
        raise UsageError(
            f"--hidden is given {len(hidden)} times and --data {len(data)} times; give one for each, in the same order"
        )
    if end_to_end:
        if backbone is not None:
            raise UsageError(f"--end-to-end trains {DEFAULT}, or the backbone of --from; it takes no --backbone")
        if workers:
            raise UsageError("--end-to-end trains in this process; leave --workers out")
        if not folder.is_local:
            raise UsageError(f"{out} is not local; frames are memory-mapped, so with --end-to-end OUT is a folder on a disk")
        _check_name(backbone_name)
        network, spec = _start_network(begin_from, input_size)
        workers = 0
    else:
        unused = {
            "--from": begin_from,
            "--name": backbone_name != NAME,
            "--input-size": input_size,
            "--batch-statistics": batch_statistics,
        }
        if wrong := [flag for flag, value in unused.items() if value]:
            raise UsageError(f"{', '.join(wrong)} is for a training with --end-to-end")
    cluster = Cluster(address, insecure_cluster)
    sources, endpoints = [], set[str]()
    for number, name in enumerate([*data, *(hidden or [])]):
        gallery, named = _gallery(name, folder.join("galleries", str(number)), backbone, sample_rate, cluster, endpoint or ())
        endpoints |= {*named}
        sources.append(GallerySource(gallery.location.uri, str(number % len(data)), number >= len(data)))
    plan = TrainingPlan(tuple(sources), folder.uri, validation_share, start, settings)
    progress = Progress(settings.epochs)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_ray = workers if workers is not None else int(cluster_is_named(cluster))
    if end_to_end:
        from pipeline.training.end_to_end import run_end_to_end

        _say_how_much(plan, spec)
        run_end_to_end(
            plan, network, spec, progress, device, running_statistics=not batch_statistics, endpoints=sorted(endpoints)
        )
    elif on_ray:
        from pipeline.training.distributed import WorkerSettings, train_on_ray

        train_on_ray(plan, WorkerSettings(on_ray, gpu, cpus), lambda: progress.follow(folder), cluster)
    else:
        run_training(plan, progress, device)
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise PipelineError(f"the training left no checkpoint in {folder.uri}")
    names, used, more = [*data, *(hidden or [])], gallery.settings, {}
    if end_to_end:
        trained = _write_backbone(network, spec, folder, backbone_name)
        used = replace(used, backbone=trained)
        more = {"end_to_end": {"start": spec.identity, "batch_statistics": batch_statistics}}
    _write_head(checkpoint, plan, names, used, folder, more)
    print(describe(checkpoint, folder.join("head").uri))
    if end_to_end:
        print(_what_next(str(trained.path), folder))


def _check_name(name: str) -> None:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is None:
        raise UsageError(f"--name {name!r} is no file name of letters, digits, dots, dashes and underscores")
    if name in shipped_backbones():
        raise UsageError(f"--name {name}: a backbone of that name ships; give another")


def _start_network(begin_from: str | None, input_size: str | None) -> tuple[OSNet, BackboneSpec]:
    """The network that an end-to-end training starts from, and how frames enter it."""
    size = parse_input_size(input_size) if input_size else None
    if size is not None and any(pixels % 16 or pixels < 32 for pixels in size):
        raise UsageError(f"--input-size {input_size}: height and width are multiples of 16 pixels and at least 32")
    if begin_from is None:
        return shipped_network(DEFAULT), find_backbone(DEFAULT, size)
    found = sorted(Path(begin_from, "backbone").glob("*.safetensors"))
    if len(found) != 1:
        raise UsageError(
            f"{begin_from} is no folder of one finished --end-to-end training: {len(found)} backbones in its backbone/"
        )
    return read_network(found[0]), find_backbone(str(found[0].with_suffix(".onnx")), size)


def _say_how_much(plan: TrainingPlan, spec: BackboneSpec) -> None:
    settings, share = plan.settings, spec.height * spec.width / (256 * 128)
    frames = settings.people * settings.tracklets * settings.segments * settings.segment_length
    print(
        f"{frames} frames of {spec.height} x {spec.width} pixels a batch, about {frames * MEGABYTES * share / 1e3:.1f} GB of "
        "memory; the videos are decoded into OUT/frames unless they are there",
        file=sys.stderr,
        flush=True,
    )


def _write_backbone(network: OSNet, spec: BackboneSpec, folder: Location, name: str) -> BackboneSpec:
    """Write OUT/backbone/NAME.onnx with its sidecar and its tensors; the backbone that it now is."""
    from pipeline.backbone.export import export_backbone

    path = Path(folder.path, "backbone", f"{name}.onnx")
    about = {"name": name, "start": spec.identity, "command": shlex.join(["python", "-m", "jobs.train", *sys.argv[1:]])}
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    export_backbone(network, spec, path, about)
    resolve(path.with_suffix(".safetensors")).write_atomically(safetensors.torch.save(tensors))
    return find_backbone(str(path))


def _what_next(backbone: str, folder: Location) -> str:
    ingest = f"python -m jobs.ingest INPUT --backbone {shlex.quote(backbone)} --gallery GALLERY"
    index = f"python -m jobs.index --gallery GALLERY --head {shlex.quote(folder.join('head').path)}"
    return f"backbone      {backbone}\nnext          {ingest}\n              {index}"


def _recipe(
    training: dict[str, Any], start: dict[str, Any], without: list[str], changes: list[str]
) -> tuple[TrainingSettings, StartSettings]:
    """Settings from the flags. Raises UsageError for a term, a name or a value that cannot be meant."""
    for term in without:
        if term not in TERMS:
            raise UsageError(f"there is no term {term!r} to switch off; there are {', '.join(TERMS)}")
        training[TERMS[term]] = 0
    kinds = {field.name: (training, field.type) for field in fields(TrainingSettings)}
    kinds |= {field.name: (start, field.type) for field in fields(StartSettings)}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or name not in kinds:
            raise UsageError(f"--set {change!r} names no setting; write NAME=VALUE with one of {', '.join(kinds)}")
        chosen, kind = kinds[name]
        try:
            chosen[name] = _value(text, str(kind))
        except ValueError as error:
            raise UsageError(f"--set {change!r}: {text!r} is no value for {name}") from error
    return TrainingSettings(**training), StartSettings(**start)


def _value(text: str, kind: str) -> Any:
    if "bool" in kind:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if "tuple" in kind:
        return tuple(float(part) for part in text.split(","))
    if "int" in kind:
        return int(text)
    return None if "None" in kind and text == "none" else float(text)


def _gallery(
    data: str, place: Location, backbone: str | None, sample_rate: float, cluster: Cluster, endpoints: Sequence[str]
) -> tuple[Gallery, tuple[str, ...]]:
    """The gallery that `data` is, or the one at `place` after its videos are ingested; and the endpoints of `Reach`."""
    if ":" not in data.split("/")[0] or "://" in data:
        location = resolve(data)
        if location.join("gallery.json").exists():
            gallery = Gallery.open(data)
            if backbone is not None and (spec := find_backbone(backbone)).identity != gallery.settings.backbone.identity:
                raise UsageError(f"{data} was made with the backbone {gallery.settings.backbone.identity}, not {spec.identity}")
            return gallery, gallery.reach(endpoints=endpoints).endpoints
    from pipeline.ingest.run import ingest

    spec = find_backbone(backbone or DEFAULT)
    labelled = read_labelled(data, part="train", endpoints=endpoints)
    for note in labelled.notes:
        print(f"{labelled.name}: {note}", file=sys.stderr)
    gallery = Gallery.open_or_create(place.uri, GallerySettings(spec, sample_rate, None))
    sampling = Sampling(rate=sample_rate, height=spec.height, width=spec.width)
    summary = ingest(labelled.catalog, gallery, sampling, address=cluster)
    print(f"{labelled.name}: {summary.usable} videos in {place.uri}, {summary.refused} rejected", file=sys.stderr, flush=True)
    return gallery, labelled.catalog.reach.endpoints


class Progress:
    """One line an epoch on stderr."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.shown = -1

    def __call__(self, metrics: Metrics) -> None:
        epoch = int(metrics["epoch"])
        if epoch <= self.shown:
            return
        self.shown = epoch
        print(f"epoch {epoch}/{self.epochs}  {_figures(metrics)}  {metrics['seconds']:.1f} s", file=sys.stderr, flush=True)

    def follow(self, folder: Location) -> None:
        """The epochs that other processes have finished."""
        checkpoint = newest_checkpoint(folder)
        for metrics in checkpoint.history if checkpoint is not None else []:
            self(metrics)


def _figures(metrics: Metrics) -> str:
    parts = [f"loss {metrics['loss_all']:.3f}"] if "loss_all" in metrics else ["start point"]
    for condition in ("clean", "hidden"):
        if f"{condition}_map" in metrics:
            ours, mean = (f"{metrics[f'{condition}_{m}rank1']:.3f}/{metrics[f'{condition}_{m}map']:.3f}" for m in ("", "mean_"))
            parts.append(f"{condition} rank-1/mAP {ours} (mean pooling {mean})")
    return "  ".join(parts)


def _write_head(
    checkpoint: Checkpoint, plan: TrainingPlan, data: list[str], gallery: GallerySettings, folder: Location, more: dict[str, Any]
) -> None:
    best = next(metrics for metrics in checkpoint.history if metrics["epoch"] == checkpoint.best_epoch)
    names = ("co-attention-search", "torch", "numpy", "ray")
    info = {
        "untrained": False,
        "data": data,
        "recipe": {
            "training": asdict(plan.settings),
            "start": asdict(plan.start),
            "validation_share": plan.validation_share,
            **more,
        },
        "backbone": gallery.backbone.identity,
        "sample_rate": gallery.rate,
        "epoch": checkpoint.best_epoch,
        "validation": best,
        "command": shlex.join(["python", "-m", "jobs.train", *sys.argv[1:]]),
        "versions": {name: version(name) for name in names},
        "trained_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    }
    with tempfile.TemporaryDirectory() as temporary:
        save_head(checkpoint.best_head(), temporary, info, gallery.backbone.identity)
        for name in (TENSORS, DESCRIPTION):
            folder.join("head", name).write_atomically(Path(temporary, name).read_bytes())


def describe(checkpoint: Checkpoint, head: str) -> str:
    """What came of the training, beside where it started."""
    best = next(metrics for metrics in checkpoint.history if metrics["epoch"] == checkpoint.best_epoch)
    seconds = sum(metrics["seconds"] for metrics in checkpoint.history)
    lines = [
        f"head          {head}",
        f"epoch         {checkpoint.best_epoch} of {len(checkpoint.history) - 1}, {seconds:.0f} s of training",
        f"at first      {_figures(checkpoint.history[0])}",
        f"at best       {_figures(best)}",
    ]
    if checkpoint.best_epoch == 0:
        lines.append("No epoch beat the start point on the people held out: the head ranks like mean pooling.")
    return "\n".join(lines)


if __name__ == "__main__":
    run(train)
