"""A video file of whatever kind cameras, recorders and cutters write, read front to back with PyAV (FFmpeg's libraries).

A frame's number is its place among the frames that decode, its time its own stamp (`pipeline.decoding.frame_times` says what
becomes of bad ones), counted from the file's own start: sound that begins before the picture counts. Packets that cannot be
decoded are passed over and counted. docs/recordings.md has the rules, docs/decisions.md why neither packets nor an index are
trusted.
"""

import functools
import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from pipeline.decoding.frame_times import LONGEST_PAUSE, LOOKAHEAD, FrameTimes
from pipeline.decoding.opening import DescriptorFile
from pipeline.decoding.reading import PAST_END, Frame, Heartbeat, Reader, Reading, stretch
from pipeline.decoding.sampling import Sampling, resize
from pipeline.errors import VideoError

# What FFmpeg may take a file for: containers and streams of moving pictures. Neither playlists, which lead to other files, nor
# pictures and texts, which it would draw as videos, nor devices and networks.
RAW_STREAMS = frozenset(
    {
        *("av1", "avs2", "avs3", "cavsvideo", "evc", "h261", "h263", "h264", "hevc", "ingenient", "m4v", "mjpeg", "mjpeg_2000"),
        *("mpegvideo", "obu", "vc1", "vvc"),
    }
)
DEMUXERS = RAW_STREAMS | {
    *("asf", "asf_o", "avi", "dhav", "dv", "flv", "gxf", "hxvs", "ifv", "ivf", "kux", "live_flv", "lmlm4", "matroska", "mov"),
    *("mpeg", "mpegts", "mpjpeg", "mxf", "nsv", "nut", "nuv", "ogg", "pva", "rm", "ty", "vc1test", "webm", "wtv", "yuv4mpegpipe"),
}
# Titles and the like that are not UTF-8 are no reason to refuse a file; from PyAV 19 on they never are.
UNREADABLE_TEXT: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "ignore"}
# Containers that write when a frame is decoded, not shown; FFmpeg takes that for the time of showing, in the wrong order with B
# frames. When each decoded frame came out is in order.
DECODING_TIMES = frozenset({"asf", "asf_o", "avi", "mxf"})
MOST_DELAYED = 16  # frames that a decoder holds back; of those that it gives up at the end FFmpeg does not say when they came out
GUESSED_RATE = 25.0  # frames per second, as FFmpeg has it
MOST_READ_ERRORS = 100  # one after another, at which a file is taken to end
FIRST_SOUGHT = 250  # the frame from which on it pays to look for a key frame before it instead of reading all
SOUGHT_S = 5.0  # seconds into a file from which on a stretch is looked for from a key frame before it
FARTHEST_KEY = 60.0  # seconds before a stretch that a key frame is believed to be
TAIL = 8 << 20  # bytes at the end that are searched at once for another recording
# Codecs of which every packet gives one picture, unless they are coded in fields.
ONE_PER_PACKET = frozenset({"h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "prores", "wmv1", "wmv2", "h263", "flv"})
# What FFmpeg says only in its log: H.264 whose numbers of frames have gaps, JPEG pictures that are broken.
COMPLAINTS = {"h264": re.compile("Frame num gap"), "mjpeg": re.compile("overread|error |.*bad vlc")}
# How a file of a container begins whose demuxer ends where a second one is joined on.
BEGINS = {
    "flv": b"FLV\x01",
    "ivf": b"DKIF\x00\x00\x20\x00",
    "asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
}
SAME_TIME = 1e-3  # seconds, beside what float32 rounds off
# How files begin that are videos but may not open: only to tell a damaged video from something else.
LIKE_A_VIDEO = re.compile(
    rb"(?!<!)(.{4}(ftyp|moov|mdat|wide|free|skip|pnot|uuid|styp)|\x1a\x45\xdf\xa3|RIFF.{4}AVI |FLV|OggS|DKIF|YUV4MPEG2|DHAV|DAHUA"
    rb"|IMKH|\x06\x0e\x2b\x34|\x30\x26\xb2\x75|\x47.{187}\x47|.{4}\x47.{191}\x47|\x00\x00\x01[\xba\xb3]|\x00\x00\x00?\x01)",
    re.DOTALL,
)


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
            self._created = _created(container, stream)
            rate, guessed = self._rate(container, stream)
            stamp_of = _stamps_of(container, stream)
            decoding = _Decoding(container, stream, self.heartbeat)
            often = float(stream.guessed_rate or 0)  # of a recording with a long pause the average says nothing
            times = FrameTimes(1 / (often if 4 * rate < often <= 1000 and container.format.name not in RAW_STREAMS else rate))
            number, damaged, resized, zero, duration = 0, 0, 0, 0.0, 0
            time, size = 0.0, (0, 0)
            for time, frame in times.of((stamp_of(frame), frame) for frame in decoding.frames()):
                damaged += frame.is_corrupt
                if number == 0:
                    zero, size = _zero(container.start_time, time), (frame.width, frame.height)
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
            remarks = [*self._stream_remarks(container, stream), *_time_remarks(times, number, container, guessed, rate)]
            if zero > (container.start_time or 0) / av.time_base + LONGEST_PAUSE:
                remarks.append("the picture begins more than 12 hours after the rest of the file; times count from the picture")
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
            lasts = max(float(duration * stream.time_base), 1 / rate)
            if not times.restarts and (short := _missing_end(container, stream, time, lasts)) is not None:
                remarks.append(short)
            with self._file() as file:
                more = _more_follows(file, container, decoding.end)
            if more:
                remarks.append("another recording follows in the same file and is not read: take them apart")
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
                raise VideoError("truncated", f"{self.uri} is a damaged or cut-off video: {_said(error)}") from error
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

    def _check(self, frames: int, decoding: "_Decoding", container: Any, stream: Any) -> None:
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

    def _from_key(self, start_s: float, end_s: float) -> Iterator[Frame] | None:
        """The frames of a stretch, decoded from the next key frame before it; None where the file cannot be entered there."""
        container = self._opened()
        stream = self._stream(container)
        stamp_of = _stamps_of(container, stream)
        try:
            first = next(_Decoding(container, stream, self.heartbeat).frames(), None)
            stamp = None if first is None else stamp_of(first)
            if first is None or stamp is None:
                raise LookupError
            self._look_at(first, stream)
            zero = _zero(container.start_time, stamp)
            container.seek(round((zero + start_s) * av.time_base), backward=True)
            times = FrameTimes(1 / self._rate(container, stream)[0])
            found = times.of((stamp_of(frame), frame) for frame in _Decoding(container, stream, self.heartbeat).frames())
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
            frames = _Decoding(container, stream, self.heartbeat).frames()
            first = next(frames, None)
            if first is None:
                return None
            self._look_at(first, stream)
            found: list[Frame] = []
            decoding, at = None, -math.inf
            in_step: Iterator[tuple[int, Any]] = iter(())
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
                    decoding = _Decoding(container, stream, self.heartbeat)
                    in_step = _in_step(decoding.frames(), entries.stamps)
                frame = next((frame for place, frame in in_step if place >= number), None)
                if frame is None or frame.pts != stamp:
                    return None
                found.append(Frame(number, time, functools.partial(self._picture, frame)))
                at = stamp
            behind = sum(1 for _ in itertools.islice(in_step, LOOKAHEAD))
            if behind < min(LOOKAHEAD, len(entries.stamps) - 1 - number):
                return None
            if decoding is None or decoding.passed_over or not decoding.begins_with_key:
                return None
            return found

    @functools.cached_property
    def _entries(self) -> "_Entries | None":
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
            start, scale = container.start_time, float(stream.time_base)
            reordered = stream.codec_context.has_b_frames
        pts = np.array(stamps, np.int64)
        before = np.maximum.accumulate(np.concatenate([pts[:1] - 1, pts[:-1]]))
        after = np.minimum.accumulate(pts[::-1])[::-1]
        closed = np.array(keys, bool) & (before < pts) & (after == pts)
        ordered = np.sort(pts)
        steps = np.diff(ordered)
        if len(pts) == 0 or not closed[0] or np.any(steps == 0) or np.any(steps * scale > LONGEST_PAUSE):
            return None
        if not reordered and not np.array_equal(pts, ordered):
            return None
        return _Entries(ordered, pts[closed], scale, _zero(start, float(ordered[0]) * scale))


class _Entries(NamedTuple):
    """stamps: int64 [n], of all packets, ascending; keys: int64, of those at which decoding can begin. time_base: seconds of a
    stamp's unit; zero: seconds that the file's own start stands at.
    """

    stamps: np.ndarray
    keys: np.ndarray
    time_base: float
    zero: float


def _in_step(frames: Iterable[Any], stamps: np.ndarray) -> Iterator[tuple[int, Any]]:
    """Frames with their places among all stamps (int64 [n], ascending), from a key frame on, for as long as each comes next."""
    place = None
    for frame in frames:
        if place is None:
            place = int(np.searchsorted(stamps, frame.pts)) if frame.pts is not None and frame.key_frame else len(stamps)
        if place == len(stamps) or frame.pts != stamps[place] or frame.is_corrupt:
            return
        yield place, frame
        place += 1


class _Decoding:
    """Decodes a stream from where its container stands.

    packets, passed_over: how many there were, and could not be decoded. decoded: frames that came out. suspect: packets that
    FFmpeg decoded and said to be broken, or behind others that are missing. end: bytes of the file up to the end of its last
    packet.
    """

    def __init__(self, container: Any, stream: Any, heartbeat: Heartbeat) -> None:
        self.container, self.stream, self.heartbeat = container, stream, heartbeat
        self.packets = self.passed_over = self.decoded = self.hidden = self.end = 0
        self.interlaced, self.suspect = False, 0
        self.complaint = COMPLAINTS.get(stream.codec_context.name)
        self.error = ""
        self.begins_with_key = False

    def frames(self) -> Iterator[Any]:
        """Decoded frames in the order of presentation."""
        for packet in self._packets():
            self.heartbeat()
            try:
                for frame in self._decoded(packet):
                    self.decoded += 1
                    self.interlaced |= frame.interlaced_frame
                    yield frame
            except av.error.EOFError:
                return
            except av.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                self.passed_over += 1
                self.error = _said(error)

    def _decoded(self, packet: Any) -> list[Any]:
        """The frames that come out with a packet. Counts what the decoder says of it and no frame tells."""
        decode = packet.decode if packet is not None else functools.partial(self.stream.codec_context.decode, None)
        if self.complaint is None:
            return decode()
        level = av.logging.get_level()
        av.logging.set_level(av.logging.DEBUG)
        try:
            with av.logging.Capture() as said:
                return decode()
        finally:
            av.logging.set_level(level)
            self.suspect += any(self.complaint.match(message) for _, _, message in said)

    def _packets(self) -> Iterator[Any]:
        """All packets, and an empty one or None at the end; where reading fails, it goes on behind."""
        failures = 0
        while True:
            try:
                for packet in self.container.demux(self.stream):
                    failures = 0
                    if packet.size:
                        self.begins_with_key |= self.packets == 0 and packet.is_keyframe
                        self.packets += 1
                        self.hidden += packet.is_discard
                        self.end = max(self.end, (packet.pos or 0) + packet.size)
                    yield packet
                return
            except IndexError:  # PyAV, at the end of a file in which a stream came in late
                yield None
                return
            except (av.FFmpegError, OSError) as error:
                if isinstance(error, MemoryError):
                    raise
                failures += 1
                self.passed_over += failures == 1
                self.packets += failures == 1
                self.error = _said(error)
                if failures > MOST_READ_ERRORS:
                    yield None
                    return

    def without_picture(self, stream: Any) -> int:
        """How many packets gave neither a picture nor an error, of a codec of which each gives one."""
        if stream.codec_context.name not in ONE_PER_PACKET or self.interlaced:
            return 0
        return max(0, self.packets - self.passed_over - self.hidden - self.decoded)


def _zero(start_time: int | None, first: float) -> float:
    """The source's own start in the stamps' seconds. start_time: of its container; first: of the first frame."""
    if start_time is None:
        return first
    start = start_time / av.time_base
    return start if start <= first <= start + LONGEST_PAUSE else first


def _created(container: Any, stream: Any) -> float | None:
    """See `Reader.created`. Many recorders leave the field at 0, which is 1904 or 1970."""
    text = container.metadata.get("creation_time") or stream.metadata.get("creation_time") or ""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return moment.timestamp() if moment.year > 1980 else None


def _pixels(stream: Any) -> int:
    return stream.width * stream.height if stream.codec_context is not None else 0


def _turn(frame: Any) -> _Turn:
    """From the display matrix, x' = a x + c y and y' = b x + d y; angles between are taken as the nearest right one."""
    data = frame.side_data.get(SideData.DISPLAYMATRIX)
    if data is None:
        return _Turn()
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return _Turn(False, a < 0, d < 0) if abs(a) >= abs(c) else _Turn(True, c < 0, b < 0)


def _stamps_of(container: Any, stream: Any) -> Callable[[Any], float | None]:
    """What gives the stamp of a decoded frame, in seconds."""
    unit = float(stream.time_base)
    if container.format.name in RAW_STREAMS:
        return lambda frame: None
    if container.format.name in DECODING_TIMES:
        return lambda frame: None if frame.dts is None else frame.dts * unit
    return lambda frame: None if frame.pts is None else frame.pts * unit


def _time_remarks(times: FrameTimes, frames: int, container: Any, guessed: bool, rate: float) -> Iterator[str]:
    if guessed:
        yield f"the stream has neither times nor a frame rate; {rate:g} frames a second were guessed (--frame-rate states them)"
    usual = MOST_DELAYED if container.format.name in DECODING_TIMES | {"mpeg"} else 0
    if times.missing > usual and container.format.name not in RAW_STREAMS:
        yield f"{times.missing} of {frames} frames have no time stamp; their times lie between their neighbours'"
    if times.mended:
        yield f"{times.mended} of {frames} time stamps cannot be and were replaced by times between their neighbours'"
    if times.restarts:
        yield f"the time stamps begin anew {times.restarts} times; what follows is taken as going on at once"


def _missing_end(container: Any, stream: Any, last: float, lasts: float) -> str | None:
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
    if said is None or not end + max(0.5, 2.5 * lasts) < said < 1e7:
        return None
    return f"the file says that it is {said:.1f} s long; its pictures end after {end:.1f} s"


def _more_follows(file: BinaryIO, container: Any, end: int) -> bool:
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


def _said(error: BaseException) -> str:
    """What FFmpeg says of an error, without the file's name."""
    return getattr(error, "strerror", None) or type(error).__name__
