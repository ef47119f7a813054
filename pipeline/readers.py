"""What a video can be, opened: a file through decord, a stream through PyAV, numbered images of a folder."""

import bisect
import contextlib
import functools
import hashlib
import itertools
import os
import re
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pyarrow.fs import FileType

from pipeline.catalog import IMAGE_SUFFIXES, is_image_pattern
from pipeline.errors import VideoError
from pipeline.sampling import Sampling, resize, sample_times
from pipeline.storage import Location, StorageError, canonical_uri, content_hash, explained, inside_checker, listed_hash, resolve

PROGRESS_FRAMES = 100
BLOCK_BYTES = 16 << 20  # of a file that is copied or hashed
ROWS_WITH_GAPS = "The size must exactly match"  # what decord says of frames whose rows FFmpeg has padded
LISTING_SECONDS = 600  # for which the listing of a bucket prefix is good; local folders say when they change
# How files of the containers begin that cameras and tools write. Nothing else is opened: FFmpeg would also draw a text file as
# a picture, and follow a playlist to other files; one in XML can have any of these words in a comment in its first bytes.
CONTAINER_MAGIC = re.compile(
    rb"(?!<!--).{4}(ftyp|moov|mdat|wide|free|skip|pnot|uuid|styp)"  # MP4, MOV, 3GP
    rb"|\x1a\x45\xdf\xa3|RIFF.{4}AVI |FLV|OggS|DKIF|YUV4MPEG2|\x06\x0e\x2b\x34"  # Matroska and WebM, AVI, FLV, Ogg, IVF, Y4M, MXF
    rb"|\x30\x26\xb2\x75",  # ASF and WMV
    re.DOTALL,
)
STREAM_MAGIC = re.compile(
    rb"\x47.{187}\x47|(?!<!--).{4}\x47.{191}\x47"  # MPEG-TS and M2TS: packets of 188 and 192 bytes
    rb"|\x00\x00\x01[\xba\xb3]|\x00\x00\x00?\x01",  # MPEG-PS and -1/2 video; raw H.264 and HEVC
    re.DOTALL,
)


@dataclass(frozen=True)
class Progress:
    """Decoding goes on; nothing to hand over yet."""


class Reader:
    """An open source. times: float64 [frames], seconds from the first frame; fps: frames a second.

    path: of the file, or of the folder of images.
    """

    times: np.ndarray
    fps: float
    path: Path

    def sampled(self, sampling: Sampling) -> np.ndarray:
        """int64 [m]: the frames to look at."""
        return sample_times(self.times, sampling.rate)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """uint8 [n, height, width, 3], RGB. Raises VideoError."""
        raise NotImplementedError


class FileReader(Reader):
    """A video file through decord; frames of the few widths that it cannot copy (48 and 96 pixels, say) through PyAV."""

    def __init__(self, path: Path, uri: str) -> None:
        import decord

        self.uri, self.path = uri, path
        self.error = decord.DECORDError
        self.other: StreamReader | None = None
        try:
            self.video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        except (RuntimeError, self.error) as error:
            raise _cannot_open(path, uri, error) from error
        self.fps = float(self.video.get_avg_fps())
        if not 0 < self.fps < 1000:
            self.fps = 25.0
        frames = len(self.video)
        try:
            spans = self.video.get_frame_timestamp(np.arange(frames)) if frames else []
        except IndexError as error:
            raise VideoError("truncated", f"{uri} is cut off: of its {frames} frames none is in the file") from error
        self.times = checked_times(np.asarray(spans, np.float64).reshape(-1, 2)[:, 0], self.fps)

    def read(self, indices: np.ndarray) -> np.ndarray:
        if self.other is not None:
            return self.other.read(indices)
        try:
            return self.video.get_batch(indices.tolist()).asnumpy()
        except (RuntimeError, self.error) as error:
            if ROWS_WITH_GAPS in str(error):  # the file is sound
                self.other = StreamReader(self.path, self.uri)
                return self.other.read(indices)
            where = f"between {self.times[indices[0]]:.1f} s and {self.times[indices[-1]]:.1f} s"
            raise VideoError("truncated", f"{self.uri} is damaged or cut off {where} and cannot be decoded there") from error


