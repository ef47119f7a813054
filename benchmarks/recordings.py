"""What the product makes of each kind of recording in `tests.recordings.kinds`, beside decord's random access.

    python -m benchmarks.recordings --out FOLDER

The product reads every frame, and ten a second, which are held to what was put in: "right", "said" (it refuses the file, and why)
or "wrong". decord gives ten frames a second, asked for by their numbers, with the times that it tells for them. With --out the
files stay, and where there are the programs ffmpeg and ffprobe, truth.json with the barcodes and times in seconds of each file's
frames. It leaves out files with frames that are damaged and shown all the same: each decoder mends those in its own way.
"""

import collections
import contextlib
import json
import multiprocessing
import shutil
import subprocess
import tempfile
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import av
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling, resize
from pipeline.decoding.video import Chunk, Rejected
from tests.recordings.files import SIZE, Recording, barcodes, faults, matched, read_by_ffmpeg, sample_times
from tests.recordings.kinds import KINDS

EVERY_FRAME = Sampling(rate=1000, width=SIZE[0], height=SIZE[1])
TEN_A_SECOND = replace(EVERY_FRAME, rate=10)
PATIENCE = 20  # seconds that decord may take for one file


def measure(
    out: Annotated[Path | None, typer.Option(help="Folder in which files and truth.json are left.")] = None,
    damaged: Annotated[int, typer.Option(help="Files with flipped bits, to count in how many decord is silently wrong.")] = 0,
) -> None:
    """Write every kind, read it in both ways, print the table."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        Decoder(EVERY_FRAME) as whole,
        Decoder(TEN_A_SECOND) as sampled,
        Decord() as decord,
    ):
        folder = out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        recordings = {name: write(folder / name) for name, write in KINDS.items()}
        rows = {name: (decord.verdict(truth), of_product(truth, whole, sampled)) for name, truth in recordings.items()}
        silent = silently_wrong(recordings["h264-b-frames"].path, damaged, Path(scratch) / "damaged.mp4", whole, decord)
    if out is not None and shutil.which("ffmpeg") is not None:
        truth = {recording.path.name: known for recording in recordings.values() if (known := truth_of(recording))}
        (out / "truth.json").write_text(json.dumps(truth))
    table = Table("kind", "file", "decord", "product")
    for name, row in rows.items():
        table.add_row(name, recordings[name].path.suffix, *row)
    Console(width=150).print(table)
    counts = [collections.Counter(row[n].split(":")[0] for row in rows.values()) for n in (0, 1)]
    short = [name for name, (_, product) in rows.items() if product != "right"]
    if damaged:
        print(f"of {damaged} files with a few flipped bits, decord shows other frames in {silent}, and says nothing")
    figures = {"kinds": len(rows), "decord": counts[0], "product": counts[1], "product_not_right": short}
    print(json.dumps(figures | {"damaged": damaged, "decord_silently_wrong": silent}))


def silently_wrong(sound: Path, count: int, path: Path, decoder: Decoder, decord: "Decord") -> int:
    """In how many of `count` damaged copies of a file decord gives, without an error, other frames than decode."""
    data, rng, wrong = sound.read_bytes(), np.random.default_rng(0), 0
    with av.open(str(sound)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][1:]
    for _ in range(count):
        copy = bytearray(data)
        for start, size in rng.choice(packets, rng.integers(1, 4)):
            copy[start + rng.integers(4, min(size, 40))] ^= 1 << rng.integers(8)
        path.write_bytes(copy)
        chunks = [event.frames for event in decoder.events(str(path)) if isinstance(event, Chunk)]
        found = decord.read(path, EVERY_FRAME.rate)
        if chunks and not isinstance(found, str):
            wrong += found[0] != barcodes(np.concatenate(chunks).mean(axis=3).astype(np.uint8))
    return wrong


def of_product(recording: Recording, whole: Decoder, sampled: Decoder) -> str:
    """The product's verdict on a file. whole: decodes every frame; sampled: some, which must be the same."""
    answers = []
    for decoder in (whole, sampled):
        events = list(decoder.events(str(recording.path)))
        if said := [event.reason for event in events if isinstance(event, Rejected)]:
            return "right" if not recording.ids else f"said: {', '.join(said)}"
        chunks = [event for event in events if isinstance(event, Chunk)]
        answers.append([np.concatenate([getattr(p, name) for p in chunks]) for name in ("frame_index", "time_s", "frames")])
    (numbers, times, frames), (some, their_times, their_frames) = answers
    if numbers.tolist() != list(range(len(numbers))):
        return "wrong: the frames are not numbered 0, 1, 2, ..."
    wrong = faults(recording, barcodes(frames.mean(axis=3).astype(np.uint8)), times.tolist())
    if not np.array_equal(frames[some], their_frames) or not np.array_equal(times[some], their_times):
        wrong.append("a sampled frame is another than that of its number")
    return f"wrong: {'; '.join(wrong)}" if wrong else "right"


