"""Searching by this index beside vector databases on the same features: what is found, time, memory and disk, in one run.

    pip install lancedb qdrant-client
    python -m benchmarks.peers --work FOLDER --videos 100000

The truth is the ten best of an exhaustive co-attention search of a synthetic gallery (benchmarks.synthetic_gallery). The peers
hold what a user would give them: one vector a video, the mean of its segments' mean values in the score's own metric, or those of
all segments (about nine a video), and then they rank by the best for each target segment, summed (MaxSim). They give candidates
and no co-attention, so besides the truth's share in their first ten stands that in their first hundred and thousand: what would
have to be scored to find as much. Every system searches for one target at a time, its index warm; times are medians of the
targets, several times each. Memory is what its process holds at the end beyond what it held before the index was opened, mapped
files too. Qdrant inside a process has no index and looks at everything. The last line is the same as JSON.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import faiss
import numpy as np
import pyarrow as pa
import torch
import typer

from benchmarks.process_figures import in_own_process, machine, memory_of_tree, size_on_disk
from benchmarks.scale import build_step, index_folder, make_head, write_step
from benchmarks.scale_recall import metric_of, recall
from benchmarks.scale_searches import BEST, Plan, ids_of, median, some_targets, timed
from benchmarks.synthetic_gallery import SyntheticSettings
from jobs.command_line import run
from pipeline.errors import UsageError
from pipeline.gallery.gallery import Gallery, feature_matrix
from pipeline.index.partition_files import encode_videos, segment_means
from pipeline.index.versions import Index, open_index
from pipeline.search.partitions import opened_partitions
from pipeline.search.search import search, search_many
from pipeline.search.shortlist import segmented
from pipeline.segments import segment_frames, segment_starts
from pipeline.settings import SearchSettings

DEPTHS = (10, 100, 1000)
SHARES = (0.001, 0.003, 0.01)  # of the videos, that this index scores; the last one is the default from 100,000 videos on
TIMED = 3  # turns of all targets
Search = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # a target's mean [d], its segments [N, d], count -> rows of videos


@torch.inference_mode()
def prepare_step(plan: Plan, folder: str) -> dict[str, Any]:
    """The truth, the targets and the vectors that peers are given, as files in a folder."""
    gallery = Gallery.open(plan.gallery)
    index = open_index(gallery)
    place = Path(folder)
    if (place / "truth.json").exists():
        return {"segments": int(np.load(place / "first.npy")[-1])}
    place.mkdir(parents=True, exist_ok=True)
    targets = some_targets(gallery, index, plan.targets, plan.seed)
    everything = SearchSettings(top=BEST, exact=True, evidence=False)
    with opened_partitions(gallery, index, 0) as partitions:
        truth = [ids_of(result) for result in search_many(gallery, index, partitions, targets, everything)]
    metric = metric_of(index).astype(np.float32)
    queries = [np.ascontiguousarray(segmented(target, index).encoding.encodings.numpy() * metric) for target in targets]
    np.savez(place / "queries.npz", *queries)
    first = segment_vectors(gallery, index, metric, place / "segments.npy")
    np.save(place / "first.npy", first)
    vectors = np.load(place / "segments.npy", mmap_mode="r")
    np.save(place / "videos.npy", np.add.reduceat(vectors, first[:-1]) / np.diff(first)[:, None])
    rows = {name: row for row, name in enumerate(index.videos["video_id"].to_pylist())}
    own = [rows[target.video.video_id] for target in targets]
    (place / "truth.json").write_text(json.dumps({"rows": [[rows[name] for name in found] for found in truth], "own": own}))
    return {"segments": int(first[-1])}


def segment_vectors(gallery: Gallery, index: Index, metric: np.ndarray, file: Path) -> np.ndarray:
    """Write the mean values of all segments, float32 [S, d], videos in the index's order; returns first int64 [V + 1]."""
    length, stride = index.settings.segment_length, index.settings.stride
    videos, cameras = index.videos, index.videos["camera_id"].to_pylist()
    frames = np.asarray(videos["sampled_frames"])
    first = np.concatenate([[0], np.cumsum([len(segment_starts(int(n), length, stride)) for n in frames])])
    out = np.lib.format.open_memmap(file, "w+", np.float32, (int(first[-1]), len(metric)))
    for positions, table in gallery.iter_features(videos):
        _, values = encode_videos(index.heads, feature_matrix(table), frames[positions], [cameras[p] for p in positions])
        begin = np.concatenate([[0], np.cumsum(frames[positions])])
        for position, start in zip(positions, begin, strict=False):
            count = int(frames[position])
            cut = segment_frames(segment_starts(count, length, stride), length, count)
            means = segment_means(values[start : start + count], cut, index.heads.unit_encodings)
            out[first[position] : first[position + 1]] = means * metric
    out.flush()
    return first


