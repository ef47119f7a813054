"""What statistics of cameras are worth: rank-1 and mAP with and without them, on features of real people.

    python -m benchmarks.cameras [--shared ../shared] [--work FOLDER] [--ratios all,0.1]

Every clip is a query; the same person under the same camera is left out. six: 200 people, 6 cameras. two: up to 60 people of each
pair of those cameras that share most, mean over the pairs. few: so many videos of each camera, mean over draws. one: parts of
tracks of one camera, with a stretch of every clip hidden. mixed: plain queries against the same parts, a stretch of which shows
one of 60 other people, as behind a tracker that jumps. Each is a gallery of its own, indexed and scored as jobs.evaluate does.
The last line is the same as JSON.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer

from jobs.command_line import run
from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.errors import UsageError
from pipeline.evaluation.evaluate import EvaluationSettings, evaluate_index
from pipeline.evaluation.judged_pairs import Split, judged_pairs
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings, frames_table
from pipeline.index.build import build_index
from pipeline.index.heads import find_head
from pipeline.search.partitions import opened_partitions
from pipeline.settings import IndexSettings, ScoreSettings

FEW = (3, 5, 12, 30)  # videos of a camera
DRAWS = 5
PAIRS = 5  # of cameras
HIDDEN = ("0", "0.25", "0.5", "0.75")
MIXED = (0.5, 0.75)  # share of a clip's frames that show somebody else
STAND_INS = 60  # people of whom these are, and who are nowhere else
FIGURES = EvaluationSettings(shortlists=("1%", "3%"), bootstrap=0)


@dataclass(frozen=True)
class Clips:
    """Labelled clips as features. features: float16 [F, D]; first: int64 [V + 1]; person, camera: integers [V].

    queries: bool [V], those that are queries only, where the others are candidates only; None where all are both.
    """

    features: np.ndarray
    first: np.ndarray
    person: np.ndarray
    camera: np.ndarray
    queries: np.ndarray | None = None

    @property
    def split(self) -> Split:
        """What is asked of the gallery."""
        ids = [f"clip{row:05d}" for row in range(len(self.person))]
        if self.queries is None:
            return Split(None, None, frozenset(ids))
        asked = tuple(name for name, query in zip(ids, self.queries, strict=True) if query)
        return Split(asked, frozenset(ids) - set(asked), frozenset(ids))

    @classmethod
    def read(cls, path: Path) -> "Clips":
        with np.load(path) as arrays:
            return cls(*(arrays[name] for name in ("features", "first", "person", "camera")))

    def only(self, rows: np.ndarray) -> "Clips":
        """Some of the clips, int64 ascending."""
        frames = np.concatenate([np.arange(self.first[row], self.first[row + 1]) for row in rows])
        first = np.concatenate([[0], np.cumsum(np.diff(self.first)[rows])])
        return Clips(self.features[frames], first, self.person[rows], self.camera[rows])

    def gallery(self, place: Path) -> Gallery:
        """A gallery of the clips at a place where nothing is, with the default backbone's name."""
        gallery = Gallery.open_or_create(place, GallerySettings(find_backbone(DEFAULT), 10.0, None))
        lengths = np.diff(self.first).tolist()
        ids = [f"clip{row:05d}" for row in range(len(lengths))]
        index = np.concatenate([np.arange(length) for length in lengths])
        shard = gallery.write_shard(frames_table(ids, lengths, index, index / 10, self.features))
        rows = [
            {
                "video_id": name,
                "uri": f"/clips/{name}.mp4",
                "source_id": name,
                "camera_id": f"camera{camera}",
                "person_id": f"person{person}",
                "sampled_frames": length,
                "shard": shard,
                "first_row": int(first),
            }
            for name, camera, person, length, first in zip(ids, self.camera, self.person, lengths, self.first[:-1], strict=True)
        ]
        gallery.commit(pa.Table.from_pylist(rows, schema=VIDEOS_SCHEMA), REJECTS_SCHEMA.empty_table())
        return gallery


def sets(folder: Path) -> Iterator[tuple[str, list[Clips]]]:
    """(name, what its figures are the mean over) of all sets."""
    six = Clips.read(folder / "six_cameras_200_people.npz")
    yield "six", [six]
    yield "two", list(camera_pairs(six))
    for count in FEW:
        drawn = [_first_people(six, count, seed) for seed in range(DRAWS)]
        yield f"few {count}", [six.only(rows) for rows in drawn]
    one = [Clips.read(folder / f"one_camera_222_people_hidden_{share}.npz") for share in HIDDEN]
    for share, clips in zip(HIDDEN, one, strict=True):
        yield f"one {share}", [clips]
    for stretch in MIXED:
        yield f"mixed {stretch}", [_mixed(one[0], stretch, seed=0)]


