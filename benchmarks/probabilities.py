"""Whether probabilities are true: what searches say by the head's calibration and by the gallery's own, against labels.

    python -m benchmarks.probabilities [--shared ../shared] [--work FOLDER] [--seeds 0,1,2] [--demo FOLDER]

Sets: features of real people (six cameras; pairs of two of them; one camera with a stretch of every clip hidden), real
tracklets (vtest, mini_mars), rendered networks of several seeds as jobs.demo makes them, each also with half of every clip
hidden, and, with --demo, the tracks in what `make demo` wrote, whose gallery is indexed anew. Every labelled video is a target;
the same person under the same camera does not count (of vtest: less than 3 s away). For "none of these" the matches of every
other target are left out. ece: expected calibration error at the search's own prior; sum: probabilities by true matches; none:
mean probability of "none of these" less the share of absent people. The last line is the same as JSON.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.cameras import HIDDEN, Clips, camera_pairs
from benchmarks.real_footage import make_gallery, mini_mars, vtest
from jobs.command_line import run
from pipeline.backbone.spec import DEFAULT
from pipeline.catalog.inputs import read_catalog
from pipeline.cluster import connected
from pipeline.coattention.gallery_calibration import GalleryCalibration
from pipeline.decoding.sampling import Sampling
from pipeline.errors import UsageError
from pipeline.evaluation.as_searched import coattention_scores
from pipeline.evaluation.metrics import left_out
from pipeline.evaluation.probabilities import ProbabilityFigures, probability_figures, strength_figures
from pipeline.evaluation.true_boxes import read_truth, shown_by, votes_of_tracks
from pipeline.gallery.gallery import Gallery
from pipeline.index.build import build_index
from pipeline.index.heads import find_head
from pipeline.index.versions import Index
from pipeline.rendering.network import render_network
from pipeline.search.partitions import opened_partitions
from pipeline.search.worth import measure_worth
from pipeline.settings import ScoreSettings
from pipeline.training.occlusion import OcclusionSettings, occlude_catalog

Counts = Callable[[str, str], bool]  # of video ids, query and candidate


@dataclass(frozen=True)
class Judged:
    """A set. counts: which pairs count, None for the field's rule. people: by video id, None where the gallery has labels."""

    name: str
    gallery: Gallery
    counts: Counts | None = None
    people: dict[str, str] | None = None


def sets(shared: Path, work: Path, seeds: list[int], demo: Path | None) -> Iterator[Judged]:
    """All sets, one after another."""
    if demo is not None:
        gallery = Gallery.open(demo / "gallery")
        shown = shown_by(votes_of_tracks(gallery, read_truth(demo / "network/truth.csv")))
        yield Judged("demo", gallery, people={name: str(one[1]) for name, one in shown.items() if one is not None})
    folder = shared / "data/real_features"
    six = Clips.read(folder / "six_cameras_200_people.npz")
    real = {"six": six} | {f"two {number}": clips for number, clips in enumerate(list(camera_pairs(six))[:2])}
    real |= {f"one {share}": Clips.read(folder / f"one_camera_222_people_hidden_{share}.npz") for share in HIDDEN}
    for name, clips in real.items():
        place = work / name.replace(" ", "-")
        yield Judged(name, Gallery.open(place) if place.exists() else clips.gallery(place))
    protocol = vtest(shared)
    yield Judged("vtest", make_gallery(protocol.manifest, work / "vtest", DEFAULT), protocol.counts)
    with tempfile.TemporaryDirectory() as links:
        protocol = mini_mars(shared, Path(links, "tracklets"))
        yield Judged("mini_mars", make_gallery(protocol.manifest, work / "mini_mars", DEFAULT))
    for seed in seeds:
        size: dict[str, Any] = {"people": 24, "cameras": 4, "clips_per_person_and_camera": 2, "seed": seed}
        manifest = render_network(work / f"network-{seed}", **size)
        yield Judged(f"rendered {seed}", make_gallery(manifest, work / f"rendered-{seed}", DEFAULT))
        copies = work / f"hidden-{seed}"
        if not copies.exists():
            occlude_catalog(read_catalog(str(manifest)), copies, OcclusionSettings(0.5, "block", 0), Sampling())
        hidden = make_gallery(copies / "manifest.csv", work / f"rendered-hidden-{seed}", DEFAULT)
        yield Judged(f"rendered {seed}, hidden", hidden)


