"""Copies with hidden people: frames one for one, one stretch covered below the head, everything else untouched."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.catalog.inputs import read_catalog
from pipeline.decoding.sampling import Sampling
from pipeline.errors import UsageError
from pipeline.rendering.encoding import write_video
from pipeline.training.occlusion import HEAD, KINDS, OcclusionSettings, hide_stretch, occlude_catalog


def picture(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 40, 20, 3), np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "share", "covered"), [(10, 0.5, 5), (7, 0.5, 4), (9, 0.0, 0), (5, 1.0, 5), (1, 0.2, 1)])
def test_one_stretch_is_covered_below_the_head_and_nothing_else(kind: str, count: int, share: float, covered: int) -> None:
    frames = picture(count)
    copy, hidden = hide_stretch(frames, np.random.default_rng(3), share, kind, picture(4, seed=1))
    assert hidden.sum() == covered
    assert np.abs(np.diff(hidden.astype(int))).sum() <= 2  # one stretch
    assert (copy[~hidden] == frames[~hidden]).all()
    head = int(40 * HEAD[0])
    assert (copy[hidden, :head] == frames[hidden, :head]).all()
    if covered:
        changed = (copy[hidden] != frames[hidden]).any(axis=(2, 3))
        assert changed[:, int(np.ceil(40 * HEAD[1])) :].mean() > 0.95
    assert frames.tobytes() == picture(count).tobytes()


def test_a_block_has_one_colour_and_a_person_is_the_other_video() -> None:
    copy, hidden = hide_stretch(picture(6), np.random.default_rng(0), 0.5, "block")
    assert len(np.unique(copy[hidden, 20:].reshape(-1, 3), axis=0)) == 1
    other = np.full((3, 40, 20, 3), 77, np.uint8)
    copy, hidden = hide_stretch(picture(6), np.random.default_rng(0), 0.5, "person", other)
    assert (copy[hidden, 20:] == 77).all()


def test_a_track_that_switches_shows_nothing_but_the_other_person() -> None:
    other = np.full((3, 40, 20, 3), 77, np.uint8)
    copy, hidden = hide_stretch(picture(6), np.random.default_rng(0), 0.5, "switch", other)
    assert hidden.sum() == 3 and (copy[hidden] == 77).all() and (copy[~hidden] == picture(6)[~hidden]).all()


def test_a_copy_switches_to_the_last_other_person_before_it(tmp_path: Path) -> None:
    for number, grey in enumerate((40, 120, 120, 200)):
        write_video(tmp_path / f"v{number}.mp4", np.full((12, 80, 40, 3), grey, np.uint8), 10, 20)
    people = ["v0.mp4,a,p1", "v1.mp4,b,p2", "v2.mp4,c,p2", "v3.mp4,d,p1"]
    (tmp_path / "manifest.csv").write_text("\n".join(["uri,video_id,person_id", *people]))
    catalog, sampling = read_catalog(tmp_path / "manifest.csv"), Sampling(height=80, width=40)
    manifest, _ = occlude_catalog(catalog, tmp_path / "out", OcclusionSettings(0.5, "switch"), sampling)
    with manifest.open() as file:
        rows = {row["video_id"]: row for row in csv.DictReader(file)}
    assert [rows[name]["hidden"] for name in "abcd"] == ["0.000", "0.500", "0.500", "0.500"]
    shown = {}
    for name, row in rows.items():
        levels = [cv2.imread(str(path)).mean() for path in sorted((tmp_path / "out" / row["uri"]).glob("*.jpg"))]
        shown[name] = {round(level, -1) for level in levels}
    assert shown == {"a": {40}, "b": {120, 40}, "c": {120, 40}, "d": {200, 120}}


def test_copies_of_a_catalog_have_ids_and_labels_and_are_the_same_again(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        write_video(tmp_path / f"in/v{number}.mp4", np.repeat(picture(1, number), 12, axis=0).repeat(2, 1).repeat(2, 2), 10, 20)
    (tmp_path / "in/manifest.csv").write_text(
        "uri,video_id,camera_id,person_id\nv0.mp4,a,c1,p1\nv1.mp4,b,c2,p1\nno.mp4,c,c2,p2\n"
    )
    catalog, sampling = read_catalog(tmp_path / "in/manifest.csv"), Sampling(height=80, width=40)
    for out in ("one", "two"):
        _, left_out = occlude_catalog(catalog, tmp_path / out, OcclusionSettings(0.5, "mixed"), sampling)
        assert left_out == ["c: missing"]
    lines = (tmp_path / "one/manifest.csv").read_text().splitlines()
    assert [line.split(",")[1:3] + line.split(",")[4:] for line in lines[1:]] == [
        ["a", "c1", "p1", "0.500"],
        ["b", "c2", "p1", "0.500"],
    ]
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.jpg"))
    assert len(files) == 24
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    assert len(read_catalog(tmp_path / "one/manifest.csv").table) == 2
    with pytest.raises(UsageError, match="not an empty folder"):
        occlude_catalog(catalog, tmp_path / "one", OcclusionSettings(), sampling)


@pytest.mark.parametrize(
    ("settings", "words"), [({"share": 1.5}, "0..1"), ({"kind": "fog"}, "block, thing, person, mixed or switch")]
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        OcclusionSettings(**settings)


def test_a_run_that_was_killed_starts_afresh_and_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        write_video(tmp_path / f"in/v{number}.mp4", np.repeat(picture(1, number), 12, axis=0).repeat(2, 1).repeat(2, 2), 10, 20)
    catalog, sampling = read_catalog(tmp_path / "in"), Sampling(height=80, width=40)

    def killed(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        occlude_catalog(catalog, tmp_path / "killed", OcclusionSettings(kind="mixed"), sampling, killed)
    assert not (tmp_path / "killed/manifest.csv").exists()  # nothing that could be taken for a whole one
    for out in ("killed", "whole"):
        occlude_catalog(catalog, tmp_path / out, OcclusionSettings(kind="mixed"), sampling)
    contents = [
        {path.relative_to(tmp_path / out): path.read_bytes() for path in (tmp_path / out).rglob("*") if path.is_file()}
        for out in ("killed", "whole")
    ]
    assert contents[0] == contents[1] and len(contents[0]) == 37
