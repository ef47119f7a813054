"""A video file of whatever kind cameras, recorders and cutters write, read front to back with PyAV (FFmpeg's libraries).

A frame's number is its place among the frames that decode, its time its own stamp (`pipeline.decoding.frame_times` says what
becomes of bad ones), counted from the file's own start: sound that begins before the picture counts. Packets that cannot be
decoded are passed over and counted. docs/recordings.md has the rules, docs/decisions.md why neither packets nor an index are
trusted.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from pipeline.decoding.entry_points import Entries, entries_of, in_step
from pipeline.decoding.formats import DECODING_TIMES, DEMUXERS, LIKE_A_VIDEO, RAW_STREAMS, UNREADABLE_TEXT
from pipeline.decoding.frame_times import LOOKAHEAD, FrameTimes
from pipeline.decoding.opening import DescriptorFile
from pipeline.decoding.reading import PAST_END, Frame, Heartbeat, Reader, Reading, stretch
from pipeline.decoding.remarks import late_picture, missing_end, more_follows, remarks_on_times
from pipeline.decoding.sampling import Sampling, resize
from pipeline.decoding.stream import Decoding, created_in, said_of, stamps_of, zero_of
from pipeline.errors import VideoError

GUESSED_RATE = 25.0  # frames per second, as FFmpeg has it
FIRST_SOUGHT = 250  # the frame from which on it pays to look for a key frame before it instead of reading all
SOUGHT_S = 5.0  # seconds into a file from which on a stretch is looked for from a key frame before it
FARTHEST_KEY = 60.0  # seconds before a stretch that a key frame is believed to be
SAME_TIME = 1e-3  # seconds, beside what float32 rounds off


class _Turn(NamedTuple):
    """How stored pictures are brought upright: rows and columns exchanged, then mirrored left to right, and upside down."""

    transposed: bool = False
    mirrored: bool = False
    flipped: bool = False


class Recording(Reader):
    """A video file. Raises VideoError where it is none, or none that opens.

    descriptor: of the file, open for reading, where it is not to be opened by its path; path is then only what it is called.
    """

    def __init__(
        self, path: Path, uri: str, sampling: Sampling, heartbeat: Heartbeat = lambda: None, descriptor: int | None = None
    ) -> None:
        self.path, self.uri, self.sampling, self.heartbeat, self.descriptor = path, uri, sampling, heartbeat, descriptor
        self._reformatter = VideoReformatter()  # kept: a new one would be a new conversion table per frame
        self._unread: Any = self._opened()
        self._size: tuple[int, int] | None = None  # height and width of the first frame, upright
        self._turn, self._pixel_aspect = _Turn(), 1.0
        self._empty: set[int] = set()  # video streams that turned out to show nothing
        self._reading: Reading | None = None
        self._created: float | None = None

    def frames(self) -> Iterator[Frame]:
        """All frames that decode, front to back. Raises VideoError at the end where too few did (`Sampling.max_damage`)."""
        container, self._unread = self._unread or self._opened(), None
        with container:
            stream = self._stream(container)
            self._created = created_in(container, stream)
            rate, guessed = self._rate(container, stream)
            stamp_of = stamps_of(container, stream)
            decoding = Decoding(container, stream, self.heartbeat)
            often = float(stream.guessed_rate or 0)  # of a recording with a long pause the average says nothing
            times = FrameTimes(1 / (often if 4 * rate < often <= 1000 and container.format.name not in RAW_STREAMS else rate))
            number, damaged, resized, zero, duration = 0, 0, 0, 0.0, 0
            time, size = 0.0, (0, 0)
            for time, frame in times.of((stamp_of(frame), frame) for frame in decoding.frames()):
                damaged += frame.is_corrupt
                if number == 0:
                    zero, size = zero_of(container.start_time, time), (frame.width, frame.height)
                    self._look_at(frame, stream)
                resized += (frame.width, frame.height) != size
                yield Frame(number, time - zero, functools.partial(self._picture, frame))
                number += 1
                duration = frame.duration  # as it is: a product of fractions per frame would take 3 % of decoding
            if number == 0 and any(s.index not in self._empty and s is not stream for s in self._streams(container)):
                self._empty.add(stream.index)
                yield from self.frames()
                return
            self._check(number, decoding, container, stream)
            remarks = [*self._stream_remarks(container, stream), *remarks_on_times(times, number, container, guessed, rate)]
            remarks += late_picture(container, zero)
            if damaged:
                remarks.append(f"{damaged} frames are damaged: FFmpeg shows them with what was missing made up")
            if decoding.suspect:
                remarks.append(
                    f"in {decoding.suspect} places packets are broken or missing; what is shown from there to the next key frame "
                    "may be wrong"
                )
            if resized:
                remarks.append(f"{resized} frames are of another size and were brought to that of the first one")
            if lost := decoding.without_picture(stream):
                remarks.append(
                    f"{lost} of {decoding.packets} packets gave no picture: what they need is damaged or not in the file"
                )
            if not times.restarts:
                remarks += missing_end(container, stream, time, max(float(duration * stream.time_base), 1 / rate))
            remarks += self._what_follows(container, decoding.end)
            self._reading = Reading(number, rate, decoding.passed_over, tuple(remarks))

    def frames_at(self, wanted: Mapping[int, float | None]) -> Iterator[Frame]:
        """See `Reader`. Far into a file, from a key frame before, if the file is one in which that gives the same frames."""
        found = self._sought(wanted) if min(wanted, default=0) >= FIRST_SOUGHT else None
        yield from super().frames_at(wanted) if found is None else found

    def frame_near(self, time_s: float) -> Frame:
        """See `Reader`; far into a file by a key frame before, as `frames_at` does."""
        if self._entries is not None:
            times = self._entries.stamps * self._entries.time_base - self._entries.zero
            number = int(np.abs(times - time_s).argmin())
            if number >= FIRST_SOUGHT and time_s <= times[-1] + PAST_END and (found := self._sought({number: times[number]})):
                return found[0]
        return super().frame_near(time_s)

    def frames_between(self, start_s: float, end_s: float) -> Iterator[Frame]:
        """See `Reader`; far into a file from a key frame before, if the times found there can be right.

        Numbers of frames then count from there.
        """
        found = self._from_key(start_s, end_s) if start_s >= SOUGHT_S else None
        yield from super().frames_between(start_s, end_s) if found is None else found

    @property
    def pixel_aspect(self) -> float:
        return self._pixel_aspect

    def created(self) -> float | None:
        return self._created

    def reading(self) -> Reading:
        if self._reading is None:
            raise RuntimeError(f"{self.uri} was not read to its end")
        return self._reading

    def _opened(self) -> Any:
        options = {"format_whitelist": ",".join(sorted(DEMUXERS)), "protocol_whitelist": "file"}
        try:
            return av.open(self._file(), options=options, **UNREADABLE_TEXT)
        except (av.FFmpegError, OSError, ValueError) as error:
            with self._file() as file:
                video = LIKE_A_VIDEO.match(file.read(256))
            if video:
                raise VideoError("truncated", f"{self.uri} is a damaged or cut-off video: {said_of(error)}") from error
            raise VideoError("not_a_video", f"{self.uri} is not in a video format that is read") from error

    def _file(self) -> Any:
        """The file from its start, at a position of its own."""
        return self.path.open("rb") if self.descriptor is None else DescriptorFile(self.descriptor, str(self.path))

    def _stream(self, container: Any) -> Any:
        """The video stream with the largest picture of those that are not known to show nothing."""
        streams = self._streams(container)
        if not streams:
            raise VideoError("not_a_video", f"{self.uri} has no video stream")
        stream = max((s for s in streams if s.index not in self._empty), key=_pixels)
        if stream.codec_context is None:
            raise VideoError("undecodable", f"{self.uri} is coded in a way that FFmpeg has no decoder for")
        stream.codec_context.thread_count = 1  # every core decodes another video
        return stream

    def _streams(self, container: Any) -> list[Any]:
        """All video streams; covers and previews of one picture are none."""
        return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]

    def _rate(self, container: Any, stream: Any) -> tuple[float, bool]:
        """Frames per second, and whether they are guessed."""
        raw = container.format.name in RAW_STREAMS
        if raw and self.sampling.frame_rate is not None:
            return self.sampling.frame_rate, False
        # Of a raw stream `average_rate` is a default; what the stream itself says is in its codec's context.
        said = [stream.codec_context.framerate] if raw else [stream.average_rate, stream.guessed_rate]
        for rate in said:
            if rate and 0 < rate <= 1000:
                return float(rate), False
        return self.sampling.frame_rate or GUESSED_RATE, raw and self.sampling.frame_rate is None

    def _look_at(self, frame: Any, stream: Any) -> None:
        """Take the size, the turn and the shape of pixels of all pictures from the first frame."""
        self._turn = _turn(frame)
        aspect = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1) or 1.0
        self._pixel_aspect = 1 / aspect if self._turn.transposed else aspect
        self._size = (frame.width, frame.height) if self._turn.transposed else (frame.height, frame.width)

    def _picture(self, frame: Any) -> np.ndarray:
        picture: np.ndarray = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
        if self._turn.transposed:
            picture = picture.transpose(1, 0, 2)
        if self._turn.mirrored:
            picture = picture[:, ::-1]
        if self._turn.flipped:
            picture = picture[::-1]
        picture = np.ascontiguousarray(picture)
        if self._size is not None and picture.shape[:2] != self._size:
            picture = resize(picture, *self._size)
        return picture

    def _check(self, frames: int, decoding: Decoding, container: Any, stream: Any) -> None:
        if frames == 0 and decoding.passed_over:
            raise VideoError(
                "undecodable", f"{self.uri}: none of its {decoding.packets} packets can be decoded: {decoding.error}"
            )
        has_length = len(container.streams) == 1 and (stream.duration or container.duration or 0) > 0
        if frames == 0 and (stream.frames or has_length):
            raise VideoError("truncated", f"{self.uri} is cut off: of its {stream.frames or 'pictures'} none is in the file")
        if frames == 0:
            raise VideoError("no_frames", f"{self.uri} has no frames")
        if decoding.passed_over > self.sampling.max_damage * decoding.packets:
            share = f"{decoding.passed_over} of its {decoding.packets} packets cannot be decoded"
            raise VideoError(
                "undecodable", f"{self.uri} is damaged: {share}; the limit is {self.sampling.max_damage:g} (--max-damage)"
            )

    def _stream_remarks(self, container: Any, stream: Any) -> Iterator[str]:
        count = len(self._streams(container))
        if count > 1:
            larger = f", beside {len(self._empty)} larger without any picture that decodes" if self._empty else ""
            yield f"of {count} video streams the largest was taken, {stream.width} x {stream.height} pixels{larger}"

    def _what_follows(self, container: Any, end: int) -> Iterator[str]:
        """A sentence where another recording follows. end: bytes of the file up to that of its last packet."""
        with self._file() as file:
            if more_follows(file, container, end):
                yield "another recording follows in the same file and is not read: take them apart"

    def _from_key(self, start_s: float, end_s: float) -> Iterator[Frame] | None:
        """The frames of a stretch, decoded from the next key frame before it; None where the file cannot be entered there."""
        container = self._opened()
        stream = self._stream(container)
        stamp_of = stamps_of(container, stream)
        try:
            first = next(Decoding(container, stream, self.heartbeat).frames(), None)
            stamp = None if first is None else stamp_of(first)
            if first is None or stamp is None:
                raise LookupError
            self._look_at(first, stream)
            zero = zero_of(container.start_time, stamp)
            container.seek(round((zero + start_s) * av.time_base), backward=True)
            times = FrameTimes(1 / self._rate(container, stream)[0])
            found = times.of((stamp_of(frame), frame) for frame in Decoding(container, stream, self.heartbeat).frames())
            time, frame = next(found, (math.inf, None))
            if not start_s - FARTHEST_KEY <= time - zero <= start_s:
                raise LookupError
        except (av.FFmpegError, OSError, LookupError):
            container.close()
            return None
        return self._entered(container, itertools.chain([(time, frame)], found), zero, start_s, end_s)

    def _entered(
        self, container: Any, found: Iterable[tuple[float, Any]], zero: float, start_s: float, end_s: float
    ) -> Iterator[Frame]:
        """The stretch of what a container decodes, which is closed then. found: (stamp in seconds, decoded frame)."""
        with container:
            shown = (
                Frame(number, time - zero, functools.partial(self._picture, frame)) for number, (time, frame) in enumerate(found)
            )
            yield from stretch(shown, start_s, end_s)

    def _sought(self, wanted: Mapping[int, float | None]) -> list[Frame] | None:
        """The wanted frames, each decoded from a key frame before it; None where that might give others than `frames` does.

        The number of a frame is its stamp's rank among all packets', if that stamp is the time that the frame had before; and
        what arrives must have that stamp, and around it one frame for each. To be safe with streams that renew their picture bit
        by bit, decoding begins one key frame earlier than it must; to be safe from files that call every frame a key frame, the
        decoder must call it one too.
        """
        entries = self._entries
        if entries is None or max(wanted) >= len(entries.stamps):
            return None
        with self._opened() as container:
            stream = self._stream(container)
            frames = Decoding(container, stream, self.heartbeat).frames()
            first = next(frames, None)
            if first is None:
                return None
            self._look_at(first, stream)
            found: list[Frame] = []
            decoding, at = None, -math.inf
            following: Iterator[tuple[int, Any]] = iter(())
            for number in sorted(map(int, wanted)):
                stamp, before = int(entries.stamps[number]), wanted[number]
                time = stamp * entries.time_base - entries.zero
                if before is None or abs(time - before) > SAME_TIME + abs(before) * 2**-23:  # float32
                    return None
                place = int(np.searchsorted(entries.keys, stamp, side="right"))
                key = int(entries.keys[max(0, place - 2)])
                if key > at:
                    try:
                        container.seek(key, stream=stream, backward=True)
                    except (av.FFmpegError, OSError):  # some containers cannot
                        return None
                    decoding = Decoding(container, stream, self.heartbeat)
                    following = in_step(decoding.frames(), entries.stamps)
                frame = next((frame for place, frame in following if place >= number), None)
                if frame is None or frame.pts != stamp:
                    return None
                found.append(Frame(number, time, functools.partial(self._picture, frame)))
                at = stamp
            behind = sum(1 for _ in itertools.islice(following, LOOKAHEAD))
            if behind < min(LOOKAHEAD, len(entries.stamps) - 1 - number):
                return None
            if decoding is None or decoding.passed_over or not decoding.begins_with_key:
                return None
            return found

    @functools.cached_property
    def _entries(self) -> Entries | None:
        """Where the file can be entered, from its packets alone: at a key frame before which all is shown that comes before it in
        the file, and after which nothing of that. None for files of which packets do not tell.
        """
        with self._opened() as container:
            stream = self._stream(container)
            stamps, keys = [], []
            try:
                for packet in container.demux(stream) if container.format.name not in RAW_STREAMS | DECODING_TIMES else ():
                    self.heartbeat()
                    if packet.size:
                        if packet.pts is None or packet.is_corrupt or packet.is_discard:
                            return None
                        stamps.append(packet.pts)
                        keys.append(packet.is_keyframe)
            except (av.FFmpegError, OSError, IndexError):
                return None
            stamped = np.array(stamps, np.int64), np.array(keys, bool)
            return entries_of(*stamped, float(stream.time_base), container.start_time, stream.codec_context.has_b_frames)


def _pixels(stream: Any) -> int:
    return stream.width * stream.height if stream.codec_context is not None else 0


def _turn(frame: Any) -> _Turn:
    """From the display matrix, x' = a x + c y and y' = b x + d y; angles between are taken as the nearest right one."""
    data = frame.side_data.get(SideData.DISPLAYMATRIX)
    if data is None:
        return _Turn()
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return _Turn(False, a < 0, d < 0) if abs(a) >= abs(c) else _Turn(True, c < 0, b < 0)
