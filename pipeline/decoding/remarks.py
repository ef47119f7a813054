"""Sentences on what is unusual about a file: times that were mended, an end that is missing, recordings that are joined on."""

import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import av

from pipeline.decoding.formats import DECODING_TIMES, RAW_STREAMS
from pipeline.decoding.frame_times import LONGEST_PAUSE, FrameTimes

MOST_DELAYED = 16  # frames that a decoder holds back; of those that it gives up at the end FFmpeg does not say when they came out
TAIL = 8 << 20  # bytes at the end that are searched at once for another recording
# How a file of a container begins whose demuxer ends where a second one is joined on.
BEGINS = {
    "flv": b"FLV\x01",
    "ivf": b"DKIF\x00\x00\x20\x00",
    "asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
}


def remarks_on_times(times: FrameTimes, frames: int, container: Any, guessed: bool, rate: float) -> Iterator[str]:
    if guessed:
        yield f"the stream has neither times nor a frame rate; {rate:g} frames a second were guessed (--frame-rate states them)"
    usual = MOST_DELAYED if container.format.name in DECODING_TIMES | {"mpeg"} else 0
    if times.missing > usual and container.format.name not in RAW_STREAMS:
        yield f"{times.missing} of {frames} frames have no time stamp; their times lie between their neighbours'"
    if times.mended:
        yield f"{times.mended} of {frames} time stamps cannot be and were replaced by times between their neighbours'"
    if times.restarts:
        yield f"the time stamps begin anew {times.restarts} times; what follows is taken as going on at once"


def late_picture(container: Any, zero: float) -> Iterator[str]:
    """A sentence where the rest of a file begins long before its picture. zero: seconds that the picture's start stands at."""
    if zero > (container.start_time or 0) / av.time_base + LONGEST_PAUSE:
        yield "the picture begins more than 12 hours after the rest of the file; times count from the picture"


def missing_end(container: Any, stream: Any, last: float, lasts: float) -> Iterator[str]:
    """A sentence where the file says that it is longer than its pictures are. last: stamp of its last frame, in seconds, which is
    there for so many.
    """
    said = None
    if stream.duration is not None:
        said = float(stream.duration * stream.time_base)
    elif container.duration is not None and container.format.name not in RAW_STREAMS and len(container.streams) == 1:
        said = container.duration / av.time_base
    from_zero = container.format.name.startswith("matroska")  # whose length counts from stamp 0
    start = 0.0 if from_zero else float((stream.start_time or 0) * stream.time_base)
    end = last - start + lasts
    if said is not None and end + max(0.5, 2.5 * lasts) < said < 1e7:
        yield f"the file says that it is {said:.1f} s long; its pictures end after {end:.1f} s"


def more_follows(file: BinaryIO, container: Any, end: int) -> bool:
    """Whether there is a recording in the file that its demuxer does not come to. end: bytes up to that of the last packet."""
    if container.format.name.startswith("mov"):
        return _boxes(file).count(b"moov") > 1
    if container.format.name == "mpegts":
        file.seek(max(0, file.seek(0, io.SEEK_END) - TAIL))
        return not _video_pids(file.read()) <= {stream.id for stream in container.streams}
    file.seek(end)
    begins, before = BEGINS.get(container.format.name), b""
    while begins is not None and (block := file.read(TAIL)):
        if begins in before + block:
            return True
        before = block[-len(begins) :]
    return False


def _video_pids(data: bytes) -> set[int]:
    """Under which ids video begins in a transport stream (ISO/IEC 13818-1, 2.4.3): in units of the streams e0 to ef."""
    found = set()
    for packet in re.finditer(rb"\x47([\x40-\x5f].)([\x10-\x3f])", data, re.DOTALL):
        at = packet.end()
        if packet[2][0] & 0x20 and at < len(data):  # an adaptation field
            at += 1 + data[at]
        if data[at : at + 3] == b"\0\0\1" and 0xE0 <= (data[at + 3 : at + 4] or b"\0")[0] <= 0xEF:
            found.add(int.from_bytes(packet[1], "big") & 0x1FFF)
    return found


def _boxes(file: BinaryIO) -> list[bytes]:
    """The names of the boxes of an MP4 or QuickTime file, the outer ones, as far as they can be followed."""
    names, at = list[bytes](), 0
    while len(head := file.read(16)) >= 8:
        size = int.from_bytes(head[8:] if head[:4] == b"\0\0\0\1" else head[:4], "big")
        names.append(head[4:8])
        if size < 8:  # 0: to the end
            break
        at += size
        file.seek(at)
    return names
