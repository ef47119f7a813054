"""The page in a browser, Debian's chromium: from the printed link to a triage by keyboard, at three widths, light and dark."""

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from pipeline.gallery.audit import append_record, read_records, user
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.service.access import issue
from tests.conftest import add_videos, toy_spec
from tests.decoding.test_video import write_video

WIDTHS = ((390, 844), (1280, 800), (1920, 1080))
pytestmark = pytest.mark.browser
KINDS = {  # of what browsers do not play themselves, and one that they do
    "v000": (".avi", "mpeg4"),
    "v001": (".ts", "mpeg2video"),
    "v002": (".mkv", "libx264"),
    "v003": (".wmv", "wmv2"),
    "v004": (".webm", "libvpx-vp9"),
}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """24 made-up videos, v000 and on, each of its own file of 40 frames, ten a second; v005 is somebody in a scene."""
    folder = tmp_path_factory.mktemp("page")
    made = Gallery.open_or_create(folder / "town", GallerySettings(toy_spec(), 10.0, None))
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(6, 24))
    add_videos(made, [(f"p{n // 4}", (centres[n // 4] + 0.4 * rng.normal(size=(40, 24))).astype(np.float16)) for n in range(24)])
    videos, files = made.snapshot().videos, []
    (folder / "boxes.txt").write_text("".join(f"{n + 1},5,{100 + n},100,40,100\n" for n in range(40)))
    for name in videos["video_id"].to_pylist():
        suffix, codec = KINDS.get(name, (".mp4", "libx264"))
        size = (640, 360) if name == "v005" else (64, 128)
        files.append(str(write_video(folder / f"{name}{suffix}", 40, size, 25 if codec == "mpeg2video" else 10, codec)))
    of_scene = [name == "v005" for name in videos["video_id"].to_pylist()]
    columns = {
        "uri": pa.array(files),
        "boxes_uri": pa.array([str(folder / "boxes.txt") if one else None for one in of_scene], pa.string()),
        "track": pa.array([5 if one else None for one in of_scene], pa.int64()),
        "fps": pa.array([10.0] * len(videos)),
        "width": pa.array([640 if one else 64 for one in of_scene], pa.int32()),
        "height": pa.array([360 if one else 128 for one in of_scene], pa.int32()),
    }
    for name, column in columns.items():
        videos = videos.set_column(videos.schema.get_field_index(name), VIDEOS_SCHEMA.field(name), column)
    made.commit(videos, REJECTS_SCHEMA.empty_table())
    build_index(made)
    return made


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the tokens of people."""
    return tmp_path_factory.mktemp("people") / "tokens.json"


@pytest.fixture(scope="module")
def link(gallery: Gallery, tokens: Path) -> Iterator[str]:
    """What the command prints."""
    call = [sys.executable, "-m", "jobs.serve", "--gallery", gallery.location.uri, "--port", "0", "--person", "Anna"]
    call += ["--tokens", str(tokens)]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield found[0]
        process.terminate()


@pytest.fixture(scope="module")
def context(browser: Any, link: str) -> Any:
    """A browser in which Anna has opened the link."""
    made = browser.new_context(viewport={"width": 1280, "height": 800})
    made.set_default_timeout(PATIENCE_MS)
    page = made.new_page()
    page.goto(link)
    page.wait_for_selector("#new:not([hidden])")
    assert "token" not in address(page)  # it stays in no history
    page.close()
    return made


@pytest.fixture
def page(context: Any, link: str) -> Iterator[Any]:
    """A page whose console stays silent."""
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(link.partition("#")[0])
    opened.wait_for_selector("#new:not([hidden])")
    yield opened
    opened.close()
    assert said == []


PATIENCE_MS = 120_000  # of a browser beside other tests


def until(holds: Callable[[], Any], seconds: float = 120) -> Any:
    """What `holds` gives, once that is true. The page's policy forbids Playwright's own waiting for a function."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
    return found


def address(page: Any) -> str:
    """Asked of the page itself: Playwright's own `url` does not change while nothing else is asked."""
    return page.evaluate("location.href")


def searched(page: Any, video: str = "v006") -> None:
    """A search for a video of the gallery, by the form."""
    page.fill("[name=video]", video)
    page.fill("[name=reason]", "a test of the page")
    page.click("#search-form button[type=submit]")
    page.wait_for_selector("#triage:not([hidden]) .thumb")


def lead(page: Any) -> int:
    return int(re.search(r"lead=(\d+)", address(page))[1])  # type: ignore[index]


PLAYS = """async (selector) => {
    const video = document.querySelector(selector);
    const name = document.querySelector("#lead-name").textContent.split(". ")[1];
    if (selector.startsWith("#lead") && !video.dataset.clip?.includes(`/${name}/`)) return false;
    return video.readyState >= 2 && video.buffered.length > 0 && Number.isFinite(video.duration);
}"""
SEEKS = """async ([selector, time]) => {
    const video = document.querySelector(selector);
    video.pause();
    video.currentTime = time;
    const seeked = new Promise((resolve) => video.addEventListener("seeked", resolve, { once: true }));
    await Promise.race([seeked, new Promise((resolve) => setTimeout(resolve, 5000))]);
    const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
    canvas.getContext("2d").drawImage(video, 0, 0, 8, 8);
    return [video.currentTime, video.videoWidth, video.videoHeight, ...canvas.getContext("2d").getImageData(4, 4, 1, 1).data];
}"""


def test_twenty_leads_are_judged_in_forty_keys(page: Any, gallery: Gallery) -> None:
    searched(page)
    assert page.locator(".thumb").count() == 20 and lead(page) == 1
    before = len(read_records(gallery))
    page.evaluate("() => { window.keys = []; addEventListener('keydown', (event) => window.keys.push(event.key), true); }")
    began = time.monotonic()
    # Of five leads one is looked at in its scene, one of all beside the target's frames, and a slip is taken back.
    for key in "yysnscnc" + "yzu" + "yysnsnu" * 3:
        page.keyboard.press(key)
    until(lambda: page.inner_text("#judged") == "20 of 20 judged")
    keys = page.evaluate("window.keys")
    print(f"20 leads in {len(keys)} keys and {time.monotonic() - began:.1f} s: {' '.join(keys)}")
    assert len(keys) <= 40
    until(lambda: len([one for one in read_records(gallery)[before:] if one["action"] == "decision"]) == 22)
    said = [one["decision"] for one in read_records(gallery)[before:] if one["action"] == "decision"]
    of_five = ["same", "same", "different", "different"]
    assert said == [*of_five, "same", None, "unsure", *[*of_five, "unsure"] * 3]
    page.keyboard.press("z")
    page.keyboard.press("z")
    until(lambda: page.inner_text("#judged") == "18 of 20 judged")
    assert lead(page) == 19 and read_records(gallery)[-1]["decision"] is None
    page.reload()
    page.wait_for_selector("#triage:not([hidden]) .thumb")
    assert page.inner_text("#judged") == "18 of 20 judged" and lead(page) == 19


def test_every_key_does_what_the_list_says(page: Any, gallery: Gallery) -> None:
    searched(page)
    video = "#lead-player video"
    until(lambda: page.evaluate(PLAYS, video))
    press = page.keyboard.press

    def closed(dialog: str) -> None:
        press("Escape")
        until(lambda: page.locator(f"{dialog}[open]").count() == 0)

    press("j"), press("j"), press("k")
    assert lead(page) == 2
    until(lambda: page.evaluate(PLAYS, video))
    until(lambda: not page.evaluate("(s) => document.querySelector(s).paused", video))
    press("Space")
    assert page.evaluate("(s) => document.querySelector(s).paused", video)
    page.evaluate(SEEKS, [video, 1.0])
    press("ArrowRight")
    until(lambda: page.evaluate("(s) => document.querySelector(s).currentTime", video) == pytest.approx(1.1, abs=0.01))
    press("ArrowLeft"), press("ArrowLeft")
    until(lambda: page.evaluate("(s) => document.querySelector(s).currentTime", video) == pytest.approx(0.9, abs=0.01))
    press("Shift+ArrowRight")
    until(lambda: "pair=2" in address(page))
    press("s")
    until(lambda: "view=scene" in address(page) and page.inner_text("#view").startswith("Person"))
    press("s"), press("c")
    until(lambda: "compare=1" in address(page) and "view=scene" not in address(page))
    press("c"), press("/")
    page.keyboard.type("cam1")
    until(lambda: "filter=cam1" in address(page))
    shown = page.locator(".thumb .camera").all_inner_texts()
    assert set(shown) == {"cam1"} and 0 < len(shown) < 20
    press("Enter"), press("?")
    page.wait_for_selector("#keys[open]")
    page.uncheck("#keys-on")
    closed("#keys")
    at = lead(page)
    press("j")
    assert lead(page) == at  # single keys are off
    press("?")
    page.check("#keys-on")
    closed("#keys")
    press("d")
    until(lambda: page.locator("#details[open] #details-hashes dd").count() == 3)
    until(lambda: "details=1" in address(page))
    closed("#details")
    first = address(page).split("search=")[1].split("&")[0]
    page.fill("#filter", "")
    press("Enter")
    page.evaluate("document.activeElement.blur()")
    press("y")
    until(lambda: page.inner_text("#judged").startswith("1 of 20 judged"))
    press("r")
    until(lambda: f"search={first}" not in address(page))
    page.wait_for_selector("#triage:not([hidden]) .thumb")
    until(lambda: "refined by 1 confirmed" in page.inner_text("#summary"))
    assert read_records(gallery)[-1]["action"] in ("follow", "view")
    second = address(page).split("search=")[1].split("&")[0]
    press("f")
    until(lambda: f"search={second}" not in address(page) and not page.is_hidden("#triage"))


def test_a_link_opens_the_same_view(page: Any, context: Any) -> None:
    searched(page)

    def dragged() -> bool:
        """Again where the player, as it opens, moved the chart from under the mouse."""
        box = page.locator("#timeline").bounding_box()
        page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 10)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 10, steps=4)
        page.mouse.up()
        return "from=" in address(page) and 0 < page.locator(".thumb").count() < 20

    until(dragged)
    page.keyboard.press("j")
    page.keyboard.press("s")
    until(lambda: "view=scene" in address(page))
    other = context.new_page()
    other.goto(address(page))
    other.wait_for_selector("#triage:not([hidden]) .thumb")
    for what in ("#lead-name", "#range-words", "#view", "#lead-facts"):
        assert until(lambda what=what: other.inner_text(what)) == page.inner_text(what)
    assert other.locator(".thumb").count() == page.locator(".thumb").count() and address(other) == address(page)
    other.close()
    page.click("#clear")
    assert page.locator(".thumb").count() == 20 and "from=" not in address(page)


OVERLAPS = """() => {
    const marks = [...document.querySelectorAll("#timeline .mark.lead")].map((each) => each.getBoundingClientRect());
    const meet = (a, b) => a.left < b.right - 0.5 && b.left < a.right - 0.5 && a.top < b.bottom - 0.5 && b.top < a.bottom - 0.5;
    return marks.flatMap((a, i) => marks.slice(i + 1).filter((b) => meet(a, b))).length;
}"""


def test_leads_of_one_moment_stand_beside_each_other_and_low_scores_are_cut_off(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})  # 20 leads within 24 minutes, on a phone
    searched(page)
    assert page.locator("#timeline .mark.lead").count() == 20 and page.evaluate(OVERLAPS) == 0
    page.set_viewport_size({"width": 1280, "height": 800})
    scores = [float(one.split("score ")[1]) for one in page.locator("#timeline .mark.lead title").all_text_contents()]
    cut = sum(sorted(scores)[9:11]) / 2  # they are shown rounded
    page.evaluate(
        """(cut) => {
        const slider = document.querySelector("#cut");
        slider.step = "any";
        slider.value = cut;
        slider.dispatchEvent(new Event("input", { bubbles: true }));
    }""",
        cut,
    )
    until(lambda: page.locator(".thumb").count() == 10 and "cut=" in address(page))
    assert page.locator("#timeline .mark.away").count() == 10 and page.inner_text("#cut-words").startswith("10 leads")
    page.reload()
    page.wait_for_selector("#triage:not([hidden]) .thumb")
    assert page.locator(".thumb").count() == 10
    page.focus("#cut")
    page.keyboard.press("Home")
    until(lambda: page.locator(".thumb").count() == 20 and "cut=" not in address(page))


def test_the_lead_that_is_looked_at_is_never_out_of_sight_among_many_cameras(page: Any) -> None:
    def spread(route: Any) -> None:
        """Each lead in a camera of its own, more than the chart has room for."""
        made = route.fetch().json()
        for at, point in enumerate(made["points"]):
            point["camera_id"] = f"camera {at}"
        route.fulfill(json=made | {"cameras": [one["camera_id"] for one in made["points"]]})

    page.route(re.compile(r"/timeline$"), spread)
    searched(page)
    inside = """() => {
        const box = (each) => document.querySelector(each).getBoundingClientRect();
        const [room, mark] = [box("#timeline-room"), box(".mark.chosen")];
        return room.height < 500 && mark.top >= room.top && mark.bottom <= room.bottom;
    }"""
    for _ in range(19):
        page.keyboard.press("j")
        assert page.evaluate(inside), page.inner_text("#lead-name")
    assert page.evaluate("document.querySelector('#timeline-room').scrollTop") > 0 and lead(page) == 20


def test_recordings_of_every_kind_play_and_are_sought(page: Any, gallery: Gallery) -> None:
    searched(page)
    seen = set()
    for _ in range(20):
        name = until(lambda: page.inner_text("#lead-name")).partition(". ")[2]
        until(lambda: page.evaluate(PLAYS, "#lead-player video"))
        if name in KINDS:
            seen.add(name)
            rate = 25 if KINDS[name][1] == "mpeg2video" else 10
            number = 20 if rate == 25 else 15

            def sought(asked: float = (number + 0.5) / rate, grey: int = 8 * number) -> bool:
                """`write_video` says a frame's number by its grey; a busy browser shows the frame before for a moment."""
                time_s, width, height, *colour, _ = page.evaluate(SEEKS, ["#lead-player video", asked])
                assert time_s == pytest.approx(asked, abs=0.02) and (width, height) == (64, 128)
                return bool(abs(np.mean(colour) - grey) <= 14)

            until(sought)
        page.keyboard.press("j")
    assert len(seen) >= 3


def test_a_box_is_drawn_over_the_scene_where_the_person_is(page: Any) -> None:
    searched(page, "v004")
    page.fill("#filter", "v005")
    page.keyboard.press("Enter")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("s")
    until(
        lambda: (
            page.evaluate(PLAYS, "#lead-player video")
            and page.evaluate("document.querySelector('#lead-player video').videoWidth") == 640
        )
    )
    page.evaluate(SEEKS, ["#lead-player video", 2.0])
    area = page.evaluate("""() => {
        const video = document.querySelector('#lead-player video').getBoundingClientRect();
        const box = document.querySelector('#lead-player .box').getBoundingClientRect();
        const scale = Math.min(video.width / 640, video.height / 360);
        const left = video.left + (video.width - 640 * scale) / 2, top = video.top + (video.height - 360 * scale) / 2;
        return [(box.left - left) / scale, (box.top - top) / scale, box.width / scale, box.height / scale];
    }""")
    assert area == pytest.approx([120, 100, 40, 100], abs=3)


def test_a_box_drawn_on_a_paused_upload_is_a_target(page: Any, tmp_path: Path, gallery: Gallery) -> None:
    page.set_input_files("[name=file]", str(write_video(tmp_path / "scene.avi", 30, (640, 360), 10, "mpeg4")))
    page.wait_for_selector("#upload:not([hidden])")
    assert "looks like a scene" in page.inner_text("#upload-hint")
    until(lambda: page.evaluate(PLAYS, "#upload-player video"))
    area = page.locator("#upload-player .screen").bounding_box()
    x, y = (lambda share: area["x"] + share * area["width"]), (lambda share: area["y"] + share * area["height"])
    page.mouse.move(x(0.5), y(0.3))
    page.mouse.down()
    page.mouse.move(x(0.6), y(0.8), steps=4)
    page.mouse.up()
    said = re.search(r"Box: (\d+), (\d+), (\d+), (\d+) .* at ([\d.]+) s", page.inner_text("#upload-box"))
    assert said is not None
    left, top, width, height, at = map(float, said.groups())
    scale = min(area["width"] / 640, area["height"] / 360)
    expected = [320, 180 + (0.3 - 0.5) * area["height"] / scale, 0.1 * area["width"] / scale, 0.5 * area["height"] / scale]
    assert [left, top, width, height] == pytest.approx(expected, abs=3) and 0 <= at <= 3
    page.fill("[name=reason]", "a test of boxes")
    page.click("#search-form button[type=submit]")
    until(lambda: not page.is_hidden("#message") or not page.is_hidden("#triage"))
    record = next(one for one in reversed(read_records(gallery)) if one["action"] == "search")  # its backbone is made up
    assert record["target"].startswith("/") and record["who"] == "Anna" and record["account"] == user()


def test_one_more_of_the_same_person_is_searched_for_together(page: Any, gallery: Gallery) -> None:
    page.click("#one-more")
    until(lambda: "say who is looked for first" in page.inner_text("#message"))
    for video in ("v006", "v009", "v007"):
        page.fill("[name=video]", video)
        page.click("#one-more")
        until(lambda: page.input_value("[name=video]") == "")
    page.click("[aria-label='Leave out v009']")
    assert page.locator("#further li").all_inner_texts() == ["v006 Leave out", "v007 Leave out"]
    searched(page, "v008")
    assert "searched for together with v007, v008" in page.inner_text("#summary")
    record = next(one for one in reversed(read_records(gallery)) if one["action"] == "follow")
    assert [record["target"], *(one["target"] for one in record["further_targets"])] == ["v006", "v007", "v008"]
    page.goto(address(page).partition("#")[0])
    page.wait_for_selector("#new:not([hidden])")
    assert page.locator("#further li").count() == 0  # those were of that search


class Town:
    """What people have done in the gallery before its screens are looked at. site: the service's address."""

    def __init__(self, context: Any, reviewer: Any, link: str) -> None:
        self.site = link.partition("/#")[0]
        self.anna, self.bert = context.request, reviewer.request

    def ask(self, who: Any, method: str, path: str, body: object = None, **headers: str) -> Any:
        """As the page of a person would."""
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        headers |= {"origin": self.site, "content-type": kind}
        answer = who.fetch(f"{self.site}/api/v1{path}", method=method, data=data, headers=headers)
        assert answer.ok, answer.text()
        return answer.json()

    def fill(self) -> None:
        """A plan with two cameras on it, a case that is judged, confirmed in part and handed over, and one without a lead."""
        plan = Image.new("RGB", (800, 400), (236, 236, 230))
        for corner in range(40, 800, 190):
            ImageDraw.Draw(plan).rectangle((corner, 60, corner + 130, 340), fill=(205, 205, 196), outline=(90, 90, 90))
        picture = io.BytesIO()
        plan.save(picture, "png")
        self.ask(self.anna, "PUT", "/galleries/town/plan?width_m=160", picture.getvalue())
        places = [
            {"camera_id": "cam0", "name": "Station, north gate", "zone": "Europe/Berlin", "x_m": 20.0, "y_m": 40.0},
            {"camera_id": "cam1", "x_m": 130.0, "y_m": 30.0},
        ]
        self.ask(self.anna, "PUT", "/galleries/town/cameras", {"cameras": places})
        for name, title in (("7-26", "Missing child"), ("8-26", "Theft of a bicycle at the station, second witness")):
            self.ask(self.anna, "POST", "/cases", {"gallery": "town", "name": name, "title": title, "reason": "a search"})
        search = self.ask(self.anna, "POST", "/searches", {"gallery": "town", "target": "id:v001", "case": "7-26"})["search_id"]
        self.ask(self.anna, "GET", f"/searches/{search}?wait=30")
        said = {"v000": "same", "v002": "same", "v003": "unsure", "v009": "different"}
        for video, decision in said.items():
            body = {"decision": decision, "search": search, "note": "by the coat" if video == "v000" else None}
            self.ask(self.anna, "PUT", f"/cases/7-26/decisions/{video}", body, **{"if-none-match": "*"})
        for lead in self.ask(self.bert, "GET", "/cases/7-26")["leads"]:
            if lead["video_id"] in ("v000", "v003"):
                body = {"video_id": lead["video_id"], "tag": lead["tag"], "decision": "same"}
                self.ask(self.bert, "POST", "/cases/7-26/confirmations", body)
        export = self.ask(self.anna, "POST", "/cases/7-26/exports", {"reason": "to the court"})["export_id"]
        until(lambda: self.ask(self.anna, "GET", f"/cases/7-26/exports/{export}")["state"] == "done")


def slow(page: Any) -> None:
    """From now on every search says that it is still going on."""

    def running(route: Any) -> None:
        said = route.fetch().json() | {"state": "running", "stage": "score", "done": 7, "total": 24, "found": None}
        route.fulfill(json=said)

    def told(route: Any) -> None:
        """Once, with no second connection while the screen is looked at."""
        job = route.request.url.removesuffix("/events")
        said = page.context.request.get(job).json() | {"state": "running", "stage": "score", "done": 7, "total": 24}
        route.fulfill(content_type="text/event-stream", body=f"retry: 600000\ndata: {json.dumps(said)}\n\n")

    page.route(re.compile(r"/api/v1/searches/[^/?]+\?wait=1$"), running)
    page.route(re.compile(r"/api/v1/jobs/[^/?]+$"), running)
    page.route(re.compile(r"/api/v1/jobs/[^/?]+/events$"), told)


def work(page: Any, town: Town, fields: str, shows: str) -> None:
    """A screen beside triage. shows: what is there once it is whole."""
    page.evaluate("(hash) => { location.hash = hash; }", fields)
    page.locator(f"#work:not([hidden]) {shows}").first.wait_for()
    page.wait_for_load_state("networkidle")
    page.evaluate(
        "for (const each of document.querySelectorAll('#work img')) each.loading = 'eager'"
    )  # a picture is of the whole
    until(lambda: page.evaluate("[...document.querySelectorAll('#work img')].every((each) => each.complete)"))


def screens(anna: Any, bert: Any, stranger: Any, town: Town, tmp_path: Path) -> Iterator[tuple[Any, str]]:
    """Each screen in turn, as it is when it is looked at: on whose page, and its name."""
    stranger.goto(town.site)
    stranger.wait_for_selector("#sign-in:not([hidden])")
    yield stranger, "sign-in"
    anna.fill("[name=case]", "9-26")
    for summary in anna.locator("#search-form summary").all():
        summary.click()
    yield anna, "form"
    anna.set_input_files("[name=file]", str(write_video(tmp_path / "scene.avi", 30, (640, 360), 10, "mpeg4")))
    anna.wait_for_selector("#upload:not([hidden])")
    until(lambda: anna.evaluate(PLAYS, "#upload-player video"))
    yield anna, "form-upload"
    anna.reload()
    anna.wait_for_selector("#new:not([hidden])")
    searched(anna)
    anna.keyboard.press("y")
    until(lambda: anna.evaluate(PLAYS, "#lead-player video"))
    yield anna, "triage"
    for key, name in (("s", "scene"), ("c", "compare")):
        anna.keyboard.press(key)
        until(lambda: anna.evaluate(PLAYS, "#lead-player video"))
        yield anna, name
    anna.keyboard.press("c")
    anna.keyboard.press("d")
    until(lambda: anna.locator("#details[open] #details-hashes dd").count() == 3)
    yield anna, "details"
    anna.keyboard.press("Escape")
    until(lambda: anna.locator("#details[open]").count() == 0)
    anna.keyboard.press("?")
    yield anna, "keys"
    anna.keyboard.press("Escape")
    search = address(anna).partition("search=")[2].partition("&")[0]
    work(anna, town, "page=cases", ".cases")
    yield anna, "cases"
    work(anna, town, "page=case&case=7-26", ".judged")
    yield anna, "case"
    work(anna, town, "page=quality", "h3")
    yield anna, "quality"
    work(anna, town, "page=admin", "svg.plan")
    anna.get_by_label("Videos by id, one a line").fill("v010\nv011")
    anna.get_by_label("Reason for forgetting").fill("asked to")
    anna.get_by_role("button", name="Show what would go").click()
    anna.get_by_role("button", name="Forget these 2 videos for good").wait_for()
    anna.get_by_role("button", name="Revoke", exact=True).click()
    yield anna, "admin"
    slow(anna)
    anna.evaluate("(hash) => { location.hash = hash; }", f"search={search}")
    anna.get_by_text("scoring: 7 of 24").wait_for()
    yield anna, "waiting"
    anna.unroute_all()
    work(bert, town, "page=review", ".cases")
    yield bert, "reviews"
    work(bert, town, "page=review&gallery=town&case=7-26", ".review")
    yield bert, "review"
    bert.keyboard.press("c")
    until(lambda: bert.evaluate("document.querySelector('#review-candidate video')?.readyState >= 2"))
    yield bert, "review-clips"


# What reaches out of the card that it belongs to, into the room around what is in it or beyond, unless that part scrolls; leads
# that a chart cuts off.
OVERHANGS = """() => {
    const isShown = (each) => each.checkVisibility() && each.getBoundingClientRect().width > 1;
    const moves = (each, card) => {
        for (let at = each; at && at !== card; at = at.parentElement) {
            const { overflowX, position } = getComputedStyle(at);
            if (["auto", "scroll", "hidden"].includes(overflowX) || position === "fixed") return true;
        }
        return false;
    };
    const room = document.querySelector("#timeline-room").getBoundingClientRect();
    const cut = [...document.querySelectorAll("#timeline .mark.lead")].filter((each) => {
        const { left, right } = each.getBoundingClientRect();
        return isShown(each) && (left < room.left || right > room.right);
    });
    return cut.concat([...document.querySelectorAll("main:not([hidden]) .card, dialog[open]")].filter(isShown).flatMap((card) => {
        const [box, style] = [card.getBoundingClientRect(), getComputedStyle(card)];
        const [left, right] = [box.left + parseFloat(style.paddingLeft), box.right - parseFloat(style.paddingRight)];
        return [...card.querySelectorAll("button, input, select, textarea, a, svg")].filter((each) => {
            const { left: from, right: to } = each.getBoundingClientRect();
            return isShown(each) && (from < left - 1 || to > right + 1) && !moves(each.parentElement, card);
        });
    })).map((each) => each.outerHTML.slice(0, 120));
}"""


RULES = {  # what differs in the dark are colours
    "light": {"resultTypes": ["violations"]},
    "dark": {"resultTypes": ["violations"], "runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}},
}


def test_no_screen_has_a_violation_or_is_wider_than_the_window(
    page: Any, context: Any, browser: Any, link: str, gallery: Gallery, tokens: Path, tmp_path: Path
) -> None:
    """axe-core's rules; pictures of all are left in the test's folder."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe, of the dev extra, is not installed").Axe()
    reviewer, stranger = browser.new_context(), browser.new_context()
    reviewer.set_default_timeout(PATIENCE_MS)
    bert = reviewer.new_page()
    bert.goto(f"{link.partition('#')[0]}#token={issue(tokens, 'Bert', 1, 'reviewer')}")
    bert.wait_for_selector("#new:not([hidden])")
    town = Town(context, reviewer, link)
    town.fill()
    figures = {"data": "ilids", "index_version": "1", "queries": 300, "figures": {"mean_ap": 0.913, "rank_1": 0.947}}
    append_record(gallery, "evaluate", figures)
    wrong = []
    for opened, name in screens(page, bert, stranger.new_page(), town, tmp_path):
        for width, height in WIDTHS:
            opened.set_viewport_size({"width": width, "height": height})
            for scheme in ("light", "dark"):
                opened.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                opened.screenshot(path=tmp_path / f"{name}-{width}-{scheme}.png", full_page=True)
                if scheme == "light":
                    if opened.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
                        wrong.append((name, width, "wider than the window"))
                    wrong += [(name, width, "reaches out of its card", each) for each in opened.evaluate(OVERHANGS)]
                if width == 1920 and scheme == "dark":
                    continue  # as at 1280
                for one in axe.run(opened, options=RULES[scheme]).response["violations"]:
                    wrong.append((name, width, scheme, one["id"], [node["html"][:160] for node in one["nodes"]][:3]))
    for one in (reviewer, stranger):
        one.close()
    assert wrong == []
