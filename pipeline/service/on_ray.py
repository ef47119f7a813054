"""The service under Ray Serve: the same application, with partitions on actors of a whole cluster.

One replica holds what `pipeline.service.run` holds in its process: sessions, searches, uploads, decoders. There is no second one,
whatever a configuration says: it would know its own only. Indexes are open on
actors that stay (`pipeline.search.warm.WarmActors`), so that a search takes the time of a search and not of a start. `jobs.serve`
starts it on a cluster that is named; a configuration of Serve names `pipeline.service.on_ray:app`.
"""

import functools
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import serve
from starlette.types import ASGIApp

from pipeline import telemetry
from pipeline.cluster import Cluster, connected, words_of
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.audit import user
from pipeline.gallery.gallery import Gallery
from pipeline.search.warm import WarmActors
from pipeline.service.access import Access, check_person, read_tokens
from pipeline.service.app import create_app
from pipeline.service.asking import Service, named
from pipeline.service.run import CONNECTIONS, Address
from pipeline.storage.documents import typed

NAME = "resight"  # of the application
LEAVING = ("STOPPING", "PENDING_MIGRATION")  # states of a replica that another one replaces
LOGS = {"enable_access_log": False}  # addresses name videos and people's searches


@dataclass(frozen=True)
class Arguments:
    """What a configuration of Serve says under `args`.

    galleries: folders that all nodes share, or bucket prefixes. tokens: the file of `jobs.token`, where the replica runs.
    address: as the proxies of Serve have it. actors: that search, for each gallery; by default one per GPU, else half the CPUs.
    """

    galleries: tuple[str, ...]
    tokens: str
    address: Address = field(default_factory=lambda: Address(port=8000))
    actors: int | None = None


@serve.deployment(
    name=NAME,
    num_replicas=1,  # it holds sessions and searches
    max_ongoing_requests=CONNECTIONS,
    max_queued_requests=CONNECTIONS,
    ray_actor_options={"num_cpus": 1},
    graceful_shutdown_timeout_s=5,
    max_constructor_retry_count=3,
    logging_config=LOGS,
)
@serve.ingress()
class Replica:
    """The application with its state. hosts: what browsers call it; secure: whether people come by https."""

    def __init__(
        self, galleries: Sequence[str], tokens: str | None, hosts: Sequence[str], secure: bool, actors: int | None
    ) -> None:
        refuse_open_proxy()
        refuse_siblings()
        telemetry.registry()  # this process shows its figures itself
        self.access = Access(None if tokens is None else Path(tokens))
        opened = named([Gallery.open(uri) for uri in galleries])
        self.service = Service(opened, self.access, secure, keep=functools.partial(WarmActors, actors=actors))
        self.hosts = hosts

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self.service, self.hosts, only_here=not self.service.secure)

    def one_time(self, person: str) -> str:
        """A token that opens one session, for whoever started the service."""
        return self.access.one_time(person)


def app(arguments: dict[str, Any]) -> serve.Application:
    """The application, as a configuration of Serve names it. arguments: see `Arguments`. Raises UsageError for those that cannot
    be meant.
    """
    refuse_open_proxy()
    try:
        known = typed(Arguments, arguments)
    except ValueError as error:
        raise UsageError(f"the arguments of the service: {error}") from error
    return _bound(known.galleries, known.tokens, known.address, known.actors)


def serve_on(
    cluster: Cluster,
    galleries: Sequence[Gallery],
    address: Address,
    tokens_file: Path | None = None,
    person: str | None = None,
    ready: Callable[[str], object] = lambda _link: None,
    actors: int | None = None,
) -> None:
    """Serve galleries on a Ray cluster until the process is interrupted; the head node listens. Parameters as of
    `pipeline.service.run.serve`; actors: as of `Arguments`.

    Raises UsageError for what cannot be meant and where Ray Serve has another application, PipelineError where it does not start.
    """
    refuse_open_proxy()
    if address.port == 0:
        raise UsageError("Ray Serve listens on a port that is named: give --port")
    person = check_person(user() if person is None else person)
    if tokens_file is not None:
        read_tokens(tokens_file)  # raises UsageError
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with connected(cluster):
        if others := list(serve.status().applications):
            raise UsageError(
                f"Ray Serve has the application {others[0]} on this cluster already: end it (`serve shutdown`), or deploy "
                "pipeline.service.on_ray:app beside it by a configuration"
            )
        serve.shutdown()  # one without applications may listen elsewhere
        secret = None if tokens_file is None else str(tokens_file.absolute())
        bound = _bound([gallery.location.uri for gallery in galleries], secret, address, actors)
        signal.signal(signal.SIGTERM, _interrupted)  # of a job that is stopped
        try:
            serve.start("HeadOnly", _listening(address), logging_config=LOGS)
            handle = serve.run(bound, name=NAME, route_prefix="/")
            token = handle.one_time.remote(person).result()
            ready(f"{'https' if address.secure else 'http'}://{address.hosts(address.port)[0]}/#token={token}")
            threading.Event().wait()
        except KeyboardInterrupt:
            pass  # the usual end
        except Exception as error:
            raise PipelineError(f"Ray Serve does not start the service: {words_of(error)}") from error
        finally:
            serve.shutdown()


def refuse_open_proxy() -> None:
    """Raise UsageError where Serve would listen on all addresses of its nodes."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "0") == "1":
        raise UsageError("RAY_SERVE_ENABLE_HA_PROXY=1 has Ray Serve listen on all addresses of a node: leave it out")


def refuse_siblings() -> None:
    """Raise UsageError in a replica that is not the only one."""
    here = serve.get_replica_context()
    states = serve.status().applications[here.app_name].deployments[here.deployment].replica_states
    if (count := sum(number for state, number in states.items() if state not in LEAVING)) > 1:
        raise UsageError(
            f"one replica holds the sessions and searches of all, and Ray Serve is told to have {count}: leave num_replicas and "
            "autoscaling_config out of its configuration; what searches faster are more search actors"
        )


def _bound(galleries: Sequence[str], tokens: str | None, address: Address, actors: int | None) -> serve.Application:
    deployment: Any = Replica  # as the decorators have made it
    return deployment.bind(list(galleries), tokens, address.hosts(address.port), address.secure, actors)


def _listening(address: Address) -> dict[str, Any]:
    files = {"ssl_certfile": address.certificate, "ssl_keyfile": address.key}
    return {"host": address.host, "port": address.port} | {
        name: str(file.absolute()) for name, file in files.items() if file is not None
    }


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt
