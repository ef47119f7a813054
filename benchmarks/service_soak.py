"""People who work in a service for hours, and what it holds as time goes by.

    python -m benchmarks.service_soak --gallery GALLERY [--people 4] [--minutes 60]

Each person goes through an investigation again and again: begins a case, searches for a random video of the gallery or brings a
clip of one along, looks at leads, evidence, pictures, clips (in stretches, as players ask for them) and the timeline, decides,
refines, cancels a search, hands the case over and checks the sums of the package; a reviewer confirms. Meanwhile the index is
built anew every so often, which the service takes up, and the audit log is verified. The gallery needs its sources and no
policy; cases, records and index versions are added to it.

Memory is that of the service and its children: their own, without mapped files. Growth is a line through the second half of the
time, when what is kept (searches, pictures) is full. The last line is JSON; exit code 1 for any answer of 500 or more, or another
that was not meant.
"""

import hashlib
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
import psutil
import requests
import typer

from benchmarks.process_figures import machine, memory_of_tree
from jobs.command_line import run
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery
from pipeline.service.access import issue

TIMEOUT_S = 120
BETWEEN_LOOKS_S = 0.4  # a person's, between two looks at something
LEADS_LOOKED_AT = 4  # of a search
BUSY = 429


class Investigator:
    """A person's program. codes: how often each answer came, by what was asked; seconds: how long each took."""

    def __init__(self, address: str, token: str, reviewer: str, gallery: str, videos: list[str], name: str, seed: int) -> None:
        self.api, self.gallery, self.videos, self.name = f"{address}/api/v1", gallery, videos, name
        self.rng = np.random.default_rng(seed)
        self.codes: Counter[tuple[str, int]] = Counter()
        self.seconds: dict[str, list[float]] = {}
        self.faults: list[str] = []
        self.headers = {"authorization": f"Bearer {token}"}
        self.of_reviewer = {"authorization": f"Bearer {reviewer}"}
        self.session = requests.Session()
        self.session.trust_env = False

    def go_on(self, until: float) -> None:
        """One investigation after the other, until a moment of time.monotonic()."""
        number = 0
        while time.monotonic() < until:
            try:
                self.investigate(f"{self.name}-{number}", until)
            except (PipelineError, requests.RequestException, KeyError, ValueError) as error:
                self.faults.append(f"{self.name}, case {number}: {type(error).__name__}: {error}")
            number += 1

    def asked(self, what: str, method: str, path: str, meant: tuple[int, ...] = (200, 201, 202, 204), **more: Any) -> Any:
        """An answer. Raises PipelineError for one that was not meant; who is told to wait waits."""
        more = {"headers": self.headers, "timeout": TIMEOUT_S, **more}
        while True:
            began = time.perf_counter()
            answer = self.session.request(method, self.api + path, **more)
            self.codes[what, answer.status_code] += 1
            self.seconds.setdefault(what, []).append(time.perf_counter() - began)
            if answer.status_code != BUSY:
                break
            time.sleep(float(answer.headers.get("retry-after", 1)))
        if answer.status_code not in meant:
            raise PipelineError(f"{method} {path} gave {answer.status_code}: {answer.text[:200]}")
        time.sleep(BETWEEN_LOOKS_S * self.rng.uniform(0.5, 1.5))
        return answer

    def investigate(self, case: str, until: float) -> None:
        """A case from its beginning to the package, with five searches."""
        begun = {"gallery": self.gallery, "name": case, "title": "a soak", "reason": "a benchmark"}
        self.asked("begin a case", "POST", "/cases", json=begun)
        search = ""
        for number in range(5):
            if time.monotonic() > until:
                return
            search = self.search(self.target(number), case)
            self.look(search, case)
        self.asked("results", "GET", f"/searches/{search}/results.parquet")
        self.asked("path", "GET", f"/cases/{case}/path")
        self.cancel(case)
        self.hand_over(case)

    def target(self, number: int) -> str:
        """A video of the gallery, by id; each fifth one as a clip that is brought along."""
        video = str(self.rng.choice(self.videos))
        if number % 5 != 4:
            return f"id:{video}"
        clip = self.asked("clip", "GET", f"{self.of_video(video)}/clip.mp4?view=crop").content
        taken = self.asked("bring a clip", "POST", "/targets?name=soak.mp4", data=clip).json()
        return f"upload:{taken['target_id']}"

    def of_video(self, video: str) -> str:
        return f"/galleries/{quote(self.gallery)}/videos/{quote(video)}"

    def search(self, target: str, case: str) -> str:
        asked = {"gallery": self.gallery, "target": target, "case": case, "reason": "a benchmark", "whole_picture": True}
        search: str = self.asked("begin a search", "POST", "/searches", json=asked).json()["search_id"]
        self.ended(search)
        return search

    def ended(self, search: str) -> None:
        state = self.asked("wait for a search", "GET", f"/searches/{search}?wait=30").json()
        if state["state"] != "done":
            raise PipelineError(f"search {search} is {state['state']}: {state['error']}")

    def look(self, search: str, case: str) -> None:
        """At the leads, one by one, and decide; then refine by what was said to be the same person."""
        leads = self.asked("leads", "GET", f"/searches/{search}/leads").json()["leads"]
        for view in ("distribution", "timeline"):
            self.asked(view, "GET", f"/searches/{search}/{view}")
        same = []
        for lead in leads[:LEADS_LOOKED_AT]:
            rank, video = lead["rank"], lead["video_id"]
            shares = self.asked("evidence", "GET", f"/searches/{search}/leads/{rank}/evidence").json()["shares"]
            self.asked("picture", "GET", f"/searches/{search}/leads/{rank}/frames/{shares[0]['frame']}.jpg")
            clip, part = f"{self.of_video(video)}/clip.mp4?view=crop&search={search}", self.headers | {"range": "bytes=0-4095"}
            self.asked("part of a clip", "GET", clip, (200, 206), headers=part)
            self.asked("clip", "GET", clip)
            self.asked("boxes", "GET", f"{self.of_video(video)}/boxes")
            said = str(self.rng.choice(["same", "same", "different", "unsure"]))
            decision = {"decision": said, "search": search}
            place = f"/cases/{case}/decisions/{quote(video)}"
            self.asked("decide", "PUT", place, json=decision, headers=self.headers | {"if-match": "*"})
            if said == "same":
                same.append(video)
                self.confirm(case, video)
        if same:
            again = self.asked("refine", "POST", f"/searches/{search}/refine", json={"confirmed": same, "hidden": []}).json()
            self.ended(again["search_id"])

    def confirm(self, case: str, video: str) -> None:
        judged = self.asked("judged", "GET", f"/cases/{case}/decisions/{quote(video)}", headers=self.of_reviewer).json()
        seen = {"video_id": video, "tag": judged["tag"], "decision": "same"}
        self.asked("confirm", "POST", f"/cases/{case}/confirmations", (201, 409), json=seen, headers=self.of_reviewer)

    def cancel(self, case: str) -> None:
        """Begin a search and follow it by its events, after it was cancelled."""
        asked = {"gallery": self.gallery, "target": self.target(0), "case": case, "reason": "a benchmark", "exact": True}
        search = self.asked("begin a search", "POST", "/searches", json=asked).json()["search_id"]
        self.asked("cancel", "DELETE", f"/searches/{search}")
        self.asked("events", "GET", f"/jobs/{search}/events")

    def hand_over(self, case: str) -> None:
        """The package of a case, with its sums checked."""
        found = self.asked("case", "GET", f"/cases/{case}").json()
        if not any(one["decision"] == "same" for one in found["leads"]):
            return
        export = self.asked("begin an export", "POST", f"/cases/{case}/exports", json={"reason": "a benchmark"}).json()
        until = time.monotonic() + TIMEOUT_S
        while export["state"] in ("queued", "running") and time.monotonic() < until:
            time.sleep(0.5)
            export = self.asked("export", "GET", f"/cases/{case}/exports/{export['export_id']}").json()
        package = self.asked("package", "GET", f"/cases/{case}/exports/{export['export_id']}/package.zip").content
        with zipfile.ZipFile(io.BytesIO(package)) as files:
            sums = next(name for name in files.namelist() if name.endswith("SHA256SUMS"))
            for line in files.read(sums).decode().splitlines():
                digest, _, name = line.partition("  ")
                if hashlib.sha256(files.read(sums.removesuffix("SHA256SUMS") + name)).hexdigest() != digest:
                    raise PipelineError(f"{name} in the package of {case} is not what its sum says")


