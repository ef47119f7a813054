"""The examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

import pytest

import pipeline

ROOT = Path(pipeline.__file__).parents[1]
WITH_EXAMPLES = [path for path in sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/*.py")]) if ">>> " in path.read_text()]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_of_a_module_are_true(path: Path) -> None:
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    results = doctest.testmod(module)
    assert results.attempted > 0 and results.failed == 0


def test_the_modules_that_a_newcomer_meets_first_have_examples() -> None:
    names = {path.stem for path in WITH_EXAMPLES}
    first = {"segments", "time_windows", "location", "hashing", "sampling", "boxes", "network", "calibration", "metrics"}
    assert first <= names
