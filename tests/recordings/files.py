"""Recordings for tests: how they are written, changed byte by byte, read by others and judged; kinds: `tests.recordings.kinds`.

Every picture carries its number as a barcode (ten blocks of 32 pixels along the top, the lowest bit first), so what was decoded
says itself which frame it is; below it a texture moves, so that pictures are coded from their neighbours. Encoding and muxing
need no other program; what no muxer writes (stamps that jump, packets that are lost) is done to the bytes afterwards.
"""

import contextlib
import os
import re
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from pipeline.decoding.sampling import Ticks

FRAMES, GOP, RATE = 60, 20, 25  # of a recording, unless its kind says otherwise: frames, frames from key to key, frames a second
SIZE = (320, 240)
HALF = FRAMES // 2
TS_PACKET, VIDEO_PID = 188, 0x100
STAMPS = 1 << 33  # of MPEG-TS, after which they begin anew

Rate = Fraction | float  # frames a second
Packets = list[Any]  # of one stream, in the order of decoding
Edit = Callable[[Packets], Packets]


@dataclass(frozen=True)
class Recording:
    """A file and what it shows.

    ids: the frames' barcodes, in the order of presentation; none: the file is to be refused. times: seconds from the start of
    the file, which is that of whatever begins first in it. unsure: frames that damage reaches: each may be missing, or a mixture.
    time_slack: seconds that a time may be off; begin_slack: that all of them may be off together, more where the container does
    not say how long the first picture is delayed. misread: ffmpeg takes bad stamps as they are, so the truth of the times is what
    was put in.
    """

    path: Path
    ids: tuple[int, ...]
    times: tuple[float, ...]
    unsure: frozenset[int] = frozenset()
    time_slack: float = 0.25 / RATE
    begin_slack: float = 0.25 / RATE
    misread: bool = False

    @property
    def right(self) -> dict[int, float]:
        """The times of the frames that must be there, in the order of presentation."""
        return {i: t for i, t in zip(self.ids, self.times, strict=True) if i not in self.unsure}


# What a reader must find, and what it found


def shows(path: Path, ids: Iterable[int] = range(FRAMES), rate: Rate = RATE, first: int = 0, **more: Any) -> Recording:
    """A recording at a constant rate. first: the frame at the file's start."""
    numbers = tuple(ids)
    slack = {"time_slack": 0.25 / float(rate), "begin_slack": 0.25 / float(rate)}
    return Recording(path, numbers, tuple(float((i - first) / rate) for i in numbers), **(slack | more))


def matched(recording: Recording, ids: Sequence[int], times: Sequence[float]) -> tuple[list[tuple[int, float]], float]:
    """Frames that a reader found, without those at damaged times, and by how many seconds all of them are late.

    ids, times: as in Recording, one per frame. Returns (barcode, seconds from the start of the file) of each, as the reader has
    it, and the (upper) median of what the frames that can be judged are late; NaN where there are none.
    """
    frame = float(np.median(np.diff(recording.times)))
    right = recording.right
    lateness = sorted(t - right[i] for i, t in zip(ids, times, strict=True) if i in right) or [np.nan]
    late = lateness[len(lateness) // 2]
    unsure = [t + late for i, t in zip(recording.ids, recording.times, strict=True) if i in recording.unsure]
    return [(i, t) for i, t in zip(ids, times, strict=True) if not any(abs(t - u) < 0.75 * frame for u in unsure)], late


def faults(recording: Recording, ids: Sequence[int], times: Sequence[float], with_times: bool = True) -> list[str]:
    """What is wrong with all frames that a reader found, in sentences. ids, times: as in Recording, one per frame.

    What lies in a damaged stretch is not judged; every other frame must be there, once, in its place, and, with_times, then.
    """
    seen, late = matched(recording, ids, times)
    found, right = [i for i, _ in seen], list(recording.right)
    if found != right:
        at = next((n for n, (a, b) in enumerate(zip(found, right, strict=False)) if a != b), min(len(found), len(right)))
        differ = f"{found[at : at + 4]} for {right[at : at + 4]}"
        return [f"{len(found)} frames instead of {len(right)}, the first that differ: {differ}"]
    off = np.array([t - late - recording.right[i] for i, t in seen])
    worst = int(np.argmax(np.abs(off)))
    wrong = []
    if with_times and not abs(late) <= recording.begin_slack:
        wrong.append(f"all times are {late:+.3f} s off")
    if with_times and not abs(off[worst]) <= recording.time_slack:
        wrong.append(f"frame {found[worst]} is {off[worst]:+.3f} s off")
    return wrong


def barcodes(frames: np.ndarray) -> list[int]:
    """The numbers that frames carry. frames: uint8 [n, 240, 320], gray."""
    cells = frames[:, 12:20].reshape(len(frames), 8, 10, 32)[..., 8:24].mean(axis=(1, 3))  # [n, 10]
    return ((cells > 127) @ (1 << np.arange(10))).tolist()


def read_by_ffmpeg(path: Path) -> tuple[list[int], list[float]]:
    """Barcodes and times, in seconds from the start of the file, of what the ffmpeg program shows of the largest stream."""
    show = ["-an", "-fps_mode", "passthrough", "-vf", "scale=320:240,showinfo", "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    # Sound that is not read would not count for the start of the file.
    sound = ["-map", "0:v", "-map", "0:a?", "-c", "copy", "-f", "null", "-"]
    done = subprocess.run(["ffmpeg", "-nostdin", "-copyts", "-i", path, *show, *sound], capture_output=True, check=False)
    said = done.stderr.decode(errors="replace")
    start = re.search(r"Duration: .*?start: (-?[\d.]+)", said)
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, SIZE[1], SIZE[0])
    times, base = list[float](), Fraction(0)
    for config, pts in re.findall(r"showinfo.* config in time_base: (\S+),|showinfo.* n: *\d+ pts: *(\S+)", said):
        if config:
            base = Fraction(config)
        else:
            times.append(np.nan if pts == "NOPTS" else float(int(pts) * base - Fraction(start[1] if start else 0)))
    return barcodes(frames), times


def read_by_opencv(path: Path) -> list[int]:
    """Barcodes of the frames that OpenCV shows, one after the other."""
    capture, found = cv2.VideoCapture(str(path)), list[int]()
    while (frame := capture.read()[1]) is not None:
        found += barcodes(cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), SIZE, interpolation=cv2.INTER_AREA)[None])
    return found


