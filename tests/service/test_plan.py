"""A gallery's plan, and cameras whose clocks are wrong: what is kept, what is shown, and what that changes of a path."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipeline.gallery.audit import read_records, verify
from pipeline.gallery.gallery import Gallery
from pipeline.service import guard
from pipeline.service.asking import Service
from tests.service.test_cases import decided
from tests.service.test_service import done, role

PLAN = "/api/v1/galleries/town/plan"
CAMERAS = "/api/v1/galleries/town/cameras"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)  # when v000 starts; each of the next ones a minute later


def picture(kind: str, size: tuple[int, int] = (400, 200)) -> bytes:
    """A picture whose upper left quarter is red."""
    made = Image.new("RGB", size, (250, 250, 250))
    made.paste((200, 10, 10), (0, 0, size[0] // 2, size[1] // 2))
    file = io.BytesIO()
    made.save(file, kind)
    return file.getvalue()


@pytest.fixture
def carla(service: Service) -> TestClient:
    return role(service, "admin", "Carla")


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_plan_is_decoded_anew_recorded_and_seen_by_all(
    carla: TestClient, service: Service, gallery: Gallery, kind: str
) -> None:
    assert carla.get(PLAN).status_code == 404
    content = picture(kind) + b"<script>alert(1)</script>"  # what is behind a picture
    facts = carla.put(PLAN, params={"width_m": 80}, content=content).json()
    assert (facts["width"], facts["height"], facts["width_m"], facts["height_m"]) == (400, 200, 80, 40)
    dora = role(service, "viewer", "Dora")
    assert dora.get(PLAN).json() == facts
    answer = dora.get(f"{PLAN}.jpg")
    assert answer.headers["content-type"] == "image/jpeg" and b"script" not in answer.content
    shown = np.asarray(Image.open(io.BytesIO(answer.content))).astype(int)
    assert shown.shape == (200, 400, 3)
    assert abs(shown[50, 100] - (200, 10, 10)).max() < 12 and abs(shown[150, 300] - 250).max() < 12
    record = read_records(gallery)[-1]
    assert (record["action"], record["who"], record["plan_sha256"]) == ("plan", "Carla", facts["sha256"])
    again = carla.put(PLAN, params={"width_m": 80}, content=picture("png", (300, 300))).json()
    assert again["height_m"] == 80 and len(list(Path(gallery.location.path).glob("plan-*.jpg"))) == 1
    assert carla.delete(PLAN).status_code == 204 and carla.get(PLAN).status_code == 404
    assert list(Path(gallery.location.path).glob("plan*")) == [] and read_records(gallery)[-1]["plan_sha256"] is None
    records = len(read_records(gallery))
    assert carla.delete(PLAN).status_code == 204 and len(read_records(gallery)) == records and verify(gallery) == []


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>', 422, "a plan is a PNG or JPEG"),
        (b"GIF89a", 422, "a plan is a PNG or JPEG"),
        (b"", 422, "a plan is a PNG or JPEG"),
        (b"\x89PNG\r\n\x1a\nbut no picture", 422, "the plan cannot be used: its picture"),
        (b"x" * (guard.PLAN_BYTES + 1), 413, "at most"),
    ],
)
def test_what_is_no_plan_is_refused(carla: TestClient, gallery: Gallery, content: bytes, status: int, words: str) -> None:
    refused = carla.put(PLAN, params={"width_m": 80}, content=content)
    assert refused.status_code == status and words in refused.json()["detail"], refused.text
    assert read_records(gallery) == [] and carla.get(PLAN).status_code == 404


def test_plans_are_set_by_admins_and_have_a_size(carla: TestClient, service: Service, gallery: Gallery) -> None:
    for width in ("0", "-1", "nan", "1e9"):
        assert carla.put(PLAN, params={"width_m": width}, content=picture("png")).status_code == 422
    for name in ("viewer", "investigator", "reviewer"):
        client = role(service, name)  # type: ignore[arg-type]
        assert client.put(PLAN, params={"width_m": 80}, content=picture("png")).status_code == 403
        assert client.delete(PLAN).status_code == 403
    large = carla.put(PLAN, params={"width_m": 80}, content=picture("png", (5000, 1000))).json()
    assert (large["width"], large["height"]) == (2400, 480)


def test_a_plan_that_was_changed_behind_the_service_is_not_shown(carla: TestClient, gallery: Gallery) -> None:
    carla.put(PLAN, params={"width_m": 80}, content=picture("png"))
    (file,) = Path(gallery.location.path).glob("plan-*.jpg")
    file.write_bytes(picture("jpeg", (10, 10)))
    assert carla.get(f"{PLAN}.jpg").status_code == 503
    Path(gallery.location.path, "plan.json").write_text("{}")
    assert carla.get(PLAN).status_code == 503 and "set the plan again" in carla.get(PLAN).json()["detail"]


def ahead(client: TestClient, seconds: float) -> None:
    """Say that the clock of cam1 is so far ahead."""
    said = {"cameras": [{"camera_id": "cam1", "clock_offset_s": seconds}]}
    assert client.put(CAMERAS, json=said).status_code == 200


def test_a_clock_that_is_ahead_is_set_right_where_times_are_shown(anna: TestClient, carla: TestClient, gallery: Gallery) -> None:
    search = f"/api/v1/searches/{done(anna, top=23)['search_id']}"

    def times() -> dict[str, list[tuple[str, datetime]]]:
        """(video, when it begins) as each answer says it."""
        lists = {
            "leads": anna.get(f"{search}/leads").json()["leads"],
            "timeline": anna.get(f"{search}/timeline").json()["points"],
            "videos": anna.get("/api/v1/galleries/town/videos").json()["videos"],
        }
        lists["boxes"] = [anna.get(f"/api/v1/galleries/town/videos/{name}/boxes").json() for name in ("v002", "v003")]
        return {
            name: [
                (one["video_id"], datetime.fromisoformat(one["seen_from"])) for one in sorted(found, key=lambda o: o["video_id"])
            ]
            for name, found in lists.items()
        }

    table, rows = anna.get(f"{search}/results.parquet").content, gallery.snapshot().videos
    before = times()
    assert dict(before["videos"])["v003"] == NOON + timedelta(minutes=3)
    ahead(carla, 3600.5)
    hour = timedelta(seconds=3600.5)
    for name, found in times().items():
        assert found == [(video, time - (hour if int(video[1:]) % 2 else timedelta())) for video, time in before[name]], name
    seen = anna.get(f"{search}/leads").json()["leads"]
    assert all(" 11:" in one["seen"] for one in seen if one["camera_id"] == "cam1")
    within = {"seen_after": "2026-03-01T11:00:00Z", "seen_before": "2026-03-01T11:05:00Z", "camera": "cam1"}
    inside = [one["video_id"] for one in anna.get("/api/v1/galleries/town/videos", params=within).json()["videos"]]
    assert inside == ["v001", "v003", "v005"]  # half a second before the window ends
    of_cam1 = next(one for one in anna.get(CAMERAS).json() if one["camera_id"] == "cam1")
    assert datetime.fromisoformat(of_cam1["seen_from"]) == NOON + timedelta(minutes=1) - hour
    assert gallery.snapshot().videos.equals(rows)  # what is stored is as it was
    told, before_it = (
        {row["video_id"]: row["seen_from"] for row in pq.read_table(io.BytesIO(one)).to_pylist()}
        for one in (anna.get(f"{search}/results.parquet").content, table)
    )
    assert told == {video: time - (hour if int(video[1:]) % 2 else timedelta()) for video, time in before_it.items()}
    assert read_records(gallery)[-1]["cameras"][0]["clock_offset_s"] == 3600.5


def test_a_path_is_judged_by_right_clocks(anna: TestClient, carla: TestClient) -> None:
    """v000 and v002 are of cam0, v003 of cam1 a minute after v002, by clocks."""
    search_id = done(anna)["search_id"]
    for video_id in ("v000", "v002", "v003"):
        decided(anna, video_id, "same", search_id)

    def legs() -> dict[tuple[str, str], str | None]:
        return {(one["start"], one["end"]): one["impossible"] for one in anna.get("/api/v1/cases/7-26/path").json()["legs"]}

    assert set(legs().values()) == {None}
    ahead(carla, 60.0)
    assert legs()["v002", "v003"] == "seen in two cameras at once"
    ahead(carla, 90.0)
    path = anna.get("/api/v1/cases/7-26/path").json()
    assert [one["video_id"] for one in path["appearances"]] == ["v001", "v000", "v003", "v002"]
    lead = next(one for one in anna.get("/api/v1/cases/7-26").json()["leads"] if one["video_id"] == "v003")
    assert datetime.fromisoformat(lead["seen_from"]) == NOON + timedelta(seconds=90)


@pytest.mark.parametrize("offset", ["1e300", "-4000000000", '"fast"'])
def test_a_clock_that_no_camera_has_is_refused(carla: TestClient, gallery: Gallery, offset: str) -> None:
    body = f'{{"cameras": [{{"camera_id": "cam1", "clock_offset_s": {offset}}}]}}'
    assert carla.put(CAMERAS, content=body, headers={"content-type": "application/json"}).status_code == 422
    assert read_records(gallery) == []
