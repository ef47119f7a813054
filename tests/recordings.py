"""Recordings as cameras, recorders and cutters write them, and which frames they show at which times.

    python -m benchmarks.recordings --out FOLDER

A kind is a function of KINDS: it writes one small file and says what a reader must find in it. Every picture carries its number as
a barcode (ten blocks of 32 pixels along the top, the lowest bit first), so what was decoded says itself which frame it is; below
it a texture moves, so that pictures are coded from their neighbours. Files are encoded and muxed in this process; what no muxer
writes (stamps that jump, packets that are lost) is done to the bytes afterwards.
"""

import itertools
import re
import struct
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

FRAMES, GOP, RATE = 60, 20, 25  # of a recording, unless its kind says otherwise: frames, frames from key to key, frames a second
SIZE = (320, 240)
HALF = FRAMES // 2
TS_PACKET, VIDEO_PID = 188, 0x100
STAMPS = 1 << 33  # of MPEG-TS, after which they begin anew

Packets = list[Any]  # of one stream, in the order of decoding
Edit = Callable[[Packets], Packets]


@dataclass(frozen=True)
class Recording:
    """A file and what it shows.

    ids: the frames' barcodes, in the order of presentation; none: the file is to be refused. times: seconds from the start of the
    file, which is that of whatever begins first in it. unsure: frames that damage reaches: each may be missing, or be a mixture.
    time_slack: seconds that a time may be off; begin_slack: that all of them may be off together, where the container does not say
    how long the first picture is delayed. misread: ffmpeg takes the stamps as they are, so only the frames are compared with it.
    """

    path: Path
    ids: tuple[int, ...]
    times: tuple[float, ...]
    unsure: frozenset[int] = frozenset()
    time_slack: float = 0.25 / RATE
    begin_slack: float = 0.25 / RATE
    misread: bool = False


Kind = Callable[[Path], Recording]
KINDS: dict[str, Kind] = {}


def kind(function: Kind) -> Kind:
    """Register a kind: it gets a path without suffix; its name is the function's, with hyphens."""
    KINDS[function.__name__.replace("_", "-")] = function
    return function


# What a reader must find, and what it found


def shows(path: Path, ids: Iterable[int] = range(FRAMES), rate: Fraction | float = RATE, first: int = 0, **more: Any) -> Recording:
    """A recording at a constant rate. first: the frame at the file's start."""
    numbers = tuple(ids)
    slack = {"time_slack": 0.25 / float(rate), "begin_slack": 0.25 / float(rate)}
    return Recording(path, numbers, tuple(float((i - first) / rate) for i in numbers), **(slack | more))


def faults(recording: Recording, ids: Sequence[int], times: Sequence[float], with_times: bool = True) -> list[str]:
    """What is wrong with frames that a reader found, in sentences. ids, times: one a frame, as in Recording.

    What lies in a damaged stretch is not judged; every other frame must be there, once, in its place and at its time.
    """
    frame = float(np.median(np.diff(recording.times)))
    unsure = [time for i, time in zip(recording.ids, recording.times, strict=True) if i in recording.unsure]
    judged = [(i, t) for i, t in zip(ids, times, strict=True) if all(abs(t - other) > 0.75 * frame for other in unsure)]
    wanted = [(i, t) for i, t in zip(recording.ids, recording.times, strict=True) if i not in recording.unsure]
    seen, right = [i for i, _ in judged], [i for i, _ in wanted]
    if seen != right:
        at = next((n for n, (a, b) in enumerate(zip(seen, right, strict=False)) if a != b), min(len(seen), len(right)))
        return [f"{len(seen)} frames instead of {len(right)}; the first that differs is {seen[at : at + 4]} for {right[at : at + 4]}"]
    if not with_times:
        return []
    off = np.array([t for _, t in judged]) - np.array([t for _, t in wanted])
    begin = float(np.median(off))
    worst = int(np.argmax(np.abs(off - begin)))
    wrong = []
    if not abs(begin) <= recording.begin_slack:
        wrong.append(f"all times are {begin:+.3f} s off")
    if not abs(off[worst] - begin) <= recording.time_slack:
        wrong.append(f"frame {seen[worst]} is {off[worst] - begin:+.3f} s off")
    return wrong


