"""Every notebook runs from its first cell to its last, over data in which there is much to show and over data with little."""

import base64
import csv
import json
import math
import re
import sys
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

import pipeline
from jobs.evaluate import evaluate
from pipeline.footage.tracks import track
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.search.follow import follow
from pipeline.search.partitions import opened_partitions
from pipeline.search.results import write_results
from pipeline.search.targets import gallery_target
from pipeline.settings import FollowSettings, SearchSettings
from pipeline.training.checkpoint_files import metrics_table
from pipeline.training.features import Source
from pipeline.training.initial_head import StartSettings
from pipeline.training.run import TrainingPlan, run_training
from pipeline.training.settings import TrainingSettings
from tests.conftest import add_videos, people_features, threads_of_torch, toy_spec
from tests.footage.made_up import footage_gallery, walk, write_recordings

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LOOK, GOOD, LOST, TRAINING, WHERE = (
    ROOT / "notebooks" / f"{name}.ipynb"
    for name in (
        *("look_at_a_gallery", "how_good_is_my_model", "what_the_prefilter_lost", "how_training_went"),
        "where_did_this_person_go",
    )
)
OPTIONAL = ("camera_id", "start_time", "person_id")


@pytest.fixture(autouse=True)
def kernel_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel imports this checkout and leaves nothing in the home folder."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


def with_parameters(notebook: Path, parameters: dict[str, Any]) -> nbformat.NotebookNode:
    """A notebook whose first cell of code is followed by these parameters; a name that it does not have is an error."""
    content = nbformat.read(notebook, as_version=4)
    (cell,) = (cell for cell in content.cells if "parameters" in cell.metadata.get("tags", ()))
    assert all(re.search(rf"^{name} = ", cell.source, re.MULTILINE) for name in parameters)
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    return content


def run(notebook: Path, **parameters: Any) -> nbformat.NotebookNode:
    """Execute a notebook with its parameters replaced, in a kernel of the running interpreter; nbclient raises on an error."""
    content = with_parameters(notebook, parameters)
    kernel = AsyncKernelManager(kernel_cmd=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    client = NotebookClient(content, km=kernel, timeout=120, resources={"metadata": {"path": str(notebook.parent)}})
    return client.execute(cleanup_kc=True)


def run_here(notebook: Path, **parameters: Any) -> set[str]:
    """Run a notebook's cells in this process, which takes a tenth of the time; returns the ids of the cells that drew.

    Relative paths would be wrong here. A warning is an error.
    """
    names: dict[str, Any] = {"display": print}
    drew = set()
    plt.switch_backend("agg")
    with plt.rc_context(), pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(plt, "show", lambda: [plt.figure(number).canvas.draw() for number in plt.get_fignums()])
        for cell in with_parameters(notebook, parameters).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, f"{notebook.name}:{cell.id}", "exec"), names)  # noqa: S102 - our own file
                drew |= {cell.id} if plt.get_fignums() else set()
                plt.close("all")
    return drew


def search_gallery(gallery: Gallery, targets: list[str], folder: Path, settings: SearchSettings) -> Path:
    """Index the gallery and search it as a person does, which leaves a record; returns the path of results.parquet."""
    build_index(gallery)
    pipeline.search_gallery(gallery, [f"id:{target}" for target in targets], settings).write(str(folder), report=False)
    return folder / "results.parquet"


def figures(notebook: nbformat.NotebookNode) -> dict[str, int]:
    """Cell id -> pictures it drew, for cells that drew some."""
    outputs = {cell.id: cell.get("outputs", []) for cell in notebook.cells}
    drawn = {name: sum("image/png" in output.get("data", {}) for output in of_cell) for name, of_cell in outputs.items()}
    return {name: count for name, count in drawn.items() if count}


