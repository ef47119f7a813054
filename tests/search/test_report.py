"""The report page: what it shows, what it never does, and what it does with hostile or missing input."""

import base64
import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import PipelineError, UsageError, VideoError
from pipeline.gallery.video_ref import VideoRef
from pipeline.search.evidence import Clip, Scene
from pipeline.search.report import render_report, write_report
from pipeline.search.results import Appearance, Followed, Lead, OnRecord, SearchResult, SegmentPair, SegmentView
from pipeline.settings import ScoreSettings, SearchSettings

FRAMES = 8
VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = "\"><script>alert('x')</script>\n\N{ELECTRIC TORCH} & <b>bold</b> {{ 7 * 7 }}"


class Page(HTMLParser):
    """Parses a page, checks that every tag is closed where it should be, and keeps elements and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.append((self.open[-1], " ".join(data.split())))

    def attribute(self, name: str, tag: str | None = None) -> list[str]:
        return [attrs[name] for found, attrs in self.elements if name in attrs and tag in (None, found)]

    def with_class(self, name: str) -> list[dict[str, str]]:
        return [attrs for _, attrs in self.elements if name in attrs.get("class", "").split()]

    @property
    def text(self) -> str:
        return " ".join(text for tag, text in self.texts if tag not in ("style", "script"))


def segment(start: int, best: int = 0, last: int = 10**6) -> SegmentView:
    """Frames from `start` at 10 a second, most attention on the `best`-th; frames past `last` repeat it."""
    numbers = tuple(min(number, last) for number in range(start, start + FRAMES))
    attention = tuple(0.3 if place == best else 0.1 for place in range(FRAMES))
    return SegmentView(numbers, tuple(number / 10 for number in numbers), attention)


def lead(rank: int, pairs: int = 1, person_id: str | None = None, last: int = 10**6) -> Lead:
    start = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)
    video = VideoRef(f"video-{rank:03}", f"/data/cam{rank}/{rank}.mp4", f"cam{rank}", start, person_id)
    found = (SegmentPair(segment(4 * pair, 2), segment(40 * pair, 5, last), 0.9 - pair / 100) for pair in range(pairs))
    return Lead(rank, video, 1 - rank / 100, None, 7 * rank, tuple(found))


def search(*leads: Lead, target: str = "target-a") -> SearchResult:
    video = VideoRef(target, f"/data/{target}.mp4", "cam0", person_id="p1")
    return SearchResult(video, 4, leads, "/data/gallery", 1200, 900, 100, "v3", "model-x", False, seconds=1.5)


def figure(video: VideoRef, numbers: Sequence[int]) -> Mapping[int, NDArray[np.uint8]]:
    """A walking figure before a textured wall, in colours that depend on the video."""
    seed = np.random.default_rng(sum(video.video_id.encode()))
    colour = [int(value) for value in seed.integers(0, 255, 3)]
    wall = cv2.GaussianBlur(seed.integers(0, 255, (256, 128, 3)).astype(np.uint8), (7, 7), 0)
    crops = {}
    for number in numbers:
        crop = wall.copy()
        cv2.ellipse(crop, (40 + number % 40, 120), (22, 70), 0, 0, 360, colour, -1)
        cv2.circle(crop, (40 + number % 40, 36), 16, (200, 160, 140), -1)
        crops[number] = crop
    return crops


def clip(video: VideoRef, segment: SegmentView) -> Clip:
    """Bytes that name the video, of 4 s around the segment."""
    return Clip(max(0.0, segment.start_s - 1.5), segment.end_s + 1.8, f"a clip of {video.video_id}".encode())


def nothing(video: VideoRef, numbers: Sequence[int]) -> Mapping[int, NDArray[np.uint8]]:
    return {}


def test_page_is_well_formed_and_asks_nothing_of_the_network() -> None:
    html = render_report([search(lead(1, pairs=2), lead(2))], figure)
    page = Page(html)
    for name in ("href", "src", "srcset", "action", "data", "poster", "xlink:href", "ping"):
        assert all(value.startswith(("#", "data:image/jpeg;base64,")) for value in page.attribute(name))
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.elements}
    style = html.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page.attribute("content", "meta")


def test_the_only_script_is_the_one_that_plays_clips_and_clips_are_inside() -> None:
    html = render_report([search(lead(1), lead(2))], figure, clips=clip)
    page = Page(html)
    (policy,) = [content for content in page.attribute("content", "meta") if "default-src" in content]
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; media-src data:; script-src 'sha256-{digest}';" in policy
    sources = page.attribute("src")
    begins = "data:video/mp4;base64,"
    assert [base64.b64decode(one.removeprefix(begins)).decode() for one in sources] == [
        f"a clip of {name}" for name in ("target-a", "video-001", "video-002")
    ]
    assert "innerHTML" not in script and "3, 0 kB in all, 0 kB each" in page.text
    videos = [attrs for tag, attrs in page.elements if tag == "video"]
    assert all({"muted", "loop", "controls", "aria-label"} <= attrs.keys() for attrs in videos)


def test_the_attention_of_a_clip_stands_at_the_times_of_its_frames() -> None:
    one = lead(1)  # frames from 0.0 to 0.7 s, the third and the sixth of which got most
    page = Page(render_report([search(one)], figure, clips=lambda *_: Clip(0.0, 2.0, b"mp4")))
    bars = [attrs["style"] for tag, attrs in page.elements if tag == "span" and "left:" in attrs.get("style", "")]
    assert [style.split(";")[0] for style in bars] == [f"left:{5 * n:.2f}%" for n in range(FRAMES)] * 2
    assert [style.endswith("height:100.0%") for style in bars[FRAMES:]] == [n == 5 for n in range(FRAMES)]
    assert page.attribute("data-seconds") == ["2.000"] * 2


def test_a_lead_without_a_clip_keeps_its_pictures_and_says_why() -> None:
    def some(video: VideoRef, segment: SegmentView) -> Clip:
        if video.video_id == "video-001":
            raise VideoError("missing", f"{HOSTILE} does not exist")
        if video.video_id == "video-002":
            raise PipelineError("the boxes cannot be read any more")
        return clip(video, segment)

    html = render_report([search(lead(1), lead(2), lead(3))], figure, clips=some)
    page = Page(html)
    assert "does not exist." in page.text and "No clip: the boxes cannot be read any more." in page.text
    assert "2, 0 kB in all, 0 kB each; 2 could not be made, and why stands with each" in page.text
    assert len(page.attribute("src")) == 2 and len(page.with_class("compare")) == 3 and "alert('x')" not in html
    assert "No clip" not in Page(render_report([search(lead(1))], figure)).text  # where none were asked for


def test_a_lead_shows_the_scene_that_it_was_cut_out_of() -> None:
    def some(video: VideoRef, segment: SegmentView) -> Scene | None:
        if video.video_id == "video-001":
            return Scene(b"a jpeg", 400, 300, (0.25, 0.5, 0.125, 0.25), segment.time_s[0])
        if video.video_id == "video-002":
            raise VideoError("missing", f"{HOSTILE} does not exist")
        return None

    html = render_report([search(lead(1), lead(2), lead(3))], figure, scenes=some)
    page = Page(html)
    (box,) = [attrs for tag, attrs in page.elements if tag == "rect" and "x" in attrs]
    assert [box[name] for name in ("x", "y", "width", "height")] == ["100.0", "150.0", "50.0", "75.0"]
    assert "data:image/jpeg;base64," + base64.b64encode(b"a jpeg").decode() in page.attribute("href", "image")
    assert len(page.with_class("scene")) == 1 and "The scene at 0.00 s" in page.text
    assert page.text.count("No scene:") == 1 and "does not exist." in page.text and "alert('x')" not in html
    assert not Page(render_report([search(lead(1))], figure)).with_class("scene")  # where none were asked for


def test_clips_that_lie_beside_the_page_are_linked() -> None:
    page = Page(render_report([search(lead(1))], figure, clips=lambda video, _: Clip(0.0, 4.0, f"clips/{video.video_id}.mp4")))
    assert page.attribute("src") == ["clips/target-a.mp4", "clips/video-001.mp4"]
    assert "clips/video-001.mp4" in page.attribute("href", "a")
    assert any("media-src data: 'self';" in content for content in page.attribute("content", "meta"))


def test_each_lead_has_a_link_of_its_own_and_a_way_back() -> None:
    page = Page(render_report([search(lead(1), lead(2), lead(3))], figure))
    links = page.attribute("href", "a")
    for rank in (1, 2, 3):
        assert f"#target-1-lead-{rank}" in links
    assert links.count("#target-1-list") == 3 and "target-1-list" in page.attribute("id")
    assert (links.count("#target-1-lead-1"), links.count("#target-1-lead-2")) == (1 + 1 + 1, 1 + 1 + 2)  # glance, own, beside
    assert "#top" in links and "top" in page.attribute("id")


def test_printed_pages_tell_the_case_and_who_searched_and_nothing_breaks_out_of_the_style() -> None:
    result = dataclasses.replace(
        search(lead(1)), record=OnRecord("Anna", case='7-26"; } </style><script>'), searched_at=datetime(2026, 3, 1, tzinfo=UTC)
    )
    html = render_report([result], figure)
    style = html.split("<style>")[1].split("</style>")[0]
    written = re.findall(r'content: "([^"]*)"; }', style)
    said = [re.sub(r"\\([0-9a-f]+) ", lambda one: chr(int(one[1], 16)), words) for words in written]
    assert said[:2] == ['Case 7-26"; } </style><script>', "Searched by Anna, 2026-03-01 00:00:00 UTC"]
    assert 'counter(page) " of " counter(pages)' in style and "<script" not in html
    assert "No case number" not in style and '"No\\20 case' in render_report([search(lead(1))], figure)


def test_anchors_lead_somewhere_and_ids_are_unique() -> None:
    results = [search(lead(1, pairs=2), lead(2), target="a"), search(lead(1), target="b")]
    page = Page(render_report(results, figure, show_labels=True))
    ids = page.attribute("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in page.attribute("href") if value.startswith("#")} <= set(ids)
    assert {value for name in ("aria-labelledby",) for value in page.attribute(name)} <= set(ids)


def test_every_lead_appears_once_in_the_order_of_ranks_with_its_facts() -> None:
    leads = [lead(rank) for rank in range(1, 13)]
    leads[2] = dataclasses.replace(leads[2], probability=0.4321, video=dataclasses.replace(leads[2].video, track=17))
    page = Page(render_report([search(*leads)], figure))
    titles = [text for tag, text in page.texts if tag == "h4"]
    assert titles == [one.video.video_id for one in leads]
    for one in leads:
        assert one.video.uri in page.text
        assert f"score {one.score:.3f}" in page.text
    assert "probability 0.432" in page.text and "Track 17" in page.text


def test_pictures_are_described_and_every_frame_tells_its_attention() -> None:
    page = Page(render_report([search(lead(1, pairs=3))], figure))
    pictures = [attrs for tag, attrs in page.elements if tag == "svg" and attrs.get("role") == "img"]
    assert pictures and all(attrs.get("aria-label") for attrs in pictures)
    described = [attrs["aria-label"] for attrs in pictures if "attention 0." in attrs["aria-label"]]
    assert len(described) == 3 * 2 * FRAMES
    assert sum("attention 0.30" in words for words in described) == 3 * 2
    assert "Candidate frame 45 at 4.50 s, attention 0.30" in described
    assert page.text.count("30 %") == 3 * 2


def test_first_pair_is_open_and_the_others_are_folded() -> None:
    page = Page(render_report([search(lead(1, pairs=3))], figure))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("details") == 2
    assert len(page.with_class("film")) == 3
    assert tags[: tags.index("details")].count("figure") == 1 + 2  # the comparison and both sides of the first pair


def test_comparison_shows_the_frames_with_most_attention() -> None:
    def marked(video: VideoRef, numbers: Sequence[int]) -> Mapping[int, NDArray[np.uint8]]:
        return {number: np.full((512, 256, 3), 10 * number, np.uint8) for number in numbers}

    page = Page(render_report([search(lead(1))], marked))
    large = {attrs["id"] for tag, attrs in page.elements if tag == "image" and attrs["height"] == "208"}
    assert len(large) == 2  # frame 2 of the target and frame 5 of the candidate
    shown = [value[1:] for value in page.attribute("href", "use") if value[1:] in large]
    assert len(shown) == 3 and len(set(shown)) == 2  # once in the overview, both in the comparison


def test_wall_clock_needs_the_start_time_and_is_in_utc() -> None:
    known = lead(1)
    pair = SegmentPair(segment(0), segment(605), 0.5)
    known = dataclasses.replace(known, best_pairs=(pair,))
    unknown = dataclasses.replace(known, rank=2, video=dataclasses.replace(known.video, start_time=None))
    page = Page(render_report([search(known, unknown)], figure))
    assert page.text.count("2024-05-01 12:01:00.5 – 12:01:01.2 UTC") == 1
    assert page.text.count("60.50 s (0:01:00)") == 2
    assert page.text.count("time not given") == 2  # the second lead and the target


def test_bars_are_relative_to_the_larger_attention_of_the_pair() -> None:
    even = dataclasses.replace(segment(0), attention=(1 / FRAMES,) * FRAMES)
    peaked = dataclasses.replace(segment(8), attention=(0.5, 0.5, *(0.0,) * (FRAMES - 2)))
    one = dataclasses.replace(lead(1), best_pairs=(SegmentPair(even, peaked, 0.5),))
    styles = Page(render_report([search(one)], figure)).attribute("style", "span")
    assert styles == ["height:25.0%"] * FRAMES + ["height:100.0%"] * 2 + ["height:0.0%"] * (FRAMES - 2)


def test_padded_frames_are_marked() -> None:
    page = Page(render_report([search(lead(1, last=4))], figure))
    repeated = [attrs for attrs in page.with_class("frame") if "repeated" in attrs["class"].split()]
    assert len(repeated) == 3 and all(attrs["title"].endswith("repeated") for attrs in repeated)
    assert len([text for tag, text in page.texts if text == "repeat"]) == 3
    assert not Page(render_report([search(lead(1))], figure)).with_class("repeated")


def test_sides_of_different_length_share_their_columns() -> None:
    short = SegmentView((3, 4), (0.3, 0.4), (0.5, 0.5))
    one = dataclasses.replace(lead(1), best_pairs=(SegmentPair(short, segment(0), 0.5),))
    page = Page(render_report([search(one)], figure))
    assert len(page.with_class("frame")) == 2 + FRAMES
    assert page.with_class("film")[0]["style"] == f"--columns:{FRAMES}"


def test_hostile_words_are_shown_and_never_become_markup() -> None:
    one = lead(1)
    video = dataclasses.replace(one.video, video_id=HOSTILE, uri=HOSTILE, camera_id=HOSTILE, person_id=HOSTILE)
    result = search(dataclasses.replace(one, video=video), target=HOSTILE)
    result = dataclasses.replace(
        result,
        **dict.fromkeys(("gallery", "index_version", "model"), HOSTILE),
        record=OnRecord(HOSTILE, HOSTILE, HOSTILE),
        filters=(HOSTILE,),
    )
    for pictures in (figure, nothing):
        page = Page(render_report([result, search(target="b")], pictures, show_labels=True))
        assert not {"script", "b"} & {tag for tag, _ in page.elements}
        assert page.text.count(" ".join(HOSTILE.split())) >= 12


def test_unreadable_pictures_become_placeholders_and_are_told_once() -> None:
    def partly(video: VideoRef, numbers: Sequence[int]) -> Mapping[int, NDArray[np.uint8]]:
        crops = figure(video, numbers)
        return {n: crop for n, crop in crops.items() if not (video.video_id == "video-001" and n in (2, 3))}

    page = Page(render_report([search(lead(1), lead(2))], partly))
    assert page.text.count("Some pictures are missing.") == 1
    assert "2 frames of 1 video could not be read" in page.text
    assert page.attribute("href", "use").count("#no-picture") == 2
    assert "Some pictures are missing." not in Page(render_report([search(lead(1))], figure)).text
    assert [text for tag, text in Page(render_report([search(lead(1))], nothing)).texts if tag == "h4"] == ["video-001"]


def test_pictures_are_asked_once_a_video_and_embedded_once() -> None:
    asked: list[VideoRef] = []

    def counted(video: VideoRef, numbers: Sequence[int]) -> Mapping[int, NDArray[np.uint8]]:
        asked.append(video)
        assert list(numbers) == sorted(set(numbers))
        return figure(video, numbers)

    page = Page(render_report([search(lead(1, pairs=3), lead(2, pairs=3))], counted))
    assert len(asked) == len(set(asked)) == 3
    embedded = page.attribute("href", "image")
    assert len(embedded) == len(set(embedded)) < len(page.attribute("href", "use"))


def test_picture_of_a_wrong_kind_is_an_error_that_says_so() -> None:
    with pytest.raises(PipelineError, match=r"RGB uint8 \[h, w, 3\], not float32 \[4, 4\]"):
        render_report([search(lead(1))], lambda video, numbers: {n: np.zeros((4, 4), np.float32) for n in numbers})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gallery_videos": 0, "eligible": 0, "scored": 0}, "The index holds no videos"),
        ({"eligible": 0, "scored": 0, "filters": ("camera is cam9",)}, "No video of the gallery passes the filters"),
        ({"eligible": 0, "scored": 0}, "The gallery holds no video that could be searched"),
        ({}, "100 of 900 eligible videos were scored in full"),
    ],
)
def test_no_leads_says_why(changes: dict[str, object], words: str) -> None:
    page = Page(render_report([dataclasses.replace(search(), **changes)], figure))
    assert words in page.text
    assert not page.with_class("lead")


def test_lead_without_pairs_still_has_its_card() -> None:
    page = Page(render_report([search(dataclasses.replace(lead(1), best_pairs=()))], figure))
    assert "No segment pairs were kept" in page.text and len(page.with_class("lead")) == 1


def test_several_targets_have_contents_and_a_section_each() -> None:
    other = dataclasses.replace(search(lead(1), lead(2), target="b"), eligible=10)
    page = Page(render_report([search(lead(1), target="a"), other, search(target="c")], figure))
    assert page.attribute("id", "section") == ["target-1", "target-2", "target-3"]
    assert [value for value in page.attribute("href", "a") if re.fullmatch(r"#target-\d", value)] == [
        "#target-1",
        "#target-2",
        "#target-3",
    ]
    assert "2 leads" in page.text and "0 leads" in page.text
    assert len(page.with_class("funnel")) == 3  # the counts differ, so each target has its own
    assert "targets" not in Page(render_report([search(lead(1))], figure)).attribute("id")


def test_facts_that_targets_share_stand_once_and_others_stand_with_their_target() -> None:
    slow = dataclasses.replace(search(target="b"), seconds=9.0)
    page = Page(render_report([search(target="a"), slow], nothing))
    terms = [text for tag, text in page.texts if tag == "dt"]
    assert terms.count("Gallery") == 1 and terms.count("Time taken") == 2
    assert "1.5 s" in page.text and "9.0 s" in page.text


def test_header_tells_who_searched_what_and_why() -> None:
    result = dataclasses.replace(
        search(lead(1)),
        searched_at=datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        record=OnRecord("a.analyst", "missing person", "2025-17"),
        filters=("camera is cam1 or cam2",),
    )
    text = Page(render_report([result], figure)).text
    for words in ("2025-01-02 03:04:05 UTC", "a.analyst", "missing person", "2025-17", "camera is cam1 or cam2"):
        assert words in text
    assert "1,200 videos in the index 900 eligible after filters 100 shortlisted and scored in full" in text
    assert "of the shortlist" not in text
    shorter = Page(render_report([dataclasses.replace(result, passed_over=1900)], figure)).text
    assert "100 shortlisted and scored in full; the other 1,900 of the shortlist were not, since the last ones scored" in shorter
    assert "/data/gallery" in text and "v3" in text and "model-x" in text


def test_the_page_says_how_scores_and_probabilities_were_made() -> None:
    asked = dataclasses.replace(
        search(lead(1)), none_probability=0.5, calibration="people of a town", expected_matches=1.0, not_indexed=1300
    )
    plain = Page(render_report([asked], figure)).text
    assert (
        "all pair scores: the better, and the more visible" in plain
        and "calibrated on people of a town; 1 match expected" in plain
    )
    assert "1,200 videos in the index; 1,300 of the gallery are not in it yet and were not searched" in plain
    score = ScoreSettings(threshold=0.75, aggregate="sum", normalise="none")
    other = Page(render_report([dataclasses.replace(asked, score=score, expected_matches=40.0)], figure)).text
    assert "sum of the pair scores: those of at least 0.75" in other and "40 matches expected" in other


def test_only_an_exact_search_is_said_to_be_one() -> None:
    plain = dataclasses.replace(search(lead(1)), scored=900, eligible=900)
    exact = dataclasses.replace(plain, settings=SearchSettings(exact=True))
    assert "exact: every eligible video was scored" in Page(render_report([exact], figure)).text
    assert "exact:" not in Page(render_report([plain], figure)).text


def test_a_time_at_the_end_of_the_calendar_is_shown_as_none() -> None:
    late = lead(1)
    late = dataclasses.replace(
        late, video=dataclasses.replace(late.video, start_time=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
    )
    assert "target-a" in Page(render_report([search(late)], figure)).text


def test_labels_are_shown_only_when_asked_for() -> None:
    result = search(lead(1, person_id="p1"), lead(2, person_id="p2"), lead(3))
    plain = Page(render_report([result], figure)).text
    assert "label" not in plain and "p1" not in plain
    page = Page(render_report([result], figure, show_labels=True))
    assert "1 of the top 3 leads carry the target’s label (p1)." in page.text
    marks = [text for tag, text in page.texts if tag == "p" and text.endswith(" label")]
    assert marks == ["✓ same label", "✗ other label", "– no label"]


def test_a_target_without_a_label_marks_no_lead() -> None:
    result = search(lead(1, person_id="p1"), lead(2))
    result = dataclasses.replace(result, target=dataclasses.replace(result.target, person_id=None))
    page = Page(render_report([result, dataclasses.replace(search(), target=VideoRef("b", "/b.mp4"))], figure, show_labels=True))
    assert page.text.count("The target carries no label") == 1  # and nothing is said of labels where there are no leads
    assert not page.with_class("label") and "of the top" not in page.text


def test_when_somebody_is_seen_is_told_in_the_zone_asked_for() -> None:
    start = datetime(2024, 5, 1, 23, 59, tzinfo=UTC)
    one = lead(1)
    times = {"start_time": start, "seen_from": start + timedelta(seconds=30), "seen_to": start + timedelta(seconds=90)}
    one = dataclasses.replace(one, video=dataclasses.replace(one.video, **times))
    text = Page(render_report([search(one)], figure)).text
    assert "seen 2024-05-01 23:59:30 – 2024-05-02 00:00:30 UTC" in text
    abroad = dataclasses.replace(search(one), settings=SearchSettings(zone="Asia/Kathmandu"))
    text = Page(render_report([abroad], figure)).text
    assert "seen 2024-05-02 05:44:30 – 05:45:30 +0545" in text and "Best pair 2024-05-02 05:44:00.0 – 05:44:00.7 +0545" in text


def test_videos_without_a_time_are_counted_where_they_were_left_out() -> None:
    left_out = dataclasses.replace(search(lead(1)), untimed=1234)
    assert (
        "900 eligible after filters; 1,234 videos have no time and were left out" in Page(render_report([left_out], figure)).text
    )
    assert "no time" not in Page(render_report([search(lead(1))], figure)).text
    apart = Page(render_report([left_out, search(target="b")], figure))
    assert len(apart.with_class("funnel")) == 2  # each target has its own


def test_copies_are_marked_with_the_lead_that_they_are_copies_of() -> None:
    first, second = lead(1), lead(2)
    same = (dataclasses.replace(one, video=dataclasses.replace(one.video, ingested_hash="file:1")) for one in (first, second))
    page = Page(render_report([search(*same, lead(3))], figure))
    assert page.text.count("same bytes as lead 1") == 1 and "same bytes as lead 2" not in page.text
    assert "same bytes" not in Page(render_report([search(first, second)], figure)).text


def test_untrained_ranking_and_missing_calibration_are_told() -> None:
    trained = Page(render_report([search(lead(1))], figure)).text
    assert "untrained head" not in trained and "comes from a calibration" not in trained
    untrained = dataclasses.replace(search(dataclasses.replace(lead(1), probability=0.5)), untrained=True)
    text = Page(render_report([untrained], figure)).text
    assert "untrained head" in text and "comes from a calibration" in text


def test_page_speaks_of_leads_and_never_of_matches() -> None:
    results = [search(lead(1, pairs=2, person_id="p1")), search(target="b")]
    text = Page(render_report(results, nothing, show_labels=True)).text
    assert "match" not in text.lower()
    assert "leads, to be checked by a person" in text and "US 11,301,687 B2" in text


def test_page_with_twenty_leads_stays_below_three_megabytes() -> None:
    html = render_report([search(*(lead(rank, pairs=3) for rank in range(1, 21)))], figure)
    assert len(html.encode()) < 3_000_000
    assert len(Page(html).with_class("frame")) == 20 * 3 * 2 * FRAMES


def test_report_is_written_to_its_place(tmp_path: Path) -> None:
    result = dataclasses.replace(search(lead(1)), record=OnRecord(reason="bytes that are no text: \udcff"))
    uri = write_report([result], tmp_path / "out", figure)
    assert uri == str(tmp_path / "out" / "report.html")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    assert "bytes that are no text: ?" in Path(uri).read_text("utf-8")


def test_report_on_nothing_is_refused() -> None:
    with pytest.raises(UsageError):
        render_report([], figure)


# ---- a path


def followed(*leads: Lead, apart: bool = False) -> SearchResult:
    """The target is seen an hour after the first lead, which joined; the last lead is not in."""
    result = search(*leads)
    target = dataclasses.replace(result.target, start_time=datetime(2024, 5, 1, 13, 0, tzinfo=UTC))
    unseen = VideoRef("unseen", "/data/unseen.mp4")
    appearances = (
        Appearance(leads[0].video, "joined", 2, 0.9912, 0.031),
        Appearance(target, "target"),
        Appearance(unseen, "confirmed"),
    )
    pairs = ((leads[0].video, leads[-1].video),) if apart else ()
    return dataclasses.replace(result, target=target, followed=Followed(appearances, pairs, 2, "a rule"))


def test_a_path_shows_each_appearance_in_its_lane_and_why_it_is_in() -> None:
    page = Page(render_report([followed(lead(1), lead(2))], figure))
    stops = page.with_class("stop")
    assert [attrs["style"].split(";")[0] for attrs in stops] == ["left:0.00%", "left:100.00%"]
    assert [attrs["style"].split("--lane:")[1] for attrs in stops] == ["0", "1"]
    assert "joined in round 2, score 0.9912, 0.031 strangers expected to score so" in page.text
    assert "3 appearances" in page.text and "confirmed camera not given · time not given unseen" in page.text
    assert "leads join by a rule" in page.text
    cards = [attrs["href"] for tag, attrs in page.elements if tag == "a" and attrs["href"] == "#target-1-lead-1"]
    assert len(cards) == 4  # from the path, from the glance, from itself and from the lead after it
    assert [text for tag, text in page.texts if tag == "p" and text == "joined"] == ["joined"]  # on the card of lead 1 only
    assert "Two places" not in page.text


def test_a_path_names_two_places_at_once() -> None:
    page = Page(render_report([followed(lead(1), lead(2), apart=True)], figure))
    assert "Two places at once. video-001 (camera cam1 ) and video-002 (camera cam2 )" in page.text
    assert "The second was left out." in page.text


def test_a_path_without_cameras_and_times_is_a_list() -> None:
    result = search(lead(1))
    alone = Followed((Appearance(result.target, "target"),), (), 0, "a rule")
    page = Page(render_report([dataclasses.replace(result, followed=alone)], nothing))
    assert "so the path cannot be drawn" in page.text and "1 appearance," in page.text
    assert page.with_class("stop") == []


def test_hostile_names_in_a_path_stay_text() -> None:
    one = lead(1)
    one = dataclasses.replace(one, video=dataclasses.replace(one.video, video_id=HOSTILE, camera_id=HOSTILE))
    html = render_report([followed(one, lead(2), apart=True)], figure)
    assert Page(html).elements and "<script" not in html and "<b>bold" not in html
