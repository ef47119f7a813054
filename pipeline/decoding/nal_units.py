"""What packets of H.264 and HEVC say of the pictures behind them: whether a decoder begins anew there, and by which parameters.

The clauses are those of ITU-T H.264 (7.3.1, 7.4.1.2.4, Annex B, D.1) and H.265 (7.3.1.2, 7.4.2.2, Annex B, D.2); how MP4 and
Matroska lay the same units out is ISO/IEC 14496-15, 5.3.3.1 and 8.3.3.1.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

_START_CODE = re.compile(rb"\x00\x00\x01")
FILM_GRAIN = 19  # the payload type of a message that may hold for the pictures of later sequences
_NAMES_ITS_BUILD = b"x264 - core"  # by which FFmpeg decides how to decode what old encoders wrote wrong


@dataclass(frozen=True)
class _Kinds:
    """Types of units. pictures: slices of the pictures that are shown; fresh: those at which a decoder begins anew; parameters:
    parameter sets; messages: supplemental ones. header: bytes before the content.
    """

    pictures: frozenset[int]
    fresh: frozenset[int]
    parameters: frozenset[int]
    messages: frozenset[int]
    header: int


CODECS = {
    "h264": _Kinds(frozenset(range(1, 6)), frozenset({5}), frozenset({7, 8, 13, 15}), frozenset({6}), 1),
    "hevc": _Kinds(frozenset(range(32)), frozenset({19, 20}), frozenset({32, 33, 34}), frozenset({39, 40}), 2),
}


@dataclass(frozen=True)
class Said:
    """What a packet says. fresh: whether its picture is an instantaneous decoding refresh: no picture behind it, in the order of
    decoding, refers to one before. parameters: its parameter sets in their order; builds: messages that name the encoder's build;
    grain: whether there is one on film grain.
    """

    fresh: bool
    parameters: tuple[bytes, ...]
    builds: tuple[bytes, ...]
    grain: bool


class NalUnits:
    """Reads the packets of a stream. prefix: bytes of the length before each unit, 0 where start codes part them."""

    def __init__(self, codec: str, prefix: int) -> None:
        self.kinds, self.prefix, self.hevc = CODECS[codec], prefix, codec == "hevc"

    @classmethod
    def of(cls, codec: str, extradata: bytes | None) -> Self:
        """By what the container says of the stream. codec: of CODECS."""
        place = 21 if codec == "hevc" else 4
        has_lengths = extradata is not None and len(extradata) > place and extradata[0] == 1
        return cls(codec, (extradata[place] & 3) + 1 if has_lengths and extradata is not None else 0)

    def said(self, packet: bytes) -> Said:
        """What a packet says. Raises ValueError where it is no whole number of units, or holds no picture."""
        pictures, parameters, builds, grain = list[int](), list[bytes](), list[bytes](), False
        for unit in self._units(packet):
            kind = (unit[0] >> 1) & 0x3F if self.hevc else unit[0] & 0x1F
            if kind in self.kinds.pictures:
                pictures.append(kind)
            elif kind in self.kinds.parameters:
                parameters.append(unit)
            elif kind in self.kinds.messages:
                grain |= FILM_GRAIN in _payload_types(unit[self.kinds.header :])
                builds += [unit] if _NAMES_ITS_BUILD in unit else []
        if not pictures:
            raise ValueError("a packet without a picture")
        return Said(all(kind in self.kinds.fresh for kind in pictures), tuple(parameters), tuple(builds), grain)

    def _units(self, packet: bytes) -> Iterator[bytes]:
        if self.prefix == 0:
            starts = [match.end() for match in _START_CODE.finditer(packet)]
            ends = [start - 3 for start in starts[1:]] + [len(packet)]
            units = [packet[start:end].rstrip(b"\0") for start, end in zip(starts, ends, strict=True)]
            yield from filter(None, units)
            return
        at = 0
        while at < len(packet):
            size = int.from_bytes(packet[at : at + self.prefix], "big")
            at += self.prefix
            if not 0 < size <= len(packet) - at:
                raise ValueError("a unit that is longer than its packet")
            yield packet[at : at + size]
            at += size


def _payload_types(content: bytes) -> set[int]:
    """Of the messages in a unit. content: without its header; cut short or broken, those that can be told."""
    content, at, found = content.replace(b"\0\0\3", b"\0\0"), 0, set()
    while at < len(content) - 2:  # behind the last message there is a byte of stop bits
        numbers = []
        for _ in ("type", "size"):
            number = 0
            while at < len(content) and content[at] == 0xFF:
                number, at = number + 0xFF, at + 1
            numbers.append(number + (content[at] if at < len(content) else 0))
            at += 1
        found.add(numbers[0])
        at += numbers[1]
    return found
