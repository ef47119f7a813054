"""What an evaluation's page and text say, that curves go where the figures are, and that the page asks nothing of the network."""

import copy
import json
import re
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.baselines import COSINE
from pipeline.evaluation.evaluate import COATTENTION, EvaluationSettings, evaluate_index
from pipeline.evaluation.judged_pairs import Split, judged_pairs
from pipeline.evaluation.report import evaluation_text, interval, probability_lines, render_evaluation, share, spread
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.search.partitions import opened_partitions
from pipeline.settings import ScoreSettings
from tests.conftest import add_videos, people_features, toy_spec
from tests.search.test_report import HOSTILE, Page


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A document as `jobs.evaluate` writes it."""
    gallery = Gallery.open_or_create(tmp_path_factory.mktemp("data") / "gallery", GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, people_features(10, 4, 24, seed=1))
    index = build_index(gallery)
    pairs = judged_pairs(index.videos, [Split(None, None, frozenset(index.videos["source_id"].to_pylist()))])
    settings = EvaluationSettings(false_match_rate=0.01, shortlists=("5", "20%"), bootstrap=50)
    with opened_partitions(gallery, index, actors=0) as partitions:
        judged = evaluate_index(gallery, index, partitions, pairs, ScoreSettings(), settings)
    asked = {"part": "test", "protocol": "official", "split": "0", "segment_length": 8, "stride": 4}
    scored = {"ratio": 0.2, "aggregate": "mean", "normalise": "none", "bootstrap": 50}
    rates = {"false_match_rate": 0.01, "false_alarm_rate": 0.1}
    made = {
        "name": "toys",
        "data": "toys.csv",
        "model": "toy+head",
        "index_version": "v1",
        "rejected": 0,
        "notes": ["gallery without queries"],
        "made_at": "2026-03-01 12:00:00 UTC",
        "untrained": True,
        "settings": asked | scored | rates,
    }
    return json.dumps(made | judged)


@pytest.fixture
def document(written: str) -> dict[str, Any]:
    """As a notebook reads it back; what a test changes in it is its own."""
    return json.loads(written)


def page(document: dict[str, Any]) -> Page:
    parsed = Page(render_evaluation(document))
    assert parsed.open == []
    return parsed


def words(document: dict[str, Any]) -> str:
    return " ".join(re.sub(r"(?s)<style>.*?</style>|<[^>]+>", " ", render_evaluation(document)).split())


def test_the_page_asks_nothing_of_the_network(document: dict[str, Any]) -> None:
    html = render_evaluation(document)
    parsed = page(document)
    assert not re.search(r"https?:|//|url\(|@import", html)
    assert {name for name, _ in parsed.elements}.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "form"})
    assert not any({"src", "href", "action", "srcset", "onload"} & attributes.keys() for _, attributes in parsed.elements)
    policy = next(attributes for name, attributes in parsed.elements if attributes.get("http-equiv"))
    assert policy["content"].startswith("default-src 'none'")


def test_names_from_outside_are_shown_as_they_are_and_do_nothing(document: dict[str, Any]) -> None:
    document["name"] = document["model"] = document["notes"][0] = HOSTILE
    for method in document["methods"].values():
        method["camera_pairs"][0]["query_camera"] = HOSTILE
    parsed = page(document)
    assert "script" not in {name for name, _ in parsed.elements} and "b" not in {name for name, _ in parsed.elements}
    assert "{{ 7 * 7 }}" in render_evaluation(document)


def test_every_method_stands_in_the_table_with_its_figures(document: dict[str, Any]) -> None:
    text = words(document)
    for name, method in document["methods"].items():
        (ends_1, ends_ap), cmc = method["intervals"].values(), [share(value) for value in method["cmc"].values()]
        row = f"{name} {cmc[0]} {interval(ends_1)} {' '.join(cmc[1:])} {share(method['mean_ap'])} {interval(ends_ap)} "
        assert row + share(method["mean_inp"]) in text
    for fact in ("toys (toys.csv)", "toy+head", "gallery without queries", "Untrained head"):
        assert fact in text


def test_a_curve_s_points_are_the_shares_found_by_each_rank(document: dict[str, Any]) -> None:
    document["methods"][COATTENTION]["curve"] = np.linspace(0.35, 1, 50).tolist()
    lines = [attributes["points"] for name, attributes in page(document).elements if name == "polyline"]
    assert len(lines) == len(document["methods"])
    x, y = np.array([[float(n) for n in point.split(",")] for point in lines[-1].split()]).T  # the first method is drawn last
    assert len(x) == 20 and np.allclose(np.diff(x), np.diff(x)[0], atol=0.11)
    # The axis runs from 0.3, the tenth below the lowest, to 1; higher shares stand higher, which is a smaller y.
    bottom, top = 300, 12
    shares = 0.3 + (bottom - y) / (bottom - top) * 0.7
    np.testing.assert_allclose(shares, document["methods"][COATTENTION]["curve"][:20], atol=0.001)


def test_a_histogram_s_outline_is_as_high_as_its_shares(document: dict[str, Any]) -> None:
    counts = {"edges": [0.0, 1.0, 2.0, 4.0], "same": [0.0, 0.25, 0.75], "different": [0.5, 0.5, 0.0]}
    for method in document["methods"].values():
        method["histogram"] = counts
    areas = [attributes for name, attributes in page(document).elements if name == "polygon"]
    assert len(areas) == 2 * len(document["methods"])
    assert [area["class"] for area in areas[:2]] == ["area different", "area same"]
    x, y = np.array([[float(n) for n in point.split(",")] for point in areas[1]["points"].split()]).T
    np.testing.assert_allclose((x - 46) / (360 - 46 - 14) * 4, [0, 0, 1, 1, 2, 2, 4, 4], atol=0.01)
    np.testing.assert_allclose((150 - y) / (150 - 12) * 0.75, [0, 0, 0, 0.25, 0.25, 0.75, 0.75, 0], atol=0.001)


def test_the_threshold_stands_where_it_is_on_the_axis_and_nowhere_outside_it(document: dict[str, Any]) -> None:
    def marks() -> list[str]:
        return [attributes["d"] for _, attributes in page(document).elements if attributes.get("class") == "threshold"]

    for method in document["methods"].values():
        low, high = method["histogram"]["edges"][0], method["histogram"]["edges"][-1]
        for point in method["verification"]:
            point["threshold"] = low + 0.25 * (high - low)
    assert [mark.split()[0] for mark in marks()] == [f"M{46 + 0.25 * 300}"] * len(document["methods"])
    for method in document["methods"].values():
        for point in method["verification"]:
            point["threshold"] = method["histogram"]["edges"][-1] + 1
    assert marks() == []


def test_camera_pairs_come_worst_first_beside_the_baseline(document: dict[str, Any]) -> None:
    for name, method in document["methods"].items():
        method["camera_pairs"] = [
            {"query_camera": f"q{i}", "gallery_camera": "g", "queries": i, "rank_1": i / 20, "mean_ap": 0.5} for i in range(20)
        ]
        if name == COSINE:
            method["camera_pairs"].reverse()
    text = words(document)
    assert [text.index(f" q{i} g {i} {share(i / 20)} 0.500 {share(i / 20)} 0.500") for i in range(20)] == sorted(
        text.index(f" q{i} g {i} ") for i in range(20)
    )
    assert "The other 8 pairs" in text
    said = evaluation_text(document)
    assert "worst of 20 camera pairs" in said and "q4 to g" in said and "q5 to g" not in said


def test_a_rate_that_the_pairs_cannot_show_is_said(document: dict[str, Any]) -> None:
    assert "cannot show" not in words(document) + evaluation_text(document)
    for method in document["methods"].values():
        for point in method["verification"]:
            point["reachable"] = False
    assert "1,440 pairs of different persons cannot show a rate of 0.01: the lowest that they can show is 0.00069" in words(
        document
    )
    assert "1440 pairs cannot show a rate below 0.00069" in evaluation_text(document)


def test_a_gallery_of_one_person_has_no_thresholds(document: dict[str, Any]) -> None:
    for method in document["methods"].values():
        method["verification"] = method["open_set"] = []
    assert "The gallery shows one person only" in words(document)
    assert "threshold" not in evaluation_text(document)


def test_what_was_not_judged_is_said(document: dict[str, Any]) -> None:
    assert "Not everything could be judged" not in words(document)
    document |= {"missing": 3, "rejected": 2}
    assert "2 inputs were rejected, and 3 videos that the protocol names are not in the index" in words(document)
    assert "3 videos" not in words(document | {"missing": 0}) and "inputs were rejected" not in words(document | {"rejected": 0})
    assert "note: 3 videos that the protocol names are not in the index" in evaluation_text(document)


def test_splits_stand_beside_their_spread(document: dict[str, Any]) -> None:
    document = copy.deepcopy(document) | {"splits": 3}
    for method in document["methods"].values():
        method["by_split"] = {"rank_1": [0.5, None, 0.7], "mean_ap": [0.25, 0.25, 0.25]}
    assert "Mean ± standard deviation over 3 splits" in words(document) and "0.600 ± 0.141 0.250 ± 0.000" in words(document)
    assert "rank-1 0.600 ± 0.141, mAP 0.250 ± 0.000" in evaluation_text(document)
    assert spread([0.5]) == "0.500 ± 0.000"


def test_without_intervals_none_are_shown(document: dict[str, Any]) -> None:
    for method in document["methods"].values():
        method["intervals"] = {"rank_1": None, "mean_ap": None}
    for name in ("rank_1", "mean_ap"):
        document["difference"][name]["interval"] = None
    document["settings"]["bootstrap"] = 0
    text = words(document)
    assert not re.search(r"\d\.\d{3}–\d", text) and "…" not in text and "95 %" not in text and "Intervals none" in text
    assert not re.search(r"\d\.\d{3}–\d", evaluation_text(document))


def test_it_says_which_pairs_count(document: dict[str, Any]) -> None:
    assert "mean of the top 0.2 of the segment pairs; none normalisation" in words(document)
    document["settings"] |= {"ratio": None, "normalise": "cohort"}
    assert "all segment pairs, the better and the more visible the more; cohort normalisation" in words(document)


def test_probabilities_of_data_without_a_match_are_no_ratio(document: dict[str, Any]) -> None:
    numbers = dict.fromkeys(("ece", "expected", "first", "first_right", "none", "absent", "none_absent", "none_present"), 0.5)
    document["probabilities"] = {"words": "a gallery", "numbers": numbers | {"matches": 0}, "strengths": []}
    assert "they add up to 0.5 where 0 pairs show one person," in "\n".join(probability_lines(document))
