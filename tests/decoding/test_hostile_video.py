"""Damaged, forged and misnamed videos: none stops an ingest, hangs, fills the memory or gets lost on the way."""

import os
import shutil
import socket
import struct
import subprocess
import zlib
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.catalog.inputs import read_catalog
from pipeline.decoding.boxes import read_boxes
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.formats import LIKE_A_VIDEO
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Chunk, Rejected
from pipeline.errors import VideoError
from pipeline.storage.location import resolve
from tests.decoding.in_process import read_chunks
from tests.decoding.test_video import SMALL, refused, write_image, write_video
from tests.mutant_judge import Judge, Outcome, event_faults, ingest_faults
from tests.mutants import KINDS, SIZE, encode, write_mutants, write_sources

SEED, COUNT = 20, 100
LIMITED = Sampling(**SIZE, time_limit=30, memory_limit=1 << 30)
LIBRARIES = 300 << 20  # resident bytes of a decoder process before its first video, generously


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Outcome]]:
    folder = tmp_path_factory.mktemp("hostile")
    sources = write_sources(folder / "sources")
    mutants = list(write_mutants(sources, folder / "mutants", COUNT, SEED))
    with Judge(Decoder(LIMITED), 2 * LIMITED.time_limit, LIBRARIES + LIMITED.memory_limit) as judge:
        yield [judge.outcome(mutant) for mutant in mutants]
    shutil.rmtree(folder)


def test_no_mutant_crashes_hangs_or_fills_the_memory(outcomes: list[Outcome]) -> None:
    assert len(outcomes) == COUNT and {outcome.mutant.kind for outcome in outcomes} == set(KINDS)
    assert [outcome for outcome in outcomes if outcome.faults] == [], f"mutants of seed {SEED}"


def test_what_is_only_unusual_is_accepted(outcomes: list[Outcome]) -> None:
    usual = [outcome for outcome in outcomes if outcome.mutant.kind in ("variable_rate", "rotated", "nasty_name", "wrong_suffix")]
    assert usual and [outcome for outcome in usual if outcome.result != "accepted"] == []


def test_what_is_no_video_is_rejected(outcomes: list[Outcome]) -> None:
    others = [outcome for outcome in outcomes if outcome.mutant.kind in ("sound_only", "other_kind", "no_file", "nearly_empty")]
    assert others and [outcome for outcome in others if outcome.result == "accepted"] == []


@pytest.mark.ray
def test_each_mutant_ends_in_one_place_of_the_gallery(outcomes: list[Outcome], tmp_path: Path) -> None:
    assert ingest_faults(outcomes[::2], tmp_path / "ingest", LIMITED, 240) == [], f"mutants of seed {SEED}"


def test_the_judge_sees_broken_promises(tmp_path: Path) -> None:
    chunk = Chunk(None, 0, True, np.arange(2, dtype=np.int32), np.arange(2, dtype=np.float32), np.zeros((2, 8, 4, 3), np.uint8))
    assert event_faults([]) == ["it was neither accepted nor rejected"]
    assert "frames came with 0 descriptions of the video" in event_faults([chunk])
    assert "it was rejected and went on" in event_faults([Rejected(None, "empty", "m"), chunk])
    assert any("vocabulary" in fault for fault in event_faults([Rejected(None, "whatever", "m")]))


class TestNoFiles:
    def test_a_pipe_is_refused_and_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.mp4")
        (tmp_path / "device.mp4").symlink_to("/dev/zero")
        for name in ("pipe.mp4", "device.mp4"):
            assert refused(tmp_path / name) == "not_a_video"

    def test_a_pipe_and_a_link_to_nothing_among_images(self, tmp_path: Path) -> None:
        for name in ("pipe", "link"):
            write_image(tmp_path / name / "1.png", 7)
        os.mkfifo(tmp_path / "pipe/2.png")
        (tmp_path / "link/2.png").symlink_to(tmp_path / "nothing.png")
        for name in ("pipe", "link"):
            with pytest.raises(VideoError, match=r"2\.png is not an image") as raised:
                list(read_chunks(str(tmp_path / name), None, SMALL))
            assert raised.value.reason == "unreadable_image"

    def test_boxes_in_a_pipe(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "boxes.txt")
        with pytest.raises(VideoError, match="is not a file") as raised:
            read_boxes(resolve(tmp_path / "boxes.txt"))
        assert raised.value.reason == "boxes_missing"


