"""The service under Ray Serve on two nodes: the leads of one process, whatever is killed or published under it."""

import json
import random
import re
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve

from pipeline.errors import UsageError
from pipeline.gallery.audit import read_records
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.index.versions import open_index
from pipeline.search.partitions import opened_partitions
from pipeline.search.search import search
from pipeline.search.targets import gallery_target
from pipeline.service.access import issue
from pipeline.settings import IndexSettings, SearchSettings
from tests.conftest import add_videos, people_features, toy_spec
from tests.two_nodes import HEAD, WORKER, LoopbackCluster, TwoNodes, find_processes, two_nodes

PARTITIONS = IndexSettings(partition_videos=10)
PEOPLE = people_features(12, 5, 24, seed=1)


@dataclass
class Served:
    """A service on a cluster that two people search all the time. seconds: until its link was printed."""

    cluster: TwoNodes
    gallery: Gallery
    url: str
    folder: Path
    service: "subprocess.Popen[str]"
    seconds: float
    secrets: list[str]
    answers: list[dict[str, Any]] = field(default_factory=list)

    def until(self, enough: Callable[[list[dict[str, Any]]], bool], patience: float = 240) -> list[dict[str, Any]]:
        """The answers that come until there are enough of them."""
        first, end = len(self.answers), time.monotonic() + patience
        while not enough(self.answers[first:]):
            assert time.monotonic() < end and self.service.poll() is None, (self.answers[first:][-5:], self.said())
            time.sleep(0.05)
        return self.answers[first:]

    def right(self, count: int) -> list[dict[str, Any]]:
        """The answers until so many were right, all of which have to be right or none."""
        answers = self.until(lambda new: sum("leads" in one for one in new) >= count)
        for answer in answers:
            if "leads" in answer:
                expected = leads(self.gallery, answer["version"])
                assert [video for video, _ in answer["leads"]] == [video for video, _ in expected]
                assert [score for _, score in answer["leads"]] == pytest.approx([score for _, score in expected], abs=1e-6)
        return answers

    def said(self) -> str:
        return (self.folder / "serve.log").read_text()


def leads(gallery: Gallery, version: str) -> list[tuple[str, float]]:
    """The leads for v003 in this process, best first."""
    index = open_index(gallery, version)
    with opened_partitions(gallery, index, actors=0) as partitions:
        settings = SearchSettings(top=500, exact=True, evidence=False)
        result = search(gallery, index, partitions, gallery_target(gallery, "v003"), settings)
    return [(lead.video.video_id, lead.score) for lead in result.leads]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    gallery = Gallery.open_or_create(folder / "town", GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, PEOPLE[:50])
    build_index(gallery, PARTITIONS)
    tokens = folder / "tokens.json"
    people = [issue(tokens, name, 1) for name in ("Anna", "Bert")]
    with two_nodes(folder / "cluster") as cluster:
        flags = ["--gallery", gallery.location.path, "--tokens", tokens, "--port", str(port := free_port(cluster))]
        began = time.monotonic()
        with (folder / "serve.log").open("w") as log:
            service = cluster.run("-m", "jobs.serve", *flags, stdout=subprocess.PIPE, stderr=log)
        assert service.stdout is not None
        url, once = re.search(r"(http://\S+)/#token=(\S+)", service.stdout.readline()).groups()  # type: ignore[union-attr]
        made = Served(cluster, gallery, url, folder, service, time.monotonic() - began, [*people, once])
        assert url == f"http://127.0.0.1:{port}"
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        load = cluster.run("-m", "tests.service_load", url, "town", "v003", *people, **pipes)

        def listen() -> None:
            made.answers.extend(map(json.loads, load.stdout or ()))

        threading.Thread(target=listen, daemon=True).start()
        yield made
        load.kill()
        service.kill()


def free_port(cluster: TwoNodes) -> int:
    if not isinstance(cluster, LoopbackCluster):
        return 8080  # of a network that has nobody else
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


cluster = pytest.mark.cluster
pytestmark = pytest.mark.timeout(600)


@cluster
def test_two_nodes_answer_as_one_process_does_in_the_time_of_a_search(served: Served) -> None:
    served.right(2)
    warm = served.right(6)
    assert all("leads" in one for one in warm), warm
    seconds = [one["seconds"] for one in warm]
    print(f"ready in {served.seconds:.1f} s, then {statistics.median(seconds):.2f} s a search")
    assert statistics.median(seconds) < served.seconds / 5
    assert {node for node, _ in find_processes(served.cluster, "search actor")} == {HEAD, WORKER}
    assert {record["who"] for record in read_records(served.gallery) if record["action"] == "search"} == {"Anna", "Bert"}


@cluster
def test_a_new_index_version_is_taken_up_under_load_without_a_failure(served: Served) -> None:
    before = served.right(1)[-1]["version"]
    add_videos(served.gallery, PEOPLE[50:], first=50)
    new = build_index(served.gallery, PARTITIONS).version
    answers = served.until(lambda them: sum(one.get("version") == new for one in them) >= 4)
    served.right(2)
    versions = {one.get("version") for one in answers}  # the old one's may all have come while the new one was built
    assert new in versions <= {before, new}, answers
    assert [len(one["leads"]) for one in answers if one["version"] == new][-1] == len(PEOPLE) - 1


