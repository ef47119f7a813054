"""What Ray, crash-proof decoding and the gallery cost: frames/s of jobs.ingest beside a loop written by hand, and its memory.

    python -m benchmarks.ingest [--clips FOLDER] [--shared ../shared] [--count 500] [--repeats 3] [--memory-counts 500,5000]

Both are timed from outside, as commands, over the first fifth of the clips and over all of them, in turn, --repeats times. The
speed is the slope through the medians, (frames of all - frames of a fifth) / (seconds of all - seconds of a fifth); the start-up
is what is left of the seconds of a fifth. CPU seconds are those of all processes; other work on the machine disturbs them less.
Memory is the sum over all processes every 2 s: private (USS), and with shared memory counted once (PSS,
Ray's object store among it). More clips than there are become links under other names. The last line is the same as JSON.
"""

import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer

from jobs.command_line import run
from pipeline.backbone.spec import DEFAULT
from pipeline.errors import PipelineError
from pipeline.rendering.network import render_network

CLIPS_A_PERSON = 3.0  # of a rendered network, on average


@dataclass(frozen=True)
class Run:
    """One command: frames embedded, wall and CPU seconds; private and all memory in bytes, one number a sample."""

    frames: int
    seconds: float
    cpu_seconds: float
    private: list[int]
    all: list[int]


@dataclass(frozen=True)
class Speed:
    """Frames/s once start-up is taken out, seconds of start-up, and frames a CPU second (start-up taken out too)."""

    frames_per_second: float
    startup_seconds: float
    frames_per_cpu_second: float


class ProcessTree:
    """Samples a process and all below it from a thread: CPU seconds, and memory if asked."""

    def __init__(self, process: psutil.Process, memory: bool) -> None:
        self.root, self.memory = process, memory
        self.cpu: dict[tuple[int, float], float] = {}  # by process: its last reading stays when it ends
        self.private: list[int] = []
        self.all: list[int] = []

    def sample(self) -> None:
        private = proportional = 0
        with suppress(psutil.Error):
            for process in [self.root, *self.root.children(recursive=True)]:
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    self.cpu[process.pid, process.create_time()] = times.user + times.system
                    if self.memory:
                        used = process.memory_full_info()
                        private, proportional = private + used.uss, proportional + used.pss
            if self.memory:
                self.private.append(private)
                self.all.append(proportional)

    def until(self, ended: threading.Event) -> None:
        while not ended.wait(2.0 if self.memory else 0.5):
            self.sample()


def timed(command: Sequence[str], frames: str, memory: bool = False) -> tuple[Run, str]:
    """Run `python -m command` and read the number of frames from its output by the pattern `frames`; the output too."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=-1
    )
    tree, ended = ProcessTree(psutil.Process(process.pid), memory), threading.Event()
    sampler = threading.Thread(target=tree.until, args=(ended,))
    sampler.start()
    output, errors = process.communicate()
    seconds = time.monotonic() - began
    ended.set()
    sampler.join()
    match = re.search(frames, output)
    if process.returncode or match is None:
        raise PipelineError(f"python -m {' '.join(command)} failed: {errors.strip()[-500:]}")
    return Run(int(match[1]), seconds, sum(tree.cpu.values()), tree.private, tree.all), output


def run_ingest(clips: Path, scratch: Path, flags: Sequence[str], memory: bool = False) -> Run:
    shutil.rmtree(scratch / "gallery", ignore_errors=True)
    command = ["jobs.ingest", str(clips), "--gallery", str(scratch / "gallery"), *flags]
    return timed(command, r"added, (\d+) frames", memory)[0]


def run_loop(clips: Path, scratch: Path, flags: Sequence[str]) -> tuple[Run, list[int]]:
    """The run, and the frames that a core decodes and embeds a second."""
    made, output = timed(["benchmarks.hand_written_loop", str(clips), str(scratch / "loop"), *flags], r"frames (\d+)")
    return made, [int(number) for number in re.findall(r"(\d+)/s a core", output)]


def speed(few: Sequence[Run], many: Sequence[Run]) -> Speed:
    """The line through the medians of runs over few clips and over many."""
    frames = many[0].frames - few[0].frames
    seconds, cpu = (
        statistics.median(getattr(made, name) for made in many) - statistics.median(getattr(made, name) for made in few)
        for name in ("seconds", "cpu_seconds")
    )
    if min(frames, seconds, cpu) <= 0:
        raise PipelineError("the runs are too short to tell the speed from the start-up; give more clips (--count)")
    startup = statistics.median(made.seconds for made in few) - few[0].frames * seconds / frames
    return Speed(frames / seconds, startup, frames / cpu)


def compare(name: str, clips: Sequence[Path], count: int, repeats: int, scratch: Path, flags: Sequence[str]) -> dict[str, object]:
    """jobs.ingest and the loop over a fifth of `count` clips and over all, in turn; prints a line each."""
    sizes = [link_clips(clips, number, scratch / f"{name}-{number}") for number in (max(2, count // 5), count)]
    ingests: tuple[list[Run], list[Run]] = ([], [])
    loops: tuple[list[Run], list[Run]] = ([], [])
    units = []
    for _ in range(repeats):
        for place, folder in enumerate(sizes):
            looped, rates = run_loop(folder, scratch, flags)
            loops[place].append(looped)
            ingests[place].append(run_ingest(folder, scratch, flags))
        units.append(rates)
    ours, theirs = speed(*ingests), speed(*loops)
    ratio = ours.frames_per_second / theirs.frames_per_second
    cpu_ratio = ours.frames_per_cpu_second / theirs.frames_per_cpu_second
    for label, made, runs in (("jobs.ingest", ours, ingests), ("loop by hand", theirs, loops)):
        figures = f"{made.frames_per_second:10.0f} {made.frames_per_cpu_second:13.0f} {made.startup_seconds:10.1f}"
        print(f"{name:<10} {label:<14} {figures}   {runs[-1][-1].frames} frames; s: {_seconds(runs[0])}; {_seconds(runs[1])}")
    print(f"{name:<10} {'ratio':<14} {ratio:10.2f} {cpu_ratio:13.2f}")
    decoded, embedded = (statistics.median(values) for values in zip(*units, strict=True))
    print(f"{name:<10} a CPU second of the loop decodes {decoded:.0f} frames, or embeds {embedded:.0f}", flush=True)
    return {
        "clips": count,
        "frames": ingests[-1][-1].frames,
        "frames_of_the_loop": loops[-1][-1].frames,
        "ingest": asdict(ours),
        "loop": asdict(theirs),
        "ratio": ratio,
        "cpu_ratio": cpu_ratio,
        "seconds": {"ingest": [[made.seconds for made in size] for size in ingests]}
        | {"loop": [[made.seconds for made in size] for size in loops]},
        "decode_frames_per_cpu_second": decoded,
        "embed_frames_per_cpu_second": embedded,
    }


def _seconds(runs: Sequence[Run]) -> str:
    return " ".join(f"{made.seconds:.1f}" for made in runs)


def memory_of(clips: Sequence[Path], counts: Sequence[int], scratch: Path, flags: Sequence[str]) -> dict[str, object]:
    """Memory of jobs.ingest over the counts of clips; `growth` is the last peak over the first, `drift` what time does to it."""
    figures: dict[str, object] = {}
    peaks = []
    for count in counts:
        made = run_ingest(link_clips(clips, count, scratch / f"memory-{count}"), scratch, flags, memory=True)
        quarter = max(1, len(made.all) // 4)
        drift = statistics.median(made.all[-quarter:]) / statistics.median(made.all[quarter : 2 * quarter] or made.all)
        peaks.append((max(made.private), max(made.all)))
        private, total = (peak / 1e6 for peak in peaks[-1])
        rate = made.frames / made.seconds
        print(
            f"memory     {count:>6} clips: private {private:6.0f} MB, with shared {total:6.0f} MB at most; the last quarter of "
            f"the time takes {drift:.2f} of the second; {rate:.0f} frames/s with start-up",
            flush=True,
        )
        figures[str(count)] = {"private_peak_mb": private, "all_peak_mb": total, "drift": drift, "samples": len(made.all)}
    figures["growth_private"], figures["growth_all"] = (last / first for first, last in zip(peaks[0], peaks[-1], strict=True))
    print(f"memory     grows by {figures['growth_private']:.2f} (private), {figures['growth_all']:.2f} (with shared)")
    return figures


def link_clips(clips: Sequence[Path], count: int, folder: Path) -> Path:
    """A folder of `count` clips: links to these, each under as many names as it takes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        link = folder / f"clip{number:06d}.mp4"
        if not link.is_symlink():
            link.symlink_to(clips[number % len(clips)].resolve())
    return folder


