"""A long recording in stretches that are read apart, by several processes or after a kill, and give what reading it whole gives.

That they do is not hoped but shown, or the recording stays whole. `Recording.frames` decodes all packets in their order, numbers
the frames that come out, and mends stamps that cannot be (`frame_times`). A stretch gives the same frames under the same numbers
and times because of what is asked of the file, in one pass over its packets without decoding any (`DivisibleRecording.divided`):

- Every packet has a stamp and none stands twice, none is damaged or hidden, and no pause is too long: in their order such stamps
  need no mending, so that a frame's time is its own stamp.
- A stretch begins at a packet before which everything is that is shown before it, and behind which nothing of that is: the number
  of its first frame is the number of packets before it.
- That packet is an instantaneous decoding refresh of H.264: by the standard no picture behind it is made from one before.
  Parameter sets do not change within the file, and what else a decoder keeps (the build of the encoder) it is given with the
  first frame, which every stretch decodes first. What lays grain over later pictures is not divided.

and because of what is asked while a stretch is read (`frames_of`):

- The decoder is given the very packets that the pass has seen: their hashes are compared.
- Each gives one frame, in the order of stamps, of one size, sound, and without a word of complaint. The last ones must come out
  while the next stretch's packets go in, as they do in reading whole. FFmpeg says of H.264 where something is missing in a
  picture; of HEVC it does not, and what shows through then is of pictures before, so HEVC is not divided.

Where all stretches of a file are read so, reading it whole passes over no packet, mends no stamp and says nothing of damage.
Where one is not, what was read of it does not count, and the file is read whole.
"""

import functools
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import av
import numpy as np

from pipeline.decoding.entry_points import Entries, entries_of
from pipeline.decoding.formats import DECODING_TIMES, RAW_STREAMS
from pipeline.decoding.nal_units import NalUnits, Said
from pipeline.decoding.reading import Frame, Reading
from pipeline.decoding.recording import Recording
from pipeline.decoding.remarks import late_picture, missing_end
from pipeline.decoding.sampling import Sampling, Ticks
from pipeline.decoding.stream import Decoding, created_in
from pipeline.decoding.video import Stretch
from pipeline.errors import VideoError

LEAST_STRETCHES = 1.5  # stretches that a recording is as long as, below which it stays whole
NOT_AS_WHOLE = "not_as_whole"  # no reason of rejects/: the recording is read whole then
_MARK = 16  # bytes that are kept of a packet: its stamp and the beginning of its hash


class _NotDivisibleError(Exception):
    """The message says why, as the end of a sentence."""


@dataclass(frozen=True)
class Divided:
    """A recording in stretches. reading: what `Recording.reading` gives of it; last_s: time of its last frame; shape: height,
    width and 3 of its pictures.
    """

    stretches: tuple[Stretch, ...]
    reading: Reading
    last_s: float
    shape: tuple[int, ...]