class StreamReader(Reader):
    """A stream without an index (MPEG-TS, or raw H.264 and HEVC as cameras leave it behind) through PyAV, from front to back.

    decord opens no raw stream and fails to seek in transport streams. There is no index to count the frames from, so the stream
    is decoded once for their times and once more for the frames; packets that are damaged are passed over.
    """

    def __init__(self, path: Path, uri: str) -> None:
        import av

        self.path, self.uri, self.errors = path, uri, (av.FFmpegError, OSError)
        self.decoded: Iterator[Any] = iter(())
        self.next = 0
        try:
            with _opened(path) as container:
                if not container.streams.video:
                    raise VideoError("not_a_video", f"{uri} has no video stream")
                self.fps = float(container.streams.video[0].average_rate or 25)
        except self.errors as error:
            raise VideoError("truncated", f"{uri} is a damaged or cut-off stream: {error}") from error

    def count_frames(self) -> Iterator[Progress]:
        """Decode the stream once for the times of its frames; must be run through before anything is read."""
        stamps: list[float] = []
        try:
            for frame in self._frames():
                stamps.append(np.nan if frame.time is None else frame.time)
                if len(stamps) % PROGRESS_FRAMES == 0:
                    yield Progress()
        except self.errors as error:
            raise VideoError("truncated", f"{self.uri} is a damaged or cut-off stream: {error}") from error
        self.times = checked_times(np.array(stamps, np.float64), self.fps)

    def read(self, indices: np.ndarray) -> np.ndarray:
        frames = []
        for index in indices.tolist():
            if index < self.next:
                self.decoded, self.next = iter(()), 0
            if self.next == 0:
                self.decoded = self._frames()
            frame = next(itertools.islice(self.decoded, index - self.next, None), None)
            if frame is None:
                raise VideoError("truncated", f"{self.uri} decodes differently the second time; it is damaged")
            self.next = index + 1
            frames.append(frame.to_ndarray(format="rgb24"))
        return np.stack(frames)

    def _frames(self) -> Iterator[Any]:
        import av

        with _opened(self.path) as container:
            for packet in container.demux(video=0):
                with contextlib.suppress(av.error.InvalidDataError):
                    yield from packet.decode()


def checked_times(stamps: np.ndarray, fps: float) -> np.ndarray:
    """Time stamps as seconds from the first frame, float64 [n]; counted from fps where the container's make no sense."""
    if not np.all(np.isfinite(stamps)) or np.any(np.diff(stamps) <= 0):
        stamps = np.arange(len(stamps)) / fps
    return stamps - stamps[0] if len(stamps) else stamps


class ImagesReader(Reader):
    """Numbered images of a folder, in the order of their numbers. names: the images that belong to the video."""

    def __init__(self, folder: Location, names: Sequence[str], sampling: Sampling) -> None:
        self.fps = sampling.image_rate or sampling.rate
        self.folder, self.path, self.sampling = folder, Path(folder.path), sampling
        self.names = sorted(names, key=image_order)
        self.size: tuple[int, int] | None = None  # height and width in pixels, once an image was read
        self.times = np.arange(len(self.names)) / self.fps

    def read(self, indices: np.ndarray) -> np.ndarray:
        frames = [self._image(int(index)) for index in indices]
        if self.size is None:  # images of a tracklet may differ in size; the first one's is the video's
            first = frames[0] if indices[0] == 0 else self._image(0)
            self.size = first.shape[0], first.shape[1]
        return np.stack([resize(frame, *self.size) for frame in frames])

    def image(self, name: str) -> Location | None:
        """An image's file, None for a pipe, which would be waited for for ever. Raises VideoError for one outside the roots."""
        image = self.folder.join(name)
        refuse_outside(image.uri, self.sampling)
        return None if image.is_local and not image.info().is_file else image

    def _image(self, index: int) -> np.ndarray:
        image = self.folder.join(self.names[index])
        try:
            file = self.image(self.names[index])
            data = b"" if file is None else file.read_bytes()
            frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        except StorageError as error:
            reason = error.reject_reason("unreadable_image")
            raise VideoError("unreadable_image" if reason == "missing" else reason, str(error)) from error
        except cv2.error as error:  # what OpenCV refuses before it decodes: too many pixels, or no memory for them
            raise VideoError("too_large", f"{image.uri} has more pixels than can be decoded") from error
        if frame is None:
            raise VideoError("unreadable_image", f"{image.uri} is not an image that can be read")
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def image_order(name: str) -> tuple[list[int], str]:
    """Sort key of a numbered image: all numbers in its name, compared as numbers, then the name."""
    return [int(digits) for digits in re.findall(r"\d+", name)], name


