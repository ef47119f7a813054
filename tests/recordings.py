"""Kinds of recordings as cameras, recorders and cutters write them, and which frames they show at which times.

    python -m benchmarks.recordings --out FOLDER

A kind is a function of KINDS: it writes one small file and says what a reader must find in it. See `tests.recording_files`.
"""

import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.recording_files import (
    B_FRAMES,
    FRAMES,
    GOP,
    HALF,
    OPEN_GOP,
    RASL,
    RATE,
    SIZE,
    STAMPS,
    TS_PACKET,
    X264,
    X265,
    Edit,
    Packets,
    Recording,
    add_video,
    boxes,
    dav,
    dropped,
    encoded,
    frame_of_packets,
    from_frame,
    from_second_key_frame,
    joined,
    later,
    picture,
    restamped,
    rewrite,
    seconds,
    shows,
    spoiled,
    with_payload,
    without_rate,
    write,
)

Kind = Callable[[Path], Recording]
KINDS: dict[str, Kind] = {}


def kind(function: Kind) -> Kind:
    """Register a kind: it gets a path without suffix; its name is the function's, with hyphens."""
    KINDS[function.__name__.replace("_", "-")] = function
    return function


# Codecs


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


# Containers


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


# Structures: what else lies in the file, and where the picture begins


@kind
def edit_list(at: Path) -> Recording:
    """Cut without decoding between two key frames: an edit list hides what is there only to decode the rest."""
    start = GOP + 7
    path = write(
        at.with_suffix(".mp4"),
        options=B_FRAMES,
        edit=lambda packets: later(packets[GOP:], Fraction(-start, RATE)),
        muxer={"avoid_negative_ts": "disabled"},
    )
    return shows(path, range(start, FRAMES), first=start)


@kind
def edit_list_within_a_gop(at: Path) -> Recording:
    """The same, without B frames, beside a sound track that begins at the cut."""
    path = write(
        at.with_suffix(".mp4"),
        edit=lambda packets: later(packets, Fraction(-7, RATE)),
        muxer={"avoid_negative_ts": "disabled"},
        sound=(2.0, 0.0),
    )
    return shows(path, range(7, FRAMES), first=7)


def edited(path: Path, edits: list[tuple[int, int]]) -> Path:
    """An MP4 with another edit list. edits: milliseconds shown, and from which stamp of the track on."""

    def with_edits(box: bytes) -> bytes:
        inner = [part for part in boxes(box[8:]) if part[4:8] != b"edts"]
        entries = b"".join(struct.pack(">IiI", *edit, 1 << 16) for edit in edits)
        elst = boxed(b"elst", struct.pack(">II", 0, len(edits)) + entries)
        return boxed(box[4:8], b"".join([inner[0], boxed(b"edts", elst), *inner[1:]]))

    def in_movie(box: bytes) -> bytes:
        return boxed(box[4:8], b"".join(with_edits(part) if part[4:8] == b"trak" else part for part in boxes(box[8:])))

    return rewrite(path, lambda data: b"".join(in_movie(box) if box[4:8] == b"moov" else box for box in boxes(data)))


def boxed(name: bytes, inside: bytes) -> bytes:
    """A box of an MP4 file."""
    return struct.pack(">I4s", 8 + len(inside), name) + inside


@kind
def edit_list_in_another_order(at: Path) -> Recording:
    """An edit list that shows the second half before the first."""
    path = edited(write(at.with_suffix(".mp4")), [(1200, HALF * 512), (1200, 0)])  # FFmpeg writes 12,800 stamps a second
    return Recording(path, (*range(HALF, FRAMES), *range(HALF)), tuple(i / RATE for i in range(FRAMES)))


@kind
def edit_list_far_in(at: Path) -> Recording:
    """An edit list that hides the first eight seconds of twelve."""
    path = edited(write(at.with_suffix(".mp4"), range(300)), [(4000, 200 * 512)])
    return shows(path, range(200, 300), first=200)


