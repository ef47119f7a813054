"""What is seen of videos over HTTP: clips, pictures and boxes, who looked at them, and that they go with what is forgotten."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipeline.backbone.spec import find_backbone
from pipeline.errors import PipelineError
from pipeline.footage.tracks import track
from pipeline.gallery.audit import read_records
from pipeline.gallery.clip_cache import clip_folder
from pipeline.gallery.detections import BOX, PLACE, RECORDINGS_SCHEMA
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings, frames_table
from pipeline.index.build import build_index
from pipeline.retention.forget import Selection, forget
from pipeline.search.source_places import Part, Places
from pipeline.service import asking, clips
from pipeline.service.app import create_app
from pipeline.service.asking import Service
from tests.conftest import add_videos, people_features, toy_spec
from tests.decoding.test_video import write_video
from tests.footage.made_up import footage_gallery, walk, write_recordings
from tests.service.test_service import FROM_PAGE, HOST, ORIGIN, done, opened

CLIP = "/api/v1/galleries/town/videos/{}/clip.mp4"


def town(folder: Path, settings: GallerySettings | None = None, dim: int = 24) -> Gallery:
    """Six videos of 40 frames, ten a second, each of its own file; v001 is track 5 of a boxes file."""
    made = Gallery.open_or_create(folder / "town", settings or GallerySettings(toy_spec(), 10.0, None))
    add_videos(made, people_features(2, 3, dim, seed=1))
    videos = made.snapshot().videos
    files = [str(write_video(folder / f"{name}.mp4", 40, (160, 120))) for name in videos["video_id"].to_pylist()]
    (folder / "boxes.txt").write_text("".join(f"{n + 1},5,{2 * n + 10},20,20,40\n" for n in range(40)))
    boxed = [str(folder / "boxes.txt") if name == "v001" else None for name in videos["video_id"].to_pylist()]
    columns = {
        "uri": pa.array(files),
        "boxes_uri": pa.array(boxed, pa.string()),
        "track": pa.array([None if one is None else 5 for one in boxed], pa.int64()),
        "fps": pa.array([10.0] * len(videos)),
        "width": pa.array([160] * len(videos), pa.int32()),
        "height": pa.array([120] * len(videos), pa.int32()),
    }
    for name, column in columns.items():
        videos = videos.set_column(videos.schema.get_field_index(name), VIDEOS_SCHEMA.field(name), column)
    made.commit(videos, REJECTS_SCHEMA.empty_table())
    return made


def somebody_in_recordings(folder: Path) -> Gallery:
    """Two recordings of 4 s, one behind the other; somebody, cam#1, is in the last second of one and the first of the next."""
    made = Gallery.open_or_create(folder / "town", GallerySettings(toy_spec(), 10.0, None))
    files = [str(write_video(folder / f"{name}.mp4", 40, (160, 120))) for name in "ab"]
    numbers = np.arange(30, 50)
    frames = frames_table(["cam#1"], [20], numbers, numbers / 10, np.ones((20, 24), np.float16))
    places = [
        {"recording_id": "a" if n < 40 else "b", "frame": n % 40, "time_s": (n % 40) / 10, "x": n, "y": 20, "w": 20, "h": 40}
        for n in numbers.tolist()
    ]
    frames = frames.append_column(pa.field("place", PLACE), pa.array(places, PLACE))
    shard = made.write_tables("frames", frames.schema, [frames])
    row = {"video_id": "cam#1", "uri": files[0], "source_id": "a", "track": 1, "shard": shard, "first_row": 0}
    row |= {"sampled_frames": 20, "fps": 10.0, "width": 160, "height": 120}
    recordings = [{"source_id": name, "uri": file} for name, file in zip("ab", files, strict=True)]
    videos = pa.Table.from_pylist([row], VIDEOS_SCHEMA)
    made.commit(
        videos, None, pa.Table.from_pylist(recordings, RECORDINGS_SCHEMA), kind="track", tracked={"sources": ["a"], "runs": {}}
    )
    return made


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    return town(tmp_path)


