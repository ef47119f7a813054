"""A service under load: one person and several at once, through HTTP, and what the process holds as time goes by.

    python -m benchmarks.service_load --gallery GALLERY [--people 8] [--minutes 2]

Each person searches for a random video of the gallery and fetches the leads, again and again, not more often than the service
lets one person (60 a minute). A latency is from the question to the leads. Memory is that of the service and its children, their
own and with mapped files; open files are the service's own. The last line is the same as JSON.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import requests
import typer

from benchmarks.process_figures import machine, memory_of_tree
from jobs.command_line import run
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery
from pipeline.service.access import issue

APART_S = 1.02  # between two searches of one person
ALONE = 40  # searches
WARM_UP = 10


class Somebody:
    """A person's program, with a token of their own."""

    def __init__(self, address: str, token: str, gallery: str) -> None:
        self.address, self.gallery, self.seconds = f"{address}/api/v1", gallery, list[float]()
        self.refused: dict[int, int] = {}
        self.session = requests.Session()
        self.session.headers["authorization"] = f"Bearer {token}"

    def search(self, video_id: str) -> None:
        """One search, from the question to the leads; how long it took is kept."""
        began = time.perf_counter()
        asked = {"gallery": self.gallery, "target": f"id:{video_id}", "reason": "a benchmark"}
        answer = self.session.post(f"{self.address}/searches", json=asked, timeout=60)
        if answer.status_code != 202:
            self.refused[answer.status_code] = self.refused.get(answer.status_code, 0) + 1
            return
        search = answer.json()["search_id"]
        state = self.session.get(f"{self.address}/searches/{search}", params={"wait": 30}, timeout=60).json()
        leads = self.session.get(f"{self.address}/searches/{search}/leads", timeout=60)
        if state["state"] != "done" or not leads.ok or not leads.json()["leads"]:
            raise PipelineError(f"a search ended otherwise: {state}")
        self.seconds.append(time.perf_counter() - began)

    def go_on(self, videos: list[str], until: float) -> None:
        """Search for these videos in turn until a moment of time.monotonic()."""
        for video_id in videos:
            began = time.monotonic()
            if began >= until:
                return
            self.search(video_id)
            time.sleep(max(0.0, began + APART_S - time.monotonic()))


def load(
    gallery: Annotated[Path, typer.Option(help="A gallery with an index, on a local disk.")],
    people: Annotated[int, typer.Option(help="People at once.")] = 8,
    minutes: Annotated[float, typer.Option(help="How long they go on.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Of the videos that are searched for.")] = 0,
) -> None:
    """Measure a service of this machine."""
    ids = np.array(Gallery.open(gallery).snapshot().videos["video_id"].to_pylist(), object)
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder, "tokens.json")
        token = [issue(tokens, f"person {number}", days=1) for number in range(people)]
        command = [sys.executable, "-m", "jobs.serve", "--gallery", str(gallery), "--port", "0", "--tokens", str(tokens)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                figures = _measured(process, token, ids, minutes, np.random.default_rng(seed))
            finally:
                process.terminate()
    print(f"{len(ids)} videos, {machine()}")
    for name in ("alone", "together"):
        p50, p95, most = (f"{figures[name][one]:.3f} s" for one in ("p50", "p95", "most"))
        print(f"{name:<10} {figures[name]['searches']:>6} searches, p50 {p50}, p95 {p95}, slowest {most}")
    print(f"refused    {figures['refused'] or 'none'}")
    for one in figures["held"]:
        own, total = (f"{one[part] / 2**20:>8.0f} MiB" for part in ("anonymous", "total"))
        print(f"{one['minute']:>6.1f} min {own} own {total} {one['files']:>5} files")
    print(json.dumps({"machine": machine(), "videos": len(ids), "people": people, **figures}))


def _measured(process: Any, token: list[str], ids: np.ndarray, minutes: float, rng: np.random.Generator) -> dict[str, Any]:
    address = process.stdout.readline().split(": ", 1)[1].split("/#")[0]
    name = requests.get(f"{address}/api/v1/galleries", headers={"authorization": f"Bearer {token[0]}"}, timeout=60).json()[0][
        "name"
    ]
    crowd = [Somebody(address, one, name) for one in token]
    count = int(minutes * 60 / APART_S) + 2
    first = crowd[0]
    first.go_on(rng.choice(ids, WARM_UP).tolist(), time.monotonic() + 600)
    first.seconds.clear()
    first.go_on(rng.choice(ids, ALONE).tolist(), time.monotonic() + 600)
    figures: dict[str, Any] = {"alone": _quantiles(first.seconds)}
    first.seconds.clear()
    began = time.monotonic()
    until = began + 60 * minutes
    threads = [threading.Thread(target=one.go_on, args=(rng.choice(ids, count).tolist(), until)) for one in crowd]
    for thread in threads:
        thread.start()
    held = []
    while time.monotonic() < until:
        held.append({"minute": (time.monotonic() - began) / 60, **_held(process.pid)})
        time.sleep(max(0.1, min(60 * minutes / 10, until - time.monotonic())))
    for thread in threads:
        thread.join()
    held.append({"minute": (time.monotonic() - began) / 60, **_held(process.pid)})
    refused: dict[int, int] = {}
    for one in crowd:
        refused = {code: refused.get(code, 0) + one.refused.get(code, 0) for code in {*refused, *one.refused}}
    return figures | {"together": _quantiles([s for one in crowd for s in one.seconds]), "refused": refused, "held": held}


def _held(process: int) -> dict[str, int]:
    return {**memory_of_tree(process), "files": sum(1 for _ in Path(f"/proc/{process}/fd").iterdir())}


def _quantiles(seconds: list[float]) -> dict[str, float]:
    return {
        "searches": len(seconds),
        "p50": float(np.median(seconds)),
        "p95": float(np.quantile(seconds, 0.95)),
        "most": max(seconds),
    }


if __name__ == "__main__":
    run(load)
