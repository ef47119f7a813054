"""Serve galleries to browsers and programs: python -m jobs.serve --gallery G [--gallery G2]"""

from pathlib import Path
from typing import Annotated

import typer

from jobs.command_line import run
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
) -> None:
    """Serve a page and an HTTP interface to search galleries, until interrupted; every search goes into the audit log."""
    address = Address(host, port, certificate, key, name, behind_proxy)
    opened = [Gallery.open(uri) for uri in gallery]
    run_service(opened, address, tokens, person, lambda link: print(f"open this once, within the hour: {link}", flush=True))


if __name__ == "__main__":
    run(serve)
