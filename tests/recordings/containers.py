"""Kinds of recordings by container, sound and simple; raw streams among them."""

import struct
from pathlib import Path

from tests.recordings.files import B_FRAMES, RATE, X265, Recording, rewrite, shows, without_rate, write
from tests.recordings.registry import kind


@kind
def fragmented_mp4(at: Path) -> Recording:
    """H.264 with B frames in MP4 in fragments, as cameras and browsers write it while they record."""
    muxer = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    return shows(write(at.with_suffix(".mp4"), options=B_FRAMES, muxer=muxer))


@kind
def mov(at: Path) -> Recording:
    """H.264 with B frames in QuickTime."""
    return shows(write(at.with_suffix(".mov"), options=B_FRAMES))


@kind
def mkv(at: Path) -> Recording:
    """H.264 with B frames in Matroska as it is written live: no length, no index."""
    return shows(write(at.with_suffix(".mkv"), options=B_FRAMES, muxer={"live": "1"}))


@kind
def avi_b_frames(at: Path) -> Recording:
    """H.264 with B frames in AVI, which stores no stamps."""
    return shows(write(at.with_suffix(".avi"), options=B_FRAMES), begin_slack=2.5 / RATE)


@kind
def m2ts(at: Path) -> Recording:
    """H.264 in packets of 192 bytes."""
    return shows(write(at.with_suffix(".m2ts"), options=B_FRAMES, form="mpegts", muxer={"mpegts_m2ts_mode": "1"}))


@kind
def program_stream(at: Path) -> Recording:
    """H.264 in an MPEG program stream."""
    return shows(write(at.with_suffix(".mpg"), form="vob"))


@kind
def flv(at: Path) -> Recording:
    """H.264 with B frames in FLV."""
    return shows(write(at.with_suffix(".flv"), options=B_FRAMES))


@kind
def mxf(at: Path) -> Recording:
    """MPEG-2 in MXF."""
    return shows(write(at.with_suffix(".mxf"), codec="mpeg2video", options={"bf": "0", "b": "2M"}))


@kind
def ivf(at: Path) -> Recording:
    """VP8 in IVF."""
    return shows(write(at.with_suffix(".ivf"), codec="libvpx", options={"deadline": "realtime", "cpu-used": "8", "b": "2M"}))


@kind
def raw_h264(at: Path) -> Recording:
    """H.264 with B frames and nothing around it; the stream itself says its rate, 12.5 a second."""
    return shows(write(at.with_suffix(".h264"), options=B_FRAMES, rate=12.5), rate=12.5)


@kind
def raw_h264_without_rate(at: Path) -> Recording:
    """H.264 and nothing around it, and no word on the rate: readers take it for 25 a second."""
    return shows(rewrite(write(at.with_suffix(".h264"), rate=10), without_rate))


@kind
def raw_hevc(at: Path) -> Recording:
    """HEVC with B frames and nothing around it."""
    return shows(write(at.with_suffix(".hevc"), codec="libx265", options=X265))


@kind
def raw_mjpeg(at: Path) -> Recording:
    """JPEG pictures one behind the other, which say no rate: readers take it for 25 a second."""
    return shows(write(at.with_suffix(".mjpeg"), codec="mjpeg", options={"b": "4M"}, pixels="yuvj420p"))


@kind
def program_stream_b_frames(at: Path) -> Recording:
    """H.264 with B frames in an MPEG program stream, which stamps only some of them."""
    return shows(write(at.with_suffix(".mpg"), options=B_FRAMES, form="vob"))


@kind
def asf_b_frames(at: Path) -> Recording:
    """MPEG-4 with B frames in ASF."""
    path = write(at.with_suffix(".asf"), codec="mpeg4", options={"bf": "2", "b": "2M"})
    return shows(path, begin_slack=2.5 / RATE)


@kind
def nut(at: Path) -> Recording:
    """H.264 with B frames in NUT."""
    return shows(write(at.with_suffix(".nut"), options=B_FRAMES))


@kind
def avi_without_index(at: Path) -> Recording:
    """AVI that ends before its index, as it is after a loss of power."""
    path = rewrite(write(at.with_suffix(".avi"), options=B_FRAMES), lambda data: data[: data.rindex(b"idx1")])
    return shows(path, begin_slack=2.5 / RATE)


@kind
def avi_without_rate(at: Path) -> Recording:
    """AVI whose header says 0 frames a second: readers take it for 25."""
    one = struct.pack("<II", 1, RATE)
    path = rewrite(write(at.with_suffix(".avi")), lambda data: data.replace(one, struct.pack("<II", 1, 0), 1))
    return shows(path, begin_slack=2.5 / RATE)
