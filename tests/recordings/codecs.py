"""Kinds of recordings by codec: what pictures are coded with, and how they build on each other."""

from pathlib import Path

from tests.recordings.files import (
    B_FRAMES,
    FRAMES,
    GOP,
    HALF,
    OPEN_GOP,
    RASL,
    RATE,
    X264,
    X265,
    Packets,
    Recording,
    from_second_key_frame,
    shows,
    with_payload,
    write,
)
from tests.recordings.registry import kind


@kind
def h264_baseline(at: Path) -> Recording:
    """H.264, baseline: no picture is coded from a later one."""
    return shows(write(at.with_suffix(".mp4"), options=X264 | {"profile": "baseline"}))


@kind
def h264_b_frames(at: Path) -> Recording:
    """H.264 with B frames, coded in another order than shown."""
    return shows(write(at.with_suffix(".mp4"), options=B_FRAMES))


@kind
def h264_b_pyramid(at: Path) -> Recording:
    """H.264 with B frames that are coded from other B frames."""
    pyramid = {"bf": "3", "x264-params": "scenecut=0:mbtree=0:b-adapt=0:b-pyramid=normal"}
    return shows(write(at.with_suffix(".mkv"), options=X264 | pyramid))


@kind
def h264_open_gop(at: Path) -> Recording:
    """H.264 whose B frames before a key frame are coded from frames before and behind it."""
    return shows(write(at.with_suffix(".ts"), options=OPEN_GOP))


@kind
def h264_intra_refresh(at: Path) -> Recording:
    """H.264 that renews a column at a time: one key frame at the start, none after it."""
    return shows(write(at.with_suffix(".ts"), options=X264 | {"x264-params": "intra-refresh=1:scenecut=0:mbtree=0"}))


@kind
def h264_interlaced(at: Path) -> Recording:
    """H.264 of interlaced pictures."""
    return shows(write(at.with_suffix(".ts"), options=B_FRAMES | {"x264-params": B_FRAMES["x264-params"] + ":tff=1"}))


@kind
def hevc_b_frames(at: Path) -> Recording:
    """HEVC with B frames."""
    return shows(write(at.with_suffix(".mp4"), codec="libx265", options=X265))


@kind
def hevc_open_gop(at: Path) -> Recording:
    """HEVC with pictures that lead a clean random access picture and are coded from those before it."""
    return shows(write(at.with_suffix(".mkv"), codec="libx265", options=RASL))


@kind
def hevc_cut_at_cra(at: Path) -> Recording:
    """HEVC cut at a clean random access picture: those that lead it cannot be decoded, and the file shows none of them."""
    path = write(at.with_suffix(".ts"), codec="libx265", options=RASL, edit=from_second_key_frame)
    return shows(path, range(GOP, FRAMES), first=GOP, begin_slack=2.5 / RATE)


@kind
def mpeg1(at: Path) -> Recording:
    """MPEG-1 in a program stream."""
    return shows(write(at.with_suffix(".mpg"), codec="mpeg1video", options={"bf": "2", "b": "2M"}))


@kind
def mpeg2_ts(at: Path) -> Recording:
    """MPEG-2 with B frames, interlaced, in a transport stream."""
    return shows(write(at.with_suffix(".ts"), codec="mpeg2video", options={"bf": "2", "flags": "+ildct+ilme", "b": "2M"}))


@kind
def mpeg4(at: Path) -> Recording:
    """MPEG-4 part 2 with B frames in MP4."""
    return shows(write(at.with_suffix(".mp4"), codec="mpeg4", options={"bf": "2", "b": "2M"}))


@kind
def mpeg4_packed(at: Path) -> Recording:
    """MPEG-4 part 2 in AVI as DivX wrote it: a B frame in one packet with the frame it needs, then one that stands for it."""

    def packed(packets: Packets) -> Packets:
        of_divx = b"\x00\x00\x01\xb2DivX503b1393p"
        sizes = [bytes(packet) for packet in packets]
        head = sizes[0].index(b"\x00\x00\x01\xb6")
        sizes[0] = sizes[0][:head] + of_divx + sizes[0][head:]
        for n in range(1, len(packets)):
            if sizes[n][sizes[n].index(b"\x00\x00\x01\xb6") + 4] >> 6 == 2:  # a B frame
                sizes[n - 1] += sizes[n]
                # type P, the same second, its tick, not coded: a P frame's head as it is up to the tick, of 5 bits at 25 a second
                sizes[n] = b"\x00\x00\x01\xb6" + int("01" + "0" + "1" + "00000" + "1" + "0" + "01111", 2).to_bytes(2, "big")
        return [with_payload(packet, size) for packet, size in zip(packets, sizes, strict=True)]

    path = write(at.with_suffix(".avi"), codec="mpeg4", options={"bf": "1", "b": "2M", "b_strategy": "0"}, edit=packed)
    return shows(path, begin_slack=2.5 / RATE)


@kind
def mjpeg(at: Path) -> Recording:
    """Motion JPEG in AVI."""
    return shows(write(at.with_suffix(".avi"), codec="mjpeg", options={"b": "4M"}, pixels="yuvj420p"))


@kind
def vp8(at: Path) -> Recording:
    """VP8 with reference pictures that are never shown."""
    hidden = {"auto-alt-ref": "1", "lag-in-frames": "12", "deadline": "realtime", "cpu-used": "8", "b": "2M"}
    return shows(write(at.with_suffix(".webm"), codec="libvpx", options=hidden))


@kind
def vp9(at: Path) -> Recording:
    """VP9 with reference pictures that are never shown."""
    hidden = {"auto-alt-ref": "1", "lag-in-frames": "12", "cpu-used": "8", "deadline": "good", "b": "2M"}
    return shows(write(at.with_suffix(".webm"), codec="libvpx-vp9", options=hidden))


@kind
def av1(at: Path) -> Recording:
    """AV1, coded in another order than shown."""
    return shows(write(at.with_suffix(".mp4"), codec="libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"}))


@kind
def ffv1(at: Path) -> Recording:
    """FFV1, without loss, in Matroska."""
    return shows(write(at.with_suffix(".mkv"), range(HALF), codec="ffv1", options={}), range(HALF))


@kind
def uncompressed(at: Path) -> Recording:
    """Uncompressed pictures in AVI."""
    return shows(write(at.with_suffix(".avi"), range(HALF), codec="rawvideo", options={}), range(HALF))


@kind
def wmv2(at: Path) -> Recording:
    """Windows Media Video 8 in ASF."""
    return shows(write(at.with_suffix(".wmv"), codec="wmv2", options={"b": "2M"}))


@kind
def prores(at: Path) -> Recording:
    """ProRes in QuickTime."""
    return shows(write(at.with_suffix(".mov"), range(HALF), codec="prores_ks", options={}, pixels="yuv422p10le"), range(HALF))


@kind
def mpeg4_all_key_frames(at: Path) -> Recording:
    """MPEG-4 in MP4 whose index calls every frame a key frame, though one in twenty is."""

    def called_keys(packets: Packets) -> Packets:
        for packet in packets:
            packet.is_keyframe = True
        return packets

    return shows(write(at.with_suffix(".mp4"), codec="mpeg4", options={"b": "2M"}, edit=called_keys))
