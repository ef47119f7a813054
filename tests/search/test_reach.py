"""Where uris of data may lead: below a gallery's roots, and to endpoints that the operator named. Others see no request."""

import csv
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.catalog.inputs import read_catalog
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.source_hash import source_hash
from pipeline.decoding.video import Rejected, VideoInfo
from pipeline.errors import UsageError
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.gallery.video_ref import VideoRef
from pipeline.search.evidence import SourcePictures
from pipeline.storage.faults import StorageError
from pipeline.storage.location import resolve
from pipeline.storage.reach import Reach
from pipeline.storage.uris import endpoint_of
from tests.conftest import toy_spec
from tests.decoding.test_video import write_video

SMALL = Sampling(height=32, width=16)


@pytest.fixture
def stranger() -> Iterator[tuple[str, list[str]]]:
    """The options of a server that nobody named, and the requests that it saw; it has nothing."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 - the name is http.server's

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"?endpoint_override=http://127.0.0.1:{server.server_port}&region=us-east-1", seen
    server.shutdown()
    server.server_close()


def manifest(path: Path, *uris: str) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["uri"], *([uri] for uri in uris)])
    return path


def refused(uri: str, sampling: Sampling) -> str | None:
    """The reason for which a decoder's child refuses a source."""
    with Decoder(sampling) as decoder:
        reasons = [event.reason for event in decoder.events(uri) if isinstance(event, Rejected)]
    return reasons[0] if reasons else None


def test_an_endpoint_that_only_data_names_sees_no_request(
    s3_options: str, stranger: tuple[str, list[str]], tmp_path: Path
) -> None:
    options, seen = stranger
    trap, url = f"s3://bucket/v.mp4{options}", options.split("=")[1].removesuffix("&region")
    listed = resolve(f"s3://bucket/list/m.csv{s3_options}")
    listed.write_atomically(manifest(tmp_path / "m.csv", trap, f"s3://bucket/w.mp4{s3_options}").read_bytes())
    rows = {row["uri"]: row for row in read_catalog(listed.uri).table.to_pylist()}
    assert [rows[trap]["reject_reason"], rows[f"s3://bucket/w.mp4{s3_options}"]["reject_reason"]] == ["unnamed_endpoint", None]
    assert "--endpoint" in rows[trap]["reject_message"]
    own = Reach.of(listed.uri)
    assert refused(trap, replace(SMALL, endpoints=own.endpoints)) == "unnamed_endpoint"
    pictures = SourcePictures(reach=own)
    assert pictures(VideoRef("v", trap), [0]) == {}
    pictures.close()
    with pytest.raises(StorageError, match=f"names the endpoint {url}"):
        source_hash(trap, own)
    assert seen == []

    named = Reach.of(listed.uri, endpoints=[url])  # and the server would have seen one
    assert [row["reject_reason"] for row in read_catalog(listed.uri, endpoints=[url]).table.to_pylist()] == [None, None]
    assert refused(trap, replace(SMALL, endpoints=named.endpoints)) == "missing"
    assert seen


def test_the_endpoint_of_a_commands_own_argument_counts(s3_options: str, tmp_path: Path) -> None:
    video = resolve(f"s3://bucket/own/v.mp4{s3_options}")
    video.write_atomically(write_video(tmp_path / "v.mp4", frames=5).read_bytes())
    catalog = read_catalog(f"s3://bucket/own{s3_options}")
    assert catalog.table["reject_reason"].null_count == 1
    with Decoder(replace(SMALL, endpoints=catalog.reach.endpoints)) as decoder:
        assert any(isinstance(event, VideoInfo) for event in decoder.events(video.uri))


