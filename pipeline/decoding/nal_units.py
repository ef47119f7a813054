"""What packets of H.264 say of the pictures behind them: whether a decoder begins anew there, and by which parameters.

The clauses are those of ITU-T H.264 (7.3.1, 7.4.1.2.4, Annex B, D.1); how MP4, Matroska and FLV lay the same units out is ISO/IEC
14496-15, 5.3.3.1.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

_START_CODE = re.compile(rb"\x00\x00\x01")
# Types of units: slices of pictures, those of an instantaneous decoding refresh, parameter sets, supplemental messages.
_PICTURE, _REFRESH, _PARAMETERS, _MESSAGES = frozenset(range(1, 6)), 5, frozenset({7, 8, 13, 15}), 6
_FILM_GRAIN = 19  # the type of a message that may hold for the pictures of later sequences
_NAMES_ITS_BUILD = b"x264 - core"  # by which FFmpeg decides how to decode what old encoders wrote wrong


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

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix

    @classmethod
    def of(cls, extradata: bytes | None) -> Self:
        """By what the container says of the stream."""
        has_lengths = extradata is not None and len(extradata) > 4 and extradata[0] == 1
        return cls((extradata[4] & 3) + 1 if has_lengths and extradata is not None else 0)

    def said(self, packet: bytes) -> Said:
        """What a packet says. Raises ValueError where it is no whole number of units, or holds no picture."""
        pictures, parameters, builds, grain = list[int](), list[bytes](), list[bytes](), False
        for unit in self._units(packet):
            kind = unit[0] & 0x1F
            if kind in _PICTURE:
                pictures.append(kind)
            elif kind in _PARAMETERS:
                parameters.append(unit)
            elif kind == _MESSAGES:
                grain |= _FILM_GRAIN in _message_types(unit[1:])
                builds += [unit] if _NAMES_ITS_BUILD in unit else []
        if not pictures:
            raise ValueError("a packet without a picture")
        return Said(set(pictures) == {_REFRESH}, tuple(parameters), tuple(builds), grain)

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


def _message_types(content: bytes) -> set[int]:
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
