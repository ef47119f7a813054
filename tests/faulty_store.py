"""A proxy in front of an object store's HTTP that throttles, fails, dawdles and cuts connections at seeded moments."""

import contextlib
import http.client
import random
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>%s</Message>'
    b"<RequestId>1</RequestId><HostId>1</HostId></Error>"
)
FAULTS = ("throttled", "error", "slow", "refused", "half an answer", "answer lost")


class FaultyStore:
    """Forwards to `backend` (host, port). With faults set, each request meets one of them with the probability `rate`.

    throttled: 503 SlowDown. error: 500 InternalError. slow: answered after `delay` seconds. refused: cut before anything is done.
    half an answer: done, but the answer breaks off. answer lost: done, and cut before the answer. counts: fault -> how often.
    """

    def __init__(self, backend: tuple[str, int], host: str = "127.0.0.1") -> None:
        self.backend, self.host = backend, host
        self.faults: tuple[str, ...] = ()
        self.ignored: tuple[str, ...] = ()  # headers that the store does not know, in small letters
        self.rate, self.delay = 0.0, 1.0
        self.counts: Counter[str] = Counter()
        self.requests = 0
        self.sent: Counter[str] = Counter()  # bytes of answers, by path
        self.sent_to: Counter[tuple[str, str]] = Counter()  # the same bytes, by the client's address and path
        self.asked: Counter[str] = Counter()  # requests, by path and query
        self._chance, self._lock = random.Random(0), threading.Lock()
        self._server = ThreadingHTTPServer((host, 0), type("Handler", (_Handler,), {"store": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self._server.server_address[1]}"

    @contextlib.contextmanager
    def failing(self, *faults: str, rate: float = 0.3, seed: int = 0, delay: float = 1.0) -> Any:
        """Within the block, requests meet these faults; the counts start anew."""
        assert set(faults) <= set(FAULTS)
        self._chance = random.Random(seed)
        self.counts, self.requests = Counter(), 0
        self.faults, self.rate, self.delay = faults, rate, delay
        try:
            yield self
        finally:
            self.faults = ()

    def fault(self) -> str | None:
        with self._lock:
            self.requests += 1
            if not self.faults or self._chance.random() >= self.rate:
                return None
            chosen = self._chance.choice(self.faults)
            self.counts[chosen] += 1
            return chosen

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: FaultyStore

    def _forward(self) -> None:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.headers.replace_header("Expect", "")
        body = self._body()
        fault = self.store.fault()
        if fault == "refused":
            self._cut()
            return
        if fault in ("throttled", "error"):
            status, code, words = {
                "throttled": (503, b"SlowDown", b"Please reduce your request rate."),
                "error": (500, b"InternalError", b"We encountered an internal error. Please try again."),
            }[fault]
            self._answer(status, [("Content-Type", "application/xml")], SLOW_DOWN % (code, words))
            return
        if fault == "slow":
            time.sleep(self.store.delay)
        ignored = ("transfer-encoding", "expect", *self.store.ignored)
        connection = http.client.HTTPConnection(*self.store.backend, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ignored}
        if body:
            headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body or None, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault == "answer lost":
            self._cut()
            return
        dropped = ("transfer-encoding", "connection", "content-length")
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in dropped]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        with self.store._lock:
            self.store.sent[self.path.partition("?")[0]] += len(content)
            self.store.sent_to[self.client_address[0], self.path.partition("?")[0]] += len(content)
            self.store.asked[self.path] += 1
        self._answer(answer.status, kept, content, length, half=fault == "half an answer")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward  # noqa: N815

    def _body(self) -> bytes:
        """The request's body as it came; a chunked one without its chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, length: str | None = None, half: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if half else content)
        if half:
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        pass