@cluster
def test_an_actor_that_is_killed_costs_no_wrong_answer(served: Served) -> None:
    chance = random.Random(2)
    for _ in range(2):
        time.sleep(chance.random())
        chance.choice(find_processes(served.cluster, "search actor"))[1].kill()
        answers = served.right(4)
        assert all("leads" in one or excused(one) for one in answers), answers


@cluster
def test_a_replica_that_is_killed_costs_what_it_held_and_no_wrong_answer(served: Served) -> None:
    ((_, replica),) = find_processes(served.cluster, "replica")
    replica.kill()
    answers = served.right(4)
    assert all("leads" in one or excused(one) for one in answers), answers
    ((_, now),) = find_processes(served.cluster, "replica")
    assert now.pid != replica.pid


@cluster
def test_a_node_that_is_killed_costs_no_wrong_answer(served: Served) -> None:
    served.right(1)
    served.cluster.kill_node(WORKER)
    killed = time.monotonic()
    answers = served.right(2)
    print(f"right again after {time.monotonic() - killed:.0f} s on one node")
    served.cluster.start_node(WORKER)
    answers += served.right(4)
    assert all("leads" in one or excused(one) for one in answers), answers


def excused(answer: dict[str, Any]) -> bool:
    """Whether an answer that is no leads says that something is away, or that a replica began anew."""
    known = "search actor died" in answer["said"] or "no room" in answer["said"] or "no such search" in answer["said"]
    return answer["status"] >= 500 or (answer["status"] in (200, 404) and known)


@cluster
def test_a_second_service_on_the_cluster_is_refused_and_disturbs_nobody(served: Served) -> None:
    second = served.cluster.run("-m", "jobs.serve", "--gallery", served.gallery.location.path, stderr=subprocess.PIPE)
    _, said = second.communicate(timeout=120)
    assert second.returncode == 2 and "Ray Serve has the application resight on this cluster already" in said
    assert all("leads" in one for one in served.right(2))


@cluster
def test_it_ends_by_an_interrupt_and_has_logged_nobodys_searches(served: Served) -> None:
    served.service.send_signal(signal.SIGINT)
    assert served.service.wait(120) == 0 and served.said() == ""
    logs = "".join(path.read_text(errors="replace") for path in ray_logs(served.cluster))
    assert "Finished initializing replica" in logs
    assert not [word for word in (*served.secrets, "/searches", "v003") if word in logs]


def ray_logs(cluster: TwoNodes) -> list[Path]:
    places = [f"{name}.*" for name in cluster.names] if not isinstance(cluster, LoopbackCluster) else ["ray"]
    folders = [folder for place in places for folder in Path("/tmp").glob(f"{place}/session_2*/logs")]  # noqa: S108
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


@pytest.mark.ray
def test_a_second_replica_is_refused_and_the_first_one_serves_on(tmp_path: Path) -> None:
    """Each would know its own sessions and searches only."""
    gallery = Gallery.open_or_create(tmp_path / "town", GallerySettings(toy_spec(), 10.0, None))
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        from pipeline.service.on_ray import Replica

        deployment: Any = Replica
        bound = [gallery.location.path], None, ["127.0.0.1"], False, 1
        serve.start(http_options={"location": "NoServer"})
        handle = serve.run(deployment.bind(*bound), name="first")
        assert handle.one_time.remote("Anna").result()

        def replicas() -> set[str]:
            names = (one["name"] for one in ray.util.list_named_actors(all_namespaces=True))
            return {name for name in names if name.startswith("SERVE_REPLICA::first#")}

        (before,) = replicas()
        once: dict[str, Any] = {"max_constructor_retry_count": 1}
        scaled: dict[str, Any] = {"num_replicas": None, "autoscaling_config": {"min_replicas": 2, "max_replicas": 3}}
        with pytest.raises(RuntimeError):
            serve.run(deployment.options(**scaled, **once).bind(*bound), name="scaled", route_prefix="/scaled")
        assert "told to have 2" in serve.status().applications["scaled"].deployments["resight"].message
        with pytest.raises(RuntimeError):
            serve.run(deployment.options(num_replicas=2, **once).bind(*bound), name="first")
        assert before in replicas() and handle.one_time.remote("Anna").result(), "what it holds is still there"
        again = serve.run(deployment.bind(*bound[:-1], 2), name="first")  # anew, after the one before
        assert again.one_time.remote("Anna").result()
    finally:
        serve.shutdown()
        ray.shutdown()


def test_a_proxy_on_all_addresses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.service.on_ray import app

    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(UsageError, match=r"^RAY_SERVE_ENABLE_HA_PROXY=1 .* all addresses"):
        app({"galleries": ["/town"], "tokens": "tokens.json"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"galleries": ["/town"]}, "tokens missing or unknown"),
        ({"galleries": ["/town"], "tokens": "t", "nodes": 2}, "nodes missing or unknown"),
        ({"galleries": ["/town"], "tokens": "t", "address": {"nam": "x"}}, "nam missing or unknown"),
        ({"galleries": ["/town"], "tokens": "t", "address": {"host": "0.0.0.0"}}, "others reach"),  # noqa: S104
    ],
)
def test_arguments_of_a_configuration_that_cannot_be_meant_are_said(arguments: dict[str, Any], said: str) -> None:
    from pipeline.service.on_ray import app

    with pytest.raises(UsageError, match=said):
        app(arguments)