def ours(plan: Plan, folder: str, share: float) -> dict[str, Any]:
    """A shortlist of this share of the videos, then co-attention over all segment pairs."""
    gallery = Gallery.open(plan.gallery)
    truth = json.loads(Path(folder, "truth.json").read_text())
    index = open_index(gallery)
    targets = some_targets(gallery, index, plan.targets, plan.seed)
    place = {name: row for row, name in enumerate(index.videos["video_id"].to_pylist())}
    count = max(BEST, round(share * len(index.videos)))
    settings = SearchSettings(top=BEST, shortlist=count, shortlist_share=0, evidence=False)
    gc.collect()
    before = memory_of_tree(os.getpid())["total"]
    with opened_partitions(gallery, index, 0) as partitions:
        found = [[place[name] for name in ids_of(search(gallery, index, partitions, target, settings))] for target in targets]
        runs = [timed(search, gallery, index, partitions, target, settings)[0] for _ in range(TIMED) for target in targets]
        held = memory_of_tree(os.getpid())["total"]
    return {
        "system": f"this index, {share:.1%} scored",
        "depths": {str(BEST): {"seconds": median(runs), "recall": recall(truth["rows"], found)}},
        "memory_bytes": held - before,
        "disk_bytes": size_on_disk(index_folder(gallery)),
        "build_seconds": json.loads(Path(plan.gallery, "build.json").read_text())["build_seconds"],
    }


def faiss_peer(folder: Path, place: Path, kind: str) -> tuple[float, Search]:
    """FAISS over one vector a video, from a file; built where it is absent."""
    vectors = np.load(folder / "videos.npy", mmap_mode="r")
    count, width = vectors.shape
    file, began = place / "index.faiss", time.perf_counter()
    if not file.exists():
        lists = round(4 * count**0.5)
        index = faiss.index_factory(width, "HNSW32,Flat" if kind == "hnsw" else f"IVF{lists},PQ{width // 4}")
        index.train(np.ascontiguousarray(vectors[:: max(1, count // 200_000)]))
        index.add(np.ascontiguousarray(vectors))
        faiss.write_index(index, str(file))
    spent = time.perf_counter() - began
    index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)

    def find(mean: np.ndarray, _: np.ndarray, wanted: int) -> np.ndarray:
        if kind == "hnsw":
            index.hnsw.efSearch = max(64, wanted)
        else:
            index.nprobe = 32
        return index.search(mean[None], wanted)[1][0]

    return spent, find


def lance_peer(folder: Path, place: Path, kind: str) -> tuple[float, Search]:
    """LanceDB: IVF-PQ with its own refining, over one vector a video ("videos") or all of its segments ("segments")."""
    import lancedb

    database = lancedb.connect(place)
    count = len(np.load(folder / "first.npy")) - 1
    began = time.perf_counter()
    if "videos" not in database.table_names():
        schema = next(_lance_batches(folder, kind)).schema
        rows = database.create_table("videos", pa.RecordBatchReader.from_batches(schema, _lance_batches(folder, kind)))
        width = np.load(folder / "videos.npy", mmap_mode="r").shape[1]
        metric = "cosine" if kind == "segments" else "l2"  # of several vectors a row it has no other; these are unit vectors
        rows.create_index(metric, num_partitions=round(count**0.5), num_sub_vectors=width // 4, vector_column_name="vector")
    spent = time.perf_counter() - began
    rows = database.open_table("videos")

    def find(mean: np.ndarray, segments: np.ndarray, wanted: int) -> np.ndarray:
        query = rows.search(segments if kind == "segments" else mean, vector_column_name="vector").nprobes(32).refine_factor(2)
        return np.asarray(query.select(["row"]).limit(wanted).to_arrow()["row"])

    return spent, find


def _lance_batches(folder: Path, kind: str) -> Any:
    vectors = np.load(folder / ("segments.npy" if kind == "segments" else "videos.npy"), mmap_mode="r")
    first, width = np.load(folder / "first.npy"), vectors.shape[1]
    for start in range(0, len(first) - 1, 10_000):
        stop = min(start + 10_000, len(first) - 1)
        if kind == "segments":
            lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors[first[start] : first[stop]].ravel()), width)
            column: pa.Array = pa.ListArray.from_arrays(pa.array(first[start : stop + 1] - first[start], pa.int32()), lists)
        else:
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[start:stop].ravel()), width)
        yield pa.RecordBatch.from_arrays([pa.array(np.arange(start, stop)), column], ["row", "vector"])


