"""Cases, review, export, quality and admin as people meet them, in Debian's chromium."""

import contextlib
import io
import json
import re
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.gallery.audit import read_records
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.service.access import Role, issue
from tests.conftest import add_videos, people_features, toy_spec

pytestmark = pytest.mark.browser
PEOPLE: dict[Role, str] = {"investigator": "Anna", "reviewer": "Bert", "admin": "Carla", "viewer": "Dora"}


class Served:
    """A service in a process of its own, and what people do with it."""

    def __init__(self, address: str, tokens: dict[Role, str]) -> None:
        self.address, self.tokens = address, tokens

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> dict:
        """As Anna's program."""
        data = None if body is None else json.dumps(body).encode()
        headers |= {"authorization": f"Bearer {self.tokens['investigator']}", "content-type": "application/json"}
        request = urllib.request.Request(f"{self.address}/api/v1{path}", data, headers, method=method)  # noqa: S310 - our own
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.loads(answer.read())


@pytest.fixture
def served(gallery: Gallery, tmp_path: Path) -> Iterator[Served]:
    with serving(gallery, tmp_path) as made:
        yield made


@contextlib.contextmanager
def serving(gallery: Gallery, tmp_path: Path) -> Iterator[Served]:
    file = tmp_path / "tokens.json"
    tokens = {role: issue(file, person, 1, role) for role, person in PEOPLE.items()}
    call = [sys.executable, "-m", "jobs.serve", "--gallery", gallery.location.uri, "--port", "0", "--tokens", str(file)]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        found = re.search(r"(http://127\.0\.0\.1:\d+)/", process.stdout.readline())
        assert found is not None
        yield Served(found[1], tokens)
        process.terminate()


@pytest.fixture(autouse=True)
def closed_afterwards(browser: Any) -> Iterator[None]:
    """No page of one test goes on beside the next."""
    yield
    for context in browser.contexts:
        context.close()


def signed_in(browser: object, served: Served, role: Role) -> tuple[object, list[str]]:
    """A page on which a person of the role has signed in, and what goes wrong on it."""
    page = browser.new_context().new_page()  # type: ignore[attr-defined]
    page.set_default_timeout(120_000)  # beside other tests
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" and "404" not in said.text else None)
    page.goto(f"{served.address}/#token={served.tokens[role]}")
    page.locator("#pages a").first.wait_for()
    return page, faults


def test_a_case_is_begun_judged_confirmed_blindly_and_handed_over(served: Served, browser: object, tmp_path: Path) -> None:
    anna, of_anna = signed_in(browser, served, "investigator")
    anna.get_by_role("link", name="Cases").click()
    for field, words in (("Name, for example a file number", "7-26"), ("Title", "Missing child"), ("Reason", "a search")):
        anna.locator("#work").get_by_label(field).fill(words)
    anna.get_by_role("button", name="Begin").click()
    anna.get_by_role("heading", name="7-26 Missing child").wait_for()
    begun = served.ask("POST", "/searches", {"gallery": "town", "target": "id:v001", "case": "7-26"})
    served.ask("GET", f"/searches/{begun['search_id']}?wait=30")
    body = {"decision": "same", "search": begun["search_id"], "note": "by the coat"}
    served.ask("PUT", "/cases/7-26/decisions/v000", body, **{"if-none-match": "*"})
    bert, of_bert = signed_in(browser, served, "reviewer")
    bert.get_by_role("link", name="Review").click()
    bert.get_by_role("link", name="7-26").click()
    bert.get_by_role("button", name="Same person (Y)").wait_for()
    assert not re.search(r"coat|Anna|✓|\brank\b", bert.locator("#work").inner_text())
    bert.keyboard.press("y")
    bert.get_by_text("You agree with Anna.").wait_for()
    bert.keyboard.press("j")
    bert.get_by_text("Nothing in this case waits for you.").wait_for()
    anna.reload()
    anna.get_by_text("confirmed by Bert").wait_for()
    assert "v001" in anna.locator(".path").inner_text() and "by the coat" in anna.locator(".judged").inner_text()
    anna.get_by_role("button", name="Export").click()
    with anna.expect_download() as saving:
        anna.get_by_role("link", name=re.compile("Save 7-26.zip")).click()
    saving.value.save_as(tmp_path / "case.zip")
    anna.reload()
    anna.get_by_role("link", name=re.compile("Save 7-26.zip")).wait_for()  # who leaves the page finds it again
    carla, of_carla = signed_in(browser, served, "admin")
    carla.get_by_role("link", name="Cases").click()
    carla.get_by_role("link", name="7-26").click()
    with carla.expect_download() as taking:
        carla.get_by_role("link", name=re.compile("Save 7-26.zip")).click()
    assert Path(taking.value.path()).read_bytes() == (tmp_path / "case.zip").read_bytes()
    assert "by Anna" in carla.locator(".packages").inner_text() and of_carla == []
    zipfile.ZipFile(tmp_path / "case.zip").extractall(tmp_path)
    ended = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=tmp_path / "7-26", check=False, capture_output=True)
    dora, of_dora = signed_in(browser, served, "viewer")
    dora.get_by_role("link", name="7-26").click()
    dora.get_by_text("confirmed by Bert").wait_for()
    assert dora.get_by_role("button", name=re.compile("Take back|Export|Close|New search")).count() == 0
    assert ended.returncode == 0 and of_anna + of_bert + of_dora == []
    anna.get_by_role("button", name="Take back").click()
    anna.get_by_text("Nobody has decided on a lead yet").wait_for()


