"""A program searches over HTTP and has what a search in its own process gives."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
import uvicorn

import pipeline
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.audit import read_records
from pipeline.gallery.gallery import Gallery
from pipeline.search.run import run as search
from pipeline.service.access import issue
from pipeline.service.app import create_app
from pipeline.service.asking import Service
from pipeline.service.client import Client
from pipeline.settings import FollowSettings, SearchSettings
from tests.service.test_service import anna, done, gallery, service, stranger  # noqa: F401 - fixtures

OF_ONE_SEARCH = ["seconds", "audit_head", "searched_at", "searched_by"]  # and so not the same in two


@pytest.fixture(scope="module")
def client(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:  # noqa: F811
    listening = socket.create_server(("127.0.0.1", 0))
    host = f"127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(create_app(service, [host]), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    assert service.access.tokens_file is not None
    yield Client(f"http://{host}/", issue(service.access.tokens_file, "a program", days=1))
    server.should_exit = True
    thread.join()


def test_a_search_over_http_gives_the_table_of_one_in_this_process(client: Client, gallery: Gallery) -> None:  # noqa: F811
    assert [one["name"] for one in client.galleries()] == ["town"]
    over_http = client.search("town", "id:v001", reason="a test", top=5)
    assert read_records(gallery)[-2]["who"] == read_records(gallery)[-1]["who"] == "a program"  # the search, and looking at it
    here = search(gallery, ["id:v001"], SearchSettings(top=5), reason="a test").table()
    assert over_http.num_rows == 5 and over_http.schema.equals(here.schema)
    same = [name for name in here.column_names if name not in OF_ONE_SEARCH]
    pd.testing.assert_frame_equal(over_http.select(same).to_pandas(), here.select(same).to_pandas())


def test_several_targets_are_one_search(client: Client, gallery: Gallery) -> None:  # noqa: F811
    together = client.search("town", ["id:v001", "id:v002"], reason="a test", top=5)
    (said,) = json.loads(together.schema.metadata[b"searches"])
    assert said["targets"] == ["v001", "v002"] and together.num_rows == 5
    here = search(gallery, ["id:v001", "id:v002"], SearchSettings(top=5), "a test", following=FollowSettings(join_by="nobody"))
    assert together["video_id"].to_pylist() == here.table()["video_id"].to_pylist()


@pytest.mark.parametrize(
    "asked",
    [
        {"top": 5},
        {"target": ["id:v001", "id:v002"], "top": 4, "exact": True},
        {"confirmed": ["v000"], "rejected": ["v002"]},
        {"after": datetime(2026, 3, 1, 12, 3, tzinfo=UTC), "before": "2026-03-01T14:00:00+01:00", "cameras": ["cam0"]},
        {"between": "12:00-12:10", "zone": "UTC", "other_cameras": True},
    ],
)
def test_what_is_asked_of_an_open_gallery_and_over_http_gives_one_table(client: Client, gallery: Gallery, asked: dict) -> None:  # noqa: F811
    asked = {"target": "id:v001", "reason": "a test", **asked}
    over_http = client.search("town", **asked)
    here = pipeline.open_gallery(gallery.location.uri).search(**asked)
    assert over_http.schema.equals(here.schema) and here.num_rows > 0
    same = [name for name in here.column_names if name not in OF_ONE_SEARCH]
    pd.testing.assert_frame_equal(over_http.select(same).to_pandas(), here.select(same).to_pandas())
    said = [json.loads(table.schema.metadata[b"searches"])[0] for table in (over_http, here)]
    for of_table in said:
        for name in OF_ONE_SEARCH:
            del of_table[name]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"after": "yesterday"}, "2026-03-01T12:00:00Z, not 'yesterday'"),
        ({"after": "2026-03-01T12:00:00"}, "a time says its zone"),
        ({"between": "noon"}, "hours of the day"),
        ({"target": "id:v999"}, "has no video 'v999'"),
        ({"box": (1.0, 2.0, 3.0, 4.0)}, "a box or a boxes file goes with one target, a video or a photo"),
    ],
)
def test_what_an_open_gallery_cannot_search_for_is_one_sentence(gallery: Gallery, asked: dict, words: str) -> None:  # noqa: F811
    with pytest.raises(UsageError, match=re.escape(words)):
        pipeline.open_gallery(gallery.location.uri).search(**{"target": "id:v001", "reason": "a test", **asked})


def test_leads_come_in_an_order_and_page_by_page(client: Client) -> None:
    search_id = client.begin("town", "id:v001", reason="a test", top=23)
    by_score = list(client.leads(search_id))
    assert [one["rank"] for one in by_score] == list(range(1, 24))
    by_time = list(client.leads(search_id, sort="time", limit=7))
    assert by_time == sorted(by_score, key=lambda one: one["seen_from"])
    with pytest.raises(UsageError, match="sort"):
        list(client.leads(search_id, sort="beauty"))


def test_a_photo_is_sent(client: Client, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        client.search("town", tmp_path / "absent.jpg")
    (tmp_path / "no.jpg").write_bytes(b"no picture")  # it arrives: what is missing is the made-up gallery's network
    with pytest.raises(PipelineError, match="the search failed: this installation has no backbone toy"):
        client.search("town", tmp_path / "no.jpg", reason="a test")


def test_what_the_service_says_is_said(client: Client) -> None:
    with pytest.raises(UsageError, match="no such gallery"):
        client.search("elsewhere", "id:v001")
    with pytest.raises(PipelineError, match="v999"):
        client.search("town", "id:v999", reason="a test")
    with pytest.raises(UsageError, match=r"sign in|token"):
        Client(client.url.removesuffix("/api/v1"), "another").galleries()
    with pytest.raises(PipelineError, match="cannot be reached"):
        Client("http://127.0.0.1:9", "x").galleries()


def test_the_tables_of_a_search_can_be_fetched(anna) -> None:  # noqa: F811
    search_id = done(anna, top=3)["search_id"]
    for name, kind in (("parquet", "application/vnd.apache.parquet"), ("csv", "text/csv; charset=utf-8")):
        answer = anna.get(f"/api/v1/searches/{search_id}/results.{name}")
        assert answer.status_code == 200 and answer.headers["content-type"] == kind
        assert answer.headers["content-disposition"] == f'attachment; filename="results.{name}"'
    lines = answer.text.splitlines()
    assert len(lines) == 4 and lines[0].startswith("target_id,")
