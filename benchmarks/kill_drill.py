"""At least 50 kills of an ingest on a two-node cluster: python -m benchmarks.kill_drill --work FOLDER [--kills 50] [--minutes 60]

Every run is one line of FOLDER/runs.jsonl; called again, it goes on with the next seed until there are enough kills. A table of
all runs and, as the last line, the same as JSON. Exit code 1 when a run lost, doubled or changed a row, or a reader saw a part.
"""

import json
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.cluster_drills import as_json, ingest_under_kills, undisturbed, write_clips
from tests.conftest import save_toy_backbone
from tests.two_nodes import two_nodes

CLIPS, FRAMES = 60, 120
PLANS = (  # in turn; a run kills in this order, each at a random instant
    ("decode actor", "embed actor", "decoder child", "writer", "embed actor", "decode actor", "decoder child", "embed actor"),
    ("driver", "counter", "driver", "driver", "writer"),
    ("embed actor", "decoder child", "embed actor", "writer", "decoder child", "embed actor", "counter", "embed actor"),
    ("node", "embed actor", "decode actor", "join task"),
    ("head", "embed actor", "decoder child", "node"),
)


def main(
    work: Annotated[Path, typer.Option(help="Folder for clips, galleries and results.")],
    kills: Annotated[int, typer.Option(help="Kills in all, those of earlier calls counted.")] = 50,
    minutes: Annotated[float, typer.Option(help="Begin no further run after this time.")] = 60.0,
) -> None:
    """Kill processes and nodes under an ingest until there were enough."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no cluster is left behind
    results = work / "runs.jsonl"
    clips = write_clips(work / "clips", CLIPS, FRAMES)
    backbone = save_toy_backbone(work / "mean.onnx")
    expected = undisturbed(clips, backbone)
    began = time.monotonic()
    runs = _read(results)
    if _killed(runs) < kills:
        with two_nodes(work / "ray") as cluster:
            while _killed(runs) < kills and time.monotonic() - began < 60 * minutes:
                seed = len(runs)
                gallery = work / f"gallery{seed}"
                shutil.rmtree(gallery, ignore_errors=True)
                gallery.with_name(f"{gallery.name}.log").unlink(missing_ok=True)
                kinds = PLANS[seed % len(PLANS)]
                drill = ingest_under_kills(cluster, kinds, clips, backbone, gallery, expected, seed)
                with results.open("a") as file:
                    print(as_json(drill, clean=drill.clean()), file=file, flush=True)
                what = ", ".join(f"{kill.kind} at {kill.at:.1f} s" for kill in drill.kills)
                print(f"seed {seed}: {what}; {'clean' if drill.clean() else 'NOT CLEAN'}; {drill.seconds:.0f} s", flush=True)
                runs = _read(results)
    table = _table(runs)
    print(f"\n{'kind':<14} {'kills':>5} {'lost':>5} {'doubled':>7} {'changed':>7} {'recovered, median':>18} {'worst':>7}")
    for row in table:
        print(
            f"{row['kind']:<14} {row['kills']:>5} {row['lost']:>5} {row['doubled']:>7} {row['wrong']:>7} "
            f"{row['median_s']:>16.1f} s {row['worst_s']:>5.1f} s"
        )
    seen = sum(len(run["reader_faults"]) for run in runs)
    print(f"{len(runs)} runs, seeds 0 to {len(runs) - 1}; {sum(run['polls'] for run in runs)} reads meanwhile, {seen} faults")
    clean = all(run["clean"] for run in runs)
    total = {"runs": len(runs), "kills": _killed(runs), "polls": sum(run["polls"] for run in runs), "reader_faults": seen}
    print(json.dumps({"benchmark": "kill_drill", "clean": clean, **total, "kinds": table}))
    if not clean:
        raise typer.Exit(1)


def _read(results: Path) -> list[dict[str, Any]]:
    lines = results.read_text().splitlines() if results.exists() else []
    return [json.loads(line) for line in lines]


def _killed(runs: list[dict[str, Any]]) -> int:
    return sum(len(run["kills"]) for run in runs)


def _table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a kind. What a run lost or doubled counts for every kind that it killed."""
    kinds = sorted({kill["kind"] for run in runs for kill in run["kills"]})
    rows = []
    for kind in kinds:
        of_kind = [(run, kill) for run in runs for kill in run["kills"] if kill["kind"] == kind]
        times = [kill["recovered"] for _, kill in of_kind]
        own = {run["seed"]: run for run, _ in of_kind}.values()
        sums = {name: sum(run[name] for run in own) for name in ("lost", "doubled", "wrong")}
        rows.append({"kind": kind, "kills": len(times), **sums, "median_s": statistics.median(times), "worst_s": max(times)})
    return rows


if __name__ == "__main__":
    typer.run(main)
