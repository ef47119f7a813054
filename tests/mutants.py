"""Hostile inputs made of real clips: every one is drawn from a seed, so that a fault can be had again.

`write_sources` encodes clean clips; `write_mutants` damages, forges or renames them, one class after another. What must hold of
each is in tests.mutant_judge.
"""

import itertools
import os
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from tests.conftest import TOY_SIDECAR
from tests.recordings.files import as_scheduled

CODECS = {
    "libx264": ("mp4", "mkv", "avi", "ts"),
    "libx265": ("mp4", "mkv", "ts"),
    "libvpx-vp9": ("mp4", "mkv"),
    "libsvtav1": ("mp4", "mkv"),
    "mpeg4": ("mp4", "mkv", "avi", "ts"),
    "mjpeg": ("mp4", "mkv", "avi"),
}
QUIET = {"libx264": {"preset": "ultrafast"}, "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"}}
QUIET |= {"libvpx-vp9": {"cpu-used": "8", "deadline": "realtime"}, "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"}}
HUGE = (2**31 - 1, 2**31, 2**32 - 1, 2**24, 65_535)
NASTY_NAMES = (
    *(
        "two\nlines",
        "bell\a and \x1b[31mred",
        "\U0001f9cd\u200d♀️ walks",
        "a'b\"c",
        "-rf",
        "semi;colon `id` $(id)",
        "100%25 %2e%2e",
    ),
    *(
        "star*",
        "q?endpoint_override=evil",
        "hash#1",
        "b\\slash",
        " blank ",
        "é" * 60,
        "\u202egnp",
        "x,y,z",
        "{}[]()",
        "~",
        "=1+1",
    ),
)


@dataclass(frozen=True)
class Mutant:
    """One hostile input. kind: its class; path: the file or folder; boxes: its boxes file, or None."""

    kind: str
    path: Path
    boxes: Path | None = None


