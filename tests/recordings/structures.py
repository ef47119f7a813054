"""Kinds of recordings by what else lies in the file, and by where the picture begins."""

import struct
from fractions import Fraction
from pathlib import Path

import av

from tests.recordings.files import (
    B_FRAMES,
    FRAMES,
    GOP,
    HALF,
    OPEN_GOP,
    RATE,
    SIZE,
    TS_PACKET,
    X264,
    Edit,
    Packets,
    Recording,
    add_video,
    boxes,
    dropped,
    encoded,
    from_frame,
    from_second_key_frame,
    joined,
    later,
    picture,
    rewrite,
    shows,
    spoiled,
    write,
)
from tests.recordings.registry import kind
from tests.recordings.stamps import replace_times


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
