"""Thousands of damaged, forged and misnamed videos against the decoder and a whole ingest; then damage to a gallery's files.

    python -m benchmarks.hostile_drill --count 2000 --seed 7

Each mutant is decoded under a limit of time and memory; what becomes of it, how long it took and what memory the decoder's
process took at most is held to the promises of `tests.mutant_judge.Judge`. Then a share of them goes through jobs.ingest in one
manifest, and each must stand in videos/ or in rejects/ once. Mutants that broke a promise are kept; the seed makes them again.
Last, files of a gallery and its index are damaged one at a time, and a search and a check are asked after each (`tests.damage`).
"""

import collections
import json
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from tests.damage import Damage, Witness, made_up_gallery, try_damage
from tests.mutant_judge import Judge, Outcome, ingest_faults
from tests.mutants import KINDS, SIZE, Mutant, write_mutants, write_sources

LIBRARIES = 300 << 20  # resident bytes of a decoder process before its first video, generously


def drill(
    count: Annotated[int, typer.Option(help="Mutants in all.", min=1)] = 2000,
    seed: Annotated[int, typer.Option(help="What the mutants are drawn from.")] = 7,
    ingested: Annotated[int, typer.Option(help="How many of them go through a whole ingest too.", min=0)] = 300,
    damages: Annotated[int, typer.Option(help="Damages to files of a gallery and its index.", min=0)] = 500,
    time_limit: Annotated[float, typer.Option(help="Seconds without progress after which a video is given up.")] = 20.0,
    memory_limit: Annotated[int, typer.Option(help="MiB that decoding one video may take.")] = 1024,
    decoders: Annotated[int, typer.Option(help="Decoder processes at a time.", min=1)] = 2,
    keep: Annotated[str, typer.Option(help="Folder for mutants that broke a promise.")] = "hostile_failures",
) -> None:
    """Fuzz the decoder and an ingest; exit with 1 when a promise was broken."""
    sampling = Sampling(**SIZE, time_limit=time_limit, memory_limit=memory_limit << 20)
    with tempfile.TemporaryDirectory() as scratch:
        began = time.monotonic()
        sources = write_sources(Path(scratch, "sources"))
        mutants = list(write_mutants(sources, Path(scratch, "mutants"), count, seed))
        took = time.monotonic() - began
        print(
            f"seed {seed}: {len(mutants)} mutants written from {len(sources)} clips in {took:.0f} s", file=sys.stderr, flush=True
        )
        began = time.monotonic()
        with ThreadPoolExecutor(decoders) as pool:
            shares = list(pool.map(lambda share: judged(mutants[share::decoders], sampling), range(decoders)))
        outcomes = [outcome for share in shares for outcome in share]
        decoding = time.monotonic() - began
        broken = [outcome for outcome in outcomes if outcome.faults]
        for outcome in broken:
            kept = keep_mutant(outcome, Path(keep), seed)
            print(f"BROKEN {outcome.mutant.kind}, kept as {kept}: {'; '.join(outcome.faults)}", file=sys.stderr, flush=True)
        chosen = outcomes[:: max(1, count // ingested)][:ingested] if ingested else []
        began = time.monotonic()
        lost = ingest_faults(chosen, Path(scratch, "ingest"), sampling, 300 + 5 * len(chosen)) if chosen else []
        ingesting = time.monotonic() - began
        for fault in lost:
            print(f"BROKEN in the ingest: {fault}", file=sys.stderr, flush=True)
        tried = damage(Path(scratch, "gallery"), damages, seed)
    print_table(outcomes)
    print_damage(tried)
    print(
        f"seed {seed}: {count} decoded in {decoding:.0f} s, {len(chosen)} ingested in {ingesting:.0f} s; limit {memory_limit} MiB"
    )
    faults = [one.fault for one in tried if one.fault]
    for fault in faults:
        print(f"BROKEN by damage: {fault}", file=sys.stderr, flush=True)
    totals = {"count": count, "seed": seed, "ingested": len(chosen), "broken": len(broken), "broken_in_ingest": len(lost)}
    totals |= {"damages": len(tried), "broken_by_damage": len(faults)}
    speeds = {"decode_seconds": round(decoding, 1), "ingest_seconds": round(ingesting, 1)}
    print(json.dumps({**totals, **speeds, "classes": {kind: figures(outcomes, kind) for kind in KINDS}}))
    if broken or lost or faults:
        raise typer.Exit(1)


def judged(mutants: list[Mutant], sampling: Sampling) -> list[Outcome]:
    """The outcomes of mutants, one after another in one decoder."""
    with Judge(Decoder(sampling), 4 * sampling.time_limit, LIBRARIES + sampling.memory_limit) as judge:
        return [judge.outcome(mutant) for mutant in mutants]


def damage(folder: Path, count: int, seed: int) -> list[Damage]:
    """What a search and a check of a made-up gallery say while its files are damaged."""
    if count == 0:
        return []
    witness = Witness()
    try:
        return try_damage(made_up_gallery(folder), witness, count, seed)
    finally:
        witness.pool.shutdown()


def print_damage(tried: list[Damage]) -> None:
    table = Table("file", "damages", "outcomes", "broken")
    for kind in sorted({one.kind for one in tried}):
        own = [one for one in tried if one.kind == kind]
        results = ", ".join(
            f"{number} {result}" for result, number in collections.Counter(one.result for one in own).most_common()
        )
        table.add_row(kind, str(len(own)), results, str(sum(bool(one.fault) for one in own)))
    Console(width=130).print(table)


def keep_mutant(outcome: Outcome, folder: Path, seed: int) -> Path:
    """Copy a mutant to where it outlives the drill."""
    source = outcome.mutant.path
    kept = folder / f"seed{seed}-{source.name}"
    folder.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, kept, symlinks=True, dirs_exist_ok=True)
    elif source.is_file():
        shutil.copy(source, kept)
    if outcome.mutant.boxes is not None:
        shutil.copy(outcome.mutant.boxes, folder / f"seed{seed}-{outcome.mutant.boxes.name}")
    return kept


def figures(outcomes: list[Outcome], kind: str) -> dict[str, object]:
    """Count, outcomes, longest time in seconds and highest peak in MiB of one class."""
    own = [outcome for outcome in outcomes if outcome.mutant.kind == kind]
    results = dict(collections.Counter(outcome.result for outcome in own).most_common())
    worst = round(max((outcome.seconds for outcome in own), default=0), 2)
    return {"count": len(own), "outcomes": results, "worst_s": worst, "peak_mib": max((o.peak for o in own), default=0) >> 20}


def print_table(outcomes: list[Outcome]) -> None:
    table = Table("class", "count", "outcomes", "worst s", "peak MiB", "broken")
    for kind in KINDS:
        row = figures(outcomes, kind)
        results = ", ".join(f"{number} {result}" for result, number in row["outcomes"].items())  # type: ignore[attr-defined]
        broken = sum(bool(outcome.faults) for outcome in outcomes if outcome.mutant.kind == kind)
        table.add_row(kind, str(row["count"]), results, str(row["worst_s"]), str(row["peak_mib"]), str(broken))
    Console(width=130).print(table)


if __name__ == "__main__":
    typer.run(drill)
