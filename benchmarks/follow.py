"""What following a person is worth: the leads refined by those confirmed, and how pure what joins by itself is.

    python -m benchmarks.follow [--shared ../shared] [--work FOLDER] [--seeds 11,12,13] [--targets 40]

Rendered networks of several seeds (24 people, 5 cameras, 2 visits) and features of 200 real people under 6 cameras. Targets are
spread evenly over the videos. AP of the rest: of all matches but the confirmed ones, which are the first true leads of the plain
search, before and after they are confirmed; an interval is over people. Joining: what joins by itself, purity (the share of it
that is right), the share of matches that joined, of targets whose path mixes people, and IDF1 of the followed sets against the
true ones. Identities: every video is given to one path, each follow begins with a video that no path has yet; IDF1 over tracks by
the best assignment of paths to people. The last line is the same as JSON.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy.optimize import linear_sum_assignment

from benchmarks.cameras import Clips
from jobs.command_line import run
from jobs.demo import step
from pipeline.evaluation.metrics import identity_interval, query_figures
from pipeline.gallery.gallery import Gallery
from pipeline.index.build import build_index
from pipeline.index.heads import find_head
from pipeline.index.versions import Index
from pipeline.search.follow import follow
from pipeline.search.partitions import Partitions, opened_partitions
from pipeline.search.results import SearchResult
from pipeline.search.targets import gallery_target
from pipeline.settings import FollowSettings, IndexSettings, SearchSettings

CONFIRMED = (1, 3)
JOINING = (("strangers", 0), ("strangers", 1), ("strangers", 3))  # by what, and leads confirmed
SIZE = ("--people", "24", "--cameras", "5", "--visits", "2", "--no-full-frame")


class Network:
    """An open gallery of labelled videos."""

    def __init__(self, gallery: Gallery, index: Index, partitions: Partitions) -> None:
        self.gallery, self.index, self.partitions = gallery, index, partitions
        self.videos = gallery.snapshot().videos
        columns = (index.videos[name].to_pylist() for name in ("video_id", "person_id"))
        self.person: dict[str, str] = dict(zip(*columns, strict=True))

    def followed(self, target: str, following: FollowSettings) -> SearchResult:
        settings = SearchSettings(top=len(self.person), evidence=False)
        loaded = gallery_target(self.gallery, target, self.videos)
        return follow(self.gallery, self.index, self.partitions, loaded, settings, following)

    def matches(self, target: str) -> set[str]:
        return {name for name, person in self.person.items() if person == self.person[target] and name != target}

    def spread(self, count: int) -> list[str]:
        """So many of the videos, evenly."""
        ids = list(self.person)
        return [ids[place] for place in np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(int)]


def refined(network: Network, plain: dict[str, SearchResult]) -> dict[str, Any]:
    """AP of the rest before and after 1 and 3 leads are confirmed, over targets with more matches than that.

    plain: the targets' results with nothing confirmed.
    """
    found: dict[str, Any] = {}
    for count in CONFIRMED:
        before, after, people = [], [], []
        for target, result in plain.items():
            true = [lead.video.video_id for lead in result.leads if lead.video.video_id in network.matches(target)]
            if len(true) <= count:
                continue
            confirmed = tuple(true[:count])
            again = network.followed(target, FollowSettings(confirmed, join_by="nobody"))
            before.append(average_precision(result, set(confirmed), set(true)))
            after.append(average_precision(again, set(confirmed), set(true)))
            people.append(network.person[target])
        found[f"confirmed {count}"] = {
            "targets": len(people),
            "before": float(np.mean(before)),
            "after": float(np.mean(after)),
            "gain": identity_interval(np.subtract(after, before), np.array(people)),
        }
    return found


def average_precision(result: SearchResult, without: set[str], true: set[str]) -> float:
    """Of the leads that are not confirmed, in their order."""
    same = [lead.video.video_id in true for lead in result.leads if lead.video.video_id not in without]
    row = np.array([same])
    return float(query_figures(-np.arange(row.shape[1], dtype=float)[None], np.ones_like(row), row).average_precision[0])


def joined(network: Network, plain: dict[str, SearchResult], confirm: int, join_by: str) -> dict[str, float | None]:
    """What joins by itself, with so many of the first true leads confirmed."""
    right = wrong = missed = mixed = started = 0
    for target, before in plain.items():
        true = network.matches(target)
        first = [lead.video.video_id for lead in before.leads if lead.video.video_id in true][:confirm]
        result = network.followed(target, FollowSettings(tuple(first), join_by=join_by)).followed
        mine = {one.video.video_id for one in result.appearances if one.why == "joined"} if result else set()
        true -= set(first)
        right, wrong, missed = right + len(mine & true), wrong + len(mine - true), missed + len(true - mine)
        mixed, started = mixed + bool(mine - true), started + bool(mine)
    return {
        "purity": right / (right + wrong) if right + wrong else None,  # nothing joined
        "joined": right / max(1, right + missed),
        "mixed": mixed / len(plain),
        "started": started / len(plain),
        "idf1": 2 * right / max(1, 2 * right + wrong + missed),
    }


def identities(network: Network, join_by: str) -> dict[str, float]:
    """Paths over the whole gallery, each from the first video that no path has yet."""
    path: dict[str, int] = {}
    for target in network.person:
        if target in path:
            continue
        number = len(set(path.values()))
        result = network.followed(target, FollowSettings(rejected=tuple(path), join_by=join_by)).followed
        path |= dict.fromkeys([one.video.video_id for one in result.appearances] if result else [target], number)
    people = sorted(set(network.person.values()))
    table = np.zeros((max(path.values()) + 1, len(people)), np.int64)
    for name, number in path.items():
        table[number, people.index(network.person[name])] += 1
    rows, columns = linear_sum_assignment(table, maximize=True)
    return {
        "paths": len(table),
        "people": len(people),
        "idf1": float(table[rows, columns].sum() / table.sum()),
        "purity": float(table.max(axis=1).sum() / table.sum()),
    }


def galleries(shared: Path, work: Path, seeds: list[str]) -> Iterator[tuple[str, Gallery]]:
    """The rendered networks, made where they are not there yet, and the real people where their features are."""
    for seed in seeds:
        place, pictures = work / f"network-{seed}-gallery", work / f"network-{seed}"
        if not place.is_dir():
            step("jobs.render", str(pictures), *SIZE, "--seed", seed)
            step("jobs.ingest", str(pictures / "manifest.csv"), "--gallery", str(place))
        yield f"network {seed}", Gallery.open(place)
    features = shared / "data/real_features/six_cameras_200_people.npz"
    if not features.is_file():
        print(f"{features} is not there: features of research-only footage, which this project does not ship", file=sys.stderr)
        return
    place = work / "six"
    yield "six cameras", Gallery.open(place) if place.is_dir() else Clips.read(features).gallery(place)


def compare(
    shared: Annotated[Path, typer.Option(help="Folder with the features of real people.")] = Path("../shared"),
    work: Annotated[Path | None, typer.Option(help="Folder for networks and galleries [default: a temporary one].")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of rendered networks, with commas.")] = "11,12,13",
    targets: Annotated[int, typer.Option(help="Targets a gallery.")] = 40,
    whole: Annotated[bool, typer.Option(help="Also give every video of rendered networks to a path.")] = True,
) -> None:
    """Print what confirmed leads do for the rest, and what joins by itself."""
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, gallery in galleries(shared, work or Path(temporary), [seed for seed in seeds.split(",") if seed]):
            head, calibration = find_head(None, gallery)
            index = build_index(gallery, IndexSettings(), head, calibration=calibration)
            with opened_partitions(gallery, index, actors=0) as partitions:
                network = Network(gallery, index, partitions)
                nobody = FollowSettings(join_by="nobody")
                plain = {target: network.followed(target, nobody) for target in network.spread(targets)}
                found = refined(network, plain)
                for rule, confirm in JOINING:
                    found[f"{rule}, confirmed {confirm}"] = joined(network, plain, confirm, rule)
                if whole and name.startswith("network"):
                    found["identities by strangers"] = identities(network, "strangers")
            table[name] = found
            report(name, found)
    print(json.dumps(table))


def report(name: str, found: dict[str, Any]) -> None:
    """One gallery's figures, for people."""
    print(f"\n{name}")
    for what, figures in found.items():
        words = [f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items()]
        if isinstance(interval := figures.get("gain"), tuple):
            words[-1] = f"gain {interval[0]:+.3f} to {interval[1]:+.3f}"
        print(f"  {what:<26} " + "  ".join(words), flush=True)


if __name__ == "__main__":
    run(compare)