def judge(judged: Judged) -> dict[str, Any]:
    """Figures by the head's calibration and by the gallery's; words where it supports no numbers. cpu_s: of measuring it."""
    gallery, counts = judged.gallery, judged.counts
    head, calibration = find_head(None, gallery)
    spent = 0.0

    def measure(gallery: Gallery, index: Index) -> GalleryCalibration:
        nonlocal spent
        began = time.process_time()
        measured = measure_worth(gallery, index)
        spent = time.process_time() - began
        return measured

    index = build_index(gallery, head=head, calibration=calibration, measure=measure)
    rows = np.arange(len(index.videos))
    with opened_partitions(gallery, index, actors=0) as partitions:
        scores = coattention_scores(gallery, index, partitions, rows, rows, ScoreSettings().alone)
    ids, persons, cameras = (index.videos[name].to_pylist() for name in ("video_id", "person_id", "camera_id"))
    if judged.people is not None:
        persons = [judged.people.get(name) for name in ids]
    person, camera = (np.unique([name or "" for name in names], return_inverse=True)[1] for names in (persons, cameras))
    known = np.array([name is not None for name in persons])
    same = (person[:, None] == person) & known
    valid = known & known[:, None] & (rows[:, None] != rows)
    if counts is None:
        valid &= ~left_out(same, camera[:, None], camera)
    else:
        valid &= np.array([[counts(q, c) for c in ids] for q in ids])
    of_gallery = index.gallery_calibration
    found: dict[str, Any] = {"videos": len(rows), "cpu_s": round(spent, 2), "before": None, "after": None}
    if index.calibration is not None:
        found["before"] = _figures(probability_figures(scores, valid, same, index.calibration))
    if of_gallery is not None and not of_gallery.why:
        return found | {"after": _figures(probability_figures(scores, valid, same, of_gallery))}
    if of_gallery is not None and of_gallery.mixture is not None:
        words = strength_figures(scores, valid, same, of_gallery)
        found["words"] = {one.word: {"pairs": one.pairs, "right": one.right} for one in words}
    return found | {"why": of_gallery.why if of_gallery else ""}


def _figures(figures: ProbabilityFigures) -> dict[str, float]:
    return {
        "ece": figures.ece,
        "sum": figures.expected / figures.matches,
        "none": figures.none - figures.absent,
        "first": figures.first,
        "first_right": figures.first_right,
    }


def compare(
    shared: Annotated[Path, typer.Option(help="Folder with the real footage and features.")] = Path("../shared"),
    work: Annotated[Path | None, typer.Option(help="Folder for galleries and networks [default: a temporary one].")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of rendered networks, with commas.")] = "0,1,2",
    demo: Annotated[Path | None, typer.Option(help="Folder that `make demo` wrote: its tracks are a set, too.")] = None,
) -> None:
    """Print a line for every set: by the head's calibration, and by the gallery's own."""
    if not (shared / "data").is_dir():
        raise UsageError(f"{shared} has no real footage; name the folder with --shared")
    table = {}
    print(f"{'':<22}{'ece, sum, none, first leads: said / right':<46}by the gallery")
    with tempfile.TemporaryDirectory() if work is None else nullcontext(work) as place, connected():
        for one in sets(shared, Path(place), [int(seed) for seed in seeds.split(",")], demo):
            table[one.name] = found = judge(one)
            after = _cells(found["after"]) if found["after"] else f"words: {found['why']} {json.dumps(found.get('words'))}"
            print(f"{one.name:<22}{_cells(found['before']) if found['before'] else '-':<46}{after}", flush=True)
    print(json.dumps(table))


def _cells(figures: dict[str, float]) -> str:
    leads = f"{figures['first']:.2f} / {figures['first_right']:.2f}"
    return f"{figures['ece']:.3f}  {figures['sum']:5.2f}  {figures['none']:+.2f}  {leads}"


if __name__ == "__main__":
    run(compare)
