"""A gallery of made-up features, clustered by person and camera as real ones are, for runs at the scale of a city.

    python -m benchmarks.synthetic_gallery GALLERY --videos N [--width D] [--cameras N] [--people N] [--like GALLERY]

A frame's feature is the sum of vectors that belong to the network, the person, the person's view in this video, the camera, a
slow drift within the video, and the frame, made a unit vector. Their variances (COMPONENTS) are those found in the features of
643 rendered clips (284 people in 26 cameras, the default backbone), and so is the spectrum of each: directions count less and
less. In a third of the videos one stretch of frames shows something that stands before the camera instead of the person.
--like prints the comparison with a real gallery. Run again after a kill, it makes only the shards that no commit names.
"""

import functools
import hashlib
import json
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import torch
import typer

from jobs.command_line import run
from pipeline.backbone.spec import BackboneSpec
from pipeline.errors import UsageError
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings, feature_matrix, frames_table

# Shares of a unit vector's square. Cosines that follow, and those of the rendered clips: other people in other cameras 0.44
# (0.44), the same person in another camera 0.64 (0.64), other people in one camera 0.50 (0.50), a frame and the next 0.93 (0.93).
COMPONENTS = {"network": 0.437, "person": 0.198, "view": 0.080, "camera": 0.064, "drift": 0.171, "frame": 0.050}
# How the variance of each falls with the direction k: as (1 + k / scale) ** -5.
SPECTRUM = {"person": 85, "view": 85, "camera": 111, "drift": 180, "frame": 180}
LOOKS, LOOK_SHARE = 200, 0.35  # what people wear alike: kinds of clothing, and their share of what makes a person
DRIFT_FRAMES = 10.0  # frames in which the drift falls to 1 / e
UNRULY = 0.3  # spread of how much videos drift, as the standard deviation of a logarithm
OCCLUDERS = 3  # things that stand before one camera
HIDDEN_VIDEOS, HIDDEN_STRETCH = 1 / 3, (0.25, 0.75)
STILL_SEEN = 0.3  # how much of a hidden person shows
DAYS = 30
BLOCK_VIDEOS = 256  # worked on at a time, so that a block stays in the cache
LOOKS_OF, PEOPLE, CAMERAS, VIDEOS = range(4)  # streams of random numbers


