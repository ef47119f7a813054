"""Teach a head which frames show somebody, from videos without labels: python -m jobs.train_keys --head H --data INPUT --out K"""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from jobs.command_line import Endpoints, as_called, local_folder, now_words, run
from jobs.progress import RenewedLine
from pipeline.backbone.runtime import load_backbone
from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.coattention.head import load_head, read_description, save_head, shipped_head
from pipeline.datasets.read import read_labelled
from pipeline.decoding.sampling import Sampling
from pipeline.distillation.people import gather_people
from pipeline.distillation.visible_keys import teach_keys
from pipeline.errors import UsageError
from pipeline.index.heads import head_folder


def main(
    data: Annotated[
        list[str],
        typer.Option(help="What jobs.ingest takes (folder, prefix, manifest, video) or a data set (mars:PATH); may be repeated."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the head.")],
    head: Annotated[
        str | None, typer.Option(help="Folder of a head, here or in a bucket [default: the one that ships for the backbone].")
    ] = None,
    backbone: Annotated[str, typer.Option(help="Backbone by name or ONNX path: the one the head belongs to.")] = DEFAULT,
    frames: Annotated[int, typer.Option(help="Most frames kept of a candidate.", min=1)] = 16,
    sample_rate: Annotated[float, typer.Option(help="Frames looked at, a second of video.")] = 5.0,
    held_out_share: Annotated[
        float, typer.Option(help="Share of the people (by person_id) kept out, on whom the judgement is measured.", min=0, max=1)
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.", min=0)] = 0,
    endpoint: Endpoints = None,
) -> None:
    """Give a head keys that tell frames in which somebody is hidden from others. No labels are needed.

    Scores change with the head: calibrate it anew (jobs.calibrate), and build indexes with it (jobs.index --head OUT).
    """
    local_folder(out)
    spec = find_backbone(backbone)
    place = head if head is not None else shipped_head(spec.identity)
    if place is None:
        raise UsageError(f"no head ships for the backbone {spec.name}; name one with --head")
    with head_folder(place) as folder:
        old, described = load_head(folder, spec.identity), read_description(folder)
    line = RenewedLine()
    with tempfile.TemporaryDirectory() as temporary:
        people = gather_people(
            [read_labelled(one, part="train", endpoints=endpoint or ()).catalog for one in data],
            Path(temporary),
            Sampling(rate=sample_rate, height=spec.height, width=spec.width),
            frames,
            lambda done, total, kept: line.show(f"{done}/{total} videos, {kept} frames", done == total),
        )
        taught = teach_keys(
            old,
            people,
            load_backbone(spec),
            held_out_share,
            seed,
            lambda done, total: line.show(f"{done}/{total} candidates covered", done == total),
        )
    figures = {"frames": taught.frames, "told apart before": taught.before, "told apart": taught.after}
    keys = {"command": as_called("train_keys"), "made_at": now_words(), **figures}
    save_head(taught.head, out, {**described.info, "keys": keys}, spec.identity)
    if taught.before is not None and taught.after is not None:
        print(f"uncovered frames of people held out judged better than hidden ones: {taught.before:.3f} -> {taught.after:.3f}")
    print(f"head: {out}, learned from {taught.frames} frames of {len(people.candidates)} candidates")


if __name__ == "__main__":
    run(main)