def barcodes(frames: np.ndarray) -> list[int]:
    """The numbers that frames carry. frames: uint8 [n, 240, 320], gray."""
    cells = frames[:, 12:20].reshape(len(frames), 8, 10, 32)[..., 8:24].mean(axis=(1, 3))  # [n, 10]
    return ((cells > 127) @ (1 << np.arange(10))).tolist()


def read_by_ffmpeg(path: Path) -> tuple[list[int], list[float]]:
    """Barcodes and times, in seconds from the start of the file, of what the ffmpeg program shows of the largest stream."""
    show = ["-fps_mode", "passthrough", "-vf", "scale=320:240,showinfo", "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    done = subprocess.run(["ffmpeg", "-nostdin", "-copyts", "-i", path, "-an", "-sn", "-dn", *show], capture_output=True, check=False)
    said = done.stderr.decode(errors="replace")
    start = re.search(r"Duration: .*?start: (-?[\d.]+)", said)
    times = [float(t) for t in re.findall(r"showinfo.* n: *\d+ .*?pts_time: *(\S+)", said)]
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, SIZE[1], SIZE[0])
    return barcodes(frames), (np.array(times) - float(start[1] if start else 0)).tolist()


# Pictures, and the way from them into a file


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 [height, width, 3]: the barcode of a number over a texture that moves. size: width and height in pixels."""
    frame = np.roll(TEXTURE, (2 * number, -3 * number), axis=(0, 1))
    frame[: SIZE[1] // 8] = np.repeat([255 * (number >> bit & 1) for bit in range(10)], 32)[None, :, None]
    return frame if size == SIZE else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


TEXTURE = cv2.resize(np.random.default_rng(5).integers(40, 200, (30, 40, 3), np.uint8), SIZE, interpolation=cv2.INTER_CUBIC)
X264 = {"preset": "veryfast", "bf": "0", "x264-params": "scenecut=0"}
B_FRAMES = X264 | {"bf": "2", "x264-params": "scenecut=0:b-adapt=0:b-pyramid=none"}
OPEN_GOP = X264 | {"bf": "2", "x264-params": "scenecut=0:b-adapt=0:b-pyramid=none:open-gop=1"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:scenecut=0:bframes=2:b-adapt=0:open-gop=0:pools=1:frame-threads=1"}
RASL = X265 | {"x265-params": X265["x265-params"].replace("open-gop=0", "open-gop=1")}


def add_video(container: Any, codec: str, options: dict[str, str], rate: Fraction | float, size: tuple[int, int], **more: Any) -> Any:
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
        sound = []
        for start in range(0, int(seconds * 16000), stream.codec_context.frame_size or 1152):
            size = stream.codec_context.frame_size or 1152
            kind_of_sample = stream.codec_context.format.name
            samples = np.zeros((1, size), np.float32 if kind_of_sample.startswith("flt") else np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format=kind_of_sample, layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start + int(begins * 16000), Fraction(1, 16000)
            sound += stream.encode(frame)
        return sound + stream.encode(None)

    return packets


def write(
    path: Path,
    ids: Iterable[int] = range(FRAMES),
    codec: str = "libx264",
    options: dict[str, str] = X264,
    rate: Fraction | float = RATE,
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

    times: seconds of the pictures; None: at the rate, from 0. edit: what is done to the packets before they are muxed. muxer: options
    of the container, form: its format where the suffix does not say it. turned: degrees by which players are told to turn the
    pictures back, anticlockwise. sound: seconds of silence, and when they begin.
    """
    numbers = list(ids)
    at = [Fraction(n) / Fraction(rate) for n in range(len(numbers))] if times is None else list(times)
    pictures = [np.rot90(picture(number, size), -turned // 90) for number in numbers]
    with av.open(str(path), "w", format=form, options=muxer or {}) as container:
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
    """An MPEG-TS file with other stamps. change: (number of the picture, its stamp in 1/90000 s) -> the new one, None to have none."""
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


# Codecs


@kind
def h264_baseline(at: Path) -> Recording:
    """H.264, baseline: no picture is coded from a later one."""
    return shows(write(at.with_suffix(".mp4"), options=X264 | {"profile": "baseline"}))


@kind
def h264_b_frames(at: Path) -> Recording:
    """H.264 with B frames, coded in another order than shown."""
    return shows(write(at.with_suffix(".mp4"), options=B_FRAMES))
