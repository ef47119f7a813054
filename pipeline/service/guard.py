"""What every request passes before it reaches a route: host, origin and size, and what every answer says to a browser.

A page of another site that makes a browser ask this service is refused by Host (names that lead here by DNS), by Origin and
Sec-Fetch-Site (forged writes), besides the session cookie, which is SameSite=Strict.
"""

import json
import re
from collections.abc import Collection, Sequence
from http import HTTPStatus
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

JSON_BYTES = 1 << 20
UPLOAD_BYTES = 512 << 20
UPLOADS = "/api/v1/targets"
PLAN_BYTES = 16 << 20
PLANS = re.compile(r"/api/v1/galleries/[^/]+/plan")
READS = ("GET", "HEAD", "OPTIONS")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
RANGE_FAULTS = {400: "a range of bytes is bytes=FIRST-LAST, bytes=FIRST- or bytes=-COUNT", 416: "the file has no such bytes"}
MULTIPART = "send the file itself as the body, not a form"
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


class Guard:
    """An ASGI application around another one. hosts: what the Host header may say, with the port where it is not the usual one;
    secure: whether people come by https. only_here: whether only this machine may ask, whoever else reaches what listens.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], secure: bool, only_here: bool = False) -> None:
        self.app, self.only_here = app, only_here
        self.hosts = frozenset(hosts)
        self.origins = frozenset(f"{'https' if secure else 'http'}://{host}" for host in hosts)
        self.headers = HEADERS | ({"strict-transport-security": "max-age=31536000"} if secure else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # there are no websockets here

        refused = 0

        async def guarded_send(message: Message) -> None:
            nonlocal refused
            if refused:  # what Starlette's files say of byte ranges that cannot be: plain text, after the head of the answer
                return
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
                kind = Headers(raw=message["headers"]).get("content-type", "")
                if message["status"] in RANGE_FAULTS and kind.startswith("text/plain"):
                    refused = message["status"]
                    kept = [pair for pair in message["headers"] if pair[0] not in (b"content-type", b"content-length")]
                    await _problem(send, refused, RANGE_FAULTS[refused], kept)
                    return
            await send(message)

        headers = Headers(scope=scope)
        limit = UPLOAD_BYTES if scope["path"] == UPLOADS else PLAN_BYTES if PLANS.fullmatch(scope["path"]) else JSON_BYTES
        refusal = self._refusal(scope, headers, limit)
        if refusal is not None:
            await _problem(guarded_send, *refusal)
            return
        received = 0

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, _too_large(limit))
            return message

        await self.app(scope, limited_receive, guarded_send)

    def _refusal(self, scope: Scope, headers: Headers, limit: int) -> tuple[int, str] | None:
        """(status, sentence) of what is refused unseen."""
        if self.only_here and not ip_address((scope.get("client") or ("0.0.0.0",))[0]).is_loopback:  # noqa: S104 - nobody
            return 403, "without https this service is for its own machine"
        if len(headers.getlist("host")) != 1 or headers["host"].lower() not in self.hosts:
            return 421, "this service does not go by that name"
        site, origins = headers.get("sec-fetch-site"), headers.getlist("origin")
        api, write = scope["path"].startswith("/api/"), scope["method"] not in READS
        if (api and site not in (None, "same-origin", "none")) or any(origin not in self.origins for origin in origins):
            return 403, "another site may not use this one"
        if write and site is None and not origins and "authorization" not in headers:
            return 403, "a change needs to say where it comes from: Origin, Sec-Fetch-Site or a bearer token"
        if scope["path"] == UPLOADS and headers.get("content-type", "").lower().startswith("multipart/"):
            return 415, MULTIPART
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return 400, "Content-Length is a number of bytes"
        return (413, _too_large(limit)) if int(length) > limit else None


def _too_large(limit: int) -> str:
    return f"what is sent here has at most {limit:,} bytes"


async def _problem(send: Send, status: int, sentence: str, more: Sequence[tuple[bytes, bytes]] = ()) -> None:
    body = json.dumps({"title": HTTPStatus(status).phrase, "status": status, "detail": sentence}).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
