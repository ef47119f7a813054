"""What a search found: pages of leads, all scores, cameras and times, what speaks for a lead, and searching on with it."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit, logit
from starlette.testclient import TestClient

from pipeline.gallery.audit import read_records
from pipeline.gallery.gallery import VIDEOS_SCHEMA, Gallery
from pipeline.index.build import build_index
from pipeline.retention.forget import Selection, forget
from tests.service.test_service import anna, done, gallery, opened, service, stranger  # noqa: F401 - fixtures

LEADS = "/api/v1/searches/{}/leads"


@pytest.fixture
def everything(anna: TestClient) -> tuple[str, list[dict]]:  # noqa: F811
    """A search of which all videos are leads: its address, and they."""
    search_id = done(anna, top=23, exact=True)["search_id"]
    return search_id, anna.get(LEADS.format(search_id)).json()["leads"]


def test_all_scores_are_in_the_distribution(anna: TestClient, everything: tuple[str, list[dict]]) -> None:  # noqa: F811
    _, leads = everything
    few = done(anna, top=3, exact=True)["search_id"]  # fewer leads, the same scores
    found = anna.get(f"/api/v1/searches/{few}/distribution", params={"bins": 20}).json()
    counts, edges = np.histogram([lead["score"] for lead in leads], 20, (0, 1))
    assert found["counts"] == counts.tolist() and found["edges"] == pytest.approx(edges.tolist()) and found["scored"] == 23
    assert found["lowest_lead"] == leads[2]["score"]
    assert anna.get(f"/api/v1/searches/{few}/distribution", params={"bins": 1}).status_code == 422


def test_the_timeline_has_the_best_videos_where_and_when_they_are(
    anna: TestClient,  # noqa: F811
    everything: tuple[str, list[dict]],
) -> None:
    _, leads = everything
    few = done(anna, top=3, exact=True)["search_id"]
    found = anna.get(f"/api/v1/searches/{few}/timeline").json()
    assert found["cameras"] == ["cam0", "cam1"] and (found["left_out"], found["untimed"]) == (0, 0)
    names = ("video_id", "camera_id", "seen_from", "score")
    assert sorted(tuple(one[name] for name in names) for one in found["points"]) == sorted(
        tuple(one[name] for name in names) for one in leads
    )
    assert [one["rank"] for one in found["points"]] == [1, 2, 3] + [None] * 20
    scores = [one["score"] for one in found["points"]]
    assert scores == sorted(scores, reverse=True)
    some = anna.get(f"/api/v1/searches/{few}/timeline", params={"limit": 5}).json()
    assert some["points"] == found["points"][:5] and some["left_out"] == 18


def test_evidence_says_how_much_each_frame_counts(anna: TestClient, everything: tuple[str, list[dict]]) -> None:  # noqa: F811
    search_id, leads = everything
    found = anna.get(f"{LEADS.format(search_id)}/1/evidence").json()
    assert found["video_id"] == leads[0]["video_id"] and found["pairs"] == leads[0]["pairs"]
    expected: dict[int, float] = {}
    for pair in leads[0]["pairs"]:
        for frame, share in zip(pair["candidate"]["frames"], pair["candidate"]["attention"], strict=True):
            expected[frame] = max(share, expected.get(frame, 0))
    top = max(expected.values())
    assert {one["frame"]: one["share"] for one in found["shares"]} == pytest.approx({n: s / top for n, s in expected.items()})
    times = [one["time_s"] for one in found["shares"]]
    assert times == sorted(times) == pytest.approx([frame / 10 for frame in sorted(expected)])
    assert anna.get(f"{LEADS.format(search_id)}/99/evidence").status_code == 404


def test_refining_averages_the_logits_and_hides_what_is_different(
    anna: TestClient,  # noqa: F811
    gallery: Gallery,  # noqa: F811
) -> None:
    plain = {"top": 23, "exact": True}

    def scores(**asked: object) -> dict[str, float]:
        leads = anna.get(LEADS.format(done(anna, **plain, **asked)["search_id"])).json()["leads"]
        return {one["video_id"]: one["score"] for one in leads}

    of_target, of_confirmed = scores(target="id:v001"), scores(target="id:v000")
    search_id = done(anna, **plain)["search_id"]
    address = f"/api/v1/searches/{search_id}/refine"
    assert anna.post(address, json={"confirmed": [], "hidden": ["v002"]}).status_code == 422
    assert anna.post(address, json={"confirmed": ["v002"], "hidden": ["v002"]}).status_code == 422
    refined = anna.post(address, json={"confirmed": ["v000"], "hidden": ["v002"]})
    assert refined.status_code == 202 and refined.json()["search_id"] != search_id
    ended = anna.get(refined.headers["location"], params={"wait": 30}).json()
    assert ended["state"] == "done" and (ended["asked"]["confirmed"], ended["asked"]["rejected"]) == (["v000"], ["v002"])
    found = [one["video_id"] for one in anna.get(LEADS.format(ended["search_id"])).json()["leads"]]
    both = {name: expit((logit(of_target[name]) + logit(of_confirmed[name])) / 2) for name in set(found) - {"v000", "v001"}}
    # What the best leads say of others is not asked where there are several targets: the best one alone is compared.
    assert next(one for one in found if one in both) == max(both, key=lambda name: both[name]) == "v003"
    assert "v002" not in found
    record = read_records(gallery)[-1]
    assert (record["action"], record["following"]["confirmed"]) == ("follow", ["v000"])
    again = anna.post(f"/api/v1/searches/{ended['search_id']}/refine", json={"confirmed": ["v002"]}).json()["asked"]
    assert (again["confirmed"], again["rejected"]) == (["v000", "v002"], [])  # said otherwise now


def test_several_targets_of_one_person_are_one_search(
    anna: TestClient,  # noqa: F811
    gallery: Gallery,  # noqa: F811
) -> None:
    plain = {"top": 23, "exact": True}

    def scores(**asked: object) -> dict[str, float]:
        leads = anna.get(LEADS.format(done(anna, **plain, **asked)["search_id"])).json()["leads"]
        return {one["video_id"]: one["score"] for one in leads}

    refined = scores(target="id:v001", confirmed=["v000"])
    records = len(read_records(gallery))
    ended = done(anna, target="id:v001", further_targets=[{"target": "id:v000"}], **plain)
    assert ended["asked"]["further_targets"] == [{"target": "id:v000", "box": None, "time_s": None, "target_camera": None}]
    (record,) = read_records(gallery)[records:]
    assert (record["target"], [one["target"] for one in record["further_targets"]]) == ("v001", ["v000"])
    leads = anna.get(LEADS.format(ended["search_id"])).json()["leads"]
    assert {one["video_id"]: one["score"] for one in leads} == pytest.approx({n: s for n, s in refined.items() if n != "v000"})
    assert all(one["pairs"] for one in leads[:3]) and {one["within"] for one in leads} == {None}
    again = anna.post(f"/api/v1/searches/{ended['search_id']}/refine", json={"confirmed": ["v002"]})
    assert again.json()["asked"]["further_targets"] == ended["asked"]["further_targets"]
    assert anna.get(again.headers["location"], params={"wait": 30}).json()["state"] == "done"
    assert read_records(gallery)[-1]["path"]["in"] == {"v000": "target", "v001": "target", "v002": "confirmed"}


@pytest.mark.parametrize(
    ("further", "status", "words"),
    [
        (["id:v001"], 202, "v001 is given twice"),
        (["id:nope"], 202, "has no video 'nope'"),
        (["upload:nope"], 404, "no such upload of yours"),
        (["/etc/passwd"], 422, "a target is id:VIDEO_ID or upload:TARGET_ID"),
        ([f"id:v{number:03d}" for number in range(2, 18)], 422, "at most 15 items"),
    ],
)
def test_further_targets_that_cannot_be_are_one_sentence(
    anna: TestClient,  # noqa: F811
    further: list[str],
    status: int,
    words: str,
) -> None:
    body = {"gallery": "town", "target": "id:v001", "further_targets": [{"target": one} for one in further]}
    answer = anna.post("/api/v1/searches", json=body)
    assert answer.status_code == status
    if status == 202:
        ended = anna.get(answer.headers["location"], params={"wait": 30}).json()
        assert ended["state"] == "failed" and words in ended["error"]
    else:
        assert words in answer.json()["detail"] and answer.headers["content-type"] == "application/problem+json"


def test_leads_are_paged_in_the_order_that_is_asked_for(toy_gallery: Gallery) -> None:
    build_index(toy_gallery)
    videos = toy_gallery.snapshot().videos
    bare = videos.slice(3, 2)  # v003 has neither a time nor a camera, v004 no time
    for name, values in (("camera_id", [None, "cam0"]), ("start_time", [None, None]), ("seen_from", [None, None])):
        field = VIDEOS_SCHEMA.field(name)
        bare = bare.set_column(videos.schema.get_field_index(name), field, pa.array(values, field.type))
    toy_gallery.commit(bare, kind="correct")
    build_index(toy_gallery)
    own, client = opened(toy_gallery)
    address = LEADS.format(done(client, gallery="gallery", top=39, exact=True)["search_id"])

    def pages(limit: int, **asked: object) -> list[list[dict]]:
        found, cursor = [], {}
        while True:
            page = client.get(address, params={"limit": limit, **asked, **cursor}).json()
            found.append(page["leads"])
            if page["following"] is None:
                return found
            cursor = {"cursor": page["following"]}

    whole = client.get(address).json()
    assert whole["following"] is None and [one["rank"] for one in whole["leads"]] == list(range(1, 40))
    never, nowhere = "9999", "~"
    expected = {
        "score": whole["leads"],
        "time": sorted(whole["leads"], key=lambda one: (one["seen_from"] or never, one["rank"])),
        "camera": sorted(whole["leads"], key=lambda one: (one["camera_id"] or nowhere, one["seen_from"] or never, one["rank"])),
    }
    for sort, leads in expected.items():
        found = pages(10, sort=sort)
        assert [len(page) for page in found] == [10, 10, 10, 9] and [one for page in found for one in page] == leads, sort
        assert pages(13, sort=sort) == [leads[:13], leads[13:26], leads[26:]]  # nothing follows the last full page
    assert {one["video_id"] for one in expected["time"][-2:]} == {"v003", "v004"}
    assert expected["camera"][-1]["video_id"] == "v003"
    first = client.get(address, params={"sort": "time", "limit": 5}).json()
    forget(toy_gallery, Selection(video_ids=[first["leads"][-1]["video_id"], expected["time"][6]["video_id"]]), "asked to")
    after = client.get(address, params={"sort": "time", "limit": 2, "cursor": first["following"]}).json()["leads"]
    assert after == [expected["time"][5], expected["time"][7]]  # goes on behind the one that is gone
    own.close()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"sort": "beauty"}, "sort"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": 77}, "this cursor is of another search"),
    ],
)
def test_a_page_of_leads_that_cannot_be_is_a_problem(anna: TestClient, asked: dict[str, object], words: str) -> None:  # noqa: F811
    answer = anna.get(LEADS.format(done(anna)["search_id"]), params=asked)  # type: ignore[arg-type]
    assert answer.status_code == 422 and answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["detail"]


def test_what_is_forgotten_is_in_no_chart(toy_gallery: Gallery) -> None:
    build_index(toy_gallery)
    own, client = opened(toy_gallery)
    search_id = done(client, gallery="gallery", top=3, exact=True)["search_id"]
    best = client.get(LEADS.format(search_id)).json()["leads"][0]["video_id"]
    forget(toy_gallery, Selection(video_ids=(best,)), "asked to")
    points = client.get(f"/api/v1/searches/{search_id}/timeline").json()["points"]
    assert best not in {one["video_id"] for one in points} and len(points) == 38
    assert client.get(f"/api/v1/searches/{search_id}/distribution").json()["scored"] == 38
    assert client.get(f"{LEADS.format(search_id)}/1/evidence").status_code == 404
    own.close()


def test_videos_are_found_by_where_and_when(anna: TestClient) -> None:  # noqa: F811
    """v000, v001, ... are seen at 12:00, 12:01, ... by two cameras in turn."""
    asked = {"camera": "cam1", "seen_after": "2026-03-01T12:03:00Z", "seen_before": "2026-03-01T12:09:00Z", "limit": 2}
    first = anna.get("/api/v1/galleries/town/videos", params=asked).json()
    second = anna.get("/api/v1/galleries/town/videos", params=asked | {"cursor": first["following"]}).json()
    assert [one["video_id"] for one in first["videos"] + second["videos"]] == ["v003", "v005", "v007"]
    assert second["following"] is None
    assert anna.get("/api/v1/galleries/town/videos", params={"seen_after": "noon"}).status_code == 422
