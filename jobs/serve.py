"""Serve galleries to browsers and programs: python -m jobs.serve --gallery G [--gallery G2] [--address RAY]"""

from pathlib import Path
from typing import Annotated

import typer

from jobs.command_line import InsecureCluster, run
from jobs.search_flags import Actors
from pipeline.cluster import Cluster, cluster_is_named
from pipeline.gallery.gallery import Gallery
from pipeline.service.run import Address
from pipeline.service.run import serve as run_service


def serve(
    gallery: Annotated[list[str], typer.Option(help="Folder or bucket prefix of a gallery; may be given again.")],
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's own ask for https.")] = Address.host,
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any that is free.")] = Address.port,
    tokens: Annotated[Path | None, typer.Option(help="File of the tokens that jobs.token issued.")] = None,
    person: Annotated[
        str | None, typer.Option(help="Who opens the printed link, for the record [default: this account].")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM file, for https.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.")] = None,
    name: Annotated[
        str | None, typer.Option(help="What people type to come here, HOST or HOST:PORT [default: the address itself].")
    ] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy of that name speaks https and hands requests on.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to serve on, by Ray Serve [default: RAY_ADDRESS, else this process].")
    ] = None,
    actors: Actors = None,
    insecure_cluster: InsecureCluster = False,
) -> None:
    """Serve a page and an HTTP interface to search galleries, until interrupted; every search goes into the audit log."""
    listening = Address(host, port, certificate, key, name, behind_proxy)
    opened = [Gallery.open(uri) for uri in gallery]
    cluster = Cluster(address, insecure_cluster)

    def ready(link: str) -> None:
        print(f"open this once, within the hour: {link}", flush=True)

    if actors == 0 or not cluster_is_named(cluster):
        run_service(opened, listening, tokens, person, ready)
        return
    from pipeline.service.on_ray import serve_on  # imports Ray Serve

    serve_on(cluster, opened, listening, tokens, person, ready, actors)


if __name__ == "__main__":
    run(serve)