def encode(
    path: Path,
    codec: str,
    size: tuple[int, int] = (80, 64),
    times: list[int] | None = None,
    form: str | None = None,
) -> Path:
    """A clip of coarse moving noise. size: (width, height); times: time stamps of the frames in units of 1/1000 s."""
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    with as_scheduled(), av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=10, options=QUIET.get(codec, {}))
        stream.width, stream.height, stream.pix_fmt = *size, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(16) if times is None else times:
            coarse = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(cv2.resize(coarse, size), "rgb24")
            if times is not None:
                frame.pts, frame.time_base = i, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sources(folder: Path) -> list[Path]:
    """A clean clip of every codec in every container, where the installed FFmpeg has the encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder's chatter
    return [
        encode(folder / f"{codec}.{suffix}", codec)
        for codec, suffixes in CODECS.items()
        if codec in av.codecs_available
        for suffix in suffixes
    ]


class _Maker:
    """Writes mutants of the sources into a folder. Each method but the first ones is a class of mutants, named by it."""

    def __init__(self, sources: list[Path], folder: Path, seed: int) -> None:
        self.sources, self.folder, self.random = sources, folder, random.Random(seed)
        self.number = 0
        folder.mkdir(parents=True, exist_ok=True)

    def new(self, suffix: str) -> Path:
        self.number += 1
        return self.folder / f"m{self.number:05d}{suffix}"

    def source(self, *suffixes: str) -> Path:
        return self.random.choice([s for s in self.sources if not suffixes or s.suffix in suffixes])

    def write(self, source: Path, data: bytes | bytearray) -> Path:
        path = self.new(f"-{source.stem}{source.suffix}")
        path.write_bytes(data)
        return path

    def patched(self, source: Path, marker: bytes, offset: int, form: str, values: tuple[int, ...]) -> Path:
        """The source with a number after each place of `marker` overwritten."""
        data = bytearray(source.read_bytes())
        for match in re.finditer(re.escape(marker), bytes(data)):
            at = match.end() + offset
            if at + struct.calcsize(form) <= len(data) and (match.start() < 4096 or match.start() > len(data) - 4096):
                struct.pack_into(form, data, at, self.random.choice(values))
        return self.write(source, data)

    def flipped_bits(self) -> Path:
        source = self.source()
        data = bytearray(source.read_bytes())
        for _ in range(self.random.choice((1, 4, 16, 64, 256))):
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        return self.write(source, data)

    def flipped_header(self) -> Path:
        source = self.source()
        data = bytearray(source.read_bytes())
        for _ in range(self.random.choice((1, 3, 8, 24))):
            at = self.random.randrange(min(1200, len(data)))
            data[at if self.random.random() < 0.6 else -1 - at] = self.random.choice((0, 1, 127, 128, 255, 64))
        return self.write(source, data)

    def cut_end(self) -> Path:
        source = self.source()
        data = source.read_bytes()
        return self.write(source, data[: self.random.randrange(1, len(data))])

    def cut_start(self) -> Path:
        source = self.source()
        data = source.read_bytes()
        return self.write(source, data[self.random.randrange(1, len(data)) :])

    def hole(self) -> Path:
        source = self.source()
        data = bytearray(source.read_bytes())
        at, length = self.random.randrange(len(data)), self.random.choice((16, 188, 1000))
        fill = self.random.choice((b"", b"\0" * length, self.random.randbytes(length), bytes(data[at : at + length]) * 2))
        data[at : at + length] = fill
        return self.write(source, data)

    def swapped_header(self) -> Path:
        source, other = self.source(), self.source()
        cut = self.random.choice((8, 32, 256, 1024))
        return self.write(source, other.read_bytes()[:cut] + source.read_bytes()[cut:])

    def wrong_suffix(self) -> Path:
        source = self.source()
        path = self.new(self.random.choice((".mp4", ".mkv", ".avi", ".ts", ".h264", ".mjpg", ".mxf", ".ogv", ".wmv", ".y4m")))
        path.write_bytes(source.read_bytes())
        return path

    def absurd_size(self) -> Path:
        """Width and height of the header far from those of the frames."""
        source = self.source(".mp4", ".avi", ".mkv")
        sides = (0, 1, 3, 8191, 16_384, 32_767, 65_535)
        if source.suffix == ".mp4":
            entry = self.random.choice(
                [m for m in (b"avc1", b"hev1", b"vp09", b"av01", b"mp4v", b"tkhd") if m in source.read_bytes()]
            )
            return self.patched(source, entry, 24 + 2 * self.random.randrange(2), ">H", sides)
        if source.suffix == ".avi":
            return self.patched(source, b"strf", 8 + 4 * self.random.randrange(2), "<I", (*sides, *HUGE))
        return self.patched(source, self.random.choice((b"\xb0", b"\xba")), 1, ">B", (0, 1, 255))

    def absurd_rate(self) -> Path:
        source = self.source(".mp4", ".avi", ".mkv")
        if source.suffix == ".mp4":
            marker, offset = self.random.choice(((b"mdhd", 12), (b"mvhd", 12), (b"stts", 12)))
            return self.patched(source, marker, offset, ">I", (0, 1, *HUGE))
        if source.suffix == ".avi":
            return self.patched(source, b"vids", 16 + 4 * self.random.randrange(2), "<I", (0, 1, *HUGE))
        return self.patched(source, b"\x23\xe3\x83\x84", 0, ">I", (0, 1, *HUGE))

    def absurd_count(self) -> Path:
        """2^31 frames and more claimed by a file of a few kilobytes."""
        source = self.source(".mp4", ".avi")
        if source.suffix == ".mp4":
            marker, offset = self.random.choice(
                ((b"stts", 4), (b"stts", 8), (b"stsz", 8), (b"stsc", 8), (b"stco", 4), (b"ctts", 8))
            )
            return self.patched(source, marker, offset, ">I", HUGE)
        marker, offset = self.random.choice(((b"avih", 20), (b"vids", 28), (b"idx1", 0)))
        return self.patched(source, marker, offset, "<I", HUGE)

    def bomb(self) -> Path:
        """Few bytes that claim, or really hold, very large frames."""
        what = self.random.randrange(4)
        if what == 0:  # a JPEG frame that says it is 65500 pixels square
            source = self.source(".avi", ".mkv", ".mp4")
            data = bytearray(source.read_bytes())
            for match in re.finditer(b"\xff\xc0\x00\x11\x08", bytes(data)):
                struct.pack_into(">HH", data, match.end(), *self.random.choice(((65_500, 65_500), (16_000, 16_000), (65_535, 1))))
            return self.write(source, data)
        if what == 1:
            side = self.random.choice((4096, 8176))
            return _flat_clip(self.new("-flat.mp4"), side)
        folder = self.new("-images")
        folder.mkdir()
        side = self.random.choice((12_000, 30_000, 60_000, 2**31 - 1))
        (folder / "1.png").write_bytes(_flat_png(side, rows=min(side, 2000)))
        return folder

    def nearly_empty(self) -> Path:
        source = self.source()
        return self.write(source, source.read_bytes()[: self.random.choice((0, 0, 1, 4, 8, 12, 40, 188, 190, 260))])

    def variable_rate(self) -> Path:
        gaps = [self.random.choice((1, 7, 40, 100, 5000, 3_600_000)) for _ in range(16)]
        return encode(
            self.new(f"-gaps{self.random.choice(('.mp4', '.mkv', '.ts'))}"), "libx264", times=list(itertools.accumulate(gaps))
        )

    def rotated(self) -> Path:
        """The track's matrix turned, mirrored, or nonsense."""
        source = self.source(".mp4")
        data = bytearray(source.read_bytes())
        one, none = 0x10000, 0
        matrix = self.random.choice(
            ((none, one, -one, none), (-one, none, none, -one), (none, -one, one, none), (7, 7, 7, 7), (none,) * 4)
        )
        at = data.find(b"tkhd") + 4 + 40
        for place, value in zip((0, 4, 12, 16), matrix, strict=True):
            struct.pack_into(">i", data, at + place, value)
        return self.write(source, data)

    def odd_size(self) -> Path:
        width, height = (self.random.choice((1, 2, 3, 7, 15, 17, 33, 95, 129, 333)) for _ in range(2))
        codec, suffix = self.random.choice((("mpeg4", ".avi"), ("libvpx-vp9", ".mkv"), ("mjpeg", ".avi"), ("mpeg4", ".mp4")))
        path = self.new(f"-{width}x{height}{suffix}")
        with suppress(av.FFmpegError):  # what the encoder refuses stays a cut-off file
            encode(path, codec, (width, height))
        return path if path.exists() else self.nearly_empty()

    def sound_only(self) -> Path:
        path = self.new(self.random.choice((".mp4", ".mkv", ".avi", ".ts")))
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mp2" if path.suffix in (".avi", ".ts") else "aac", rate=16_000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), format="s16", layout="mono")
            frame.rate = 16_000
            for resampled in av.AudioResampler(stream.format, stream.layout, 16_000, 1024).resample(frame):
                container.mux(stream.encode(resampled))
            container.mux(stream.encode(None))
        return path

    def other_kind(self) -> Path:
        """A picture, an archive, a text or a playlist under a video's name."""
        picture = np.full((40, 30, 3), 99, np.uint8)
        secret = self.sources[0]
        contents = [cv2.imencode(s, picture)[1].tobytes() for s in (".png", ".jpg", ".bmp", ".webp")]
        contents += [
            b"PK\x03\x04" + self.random.randbytes(400),
            b"\x7fELF" + self.random.randbytes(400),
            b"<html><!--free-->hello</html>",
            b"Good morning. " * 60,
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode(),
            f"ffconcat version 1.0\nfile {secret}\n".encode(),
            f"<!--free--><MPD profiles='urn:mpeg:dash:profile:full:2011'><BaseURL>{secret}</BaseURL></MPD>".encode(),
            b"v=0\r\n" + b"GGGG" * 60 + b"\r\nc=IN IP4 127.0.0.1\r\nm=video 9 RTP/AVP 96\r\n",
        ]
        path = self.new(self.random.choice((".mp4", ".mkv", ".avi", ".ts", ".mts")))
        path.write_bytes(self.random.choice(contents))
        return path

    def no_file(self) -> Path:
        """A loop of links, a link to nothing, to itself or to a folder, a pipe, a folder with a video's name."""
        path = self.new(".mp4")
        what = self.random.randrange(6)
        if what == 0:
            other = self.new("-loop.mp4")
            other.symlink_to(path)
            path.symlink_to(other)
        elif what == 1:
            path.symlink_to(path)
        elif what == 2:
            path.symlink_to(self.folder / "nothing.mp4")
        elif what == 3:
            os.mkfifo(path)
        elif what == 4:
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
        return path

    def nasty_name(self) -> Path:
        source = self.source()
        self.number += 1
        path = self.folder / f"{self.random.choice(NASTY_NAMES)}{self.number:05d}{source.suffix}"
        path.write_bytes(source.read_bytes())
        return path

    def image_folder(self) -> Path:
        """A tracklet some of whose images are damaged, of another size or links to nothing."""
        folder = self.new("-images")
        folder.mkdir()
        for i in range(self.random.choice((1, 3, 6))):
            side = self.random.choice((1, 2, 9, 40))
            data = bytearray(
                cv2.imencode(".jpg" if i % 2 else ".png", np.full((2 * side, side, 3), 9 * i, np.uint8))[1].tobytes()
            )
            damage = self.random.randrange(6)
            if damage == 0:
                data = data[: self.random.randrange(len(data))]
            elif damage == 1:
                data[self.random.randrange(len(data))] ^= 255
            path = folder / f"f{'9' * self.random.choice((1, 1, 200))}_{i}{'.jpg' if i % 2 else '.png'}"
            if damage == 2:
                path.symlink_to(folder / "nothing.png")
            elif damage == 3 and self.random.random() < 0.3:
                os.mkfifo(path)
            else:
                path.write_bytes(data)
        return folder

    def boxes(self) -> tuple[Path, Path]:
        """A sound video with boxes that are absurd, damaged or somewhere else."""
        path = self.write(source := self.source(), source.read_bytes())
        numbers = (0, 1, 2, 5, 16, -1, -3.5, 40, 1e9, -1e9, 1e38, 1e308, 2**31, 2**53, 2**63, "nan", "inf", "", "0x10", "1e999")
        usual = ((str(f), "1", "4", "4", "30", "40") for f in range(1, 12))
        lines = [
            ",".join(str(self.random.choice(numbers)) if self.random.random() < 0.01 else field for field in row) for row in usual
        ]
        data = bytearray("\n".join(lines).encode())
        if self.random.random() < 0.3:
            data[self.random.randrange(len(data))] = self.random.choice(b'\0",\n\xff9')
        boxes = path.with_name(path.name + ".txt")
        boxes.write_bytes(data)
        return path, boxes


