"""The service as one process: uvicorn on an address, with the galleries that it is given."""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

from pipeline.errors import UsageError
from pipeline.gallery.audit import user
from pipeline.gallery.gallery import Gallery

ANY = ("0.0.0.0", "::")  # noqa: S104 - addresses that are no name
CONNECTIONS = 64  # at once; more are told to come back


@dataclass(frozen=True)
class Address:
    """Where the service listens and what it is called there.

    certificate, key: PEM files for https. name: what people type, HOST or HOST:PORT, where that is not the address itself.
    behind_proxy: a proxy of that name speaks https and hands requests on. Raises UsageError for an address that others reach
    without https and for one without a name.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    certificate: Path | None = None
    key: Path | None = None
    name: str | None = None
    behind_proxy: bool = False

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise UsageError("https takes a certificate and its key: --certificate FILE --key FILE")
        if missing := [str(file) for file in (self.certificate, self.key) if file is not None and not file.is_file()]:
            raise UsageError(f"{missing[0]} is not a file")
        if not 0 <= self.port < 65536:
            raise UsageError(f"a port is a number from 0 to 65535, not {self.port}")
        if not self.is_loopback and not self.secure:
            raise UsageError(
                f"others reach {self.host}: give --certificate and --key, or --behind-proxy and --name where a proxy speaks https"
            )
        if self.name is None and (self.behind_proxy or self.host in ANY):
            raise UsageError("say with --name what people type to come here")

    @property
    def is_loopback(self) -> bool:
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def secure(self) -> bool:
        """Whether people come by https."""
        return self.certificate is not None or self.behind_proxy

    def hosts(self, port: int) -> list[str]:
        """What browsers call it, the name for people first; port: the one that it got."""
        if self.name is not None:
            return [self.name.lower()]
        own = f"[{self.host}]" if ":" in self.host else self.host
        ends = ["", f":{port}"] if port == (443 if self.secure else 80) else [f":{port}"]  # browsers leave the usual one out
        return [name.lower() + end for name in (own, *(["localhost"] if self.is_loopback else [])) for end in ends]


def serve(
    galleries: Sequence[Gallery],
    address: Address,
    tokens_file: Path | None = None,
    person: str | None = None,
    ready: Callable[[str], object] = lambda _link: None,
) -> None:
    """Serve galleries until the process is interrupted.

    tokens_file: see `pipeline.service.access.issue`. person: who opens the printed link, by default the account of this process.
    ready: called with the link once requests are taken; the link opens one session. Raises UsageError for an address that
    cannot be had and a file of tokens that is damaged.
    """
    import uvicorn

    from pipeline import telemetry
    from pipeline.service.access import Access, read_tokens
    from pipeline.service.app import create_app
    from pipeline.service.asking import Service, named

    telemetry.registry()  # this process shows its figures itself
    access = Access(tokens_file)
    if tokens_file is not None:
        read_tokens(tokens_file)  # raises UsageError
    once = access.one_time(user() if person is None else person)
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        listening = socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        raise UsageError(f"{address.host} port {address.port} cannot be listened on: {error.strerror or error}") from error
    with listening:
        hosts = address.hosts(listening.getsockname()[1])
        service = Service(named(galleries), access, address.secure)
        app = create_app(service, hosts)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # addresses name videos and people's searches
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            ssl_certfile=address.certificate,
            ssl_keyfile=address.key,
            timeout_graceful_shutdown=5,
        )
        ready(f"{'https' if address.secure else 'http'}://{hosts[0]}/#token={once}")
        server = uvicorn.Server(config)
        exits = server.handle_exit

        def handle_exit(number: int, frame: FrameType | None) -> None:
            service.ending = True  # streams end by themselves, which else would be waited for
            exits(number, frame)

        server.handle_exit = handle_exit  # type: ignore[method-assign, assignment] # what signals call
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            pass  # the usual end
        finally:
            service.close()
