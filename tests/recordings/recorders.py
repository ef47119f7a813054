"""Kinds of recordings as certain makers of recorders write them."""

from dataclasses import replace
from pathlib import Path

from tests.recordings.files import FRAMES, RATE, X264, X265, Recording, dav, rewrite, seconds, shows, write
from tests.recordings.registry import kind


@kind
def hikvision(at: Path) -> Recording:
    """A program stream behind the 40 bytes that begin with IMKH, named MP4."""
    header = b"IMKH\x01\x01\x00\x00\x02\x00\x00\x01\x11\x71\x01\x12\x40\x1f\x00\x00\x00\xfa".ljust(40, b"\x00")
    path = write(at.with_suffix(".mpg"), form="vob")
    return replace(shows(rewrite(path, lambda data: header + data)), path=path.rename(at.with_suffix(".mp4")))


@kind
def dahua(at: Path) -> Recording:
    """H.264 in Dahua's container."""
    return shows(dav(at.with_suffix(".dav"), "libx264", X264, 8))


@kind
def dahua_hevc(at: Path) -> Recording:
    """HEVC without B frames in Dahua's container."""
    no_b = X265 | {"x265-params": X265["x265-params"].replace("bframes=2", "bframes=0")}
    return shows(dav(at.with_suffix(".dav"), "libx265", no_b, 12))


@kind
def avi_with_dropped_frames(at: Path) -> Recording:
    """AVI in which packets without bytes stand for frames that the recorder dropped."""
    ids = [*range(25), *range(31, FRAMES)]
    return shows(
        write(at.with_suffix(".avi"), ids, codec="mjpeg", options={"b": "4M"}, pixels="yuvj420p", times=seconds(ids)), ids
    )


@kind
def avi_with_dropped_h264_frames(at: Path) -> Recording:
    """The same with H.264, whose next frames build on those before the gap."""
    ids = [*range(25), *range(31, FRAMES)]
    return shows(write(at.with_suffix(".avi"), ids, times=seconds(ids)), ids, begin_slack=2.5 / RATE)


@kind
def private_header(at: Path) -> Recording:
    """Raw H.264 behind 16 bytes that only its recorder reads."""
    return shows(rewrite(write(at.with_suffix(".264")), lambda data: b"REC1\x01\x19\x40\x01\xf0\x00" + b"\x11" * 6 + data))