@kind
def edit_list_begins_later(at: Path) -> Recording:
    """An edit list that shows nothing for two hours, then everything; the picture's begin is the file's."""
    return shows(edited(write(at.with_suffix(".mp4")), [(7_200_000, -1), (2400, 0)]))


@kind
def begins_between_key_frames(at: Path) -> Recording:
    """A transport stream that begins between two key frames."""
    path = write(at.with_suffix(".ts"), edit=from_frame(10))
    return shows(path, range(10, FRAMES), first=10, unsure=frozenset(range(10, GOP)))


@kind
def begins_between_key_frames_mp4(at: Path) -> Recording:
    """MP4 with B frames that begins between two key frames; its index knows that."""
    path = write(at.with_suffix(".mp4"), options=B_FRAMES, edit=dropped(0, 10))
    return shows(path, range(10, FRAMES), first=12, unsure=frozenset(range(10, GOP)), begin_slack=2.5 / RATE)


@kind
def open_gop_without_its_start(at: Path) -> Recording:
    """H.264 cut at a key frame with B frames before it in the order of presentation, which need what was cut off."""
    path = write(
        at.with_suffix(".mkv"), options=OPEN_GOP, edit=from_second_key_frame, muxer={"avoid_negative_ts": "make_non_negative"}
    )
    return shows(path, range(GOP - 2, FRAMES), first=GOP - 2, unsure=frozenset(range(GOP - 2, GOP)), begin_slack=2.5 / RATE)


@kind
def intra_refresh_without_its_start(at: Path) -> Recording:
    """No key frame in all of the file: columns renewed one at a time, joined in the middle."""
    options = X264 | {"x264-params": "intra-refresh=1:scenecut=0:mbtree=0"}
    path = write(at.with_suffix(".ts"), options=options, edit=from_frame(10))
    return shows(path, range(10, FRAMES), first=10, unsure=frozenset(range(10, 2 * GOP + 1)))


@kind
def sound_before_the_picture(at: Path) -> Recording:
    """MP4 whose picture begins 2.4 s after the sound."""
    times = [2.4 + i / RATE for i in range(FRAMES)]
    return replace_times(shows(write(at.with_suffix(".mp4"), times=times, sound=(4.5, 0.0))), times)


@kind
def sound_before_the_picture_ts(at: Path) -> Recording:
    """The same in a transport stream."""
    times = [1.2 + i / RATE for i in range(FRAMES)]
    return replace_times(shows(write(at.with_suffix(".ts"), times=times, sound=(3.0, 0.0)), begin_slack=0.08), times)


@kind
def sound_after_the_picture(at: Path) -> Recording:
    """Matroska whose sound begins 0.8 s after the picture and goes on behind it."""
    return shows(write(at.with_suffix(".mkv"), sound=(3.0, 0.8)))


def two_streams(path: Path, small: tuple[int, int], edit: Edit = list) -> Path:
    """A small stream of other pictures (their numbers begin at 500) before the large one, to whose packets edit is done."""
    with av.open(str(path), "w") as container:
        streams = [add_video(container, "libx264", X264, RATE, size) for size in (small, SIZE)]
        packets: Packets = []
        for stream, size, first in zip(streams, (small, SIZE), (500, 0), strict=True):
            coded = encoded(stream, (picture(first + i, size) for i in range(FRAMES)), (Fraction(i, RATE) for i in range(FRAMES)))
            packets += coded if first else edit(coded)
        container.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    return path


@kind
def two_video_streams(at: Path) -> Recording:
    """A small picture for previews is the first of two video streams."""
    return shows(two_streams(at.with_suffix(".mkv"), (160, 120)))


@kind
def two_video_streams_ts(at: Path) -> Recording:
    """The same in a transport stream."""
    return shows(two_streams(at.with_suffix(".ts"), (160, 120)))


