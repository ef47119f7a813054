"""The rooms of the library: no import goes up or round, and the packages themselves import nothing."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest
from importlinter import cli

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "pipeline").glob("*/__init__.py"))


def test_imports_go_downwards_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.lint_imports(no_cache=True) == cli.EXIT_STATUS_SUCCESS


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("pipeline", exclude_type_checking_imports=True, cache_dir=None)
    arrows = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(list(TopologicalSorter(arrows).static_order())) == len(graph.modules) > 100  # raises CycleError, which names it


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_itself_imports_nothing(package: str) -> None:
    body = ast.parse((ROOT / package).read_text()).body
    assert [ast.dump(node) for node in body if not isinstance(node, ast.Expr)] == []