class TestDamage:
    def test_an_image_of_more_pixels_than_can_be_decoded_is_too_large(self, tmp_path: Path) -> None:
        write_image(tmp_path / "1.png", 7)
        data = bytearray((tmp_path / "1.png").read_bytes())
        struct.pack_into(">II", data, 16, 60_000, 60_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        (tmp_path / "1.png").write_bytes(data)
        with pytest.raises(VideoError, match="more pixels") as raised:
            list(read_chunks(str(tmp_path), None, SMALL))
        assert raised.value.reason == "too_large"

    def test_a_file_that_ends_before_its_first_frame_does_is_truncated(self, tmp_path: Path) -> None:
        data = encode(tmp_path / "whole.mkv", "libsvtav1").read_bytes()
        cluster = data.index(b"\x1f\x43\xb6\x75")
        for end in range(cluster, cluster + 280, 20):
            (tmp_path / "cut.mkv").write_bytes(data[:end])
            assert refused(tmp_path / "cut.mkv") == "truncated"

    def test_a_title_that_is_not_utf_8_does_not_spoil_a_video(self, tmp_path: Path) -> None:
        path = tmp_path / "narrow.mkv"  # decord cannot copy this width, so PyAV reads it, titles and all
        with av.open(str(path), "w") as container:
            container.metadata["title"] = "Kamera Suedtor"
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
            for i in range(12):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 48, 3), 8 * i, np.uint8), "rgb24")))
            container.mux(stream.encode(None))
        data = path.read_bytes()
        assert b"Kamera Suedtor" in data
        path.write_bytes(data.replace(b"Kamera Suedtor", b"Kamera S\xfcdto\xff\xfe"))
        assert [len(event.frames) for event in read_chunks(str(path), None, SMALL) if isinstance(event, Chunk)] == [12]

    @pytest.mark.parametrize("start", ["<!--free--><MPD>", f"<!--G{'x' * 191}G--><MPD>"])
    def test_a_playlist_whose_comment_looks_like_a_container(self, tmp_path: Path, start: str) -> None:
        (tmp_path / "list.mp4").write_text(start + f"<BaseURL>{tmp_path}/secret.mp4</BaseURL></MPD>")
        assert refused(tmp_path / "list.mp4") == "not_a_video"

    def test_what_tools_write_is_called_damaged_rather_than_no_video_if_it_does_not_open(self, tmp_path: Path) -> None:
        for source in write_sources(tmp_path):
            start = source.read_bytes()[:256]
            assert LIKE_A_VIDEO.match(start), source.name


class TestRoots:
    def test_images_that_are_links_to_elsewhere_are_outside(self, tmp_path: Path) -> None:
        write_image(tmp_path / "secret/1.png", 9)
        for name in ("good", "bad", "own"):
            write_image(tmp_path / f"videos/{name}/1.png", 7)
        (tmp_path / "videos/bad/2.png").symlink_to(tmp_path / "secret/1.png")
        (tmp_path / "videos/own/2.png").symlink_to(tmp_path / "videos/good/1.png")
        (tmp_path / "videos/m.csv").write_text("uri,video_id\ngood,good\nbad,bad\nown,own\nbad/*.png,pattern\n")
        catalog = read_catalog(tmp_path / "videos/m.csv", roots=[tmp_path / "videos"])
        marked = dict(zip(catalog.table["source_id"].to_pylist(), catalog.table["reject_reason"].to_pylist(), strict=True))
        assert marked == {"good": None, "own": None, "bad": "outside_roots", "pattern": "outside_roots"}


class Ended:
    """A process that has ended with a code, or with None goes on for ever."""

    pid = os.getpid()

    def __init__(self, code: int | None) -> None:
        self.code = code

    def wait(self, seconds: float | None = None) -> int:
        if self.code is None and seconds is not None:
            raise subprocess.TimeoutExpired("decoder", seconds)
        return self.code or 0

    def kill(self) -> None:
        self.code = -9


@pytest.mark.parametrize("code", [-11, None])
@pytest.mark.parametrize("answer", [b"", b"\0\0\1\0half of an answer"])
def test_a_decoder_that_dies_within_an_answer_costs_one_video(tmp_path: Path, answer: bytes, code: int | None) -> None:
    path = str(write_video(tmp_path / "a.mp4"))
    with Decoder(SMALL) as decoder:
        ours, theirs = socket.socketpair()
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        decoder._connection, decoder._process = Connection(ours.detach()), Ended(code)  # type: ignore[assignment]
        (event,) = decoder.events(path)
        assert isinstance(event, Rejected) and event.reason == "decoder_crash"
        theirs.close()
        assert any(isinstance(event, Chunk) for event in decoder.events(path))