@pytest.fixture
def served(gallery: Gallery) -> Iterator[tuple[Service, TestClient]]:
    service, client = opened(gallery)
    yield service, client
    service.close()


def shown(content: bytes) -> tuple[tuple[int, int], list[float], list[float]]:
    """Width and height, times in seconds and brightness of a clip's frames."""
    with av.open(io.BytesIO(content)) as container:
        frames = list(container.decode(video=0))
    size = frames[0].width, frames[0].height
    return size, [float(one.time) for one in frames], [one.to_ndarray(format="gray").mean() for one in frames]


def test_a_clip_is_the_stretch_that_was_asked_for(served: tuple[Service, TestClient]) -> None:
    _, client = served
    answer = client.get(CLIP.format("v000"), params={"start": 1.0, "end": 2.05})
    assert answer.status_code == 200 and answer.headers["content-type"] == 'video/mp4; codecs="avc1.4d4028"'
    size, times, brightness = shown(answer.content)
    assert size == (160, 120) and times == pytest.approx([n / 10 for n in range(11)], abs=2e-3)
    assert brightness == pytest.approx([8.0 * n for n in range(10, 21)], abs=6)  # `write_video` says a frame's number so


def test_a_clip_is_made_once_and_then_given_in_any_ranges(served: tuple[Service, TestClient], gallery: Gallery) -> None:
    service, client = served
    first = client.get(CLIP.format("v000"))
    (kept,) = Path(gallery.location.path).glob("clips/*/*.mp4")
    assert kept.read_bytes() == first.content
    again = client.get(CLIP.format("v000"))
    assert again.content == first.content and again.headers["accept-ranges"] == "bytes"
    assert again.headers["content-type"] == first.headers["content-type"]
    part = client.get(CLIP.format("v000"), headers={"range": "bytes=100-299"})
    assert part.status_code == 206 and part.content == first.content[100:300]
    assert part.headers["content-range"] == f"bytes 100-299/{len(first.content)}"
    for asked, status in ((f"bytes={10**9}-", 416), ("bytes=junk", 400), ("bytes=5-1", 400)):
        refused = client.get(CLIP.format("v000"), headers={"range": asked})
        assert refused.status_code == status and refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["status"] == status and "bytes" in refused.json()["detail"]
    assert "content-range" in client.get(CLIP.format("v000"), headers={"range": f"bytes={10**9}-"}).headers
    from_within = client.get(CLIP.format("v002"), headers={"range": "bytes=50-"})  # of one that is not made yet
    assert from_within.status_code == 206 and len(from_within.content) > 1000
    assert service.clips(service.galleries["town"]).clips._making == {}


def test_a_crop_follows_the_boxes_and_a_page_gets_them(served: tuple[Service, TestClient]) -> None:
    _, client = served
    (width, height), times, _ = shown(client.get(CLIP.format("v001"), params={"view": "crop", "start": 0, "end": 3}).content)
    assert height == 128 and width == pytest.approx(64, abs=2) and len(times) == 31
    found = client.get("/api/v1/galleries/town/videos/v001/boxes", params={"start": 1.05, "end": 1.95}).json()
    assert (found["width"], found["height"]) == (160, 120) and found["first_s"] == 0
    in_time = {round(one["time_s"], 3): (one["x"], one["y"], one["w"], one["h"]) for one in found["boxes"]}
    assert in_time == {n / 10: (2.0 * n + 10, 20.0, 20.0, 40.0) for n in range(10, 21)}
    whole = client.get("/api/v1/galleries/town/videos/v000/boxes").json()
    assert whole["boxes"] == [] and whole["seen_from"].startswith("2026-03-01T12:00:00")
    assert shown(client.get(CLIP.format("v000"), params={"view": "crop"}).content)[0] == (160, 120)  # all of it is the person