def test_cameras_get_names_and_the_log_is_whole(served: Served, browser: object) -> None:
    page, faults = signed_in(browser, served, "admin")
    page.goto(f"{served.address}/#page=admin")
    page.get_by_label("Name of cam0").fill("Station")
    page.get_by_role("button", name="Save the cameras").click()
    page.get_by_text("the cameras are saved").wait_for()
    page.reload()
    from playwright.sync_api import expect

    expect(page.get_by_label("Name of cam0")).to_have_value("Station", timeout=60_000)
    page.get_by_text("whole: nothing was changed, moved or removed").wait_for()
    assert faults == []


def test_an_ingest_is_watched_and_cancelled_and_cameras_are_placed_on_a_plan(tmp_path: Path, browser: object) -> None:
    root = tmp_path / "nvr"
    root.mkdir()
    for number in range(300):
        (root / f"p{number}.mp4").write_bytes(b"none")
    gallery = Gallery.open_or_create(tmp_path / "street", GallerySettings(toy_spec(), 10.0, None, (str(root),)))
    add_videos(gallery, people_features(2, 2, 24, seed=1))
    plan = io.BytesIO()
    Image.new("RGB", (400, 200), (240, 240, 240)).save(plan, "png")
    with serving(gallery, tmp_path) as served:
        page, faults = signed_in(browser, served, "admin")
        page.goto(f"{served.address}/#page=admin")
        page.get_by_label("Folder, manifest or video").wait_for()
        assert page.get_by_label("Folder, manifest or video").input_value() == str(root)
        page.get_by_role("button", name="Take in, and build the index").click()
        page.get_by_text("inputs taken in: 0 of 300").wait_for()
        page.locator(".jobs").get_by_role("button", name="Cancel").click()
        page.locator(".jobs").get_by_text("cancelled").wait_for()
        assert [one["action"] for one in read_records(gallery)][-1] == "cancel"
        file = {"name": "plan.png", "mimeType": "image/png", "buffer": plan.getvalue()}
        page.get_by_label("A plan of the place, PNG or JPEG").set_input_files(file)
        page.get_by_label("Metres from its left to its right edge").fill("80")
        page.get_by_role("button", name="Set the plan").click()
        page.locator("svg.placing").wait_for()
        page.get_by_label("Click where this camera is").select_option("cam1")
        box = page.locator("svg.placing").bounding_box()
        page.locator("svg.placing").click(position={"x": 0.25 * box["width"], "y": 0.25 * box["height"]})
        assert float(page.get_by_label("x, m of cam1").input_value()) == pytest.approx(20, abs=0.2)
        assert float(page.get_by_label("y, m of cam1").input_value()) == pytest.approx(30, abs=0.2)
        page.get_by_role("button", name="Save the cameras").click()
        page.get_by_text("the cameras are saved").wait_for()
        assert faults == []


def test_an_admin_forgets_a_video_and_revokes_a_token_each_after_a_second_look(
    served: Served, browser: object, gallery: Gallery
) -> None:
    page, faults = signed_in(browser, served, "admin")
    page.goto(f"{served.address}/#page=admin")
    page.get_by_label("Videos by id, one a line").fill("v003\nv004")
    page.get_by_role("button", name="Show what would go").click()  # its form asks for a reason first
    page.get_by_label("Reason for forgetting").fill("asked to")
    page.get_by_role("button", name="Show what would go").click()
    page.get_by_role("button", name="Forget these 2 videos for good").wait_for()
    page.get_by_label("Videos by id, one a line").fill("v003")
    assert page.get_by_role("button", name=re.compile("for good")).count() == 0  # others than were shown
    page.get_by_role("button", name="Show what would go").click()
    page.get_by_role("button", name="Forget this video for good").wait_for()
    assert "v003 cam1, 2026-03-01 12:03:00 UTC" in page.locator(".confirm").inner_text()
    page.keyboard.press("Enter")
    page.get_by_text("Forgotten: v003.").wait_for()
    said = read_records(gallery)[-1]
    assert (said["action"], said["who"], said["reason"], said["videos"]) == ("forget", "Carla", "asked to", ["v003"])
    row = page.get_by_role("row", name=re.compile("Dora"))
    row.get_by_role("button", name="Revoke").click()
    row.get_by_role("button", name="Keep").click()
    row.get_by_role("button", name="Revoke").click()
    page.get_by_role("button", name="Revoke all tokens of Dora").click()
    page.get_by_text("1 token of Dora revoked").wait_for()
    assert page.get_by_role("row", name=re.compile("Dora")).count() == 0
    said = read_records(gallery)[-1]
    assert (said["action"], said["who"], said["person"], faults) == ("revoke", "Carla", "Dora", [])