def qdrant_peer(folder: Path, place: Path, kind: str) -> tuple[float, Search]:
    """Qdrant inside this process, which has no index: everything is looked at."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(place))
    vectors = np.load(folder / "videos.npy", mmap_mode="r")
    began = time.perf_counter()
    if not client.collection_exists("videos"):
        client.create_collection("videos", models.VectorParams(size=vectors.shape[1], distance=models.Distance.EUCLID))
        for start in range(0, len(vectors), 2000):
            rows = np.arange(start, min(start + 2000, len(vectors)))
            client.upsert("videos", models.Batch(ids=rows.tolist(), vectors=vectors[rows].tolist()))
    spent = time.perf_counter() - began

    def find(mean: np.ndarray, _: np.ndarray, wanted: int) -> np.ndarray:
        return np.array([point.id for point in client.query_points("videos", query=mean.tolist(), limit=wanted).points])

    return spent, find


PEERS: dict[str, tuple[Callable[[Path, Path, str], tuple[float, Search]], str, str | None]] = {
    "FAISS HNSW, videos": (faiss_peer, "hnsw", None),
    "FAISS IVF-PQ, videos": (faiss_peer, "ivfpq", None),
    "LanceDB IVF-PQ, videos": (lance_peer, "videos", "lancedb"),
    "LanceDB IVF-PQ, segments, MaxSim": (lance_peer, "segments", "lancedb"),
    "Qdrant in process, videos, no index": (qdrant_peer, "videos", "qdrant_client"),
}


def peer_step(name: str, folder: str, place: str) -> dict[str, Any]:
    """Build one peer and search it at every depth."""
    opened, kind, _ = PEERS[name]
    Path(place).mkdir(parents=True, exist_ok=True)
    gc.collect()
    before = memory_of_tree(os.getpid())["total"]
    seconds, find = opened(Path(folder), Path(place), kind)
    built = Path(place, "seconds.json")
    if not built.exists():
        built.write_text(json.dumps(seconds))
    truth = json.loads(Path(folder, "truth.json").read_text())
    with np.load(Path(folder, "queries.npz")) as arrays:
        queries = [arrays[f"arr_{number}"] for number in range(len(truth["rows"]))]
    depths = {}
    for depth in DEPTHS:
        asked = [(query.mean(axis=0), query, depth + 1) for query in queries]
        found = [[row for row in find(*one).tolist() if row != own][:depth] for one, own in zip(asked, truth["own"], strict=True)]
        runs = [timed(find, *one)[0] for _ in range(TIMED) for one in asked]
        depths[str(depth)] = {"seconds": median(runs), "recall": recall(truth["rows"], found)}
    held = memory_of_tree(os.getpid())["total"]
    return {
        "system": name,
        "depths": depths,
        "memory_bytes": held - before,
        "disk_bytes": size_on_disk(Path(place)),
        "build_seconds": json.loads(built.read_text()),
    }


def table(results: Sequence[dict[str, Any]], truth: str) -> str:
    """What everybody finds of the truth at each depth, and what it costs."""
    lines = [
        truth,
        f"{'':<38}" + "".join(f"{f'first {depth}':>20}" for depth in DEPTHS) + f"{'memory':>10}{'disk':>10}{'build':>9}",
    ]
    for one in results:
        cells = [one["depths"].get(str(depth)) for depth in DEPTHS]
        words = [f"{cell['recall']:.3f} in {1000 * cell['seconds']:.1f} ms" if cell else "" for cell in cells]
        size = "".join(f"{one[name] / 2**20:>6.0f} MiB" for name in ("memory_bytes", "disk_bytes"))
        lines.append(f"{one['system']:<38}" + "".join(f"{word:>20}" for word in words) + f"{size}{one['build_seconds']:>7.0f} s")
    return "\n".join(lines)


def peers(
    work: Annotated[Path, typer.Option(help="Folder for galleries and indexes; what is finished is used again.")],
    videos: Annotated[int, typer.Option(help="Videos of the synthetic gallery.")] = 100_000,
    targets: Annotated[int, typer.Option(help="Targets, each searched for exhaustively once.")] = 16,
    leave_out: Annotated[list[str] | None, typer.Option(help="A peer whose name holds this; may be repeated.")] = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="A head without training.")] = False,
) -> None:
    """Compare with vector databases on one synthetic gallery, and print a table."""
    work.mkdir(parents=True, exist_ok=True)
    chosen = [name for name in PEERS if not any(word in name for word in leave_out or ())]
    if missing := sorted({module for name in chosen if (module := PEERS[name][2]) and find_spec(module) is None}):
        raise UsageError(f"{' and '.join(missing)} are not installed: pip install them, or name them with --leave-out")
    settings = SyntheticSettings(videos)
    made = in_own_process(make_head, str(work), settings.width, not untrained)
    place = work / f"{videos}-{settings.width}"
    in_own_process(write_step, str(place), settings, None)
    plan = Plan(str(place), made["head"], targets, targets, 0, 0, 0)
    in_own_process(build_step, plan, True, False)
    given = str(work / f"peers-{videos}")
    prepared = in_own_process(prepare_step, plan, given)
    results = [in_own_process(ours, plan, given, share) for share in SHARES]
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        folder = Path(given, "-".join(name.replace(",", "").split()))
        results.append(in_own_process(peer_step, name, given, str(folder)))
    words = f"{videos} videos, {prepared['segments']} segments, {targets} targets; share of the exhaustive ten best in the"
    print(table(results, words))
    print(json.dumps({"machine": machine(), "videos": videos, "results": results}))


if __name__ == "__main__":
    run(peers)
