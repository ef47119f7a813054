"""The rendered pedestrians: what a clip, a full frame and a network on disk promise."""

import csv
import hashlib
import json
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.rendering.actors import compose, path_through, perform
from pipeline.rendering.appearance import sample_appearance
from pipeline.rendering.body import proportions, walk
from pipeline.rendering.camera import sample_camera_look
from pipeline.rendering.clip import HIDDEN_BELOW, render_clip
from pipeline.rendering.figure import build
from pipeline.rendering.full_frame import render_full_frame
from pipeline.rendering.mesh import posed
from pipeline.rendering.network import cameras_of, clip_seed, itinerary, render_network
from pipeline.rendering.raster import Pinhole, Window
from pipeline.rendering.scene import build_scene, street_axes

SHORT = (1.2, 1.4)


def plain_look(**changes):
    """A small overcast camera that looks down a little."""
    settings = {"clip_width": 48, "clip_height": 96, "elevation": 0.2, "distance": 11.0, "street_angle": 0.0, "sun": 0.15}
    return replace(sample_camera_look(0, 0), **(settings | changes))


def crossing(look, person, frames=12, depth=0.0, speed=0.6):
    middle, along, away = street_axes(look)
    times = (np.arange(frames) - frames / 2) / look.frame_rate
    return path_through(middle + np.outer(speed * times, along) + depth * away, person.stride, 0.0)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def frames_of(path: Path) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("network") / "out"
    render_network(out, people=4, cameras=3, clips_per_person_and_camera=1, seed=3, hidden_share=0.5)
    return out


# --- the body -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("person", range(6))
def test_a_walker_is_as_tall_as_said_and_keeps_a_foot_on_the_ground(person):
    appearance = replace(sample_appearance(0, person), headwear="none", hair="bald", lean=0.0)
    frames = 16
    rotations, offsets = walk(appearance, np.zeros((frames, 2)), np.full(frames, 0.4), np.arange(frames) / frames)
    vertices, normals = posed(build(appearance), rotations, offsets)
    lowest, tallest = vertices[..., 2].min(1), vertices[..., 2].max(1)
    np.testing.assert_allclose(lowest, 0, atol=0.025)
    assert (tallest < appearance.height * 1.01).all()
    assert tallest.max() > appearance.height * 0.96
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1).max(), 1, atol=0.01)


def test_the_two_legs_do_the_same_half_a_cycle_apart():
    appearance = sample_appearance(0, 1)
    body = proportions(appearance)
    phase = np.array([0.1, 0.6])
    rotations, offsets = walk(appearance, np.zeros((2, 2)), np.zeros(2), phase)
    joints = body.joints()
    left = rotations[:, 8] @ joints[8] + offsets[:, 8]
    right = rotations[:, 11] @ joints[11] + offsets[:, 11]
    np.testing.assert_allclose(left[0] * [1, -1, 1], right[1], atol=1e-5)


def test_people_look_where_they_walk():
    person, look = sample_appearance(0, 0), plain_look()
    middle, _, away = street_axes(look)
    path = path_through(middle + np.outer(np.linspace(0, 2, 9), away), person.stride, 0.0)
    np.testing.assert_allclose(path.headings, look.street_angle, atol=1e-9)


def test_projection_agrees_with_a_textbook_camera():
    camera = Pinhole(height=3.0, pitch=0.3, focal=500.0, picture_width=640, picture_height=480)
    points = np.array([[8.0, 1.0, 0.0], [12.0, -2.0, 1.7]])
    forward = np.array([np.cos(0.3), 0, -np.sin(0.3)])
    right = np.array([0.0, -1.0, 0.0])
    down = np.cross(forward, right)
    expected = []
    for point in points - (0, 0, 3.0):
        expected.append([320 + 500 * (point @ right) / (point @ forward), 240 + 500 * (point @ down) / (point @ forward)])
    np.testing.assert_allclose(camera.project(points), expected, rtol=1e-5)


# --- one clip -------------------------------------------------------------------------------------------------------


def test_a_clip_has_the_cameras_size_rate_and_length():
    look = plain_look(clip_width=64, clip_height=128, frame_rate=10)
    clip = render_clip(sample_appearance(1, 2), look, 5, hidden_share=0.0)
    assert clip.frames.dtype == np.uint8
    assert clip.frames.shape[1:] == (128, 64, 3)
    assert 30 <= len(clip.frames) <= 60
    assert clip.visible.shape == (len(clip.frames),)
    assert clip.visible.dtype == np.float32
    assert ((clip.visible >= 0) & (clip.visible <= 1)).all()