class DivisibleRecording(Recording):
    """A recording that may be long."""

    def divided(self, seconds: float, source_hash: str | None) -> Divided | str | None:
        """Its stretches of so many seconds and a little more each; why it cannot be divided, in words; or None: it is short.

        source_hash: of its bytes, which the stretches carry. Raises VideoError for what is no recording.
        """
        with self._opened() as container:
            stream = self._stream(container)
            self._created = created_in(container, stream)
            said = [float(stream.duration * stream.time_base)] if stream.duration is not None else []
            said += [container.duration / av.time_base] if container.duration is not None else []
            if said and max(said) < LEAST_STRETCHES * seconds:
                return None
            try:
                survey = _Survey(self, container, stream)
                return self._cut(survey, container, stream, seconds, source_hash)
            except _NotDivisibleError as error:
                return str(error)
            except (av.FFmpegError, OSError, IndexError) as error:
                if isinstance(error, MemoryError):
                    raise
                return "reading it fails in places"

    def frames_of(self, stretch: Stretch) -> Iterator[Frame]:
        """The frames of a stretch. Raises VideoError, at the latest behind its last one, where reading the recording whole might
        give others; none of them counts then.
        """
        for sought in (True, False):
            with self._opened() as container:
                stream = self._stream(container)
                first = None
                if stretch.number:
                    first = next(Decoding(container, stream, self.heartbeat).frames(), None)
                    if first is None or first.pts != stretch.opens:
                        break
                decoding = _OfStretch(container, stream, self, stretch)
                if decoding.enters(sought and stretch.number > 0):
                    yield from self._checked(decoding, first, stretch, float(stream.time_base))
                    return
        raise _other("its packets are not found again")

    def _checked(self, decoding: "_OfStretch", first: Any, stretch: Stretch, unit: float) -> Iterator[Frame]:
        """first: the recording's first frame, None where it is the stretch's."""
        given, last = 0, None
        for frame in decoding.frames():
            if first is None:
                first = frame
            if given == 0:
                self._look_at(first, decoding.stream)
                if frame.pts != stretch.begins or not frame.key_frame:
                    raise _other("it cannot be entered")
            in_step = frame.pts in decoding.due and (last is None or frame.pts > last)
            same_size = (frame.width, frame.height) == (first.width, first.height)
            if not in_step or not same_size or frame.is_corrupt or decoding.passed_over or decoding.suspect:
                raise _other("frames come out of step")
            decoding.due.remove(frame.pts)
            last = frame.pts
            yield Frame(stretch.first_frame + given, frame.pts * unit - stretch.zero, functools.partial(self._picture, frame))
            given += 1
            if given == stretch.frames:
                break
        if given != stretch.frames or decoding.passed_over or decoding.suspect or not decoding.are_the_same():
            raise _other("frames or packets are missing")

    def _cut(self, survey: "_Survey", container: Any, stream: Any, seconds: float, source_hash: str | None) -> Divided | str:
        entries, rate = survey.entries, self._rate(container, stream)[0]
        first = self._first(int(entries.stamps[0]))
        times = entries.stamps * entries.time_base - entries.zero
        opened_at = np.searchsorted(entries.stamps, survey.fresh)  # numbers of the frames at which a stretch can begin
        starts = [0]
        for number in opened_at.tolist():
            if times[number] - times[starts[-1]] >= seconds and times[-1] - times[number] >= seconds / 2:
                starts.append(number)
        if len(starts) == 1:
            return "it has no key frame in its midst at which a decoder begins anew"
        ticks = Ticks(self.sampling.rate)
        stretches = tuple(
            Stretch(
                number=place,
                of=len(starts),
                first_frame=start,
                frames=end - start,
                begins=int(entries.stamps[start]),
                opens=int(entries.stamps[0]),
                zero=entries.zero,
                first_s=float(times[0]),
                before_s=float(times[start - 1]) if start else None,
                looked_at=sum(map(ticks.take, times[start:end].tolist())),
                packets=sha256(survey.marks[_MARK * start : _MARK * end]).hexdigest(),
                source_hash=source_hash,
            )
            for place, (start, end) in enumerate(zip(starts, [*starts[1:], len(times)], strict=True))
        )
        last = float(entries.stamps[-1]) * entries.time_base
        remarks = [*self._stream_remarks(container, stream), *late_picture(container, entries.zero)]
        remarks += missing_end(container, stream, last, max(float(survey.last_duration * stream.time_base), 1 / rate))
        remarks += self._what_follows(container, survey.end)
        return Divided(stretches, Reading(len(times), rate, 0, tuple(remarks)), float(times[-1]), first)

    def _first(self, stamp: int) -> tuple[int, ...]:
        """The shape of the first picture, whose stamp this must be."""
        with self._opened() as container:
            stream = self._stream(container)
            first = next(Decoding(container, stream, self.heartbeat).frames(), None)
            if first is None or first.pts != stamp or first.is_corrupt:
                raise _NotDivisibleError("its first frame is not its first packet's")
            self._look_at(first, stream)
            return self._picture(first).shape