def rendered_clips(folder: Path, count: int) -> list[Path]:
    """At least `count` clips of a rendered network."""
    people = int(count / CLIPS_A_PERSON) + 4
    render_network(folder, people=people, cameras=8, processes=psutil.cpu_count(), full_frame=False)
    return sorted(folder.glob("clips/*/*.mp4"))


def main(
    clips: Annotated[Path | None, typer.Option(help="Folder with clips (.mp4), at any depth [default: renders its own].")] = None,
    shared: Annotated[Path, typer.Option(help="Folder with real footage; left out if absent.")] = Path("../shared"),
    work: Annotated[Path | None, typer.Option(help="Scratch folder, kept [default: a temporary one].")] = None,
    count: Annotated[int, typer.Option(help="Clips of a comparison.", min=10)] = 500,
    repeats: Annotated[int, typer.Option(help="Repeats of a comparison; medians are shown.", min=1)] = 3,
    backbone: Annotated[str, typer.Option(help="Backbone by name or path.")] = DEFAULT,
    input_size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH, widths of 64 n, in pixels [default: its own].")] = None,
    memory_counts: Annotated[str, typer.Option(help="Clips of the memory runs, with commas; empty for none.")] = "500,5000",
    memory_input_size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the memory runs; small, so they are short.")] = "64x32",
) -> None:
    """Print frames/s, start-up and CPU time of both, and the memory of jobs.ingest."""
    figures: dict[str, object] = {"cores": psutil.cpu_count(), "backbone": backbone, "input_size": input_size}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = work or Path(temporary)
        rendered = sorted(clips.rglob("*.mp4")) if clips else rendered_clips(scratch / "rendered", count)
        flags = ["--backbone", backbone, *(["--input-size", input_size] if input_size else [])]
        print(f"{'clips':<10} {'':<14} {'frames/s':>10} {'a CPU second':>13} {'start-up s':>10}")
        figures["rendered"] = compare("rendered", rendered, count, repeats, scratch, flags)
        real = sorted((shared / "data/vtest_tracklets/clips").glob("*.mp4"))
        if real:
            figures["real"] = compare("real", real, count, repeats, scratch, flags)
        else:
            print(f"real       left out: there are no clips in {shared}/data/vtest_tracklets; name the folder with --shared")
        if memory_counts:
            counts = [int(number) for number in memory_counts.split(",")]
            figures["memory"] = memory_of(rendered, counts, scratch, [*flags, "--input-size", memory_input_size])
    print(json.dumps(figures))


if __name__ == "__main__":
    run(main)
