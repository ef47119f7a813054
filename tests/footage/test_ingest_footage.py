"""Real recordings in, with a real detector: what is committed after a kill -9 and a second start is what one start commits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest

from pipeline.backbone.spec import find_backbone
from pipeline.catalog.inputs import read_catalog
from pipeline.decoding.boxes import cropped
from pipeline.decoding.sampling import resize
from pipeline.footage.detect import DetectPeople, DetectSettings
from pipeline.footage.recordings import Clocks, name_pattern, plan_recordings
from pipeline.footage.tracks import track
from pipeline.gallery.detections import FORGOTTEN_BOXES_SCHEMA, RECORDINGS_SCHEMA, boxes_of
from pipeline.gallery.forgotten import Forgotten
from pipeline.gallery.gallery import Gallery, GallerySettings, feature_matrix
from pipeline.gallery.video_ref import VideoRef
from pipeline.ingest.gallery_sampling import gallery_sampling
from pipeline.ingest.source_changes import with_states
from pipeline.retention.verify import verify_gallery
from pipeline.search.evidence import SourcePictures
from tests.conftest import SHARED
from tests.footage.made_up import candidates

VTEST = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
NETWORK = SHARED / "models/yolox_nano/yolox_nano_reexport.onnx"
PATTERN = "{camera}/%Y%m%d_%H%M%S.mp4"
NOBODY = FORGOTTEN_BOXES_SCHEMA.empty_table()
SECONDS, FILES, RATE = 4, 3, 5.0
pytestmark = pytest.mark.shared
needs_footage = pytest.mark.skipif(
    not (VTEST.is_file() and NETWORK.is_file()), reason=f"no {VTEST} (opencv-doc) or no {NETWORK.name} in ../shared/models"
)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "yolox.onnx"
    shutil.copyfile(NETWORK, path)
    path.with_suffix(".json").write_text(json.dumps({"decode": "yolox", "height": 416, "width": 416, "channels": "BGR"}))
    return path


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vtest as a recorder writes it: files of a few seconds in a folder of the camera."""
    folder, start = tmp_path_factory.mktemp("recordings"), datetime(2026, 3, 1, 8, tzinfo=UTC)
    (folder / "gate").mkdir()
    with av.open(str(VTEST)) as source:
        frames = [frame for frame, _ in zip(source.decode(video=0), range(SECONDS * FILES * 10), strict=False)]
    for number in range(FILES):
        name = start + timedelta(seconds=number * SECONDS)
        with av.open(str(folder / f"gate/{name:%Y%m%d_%H%M%S}.mp4"), "w") as out:
            stream = out.add_stream("libx264", rate=10, options={"preset": "ultrafast", "crf": "18"})
            stream.width, stream.height, stream.pix_fmt = 768, 576, "yuv420p"
            for place, frame in enumerate(frames[number * SECONDS * 10 : (number + 1) * SECONDS * 10]):
                picture = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")
                picture.pts = place
                out.mux(stream.encode(picture))
            out.mux(stream.encode())
    return folder


def new_gallery(folder: Path) -> Gallery:
    return Gallery.open_or_create(folder, GallerySettings(find_backbone(), RATE, None))


def read_here(recordings: Path, detector: Path, folder: Path) -> Gallery:
    """Every recording read by one actor in this process, one after another, without Ray."""
    gallery = new_gallery(folder / "gallery")
    plan = plan_recordings(read_catalog(recordings), name_pattern(PATTERN), Clocks())
    counter = SimpleNamespace(add=SimpleNamespace(remote=lambda frames: None))
    people = DetectPeople(gallery, gallery_sampling(gallery), DetectSettings(str(detector)), Forgotten(), NOBODY, counter)
    rows = [row for table in people(with_states(plan.table)) for row in table.to_pylist()]
    gallery.commit(recordings=pa.Table.from_pylist(rows, schema=RECORDINGS_SCHEMA), kind="detect")
    track(gallery)
    return gallery