@kind
def largest_stream_damaged(at: Path) -> Recording:
    """Two streams; of the larger one nothing decodes."""
    zeroed = spoiled(0, FRAMES, lambda payload: b"\x00\x00\x00\x01\x65" + bytes(len(payload)))
    path = two_streams(at.with_suffix(".mp4"), (160, 120), zeroed)
    return replace_times(Recording(path, tuple(range(500, 500 + FRAMES)), ()), (i / RATE for i in range(FRAMES)))


@kind
def joined_mp4(at: Path) -> Recording:
    """Two MP4 files one behind the other: of the second nothing is shown."""
    halves = [write(at.with_suffix(f".{n}.mp4"), range(n * HALF, (n + 1) * HALF)) for n in (0, 1)]
    return shows(joined(at.with_suffix(".mp4"), halves), range(HALF))


@kind
def joined_flv(at: Path) -> Recording:
    """The same in FLV."""
    halves = [write(at.with_suffix(f".{n}.flv"), range(n * HALF, (n + 1) * HALF)) for n in (0, 1)]
    return shows(joined(at.with_suffix(".flv"), halves), range(HALF))


@kind
def joined_asf(at: Path) -> Recording:
    """The same in ASF."""
    halves = [
        write(at.with_suffix(f".{n}.wmv"), range(n * HALF, (n + 1) * HALF), codec="wmv2", options={"b": "2M"}) for n in (0, 1)
    ]
    return shows(joined(at.with_suffix(".wmv"), halves), range(HALF))


@kind
def joined_mkv(at: Path) -> Recording:
    """The same in Matroska, where readers go on with the second."""
    halves = [write(at.with_suffix(f".{n}.mkv"), range(n * HALF, (n + 1) * HALF)) for n in (0, 1)]
    return shows(joined(at.with_suffix(".mkv"), halves), time_slack=1.01 / RATE, misread=True)


@kind
def joined_ts_of_another_program(at: Path) -> Recording:
    """Two transport streams one behind the other, the second of another program: readers stay with the first."""
    other = {"mpegts_start_pid": "512", "mpegts_pmt_start_pid": "1024", "mpegts_service_id": "7"}
    halves = [
        write(at.with_suffix(f".{n}.ts"), range(n * HALF, (n + 1) * HALF), muxer=muxer) for n, muxer in enumerate(({}, other))
    ]
    return shows(joined(at.with_suffix(".ts"), halves), range(HALF))


@kind
def cover_picture(at: Path) -> Recording:
    """MP4 whose first video stream is a cover picture, larger than the film."""
    with av.open(str(at.with_suffix(".mp4")), "w") as container:
        film = add_video(container, "libx264", X264, RATE, SIZE)
        cover = add_video(container, "mjpeg", {}, RATE, (640, 480), pixels="yuvj420p")
        cover.disposition = av.stream.Disposition.attached_pic
        art = encoded(cover, [picture(999, (640, 480))], [0])
        packets = encoded(film, map(picture, range(FRAMES)), (Fraction(i, RATE) for i in range(FRAMES)))
        container.mux(art + packets)

    def cover_first(data: bytes) -> bytes:
        """FFmpeg numbers streams as they come: what the cover is in goes before the tracks."""
        parts = boxes(data)
        moov = next(part for part in parts if part[4:8] == b"moov")
        inner = sorted(boxes(moov[8:]), key=lambda box: (box[4:8] != b"mvhd", box[4:8] != b"udta"))
        return b"".join(moov[:8] + b"".join(inner) if part is moov else part for part in parts)

    return shows(rewrite(at.with_suffix(".mp4"), cover_first))