def test_the_same_arguments_render_the_same_clip_and_other_seeds_another():
    person, look = sample_appearance(1, 2), plain_look()
    first = render_clip(person, look, 5, seconds=SHORT)
    again = render_clip(person, look, 5, seconds=SHORT)
    other = render_clip(person, look, 6, seconds=SHORT)
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.visible, again.visible)
    assert first.frames.shape != other.frames.shape or (first.frames != other.frames).any()


def test_hidden_share_decides_whether_somebody_is_hidden():
    person, look = sample_appearance(1, 2), plain_look()
    free = [render_clip(person, look, seed, hidden_share=0.0, seconds=(3, 3)) for seed in range(4)]
    covered = [render_clip(person, look, seed, hidden_share=1.0, seconds=(3, 3)) for seed in range(4)]
    assert all(clip.hidden == 0 and clip.visible.min() > 0.9 for clip in free)
    assert all(clip.visible.min() < HIDDEN_BELOW for clip in covered)
    assert 0.2 < np.mean([clip.hidden for clip in covered]) < 0.7
    assert covered[0].hidden == pytest.approx(np.mean(covered[0].visible < HIDDEN_BELOW))


def test_who_walks_in_front_covers_the_pixels_of_who_walks_behind():
    look = plain_look()
    back, front = sample_appearance(0, 0), sample_appearance(0, 1)
    scene = build_scene(look)
    behind = perform(back, crossing(look, back), look, scene.camera)
    before = perform(front, crossing(look, front, depth=-0.9), look, scene.camera)
    left, top, right, bottom = behind.boxes[6].tolist()
    window = Window(left, top, 1.0, round(right - left), round(bottom - top))
    alone, share_alone = compose(scene, look, [behind], 6, window)
    foreground, _ = compose(scene, look, [before], 6, window)
    empty, _ = compose(scene, look, [], 6, window)
    together, shares = compose(scene, look, [behind, before], 6, window)
    swapped, swapped_shares = compose(scene, look, [before, behind], 6, window)
    np.testing.assert_allclose(together, swapped, atol=1e-3)  # depth decides, not the order of drawing
    assert share_alone == [1.0]
    assert shares == swapped_shares[::-1]
    assert shares[1] == 1.0
    person = np.abs(alone - empty).max(-1) > 40
    in_front = np.abs(foreground - empty).max(-1) > 40
    core = cv2.erode((person & in_front).astype(np.uint8), np.ones((3, 3))) > 0
    assert core.sum() > 50
    np.testing.assert_allclose(together[core], foreground[core], atol=12)
    covered = (person & in_front).sum() / person.sum()
    assert 1 - shares[0] == pytest.approx(covered, abs=0.12)


def test_boxes_hold_all_of_the_person_that_is_drawn():
    look = plain_look()
    person = sample_appearance(0, 3)
    scene = build_scene(look)
    actor = perform(person, crossing(look, person), look, scene.camera)
    blank = replace(scene, picture=np.full_like(scene.picture, 255))
    calm = replace(look, sun=0.0)
    left, top, right, bottom = actor.boxes[3].tolist()
    margin = 12
    window = Window(round(left) - margin, round(top) - margin, 1.0, round(right - left) + 2 * margin, 140)
    picture, _ = compose(blank, calm, [actor], 3, window)
    rows, columns = np.nonzero(picture.min(-1) < 120)  # the contact shadow on the ground is paler
    assert columns.min() + window.left >= left - 1.5
    assert columns.max() + window.left <= right + 1.5
    assert rows.min() + window.top >= top - 1.5
    assert rows.max() + window.top <= bottom + 1.5
    assert rows.max() - rows.min() > 0.85 * (bottom - top)


def test_one_person_in_one_camera_stays_more_alike_than_people_are_to_each_other():
    look = plain_look(noise=1.0)

    def colours(person: int, seed: int) -> np.ndarray:
        frames = render_clip(sample_appearance(2, person), look, seed, hidden_share=0.0, seconds=SHORT).frames
        body = frames[:, 20:80, 14:34].reshape(-1, 3)
        histogram = np.histogramdd(body, bins=(6, 6, 6), range=[(0, 256)] * 3)[0].ravel()
        return histogram / histogram.sum()

    people = range(8)
    first = np.array([colours(person, 100 + person) for person in people])
    second = np.array([colours(person, 200 + person) for person in people])
    distance = np.abs(first[:, None] - second[None]).sum(-1)
    own = np.diag(distance)
    others = distance[~np.eye(len(people), dtype=bool)]
    assert own.mean() < 0.75 * others.mean()


def test_colours_in_the_street_are_mostly_dark_or_grey():
    tops = np.array([sample_appearance(0, person).upper_colour for person in range(300)])
    chroma = tops.max(1) - tops.min(1)
    assert 0.55 < (chroma < 60).mean() < 0.95
    assert len({sample_appearance(0, person) for person in range(300)}) == 300


