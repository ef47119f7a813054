"""The decoding child under kills from outside: a kill -9 costs no video."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.decoding import decoder as decoder_module
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Chunk, Rejected
from pipeline.gallery.gallery import Gallery
from tests.decoding.test_video import write_video

SAMPLING = Sampling(height=128, width=64, chunk=5)


def decoded(decoder: Decoder, path: Path, kills: tuple[int, ...]) -> tuple[list[int], np.ndarray, list[Rejected]]:
    """(chunk numbers, frames, rejects) of a clip whose child is killed after so many of its chunks."""
    numbers, frames, rejects = [], [np.empty((0, 128, 64, 3), np.uint8)], []
    for event in decoder.events(str(path)):
        if isinstance(event, Chunk):
            numbers.append(event.number)
            frames.append(event.frames)
            if len(numbers) in kills and decoder._process is not None:
                os.kill(decoder._process.pid, signal.SIGKILL)
        elif isinstance(event, Rejected):
            rejects.append(event)
    return numbers, np.concatenate(frames), rejects


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that the child has not sent all of it before it is killed: a pipe holds some 200 kB."""
    return write_video(tmp_path_factory.mktemp("clip") / "a.mp4", frames=100)


def test_a_killed_child_is_replaced_and_goes_on_where_it_was(clip: Path) -> None:
    with Decoder(SAMPLING) as decoder:
        numbers, frames, rejects = decoded(decoder, clip, kills=())
        assert numbers == list(range(20)) and not rejects
        again, same, none = decoded(decoder, clip, kills=(6,))
        assert again == numbers and np.array_equal(same, frames) and not none


def test_a_child_that_is_killed_again_on_the_same_video_gives_it_up(clip: Path) -> None:
    with Decoder(SAMPLING) as decoder:
        numbers, _, rejects = decoded(decoder, clip, kills=(6, 10))
        assert numbers == list(range(len(numbers))) and [reject.reason for reject in rejects] == ["decoder_crash"]
        assert "SIGKILL" in rejects[0].message


def test_a_child_killed_between_videos_is_not_noticed(clip: Path) -> None:
    with Decoder(SAMPLING) as decoder:
        short = write_video(clip.with_name("short.mp4"), frames=12)
        assert decoded(decoder, short, kills=())[0] == [0, 1, 2]
        assert decoder._process is not None
        os.kill(decoder._process.pid, signal.SIGKILL)
        assert decoded(decoder, short, kills=())[0] == [0, 1, 2]


@pytest.mark.parametrize(("left", "children"), [(1.0, 6), (0.5, 1)])
def test_a_child_that_has_too_little_memory_left_is_renewed(
    clip: Path, monkeypatch: pytest.MonkeyPatch, left: float, children: int
) -> None:
    """Libraries' first use alone takes some, so that with all of it to be left there is a new child for each video."""
    monkeypatch.setattr(decoder_module, "LEFT", left)
    seen = set()
    with Decoder(SAMPLING) as decoder:
        for _ in range(6):
            assert len(decoded(decoder, clip, kills=())[0]) == 20
            assert decoder._process is not None
            seen.add(decoder._process.pid)
    assert len(seen) == children


def test_a_child_that_began_before_there_was_a_source_takes_the_first_one(clip: Path) -> None:
    with Decoder(SAMPLING) as decoder:
        decoder.start()
        begun = decoder._process
        assert begun is not None
        assert len(decoded(decoder, clip, kills=())[0]) == 20 and decoder._process is begun


def test_a_child_that_does_not_begin_is_told_by_the_first_source(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object, **_flags: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    with Decoder(SAMPLING) as decoder:
        with monkeypatch.context() as patched:
            patched.setattr(subprocess, "Popen", refused)
            decoder.start()
            assert [reject.reason for reject in decoded(decoder, clip, kills=())[2]] == ["decoder_crash"]
        assert len(decoded(decoder, clip, kills=())[0]) == 20


def test_a_search_begins_its_decoder_before_it_loads_what_takes_long(clip: Path, toy_gallery: Gallery) -> None:
    code = (
        "import sys; from pipeline.decoding.decoder import Decoder; import jobs.search;"
        "Decoder.start = lambda self: sys.exit(' '.join({'pandas', 'torch', 'faiss', 'ray'} & sys.modules.keys()) or 7);"
        "jobs.search.search([sys.argv[1]], gallery=sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(clip), toy_gallery.location.uri]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (7, "")


def test_a_child_loads_only_what_decoding_takes() -> None:
    """Each takes tenths of a second and tens of megabytes, in every decoder and before the first lead of a search."""
    code = "import sys, pipeline.decoding.decoder; print(*{'pandas', 'ray', 'torch', 'onnxruntime'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.split() == []
