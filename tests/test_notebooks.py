"""Every notebook runs from its first cell to its last, over a full gallery and over one that knows nothing but its videos."""

import sys
from pathlib import Path

import nbformat
import pyarrow as pa
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from pipeline.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery
from pipeline.index import build_index
from pipeline.results import write_results
from pipeline.search import SearchSettings, opened_partitions, search
from pipeline.targets import gallery_target

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OPTIONAL = ("camera_id", "start_time", "person_id")


@pytest.fixture(autouse=True)
def kernel_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel imports this checkout and leaves nothing in the home folder."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


def run(notebook: Path, gallery: Gallery, results: Path) -> nbformat.NotebookNode:
    """Execute a notebook with its parameters replaced, in a kernel of the running interpreter; nbclient raises on an error."""
    content = nbformat.read(notebook, as_version=4)
    (parameters,) = (cell for cell in content.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = f"gallery = {gallery.location.uri!r}\nresults = {str(results)!r}"
    kernel = AsyncKernelManager(kernel_cmd=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    client = NotebookClient(content, km=kernel, timeout=120, resources={"metadata": {"path": str(notebook.parent)}})
    return client.execute(cleanup_kc=True)


def search_gallery(gallery: Gallery, targets: list[str], folder: Path, settings: SearchSettings) -> Path:
    """Index the gallery and search it; returns the path of results.parquet."""
    index = build_index(gallery)
    with opened_partitions(gallery, index, actors=0) as partitions:
        found = [search(gallery, index, partitions, gallery_target(gallery, target), settings) for target in targets]
    write_results(found, folder)
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


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_draws_its_figures(notebook: Path, toy_gallery: Gallery, tmp_path: Path) -> None:
    reject = {"uri": "/videos/broken.mp4", "video_id": "broken", "reason": "no_frames", "source_id": "broken"}
    toy_gallery.commit(VIDEOS_SCHEMA.empty_table(), pa.Table.from_pylist([reject], schema=REJECTS_SCHEMA))
    results = search_gallery(toy_gallery, ["v000", "v017"], tmp_path, SearchSettings(top=12))
    ran = run(notebook, toy_gallery, results)
    assert sum(figures(ran).values()) > 3
    assert "Warning" not in said(ran)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("top", [12, 1])
def test_a_notebook_runs_without_cameras_times_and_labels(notebook: Path, top: int, toy_gallery: Gallery, tmp_path: Path) -> None:
    videos = toy_gallery.snapshot().videos
    for name in OPTIONAL:
        field = videos.schema.field(name)
        videos = videos.set_column(videos.schema.get_field_index(name), field, pa.nulls(len(videos), field.type))
    toy_gallery.commit(videos, REJECTS_SCHEMA.empty_table())  # the newest commit that mentions a video decides on it
    assert all(toy_gallery.snapshot().videos[name].null_count == len(videos) for name in OPTIONAL)
    ran = run(notebook, toy_gallery, search_gallery(toy_gallery, ["v000"], tmp_path, SearchSettings(top=top)))
    assert sum(figures(ran).values()) > 3
    assert "Warning" not in said(ran)


def test_the_leads_that_carry_the_targets_label_are_counted(toy_gallery: Gallery, tmp_path: Path) -> None:
    results = search_gallery(toy_gallery, ["v000"], tmp_path, SearchSettings(top=12))
    ran = run(ROOT / "notebooks" / "look_at_a_gallery.ipynb", toy_gallery, results)
    assert {"cameras", "features", "rank-plots", "timeline", "labelled-targets"} <= figures(ran).keys()
    (table,) = (cell.outputs[0].data["text/html"] for cell in ran.cells if cell.id == "labelled-table")
    cells = [part.split("</td>")[0] for part in table.split("<td>")[1:]]
    assert cells == ["p00", "3", "1", "3", "3"]  # the others, and those in the top 1, 5 and 10: separable features


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_what_a_run_leaves_in_it(notebook: Path) -> None:
    content = nbformat.read(notebook, as_version=4)
    nbformat.validate(content)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert content.metadata.kernelspec.name == "python3"
