"""Faults in reading video that others met and reported in public: each made again as a small file, and read.

    python -m benchmarks.reported_faults
    python -m benchmarks.reported_faults --only decord --keep FOLDER

Each file is read by this product and, as a peer, by decord: with gaps, as a sampler reads, until every frame was asked for once.
The frames carry their numbers and the files' makers know the times (`tests.recordings.kinds`), so what was read is judged and not
looked at. decord runs in a process of its own with a time limit. The last line is one JSON object.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import av
import cv2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Chunk, Rejected
from tests.recordings.files import (
    B_FRAMES,
    FRAMES,
    GOP,
    RATE,
    SIZE,
    X264,
    X265,
    Packets,
    Recording,
    add_sound,
    add_video,
    barcodes,
    boxes,
    faults,
    picture,
    rewrite,
    shows,
    with_payload,
    write,
)
from tests.recordings.kinds import KINDS, Kind

TIME_LIMIT = 20  # seconds for decord to read one file
STEP = 7  # frames from one sampled frame to the next
BATCH = 4  # frames that decord is asked for at a time
AHEAD = 5  # seconds that decord is left alone after a first frame, where memory counts
LONG = 400  # frames of the recording that memory is measured with
MEMORY = 150  # MiB that reading may take beyond the libraries; the long recording has 600 MiB of pixels
COLOUR = 3  # of 255, mean difference of the colours: coding costs 1.5, a range or a matrix taken for another one 4 and more


@dataclass(frozen=True)
class Report:
    """One report: its thread, what was reported, and how such a file is made.

    by: what is held against the file besides the frames and their times: "colour", "memory" or nothing. tell: whether the product
    must say that something was damaged, guessed, mended or chosen.
    """

    thread: str
    said: str
    make: Kind
    by: str = ""
    tell: bool = False


@dataclass(frozen=True)
class Found:
    """What a reader made of a file: barcodes and times, or the sentence with which it refused.

    colour: mean difference of the first frame's colours from those that were encoded, of 255. memory: MiB that reading took at
    most, beyond what the libraries take. told: what the reader says it passed over or guessed. sampled: barcodes and times of a
    second reading, with gaps.
    """

    ids: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    refused: str = ""
    colour: float = 0.0
    memory: float = 0.0
    told: str = ""
    sampled: list[tuple[int, float]] = field(default_factory=list)


# Files that no kind of tests.recordings.kinds makes


def many_b_frames(at: Path) -> Recording:
    """MP4 with up to eight B frames in a row, coded from one another and across key frames."""
    many = {"bf": "8", "x264-params": "scenecut=0:b-adapt=0:b-pyramid=normal:open-gop=1:ref=4"}
    return shows(write(at.with_suffix(".mp4"), options=X264 | many))


def counts_too_many(at: Path) -> Recording:
    """MP4 whose table lists more pictures than there are: the packets of the last third hold none."""
    filler = b"\x00\x00\x00\x01\x0c\xff\x80"

    def emptied(packets: Packets) -> Packets:
        return packets[: 2 * GOP] + [with_payload(packet, filler) for packet in packets[2 * GOP :]]

    return shows(write(at.with_suffix(".mp4"), edit=emptied), range(2 * GOP))


def damaged_packets(at: Path) -> Recording:
    """H.264 in AVI, three packets of which were overwritten with noise."""
    noise = np.random.default_rng(11)
    hit = range(GOP + 5, GOP + 8)

    def overwritten(packets: Packets) -> Packets:
        return [
            with_payload(packet, bytes(packet)[:12] + noise.bytes(packet.size - 12)) if n in hit else packet
            for n, packet in enumerate(packets)
        ]

    path = write(at.with_suffix(".avi"), edit=overwritten)
    return shows(path, unsure=frozenset(range(hit[0], 2 * GOP)), begin_slack=2.5 / RATE)


def webm_without_length(at: Path) -> Recording:
    """VP8 in WebM as browsers record it: no length, no index."""
    fast = {"deadline": "realtime", "cpu-used": "8", "b": "2M"}
    return shows(write(at.with_suffix(".webm"), codec="libvpx", options=fast, muxer={"live": "1"}))


def ts_segment(at: Path) -> Recording:
    """A transport stream of H.264 with B frames."""
    return shows(write(at.with_suffix(".ts"), options=B_FRAMES), begin_slack=2.5 / RATE)


def hevc_ts(at: Path) -> Recording:
    """A transport stream of HEVC with B frames."""
    return shows(write(at.with_suffix(".ts"), codec="libx265", options=X265), begin_slack=2.5 / RATE)


def without_moov(at: Path) -> Recording:
    """MP4 whose recorder was ended before it wrote the index."""
    return shows(rewrite(write(at.with_suffix(".mp4")), lambda data: data[: data.index(b"moov") - 4]), ())


def cut_in_a_fragment(at: Path) -> Recording:
    """MP4 in fragments that is still being written: the third of three is half there."""
    muxer = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}

    def half_of_the_third(data: bytes) -> bytes:
        parts = boxes(data)
        last = [n for n, part in enumerate(parts) if part[4:8] == b"mdat"][2]
        return b"".join(parts[:last]) + parts[last][: len(parts[last]) // 2]

    return shows(rewrite(write(at.with_suffix(".mp4"), muxer=muxer), half_of_the_third), unsure=frozenset(range(2 * GOP, FRAMES)))


def sound_only(at: Path) -> Recording:
    """A sound track named .mp4."""
    path = at.with_suffix(".mp4")
    with av.open(str(path), "w") as container:
        container.mux(add_sound(container, 2.0)())
    return shows(path, ())


def long_recording(at: Path) -> Recording:
    """960 x 540 pixels, many frames."""
    options = X264 | {"preset": "ultrafast"}
    return shows(write(at.with_suffix(".mp4"), range(LONG), options=options, size=(960, 540)), range(LONG))


def full_range(at: Path) -> Recording:
    """BT.709 colours in which black is 0 and white is 255, 8 bits."""
    return of_full_range(at.with_suffix(".mp4"), "yuvj420p", 8)


def full_range_of_10_bits(at: Path) -> Recording:
    """The same in 10 bits, in which no pixel format says the range."""
    return of_full_range(at.with_suffix(".mp4"), "yuv420p10le", 10)


def of_full_range(path: Path, pixels: str, bits: int) -> Recording:
    """A recording of full range by the formulae of BT.709, so that no library's conversion is in it."""
    with av.open(str(path), "w") as container:
        stream = add_video(container, "libx264", X264, RATE, SIZE, pixels=pixels)
        context = stream.codec_context
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = 2, 1, 1, 1
        for number in range(GOP):
            rgb = picture(number).astype(np.float64)
            luma = rgb @ [0.2126, 0.7152, 0.0722]
            chroma = [(rgb[..., 2] - luma) / 1.8556 + 128, (rgb[..., 0] - luma) / 1.5748 + 128]
            halves = [plane.reshape(SIZE[1] // 2, 2, SIZE[0] // 2, 2).mean(axis=(1, 3)) for plane in chroma]
            most = (1 << bits) - 1
            frame = av.VideoFrame(*SIZE, pixels)
            for plane, values in zip(frame.planes, (luma, *halves), strict=True):
                of_plane = np.clip(np.round(values * most / 255), 0, most).astype(np.uint8 if bits == 8 else "<u2")
                rows = np.zeros((plane.height, plane.line_size), np.uint8)
                rows[:, : of_plane.shape[1] * of_plane.itemsize] = of_plane.view(np.uint8)
                plane.update(rows.tobytes())
            frame.pts, frame.time_base, frame.color_range, frame.colorspace = number, Fraction(1, RATE), 2, 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return shows(path, range(GOP))


REPORTS = (
    Report(
        "dmlc/decord#365",
        "of H.264 with many B frames, other frames than OpenCV's came for the same numbers",
        many_b_frames,
    ),
    Report("dmlc/decord#91", "of VP8 in WebM, every number gave a frame of the first seconds", KINDS["vp8"]),
    Report(
        "dmlc/decord#373",
        "the container counts more frames than decode, and reading near the end never returned",
        counts_too_many,
        tell=True,
    ),
    Report(
        "dmlc/decord#52",
        "with B frames, times came in the order of decoding and frames in that of showing",
        KINDS["variable-rate-mp4"],
    ),
    Report("dmlc/decord#83", "a surveillance video (AVI) with some damaged frames could not be read", damaged_packets, tell=True),
    Report("dmlc/decord#24", "the rotation that the container asks for was not applied", KINDS["turned-90"]),
    Report("dmlc/decord#88", "a webcam's recording without a length: the number of frames was negative", webm_without_length),
    Report("dmlc/decord#204", "of a playlist with a transport stream, seeking to the start failed", ts_segment),
    Report(
        "dmlc/decord#232",
        "of a file with several video tracks one is taken, and none other can be chosen",
        KINDS["two-video-streams"],
        tell=True,
    ),
    Report(
        "dmlc/decord#195", "of AVI files of a data set the same numbers gave other frames now and then", KINDS["mpeg4-packed"]
    ),
    Report("dmlc/decord#116", "files were refused for want of a video stream, and had none", sound_only),
    Report("dmlc/decord#221", "AV1 in MP4 could not be opened though ffmpeg plays it", KINDS["av1"]),
    Report("dmlc/decord#157", "memory grew to the whole decoded video while one frame was wanted", long_recording, "memory"),
    Report(
        "quodlibet/mutagen#661",
        "a cover picture became the first video stream and moved the film to the second",
        KINDS["cover-picture"],
    ),
    Report("opencv/opencv#12112", "times of a video of variable frame rate were wrong", KINDS["variable-rate"]),
    Report("opencv/opencv#20227", "of an MPEG program stream, setting a position gave a later frame", KINDS["mpeg1"]),
    Report(
        "meta-pytorch/torchcodec#1363",
        "AVI with B frames and no presentation times: the last frame was lost",
        KINDS["avi-b-frames"],
    ),
    Report(
        "meta-pytorch/torchcodec#1262", "colours of full range (yuvj420p, BT.709) came out wrong on a GPU", full_range, "colour"
    ),
    Report("meta-pytorch/torchcodec#1708", "above 8 bits, full range was taken for limited", full_range_of_10_bits, "colour"),
    Report(
        "voxel51/fiftyone#8410",
        "an edit list hides the first pictures; one reader counted them, others did not",
        KINDS["edit-list"],
    ),
    Report("Motion-Project/motion#755", "recordings that do not start with a key frame", KINDS["begins-between-key-frames-mp4"]),
    Report("blakeblackshear/frigate#271", "saved clips without the index at their end (moov)", without_moov),
    Report("ZoneMinder/zoneminder#2887", "an event that is still being recorded, MP4 in fragments", cut_in_a_fragment, tell=True),
    Report("blakeblackshear/frigate#9676", "stamps of a camera's stream jump back in the middle", KINDS["restart"], tell=True),
    Report(
        "blakeblackshear/frigate#7631", "two packets of a camera's stream have the same stamp", KINDS["stamp-repeated"], tell=True
    ),
    Report("tvheadend/tvheadend#2248", "after 26.5 hours the stamps of a transport stream begin anew", KINDS["wrap"]),
    Report(
        "raspberrypi/firmware#258",
        "the size of the picture changes in the middle of a transport stream",
        KINDS["size-changes"],
        tell=True,
    ),
    Report(
        "microsoft/FFmpegInterop#165",
        "raw H.264 that says no rate played far too fast",
        KINDS["raw-h264-without-rate"],
        tell=True,
    ),
    Report("NVIDIA/VideoProcessingFramework#195", "presentation times of some HEVC recordings were wrong", hevc_ts),
    Report(
        "HomeOfAviSynthPlusEvolution/L-SMASH-Works#69",
        "packets without bytes, which stand for dropped frames in AVI, were left out, and all after them moved",
        KINDS["avi-with-dropped-frames"],
    ),
    Report("opencv/opencv#15352", "with tracks of sound and data beside it, reading ended in the middle", KINDS["data-beside"]),
    Report("Nevcairiel/LAVFilters#326", "recordings of Dahua cameras (.dav) could hardly be played", KINDS["dahua"]),
)


# Readers


def read_by_decord(path: str, by: str) -> Found:
    """All frames, with gaps: 0, 7, 14, ..., then 1, 8, 15, ...; where memory counts it has AHEAD seconds to decode ahead."""
    import decord

    before = peak()
    video = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    if by == "memory":
        video.seek_accurate(GOP)
        time.sleep(AHEAD)
    order = [i for start in range(STEP) for i in range(start, len(video), STEP)]
    ids, colour = [0] * len(video), 0.0
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        frames = video.get_batch(batch).asnumpy()
        if start == 0 and by == "colour":
            colour = colour_off(frames[0], 0)
        for number, frame in zip(batch, frames, strict=True):
            ids[number] = barcodes(gray(frame)[None])[0]
    times = video.get_frame_timestamp(np.arange(len(video)))[:, 0].tolist()
    return Found(ids, times, colour=colour, memory=peak() - before)


def apart(path: Path, by: str) -> Found:
    """`read_by_decord` in a process of its own, which may crash or hang."""
    code = "import json, sys; from dataclasses import asdict; from benchmarks.reported_faults import read_by_decord\n"
    code += "print(json.dumps(asdict(read_by_decord(*sys.argv[1:]))))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, path, by], capture_output=True, text=True, timeout=TIME_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return Found(refused=f"no answer in {TIME_LIMIT} s")
    if done.returncode == 0:
        return Found(**json.loads(done.stdout.splitlines()[-1]))
    if done.returncode < 0:
        return Found(refused=f"crashed with signal {-done.returncode}")
    said = next((line for line in reversed(done.stderr.splitlines()) if "Error" in line), "an error")
    return Found(refused=said.split("] ")[-1].split("Error: ")[-1][:90])


def read_by_product(path: Path, by: str) -> Found:
    """All frames, then some with gaps, each through a decoder's process, in the size of the barcodes."""
    ids, times, refused, colour, memory, told = decoded(path, 1000, by)
    return Found(ids, times, refused, colour, memory, told, [*zip(*decoded(path, RATE / STEP, by)[:2], strict=True)])


def decoded(path: Path, rate: float, by: str) -> tuple[list[int], list[float], str, float, float, str]:
    """Barcodes, times, the refusal, how far colours are off, MiB and what the reader tells, at some sampled frames a second."""
    with Decoder(Sampling(rate=rate, height=SIZE[1], width=SIZE[0], time_limit=TIME_LIMIT)) as decoder:
        if by == "memory":
            list(decoder.events(str(write(path.with_name("short.mp4"), range(1)))))  # by its answer the libraries are loaded
        child = decoder._process.pid if decoder._process else "self"
        before = peak(child)
        ids: list[int] = []
        times: list[float] = []
        told: list[str] = []
        refused, colour = "", 0.0
        for event in decoder.events(str(path)):
            if isinstance(event, Rejected):
                refused = f"{event.reason}: {event.message.replace(str(path), 'FILE')}"
            if isinstance(event, Chunk):
                if not ids and by == "colour":
                    colour = colour_off(event.frames[0], 0)
                ids += barcodes(np.stack([gray(frame) for frame in event.frames]))
                times += event.time_s.tolist()
            told += getattr(event, "remarks", ())
            told += [f"{event.passed_over} passed over"] if getattr(event, "passed_over", 0) else []
        return ids, times, refused, colour, peak(child) - before if by == "memory" else 0.0, "; ".join(told)


def peak(process: int | str = "self") -> float:
    """MiB that a process took at most so far; unlike what getrusage says, without its parent's before it began."""
    return int(Path(f"/proc/{process}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def gray(rgb: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [240, 320]."""
    return cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), SIZE, interpolation=cv2.INTER_AREA)


def colour_off(rgb: np.ndarray, number: int) -> float:
    """Mean difference of the colours below the barcode from the picture's, of 255; over blocks of 8 x 8, as codecs blur."""
    blocks = [
        image[SIZE[1] // 8 + 2 :].astype(np.float64)[:208].reshape(26, 8, SIZE[0] // 8, 8, 3).mean(axis=(1, 3))
        for image in (rgb, picture(number))
    ]
    return float(np.abs(blocks[0] - blocks[1]).mean())


def verdict(found: Found, recording: Recording, by: str = "", tell: bool = False) -> str:
    """What is wrong with what was read, in a few words; "right" where nothing is."""
    if not recording.ids:
        return "right: refused" if found.refused and not found.ids else "should be refused"
    if found.refused:
        return f"refused: {found.refused}"
    if by == "memory":
        return "right" if found.memory <= MEMORY else f"takes {found.memory:.0f} MiB"
    wrong = faults(recording, found.ids, found.times)
    shown = set(zip(found.ids, found.times, strict=True))
    if not shown.issuperset(found.sampled):
        wrong.append("sampled with gaps, other frames come for the same times")
    if by == "colour" and found.colour > COLOUR:
        wrong.append(f"colours are {found.colour:.0f} of 255 off")
    if tell and not found.told:
        wrong.append("says nothing of it")
    return "; ".join(wrong) or "right"


def results(only: str, folder: Path) -> Iterator[dict[str, str]]:
    """One row a report."""
    with_decord = importlib.util.find_spec("decord") is not None
    for number, report in enumerate(REPORTS):
        if only.lower() not in report.thread.lower():
            continue
        recording = report.make(folder / f"{number:02}-{report.thread.replace('/', '-').replace('#', '-')}")
        peer, own = apart(recording.path, report.by) if with_decord else None, read_by_product(recording.path, report.by)
        yield {
            "report": report.thread,
            "file": (report.make.__doc__ or "").splitlines()[0],
            "decord": verdict(peer, recording, report.by) if peer else "not installed",
            "product": verdict(own, recording, report.by, report.tell),
            "told": own.told or own.refused,
        }


def main(
    only: Annotated[str, typer.Option(help="Only reports whose thread contains this.")] = "",
    keep: Annotated[str, typer.Option(help="A folder for the files; they are deleted without it.")] = "",
) -> None:
    """Make each file, read it twice, and print what was right."""
    if keep:
        Path(keep).mkdir(parents=True, exist_ok=True)
    with nullcontext(keep) if keep else tempfile.TemporaryDirectory() as folder:
        rows = list(results(only, Path(folder)))
    table = Table("report", "file", "decord", "product", "what the product says")
    for row in rows:
        table.add_row(*row.values())
    Console(width=200).print(table)
    right = {name: sum(row[name].startswith("right") for row in rows) for name in ("decord", "product")}
    print(
        json.dumps(
            {"reports": len(rows), "right": right, "wrong": [row["report"] for row in rows if row["product"][:5] != "right"]}
        )
    )


if __name__ == "__main__":
    typer.run(main)
