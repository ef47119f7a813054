"""The rooms of the library: no import goes up or round, and the packages themselves import nothing."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "pipeline").glob("*/__init__.py"))


def test_imports_go_downwards_only() -> None:
    """In a process of its own: it turns the loggers off that are there."""
    program = "import sys; from importlinter import cli; sys.exit(cli.lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("pipeline", exclude_type_checking_imports=True, cache_dir=None)
    arrows = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(list(TopologicalSorter(arrows).static_order())) == len(graph.modules) > 100  # raises CycleError, which names it


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_itself_imports_nothing(package: str) -> None:
    body = ast.parse((ROOT / package).read_text()).body
    assert [ast.dump(node) for node in body if not isinstance(node, ast.Expr)] == []