@kind
def subtitles_beside(at: Path) -> Recording:
    """Matroska with a text track, whose first line is there before the picture."""
    with av.open(str(at.with_suffix(".mkv")), "w") as container:
        text = container.add_mux_stream("subrip", time_base=Fraction(1, 1000))
        film = add_video(container, "libx264", X264, RATE, SIZE)
        packets = encoded(film, map(picture, range(FRAMES)), (Fraction(i, RATE) for i in range(FRAMES)))
        line = av.Packet(b"2026-03-01 12:00:00")
        line.stream, line.time_base, line.pts, line.dts, line.duration = text, Fraction(1, 1000), 0, 0, 2000
        container.mux([line, *packets])
    return shows(at.with_suffix(".mkv"))


@kind
def data_beside(at: Path) -> Recording:
    """A transport stream with a track of private data, as drones and cameras add it."""
    with av.open(str(at.with_suffix(".ts")), "w") as container:
        film = add_video(container, "libx264", X264, RATE, SIZE)
        data = container.add_data_stream("klv")
        packets = encoded(film, map(picture, range(FRAMES)), (Fraction(i, RATE) for i in range(FRAMES)))
        for n in (0, HALF):
            note = av.Packet(b"\x06\x0e\x2b\x34" + bytes(28))
            note.stream, note.time_base, note.pts, note.dts = data, Fraction(1, RATE), n, n
            packets.append(note)
        container.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    return shows(at.with_suffix(".ts"))


@kind
def second_camera_joins_late(at: Path) -> Recording:
    """A transport stream into which another camera's is mixed after 40 s: readers know nothing of a stream that comes so late."""
    program = {"mpegts_start_pid": "512", "mpegts_pmt_start_pid": "1024", "mpegts_service_id": "7"}
    paths = [at.with_suffix(f".{n}.ts") for n in (0, 1)]
    write(paths[0], range(1000), options=X264 | {"preset": "ultrafast"})
    write(paths[1], range(FRAMES), muxer=program)
    first, second = (
        [data[n : n + TS_PACKET] for n in range(0, len(data), TS_PACKET)] for data in (p.read_bytes() for p in paths)
    )
    alone = len(first) - len(second)
    mixed = [*first[:alone], *(packet for pair in zip(first[alone:], second, strict=True) for packet in pair)]
    path = joined(at.with_suffix(".ts"), paths)
    path.write_bytes(b"".join(mixed))
    return shows(path, range(1000))


# Stamps


def replace_times(recording: Recording, times: Iterable[float], **more: Any) -> Recording:
    """The recording with other times, in seconds from the file's start."""
    return replace(recording, times=tuple(map(float, times)), **more)


def mended(path: Path) -> Recording:
    """A recording with one bad stamp: the frame has its place, and a time between its neighbours'."""
    return shows(path, time_slack=1.01 / RATE, misread=True)


@kind
def stamp_repeated(at: Path) -> Recording:
    """One frame has the stamp of the one before it."""
    return mended(rewrite(write(at.with_suffix(".ts")), lambda d: restamped(d, lambda n, t: t - 3600 * (n == HALF))))


@kind
def stamp_missing(at: Path) -> Recording:
    """One frame has no stamp."""
    return mended(rewrite(write(at.with_suffix(".ts")), lambda d: restamped(d, lambda n, t: None if n == HALF else t)))


@kind
def stamp_far_ahead(at: Path) -> Recording:
    """One frame is stamped a thousand seconds ahead."""
    return mended(rewrite(write(at.with_suffix(".ts")), lambda d: restamped(d, lambda n, t: t + 90_000_000 * (n == HALF))))


@kind
def stamp_back(at: Path) -> Recording:
    """One frame is stamped half a second too early."""
    return mended(rewrite(write(at.with_suffix(".ts")), lambda d: restamped(d, lambda n, t: t - 45_000 * (n == HALF))))


@kind
def stamps_in_pairs(at: Path) -> Recording:
    """Every second frame has the stamp of the one before it."""
    path = rewrite(write(at.with_suffix(".ts")), lambda d: restamped(d, lambda n, t: t - 3600 * (n % 2)))
    return shows(path, misread=True)