# Pictures, and the way from them into a file


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 [height, width, 3]: the barcode of a number over a texture that moves. size: width and height in pixels."""
    frame = np.roll(TEXTURE, (2 * number, -3 * number), axis=(0, 1))
    frame[: SIZE[1] // 8] = np.repeat([255 * (number >> bit & 1) for bit in range(10)], 32)[None, :, None]
    return frame if size == SIZE else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


TEXTURE = cv2.resize(np.random.default_rng(5).integers(40, 200, (30, 40, 3), np.uint8), SIZE, interpolation=cv2.INTER_CUBIC)
# Without mbtree: with it x264 gives other sizes now and then, and FFmpeg's muxer of program streams, which cuts its packets by
# size, then stamps the frame behind the right one.
X264 = {"preset": "veryfast", "bf": "0", "x264-params": "scenecut=0:mbtree=0"}
B_FRAMES = X264 | {"bf": "2", "x264-params": "scenecut=0:mbtree=0:b-adapt=0:b-pyramid=none"}
OPEN_GOP = X264 | {"bf": "2", "x264-params": "scenecut=0:mbtree=0:b-adapt=0:b-pyramid=none:open-gop=1"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:scenecut=0:bframes=2:b-adapt=0:open-gop=0:pools=1:frame-threads=1"}
RASL = X265 | {"x265-params": X265["x265-params"].replace("open-gop=0", "open-gop=1")}


def add_video(container: Any, codec: str, options: dict[str, str], rate: Rate, size: tuple[int, int], **more: Any) -> Any:
    """A stream whose packets `encoded` makes."""
    stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001), options={"g": str(GOP), **options})
    stream.width, stream.height, stream.pix_fmt = *size, more.get("pixels", "yuv420p")
    stream.codec_context.thread_count = 1
    stream.codec_context.time_base = more.get("time_base") or 1 / Fraction(rate).limit_denominator(1001)
    return stream


def encoded(stream: Any, pictures: Iterable[np.ndarray], times: Iterable[Fraction | float]) -> Packets:
    """All packets of a stream. times: seconds."""
    base = stream.codec_context.time_base
    packets = []
    for rgb, time in zip(pictures, times, strict=True):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
        frame.pts, frame.time_base = round(Fraction(time) / base), base
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def add_sound(container: Any, seconds: float, begins: float = 0.0) -> Callable[[], Packets]:
    """A track of silence, and how to encode it once all streams are there."""
    stream = container.add_stream("mp2" if container.format.name in ("mpegts", "vob") else "aac", rate=16000, layout="mono")

    def packets() -> Packets:
        samples = np.zeros((1, int(seconds * 16000)), np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, int(begins * 16000), Fraction(1, 16000)
        return stream.encode(frame) + stream.encode(None)

    return packets


@contextlib.contextmanager
def as_scheduled() -> Iterator[None]:
    """The thread keeps its place among others: SVT-AV1 puts what opens it ahead of all (SCHED_FIFO 99) where it may, for good."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def write(
    path: Path,
    ids: Iterable[int] = range(FRAMES),
    codec: str = "libx264",
    options: dict[str, str] = X264,
    rate: Rate = RATE,
    *,
    size: tuple[int, int] = SIZE,
    times: Iterable[Fraction | float] | None = None,
    edit: Edit = list,
    muxer: dict[str, str] | None = None,
    form: str | None = None,
    turned: int = 0,
    sound: tuple[float, float] | None = None,
    **more: Any,
) -> Path:
    """Encode pictures and mux them. Returns the path.

    times: seconds of the pictures; None: at the rate, from 0. edit: what is done to the packets before they are muxed. muxer:
    options of the container, form: its format where the suffix does not say it. turned: degrees by which players are told to turn
    the pictures back, anticlockwise. sound: seconds of silence, and when they begin. more: for `add_video`.
    """
    numbers = list(ids)
    at = [Fraction(n) / Fraction(rate) for n in range(len(numbers))] if times is None else list(times)
    pictures = [np.rot90(picture(number, size), -turned // 90) for number in numbers]
    with as_scheduled(), av.open(str(path), "w", format=form, options=muxer or {}) as container:
        stream = add_video(container, codec, options, rate, pictures[0].shape[1::-1], **more)
        if turned:
            stream.set_display_rotation(turned)
        silence = add_sound(container, *sound) if sound else list
        container.mux(sorted([*edit(encoded(stream, pictures, at)), *silence()], key=lambda p: p.dts * p.time_base))
    return path


def later(packets: Packets, seconds: Fraction | float) -> Packets:
    """The packets, moved in time."""
    for packet in packets:
        ticks = round(Fraction(seconds) / packet.time_base)
        packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
    return packets


def with_payload(packet: Any, payload: bytes) -> Any:
    """A packet with other bytes and the same stamps."""
    changed = av.Packet(payload)
    changed.pts, changed.dts, changed.time_base, changed.stream = packet.pts, packet.dts, packet.time_base, packet.stream
    changed.is_keyframe, changed.duration = packet.is_keyframe, packet.duration
    return changed


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Change the bytes of a file."""
    path.write_bytes(change(path.read_bytes()))
    return path


def restamped(data: bytes, change: Callable[[int, int], int | None]) -> bytes:
    """An MPEG-TS file with other stamps. change: (number of the frame, its stamp in 1/90000 s) -> the new one, None for none."""
    packets, number = bytearray(data), 0
    for at in range(0, len(packets), TS_PACKET):
        head = packets[at : at + 4]
        if head[1] & 0x40 and (head[1] & 0x1F) << 8 | head[2] == VIDEO_PID:
            start = at + 4 + (1 + packets[at + 4] if head[3] & 0x20 else 0)  # behind the adaptation field
            pts = packets[start + 9 : start + 14]
            stamp = (pts[0] >> 1 & 7) << 30 | pts[1] << 22 | pts[2] >> 1 << 15 | pts[3] << 7 | pts[4] >> 1
            new = change(number, stamp)
            number += 1
            if new is None:
                packets[start + 7] &= 0x3F  # the five bytes stay as stuffing
                packets[start + 9 : start + 14] = b"\xff" * 5
            else:
                packets[start + 9 : start + 14] = bytes(
                    [0x21 | new >> 29 & 0x0E, new >> 22 & 0xFF, new >> 14 & 0xFE | 1, new >> 7 & 0xFF, new << 1 & 0xFE | 1]
                )
    return bytes(packets)


def boxes(data: bytes) -> list[bytes]:
    """The boxes of an MP4 file, or those within one, as they lie one after the other."""
    found, at = [], 0
    while at < len(data):
        size = struct.unpack_from(">I", data, at)[0]
        found.append(data[at : at + size])
        at += size
    return found


def without_rate(stream: bytes) -> bytes:
    """A raw H.264 stream (baseline, or high in 4:2:0) whose parameter sets end before what they may say on display and rate."""
    parameters = re.compile(rb"(?<=\x00\x00\x01)\x67.*?(?=\x00\x00\x00?\x01)", re.DOTALL)
    return parameters.sub(lambda unit: _short_parameters(unit[0]), stream)


def _short_parameters(unit: bytes) -> bytes:
    """A sequence parameter set (ITU-T H.264, 7.3.2.1.1) up to its flag for display information, which is taken back."""
    bits, at = "".join(f"{byte:08b}" for byte in unit), 32  # behind the type, the profile and the level

    def number() -> int:
        nonlocal at
        zeros = bits.index("1", at) - at
        at += 2 * zeros + 1
        return int(bits[at - zeros - 1 : at], 2) - 1

    number()  # id
    if unit[1] == 100:  # high: chroma, two depths, lossless, scaling lists
        number(), number(), number()
        at += 2
    number()  # bits of the frame number
    if number() == 0:  # how the order is told
        number()
    number()  # reference frames
    at += 1
    number(), number()  # size
    at += 3  # frames only, direct inference, no cropping (320 x 240 needs none)
    kept = bits[:at] + "01"
    return int(kept.ljust(-(-len(kept) // 8) * 8, "0"), 2).to_bytes(-(-len(kept) // 8), "big")


def dropped(first: int, count: int = 1) -> Edit:
    """Packets that are not written."""
    return lambda packets: packets[:first] + packets[first + count :]


def from_frame(first: int) -> Edit:
    """What a cutter copies without decoding: packets from one on, so that its time is 0."""
    return lambda packets: later(packets[first:], Fraction(-first, RATE))


def from_second_key_frame(packets: Packets) -> Packets:
    """What is left where the first key frame and all that is coded from it alone is cut off."""
    return packets[[n for n, packet in enumerate(packets) if packet.is_keyframe][1] :]


def spoiled(first: int, count: int, change: Callable[[bytes], bytes]) -> Edit:
    """Other bytes in some packets."""
    return lambda packets: [
        with_payload(packet, change(bytes(packet))) if first <= n < first + count else packet for n, packet in enumerate(packets)
    ]


def frame_of_packets(data: bytes) -> dict[int, int]:
    """Where each packet of the picture is in an MPEG-TS file -> the number of its frame, from 0."""
    frames, number = {}, -1
    for at in range(0, len(data), TS_PACKET):
        if (data[at + 1] & 0x1F) << 8 | data[at + 2] == VIDEO_PID:
            number += data[at + 1] >> 6 & 1
            frames[at] = number
    return frames


def joined(path: Path, parts: list[Path]) -> Path:
    """The bytes of files one behind the other; the files go."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    return path


def dav(path: Path, codec: str, options: dict[str, str], number: int) -> Path:
    """Write the container of Dahua's recorders. number: of the codec in it.

    As FFmpeg's demuxer reads it, a chunk is DHAV, its type (fd: key frame, fc: another), subtype, channel and number within the
    frame, the frame's number, the length of all of it, date and time (six fields from bit 26 down, years from 2000), a counter of
    milliseconds (16 bits), the length of the extensions, a checksum, the extensions (81: codec and rate, 82: size), the frame,
    dhav and the length again.
    """
    raw = write(path.with_suffix(".raw"), codec=codec, options=options, form={"libx264": "h264", "libx265": "hevc"}[codec])
    with av.open(str(raw)) as container:
        packets = [(bytes(packet), packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
    raw.unlink()
    chunks = []
    for n, (payload, key) in enumerate(packets):
        extensions = struct.pack("<4B4B2H", 0x81, 0, number, RATE, 0x82, 0, 0, 0, *SIZE)
        length = 24 + len(extensions) + len(payload) + 8
        second, millisecond = divmod(n * 1000 // RATE, 1000)
        day = 26 << 26 | 3 << 22 | 1 << 17 | 12 << 12 | second
        head = struct.pack("<4s4B3IHB", b"DHAV", 0xFD if key else 0xFC, 0, 0, 0, n, length, day, 1000 * second + millisecond, 12)
        chunks.append(head + bytes([sum(head) & 0xFF]) + extensions + payload + struct.pack("<4sI", b"dhav", length))
    path.write_bytes(b"".join(chunks))
    return path


def seconds(ids: Iterable[int]) -> list[Fraction]:
    """When frames are shown, at the usual rate."""
    return [Fraction(i, RATE) for i in ids]


def sample_times(times: np.ndarray, rate: float) -> np.ndarray:
    """Numbers of the frames that are looked at, of these times."""
    ticks = Ticks(rate)
    return np.flatnonzero([ticks.take(time) for time in times])