def image_names(folder: Location, pattern: str = "*") -> list[str]:
    """Names of the images of a folder that match the pattern, sorted; `*` is any characters, but no leading dot.

    The last folder's names are kept, so asking for one tracklet after another of a folder lists it once. Raises StorageError
    when the folder is missing (an object store has none that is empty) or may not be read.
    """
    stamp = _last_change(folder.path) if folder.is_local else int(time.monotonic() // LISTING_SECONDS)
    names = _listed_images(folder.uri, stamp)
    if not names and folder.info().type != FileType.Directory:
        raise StorageError(f"cannot read {folder.uri}: there is no such folder", "missing")
    start = pattern.partition("*")[0]
    first, last = (bisect.bisect_left(names, bound) for bound in (start, start + chr(sys.maxunicode)))
    return [name for name in names[first:last] if matches(name, pattern)]


def matches(name: str, pattern: str) -> bool:
    """Whether the name is the pattern with some characters, or none, in the place of each `*`. Takes linear time."""
    start, *between = pattern.split("*")
    if not between:
        return name == pattern
    end = between.pop()
    at, stop = len(start), len(name) - len(end)
    if at > stop or not name.startswith(start) or not name.endswith(end):
        return False
    for part in between:
        at = name.find(part, at, stop)
        if at < 0:
            return False
        at += len(part)
    return True


def _last_change(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116
    except OSError:
        return 0  # listing it says why


@functools.lru_cache(maxsize=1)
def _listed_images(uri: str, stamp: int) -> list[str]:
    """All image names of a folder, sorted, without hidden ones. stamp: another one for a folder that may have changed."""
    folder = resolve(uri)
    if folder.is_local:
        try:
            with os.scandir(folder.path) as entries:
                names = [entry.name for entry in entries if not entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            kind = "permission_denied" if isinstance(error, PermissionError) else "other"
            raise StorageError(f"cannot list {uri}: {error.strerror}", kind) from error
    else:
        names = [file.name for file in folder.list()]
    suffixes = tuple(IMAGE_SUFFIXES)
    return sorted(name for name in names if name.lower().endswith(suffixes) and not name.startswith("."))


def refuse_outside(uri: str, sampling: Sampling) -> None:
    """Raises VideoError for what lies outside the roots by now: a link may have changed since the catalog was read."""
    if sampling.roots and not inside_checker(sampling.roots)(uri):
        raise VideoError("outside_roots", f"{uri} lies outside the allowed roots")


def open_source(uri: str, sampling: Sampling, stack: contextlib.ExitStack) -> Generator[Progress, None, Reader]:
    """The opened source; what takes long (a copy from an object store, counting a stream's frames) tells its progress."""
    refuse_outside(uri, sampling)
    try:
        location = resolve(uri)
        info = location.info()
        if info.type == FileType.Directory:
            return ImagesReader(location, image_names(location), sampling)
        if is_image_pattern(location.name):
            folder = resolve(canonical_uri("..", uri))
            names = image_names(folder, location.name)
            if not names:
                raise VideoError("no_frames", f"no image of the folder matches {uri}")
            return ImagesReader(folder, names, sampling)
        if info.type == FileType.NotFound:
            raise VideoError("missing", f"{uri} does not exist")
        if not info.is_file:
            raise VideoError("not_a_video", f"{uri} is a pipe, a device or a socket")
        if info.size == 0:
            raise VideoError("empty", f"{uri} is an empty file")
        if info.size > sampling.max_bytes:
            raise VideoError("too_large", f"{uri} has {info.size} bytes; the limit is {sampling.max_bytes} (--max-bytes)")
        path = Path(location.path) if location.is_local else (yield from _local_copy(location, stack))
        with location.open_input():  # a refusal to read is told apart from damage here; decord would mix them up
            if not _is_stream(path, uri):
                return FileReader(path, uri)
            stream = StreamReader(path, uri)
            yield from stream.count_frames()
            return stream
    except StorageError as error:
        raise VideoError(error.reject_reason("undecodable"), str(error)) from error


def hashed(reader: Reader) -> Generator[Progress, None, str | None]:
    """The hash of what the reader reads, as `pipeline.provenance.source_hash` gives it; None for images in object stores, which
    would be fetched twice, and for what cannot be read: decoding says why.
    """
    try:
        if isinstance(reader, ImagesReader):
            hashes = {}
            for number, name in enumerate(reader.names if reader.folder.is_local else ()):
                image = reader.image(name)
                if image is None:
                    return None
                hashes[name] = content_hash(image)
                if number % PROGRESS_FRAMES == 0:
                    yield Progress()
            return f"images:{listed_hash(hashes)}" if hashes else None
        digest = hashlib.sha256()
        with reader.path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                yield Progress()
        return f"file:{digest.hexdigest()}"
    except (StorageError, OSError):
        return None


def _local_copy(location: Location, stack: contextlib.ExitStack) -> Generator[Progress, None, Path]:
    """An object as a temporary file: decord needs to seek, and seeking over the network costs more than one pass."""
    copy = stack.enter_context(tempfile.NamedTemporaryFile(suffix=Path(location.path).suffix))  # noqa: SIM115
    for block in location.blocks(BLOCK_BYTES):
        with explained(f"copy {location.uri} to", copy.name):
            copy.write(block)
            copy.flush()
        yield Progress()
    return Path(copy.name)


def _is_stream(path: Path, uri: str) -> bool:
    """Whether the file is a stream without an index rather than a container with one. Raises VideoError for what is no video."""
    with path.open("rb") as file:
        start = file.read(256)
    if CONTAINER_MAGIC.match(start):
        return False
    if STREAM_MAGIC.match(start):
        return True
    raise VideoError("not_a_video", f"{uri} is not in a video format that is read")


def _opened(path: Path) -> Any:
    """The file as a PyAV container; titles and the like that are not UTF-8 do no harm."""
    import av

    return av.open(str(path), metadata_errors="ignore")


def _cannot_open(path: Path, uri: str, error: Exception) -> VideoError:
    """Why decord does not open a file that begins like a video."""
    import av

    with contextlib.suppress(av.FFmpegError, OSError), _opened(path) as container:
        if not container.streams.video:
            return VideoError("not_a_video", f"{uri} has no video stream")
    said = str(error).strip().splitlines()[-1].split("] ")[-1]
    return VideoError("truncated", f"{uri} is a damaged or cut-off video: {said}")
