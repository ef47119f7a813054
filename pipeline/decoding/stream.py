"""The frames of a video stream as FFmpeg decodes them, packet by packet, and what was lost on the way."""

import functools
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import av

from pipeline.decoding.formats import DECODING_TIMES, RAW_STREAMS
from pipeline.decoding.frame_times import LONGEST_PAUSE
from pipeline.decoding.reading import Heartbeat

MOST_READ_ERRORS = 100  # one after another, at which a file is taken to end
# Codecs of which every packet gives one picture, unless they are coded in fields.
ONE_PER_PACKET = frozenset({"h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "prores", "wmv1", "wmv2", "h263", "flv"})
# What FFmpeg says only in its log: H.264 whose numbers of frames have gaps, JPEG pictures that are broken.
COMPLAINTS = {"h264": re.compile("Frame num gap"), "mjpeg": re.compile("overread|error |.*bad vlc")}


class Decoding:
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
                self.error = said_of(error)

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
                self.error = said_of(error)
                if failures > MOST_READ_ERRORS:
                    yield None
                    return

    def without_picture(self, stream: Any) -> int:
        """How many packets gave neither a picture nor an error, of a codec of which each gives one."""
        if stream.codec_context.name not in ONE_PER_PACKET or self.interlaced:
            return 0
        return max(0, self.packets - self.passed_over - self.hidden - self.decoded)


def stamps_of(container: Any, stream: Any) -> Callable[[Any], float | None]:
    """What gives the stamp of a decoded frame, in seconds."""
    unit = float(stream.time_base)
    if container.format.name in RAW_STREAMS:
        return lambda frame: None
    if container.format.name in DECODING_TIMES:
        return lambda frame: None if frame.dts is None else frame.dts * unit
    return lambda frame: None if frame.pts is None else frame.pts * unit


def zero_of(start_time: int | None, first: float) -> float:
    """The source's own start in the stamps' seconds. start_time: of its container; first: of the first frame."""
    if start_time is None:
        return first
    start = start_time / av.time_base
    return start if start <= first <= start + LONGEST_PAUSE else first


def created_in(container: Any, stream: Any) -> float | None:
    """See `Reader.created`. Many recorders leave the field at 0, which is 1904 or 1970."""
    text = container.metadata.get("creation_time") or stream.metadata.get("creation_time") or ""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return moment.timestamp() if moment.year > 1980 else None


def said_of(error: BaseException) -> str:
    """What FFmpeg says of an error, without the file's name."""
    return getattr(error, "strerror", None) or type(error).__name__