def _flat_clip(path: Path, side: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((side * 3 // 2, side), np.uint8), "yuv420p")
        for i in range(2):
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _flat_png(side: int, rows: int) -> bytes:
    """A PNG of `side` x `side` black pixels that ends after `rows`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    line = bytes(1 + 3 * min(side, 60_000))
    data = b"".join([*(packer.compress(line) for _ in range(rows)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


SIZE = {"height": TOY_SIDECAR["height"], "width": TOY_SIDECAR["width"]}  # of frames, for the toy backbone of the ingest
_COMMON = ("flipped_bits", "flipped_header", "cut_end", "hole")  # what happens most gets most of the mutants
_SELDOM = ("bomb",)  # slow to make and to refuse
KINDS = tuple(name for name in vars(_Maker) if not name.startswith("_") and name not in ("new", "source", "write", "patched"))


def write_mutants(sources: list[Path], folder: Path, count: int, seed: int) -> Iterator[Mutant]:
    """`count` mutants, written one after another; the same for the same sources and seed."""
    maker = _Maker(sources, folder, seed)
    turns = [*KINDS, *_COMMON, *KINDS, *_COMMON, *(kind for kind in KINDS if kind not in _SELDOM), *_COMMON]
    for kind in itertools.islice(itertools.cycle(turns), count):
        method: Callable[[], Path | tuple[Path, Path]] = getattr(maker, kind)
        made = method()
        yield Mutant(kind, made) if isinstance(made, Path) else Mutant(kind, *made)