def test_cameras_differ_from_each_other():
    looks = [sample_camera_look(0, camera) for camera in range(40)]
    degrees = np.degrees([look.elevation for look in looks])
    assert degrees.min() >= 5
    assert degrees.max() <= 40
    assert degrees.std() > 5
    assert {look.place for look in looks} == {"street", "plaza", "park", "hall"}
    assert {look.clip_width for look in looks} == {48, 64, 80, 96}
    assert all(20 <= look.crf <= 32 for look in looks)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_clip_refuses_a_hidden_share_outside_0_to_1(share):
    with pytest.raises(UsageError, match="hidden_share"):
        render_clip(sample_appearance(0, 0), plain_look(), 0, hidden_share=share)


@pytest.mark.parametrize("seconds", [(0, 1), (3, 2), (-1, 1)])
def test_a_clip_refuses_impossible_lengths(seconds):
    with pytest.raises(UsageError, match="seconds"):
        render_clip(sample_appearance(0, 0), plain_look(), 0, seconds=seconds)


# --- the full frame -------------------------------------------------------------------------------------------------


def test_full_frame_boxes_lie_in_the_picture_and_follow_the_people():
    people = [sample_appearance(0, person) for person in range(3)]
    rendered = render_full_frame(people, plain_look(), 4, width=320, height=180, seconds=6.0)
    assert rendered.frames.shape == (60, 180, 320, 3)
    frame, track, left, top, width, height = rendered.boxes.T
    assert frame.min() >= 1
    assert frame.max() <= 60
    assert set(track) == {1, 2, 3}
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= 320).all()
    assert (top + height <= 180).all()
    assert len(set(zip(frame.tolist(), track.tolist(), strict=True))) == len(frame)
    # What changes from the picture's median over time lies in the boxes, shadows at their feet apart.
    background = np.median(rendered.frames, axis=0)
    for number in (15, 30, 45):
        moving = np.abs(rendered.frames[number - 1] - background).max(-1) > 70
        boxed = np.zeros((180, 320), bool)
        for x, y, w, h in rendered.boxes[frame == number][:, 2:]:
            boxed[max(0, y - 2) : y + h + 3, max(0, x - 2) : x + w + 3] = True
        if boxed.any():
            assert moving[boxed].sum() > 0.9 * moving.sum()
            assert moving[boxed].mean() > 5 * moving[~boxed].mean()


def test_a_full_frame_needs_somebody():
    with pytest.raises(UsageError, match="at least one person"):
        render_full_frame([], plain_look(), 0)


# --- the network on disk --------------------------------------------------------------------------------------------


def test_the_manifest_names_every_file_and_its_columns(network):
    rows = rows_of(network / "manifest.csv")
    columns = ["uri", "video_id", "camera_id", "start_time", "person_id", "role", "boxes_uri", "hidden"]
    assert list(rows[0]) == columns
    assert {row["uri"] for row in rows} == {str(path.relative_to(network)) for path in network.rglob("*.mp4")}
    assert len({row["video_id"] for row in rows}) == len(rows)
    clips = [row for row in rows if not row["boxes_uri"]]
    for row in clips:
        assert row["uri"].startswith(f"clips/{row['camera_id']}/")
        assert row["person_id"] in {"p000", "p001", "p002", "p003"}
        assert 0 <= float(row["hidden"]) <= 1
        assert datetime.fromisoformat(row["start_time"]).utcoffset().total_seconds() == 0
        assert row["start_time"].endswith("Z")
    for person in {row["person_id"] for row in clips}:
        own = [row for row in clips if row["person_id"] == person]
        assert sum(row["role"] == "query" for row in own) == 1
        times = sorted(datetime.fromisoformat(row["start_time"]) for row in own)
        gaps = np.diff([time.timestamp() for time in times])
        assert len(own) >= 2
        assert gaps.min() >= 60
        assert gaps.max() <= 3600


