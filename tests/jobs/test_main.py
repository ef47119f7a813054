"""The one name for all commands, and packages of other people that hide ours."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.main import commands
from tests.decoding.test_video import write_video

ROOT = Path(__file__).parents[2]


def called(*arguments: str, cwd: Path = ROOT, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    code = "from jobs.main import main; main()"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_every_job_is_a_command_and_says_what_it_does() -> None:
    parts = {"__init__", "command_line", "footage_words", "main", "progress", "reject_words", "search_flags"}
    files = {path.stem for path in (ROOT / "jobs").glob("*.py")} - parts
    assert commands().keys() == files and all(commands().values())


def test_without_faiss_or_onnxruntime_one_sentence_says_which_extra_to_install(tmp_path: Path) -> None:
    code = "import jobs.main, sys; jobs.main.find_spec = {'faiss': True}.get; sys.argv = ['resight', 'status']; jobs.main.main()"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert "onnxruntime, which this needs, is not installed" in ended.stderr and "[cpu]" in ended.stderr


def test_a_command_runs_with_its_own_flags_and_exit_codes(tmp_path: Path) -> None:
    listed = called(cwd=tmp_path)
    assert listed.returncode == 0 and "search" in listed.stdout and "Search a gallery" in listed.stdout
    assert "--gallery" in called("status", "--help", cwd=tmp_path).stdout
    refused = called("status", "--gallery", "absent", cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.startswith("error: ") and "is not a gallery" in refused.stderr
    unknown = called("serch", cwd=tmp_path)
    assert unknown.returncode == 2 and "there is no command 'serch'" in unknown.stderr


@pytest.mark.parametrize("content", [None, "", "raise RuntimeError('ran')"])
def test_a_foreign_pipeline_is_one_sentence(tmp_path: Path, content: str | None) -> None:
    """content: of its __init__, None for a folder without one, which Python prefers to nothing that lies behind it."""
    (tmp_path / "pipeline").mkdir()
    if content is not None:
        (tmp_path / "pipeline/__init__.py").write_text(content)
    ended = called("status", "--gallery", "g", path=f"{tmp_path}:{ROOT}")
    if content is None:  # a namespace package gives way to the real one
        assert "is not a gallery" in ended.stderr
    else:
        assert ended.returncode == 1 and ended.stderr.count("\n") == 1
        assert ended.stderr.startswith(f"error: {tmp_path}/pipeline hides the package `pipeline`")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with the wheel, and everything else from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True, cwd=folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv/bin/python"
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (site / "others.pth").write_text(f"{Path(np.__file__).parents[1]}\n")
    return python


@pytest.mark.ray
def test_the_wheel_works_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    def run(*command: str) -> str:
        call = [str(installed), "-P", "-c", "from jobs.main import main; main()", *command]
        ended = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    place = subprocess.run(
        [str(installed), "-P", "-c", "import pipeline; print(pipeline.__file__)"], cwd=tmp_path, capture_output=True, text=True
    )
    assert place.stdout.startswith(str(installed.parents[1]))
    page = Path(place.stdout.strip()).parent / "service/page"
    assert {file.name for file in page.iterdir()} == {file.name for file in (ROOT / "pipeline/service/page").iterdir()}
    (tmp_path / "videos").mkdir()
    for name in ("a", "b", "c"):
        write_video(tmp_path / f"videos/{name}.mp4")
    run("ingest", "videos", "--gallery", "g")
    run("index", "--gallery", "g")
    assert "rank" in run("search", "videos/a.mp4", "--gallery", "g", "--out", "r")
    assert (tmp_path / "r/report.html").stat().st_size > 10_000