class Decord:
    """decord in a process of its own, which a file may end or hang."""

    def __enter__(self) -> "Decord":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()

    def read(self, path: Path, rate: float) -> tuple[list[int], list[float]] | str:
        """Barcodes and seconds of the frames that are looked at, at so many a second, or why there are none."""
        self.connection.send((path, rate))
        try:
            found = self.connection.recv() if self.connection.poll(PATIENCE) else "does not answer"
        except EOFError:
            found = "crashes"
        if found in ("does not answer", "crashes"):
            self.stop()
            self.start()
        return found

    def verdict(self, recording: Recording) -> str:
        """Whether the frames that decord samples are those of the times that it tells, wherever it begins to count."""
        found = self.read(recording.path, 10)
        if isinstance(found, str):
            return "right" if not recording.ids else f"said: {found}"
        ids, times = found
        seen, late = matched(recording, ids, times)
        right = recording.right
        bad = sum(not abs(t - late - right.get(i, np.inf)) <= 2 * recording.time_slack for i, t in seen)
        lost = 1 - (seen[-1][1] - seen[0][1]) / (max(right.values()) - min(right.values())) if seen else 1.0
        wrong = [f"{bad} of {len(seen)} frames are of another time"] if bad else []
        wrong += [f"{lost:.0%} of the time is missing"] if lost > 0.1 else []
        return f"wrong: {'; '.join(wrong)}" if wrong else "right"


def serve(connection: Connection) -> None:
    """Answer a path and a rate with (barcodes, seconds) of the sampled frames, or with the sentence why there are none."""
    with contextlib.suppress(EOFError):
        while True:
            path, rate = connection.recv()
            try:
                import decord

                video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
                times = np.asarray(video.get_frame_timestamp(np.arange(len(video))), np.float64).reshape(-1, 2)[:, 0]
                if not np.all(np.diff(times) > 0):  # AVI has none
                    times = np.arange(len(video)) / video.get_avg_fps()
                chosen = sample_times(times, rate)
                frames = video.get_batch(chosen.tolist()).asnumpy()
                gray = np.stack([resize(frame, SIZE[1], SIZE[0]).mean(axis=2).astype(np.uint8) for frame in frames])
                connection.send((barcodes(gray), times[chosen].tolist()))
            except Exception as error:
                connection.send(str(error).strip().splitlines()[-1].split("] ")[-1][:60])


def truth_of(recording: Recording) -> dict[str, object]:
    """A file's frames for truth.json; nothing for a file that shows none, or some that are damaged."""
    ids, times = list(recording.ids), list(recording.times)
    if not ids:
        return {}
    if recording.unsure:
        ids, times = read_by_ffmpeg(recording.path)
        if len(matched(recording, ids, times)[0]) < len(ids):
            return {}
    entries = "stream=r_frame_rate,avg_frame_rate"
    command = ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", entries, "-of", "json", str(recording.path)]
    streams = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
    return {"frames": len(ids), "ids": ids, "times": times, "streams": streams}


if __name__ == "__main__":
    typer.run(measure)