def soak(
    gallery: Annotated[Path, typer.Option(help="A gallery with an index and its sources, on a local disk; it is added to.")],
    people: Annotated[int, typer.Option(help="People at once.", min=1)] = 4,
    minutes: Annotated[float, typer.Option(help="How long they go on.", min=1)] = 60.0,
    rebuild_minutes: Annotated[float, typer.Option(help="The index is built anew after so long, again and again.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of what they do.")] = 0,
) -> None:
    """Let them work, and say what the service held."""
    videos = Gallery.open(gallery).snapshot().videos["video_id"].to_pylist()
    marked = f"soak{int(time.time())}"  # of this run's cases
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder, "tokens.json")
        issued = [issue(tokens, f"person {number}", days=2) for number in range(people)]
        reviewer, admin = issue(tokens, "reviewer", 2, "reviewer"), issue(tokens, "admin", 2, "admin")
        command = [sys.executable, "-m", "jobs.serve", "--gallery", str(gallery), "--port", "0", "--tokens", str(tokens)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                address = process.stdout.readline().split(": ", 1)[1].split("/#")[0]  # type: ignore[union-attr]
                of_admin = Investigator(address, admin, admin, "", videos, "admin", seed)
                name = of_admin.gallery = of_admin.asked("galleries", "GET", "/galleries").json()[0]["name"]
                crowd = [
                    Investigator(address, token, reviewer, name, videos, f"{marked}-{number}", seed + number + 1)
                    for number, token in enumerate(issued)
                ]
                versions = _built_anew(gallery, of_admin, minutes, rebuild_minutes)
                held = _held_while(crowd, versions, psutil.Process(process.pid), minutes)
            finally:
                process.terminate()
    _say(crowd, of_admin, held, len(videos), minutes)


def _built_anew(gallery: Path, admin: Investigator, minutes: float, every: float) -> Callable[[], None]:
    """What builds the index anew, again and again, and has the audit log verified."""

    def build() -> None:
        began = time.monotonic()
        for number in range(1, int(minutes / every) + 1):
            if (wait := began + number * every * 60 - time.monotonic()) > 0:
                time.sleep(wait)
            if time.monotonic() >= began + minutes * 60:
                return
            command = [sys.executable, "-m", "jobs.index", "--gallery", str(gallery), "--rebuild"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                admin.faults.append(f"jobs.index failed: {done.stderr.strip().splitlines()[-1:]}")
            try:
                verified = admin.asked("verify the audit log", "GET", f"/audit/verify?gallery={quote(admin.gallery)}").json()
                admin.faults += verified["faults"]
                admin.asked("metrics", "GET", "/metrics")
            except (PipelineError, requests.RequestException) as error:
                admin.faults.append(str(error))

    return build


def _held_while(
    crowd: list[Investigator], build: Callable[[], None], service: psutil.Process, minutes: float
) -> list[dict[str, float]]:
    """What the service holds, every half minute while they work."""
    began = time.monotonic()
    until = began + minutes * 60
    threads = [threading.Thread(target=one.go_on, args=(until,)) for one in crowd] + [threading.Thread(target=build)]
    for thread in threads:
        thread.start()
    held: list[dict[str, float]] = []
    while any(thread.is_alive() for thread in threads):
        if not held or time.monotonic() - began >= 60 * held[-1]["minute"] + 30:
            held.append({"minute": (time.monotonic() - began) / 60, **_held(service)})
        time.sleep(0.5)
    return held


def _held(service: psutil.Process) -> dict[str, float]:
    with service.oneshot():
        own = service.memory_full_info().uss / 2**20
        files, threads = service.num_fds(), service.num_threads()
    children = service.children(recursive=True)
    tree = memory_of_tree(service.pid)["anonymous"] / 2**20
    return {"own_mib": own, "tree_mib": tree, "files": files, "threads": threads, "children": len(children)}


def _say(crowd: list[Investigator], admin: Investigator, held: list[dict[str, float]], videos: int, minutes: float) -> None:
    everybody = [*crowd, admin]
    codes = sum((one.codes for one in everybody), Counter[tuple[str, int]]())
    seconds: dict[str, list[float]] = {}
    for one in everybody:
        for what, times in one.seconds.items():
            seconds.setdefault(what, []).extend(times)
    faults = [fault for one in everybody for fault in one.faults]
    print(f"{videos} videos, {len(crowd)} people, {minutes:g} minutes, {machine()}")
    for what, times in sorted(seconds.items()):
        answers = ", ".join(f"{count} x {code}" for (name, code), count in sorted(codes.items()) if name == what)
        print(f"{what:<22} p50 {np.median(times):>7.3f} s  p95 {np.quantile(times, 0.95):>7.3f} s  {answers}")
    print("minute  service MiB  with children MiB  files  threads  children")
    for now in held[:: max(1, len(held) // 12)]:
        print("{minute:>6.1f}  {own_mib:>11.0f}  {tree_mib:>17.0f}  {files:>5}  {threads:>7}  {children:>8}".format(**now))
    late = held[len(held) // 2 :]
    growth = {}
    if len(late) > 2:
        hours = np.array([one["minute"] for one in late]) / 60
        growth = {what: float(np.polyfit(hours, [one[what] for one in late], 1)[0]) for what in late[0] if what != "minute"}
        print("growth an hour, second half: " + ", ".join(f"{what} {more:+.1f}" for what, more in growth.items()))
    failed = sum(count for (_, code), count in codes.items() if code >= 500)
    print(f"answers: {sum(codes.values())}, of 500 and more: {failed}; not as meant: {faults[:5] or 'none'}")
    figures = {"videos": videos, "people": len(crowd), "minutes": minutes, "answers": sum(codes.values()), "failed": failed}
    print(json.dumps({"benchmark": "service_soak", "machine": machine(), **figures, "growth": growth, "faults": len(faults)}))
    if failed or faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    run(soak)
