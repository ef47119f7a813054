"""A recording in stretches shows what it shows as a whole, or stays whole: for every kind of recording, and for hostile cases."""

import re
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decoding.dividing import NOT_AS_WHOLE, DivisibleRecording
from pipeline.decoding.nal_units import NalUnits
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Stretch, Undivided
from pipeline.errors import VideoError
from tests.decoding.in_process import SHORT, asked, is_the_same, of_type, shown
from tests.recordings.files import B_FRAMES, GOP, OPEN_GOP, RATE, X264, X265, joined, rewrite, write
from tests.recordings.kinds import KINDS


@pytest.mark.parametrize("seconds", [0.9, 2.0, 7.0])
@pytest.mark.parametrize("rate", [5.0, 7.3])
def test_the_same_frames_are_looked_at_whatever_the_length_of_stretches(seconds: float, rate: float, tmp_path: Path) -> None:
    """Pictures that come at uneven times, in another order than they are shown."""
    times = [Fraction(n, RATE) + Fraction(n // GOP, 3 * RATE) for n in range(400)]
    path = write(tmp_path / "a.mp4", range(400), options=B_FRAMES, times=times, time_base=Fraction(1, 90_000))
    assert is_the_same(path, seconds, Sampling(rate=rate)) == {0.9: 10, 2.0: 7, 7.0: 2}[seconds]


@pytest.mark.parametrize(
    ("suffix", "options", "codec"),
    [
        (".ts", OPEN_GOP, "libx264"),
        (".mp4", X265, "libx265"),
        (".ts", X264 | {"x264-params": "intra-refresh=1:scenecut=0:mbtree=0"}, "libx264"),
        (".mp4", X264 | {"g": "1000"}, "libx264"),
    ],
    ids=[
        "open groups of H.264",
        "HEVC, of which too little is said",
        "a picture that is renewed bit by bit",
        "one key frame",
    ],
)
def test_a_recording_without_a_fresh_start_in_its_midst_stays_whole(
    suffix: str, options: dict[str, str], codec: str, tmp_path: Path
) -> None:
    events = asked(write(tmp_path / f"a{suffix}", codec=codec, options=options), divide_s=SHORT)
    (undivided,) = of_type(Undivided, events)
    assert re.search("key frame|time stamps|hevc in mov", undivided.why)
    assert not of_type(Stretch, events) and len(shown(events)[0]) == 60


@pytest.mark.parametrize(
    "name", ["clock-set-back", "stamp-repeated", "stamp-far-ahead", "restart", "stamp-missing", "first-stamp-ahead", "edit-list"]
)
def test_a_recording_whose_stamps_or_packets_do_not_tell_stays_whole(name: str, tmp_path: Path) -> None:
    assert of_type(Undivided, asked(KINDS[name](tmp_path / name).path, divide_s=SHORT))


def test_a_recording_that_is_coded_in_two_ways_stays_whole(tmp_path: Path) -> None:
    """Two halves of one stream, the second with other parameter sets under the same names."""
    ways = X264, X264 | {"x264-params": "scenecut=0:mbtree=0:ref=4:weightp=0:qp=30"}
    raw = joined(tmp_path / "a.h264", [write(tmp_path / f"{n}.h264", options=way) for n, way in enumerate(ways)])
    with av.open(str(raw)) as source, av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for n, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.stream, packet.time_base, packet.pts, packet.dts, packet.duration = stream, Fraction(1, RATE), n, n, 1
            container.mux(packet)
    (undivided,) = of_type(Undivided, asked(tmp_path / "a.mkv", divide_s=SHORT))
    assert "coded changes" in undivided.why


def test_a_short_recording_is_read_at_once(tmp_path: Path) -> None:
    events = asked(write(tmp_path / "a.mp4", options=X264), divide_s=2.0)
    assert not of_type(Stretch, events) and not of_type(Undivided, events) and len(shown(events)[0]) == 60


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".mkv"])
def test_a_stretch_of_a_file_that_is_another_now_is_refused(suffix: str, tmp_path: Path) -> None:
    """Every bit that a decoder is given counts, though the picture may be as good with another one."""
    path = write(tmp_path / f"a{suffix}", options=X264)
    first, second, third = of_type(Stretch, asked(path, divide_s=SHORT))
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    victim = packets[GOP + 5][-20:]
    rewrite(path, lambda data: data.replace(victim, victim[:-1] + bytes([victim[-1] ^ 1])))
    with pytest.raises(VideoError) as refused:
        asked(path, stretch=second)
    assert refused.value.reason == NOT_AS_WHOLE
    assert shown(asked(path, stretch=first))[0].tolist() == list(range(GOP))
    assert shown(asked(path, stretch=third))[0].tolist() == list(range(2 * GOP, 60))


