"""Frames of people out of candidate videos: some of each candidate, evenly spaced, kept on disk in order of decoding.

people-0000.npy    uint8 [n, 256, 128, 3], RGB, of about CHUNK frames
people-0000.json   its candidates in order, and the source that comes next; written first, so that the .npy says both are there
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.catalog.inputs import Catalog, candidate_id
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Chunk, Rejected
from pipeline.errors import PipelineError
from pipeline.storage.location import resolve
from pipeline.training.features import is_held_out

CHUNK = 2000  # frames, about 200 MB


@dataclass(frozen=True)
class Candidate:
    """One candidate and how many frames of it were kept. data: which of the catalogs it is from."""

    candidate_id: str
    person_id: str | None
    data: int
    frames: int


@dataclass
class People:
    """The kept frames. candidates: in the order of the frames; rejected: reason -> candidates or sources that gave none."""

    candidates: list[Candidate] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    chunks: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chunk_starts = np.cumsum([0, *(len(chunk) for chunk in self.chunks)])
        self.starts = np.cumsum([0, *(candidate.frames for candidate in self.candidates)])

    def frame(self, candidate: int, number: int) -> np.ndarray:
        """Frame 0, 1, ... of a candidate: uint8 [256, 128, 3], RGB."""
        row = int(self.starts[candidate]) + number
        chunk = int(np.searchsorted(self.chunk_starts, row, side="right")) - 1
        return self.chunks[chunk][row - int(self.chunk_starts[chunk])]

    def split(self, held_out_share: float) -> tuple[list[int], list[int]]:
        """(candidates to learn from, candidates held out), by their place: see `is_held_out`."""
        parts: tuple[list[int], list[int]] = [], []
        for place, candidate in enumerate(self.candidates):
            parts[is_held_out(candidate.person_id, held_out_share)].append(place)
        return parts


def gather_people(
    catalogs: Sequence[Catalog],
    folder: Path,
    sampling: Sampling,
    frames: int,
    report: Callable[[int, int, int], None] = lambda done, total, kept: None,
) -> People:
    """Decode every source of the catalogs and keep at most `frames` frames of each candidate in a local folder.

    Goes on where an earlier call was killed. report: called with (sources done, sources, frames kept). Raises PipelineError when
    no source gives any frame. Memory: twice `frames` of every track of one source, and a chunk.
    """
    sources = [(data, row) for data, catalog in enumerate(catalogs) for row in catalog.table.to_pylist()]
    folder.mkdir(parents=True, exist_ok=True)
    infos = _read_infos(folder)
    done = infos[-1]["next"] if infos else 0
    kept = sum(candidate["frames"] for info in infos for candidate in info["candidates"])
    chunk = _Chunk(folder, len(infos))
    endpoints = tuple({endpoint for catalog in catalogs for endpoint in catalog.reach.endpoints})
    with Decoder(replace(sampling, endpoints=endpoints)) as decoder:
        for number in range(done, len(sources)):
            data, row = sources[number]
            for reason, candidate, images in _read_source(decoder, row, frames):
                if reason is None:
                    chunk.candidates.append(Candidate(candidate, row["person_id"], data, len(images)))
                    chunk.frames += images
                    kept += len(images)
                else:
                    chunk.rejected[reason] += 1
            if len(chunk.frames) >= CHUNK or number + 1 == len(sources):
                infos.append(chunk.write(number + 1))
                chunk = _Chunk(folder, len(infos))
            report(number + 1, len(sources), kept)
    people = People(
        [Candidate(**candidate) for info in infos for candidate in info["candidates"]],
        Counter([reason for info in infos for reason, n in info["rejected"].items() for _ in range(n)]),
        [np.load(folder / f"people-{number:04d}.npy", mmap_mode="r") for number in range(len(infos))],
    )
    if not people.candidates:
        reasons = ", ".join(f"{n} {reason}" for reason, n in people.rejected.most_common())
        raise PipelineError(f"none of {len(sources)} videos gives a frame to learn from ({reasons})")
    return people


def _read_source(decoder: Decoder, row: dict[str, Any], frames: int) -> list[tuple[str | None, str, list[np.ndarray]]]:
    """(reject reason or None, candidate id, kept frames) of every candidate in one source."""
    if row["reject_reason"] is not None:
        return [(row["reject_reason"], row["source_id"], [])]
    kept: dict[int | None, EvenlySpaced] = {}
    results: list[tuple[str | None, str, list[np.ndarray]]] = []
    for event in decoder.events(row["uri"], row["boxes_uri"], row["frame_rate"]):
        if isinstance(event, Rejected):
            if event.track is None:  # it spoils the source: what came before may be torn
                return [(event.reason, row["source_id"], [])]
            kept.pop(event.track, None)
            results.append((event.reason, candidate_id(row["source_id"], event.track), []))
        elif isinstance(event, Chunk):
            collected = kept.setdefault(event.track, EvenlySpaced(frames))
            for frame in event.frames:
                collected.add(frame)
    for track in sorted(kept, key=lambda track: -1 if track is None else track):
        name = row["source_id"] if track is None else candidate_id(row["source_id"], track)
        results.append((None, name, kept[track].chosen()))
    return results


class EvenlySpaced:
    """Keeps `count` evenly spaced items of a stream whose length is not known, with at most twice as many in memory."""

    def __init__(self, count: int) -> None:
        self.count, self.step, self.seen = count, 1, 0
        self.kept: list[Any] = []

    def add(self, item: Any) -> None:
        if self.seen % self.step == 0:
            self.kept.append(item)
        self.seen += 1
        if len(self.kept) > 2 * self.count:
            self.kept, self.step = self.kept[::2], 2 * self.step

    def chosen(self) -> list[Any]:
        places = np.linspace(0, len(self.kept) - 1, min(self.count, len(self.kept)))
        return [self.kept[round(place)] for place in places.tolist()]


@dataclass
class _Chunk:
    folder: Path
    number: int
    candidates: list[Candidate] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    frames: list[np.ndarray] = field(default_factory=list)

    def write(self, next_source: int) -> dict[str, Any]:
        info: dict[str, Any] = {
            "next": next_source,
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "rejected": dict(self.rejected),
        }
        name = f"people-{self.number:04d}"
        frames = np.stack(self.frames) if self.frames else np.empty((0, 256, 128, 3), np.uint8)
        resolve(self.folder / f"{name}.json").write_atomically(json.dumps(info).encode())
        resolve(self.folder / f"{name}.npy").write_atomically(lambda file: np.lib.format.write_array(file, frames))
        return info


def _read_infos(folder: Path) -> list[dict[str, Any]]:
    infos: list[dict[str, Any]] = []
    while (folder / f"people-{len(infos):04d}.npy").exists():
        infos.append(json.loads((folder / f"people-{len(infos):04d}.json").read_text()))
    return infos