def test_decisions_go_into_a_case_that_is_begun_where_its_name_is_typed(served: Served, browser: object) -> None:
    served.ask("POST", "/cases", {"gallery": "town", "name": "7-26", "title": "Missing child"})
    page, faults = signed_in(browser, served, "investigator")
    form, words = page.locator("#search-form"), page.locator("#case-words")
    assert form.locator("#cases option").evaluate_all("all => all.map((each) => [each.value, each.label])") == [
        ["7-26", "Missing child"]
    ]
    begin = form.get_by_role("button", name="Begin this case")
    form.get_by_label("Case", exact=True).fill("7-26")
    assert "go into this case: Missing child" in words.inner_text() and begin.is_hidden()
    form.get_by_label("Case", exact=True).fill("8/26, Berlin")
    assert "in no case: a case has a name of at most 64 letters" in words.inner_text() and begin.is_hidden()
    form.get_by_label("Case", exact=True).fill("8-26")
    assert "There is no case 8-26 in town yet" in words.inner_text()
    form.get_by_label("Title of the new case").fill("Theft")
    begin.click()
    page.get_by_text("Decisions go into this case: Theft").wait_for()
    form.get_by_label("A video of the gallery, by id").fill("v001")
    form.get_by_role("button", name="Search").click()
    page.get_by_text("case: 8-26").wait_for()
    page.keyboard.press("y")
    page.get_by_text("1 of 20 judged", exact=True).wait_for()
    assert len(served.ask("GET", "/cases/8-26")["leads"]) == 1
    page.get_by_role("button", name="New search").click()  # and where that was forgotten, in triage
    form.get_by_label("Case", exact=True).fill("9-26")
    form.get_by_label("A video of the gallery, by id").fill("v006")
    form.get_by_role("button", name="Search").click()
    page.get_by_text("case: 9-26 (in the record only)").wait_for()
    page.keyboard.press("n")
    page.get_by_text("1 of 20 judged", exact=True).wait_for()
    page.get_by_role("button", name="Begin this case").locator("visible=true").click()
    page.get_by_text("case: 9-26", exact=True).wait_for()
    assert [one["decision"] for one in served.ask("GET", "/cases/9-26")["leads"]] == ["different"] and faults == []


TIMES = """async (asked) => {
    const { ahead, moment } = await import("/page/times.js");
    return asked.map(([time, zone]) => [moment(time, zone), ahead(Date.parse(time), zone) / 60000]);
}"""


def test_times_are_those_of_the_clocks_where_a_camera_is(served: Served, browser: object) -> None:
    admin, faults = signed_in(browser, served, "admin")
    zones = ["Europe/Berlin", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns", "Not/Known", None]
    times = ["2026-03-01T12:01:00Z", "2026-07-01T23:30:00Z", "2026-03-01T12:00:00Z", *["2026-01-01T00:00:00.250Z"] * 3]
    assert admin.evaluate(TIMES, [list(each) for each in zip(times, zones, strict=True)]) == [
        ["2026-03-01 13:01:00 UTC+1", 60],
        ["2026-07-02 01:30:00 UTC+2", 120],
        ["2026-03-01 17:30:00 UTC+5:30", 330],
        ["2025-12-31 20:30:00 UTC-3:30", -210],
        ["2026-01-01 00:00:00 UTC", 0],
        ["2026-01-01 00:00:00 UTC", 0],
    ]
    admin.goto(f"{served.address}/#page=admin")
    admin.get_by_label("Time zone of cam0").fill("Europe/Berlin")
    admin.get_by_role("button", name="Save the cameras").click()
    admin.get_by_text("the cameras are saved").wait_for()
    served.ask("POST", "/cases", {"gallery": "town", "name": "7-26", "title": "Missing child"})
    page, of_anna = signed_in(browser, served, "investigator")
    page.get_by_label("A video of the gallery, by id").fill("v001")
    page.locator("#search-form").get_by_label("Case", exact=True).fill("7-26")
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_text("cam1, 2026-03-01 12:01:00 UTC", exact=True).wait_for()  # the target's camera has no zone
    page.locator("#timeline-title", has_text="Cameras and times (UTC)").wait_for()
    page.fill("#filter", "cam0")
    page.locator("#lead-facts", has_text=re.compile(r"cam0 *2026-03-01 13:\d\d:00 UTC\+1")).wait_for()
    page.keyboard.press("Enter")
    page.keyboard.press("y")
    page.get_by_text("1 of 20 judged", exact=True).wait_for()
    page.goto(f"{served.address}/#page=case&case=7-26")
    path = page.locator(".path").inner_text()
    assert re.search(r"cam0 2026-03-01 13:\d\d:00 UTC\+1", path) and "cam1 2026-03-01 12:01:00 UTC" in path
    admin.get_by_label("Time zone of cam1").fill("Europe/Berlin")
    admin.get_by_role("button", name="Save the cameras").click()
    admin.get_by_text("the cameras are saved").wait_for()
    page.go_back()
    page.reload()
    page.locator("#timeline-title", has_text="Cameras and times (Europe/Berlin)").wait_for()
    assert page.locator("#timeline-axis text").first.text_content() == "13:00" and faults + of_anna == []
