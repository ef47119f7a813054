"""A service's galleries, searched by a program: the same table of leads as a search in one's own process gives.

client = Client("http://127.0.0.1:8000", token)          # a token of jobs.token
table = client.search("town", "person.mp4", reason="missing person", case="2026-17")
table = pipeline.open_gallery("galleries/town").search("person.mp4", reason="missing person", case="2026-17")  # here
"""

import io
import math
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import requests

from pipeline.errors import PipelineError, UsageError

WAIT = 20  # seconds that one request waits for the end of a search
BUSY = 429


class Client:
    """url: where the service is, without the path. token: of jobs.token, kept in memory only. verify: False leaves the service's
    certificate unchecked, a path names the certificates to trust, as `requests` has it.
    """

    def __init__(self, url: str, token: str, verify: bool | str = True) -> None:
        self.url = f"{url.rstrip('/')}/api/v1"
        self._session = requests.Session()
        self._session.headers["authorization"] = f"Bearer {token}"
        self._session.verify = verify
        self._session.trust_env = False  # no credentials of a .netrc in place of the token's

    def galleries(self) -> list[dict[str, Any]]:
        """The galleries that may be searched, each with name, videos, index_version and what a search must say."""
        return self._json("GET", "/galleries")

    def search(
        self,
        gallery: str,
        target: str | Path | Sequence[str | Path],
        reason: str | None = None,
        case: str | None = None,
        timeout: float = 600.0,
        **asked: Any,
    ) -> pa.Table:
        """Search a gallery for the person that a target shows; returns the leads as `pipeline.search.run.Answer.table` does.

        target: a file of this machine, which is sent, or id:VIDEO_ID of the gallery; several of them show one person, who is
        searched for by all of them together. timeout: seconds until it is cancelled.
        asked: what else the service takes: top, exact, cameras, after, before, ... (its OpenAPI description), with the same
        names as `pipeline.open_gallery(...).search`. Raises UsageError for what the service refuses, PipelineError where it fails
        or cannot be reached.
        """
        search_id = self.begin(gallery, target, reason, case, timeout, **asked)
        return pq.read_table(io.BytesIO(self._asked("GET", f"/searches/{search_id}/results.parquet").content))

    def begin(
        self,
        gallery: str,
        target: str | Path | Sequence[str | Path],
        reason: str | None = None,
        case: str | None = None,
        timeout: float = 600.0,
        **asked: Any,
    ) -> str:
        """As `search`, but returns the search's id once it is done: `leads` gives what was found in other orders."""
        first, *further = [self._named(one) for one in ([target] if isinstance(target, str | Path) else target)]
        fields = {"gallery": gallery, "target": first, "reason": reason, "case": case, **asked}
        fields = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in fields.items()}
        fields |= {"further_targets": [{"target": name} for name in further]} if further else {}
        until = time.monotonic() + timeout
        state = self._json("POST", "/searches", until=until, json=fields, headers={"prefer": f"wait={int(min(WAIT, timeout))}"})
        search = state["search_id"]
        while state["state"] in ("queued", "running"):
            if time.monotonic() >= until:
                self._json("DELETE", f"/jobs/{search}")
                raise PipelineError(f"the search took more than {timeout:g} s and was cancelled")
            state = self._json("GET", f"/searches/{search}", params={"wait": min(WAIT, max(0.0, until - time.monotonic()))})
        if state["state"] != "done":
            raise PipelineError(f"the search {state['state']}: {state['error'] or 'somebody cancelled it'}")
        return search

    def leads(self, search_id: str, sort: str = "score", limit: int = 100) -> Iterator[dict[str, Any]]:
        """The leads of a search that is done, as `GET /searches/{search_id}/leads` has them, in an order: score, time or camera.

        limit: of a page, which is fetched when its first lead is asked for. Raises as `search` does.
        """
        cursor: dict[str, int] = {}
        while True:
            page = self._json("GET", f"/searches/{search_id}/leads", params={"sort": sort, "limit": limit, **cursor})
            yield from page["leads"]
            if page["following"] is None:
                return
            cursor = {"cursor": page["following"]}

    def _named(self, target: str | Path) -> str:
        """A target as the service knows it; files are sent."""
        if isinstance(target, str) and target.startswith(("id:", "upload:")):
            return target
        file = Path(target)
        try:
            with file.open("rb") as content:
                answer = self._asked("POST", "/targets", params={"name": file.name}, data=content)
        except OSError as error:
            if isinstance(error, requests.RequestException):
                raise
            raise UsageError(f"{file} cannot be read: {error.strerror or error}") from error
        return f"upload:{answer.json()['target_id']}"

    def _json(self, method: str, path: str, **more: Any) -> Any:
        return self._asked(method, path, **more).json()

    def _asked(self, method: str, path: str, until: float = math.inf, **more: Any) -> requests.Response:
        """until: of time.monotonic(), to which it waits where the service is busy."""
        while True:
            try:
                answer = self._session.request(method, self.url + path, timeout=WAIT + 40, allow_redirects=False, **more)
            except requests.RequestException as error:
                raise PipelineError(f"{self.url} cannot be reached: {type(error).__name__}") from error
            after = float(answer.headers.get("retry-after", 1))
            if answer.status_code != BUSY or "data" in more or time.monotonic() + after > until:
                break
            time.sleep(after)
        if answer.ok:
            return answer
        try:
            said = str(answer.json()["detail"])
        except (ValueError, KeyError, TypeError):
            said = f"it answers {answer.status_code}"
        raise (PipelineError if answer.status_code >= 500 else UsageError)(f"{self.url}: {said}")