@kind
def clock_set_back(at: Path) -> Recording:
    """The camera's clock is set back by an hour while it records: time goes on."""
    path = rewrite(write(at.with_suffix(".ts")), lambda d: restamped(d, lambda n, t: (t - 324_000_000 * (n >= HALF)) % STAMPS))
    return shows(path, misread=True)


@kind
def stamp_near_the_end_ahead(at: Path) -> Recording:
    """Five frames before the end one is stamped a thousand seconds ahead."""
    return mended(rewrite(write(at.with_suffix(".ts")), lambda d: restamped(d, lambda n, t: t + 90_000_000 * (n == FRAMES - 5))))


@kind
def first_stamp_ahead(at: Path) -> Recording:
    """The first frame is stamped a thousand seconds ahead of all others."""
    path = rewrite(write(at.with_suffix(".ts")), lambda d: restamped(d, lambda n, t: t + 90_000_000 * (n == 0)))
    return replace(mended(path), begin_slack=2.01 / RATE)


@kind
def variable_rate(at: Path) -> Recording:
    """Frames when something moves: gaps of 20 to 400 ms."""
    times = np.cumsum(np.random.default_rng(3).integers(20, 400, FRAMES)) / 1000
    times = times - times[0]
    return replace_times(shows(write(at.with_suffix(".mkv"), times=times, time_base=Fraction(1, 1000)), time_slack=0.002), times)


@kind
def variable_rate_mp4(at: Path) -> Recording:
    """The same in MP4, with B frames."""
    times = np.cumsum(np.random.default_rng(4).integers(20, 400, FRAMES)) / 1000
    times = times - times[0]
    path = write(at.with_suffix(".mp4"), options=B_FRAMES, times=times, time_base=Fraction(1, 1000))
    return replace_times(shows(path, time_slack=0.002), times)


def with_pause(path: Path, **how: Any) -> Recording:
    """A recording that stands still for five minutes in its middle."""
    times = [i / RATE + (300 if i >= HALF else 0) for i in range(FRAMES)]
    return replace_times(shows(write(path, times=times, **how)), times)


@kind
def pause(at: Path) -> Recording:
    """Nothing was recorded for five minutes."""
    return with_pause(at.with_suffix(".mp4"))


@kind
def pause_ts(at: Path) -> Recording:
    """The same in a transport stream."""
    return with_pause(at.with_suffix(".ts"))


@kind
def restart(at: Path) -> Recording:
    """Two transport streams one behind the other: stamps begin anew, and time goes on."""
    halves = [write(at.with_suffix(f".{n}.ts"), range(n * HALF, (n + 1) * HALF)) for n in (0, 1)]
    return shows(joined(at.with_suffix(".ts"), halves), time_slack=1.01 / RATE, misread=True)


@kind
def restart_of_another_size(at: Path) -> Recording:
    """The same, and the second recording is twice as large."""
    halves = [write(at.with_suffix(f".{n}.ts"), range(n * HALF, (n + 1) * HALF), size=(320 << n, 240 << n)) for n in (0, 1)]
    return shows(joined(at.with_suffix(".ts"), halves), time_slack=1.01 / RATE, misread=True)


@kind
def wrap(at: Path) -> Recording:
    """A transport stream whose stamps run out after 26 hours and begin at 0."""
    return shows(write(at.with_suffix(".ts"), muxer={"output_ts_offset": f"{STAMPS / 90_000 - 1.2:.3f}"}))


@kind
def ticks_of_milliseconds(at: Path) -> Recording:
    """30000/1001 frames a second in Matroska, whose stamps are whole milliseconds."""
    rate = Fraction(30000, 1001)
    return shows(write(at.with_suffix(".mkv"), rate=rate), rate=rate)


@kind
def ntsc_avi(at: Path) -> Recording:
    """30000/1001 frames a second in AVI."""
    rate = Fraction(30000, 1001)
    return shows(write(at.with_suffix(".avi"), rate=rate), rate=rate, begin_slack=2.5 / rate)