def said(notebook: nbformat.NotebookNode) -> str:
    """All that the cells printed to standard output and, as warnings do, to standard error."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return "".join(output.text for output in outputs if output.output_type == "stream")


# ---- look at a gallery


def test_a_gallery_is_drawn(toy_gallery: Gallery, tmp_path: Path) -> None:
    reject = {"uri": "/videos/broken.mp4", "video_id": "broken", "reason": "no_frames", "source_id": "broken"}
    toy_gallery.commit(VIDEOS_SCHEMA.empty_table(), pa.Table.from_pylist([reject], schema=REJECTS_SCHEMA))
    results = search_gallery(toy_gallery, ["v000", "v017"], tmp_path, SearchSettings(top=12))
    ran = run(LOOK, gallery=toy_gallery.location.uri, results=str(results))
    assert sum(figures(ran).values()) > 3
    assert "Warning" not in said(ran)


@pytest.mark.parametrize("top", [12, 1])
def test_a_gallery_is_drawn_without_cameras_times_and_labels(top: int, toy_gallery: Gallery, tmp_path: Path) -> None:
    videos = toy_gallery.snapshot().videos
    for name in OPTIONAL:
        field = videos.schema.field(name)
        videos = videos.set_column(videos.schema.get_field_index(name), field, pa.nulls(len(videos), field.type))
    toy_gallery.commit(videos, REJECTS_SCHEMA.empty_table())  # the newest commit that mentions a video decides on it
    assert all(toy_gallery.snapshot().videos[name].null_count == len(videos) for name in OPTIONAL)
    results = search_gallery(toy_gallery, ["v000"], tmp_path, SearchSettings(top=top))
    assert len(run_here(LOOK, gallery=toy_gallery.location.uri, results=str(results))) > 3


def test_the_leads_that_carry_the_targets_label_are_counted(toy_gallery: Gallery, tmp_path: Path) -> None:
    results = search_gallery(toy_gallery, ["v000"], tmp_path, SearchSettings(top=12))
    ran = run(LOOK, gallery=toy_gallery.location.uri, results=str(results))
    assert {"cameras", "features", "rank-plots", "timeline", "labelled-targets"} <= figures(ran).keys()
    (table,) = (cell.outputs[0].data["text/html"] for cell in ran.cells if cell.id == "labelled-table")
    cells = [part.split("</td>")[0] for part in table.split("<td>")[1:]]
    assert cells == ["p00", "3", "1", "3", "3"]  # the others, and those in the top 1, 5 and 10: separable features


def test_the_hours_of_whole_recordings_are_drawn(toy_gallery: Gallery, tmp_path: Path) -> None:
    gallery = footage_gallery(tmp_path / "footage")
    for camera, seed in (("gate", 1), ("yard", 2)):
        write_recordings(gallery, walk(seed=seed), (30.0,), camera)
    track(gallery)
    target = gallery.snapshot().videos["video_id"][0].as_py()
    results = search_gallery(gallery, [target], tmp_path, SearchSettings(top=3))
    assert "hours" in run_here(LOOK, gallery=gallery.location.uri, results=str(results))
    results = search_gallery(toy_gallery, ["v000"], tmp_path, SearchSettings(top=3))
    assert "hours" not in run_here(LOOK, gallery=toy_gallery.location.uri, results=str(results))


# ---- how good is my model, and what did the prefilter lose


def evaluated(gallery: Gallery, out: Path, **settings: Any) -> None:
    """What jobs.evaluate leaves in `out`, where the gallery lies already, so that nothing is ingested."""
    columns = ["uri", "video_id", "camera_id", "person_id"]
    pq.write_table(gallery.snapshot().videos.select(columns), out / "data.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.evaluate.find_backbone", lambda *_: toy_spec())
        evaluate(str(out / "data.parquet"), str(out), save_scores=True, **settings)


@dataclass(frozen=True)
class Mislabelled:
    """20 people, 4 videos each under two cameras in turn; only v000 shows p05 (videos v020 to v023) under the label p00.

    colours: RGB of the pictures of those videos whose sources exist.
    """

    out: Path
    colours: dict[str, tuple[int, int, int]]


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory: pytest.TempPathFactory) -> Mislabelled:
    out = tmp_path_factory.mktemp("evaluation")
    gallery = Gallery.open_or_create(out / "gallery", GallerySettings(toy_spec(), 10.0, None))
    videos = people_features(20, 4, 24, seed=1)
    videos[0] = ("p00", videos[21][1])  # the very frames of v021
    add_videos(gallery, videos)
    table = gallery.snapshot().videos.sort_by("video_id")
    colours = {"v000": (255, 0, 0), "v001": (0, 255, 0), "v003": (0, 128, 0)}
    colours |= {f"v02{number}": (0, 60 * number, 250) for number in range(4)}
    uris = table["uri"].to_pylist()
    for video_id, colour in colours.items():
        folder = out / "pictures" / video_id
        folder.mkdir(parents=True)
        place = int(video_id[1:])
        for number in range(table["sampled_frames"][place].as_py()):
            cv2.imwrite(str(folder / f"{number:03d}.png"), np.full((16, 8, 3), colour[::-1], np.uint8))
        uris[place] = str(folder)
    gallery.commit(table.set_column(table.schema.get_field_index("uri"), "uri", pa.array(uris)), REJECTS_SCHEMA.empty_table())
    evaluated(gallery, out, false_match_rate=0.01, shortlists="5,20%", bootstrap=100)
    return Mislabelled(out, colours)


def table_of(notebook: nbformat.NotebookNode, cell_id: str) -> list[list[str]]:
    """The rows of the one table that a cell shows, without its index, as text."""
    (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
    (html,) = (output.data["text/html"] for output in cell.outputs if "text/html" in output.get("data", {}))
    return [[part.split("</td>")[0] for part in row.split("<td>")[1:]] for row in html.split("<tr>")[1:]]


def colours_in(notebook: nbformat.NotebookNode, cell_id: str) -> set[tuple[int, ...]]:
    """RGB of all pixels that a cell drew."""
    (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
    (png,) = (output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {}))
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(png), np.uint8), cv2.IMREAD_COLOR)
    return {tuple(pixel) for pixel in np.unique(picture.reshape(-1, 3)[:, ::-1], axis=0).tolist()}


def test_a_wrong_label_is_the_worst_failure_and_its_strips_are_shown(mislabelled: Mislabelled) -> None:
    ran = run(GOOD, evaluation=str(mislabelled.out))
    assert figures(ran) == dict.fromkeys(("cmc", "score-histograms", "calibration", "camera-pairs", "failure-strips"), 1)
    assert "Warning" not in said(ran)
    methods = json.loads((mislabelled.out / "evaluation.json").read_text())["methods"]
    figures_of = [[f"{figures['cmc']['1']:.3f}", f"{figures['mean_ap']:.3f}"] for figures in methods.values()]
    shown_figures = [[row[0][:5], row[4][:5]] for row in table_of(ran, "ranking-table") if row]
    assert shown_figures == figures_of
    failures = [row for row in table_of(ran, "failures-table") if row]
    query, person, _, wrong, its_person = failures[0][:5]
    assert (query, person, its_person) == ("v000", "p00", "p05") and wrong in ("v020", "v021", "v022", "v023")
    assert {row[0] for row in failures} <= {"v000", "v020", "v021", "v022", "v023"}  # the others are well apart
    right = failures[0][7]
    assert right in ("v001", "v003")  # under the other camera
    shown = {mislabelled.colours[video_id] for video_id in ("v000", wrong, right)}
    assert shown <= colours_in(ran, "failure-strips")
    numbers = json.loads((mislabelled.out / "evaluation.json").read_text())["probabilities"]["numbers"]
    assert "from 80 videos of this gallery among each other, nobody labelled" in said(ran)
    assert f"expected calibration error {numbers['ece']:.3f}" in said(ran) and 0 <= numbers["ece"] < 0.05
    assert f"{numbers['matches']} pairs show the same person" in said(ran)


def test_a_baseline_can_be_looked_at_as_well(mislabelled: Mislabelled, capsys: pytest.CaptureFixture[str]) -> None:
    drew = run_here(GOOD, evaluation=str(mislabelled.out), method="mean + cosine")  # its scores do not lie in 0..1
    assert drew == {"cmc", "score-histograms", "camera-pairs", "failure-strips"}
    assert "Searches give probabilities for co-attention only." in capsys.readouterr().out


def test_the_matches_of_a_wrong_label_are_what_the_prefilter_loses(mislabelled: Mislabelled) -> None:
    ran = run(LOST, evaluation=str(mislabelled.out), shortlist="4")
    assert figures(ran).keys() == {"recall", "prefilter-against-full", "lost-videos", "lost-by-length"}
    assert "Warning" not in said(ran)
    lost = {tuple(row[:2]) for row in table_of(ran, "lost-table") if row}
    assert lost == {("v000", "v001"), ("v000", "v003"), ("v001", "v000"), ("v003", "v000")}
    assert "A shortlist of 4 loses 4 of 160 true matches, of 3 of 80 queries" in said(ran)
    evaluation = (mislabelled.out / "evaluation.json").read_text()
    rows = [row for row in table_of(ran, "recall-table") if row]
    searched = [[float(one[name]) for name in ("videos", "top_10", "matches")] for one in json.loads(evaluation)["shortlists"]]
    for videos, top_10, matches in searched:  # searches score a fifth more, near to the best lead
        (alone,) = ([float(cell) for cell in row[:3]] for row in rows if math.ceil(1.2 * float(row[0])) == videos)
        assert alone[1] <= top_10 + 6e-4 and alone[2] <= matches + 6e-4


def test_without_failures_sources_cameras_and_intervals_they_are_sentences(
    toy_gallery: Gallery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = toy_gallery.snapshot().videos
    place = videos.schema.get_field_index("camera_id")
    toy_gallery.commit(
        videos.set_column(place, videos.schema.field(place), pa.nulls(len(videos), pa.string())), REJECTS_SCHEMA.empty_table()
    )
    evaluated(toy_gallery, tmp_path, bootstrap=0, shortlists="")
    capsys.readouterr()
    assert run_here(GOOD, evaluation=str(tmp_path)) == {"cmc", "score-histograms", "camera-pairs"}
    said_here = capsys.readouterr().out
    assert "Searches give no probabilities here: the gallery has 40 videos, and fewer than 64" in said_here
    assert re.search(r"strong: \d+ pairs, \d+ of one person; \d+ first leads, \d+ of them right", said_here)
    assert "0 of 40 queries have a wrong lead at rank 1." in said_here
    assert "There is no failure to show." in said_here
    assert run_here(LOST, evaluation=str(tmp_path), shortlist="100%", longest=7) == {"recall", "prefilter-against-full"}
    said_here = capsys.readouterr().out
    assert "A shortlist of 100% loses 0 of 120 true matches, of 0 of 40 queries" in said_here
    assert "No true match was lost." in said_here and "No video was lost." in said_here


def test_failures_whose_sources_are_gone_are_told_in_a_sentence(
    mislabelled: Mislabelled, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.search.evidence.SourcePictures.__call__", lambda *_: {})
    assert "failure-strips" not in run_here(GOOD, evaluation=str(mislabelled.out))
    assert "cannot be read any more, so they have no pictures: v000" in capsys.readouterr().out


# ---- how training went


def test_a_training_is_drawn_with_the_epoch_that_was_kept(tmp_path: Path) -> None:
    gallery = Gallery.open_or_create(tmp_path / "gallery", GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, people_features(24, 4, 24, seed=1))
    sources = (Source(gallery.location.uri, "0"), Source(gallery.location.uri, "0", hidden=True))
    small = TrainingSettings(people=4, tracklets=2, segment_length=4, batches=3, epochs=3)
    plan = TrainingPlan(sources, str(tmp_path / "run"), start=StartSettings(8, 8), settings=small)
    with threads_of_torch(1):
        training = run_training(plan)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    ran = run(TRAINING, training=str(tmp_path / "run"))
    assert figures(ran) == {"validation": 1, "losses": 1, "rate-and-time": 1}
    assert "Warning" not in said(ran)
    assert said(ran).startswith("3 epochs")
    kept = training.best_epoch
    assert (f"epoch {kept}," in said(ran)) if kept else ("No epoch beat the start point" in said(ran))
    start, best, last, mean = ([float(cell) for cell in row] for row in table_of(ran, "validation-table") if row)
    names = ("clean_rank1", "clean_map", "hidden_rank1", "hidden_map")
    for shown, epoch in ((start, 0), (best, kept), (last, 3)):
        assert shown == pytest.approx([float(rows[epoch][name]) for name in names], abs=6e-4)
    assert mean == pytest.approx([float(rows[0][name.replace("_", "_mean_")]) for name in names], abs=6e-4)


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_training_without_people_held_out_or_just_begun_is_drawn_as_far_as_it_goes(
    epochs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = [{"epoch": 0.0, "seconds": 0.1}]
    history += [{"epoch": float(n), "learning_rate": 1e-4, "loss_all": 2.0 / n, "seconds": 3.0} for n in range(1, epochs + 1)]
    (tmp_path / "metrics.csv").write_text(metrics_table(history))
    assert run_here(TRAINING, training=str(tmp_path)) == ({"losses", "rate-and-time"} if epochs else set())
    said_here = capsys.readouterr().out
    assert said_here.startswith(f"{epochs} epochs")
    assert "the head is that of the last one" in said_here


# ---- where did this person go


def follow_gallery(gallery: Gallery, folder: Path, following: FollowSettings) -> dict[str, str]:
    """Index the gallery and follow v000; returns the notebook's parameters."""
    index = build_index(gallery)
    with opened_partitions(gallery, index, actors=0) as partitions:
        found = follow(gallery, index, partitions, gallery_target(gallery, "v000"), SearchSettings(), following)
    write_results([found], folder)
    return {name: str(folder / f"{name}.parquet") for name in ("path", "results")}


