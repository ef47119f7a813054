"""The container files against the checkout and the packages."""

import fnmatch
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.cluster.cluster_files import CLUSTER, IMAGES, PINNED, PROJECT, ROOT

each_image = pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, its arguments) of a container file, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", path.read_text(), flags=re.M))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


def in_build_context(source: str) -> bool:
    """Whether .dockerignore, in which the last line that fits decides, lets a path through."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").strip()
        if pattern and not pattern.startswith("#") and (fnmatch.fnmatch(source, pattern) or source.startswith(f"{pattern}/")):
            kept = line.startswith("!")
    return kept


@each_image
def test_a_container_file_copies_what_there_is(path: Path) -> None:
    steps = instructions(path)
    assert steps[0][0] == "FROM" and {name for name, _ in steps} <= {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER"}
    sources = [source for name, rest in steps if name == "COPY" for source in rest.split()[:-1]]
    assert {"pyproject.toml", "constraints.txt", "pipeline", "jobs", "LICENSE", "README.md"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists() and in_build_context(source), source
    assert not in_build_context("tests") and not in_build_context(".git") and not in_build_context(".venv")


@each_image
def test_a_container_file_installs_extras_that_exist_of_one_kind_with_the_constraints(path: Path) -> None:
    (line,) = [rest for name, rest in instructions(path) if name == "RUN" and '".[' in rest]
    extras = set(re.findall(r'"\.\[([\w,]+)\]"', line)[0].split(","))
    assert extras <= set(PROJECT["optional-dependencies"])
    assert extras & {"cpu", "gpu"} == {path.stem}, "cpu and gpu install the same modules"
    copied = {Path(part).name for name, rest in instructions(path) if name == "COPY" for part in rest.split()[:-1]}
    constraints = re.findall(r"--constraint (\S+)", line)
    assert "constraints.txt" in constraints and set(constraints) <= copied


@each_image
def test_a_container_runs_as_a_user_and_has_a_compiler_and_the_python_that_is_asked_for(path: Path) -> None:
    steps = instructions(path)
    (user,) = [rest for name, rest in steps if name == "USER"]
    commands = " ".join(rest for name, rest in steps if name == "RUN")
    assert user == "1000:1000" and "useradd --uid 1000 --gid 1000" in commands
    after = [name for name, _ in steps[[name for name, _ in steps].index("USER") :]]
    assert "RUN" not in after and "COPY" not in after, "what is installed belongs to root"
    packages = re.findall(r"--no-install-recommends ([^&]+)", commands)[0].split()
    assert {"g++", "wget", "rsync", "openssh-client"} <= set(packages)
    assert any(name == "ENV" and "RAY_AUTH_MODE=token" in rest for name, rest in steps)
    base = re.fullmatch(r"python:(\d+)\.(\d+)-slim-bookworm", steps[0][1])
    assert base and (int(base[1]), int(base[2])) >= tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))


def test_the_gpu_pins_are_of_the_gpu_extra() -> None:
    pins = dict(line.split("==") for line in (CLUSTER / "images" / "constraints-gpu.txt").read_text().split())
    wanted = {one.name: one.specifier for one in map(Requirement, PROJECT["optional-dependencies"]["gpu"])}
    assert pins.keys() == wanted.keys() and not pins.keys() & PINNED.keys()
    assert [name for name, allowed in wanted.items() if pins[name] not in allowed] == []


def test_what_the_packages_read_at_run_time_is_installed_with_them() -> None:
    """An image has no checkout: a data file that package-data does not name would be missing only there."""
    listed = subprocess.run(["git", "ls-files", "pipeline", "jobs"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this copy is not a git checkout, so what is tracked is not known")
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    left = []
    for name in listed.stdout.splitlines():
        path = Path(name)
        named = any(fnmatch.fnmatch(path.name, pattern) for pattern in data["*"])
        for package, patterns in data.items():
            folder = package.replace(".", "/") + "/"
            if package != "*" and name.startswith(folder):
                named |= any(ROOT / name in (ROOT / folder).glob(pattern) for pattern in patterns)  # its * does not cross a /
        if path.suffix != ".py" and not named:
            left.append(name)
    assert left == []