@kind
def ticks_of_90000(at: Path) -> Recording:
    """MP4 that counts 1/90000 s, 30000/1001 frames a second, B frames."""
    rate = Fraction(30000, 1001)
    return shows(write(at.with_suffix(".mp4"), options=B_FRAMES, rate=rate, muxer={"video_track_timescale": "90000"}), rate=rate)


@kind
def one_frame_a_second(at: Path) -> Recording:
    """A time lapse."""
    return shows(write(at.with_suffix(".mp4"), rate=1), rate=1)


@kind
def four_seconds_a_frame(at: Path) -> Recording:
    """A time lapse, in FLV."""
    return shows(write(at.with_suffix(".flv"), range(HALF), rate=0.25), range(HALF), rate=0.25)


@kind
def last_frame_lasts(at: Path) -> Recording:
    """The last frame is shown for 30 seconds, until somebody ended the recording."""

    def lasting(packets: Packets) -> Packets:
        packets[-1].duration = round(30 / packets[-1].time_base)
        return packets

    return shows(write(at.with_suffix(".mp4"), edit=lasting))


@kind
def thousand_frames_a_second(at: Path) -> Recording:
    """A camera for motion that is too fast to see."""
    return shows(write(at.with_suffix(".mp4"), rate=1000), rate=1000)


@kind
def eight_frames_a_second(at: Path) -> Recording:
    """What a recorder saves at night, in AVI."""
    return shows(write(at.with_suffix(".avi"), rate=8), rate=8, begin_slack=2.5 / 8)


@kind
def twelve_and_a_half_frames_a_second(at: Path) -> Recording:
    """Every second frame of 25."""
    return shows(write(at.with_suffix(".ts"), rate=12.5), rate=12.5)


@kind
def fifteen_frames_a_second(at: Path) -> Recording:
    """In FLV, whose stamps are whole milliseconds."""
    return shows(write(at.with_suffix(".flv"), rate=15), rate=15)


@kind
def fifty_frames_a_second(at: Path) -> Recording:
    """With B frames in a transport stream."""
    return shows(write(at.with_suffix(".ts"), options=B_FRAMES, rate=50), rate=50)


# Turned pictures and sizes


@kind
def turned_90(at: Path) -> Recording:
    """Stored on its side; the container says how to turn it."""
    return shows(write(at.with_suffix(".mp4"), turned=90))


@kind
def turned_180(at: Path) -> Recording:
    """Stored on its head."""
    return shows(write(at.with_suffix(".mov"), turned=180))


@kind
def turned_270(at: Path) -> Recording:
    """Stored on its other side, with B frames."""
    return shows(write(at.with_suffix(".mp4"), options=B_FRAMES, turned=270))


@kind
def odd_size(at: Path) -> Recording:
    """321 x 241 pixels."""
    vp9 = {"cpu-used": "8", "deadline": "realtime", "b": "2M"}
    return shows(write(at.with_suffix(".webm"), codec="libvpx-vp9", options=vp9, size=(321, 241)))


@kind
def cropped_size(at: Path) -> Recording:
    """322 x 242 pixels, which H.264 codes as 336 x 256 and crops."""
    return shows(write(at.with_suffix(".mp4"), options=B_FRAMES, size=(322, 242)))


@kind
def narrow(at: Path) -> Recording:
    """176 x 144 pixels, as old cameras send."""
    return shows(write(at.with_suffix(".avi"), codec="mpeg4", options={"b": "1M"}, size=(176, 144)))


@kind
def size_changes(at: Path) -> Recording:
    """A transport stream whose camera was set to twice the size while it went on."""
    halves = [
        write(at.with_suffix(f".{n}.ts"), range(n * HALF, (n + 1) * HALF), size=(320 << n, 240 << n), edit=moved)
        for n, moved in enumerate((list, lambda packets: later(packets, Fraction(HALF, RATE))))
    ]
    return shows(joined(at.with_suffix(".ts"), halves))