def test_with_several_visits_each_person_has_one_query_a_camera(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.rendering.network._render_visit", lambda task: 0.0)
    manifest = render_network(tmp_path / "out", 3, 3, 2, full_frame=False)
    rows = rows_of(manifest)
    places = [(row["person_id"], row["camera_id"]) for row in rows]
    queries = [place for place, row in zip(places, rows, strict=True) if row["role"] == "query"]
    assert sorted(queries) == sorted(set(places))
    assert len(rows) == 2 * len(queries)


def test_clips_are_h264_of_the_cameras_size_and_show_what_was_rendered(network):
    row = next(row for row in rows_of(network / "manifest.csv") if not row["boxes_uri"])
    camera, person = int(row["camera_id"][3:]), int(row["person_id"][1:])
    look = sample_camera_look(3, camera)
    clip = render_clip(sample_appearance(3, person), look, clip_seed(3, person, camera, 0), hidden_share=0.5)
    with av.open(network / row["uri"]) as container:
        video = container.streams.video[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert video.average_rate == look.frame_rate
    decoded = frames_of(network / row["uri"])
    assert decoded.shape == clip.frames.shape
    assert np.abs(decoded.astype(float) - clip.frames).mean() < 12
    assert float(row["hidden"]) == pytest.approx(clip.hidden, abs=5e-4)


def test_boxes_and_labels_of_the_full_frame_fit_together(network):
    row = next(row for row in rows_of(network / "manifest.csv") if row["boxes_uri"])
    assert row["person_id"] == ""
    boxes = np.loadtxt(network / row["boxes_uri"], delimiter=",")
    assert boxes.shape[1] == 10
    labels = rows_of(network / "labels.csv")
    assert {(row["boxes_uri"], str(int(track))) for track in np.unique(boxes[:, 1])} == {
        (label["boxes_uri"], label["track_id"]) for label in labels
    }
    assert {label["person_id"] for label in labels} <= {"p000", "p001", "p002", "p003"}
    assert frames_of(network / row["uri"]).shape[1:] == (360, 640, 3)


def test_two_processes_write_the_same_bytes_as_one(tmp_path):
    for processes in (1, 2):
        render_network(tmp_path / str(processes), 2, 2, 1, seed=9, processes=processes, full_frame=False)
    one, two = contents(tmp_path / "1"), contents(tmp_path / "2")
    assert len([name for name in one if name.endswith(".mp4")]) == 4
    assert one == two


def test_a_clip_does_not_depend_on_how_many_others_there_are(network):
    stops = itinerary(3, 1, cameras=3, visits=1)
    assert stops == [stop for stop in itinerary(3, 1, cameras=3, visits=3) if stop.visit == 0]
    stop = stops[0]
    alone = render_clip(
        sample_appearance(3, 1), sample_camera_look(3, stop.camera), clip_seed(3, 1, stop.camera, 0), hidden_share=0.5
    )
    assert len(frames_of(network / stop.uri)) == len(alone.frames)


def test_most_people_come_past_two_to_four_cameras():
    counts = np.array([len(cameras_of(0, person, 8)) for person in range(300)])
    assert counts.min() >= 2
    assert ((counts >= 2) & (counts <= 4)).mean() > 0.75
    assert all(len(set(cameras_of(0, person, 8))) == counts[person] for person in range(300))


def test_a_complete_network_is_left_as_it_is(network):
    before = {path: path.stat().st_mtime_ns for path in network.rglob("*")}
    render_network(network, people=4, cameras=3, clips_per_person_and_camera=1, seed=3, hidden_share=0.5)
    assert before == {path: path.stat().st_mtime_ns for path in network.rglob("*")}


def test_a_network_of_ours_is_replaced_when_the_arguments_change(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.rendering.network._render_visit", lambda task: 0.0)
    out = tmp_path / "out"
    render_network(out, 3, 2, 1, full_frame=False)
    stale = out / "clips" / "cam01" / "p002_0.mp4"
    stale.write_bytes(b"")
    render_network(out, 1, 1, 1, full_frame=False)
    assert not stale.exists()
    assert json.loads((out / "network.json").read_text())["people"] == 1
    assert len(rows_of(out / "manifest.csv")) == 1


def test_an_interrupted_network_is_rendered_again(tmp_path, monkeypatch):
    out = tmp_path / "out"

    def interrupted(task):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.rendering.network._render_visit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            render_network(out, 1, 1, 1, full_frame=False)
    assert not (out / "network.json").exists()
    manifest = render_network(out, 1, 1, 1, full_frame=False)
    assert frames_of(out / rows_of(manifest)[0]["uri"]).ndim == 4


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("keep me")
    with pytest.raises(UsageError, match="not a rendered network"):
        render_network(tmp_path, 1, 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_refused_as_the_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        render_network(tmp_path / "out", 1, 1, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("people", 0),
        ("cameras", 0),
        ("clips_per_person_and_camera", 0),
        ("processes", 0),
        ("hidden_share", -0.01),
        ("hidden_share", 1.01),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(tmp_path, name, value):
    settings = {"people": 1, "cameras": 1, "clips_per_person_and_camera": 1, name: value}
    with pytest.raises(UsageError):
        render_network(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_looks_and_people_can_be_stored_as_plain_values():
    assert json.loads(json.dumps(asdict(sample_appearance(0, 0))))["height"] == sample_appearance(0, 0).height
    assert json.loads(json.dumps(asdict(sample_camera_look(0, 0))))["crf"] == sample_camera_look(0, 0).crf
