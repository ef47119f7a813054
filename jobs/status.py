"""What is in a gallery, and whether it is sound: python -m jobs.status --gallery G [--verify]"""

from collections import Counter
from typing import Annotated

import typer

from jobs.command_line import run
from pipeline.errors import PipelineError
from pipeline.gallery import Gallery
from pipeline.index import index_versions, open_index, videos_not_in
from pipeline.verification import verify_gallery


def status(
    gallery: Annotated[str, typer.Option(help="Folder or bucket prefix of the gallery.")],
    verify: Annotated[
        bool, typer.Option(help="Read every file and check it, and the audit log; exit with 1 on a fault.")
    ] = False,
) -> None:
    """Say what a gallery holds, what was rejected and why, and how current its index is."""
    opened = Gallery.open(gallery)
    snapshot = opened.snapshot()
    videos = snapshot.videos
    settings = opened.settings
    print(f"gallery {opened.location.uri}")
    print(f"  backbone      {settings.backbone.identity}, {settings.backbone.height} x {settings.backbone.width} pixels")
    print(f"  sampling      {settings.rate:g} frames a second")
    cameras, people = (len(set(videos[name].to_pylist()) - {None}) for name in ("camera_id", "person_id"))
    print(
        f"  videos        {len(videos)}, {sum(videos['sampled_frames'].to_pylist())} frames, {cameras} cameras, {people} labels"
    )
    print(f"  rejected      {len(snapshot.rejects)}")
    for reason, count in sorted(Counter(snapshot.rejects["reason"].to_pylist()).items()):
        print(f"    {count:5d} {reason}")
    print(f"  forgotten     {len(snapshot.forgotten)}")
    print(f"  shards        {len(set(videos['shard'].to_pylist()))} in {len(snapshot.commits)} commits")
    for version in index_versions(opened):
        try:
            index = open_index(opened, version)
        except PipelineError as error:
            print(f"  index         {version}: {error}")
            continue
        behind = videos_not_in(opened, index)
        state = "current" if not behind else f"{behind} videos behind"
        parts = f"{len(index.manifest['partitions'])} partitions"
        print(
            f"  index         {version}: {len(index.videos)} videos in {parts}, {state}"
            + (", untrained head" if index.untrained else "")
        )
    if verify:
        faults = verify_gallery(opened)
        print("  verified      " + ("no faults" if not faults else f"{len(faults)} faults"))
        for fault in faults:
            print(f"    {fault}")
        if faults:
            raise PipelineError(f"{opened.location.uri} has {len(faults)} faults, the first: {faults[0]}")


if __name__ == "__main__":
    run(status)