def _mixed(clips: Clips, share: float, seed: int) -> Clips:
    """Every clip of all but STAND_INS people, as it is and with a stretch of its frames of one of these."""
    rng = np.random.default_rng(seed)
    outside = np.isin(clips.person, rng.permutation(np.unique(clips.person))[:STAND_INS])
    plain, others = clips.only(np.flatnonzero(~outside)), clips.only(np.flatnonzero(outside))
    features = plain.features.copy()
    for first, end in zip(plain.first[:-1], plain.first[1:], strict=True):
        stretch = round(share * (end - first))
        begin = first + rng.integers(0, end - first - stretch + 1)
        other = rng.integers(0, len(others.person))
        shown = others.features[others.first[other] : others.first[other + 1]]
        features[begin : begin + stretch] = shown[np.arange(stretch) % len(shown)]
    return Clips(
        np.concatenate([plain.features, features]),
        np.concatenate([plain.first, plain.first[1:] + plain.first[-1]]),
        np.tile(plain.person, 2),
        np.tile(plain.camera, 2),
        np.arange(2 * len(plain.person)) < len(plain.person),
    )


def _first_people(clips: Clips, count: int, seed: int) -> np.ndarray:
    """Rows of `count` clips of each camera, of the first people in a random order, so that these are seen by several cameras."""
    people = np.random.default_rng(seed).permutation(np.unique(clips.person))
    order = np.argsort(np.argsort(people)[np.searchsorted(np.unique(clips.person), clips.person)], kind="stable")
    return np.sort(np.concatenate([order[clips.camera[order] == camera][:count] for camera in np.unique(clips.camera)]))


def camera_pairs(clips: Clips) -> Iterator[Clips]:
    """One clip of each of up to 60 people in both of two cameras, for the pairs of cameras that share most people."""
    seen = {
        camera: {int(clips.person[row]): int(row) for row in np.flatnonzero(clips.camera == camera)}
        for camera in np.unique(clips.camera).tolist()
    }
    pairs = [(a, b, sorted(seen[a].keys() & seen[b].keys())[:60]) for a in seen for b in seen if a < b]
    for a, b, both in sorted(pairs, key=lambda pair: (-len(pair[2]), pair[:2]))[:PAIRS]:
        yield clips.only(np.array(sorted([seen[a][person] for person in both] + [seen[b][person] for person in both])))


def judge(clips: Clips, place: Path, cameras: str, ratio: float | None) -> dict[str, tuple[float, float]]:
    """(rank-1, mAP) of every method, and as "shortlist" the share of the exhaustive ten best that is scored with it, twice."""
    gallery = clips.gallery(place) if not place.exists() else Gallery.open(place)
    head, calibration = find_head(None, gallery)
    index = build_index(gallery, IndexSettings(cameras=cameras), head, calibration=calibration)
    pairs = judged_pairs(index.videos, [clips.split])
    with opened_partitions(gallery, index, actors=0) as partitions:
        judged = evaluate_index(gallery, index, partitions, pairs, ScoreSettings(ratio), FIGURES)
    found = {name: (figures["cmc"][1], figures["mean_ap"]) for name, figures in judged["methods"].items()}
    return found | {f"shortlist {one['size']}": (one["top_10"],) * 2 for one in judged["shortlists"]}


def compare(
    shared: Annotated[Path, typer.Option(help="Folder with the features of real people.")] = Path("../shared"),
    work: Annotated[Path | None, typer.Option(help="Folder for the galleries [default: a temporary one].")] = None,
    ratios: Annotated[str, typer.Option(help="Top shares of pair scores, with commas; all: no share.")] = "all",
) -> None:
    """Print rank-1 / mAP of every method, set and way with cameras."""
    folder = shared / "data/real_features"
    if not folder.is_dir():
        raise UsageError(f"{folder} is not there: these are features of research-only footage, which this project does not ship")
    table: dict[str, dict[str, tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        place = work or Path(temporary)
        for name, members in sets(folder):
            for cameras in ("auto", "ignore"):
                for ratio in (None if share == "all" else float(share) for share in ratios.split(",")):
                    found = [judge(one, place / f"{name}-{i}", cameras, ratio) for i, one in enumerate(members)]
                    for method in found[0]:
                        mean = np.mean([one[method] for one in found], axis=0)
                        key = f"{method}, top {ratio:.0%}" if method == "co-attention" and ratio is not None else method
                        table.setdefault(f"{key}, cameras {cameras}", {})[name] = (float(mean[0]), float(mean[1]))
            print(f"{name}: done", file=sys.stderr)
    names = list(next(iter(table.values())))
    print(f"{'rank-1 / mAP':<52}" + "".join(f"{name:<16}" for name in names))
    for method, row in table.items():
        print(f"{method:<52}" + "".join(f"{f'{row[name][0]:.3f} / {row[name][1]:.3f}':<16}" for name in names))
    print(json.dumps(table))


if __name__ == "__main__":
    run(compare)
