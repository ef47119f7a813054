"""Kinds of recordings with damage: packets that were lost or spoiled, ends that are missing, garbage around them."""

from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.recordings.files import (
    B_FRAMES,
    FRAMES,
    GOP,
    RATE,
    TS_PACKET,
    Recording,
    dropped,
    frame_of_packets,
    rewrite,
    shows,
    spoiled,
    write,
)
from tests.recordings.registry import kind


def damaged(path: Path, first: int, **more: Any) -> Recording:
    """A recording with damage at a frame, which reaches to the next key frame."""
    return shows(path, unsure=frozenset(range(first, -(-first // GOP) * GOP)), **more)


@kind
def zeroed_packets(at: Path) -> Recording:
    """Two packets of an MP4 are zeros, as a failing disk leaves them."""
    return damaged(write(at.with_suffix(".mp4"), edit=spoiled(25, 2, lambda payload: bytes(len(payload)))), 25)


@kind
def flipped_bits(at: Path) -> Recording:
    """Every fiftieth byte of two packets has other bits."""

    def flipped(payload: bytes) -> bytes:
        return bytes(byte ^ 0x55 if n > 50 and n % 50 == 0 else byte for n, byte in enumerate(payload))

    return damaged(write(at.with_suffix(".mkv"), edit=spoiled(25, 2, flipped)), 25)


@kind
def half_a_jpeg(at: Path) -> Recording:
    """Motion JPEG of which one picture ends in its middle."""
    half = spoiled(25, 1, lambda payload: payload[: len(payload) // 2])
    path = write(at.with_suffix(".avi"), codec="mjpeg", options={"b": "4M"}, pixels="yuvj420p", edit=half)
    return shows(path, unsure=frozenset({25}))


@kind
def lost_packets(at: Path) -> Recording:
    """Three packets never arrived, and Matroska has none in their place."""
    return damaged(write(at.with_suffix(".mkv"), edit=dropped(25, 3)), 25)


@kind
def lost_packets_mp4(at: Path) -> Recording:
    """The same with B frames in MP4."""
    path = write(at.with_suffix(".mp4"), options=B_FRAMES, edit=dropped(25, 3))
    return damaged(path, 22)


@kind
def lost_ts_packets(at: Path) -> Recording:
    """Three packets of 188 bytes in a row are missing from a transport stream."""

    def without(data: bytes) -> bytes:
        first = next(at for at, frame in frame_of_packets(data).items() if frame == 25) + TS_PACKET
        return data[:first] + data[first + 3 * TS_PACKET :]

    return damaged(rewrite(write(at.with_suffix(".ts")), without), 25)


@kind
def ts_from_within_a_packet(at: Path) -> Recording:
    """A transport stream that begins with half a packet in the middle of a frame."""

    def tail(data: bytes) -> bytes:
        return data[next(at for at, frame in frame_of_packets(data).items() if frame == 5) + 300 :]

    path = rewrite(write(at.with_suffix(".ts")), tail)  # the tables come again after up to 0.1 s
    return shows(path, range(5, FRAMES), first=6, unsure=frozenset(range(5, GOP)), begin_slack=4 / RATE)


def cut_off(path: Path) -> Recording:
    """What is there of a recording of which the last third is missing."""
    data = path.read_bytes()
    end = len(data) * 2 // 3
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    whole = sum(packet.pos + packet.size <= end for packet in packets)
    path.write_bytes(data[:end])
    return shows(path, range(whole + 1), unsure=frozenset({whole - 1, whole}))


@kind
def cut_off_mp4(at: Path) -> Recording:
    """The end of an MP4 is missing; its index is at the start and knows of all frames."""
    return cut_off(write(at.with_suffix(".mp4"), muxer={"movflags": "faststart"}))


@kind
def cut_off_fragmented_mp4(at: Path) -> Recording:
    """The end of an MP4 in fragments is missing."""
    return cut_off(write(at.with_suffix(".mp4"), muxer={"movflags": "frag_keyframe+empty_moov+default_base_moof"}))


@kind
def cut_off_mkv(at: Path) -> Recording:
    """The end of a Matroska file is missing."""
    return cut_off(write(at.with_suffix(".mkv")))


@kind
def cut_off_avi(at: Path) -> Recording:
    """The end of an AVI is missing, and with it the index."""
    return cut_off(write(at.with_suffix(".avi"), codec="mpeg4", options={"b": "1M"}))


@kind
def cut_off_ts(at: Path) -> Recording:
    """The end of a transport stream is missing."""
    return cut_off(write(at.with_suffix(".ts")))


@kind
def cut_off_raw(at: Path) -> Recording:
    """The end of a raw H.264 stream is missing."""
    return cut_off(write(at.with_suffix(".h264")))


@kind
def without_index(at: Path) -> Recording:
    """An MP4 whose writing was broken off before its index was there: nothing can be read, and that must be said."""
    return Recording(rewrite(write(at.with_suffix(".mp4")), lambda data: data[: data.rindex(b"moov") - 4]), (), ())


def garbage(size: int) -> bytes:
    """Bytes that mean nothing."""
    return np.random.default_rng(11).bytes(size)


@kind
def garbage_before_ts(at: Path) -> Recording:
    """A transport stream behind a thousand bytes of something else."""
    return shows(rewrite(write(at.with_suffix(".ts")), lambda data: garbage(1000) + data))


@kind
def garbage_after_mp4(at: Path) -> Recording:
    """An MP4 with something else behind it."""
    return shows(rewrite(write(at.with_suffix(".mp4"), options=B_FRAMES), lambda data: data + garbage(10_000)))


@kind
def zeros_after_ts(at: Path) -> Recording:
    """A transport stream in a file that was made long beforehand: zeros fill it."""
    return shows(rewrite(write(at.with_suffix(".ts")), lambda data: data + bytes(100_000)))
