"""The report in Debian's chromium: clips play, it prints on few pages, and it fits from a telephone to a large desk."""

import dataclasses
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.decoding.decoder import Decoder
from pipeline.decoding.requests import ClipRequest
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import ClipPart
from pipeline.gallery.video_ref import VideoRef
from pipeline.search.evidence import Clip
from pipeline.search.report import write_report
from pipeline.search.results import OnRecord, SegmentView
from tests.decoding.test_video import write_video
from tests.search.test_report import figure, lead, search

WIDTHS = (390, 1280, 1920)
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 leads of three pairs each; the clip of each is of its own brightness for 4 s, and the last one lies beside the page."""
    folder = tmp_path_factory.mktemp("report")
    source = str(write_video(folder / "a.mp4", 60, (64, 128)))
    with Decoder(Sampling()) as decoder:
        parts = [one.data for one in decoder.answers(ClipRequest(source, 0.0, 4.0, small=True)) if isinstance(one, ClipPart)]
    made = b"".join(parts)
    (folder / "clip.mp4").write_bytes(made)

    def clip(video: VideoRef, segment: SegmentView) -> Clip:
        return Clip(0.0, 4.0, "clip.mp4" if video.video_id == "video-020" else made)

    named = {"record": OnRecord("Anna Ångström", case="7-26/118"), "searched_at": datetime(2026, 3, 1, tzinfo=UTC)}
    leads = [dataclasses.replace(lead(rank, pairs=3), source_hash="file:" + 64 * "a") for rank in range(1, 21)]
    write_report([dataclasses.replace(search(*leads), **named)], folder, figure, clips=clip)
    return folder / "report.html"


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The report as a file, without a network; what goes wrong on it fails the test."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda said: faults.append(said.text))
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert faults == []


def playing(page: Any) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('video')].filter((v) => !v.paused).map((v) => v.ariaLabel)")


def until(page: Any, holds: str) -> None:
    """Playwright's own waiting needs `eval`, which the page forbids."""
    for _ in range(200):
        if page.evaluate(holds):
            return
        time.sleep(0.05)
    raise AssertionError(f"never: {holds}")


def test_a_clip_plays_under_the_pointer_by_click_and_by_keyboard(page: Any) -> None:
    first = page.locator("#target-1-lead-1 .play")
    now = page.locator("#target-1-lead-1 .now")
    first.hover()
    until(page, "document.querySelector('#target-1-lead-1 video').currentTime > 0.3")
    assert playing(page) == ["Clip of lead 1"] and float(re.search(r"left: ([\d.]+)%", now.get_attribute("style"))[1]) > 5  # type: ignore[index]
    page.mouse.move(2, 2)
    until(page, "document.querySelector('#target-1-lead-1 video').paused")
    first.click()
    page.mouse.move(2, 2)
    assert playing(page) == ["Clip of lead 1"] and first.get_attribute("aria-pressed") == "true"  # goes on without the pointer
    page.keyboard.press("Space")
    assert playing(page) == []
    page.locator("#target-1-lead-2 .play").focus()
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#target-1-lead-2 video').currentTime > 0.3")
    page.keyboard.press("Home")
    assert playing(page) == [] and page.evaluate("document.querySelector('#target-1-lead-2 video').currentTime") == 0
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.querySelector('#target-1-lead-2 video').currentTime") == pytest.approx(0.1)
    page.locator("#target-1-lead-20 .play").click()  # of the file beside the page
    until(page, "document.querySelector('#target-1-lead-20 video').currentTime > 0.3")


def test_the_bar_of_attention_leads_to_its_moment(page: Any) -> None:
    """The brightness of a frame is eight times its number, ten a second."""
    bar = page.locator("#target-1-lead-3 .scrub")
    box = bar.bounding_box()
    bar.click(position={"x": box["width"] * 0.535, "y": 10})
    seen = page.evaluate(
        """async () => {
            const video = document.querySelector('#target-1-lead-3 video');
            while (video.seeking || video.readyState < 2) await new Promise((done) => setTimeout(done, 20));
            const canvas = new OffscreenCanvas(8, 8).getContext('2d');
            canvas.drawImage(video, 0, 0, 8, 8);
            return [video.currentTime, canvas.getImageData(4, 4, 1, 1).data[0]];
        }"""
    )
    assert seen[0] == pytest.approx(2.14, abs=0.02) and seen[1] == pytest.approx(21 * 8, abs=6)


def test_without_script_the_browser_plays_clips_itself(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(report.as_uri())
    assert opened.locator("video[controls]").count() == 21 and opened.locator(".play").count() == 0
    context.close()


def test_twenty_leads_print_on_few_pages_each_with_its_number_and_the_case(page: Any, tmp_path: Path) -> None:
    page.pdf(path=str(tmp_path / "report.pdf"), prefer_css_page_size=True, tagged=False)
    data = (tmp_path / "report.pdf").read_bytes()
    count = len(re.findall(rb"/Type\s*/Page\b", data))
    assert 10 <= count <= 14  # two leads on a page
    assert page.evaluate("getComputedStyle(document.querySelector('.way')).display") == "flex"
    page.emulate_media(media="print")
    for hidden in (".way", ".clip", ".scrub"):
        assert page.evaluate(f"getComputedStyle(document.querySelector('{hidden}')).display") == "none"
    said = page.evaluate(
        """[...document.styleSheets[0].cssRules].filter((rule) => rule instanceof CSSPageRule)
            .flatMap((rule) => [...rule.cssText.matchAll(/content: ([^;]*);/g)].map((found) => found[1]))"""
    )
    assert said[:2] == ['"Case 7-26/118"', '"Searched by Anna Ångström, 2026-03-01 00:00:00 UTC"']
    assert said[3] == '"page " counter(page) " of " counter(pages)'


def test_it_fits_from_a_telephone_to_a_large_desk_and_has_no_barriers(page: Any, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe, of the dev extra, is not installed").Axe()
    wrong: list[object] = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.screenshot(path=tmp_path / f"report-{width}.png")
        if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
            wrong.append((width, "wider than the window"))
        cards = [lead.bounding_box() for lead in page.locator(".lead").all()[:2]]
        if max(card["x"] + card["width"] for card in cards) < width - 45:
            wrong.append((width, "some of it is not used"))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        wrong += [(scheme, one["id"], one["nodes"][0]["html"][:160]) for one in axe.run(page).response["violations"]]
    assert wrong == []


def test_links_lead_to_a_lead_and_back_to_the_list(page: Any) -> None:
    page.goto(page.url + "#target-1-lead-7")
    assert page.evaluate("document.querySelector(':target').id") == "target-1-lead-7"
    page.locator("#target-1-lead-7").get_by_role("link", name="list").click()
    assert page.url.endswith("#target-1-list") and page.locator("#target-1-list").is_visible()
    page.locator(".glance a").nth(4).click()
    assert page.url.endswith("#target-1-lead-5")
