"""Rewrite a gallery into few large shards without what was forgotten: python -m jobs.compact --gallery G"""

from datetime import timedelta
from typing import Annotated

import typer

from jobs.command_line import GalleryFolder, InsecureCluster, run
from pipeline.cluster import Cluster
from pipeline.errors import UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.index.version_files import index_versions
from pipeline.retention.compact import compact as run_compact


def compact(
    gallery: GalleryFolder,
    keep_indexes: Annotated[int, typer.Option(help="Newest index versions to keep; 0 keeps all.", min=0)] = 3,
    orphan_hours: Annotated[float, typer.Option(help="Age in hours after which files of ended ingests are deleted.")] = 24.0,
    address: Annotated[str | None, typer.Option(help="Ray cluster to use [default: RAY_ADDRESS, else this process].")] = None,
    insecure_cluster: InsecureCluster = False,
) -> None:
    """Make small shards large, and take what was forgotten off the disk, indexes that hold it included."""
    if not 0 <= orphan_hours < 1e6:
        raise UsageError(f"--orphan-hours is a number of hours, 0 or more, not {orphan_hours:g}")
    opened = Gallery.open(gallery)
    done = run_compact(opened, timedelta(hours=orphan_hours), keep_indexes, Cluster(address, insecure_cluster))
    print(f"{done.videos} videos, {done.shards_before} shards became {done.shards_after}, {done.deleted} files deleted")
    if done.indexes:
        print(f"index versions deleted, old ones or with forgotten videos: {', '.join(done.indexes)}")
    if done.reduced is not None:
        print(f"index version {done.reduced} holds what could be kept; run jobs.index to take in the rest")
    if not index_versions(opened):
        print("there is no index; run jobs.index")


if __name__ == "__main__":
    run(compact)