@pytest.mark.parametrize(
    ("options", "endpoint"),
    [
        ("", None),
        ("?region=eu-west-1", None),
        ("?scheme=http", "http://"),  # signed requests in the clear
        ("?endpoint_override=Store.example:9000/", "https://store.example:9000"),
        ("?endpoint_override=store.example&scheme=http", "http://store.example"),
        ("?region=evil.example/", "https:// with the region evil.example/"),
        ("?tls_ca_file_path=/tmp/ca.pem", "https:// with the certificates of /tmp/ca.pem"),
    ],
)
def test_an_endpoint_is_all_that_decides_who_gets_signed_requests(options: str, endpoint: str | None) -> None:
    assert endpoint_of(f"s3://bucket/a{options}") == endpoint
    assert (Reach().refusal(f"s3://bucket/a{options}") is None) == (endpoint is None)


def test_an_endpoint_flag_that_is_no_url_is_refused() -> None:
    with pytest.raises(UsageError, match="--endpoint is a URL"):
        Reach.of(endpoints=["store.example"])


@pytest.fixture
def rooted(tmp_path: Path) -> Gallery:
    """A gallery whose first ingest named the root `in`, which holds a video and a link to one in `out`."""
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / "v.mp4", frames=5)
    (tmp_path / "in" / "link.mp4").symlink_to(tmp_path / "out" / "v.mp4")
    settings = GallerySettings(toy_spec(), 10.0, None, (str(tmp_path / "in"),))
    return Gallery.open_or_create(tmp_path / "gallery", settings)


def test_roots_stay_with_the_gallery_and_a_later_ingest_may_only_narrow_them(rooted: Gallery, tmp_path: Path) -> None:
    place, root = rooted.location.uri, str(tmp_path / "in")
    assert Gallery.open(place).settings.roots == (root,)
    assert json.loads((tmp_path / "gallery" / "gallery.json").read_bytes())["format"] == 3  # releases without roots keep off
    for asked in ((), (f"{root}/cam7",)):
        again = Gallery.open_or_create(place, replace(rooted.settings, roots=asked))
        assert again.settings.roots == (root,) and again.narrowed(asked) == (asked or (root,))
    with pytest.raises(UsageError, match="lies outside the roots of"):
        Gallery.open_or_create(place, replace(rooted.settings, roots=(str(tmp_path / "out"),)))
    assert Gallery.open(place).settings.roots == (root,)


def test_a_gallery_without_roots_is_as_it_was_and_takes_roots_for_one_ingest(tmp_path: Path) -> None:
    gallery = Gallery.open_or_create(tmp_path / "g", GallerySettings(toy_spec(), 10.0, None))
    assert gallery.narrowed(()) == () and gallery.narrowed(("/a",)) == ("/a",)
    assert gallery.reach().refusal("/anywhere/a.mp4") is None
    Gallery.open_or_create(tmp_path / "g", replace(gallery.settings, roots=("/a",)))
    assert Gallery.open(tmp_path / "g").settings.roots == ()


@pytest.mark.parametrize("name", ["out/v.mp4", "in/link.mp4"])
def test_pictures_and_hashes_of_a_gallery_stay_below_its_roots(rooted: Gallery, tmp_path: Path, name: str) -> None:
    reach, outside, inside = rooted.reach(), str(tmp_path / name), str(tmp_path / "in" / "v.mp4")
    pictures = SourcePictures(reach=reach)
    assert list(pictures(VideoRef("v", inside), [0])) == [0] and pictures(VideoRef("w", outside), [0]) == {}
    pictures.close()
    assert source_hash(inside, reach) == source_hash(inside)
    with pytest.raises(StorageError, match="outside the allowed roots"):
        source_hash(outside, reach)


def test_hashes_do_not_follow_an_images_link_out_of_the_roots(tmp_path: Path) -> None:
    (tmp_path / "in" / "images").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "in" / "images" / "1.jpg").symlink_to(tmp_path / "secret.jpg")
    reach = Reach.of(roots=[tmp_path / "in"])
    for uri in (str(tmp_path / "in" / "images"), str(tmp_path / "in" / "images" / "*.jpg")):
        assert source_hash(uri).startswith("images:")
        with pytest.raises(StorageError, match="outside the allowed roots"):
            source_hash(uri, reach)