class _Survey:
    """One pass over the packets. Raises _NotDivisibleError.

    entries: where the file can be entered; fresh: int64, stamps of those of these at which a decoder begins anew. marks: _MARK
    bytes a packet; end: bytes of the file up to the end of its last one; last_duration: of what is shown last, in the stream's
    units.
    """

    def __init__(self, recording: DivisibleRecording, container: Any, stream: Any) -> None:
        codec = stream.codec_context.name
        if container.format.name in RAW_STREAMS | DECODING_TIMES or codec != "h264":
            raise _NotDivisibleError(f"{codec} in {container.format.name} does not say enough of what is decoded")
        if not hasattr(av.Packet, "has_sidedata"):
            raise _NotDivisibleError("the installed PyAV is too old to say what changes in its midst")
        units = NalUnits.of(stream.codec_context.extradata)
        stamps, keys, fresh = array("q"), bytearray(), bytearray()
        self.marks, self.end, self.last_duration = bytearray(), 0, 0
        first: Said | None = None
        ended, latest = False, 0
        for packet in container.demux(stream):
            recording.heartbeat()
            if not packet.size:
                ended = True  # what flushes the decoder
                continue
            if ended:
                raise _NotDivisibleError("there are empty packets in it")
            if packet.pts is None or packet.is_corrupt or packet.is_discard or packet.has_sidedata("new_extradata"):
                raise _NotDivisibleError("packets are without a stamp, damaged or hidden")
            content = bytes(packet)
            try:
                said = units.said(content)
            except ValueError as error:
                raise _NotDivisibleError("its packets are not laid out as they should be") from error
            first = first or said
            if said.grain or not set(said.builds) <= set(first.builds) or said.parameters not in ((), first.parameters):
                raise _NotDivisibleError("how it is coded changes in its midst")
            if not stamps or packet.pts > latest:
                latest, self.last_duration = packet.pts, packet.duration or 0
            stamps.append(packet.pts)
            keys.append(packet.is_keyframe)
            fresh.append(said.fresh)
            self.marks += mark(packet.pts, content)
            self.end = max(self.end, (packet.pos or 0) + packet.size)
        pts, is_key = np.frombuffer(stamps, np.int64), np.frombuffer(keys, bool)
        reordered = bool(stream.codec_context.has_b_frames)
        entries = entries_of(pts, is_key, float(stream.time_base), container.start_time, reordered) if stamps else None
        if entries is None or not fresh[0]:
            raise _NotDivisibleError("its time stamps do not tell the numbers and times of its frames")
        self.entries: Entries = entries
        self.fresh = np.intersect1d(entries.keys, pts[np.frombuffer(fresh, bool)])


class _OfStretch(Decoding):
    """Decodes a stretch, and packets behind it until its last frame is out. due: stamps of its packets whose frames are not."""

    def __init__(self, container: Any, stream: Any, recording: DivisibleRecording, stretch: Stretch) -> None:
        super().__init__(container, stream, recording.heartbeat)
        self.stretch, self.due, self._marks, self._taken = stretch, set[int](), sha256(), 0
        self._source: Iterator[Any] = iter(())

    def enters(self, sought: bool) -> bool:
        """Go to the stretch's first packet: by the container's index, or past all packets from where it stands."""
        try:
            if sought:
                self.container.seek(self.stretch.begins, stream=self.stream, backward=True)
            else:
                self.stream.codec_context.flush_buffers()
            self._source = self.container.demux(self.stream)
            for packet in self._source:
                self.heartbeat()
                if not packet.size or packet.pts is None or packet.pts > self.stretch.begins:
                    return False
                if packet.pts == self.stretch.begins:
                    self._source = _again(packet, self._source)
                    return True
        except (av.FFmpegError, OSError, IndexError) as error:
            if isinstance(error, MemoryError):
                raise
        return False

    def are_the_same(self) -> bool:
        """Whether the packets are those of the survey, all of them, and every frame of them is out."""
        return self._taken == self.stretch.frames and not self.due and self._marks.hexdigest() == self.stretch.packets

    def _packets(self) -> Iterator[Any]:
        for packet in self._source:
            if self._taken < self.stretch.frames and packet.size:
                self._taken += 1
                self._marks.update(mark(packet.pts, bytes(packet)) if packet.pts is not None else b"")
                self.due.add(packet.pts)
            yield packet


def mark(stamp: int, content: bytes) -> bytes:
    """What tells a packet from others, _MARK bytes."""
    return stamp.to_bytes(8, "big", signed=True) + sha256(content).digest()[: _MARK - 8]


def ticks_of(stretch: Stretch, sampling: Sampling) -> Ticks:
    """Which frames of a stretch are looked at: those that are when the recording is read whole."""
    ticks = Ticks(sampling.rate)
    for time_s in (stretch.first_s, stretch.before_s):
        if stretch.before_s is not None and time_s is not None:
            ticks.take(time_s)
    return ticks


def _again(packet: Any, others: Iterator[Any]) -> Iterator[Any]:
    yield packet
    yield from others


def _other(why: str) -> VideoError:
    return VideoError(NOT_AS_WHOLE, f"in one of its chunks {why}")