@pytest.fixture(scope="module")
def undisturbed(recordings: Path, detector: Path, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return read_here(recordings, detector, tmp_path_factory.mktemp("undisturbed"))


def detections(gallery: Gallery) -> dict[str, list[dict[str, Any]]]:
    return {row["uri"]: gallery.read_detections(row["shard"]).to_pylist() for row in gallery.snapshot().recordings.to_pylist()}


def command(recordings: Path, gallery: Path, detector: Path, *more: str) -> list[str]:
    flags = ["--gallery", str(gallery), "--detector", str(detector), "--pattern", PATTERN, *more]
    return [sys.executable, "-m", "jobs.ingest", str(recordings), *flags]


@needs_footage
def test_people_are_found_where_the_pictures_show_them(undisturbed: Gallery, recordings: Path) -> None:
    """Features are those of the boxes' crops of the frames that PyAV decodes: no shift in number, time or place."""
    row = undisturbed.snapshot().recordings.to_pylist()[1]
    with av.open(row["uri"]) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    found = undisturbed.read_detections(row["shard"])
    assert row["looked_at"] == SECONDS * RATE and row["source_frames"] == len(pictures) == SECONDS * 10
    assert len(found) > 60 and set(found["frame_index"].to_pylist()) == set(range(0, SECONDS * 10, 2))
    from pipeline.backbone.runtime import load_backbone

    spec = undisturbed.settings.backbone
    crops = [
        cropped(pictures[frame], box, 8) for frame, box in zip(found["frame_index"].to_pylist(), boxes_of(found), strict=True)
    ]
    expected = load_backbone(spec, 1, "cpu").embed(
        np.stack([resize(crop, spec.height, spec.width) for crop in crops if crop is not None])
    )
    a, b = expected.astype(np.float32), feature_matrix(found).astype(np.float32)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.99


@needs_footage
def test_evidence_of_a_track_shows_the_very_crops_from_file_to_file(undisturbed: Gallery) -> None:
    rows = undisturbed.snapshot().videos.to_pylist()
    long = max(rows, key=lambda row: row["sampled_frames"])
    frames = undisturbed.read_video(long).to_pylist()
    places = {frame["frame_index"]: frame["place"] for frame in frames}
    assert len({place["recording_id"] for place in places.values()}) > 1
    uris = {row["source_id"]: row["uri"] for row in undisturbed.snapshot().recordings.to_pylist()}
    shown = SourcePictures(gallery=undisturbed)
    try:
        crops = shown(VideoRef.of(long), {frame["frame_index"]: frame["time_s"] for frame in frames[:: len(frames) // 6]})
    finally:
        shown.close()
    assert len(crops) >= 6
    for number, crop in crops.items():
        place = places[number]
        with av.open(uris[place["recording_id"]]) as container:
            picture = next(f for k, f in enumerate(container.decode(video=0)) if k == place["frame"]).to_ndarray(format="rgb24")
        expected = cropped(picture, tuple(place[side] for side in "xywh"), 1)
        assert expected is not None
        assert np.abs(crop.astype(int) - resize(expected, *crop.shape[:2]).astype(int)).mean() < 3


@needs_footage
@pytest.mark.ray
def test_an_ingest_that_is_killed_and_run_again_loses_and_doubles_nothing(
    undisturbed: Gallery, recordings: Path, detector: Path, tmp_path: Path
) -> None:
    gallery = tmp_path / "gallery"
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command(recordings, gallery, detector, "--embedders", "2"), stdout=log, stderr=log)
        until = time.monotonic() + 120
        while not any(gallery.glob("detections/*.parquet")) and first.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    assert any(gallery.glob("detections/*")), (tmp_path / "log").read_text()
    again = subprocess.run(
        command(recordings, gallery, detector, "--embedders", "1"), capture_output=True, text=True, timeout=240
    )
    assert again.returncode == 0, again.stderr
    opened = Gallery.open(gallery)
    assert detections(opened) == detections(undisturbed)
    assert candidates(opened) == candidates(undisturbed)
    assert verify_gallery(opened) == []
    assert f"recordings    {FILES} (" in again.stdout and "tracks in the gallery" in again.stdout


@pytest.fixture(scope="module")
def long_recording(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in one file, with a key frame a second."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "gate").mkdir()
    with av.open(str(folder / "gate/20260301_080000.mp4"), "w") as out:
        options = {"preset": "ultrafast", "crf": "18", "g": "10", "bf": "2", "x264-params": "open-gop=0"}
        stream = out.add_stream("libx264", rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 768, 576, "yuv420p"
        for file in sorted(recordings.glob("gate/*.mp4")):
            with av.open(str(file)) as source:
                for frame in source.decode(video=0):
                    out.mux(stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")))
        out.mux(stream.encode())
    return folder


@needs_footage
@pytest.mark.ray
def test_an_ingest_that_is_killed_between_two_chunks_of_a_recording_goes_on_with_the_next(
    long_recording: Path, detector: Path, tmp_path: Path
) -> None:
    gallery, expected = tmp_path / "gallery", read_here(long_recording, detector, tmp_path / "whole")
    in_chunks = command(long_recording, gallery, detector, "--chunk-minutes", str(2 / 60))
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen([*in_chunks, "--embedders", "1"], stdout=log, stderr=log)
        until = time.monotonic() + 120
        while len(drafts := set(gallery.glob("detections/*.parquet"))) < 2 and first.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    assert len(drafts) >= 2 and not Gallery.open(gallery).snapshot().finished_sources(), (tmp_path / "log").read_text()
    written = {draft.name: draft.stat().st_mtime_ns for draft in drafts}
    again = subprocess.Popen([*in_chunks, "--embedders", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while again.poll() is None:
        seen = {draft.name: draft.stat().st_mtime_ns for draft in drafts if draft.exists()}
        assert all(written[name] == when for name, when in seen.items())  # it is not read again
        time.sleep(0.05)
    said, failed = again.communicate()
    assert again.returncode == 0, failed
    assert "in chunks     6 chunks of 1 long recording" in said
    opened = Gallery.open(gallery)
    assert detections(opened) == detections(expected) and candidates(opened) == candidates(expected)
    assert verify_gallery(opened) == [] and len(list(gallery.glob("detections/*.parquet"))) == 1