@dataclass(frozen=True)
class SyntheticSettings:
    """How many videos, people (None: a tenth of the videos) and cameras; width: D; frames: least and most of a video."""

    videos: int
    people: int | None = None
    cameras: int = 1000
    width: int = 256
    frames: tuple[int, int] = (20, 60)
    shard_videos: int = 8000
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.videos, self.cameras, self.width, self.shard_videos, self.frames[0], self.persons) < 1:
            raise UsageError("videos, people, cameras, width and frames must be at least 1")
        if self.frames[1] < self.frames[0]:
            raise UsageError(f"a video has from {self.frames[0]} to {self.frames[1]} frames: that is none")

    @property
    def persons(self) -> int:
        return max(1, self.videos // 10) if self.people is None else self.people

    @property
    def shards(self) -> int:
        return -(-self.videos // self.shard_videos)

    @property
    def gallery(self) -> GallerySettings:
        """A backbone that is never loaded, of which the hash says what the features were made with."""
        digest = hashlib.sha256(json.dumps([asdict(self), COMPONENTS, SPECTRUM]).encode()).hexdigest()
        spec = BackboneSpec("synthetic", None, digest, 256, 128, "RGB", 255.0, (0.5,) * 3, (0.5,) * 3, self.width)
        return GallerySettings(spec, 10.0, None)


def write_gallery(
    place: str | Path,
    settings: SyntheticSettings,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Gallery:
    """Write the gallery, or what is missing of it: one shard, one commit, in `workers` processes (0: in this one).

    A process holds one shard (2 * D bytes a frame, twice) and the people (8 * D bytes each). Its numbers do not depend on the
    workers nor on a kill. Raises UsageError when other settings made what is there.
    """
    gallery = Gallery.open_or_create(place, settings.gallery)
    there = set(gallery.snapshot().videos["video_id"].to_pylist())
    missing = [shard for shard in range(settings.shards) if video_id(shard * settings.shard_videos) not in there]
    done = settings.shards - len(missing)
    progress(done, settings.shards)
    if workers == 0 or len(missing) < 2:
        for shard in missing:
            write_shard(place, settings, shard)
            progress(done := done + 1, settings.shards)
        return gallery
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for future in as_completed([pool.submit(write_shard, place, settings, shard) for shard in missing]):
            future.result()
            progress(done := done + 1, settings.shards)
    return gallery


def video_id(number: int) -> str:
    return f"v{number:09d}"


def write_shard(place: str | Path, settings: SyntheticSettings, shard: int) -> None:
    """Make one shard's videos and commit them."""
    gallery = Gallery(Gallery.open(place).location, settings.gallery)
    first = shard * settings.shard_videos
    count = min(settings.shard_videos, settings.videos - first)
    rng = np.random.default_rng([settings.seed, VIDEOS, shard])
    frames = rng.integers(settings.frames[0], settings.frames[1] + 1, count)
    person, camera = rng.integers(settings.persons, size=count), rng.integers(settings.cameras, size=count)
    index = np.concatenate([np.arange(n) for n in frames])
    features = np.empty((len(index), settings.width), np.float16)
    ends = np.cumsum(frames)
    for start in range(0, count, BLOCK_VIDEOS):
        block = slice(start, min(start + BLOCK_VIDEOS, count))
        rows = slice(int(ends[block.start] - frames[block.start]), int(ends[block.stop - 1]))
        features[rows] = make_features(settings, rng, frames[block], person[block], camera[block])
    ids = [video_id(first + number) for number in range(count)]
    name = gallery.write_shard(frames_table(ids, frames.tolist(), index, index / 10, features))
    gallery.commit(_video_rows(settings, ids, first, frames, person, camera, name), REJECTS_SCHEMA.empty_table())


def _video_rows(
    settings: SyntheticSettings,
    ids: list[str],
    first: int,
    frames: np.ndarray,
    person: np.ndarray,
    camera: np.ndarray,
    shard: str,
) -> pa.Table:
    count, began = len(ids), datetime(2026, 3, 1, tzinfo=UTC)
    seconds = np.arange(first, first + count) * (DAYS * 86400 / settings.videos)  # in the order of time, as they come in
    start = [began + timedelta(seconds=float(second)) for second in seconds]
    columns = {
        "video_id": ids,
        "uri": [f"synthetic/{name}.mp4" for name in ids],
        "camera_id": [f"cam{number:04d}" for number in camera],
        "start_time": start,
        "fps": np.full(count, 10.0),
        "source_frames": frames,
        "width": np.full(count, 128),
        "height": np.full(count, 256),
        "person_id": [f"p{number:07d}" for number in person],
        "sampled_frames": frames,
        "shard": [shard] * count,
        "first_row": np.cumsum(frames) - frames,
        "backbone": [settings.gallery.backbone.identity] * count,
        "ingested_at": [datetime.now(UTC)] * count,
        "source_id": ids,
        "seen_from": start,
        "seen_to": [at + timedelta(seconds=(int(n) - 1) / 10) for at, n in zip(start, frames, strict=True)],
        "passed_over": np.zeros(count, np.int32),
        "remarks": [[]] * count,
    }
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(count, field.type)
        for field in VIDEOS_SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=VIDEOS_SCHEMA)


@dataclass(frozen=True)
class _Vectors:
    """What a network's features are sums of, float32 [., D]; drift and frame are standard deviations a direction."""

    network: np.ndarray
    person: np.ndarray
    view: np.ndarray
    camera: np.ndarray
    occluder: np.ndarray
    drift: np.ndarray
    frame: np.ndarray


@functools.lru_cache(maxsize=1)
def _vectors(settings: SyntheticSettings) -> _Vectors:
    deviations = {name: _deviations(settings.width, scale, COMPONENTS[name]) for name, scale in SPECTRUM.items()}

    def draw(name: str, count: int, stream: int, *more: int) -> np.ndarray:
        rng = np.random.default_rng([*more, stream])
        return rng.standard_normal((count, settings.width), np.float32) * deviations[name]

    looks = draw("person", LOOKS, LOOKS_OF, settings.seed)
    person, view = (draw(name, settings.persons, PEOPLE, settings.seed, n) for n, name in enumerate(("person", "view")))
    person *= np.float32(np.sqrt(1 - LOOK_SHARE))
    person += np.float32(np.sqrt(LOOK_SHARE)) * looks[np.arange(settings.persons) % LOOKS]
    view *= np.float32(np.sqrt(2))  # seen from the front, the side, the back: by the cosine of an angle
    things = draw("person", settings.cameras * OCCLUDERS, CAMERAS, settings.seed, 1)
    network = np.zeros(settings.width, np.float32)
    network[0] = np.sqrt(COMPONENTS["network"])  # the same for every seed, so that a head for one gallery serves another
    camera = draw("camera", settings.cameras, CAMERAS, settings.seed, 0)
    occluder = things.reshape(settings.cameras, OCCLUDERS, -1) * np.float32(np.sqrt(1.5))
    return _Vectors(network, person, view, camera, occluder, deviations["drift"], deviations["frame"])


def _deviations(width: int, scale: float, share: float) -> np.ndarray:
    """Standard deviations a direction, float32 [D], of squares that add up to `share`; 0 in the network's own, the first."""
    strengths = np.append(0.0, (1 + np.arange(width - 1) / scale) ** -5.0)
    return np.sqrt(share * strengths / strengths.sum()).astype(np.float32)


def make_features(
    settings: SyntheticSettings, rng: np.random.Generator, frames: np.ndarray, person: np.ndarray, camera: np.ndarray
) -> np.ndarray:
    """Unit vectors float16 [sum(frames), D] of some videos. frames, person, camera: int64 [v], of each video."""
    vectors, count = _vectors(settings), len(frames)
    angle = rng.uniform(0, 2 * np.pi, count).astype(np.float32)
    seen = vectors.person[person] + np.cos(angle)[:, None] * vectors.view[person]  # [v, D]
    around = vectors.network + vectors.camera[camera]
    unruly = np.exp(rng.normal(0, UNRULY, count) - UNRULY**2).astype(np.float32)
    thing = around + STILL_SEEN * seen + vectors.occluder[camera, rng.integers(OCCLUDERS, size=count)]
    owner = np.repeat(np.arange(count), frames)
    drift = _normal(rng, len(owner), settings.width)
    _correlate(drift, frames, np.float32(np.exp(-1 / DRIFT_FRAMES)))
    drift *= vectors.drift
    noise = _normal(rng, len(owner), settings.width)
    noise *= vectors.frame
    drift += noise
    drift *= unruly[owner, None]
    hidden = _hidden_frames(rng, frames)
    fixed = np.concatenate([around + seen, thing])  # [2 v, D]
    drift += fixed[owner + count * hidden]
    drift /= np.sqrt(np.einsum("nd,nd->n", drift, drift))[:, None]
    return torch.from_numpy(drift).half().numpy()


def _normal(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Standard normal numbers float32; torch's are twice as fast as numpy's."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return torch.empty(rows, width).normal_(generator=generator).numpy()


def _correlate(steps: np.ndarray, frames: np.ndarray, kept: np.float32) -> None:
    """Make each video's independent rows a walk of the same variance that keeps `kept` of itself a frame; in place."""
    first, fresh = np.cumsum(frames) - frames, np.sqrt(1 - kept**2)
    order = np.argsort(-frames, kind="stable")  # at every frame, those that go on are the first ones
    state = steps[first[order]]
    for frame in range(1, int(frames.max())):
        alive = int((frames > frame).sum())
        rows = first[order[:alive]] + frame
        state = kept * state[:alive] + fresh * steps[rows]
        steps[rows] = state


def _hidden_frames(rng: np.random.Generator, frames: np.ndarray) -> np.ndarray:
    """bool [sum(frames)]: one stretch in a third of the videos."""
    length = np.round(frames * rng.uniform(*HIDDEN_STRETCH, len(frames))) * (rng.random(len(frames)) < HIDDEN_VIDEOS)
    start = np.floor(rng.random(len(frames)) * (frames - length + 1))
    at = np.concatenate([np.arange(n) for n in frames])
    return (at >= np.repeat(start, frames)) & (at < np.repeat(start + length, frames))


def cosine_statistics(gallery: Gallery, videos: int = 2000, pairs: int = 20_000) -> dict[str, tuple[float, ...]]:
    """Mean, standard deviation, 5th, 95th and 99.9th percentile of the cosines of two frames, by what they have in common.

    Of up to `videos` videos: a frame and the 1st, 8th and 30th after it; the same person in two cameras; other people in
    one camera and in two. Empty where there are no such frames.
    """
    rows = gallery.snapshot().videos
    rng = np.random.default_rng(0)
    rows = rows.take(pa.array(np.sort(_some_people(rng, rows, videos))))
    parts: dict[int, np.ndarray] = {}
    for position, frames in gallery.iter_videos(rows):
        features = feature_matrix(frames).astype(np.float32)
        parts[position] = features / np.linalg.norm(features, axis=1, keepdims=True)
    found: dict[str, np.ndarray] = {}
    for lag in (1, 8, 30):
        found[f"{lag} frames on"] = np.concatenate([(part[lag:] * part[:-lag]).sum(axis=1) for part in parts.values()])
    person, camera = (np.unique(np.asarray(rows[name].to_pylist(), np.str_), return_inverse=True)[1] for name in _LABELS)
    left, right = rng.integers(len(rows), size=(2, 40 * pairs))
    same = np.argsort(person, kind="stable")  # neighbours in this order are often the same person
    left, right = np.concatenate([left, same[:-1], same[:-2]]), np.concatenate([right, same[1:], same[2:]])
    for words, mine, ours in (
        ("same person, other camera", True, False),
        ("other person, same camera", False, True),
        ("other person, other camera", False, False),
    ):
        fit = (left != right) & ((person[left] == person[right]) == mine) & ((camera[left] == camera[right]) == ours)
        chosen = rng.permutation(np.flatnonzero(fit))[:pairs]
        found[words] = np.array(
            [
                parts[a][rng.integers(len(parts[a]))] @ parts[b][rng.integers(len(parts[b]))]
                for a, b in zip(left[chosen], right[chosen], strict=True)
            ]
        )
    return {
        words: (float(x.mean()), float(x.std()), *map(float, np.quantile(x, (0.05, 0.95, 0.999))))
        for words, x in found.items()
        if len(x)
    }


_LABELS = ("person_id", "camera_id")


def _some_people(rng: np.random.Generator, videos: pa.Table, count: int) -> np.ndarray:
    """Rows of about `count` videos: all of some people, so that there are pairs of the same person."""
    if len(videos) <= count:
        return np.arange(len(videos))
    _, person = np.unique(np.asarray(videos["person_id"].to_pylist(), np.str_), return_inverse=True)
    order = rng.permutation(person.max() + 1)[person]
    return np.argsort(order, kind="stable")[:count]


def comparison(mine: dict[str, tuple[float, ...]], real: dict[str, tuple[float, ...]]) -> str:
    """A table of two `cosine_statistics`."""
    lines = [f"{'cosine of two frames':<28}{'synthetic: mean, spread, 5, 95, 99.9 %':<42}real"]
    for words in {**mine, **real}:
        cells = ["  ".join(f"{x:.3f}" for x in side[words]) if words in side else "-" for side in (mine, real)]
        lines.append(f"{words:<28}{cells[0]:<42}{cells[1]}")
    return "\n".join(lines)


def synthetic_gallery(
    gallery: Annotated[str, typer.Argument(help="Folder of the gallery to write.")],
    videos: Annotated[int, typer.Option(help="How many videos.")],
    width: Annotated[int, typer.Option(help="Width of a frame feature (D).")] = SyntheticSettings.width,
    cameras: Annotated[int, typer.Option(help="How many cameras.")] = SyntheticSettings.cameras,
    people: Annotated[int | None, typer.Option(help="How many people [default: a tenth of the videos].")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    like: Annotated[str | None, typer.Option(help="A gallery of real features to compare with.")] = None,
) -> None:
    """Write a gallery of made-up features; go on where an earlier run was stopped."""
    settings = replace(SyntheticSettings(videos, people, cameras, width), seed=seed)
    written = write_gallery(gallery, settings, workers, show)
    if like is not None:
        print(comparison(cosine_statistics(written), cosine_statistics(Gallery.open(like))))


def show(done: int, total: int) -> None:
    """One line on stderr: shards done."""
    print(f"\r{done} of {total} shards", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(synthetic_gallery)
