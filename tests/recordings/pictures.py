"""Kinds of recordings by their pictures: turned ones, sizes that are odd or change, and formats of pixels."""

from fractions import Fraction
from pathlib import Path

import av

from tests.recordings.files import B_FRAMES, HALF, RATE, Recording, joined, later, shows, write
from tests.recordings.registry import kind


@kind
def turned_90(at: Path) -> Recording:
    """Stored on its side; the container says how to turn it."""
    return shows(write(at.with_suffix(".mp4"), turned=90))


@kind
def turned_180(at: Path) -> Recording:
    """Stored on its head."""
    return shows(write(at.with_suffix(".mov"), turned=180))


@kind
def turned_270(at: Path) -> Recording:
    """Stored on its other side, with B frames."""
    return shows(write(at.with_suffix(".mp4"), options=B_FRAMES, turned=270))


@kind
def odd_size(at: Path) -> Recording:
    """321 x 241 pixels."""
    vp9 = {"cpu-used": "8", "deadline": "realtime", "b": "2M"}
    return shows(write(at.with_suffix(".webm"), codec="libvpx-vp9", options=vp9, size=(321, 241)))


@kind
def cropped_size(at: Path) -> Recording:
    """322 x 242 pixels, which H.264 codes as 336 x 256 and crops."""
    return shows(write(at.with_suffix(".mp4"), options=B_FRAMES, size=(322, 242)))


@kind
def narrow(at: Path) -> Recording:
    """176 x 144 pixels, as old cameras send."""
    return shows(write(at.with_suffix(".avi"), codec="mpeg4", options={"b": "1M"}, size=(176, 144)))


@kind
def size_changes(at: Path) -> Recording:
    """A transport stream whose camera was set to twice the size while it went on."""
    halves = [
        write(at.with_suffix(f".{n}.ts"), range(n * HALF, (n + 1) * HALF), size=(320 << n, 240 << n), edit=moved)
        for n, moved in enumerate((list, lambda packets: later(packets, Fraction(HALF, RATE))))
    ]
    return shows(joined(at.with_suffix(".ts"), halves))


@kind
def size_changes_raw(at: Path) -> Recording:
    """H.264 with nothing around it, whose picture gets smaller."""
    halves = [
        write(at.with_suffix(f".{n}.h264"), range(n * HALF, (n + 1) * HALF), size=(320, 240) if n == 0 else (160, 120))
        for n in (0, 1)
    ]
    return shows(joined(at.with_suffix(".h264"), halves))


@kind
def size_changes_mkv(at: Path) -> Recording:
    """Matroska with H.264 whose picture gets larger."""
    halves = [write(at.with_suffix(f".{n}.h264"), range(n * HALF, (n + 1) * HALF), size=(320 << n, 240 << n)) for n in (0, 1)]
    raw = joined(at.with_suffix(".h264"), halves)
    with av.open(str(raw)) as source, av.open(str(at.with_suffix(".mkv")), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for n, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.stream, packet.time_base, packet.pts, packet.dts, packet.duration = stream, Fraction(1, RATE), n, n, 1
            container.mux(packet)
    raw.unlink()
    return shows(at.with_suffix(".mkv"))


@kind
def gray_12_bit(at: Path) -> Recording:
    """FFV1 of gray pictures of 12 bits."""
    return shows(write(at.with_suffix(".mkv"), range(HALF), codec="ffv1", options={}, pixels="gray12le"), range(HALF))


@kind
def with_alpha(at: Path) -> Recording:
    """PNG pictures with alpha in QuickTime."""
    return shows(write(at.with_suffix(".mov"), range(HALF), codec="png", options={}, pixels="rgba"), range(HALF))


@kind
def ten_bit_444(at: Path) -> Recording:
    """H.264 of 10 bits whose colours are as fine as its light."""
    return shows(write(at.with_suffix(".mkv"), pixels="yuv444p10le"))
