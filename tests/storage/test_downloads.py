"""A pinned file is downloaded whole and right, or not at all; what went wrong is one sentence that says what to do."""

import hashlib
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.errors import PipelineError
from pipeline.storage.downloads import PinnedFile, fetch
from tests.conftest import save_toy_backbone

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Answers(BaseHTTPRequestHandler):
    """A server of CONTENT that fails in the way that the path names."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        body = self.server.files.get(self.path, CONTENT)
        if self.path == "/absent":
            return self.send_error(404)
        if self.path.startswith("/moved"):
            body = b""
        self.send_response(200 if body else 302)
        if self.path == "/moved-to-http":
            self.send_header("Location", f"http://{self.headers['Host']}/good")
        elif self.path == "/moved":
            self.send_header("Location", "/good")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path == "/slow":
            for _ in range(40):
                self.wfile.write(body[:1])
                time.sleep(0.05)
        elif self.path == "/cut":
            self.wfile.write(body[:1000])
        elif self.path == "/other":
            self.wfile.write(body[::-1])
        else:
            self.wfile.write(body)
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadingHTTPServer]:
    """An HTTPS server on loopback whose certificate this process trusts."""
    folder = tmp_path_factory.mktemp("certificate")
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoded = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(encoded)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SSL_CERT_FILE", str(folder / "certificate.pem"))
        environment.setenv("no_proxy", "127.0.0.1")
        serving = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        serving.socket = context.wrap_socket(serving.socket, server_side=True)
        serving.asked, serving.files = [], {}
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving
        serving.shutdown()
        serving.server_close()


def pinned(server: ThreadingHTTPServer, path: str, size: int = len(CONTENT)) -> PinnedFile:
    return PinnedFile("weights.onnx", SHA256, size, f"https://127.0.0.1:{server.server_port}{path}")


@pytest.mark.parametrize("path", ["/good", "/moved"])
def test_a_file_is_downloaded_once(server: ThreadingHTTPServer, tmp_path: Path, path: str) -> None:
    file, folder = pinned(server, path), tmp_path / "new" / "cache"
    server.asked.clear()
    assert fetch(file, folder) == folder / "weights.onnx"
    asked = len(server.asked)
    assert fetch(file, folder).read_bytes() == CONTENT
    assert len(server.asked) == asked and [p.name for p in folder.iterdir()] == ["weights.onnx"]


@pytest.mark.parametrize(
    ("path", "size", "words"),
    [
        ("/other", len(CONTENT), "its sha256 is .*, not the pinned one, so it was deleted"),
        ("/absent", len(CONTENT), "the server answers 404"),
        ("/cut", len(CONTENT), "the connection was cut after 1000 of 256000 bytes"),
        ("/good", 5000, "it is larger than the 5000 bytes that are expected"),
        ("/slow", len(CONTENT), "the server is too slow"),
        ("/moved-to-http", len(CONTENT), "it redirects to http://.*, and only https is trusted"),
    ],
)
def test_a_download_that_fails_leaves_nothing(
    server: ThreadingHTTPServer, tmp_path: Path, path: str, size: int, words: str
) -> None:
    file = pinned(server, path, size)
    with pytest.raises(PipelineError, match=words) as caught:
        fetch(file, tmp_path, whole=0.5)
    for part in (file.url, file.sha256, str(tmp_path / "weights.onnx"), "or give the path of any .onnx file"):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == [] and "\n" not in str(caught.value)


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as silent:  # it listens, but nobody serves
        file = PinnedFile("weights.onnx", SHA256, len(CONTENT), f"https://127.0.0.1:{silent.server_port}/good")
        with pytest.raises(PipelineError, match="timed out"):
            fetch(file, tmp_path, timeout=0.3)


def test_without_a_network_the_sentence_says_where_a_copy_goes(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as closed:
        file = PinnedFile("weights.onnx", SHA256, len(CONTENT), f"https://127.0.0.1:{closed.server_port}/good")
    with pytest.raises(PipelineError, match=r"there is no connection \(Connection refused\); copy the file with sha256"):
        fetch(file, tmp_path)
    nowhere = PinnedFile("weights.onnx", SHA256, len(CONTENT), "https://weights.invalid/weights.onnx")
    with pytest.raises(PipelineError, match="there is no connection"):
        fetch(nowhere, tmp_path)


def test_a_copy_in_the_cache_is_found_under_any_name_by_its_content(tmp_path: Path) -> None:
    file = PinnedFile("weights.onnx", SHA256, len(CONTENT), None)
    (tmp_path / "weights.onnx").write_bytes(CONTENT[::-1])
    with pytest.raises(PipelineError, match="has no published address: copy the file with sha256"):
        fetch(file, tmp_path)
    (tmp_path / "my copy.onnx").write_bytes(CONTENT)
    assert fetch(file, tmp_path) == tmp_path / "my copy.onnx"


def test_plain_http_is_not_even_asked(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    file = pinned(server, "/good")
    server.asked.clear()
    with pytest.raises(PipelineError, match="only https is trusted"):
        fetch(PinnedFile(file.name, file.sha256, file.size, file.url.replace("https", "http")), tmp_path)
    assert server.asked == []


def test_a_cache_that_cannot_be_written_is_named(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PipelineError, match=r"the cache .*file/cache cannot be written: .*; set XDG_CACHE_HOME"):
        fetch(pinned(server, "/good"), tmp_path / "file" / "cache")


def test_a_published_backbone_comes_by_name_and_then_without_a_network(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.backbone import published, spec
    from pipeline.backbone.runtime import load_backbone

    data = save_toy_backbone(tmp_path / "toy.onnx").read_bytes()
    server.files["/toy"] = data
    url = f"https://127.0.0.1:{server.server_port}/toy"
    toy = published.Published(
        "toy", PinnedFile("toy.onnx", hashlib.sha256(data).hexdigest(), len(data), url), 8, 4, (0.5,) * 3, (0.5,) * 3, 3
    )
    for module in (spec, published):
        monkeypatch.setattr(module, "PUBLISHED", {"toy": (toy,)})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server.asked.clear()
    found = spec.find_backbone("toy")
    assert found.path is None and server.asked == ["/toy"]
    assert load_backbone(spec.find_backbone("toy"), device="cpu").spec == found and server.asked == ["/toy"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))  # with the gallery's spec alone
    assert load_backbone(found, device="cpu").spec == found and server.asked == ["/toy"] * 2