def test_a_path_is_drawn(toy_gallery: Gallery, tmp_path: Path) -> None:
    videos = toy_gallery.snapshot().videos
    starts = videos["start_time"].to_pylist()
    field = videos.schema.field("seen_to")
    ends = pa.array([start + timedelta(seconds=90) for start in starts], field.type)
    videos = videos.set_column(videos.schema.get_field_index("seen_to"), field, ends)
    toy_gallery.commit(videos, REJECTS_SCHEMA.empty_table())
    ran = run(WHERE, **follow_gallery(toy_gallery, tmp_path, FollowSettings(("v001", "v002"))))
    assert figures(ran) == {"path": 1} and "Warning" not in said(ran)
    assert "v000: 3 appearances in 2 cameras, 2 confirmed, 1 target" in said(ran)
    assert [row[3] for row in table_of(ran, "path-table") if row] == ["v000", "v001", "v002"]
    assert "4 pairs of videos show somebody in two places at once." in said(ran)  # each seen from both
    assert not {"v001", "v002"} & {row[0] for row in table_of(ran, "rest") if row}


def test_a_path_without_cameras_and_times_is_a_table(
    toy_gallery: Gallery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = toy_gallery.snapshot().videos
    for name in OPTIONAL:
        field = videos.schema.field(name)
        videos = videos.set_column(videos.schema.get_field_index(name), field, pa.nulls(len(videos), field.type))
    toy_gallery.commit(videos, REJECTS_SCHEMA.empty_table())
    assert run_here(WHERE, **follow_gallery(toy_gallery, tmp_path, FollowSettings(("v001",)))) == set()
    said_here = capsys.readouterr().out
    assert "2 appearances in 0 cameras" in said_here and "there is no path to draw" in said_here
    assert "0 pairs of videos" in said_here


# ---- all of them


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_what_a_run_leaves_in_it(notebook: Path) -> None:
    content = nbformat.read(notebook, as_version=4)
    nbformat.validate(content)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert content.metadata.kernelspec.name == "python3"