@kind
def size_changes_raw(at: Path) -> Recording:
    """H.264 with nothing around it, whose picture gets smaller."""
    halves = [
        write(at.with_suffix(f".{n}.h264"), range(n * HALF, (n + 1) * HALF), size=(320, 240) if n == 0 else (160, 120))
        for n in (0, 1)
    ]
    return shows(joined(at.with_suffix(".h264"), halves))


@kind
def size_changes_mkv(at: Path) -> Recording:
    """Matroska with H.264 whose picture gets larger."""
    halves = [write(at.with_suffix(f".{n}.h264"), range(n * HALF, (n + 1) * HALF), size=(320 << n, 240 << n)) for n in (0, 1)]
    raw = joined(at.with_suffix(".h264"), halves)
    with av.open(str(raw)) as source, av.open(str(at.with_suffix(".mkv")), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for n, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.stream, packet.time_base, packet.pts, packet.dts, packet.duration = stream, Fraction(1, RATE), n, n, 1
            container.mux(packet)
    raw.unlink()
    return shows(at.with_suffix(".mkv"))


@kind
def gray_12_bit(at: Path) -> Recording:
    """FFV1 of gray pictures of 12 bits."""
    return shows(write(at.with_suffix(".mkv"), range(HALF), codec="ffv1", options={}, pixels="gray12le"), range(HALF))


@kind
def with_alpha(at: Path) -> Recording:
    """PNG pictures with alpha in QuickTime."""
    return shows(write(at.with_suffix(".mov"), range(HALF), codec="png", options={}, pixels="rgba"), range(HALF))


@kind
def ten_bit_444(at: Path) -> Recording:
    """H.264 of 10 bits whose colours are as fine as its light."""
    return shows(write(at.with_suffix(".mkv"), pixels="yuv444p10le"))


# Damage


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


# Recorders


@kind
def hikvision(at: Path) -> Recording:
    """A program stream behind the 40 bytes that begin with IMKH, named MP4."""
    header = b"IMKH\x01\x01\x00\x00\x02\x00\x00\x01\x11\x71\x01\x12\x40\x1f\x00\x00\x00\xfa".ljust(40, b"\x00")
    path = write(at.with_suffix(".mpg"), form="vob")
    return replace(shows(rewrite(path, lambda data: header + data)), path=path.rename(at.with_suffix(".mp4")))


@kind
def dahua(at: Path) -> Recording:
    """H.264 in Dahua's container."""
    return shows(dav(at.with_suffix(".dav"), "libx264", X264, 8))


@kind
def dahua_hevc(at: Path) -> Recording:
    """HEVC without B frames in Dahua's container."""
    no_b = X265 | {"x265-params": X265["x265-params"].replace("bframes=2", "bframes=0")}
    return shows(dav(at.with_suffix(".dav"), "libx265", no_b, 12))


@kind
def avi_with_dropped_frames(at: Path) -> Recording:
    """AVI in which packets without bytes stand for frames that the recorder dropped."""
    ids = [*range(25), *range(31, FRAMES)]
    return shows(
        write(at.with_suffix(".avi"), ids, codec="mjpeg", options={"b": "4M"}, pixels="yuvj420p", times=seconds(ids)), ids
    )


@kind
def avi_with_dropped_h264_frames(at: Path) -> Recording:
    """The same with H.264, whose next frames build on those before the gap."""
    ids = [*range(25), *range(31, FRAMES)]
    return shows(write(at.with_suffix(".avi"), ids, times=seconds(ids)), ids, begin_slack=2.5 / RATE)


@kind
def private_header(at: Path) -> Recording:
    """Raw H.264 behind 16 bytes that only its recorder reads."""
    return shows(rewrite(write(at.with_suffix(".264")), lambda data: b"REC1\x01\x19\x40\x01\xf0\x00" + b"\x11" * 6 + data))
