"""Of any number of writers of one file, one wins: on disks, in S3 and in Google's store, also when answers are lost."""

import errno
import json
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.storage import faults
from pipeline.storage import location as storage
from pipeline.storage.faults import StorageError
from pipeline.storage.location import resolve
from tests.conftest import add_videos, people_features, toy_spec
from tests.faulty_store import FaultyStore

WRITERS = 8


def claimed(uri: str) -> list[bool]:
    """Whether each of WRITERS that begin at once has won; they write different contents."""
    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(lambda number: resolve(uri).create(b"%d" % number), range(WRITERS)))


@pytest.mark.parametrize("fault", [None, "answer lost", "throttled", "refused", "half an answer"])
def test_one_of_many_writers_of_an_object_wins_and_knows_it(store: FaultyStore, fault: str | None) -> None:
    for number in range(4):
        uri = f"s3://bucket/claims/{fault}/{number}?endpoint_override={store.endpoint}&region=us-east-1"
        with store.failing(*([fault] if fault else []), rate=0.4, seed=number):
            won = claimed(uri)
        assert sum(won) == 1 and resolve(uri).read_bytes() == b"%d" % won.index(True)


def test_writers_of_a_disk_without_hard_links_wait_for_each_other(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2, initializer=_without_links) as pool:
        won = pool.map(_claim, [(str(tmp_path / "version"), number) for number in range(16)])
    assert sum(won) == 1 and resolve(tmp_path / "version").read_bytes() == b"%d" % won.index(True)
    assert resolve(tmp_path).names() == ["version"]


def _without_links() -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    os.link = refuse  # type: ignore[assignment]


def _claim(task: tuple[str, int]) -> bool:
    path, number = task
    return resolve(path).create(b"%d" % number)


def test_a_store_that_does_not_know_the_condition_takes_no_gallery(store: FaultyStore) -> None:
    uri = f"s3://bucket/ignorant?endpoint_override={store.endpoint}&region=us-east-1"
    gallery = Gallery.open_or_create(uri, GallerySettings(toy_spec(), 10.0, None))
    videos = people_features(1, 1, 24, seed=1)
    store.ignored = ("if-none-match",)
    try:
        with pytest.raises(PipelineError, match=r"does not know conditional writes \(If-None-Match\)"):
            add_videos(gallery, videos)
    finally:
        store.ignored = ()
    assert len(gallery.snapshot().videos) == 0
    add_videos(gallery, videos)
    assert len(Gallery.open(uri).snapshot().videos) == 1


def test_a_bucket_that_may_not_be_written_is_one_sentence(store: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = f"s3://nobucket/a?endpoint_override={store.endpoint}&region=us-east-1"
    with pytest.raises(StorageError, match=r"cannot write s3://nobucket/a.*there is no such file, folder or bucket") as refused:
        resolve(missing).create(b"1")
    assert refused.value.kind == "missing"
    for module in (storage, faults):  # what asks, and what says how often
        monkeypatch.setattr(module, "S3_TRIES", 2)
    with store.failing("error", rate=1.0), pytest.raises(StorageError, match="after 2 tries") as refused:
        resolve(f"s3://bucket/a?endpoint_override={store.endpoint}&region=us-east-1").create(b"1")
    assert refused.value.kind == "unavailable"


class _GoogleStore(BaseHTTPRequestHandler):
    """As much of Google's JSON interface as a conditional upload needs."""

    objects: dict[str, bytes]
    asked: list[str]
    lock = threading.Lock()

    def do_POST(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        name = f"{unquote(parts.path.split('/')[5])}/{query['name'][0]}"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(parts.query)
        with self.lock:
            taken = query.get("ifGenerationMatch") == ["0"] and name in self.objects
            if not taken:
                self.objects[name] = body
        answer = json.dumps({"error": {"message": "conditionNotMet"}} if taken else {"name": name}).encode()
        self.send_response(412 if taken else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


def test_an_object_of_google_s_store_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = type("Handler", (_GoogleStore,), {"objects": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        options = f"?endpoint_override=127.0.0.1:{server.server_address[1]}&scheme=http"
        location = resolve(f"gs://anonymous@bucket/a b/é.json{options}")
        monkeypatch.setattr(storage.Location, "read_bytes", lambda self: handler.objects[self.path])  # reading is pyarrow's
        assert location.create(b"1") is True
        assert location.create(b"2") is False
        assert handler.objects == {"bucket/a b/é.json": b"1"} and all("ifGenerationMatch=0" in one for one in handler.asked)
        assert location.keeps_existing(b"1")
    finally:
        server.shutdown()
        server.server_close()