def test_pictures_are_the_frames_of_that_number(served: tuple[Service, TestClient]) -> None:
    _, client = served
    for name, view, size in (("v000", "scene", (160, 120)), ("v001", "scene", (160, 120)), ("v001", "crop", (64, 128))):
        answer = client.get(f"/api/v1/galleries/town/videos/{name}/frames/2.jpg", params={"view": view})
        picture = Image.open(io.BytesIO(answer.content))
        assert picture.size == pytest.approx(size, abs=2) and abs(np.asarray(picture).mean() - 16) < 4
    assert client.get("/api/v1/galleries/town/videos/v000/frames/500.jpg").status_code == 404


def test_bytes_come_while_the_clip_is_made(served: tuple[Service, TestClient], monkeypatch: pytest.MonkeyPatch) -> None:
    service, _ = served
    gallery = service.galleries["town"]
    held = threading.Event()
    write = clips.Clips._write

    def slow(self: object, file: object, clip: clips.Clip, *rest: object) -> None:
        file.write(b"first")  # type: ignore[attr-defined]
        with clip.changed:
            clip.size += len(b"first")
            clip.changed.notify_all()
        assert held.wait(20)
        write(self, file, clip, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(clips.Clips, "_write", slow)
    of = service.clips(gallery)
    row = of.row("v000")
    assert row is not None
    made = of.clip(row, of.places(row).clip(0, 1, crop=False))
    made.begun()
    blocks = made.blocks()
    assert next(blocks) == b"first" and not made.done
    held.set()
    assert b"moov" in b"".join(blocks) and made.done


def test_who_looked_is_recorded_before_anything_is_seen(
    served: tuple[Service, TestClient], gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = served
    for _ in range(2):
        assert client.get(CLIP.format("v000")).status_code == 200
    client.get("/api/v1/galleries/town/videos/v001/boxes")
    seen = [(one["who"], one["video_id"]) for one in read_records(gallery) if one["action"] == "view"]
    assert seen == [("Anna", "v000"), ("Anna", "v001")]

    def full(*_arguments: object) -> str:
        raise PipelineError("the disk is full")

    monkeypatch.setattr(asking, "append_record", full)
    for what in ("clip.mp4", "frames/1.jpg", "boxes"):
        assert client.get(f"/api/v1/galleries/town/videos/v002/{what}").status_code == 503


def test_a_forgotten_video_is_gone_and_so_are_its_clips(served: tuple[Service, TestClient], gallery: Gallery) -> None:
    _, client = served
    root = Path(gallery.location.path) / "clips"
    for name in ("v000", "v001"):
        assert client.get(CLIP.format(name)).status_code == 200
    assert clip_folder(root, "v000").is_dir()
    forget(gallery, Selection(video_ids=("v000",)), "asked to")  # by another process: not told to the service
    assert not clip_folder(root, "v000").exists() and clip_folder(root, "v001").is_dir()
    for path in (CLIP.format("v000"), "/api/v1/galleries/town/videos/v000/boxes"):
        assert client.get(path).status_code == 404
    (root / ("0" * 32)).mkdir()
    (root / "left-over").mkdir()
    forget(gallery, Selection(video_ids=("v002",)), "asked to")
    client.get(CLIP.format("v001"))
    assert list(root.iterdir()) == [clip_folder(root, "v001")]


def test_a_clip_that_is_made_while_its_video_is_forgotten_is_not_kept(
    served: tuple[Service, TestClient], gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = served
    write = clips.Clips._write

    def forgetting(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        forget(gallery, Selection(video_ids=("v003",)), "asked to")

    monkeypatch.setattr(clips.Clips, "_write", forgetting)
    answer = client.get(CLIP.format("v003"), headers={"range": "bytes=0-99"})
    assert answer.status_code == 404 and "forgotten" in answer.json()["detail"]
    assert not list(Path(gallery.location.path).glob("clips/*/*"))


def test_the_cache_has_a_limit(served: tuple[Service, TestClient], gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    _, client = served
    sizes = [len(client.get(CLIP.format(name)).content) for name in ("v000", "v002")]
    client.get(CLIP.format("v000"))  # used again, so that the other is the oldest
    monkeypatch.setattr(clips, "CACHE_BYTES", sum(sizes) + min(sizes) // 2)
    assert client.get(CLIP.format("v003"), headers={"range": "bytes=0-99"}).status_code == 206
    kept = {file.parent for file in Path(gallery.location.path).glob("clips/*/*.mp4")}
    root = Path(gallery.location.path) / "clips"
    assert kept == {clip_folder(root, "v000"), clip_folder(root, "v003")}


def test_what_a_killed_service_left_is_removed_and_what_it_made_is_used(gallery: Gallery) -> None:
    service, client = opened(gallery)
    first = client.get(CLIP.format("v000")).content
    service.close()
    folder = clip_folder(Path(gallery.location.path) / "clips", "v000")
    (folder / f".{'a' * 32}.part").write_bytes(b"half")
    service, client = opened(gallery)
    again = client.get(CLIP.format("v000"))
    assert again.content == first and "accept-ranges" in again.headers and len(list(folder.iterdir())) == 1
    service.close()


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"start": 2, "end": 1}, 422, "ends after it starts"),
        ({"start": 0, "end": 61}, 422, "at most 60 seconds"),
        ({"start": -1, "end": 1}, 422, "start"),
        ({"start": "nan", "end": 1}, 422, ""),
        ({"view": "face"}, 422, "view"),
        ({"start": 1000, "end": 1010}, 200, ""),  # behind the end: its last picture
    ],
)
def test_what_cannot_be_shown_is_said(served: tuple[Service, TestClient], asked: dict, status: int, words: str) -> None:
    answer = served[1].get(CLIP.format("v000"), params=asked)
    assert answer.status_code == status and (status == 200 or words in answer.json()["detail"]), answer.text


def test_a_source_that_is_gone_is_said_and_the_next_one_is_shown(served: tuple[Service, TestClient], tmp_path: Path) -> None:
    _, client = served
    (tmp_path / "v000.mp4").unlink()
    answer = client.get(CLIP.format("v000"))
    assert answer.status_code == 404 and "does not exist" in answer.json()["detail"]
    assert client.get(CLIP.format("nobody")).status_code == 404
    assert client.get(CLIP.format("v002")).status_code == 200


def test_a_changed_source_is_shown_as_it_is_now(served: tuple[Service, TestClient], tmp_path: Path) -> None:
    _, client = served
    before = client.get(CLIP.format("v000")).content
    write_video(tmp_path / "v000.mp4", 20, (160, 120))
    after = client.get(CLIP.format("v000")).content
    assert len(shown(before)[1]) > 20 and len(shown(after)[1]) == 20


def test_a_person_in_recordings_is_shown_from_the_one_that_has_them(tmp_path: Path) -> None:
    service, client = opened(somebody_in_recordings(tmp_path))
    address = "/api/v1/galleries/town/videos/cam%231/"
    _, times, brightness = shown(client.get(f"{address}clip.mp4", params={"start": 3.5, "end": 4.45}).content)
    assert brightness == pytest.approx([8.0 * n if n < 32 else 255 for n in range(35, 40)], abs=6) and len(times) == 5
    _, _, brightness = shown(client.get(f"{address}clip.mp4", params={"start": 4.2, "end": 4.45}).content)
    assert brightness == pytest.approx([8.0 * n for n in (2, 3, 4)], abs=6)
    picture = client.get(f"{address}frames/43.jpg").content
    assert abs(np.asarray(Image.open(io.BytesIO(picture))).mean() - 24) < 4
    found = client.get(f"{address}boxes", params={"start": 4.05, "end": 4.25}).json()["boxes"]
    assert [one["x"] for one in found] == [40, 41, 42, 43] and set(BOX) < set(found[0])
    service.close()


def test_an_upload_can_be_looked_at_by_who_brought_it(served: tuple[Service, TestClient], tmp_path: Path) -> None:
    service, client = served
    content = write_video(tmp_path / "mine.avi", 30, (160, 120), codec="mpeg4").read_bytes()
    brought = client.post("/api/v1/targets", params={"name": "mine.avi"}, content=content).json()
    answer = client.get(f"/api/v1/targets/{brought['target_id']}/clip.mp4")
    assert shown(answer.content)[1][-1] == pytest.approx(2.9, abs=0.01)
    session, _ = service.access.sign_in(service.access.one_time("Bert"))  # type: ignore[misc]
    bert = TestClient(create_app(service, [HOST]), base_url=ORIGIN, headers=FROM_PAGE, cookies={"resight-session": session})
    assert bert.get(f"/api/v1/targets/{brought['target_id']}/clip.mp4").status_code == 404
    photo = io.BytesIO()
    Image.new("RGB", (90, 60), (200, 10, 10)).save(photo, "png")
    brought = client.post("/api/v1/targets", params={"name": "photo.png"}, content=photo.getvalue()).json()
    assert shown(client.get(f"/api/v1/targets/{brought['target_id']}/clip.mp4").content)[0] == (90, 60)


def test_the_boxes_of_a_stretch_are_those_around_it() -> None:
    boxes = tuple((float(n), (float(n), 0.0, 1.0, 1.0)) for n in range(10))
    places = Places((Part("a", 0, 0),), boxes, 0.0, 9.0)
    assert [time for time, _ in places.near(2.5, 4.0)] == [2, 3, 4, 5]
    assert [time for time, _ in places.near(20, 30)] == [9] and [time for time, _ in places.near(-5, -4)] == [0]
    assert Places((), (), 0, 1).near(0, 1) == ()
    assert places.span(None, None) == (0.0, 9.25) and places.span(70.0, None) == (70.0, 70.25)


def test_an_upload_says_whether_it_needs_a_box(served: tuple[Service, TestClient], tmp_path: Path) -> None:
    _, client = served

    def facts(name: str, content: bytes) -> dict:
        brought = client.post("/api/v1/targets", params={"name": name}, content=content).json()
        answer = client.get(f"/api/v1/targets/{brought['target_id']}")
        return answer.json() | {"status": answer.status_code, "asked": brought["sha256"]}

    found = facts("scene.mp4", write_video(tmp_path / "scene.mp4", 5, (640, 360)).read_bytes())
    assert (found["width"], found["height"], found["is_scene"], found["is_photo"]) == (640, 360, True, False)
    assert found["sha256"] == found["asked"] and found["name"] == "scene.mp4"
    photo = io.BytesIO()
    Image.new("RGB", (90, 180)).save(photo, "png")
    found = facts("photo.png", photo.getvalue())
    assert (found["width"], found["height"], found["is_scene"], found["is_photo"]) == (90, 180, False, True)
    refused = facts("a.mp4", b"nothing of the kind")
    assert refused["status"] == 422 and "the target cannot be used: a.mp4 is not in a video format" in refused["detail"]
    assert str(tmp_path) not in refused["detail"] and "/tmp" not in refused["detail"]  # noqa: S108


def test_a_box_on_a_picture_of_the_gallery_is_a_target(tmp_path: Path, toy_backbone: Path) -> None:
    made = town(tmp_path, GallerySettings(find_backbone(str(toy_backbone)), 10.0, None), 3)
    build_index(made)
    service, client = opened(made)
    ended = done(client, target="id:v000", box=[10, 10, 40, 80], time_s=2.0)
    assert ended["state"] == "done", ended
    record = read_records(made)[-1]
    assert record["target"].endswith("@10,10,40,80,2") and record["target_uri"].endswith("/v000.mp4")
    frame = client.get(f"/api/v1/searches/{ended['search_id']}/leads").json()["leads"][0]["pairs"][0]["target"]["frames"][0]
    assert frame == 20
    answer = client.get(f"/api/v1/searches/{ended['search_id']}/target/frames/20.jpg")
    assert abs(np.asarray(Image.open(io.BytesIO(answer.content))).mean() - 160) < 5
    nobody = client.post("/api/v1/searches", json={"gallery": "town", "target": "id:nobody", "box": [1, 1, 9, 9]})
    assert nobody.status_code == 404
    service.close()


def shaded(content: bytes, box: tuple[int, int, int, int]) -> list[tuple[float, float]]:
    """Of each frame of a clip the mean brightness inside a box of its picture, and in its lower right corner."""
    x, y, w, h = box
    with av.open(io.BytesIO(content)) as container:
        greys = [one.to_ndarray(format="gray") for one in container.decode(video=0)]
    return [(grey[y : y + h, x : x + w].mean(), grey[-10:, -10:].mean()) for grey in greys]


def test_who_was_forgotten_is_blanked_in_the_clips_of_others(tmp_path: Path) -> None:
    """Two people of one source, tracks 5 and 6 of its boxes file; track 5 is there from frame 20 on."""
    made = town(tmp_path)
    lines = [f"{n + 1},5,100,10,30,60\n" for n in range(20, 40)] + [f"{n + 1},6,20,20,20,40\n" for n in range(40)]
    (tmp_path / "boxes.txt").write_text("".join(lines))
    rows = [row for row in made.snapshot().videos.to_pylist() if row["video_id"] in ("v001", "v002")]
    for row, number in zip(rows, (5, 6), strict=True):
        row |= {"uri": str(tmp_path / "v001.mp4"), "boxes_uri": str(tmp_path / "boxes.txt"), "track": number}
        row |= {"ingested_hash": "file:0", "ingested_at": None}
    made.commit(pa.Table.from_pylist(rows, VIDEOS_SCHEMA), REJECTS_SCHEMA.empty_table())
    service, client = opened(made)
    inside = 100, 10, 30, 60
    asked = {"start": 0, "end": 3.95}

    def seen() -> list[tuple[float, float]]:
        return shaded(client.get(CLIP.format("v002"), params=asked).content, inside)

    plain = seen()
    assert len(plain) == 40 and [one for one, _ in plain] == pytest.approx([min(8.0 * n, 255) for n in range(40)], abs=6)
    forget(made, Selection(video_ids=("v001",)), "asked to")
    assert not list(Path(made.location.path).glob("clips/*/*"))  # those of others may show them
    blanked = seen()
    assert len(blanked) == 40
    for number, ((box, corner), (was, _)) in enumerate(zip(blanked, plain, strict=True)):
        assert corner == pytest.approx(min(8.0 * number, 255), abs=6)  # the rest is as it was
        assert box == pytest.approx(128 if number >= 10 else was, abs=8), number  # a second before they come
    still = np.asarray(Image.open(io.BytesIO(client.get("/api/v1/galleries/town/videos/v002/frames/25.jpg").content)))
    assert abs(still[10:70, 100:130].mean() - 128) < 4 and abs(still[-10:, -10:].mean() - 200) < 4
    body = {"gallery": "town", "target": "id:v002", "time_s": 3.0}
    refused = client.post("/api/v1/searches", json=body | {"box": [102, 12, 25, 50]})
    assert refused.status_code == 422 and "forgotten" in refused.json()["detail"]
    service.close()


def test_all_moments_of_who_was_forgotten_in_recordings_are_blanked(tmp_path: Path) -> None:
    made = footage_gallery(tmp_path / "gallery")
    write_recordings(made, walk(seed=1), (20.0, 40.0))
    track(made)
    kept = clips.GalleryClips(made)
    videos = made.snapshot().videos.to_pylist()
    row = max(videos, key=lambda one: one["sampled_frames"])
    theirs = made.read_video(row)["place"].to_pylist()
    assert not any(part.blanks for one in videos for part in kept.places(one).parts)
    forget(made, Selection(video_ids=(row["video_id"],)), "asked to")
    looked = 0
    for other in made.snapshot().videos.to_pylist():
        for part in kept.places(other).parts:
            for place in theirs:
                if part.uri == f"/recordings/{place['recording_id']}.mp4":
                    x, y, w, h = (place[side] for side in BOX)
                    covers = part.blanked(place["time_s"], place["time_s"])
                    assert any(a <= x and b <= y and x + w <= a + c and y + h <= b + d for _, _, (a, b, c, d) in covers)
                    assert part.shows_forgotten((x, y, w, h), place["time_s"])
                    looked += 1
    assert looked > len(theirs)
    kept.close()
