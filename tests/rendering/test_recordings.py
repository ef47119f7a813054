"""Rendered recordings: what is written, that it is repeated and left alone, and that boxes lie where people are."""

import csv

import av
import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.rendering.recordings import RecordingArguments, render_recordings

SMALL = RecordingArguments(people=6, cameras=2, frame_rate=2, seconds=3.0)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    out = tmp_path_factory.mktemp("recordings")
    return out, render_recordings(out, SMALL)


def test_every_camera_films_everybody_once(rendered):
    out, uris = rendered
    assert uris == ["nvr/cam00/20260302_080000.mp4", "nvr/cam01/20260302_090000.mp4"]
    with (out / "truth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for uri in uris:
        assert {int(row["person"]) for row in rows if row["uri"] == uri} <= set(range(6))
        with av.open(str(out / uri)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 6
        first = (out / uri).with_suffix(".boxes.txt").read_text().splitlines()[0].split(",")
        same = next(row for row in rows if row["uri"] == uri)
        assert first == [str(int(same["frame"]) + 1), *(same[name] for name in ("person", "x", "y", "w", "h"))]


def test_pictures_change_inside_the_boxes(rendered):
    """Where somebody walks the picture changes; a box somewhere else would show the still ground."""
    out, uris = rendered
    with (out / "truth.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["uri"] == uris[0]]
    with av.open(str(out / uris[0])) as container:
        frames = np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)]).astype(float)
    unrest, inside = frames.std(axis=0), np.zeros(frames.shape[1:], bool)
    for row in rows:
        x, y, w, h = (int(row[name]) for name in ("x", "y", "w", "h"))
        inside[y : y + h, x : x + w] = True
    assert unrest[inside].mean() > 3 * unrest[~inside].mean()


def test_what_is_complete_is_left_alone_and_other_arguments_write_it_anew(rendered, tmp_path):
    out, uris = rendered
    before = (out / uris[0]).stat().st_mtime_ns
    assert render_recordings(out, SMALL) == uris and (out / uris[0]).stat().st_mtime_ns == before
    again = render_recordings(tmp_path / "again", SMALL, processes=2)
    assert [(tmp_path / "again" / uri).read_bytes() for uri in again] == [(out / uri).read_bytes() for uri in uris]


@pytest.mark.parametrize("people, cameras", [(5, 1), (0, 1), (6, 0)])
def test_sizes_that_cannot_be_are_refused(people, cameras):
    with pytest.raises(UsageError, match=r"(people|cameras) is"):
        RecordingArguments(people, cameras)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(UsageError, match="holds files that are not rendered recordings"):
        render_recordings(tmp_path, SMALL)