def test_a_container_that_cannot_be_sought_is_gone_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.flv", options=B_FRAMES)
    opened = DivisibleRecording._opened

    class Unseekable:
        def __init__(self, container: object) -> None:
            self.container = container

        def __getattr__(self, name: str) -> object:
            return getattr(self.container, name)

        def __enter__(self) -> "Unseekable":
            return self

        def __exit__(self, *error: object) -> None:
            self.container.close()  # type: ignore[attr-defined]

        def seek(self, *_: object, **__: object) -> None:
            raise av.error.PermissionError(1, "not sought")

    monkeypatch.setattr(DivisibleRecording, "_opened", lambda self: Unseekable(opened(self)))
    assert is_the_same(path) == 3


def test_units_say_the_same_with_lengths_and_with_start_codes(tmp_path: Path) -> None:
    said: list[list[tuple[bool, int]]] = []
    for suffix in (".mp4", ".ts"):
        with av.open(str(write(tmp_path / f"a{suffix}", options=X264))) as container:
            stream = container.streams.video[0]
            units = NalUnits.of(stream.codec_context.extradata)
            packets = [units.said(bytes(packet)) for packet in container.demux(stream) if packet.size]
        said.append([(one.fresh, len(one.builds)) for one in packets])
        assert [place for place, one in enumerate(packets) if one.fresh] == [0, 20, 40]
        assert packets[0].builds and not packets[0].grain
    assert said[0] == said[1]


def test_messages_on_film_grain_are_found_behind_others_and_behind_bytes_that_prevent_start_codes() -> None:
    other = b"\x05\x04\0\0\3\0\1"  # four bytes, one of which was put between
    unit = b"\x06" + other + b"\x13\x02ab\x80"
    packet = b"".join(len(one).to_bytes(4, "big") + one for one in (unit, b"\x65abc"))
    assert NalUnits(4).said(packet).grain and not NalUnits(4).said(packet.replace(b"\x13\x02", b"\x14\x02")).grain


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_recording_shows_the_same_or_is_not_read_in_stretches(seed: int, tmp_path: Path) -> None:
    """Bits flipped, bytes zeroed or taken out, anywhere."""
    rng = np.random.default_rng(seed)
    path = write(tmp_path / ("a.mp4", "a.ts", "a.mkv")[seed % 3], range(60), options=B_FRAMES)
    data = bytearray(path.read_bytes())
    for at in rng.integers(200, len(data) - 400, int(rng.integers(1, 4))).tolist():
        if seed % 2:
            data[at] ^= 1 << int(rng.integers(8))
        else:
            data[at : at + int(rng.integers(1, 300))] = bytes(int(rng.integers(0, 300)))
    path.write_bytes(data)
    with suppress(VideoError, av.FFmpegError):
        is_the_same(path)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-3], lambda data: data + b"\0", lambda data: b"", lambda data: b"\0\0\0\x05\x06ab"]
)
def test_packets_that_are_not_laid_out_in_units_are_refused(damage: Callable[[bytes], bytes]) -> None:
    packet = b"\0\0\0\x04\x65abc\0\0\0\x03\x01ab"
    assert NalUnits(4).said(packet).fresh is False
    with pytest.raises(ValueError, match=r"unit|picture"):
        NalUnits(4).said(damage(packet))
