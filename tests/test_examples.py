"""The examples in docstrings are true."""

import doctest
import importlib
import shutil
from pathlib import Path

import pytest

import pipeline
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from tests.conftest import add_videos, people_features, toy_spec

ROOT = Path(pipeline.__file__).parents[1]
WITH_EXAMPLES = [path for path in sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/*.py")]) if ">>> " in path.read_text()]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 made-up videos of 6 people, v000 and on, four of each, indexed."""
    made = Gallery.open_or_create(tmp_path_factory.mktemp("galleries") / "town", GallerySettings(toy_spec(), 10.0, None))
    add_videos(made, people_features(6, 4, 24, seed=1))
    build_index(made)
    return Path(made.location.path)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_of_a_module_are_true(
    path: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "galleries/town" in path.read_text():
        shutil.copytree(request.getfixturevalue("town"), tmp_path / "galleries" / "town")
        monkeypatch.chdir(tmp_path)
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    results = doctest.testmod(module)
    assert results.attempted > 0 and results.failed == 0


def test_the_modules_that_a_newcomer_meets_first_have_examples() -> None:
    names = {path.stem for path in WITH_EXAMPLES}
    first = {
        "segments",
        "time_windows",
        "uris",
        "hashing",
        "sampling",
        "boxes",
        "network",
        "calibration",
        "metrics",
        "open_gallery",
    }
    assert first | {"open_gallery"} <= names
