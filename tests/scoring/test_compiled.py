"""A compiled library is this source's, this compiler's, this processor's and this user's, or it is not used."""

import ctypes
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.scoring import compiled

SOURCE = compiled.source("list_scan")

pytestmark = pytest.mark.skipif(
    compiled.library("list_scan") is None, reason=f"no compiled library: {compiled.why_not('list_scan')}"
)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache below the user's own, since pytest's folders lie where everybody may write; no library is open."""
    below = compiled.cache_folder()
    below.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=below) as folder:
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
        compiled._library.cache_clear()
        yield Path(folder)
        compiled._library.cache_clear()


def kept(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*.so"))


def test_a_library_is_compiled_once(cache: Path) -> None:
    assert compiled.library("list_scan") is not None
    (name,) = kept(cache)
    before = next(cache.rglob(name)).stat().st_mtime_ns
    compiled._library.cache_clear()
    assert compiled.library("list_scan") is not None
    assert kept(cache) == [name]
    assert next(cache.rglob(name)).stat().st_mtime_ns == before


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
@pytest.mark.parametrize("place", [".", "co-attention-search", "co-attention-search/kernels"])
@pytest.mark.parametrize("filled", [False, True])
def test_a_cache_is_not_used_where_others_may_write_to_it_or_above_it(cache: Path, place: str, mode: int, filled: bool) -> None:
    (cache / place).mkdir(parents=True, exist_ok=True)
    if filled:
        assert compiled.library("list_scan") is not None
        compiled._library.cache_clear()
    (cache / place).chmod(mode)
    assert compiled.library("list_scan") is None
    assert compiled.why_not("list_scan") == (
        f"others may write to {(cache / place).resolve()}; set XDG_CACHE_HOME to a folder in which only you may write"
    )
    assert len(kept(cache)) == filled


def test_a_link_to_a_cache_where_others_may_write_is_seen_through(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytest's folder lies in /tmp, whose sticky bit is not enough."""
    (cache / "link").symlink_to(tmp_path)
    tmp_path.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "link"))
    assert compiled.library("list_scan") is None
    assert f"others may write to {tmp_path.resolve()}" in compiled.why_not("list_scan")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize("place", [".", "co-attention-search/kernels"])
def test_a_cache_of_another_user_is_not_used(cache: Path, place: str) -> None:
    (cache / place).mkdir(parents=True, exist_ok=True)
    os.chown(cache / place, 4321, -1)
    assert compiled.library("list_scan") is None
    assert "belongs to another user; set XDG_CACHE_HOME" in compiled.why_not("list_scan")
    assert kept(cache) == []


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda file: file.chmod(0o722), "others may write to"),
        (lambda file: (file.rename(file.with_name("elsewhere")), file.symlink_to("elsewhere")), "symbolic links"),
        # A file of its own: this process has the library mapped, and would end with SIGBUS.
        (lambda file: (file.unlink(), file.write_bytes(b"no library")), "file too short"),
    ],
)
def test_a_file_that_is_not_this_user_s_own_library_is_not_opened(
    cache: Path, damage: Callable[[Path], object], told: str
) -> None:
    assert compiled.library("list_scan") is not None
    damage(next(cache.rglob("*.so")))
    compiled._library.cache_clear()
    assert compiled.library("list_scan") is None
    assert told in compiled.why_not("list_scan")


def test_what_is_opened_is_the_file_that_was_checked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file put in its place between the two is not."""
    check, swapped = compiled.check_owned, []

    def check_then_swap(place: Path, found: os.stat_result) -> None:
        check(place, found)
        if place.suffix == ".so":
            (place.parent / "other").write_bytes(b"no library")
            (place.parent / "other").replace(place)
            swapped.append(place)

    monkeypatch.setattr(compiled, "check_owned", check_then_swap)
    found = compiled.library("list_scan")
    assert found is not None and hasattr(found, "scan_lists_8")
    assert [place.read_bytes() for place in swapped] == [b"no library"]


def test_libraries_that_are_opened_by_number_are_not_taken_for_each_other(cache: Path) -> None:
    functions = {"list_scan": "scan_lists_8", "pair_kernel": "lanes_for"}
    found = {name: compiled.library(name) for name in functions}
    assert [[hasattr(library, function) for function in functions.values()] for library in found.values()] == [
        [True, False],
        [False, True],
    ]


def test_a_library_of_another_source_or_other_flags_is_not_used(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / SOURCE.name
    changed.write_text(SOURCE.read_text() + "/* one more line */\n")
    found = {compiled._compiled(source, "native") for source in (SOURCE, changed)}
    monkeypatch.setattr(compiled, "FLAGS", (*compiled.FLAGS, "-g"))
    found.add(compiled._compiled(SOURCE, "native"))
    assert len(found) == 3


@pytest.mark.parametrize(
    "machine",
    [
        pytest.param(
            'for flag; do shift; [ "$flag" = -march=native ] && flag=-march=x86-64; set -- "$@" "$flag"; done',
            marks=pytest.mark.skipif(platform.machine() != "x86_64", reason="this test is about x86-64 processors"),
        ),
        'case "$*" in *--version*) echo "a compiler of tomorrow"; exit;; esac',
    ],
    ids=["processor", "compiler"],
)
def test_a_library_of_another_processor_or_compiler_is_not_used(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    """As where machines that differ share a home: on the other one, the compiler says so."""
    here = compiled._compiled(SOURCE, "native")
    written = here.stat().st_mtime_ns
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    (tmp_path / "cc").write_text(f'#!/bin/sh\n{machine}\nexec {compiler} "$@"\n')
    (tmp_path / "cc").chmod(0o755)
    with monkeypatch.context() as there:
        there.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        other = compiled._compiled(SOURCE, "native")
        assert compiled._compiled(SOURCE, "native") == other
    assert other != here
    assert compiled._compiled(SOURCE, "native") == here
    assert here.stat().st_mtime_ns == written
    assert len(kept(cache)) == 2


def test_functions_refuse_arguments_of_other_types() -> None:
    library = compiled.library("pair_kernel")
    assert library is not None
    lanes = compiled.function(library, "lanes_for", [ctypes.c_int64], ctypes.c_int64)
    with pytest.raises(ctypes.ArgumentError):
        lanes(0.5)
    assert lanes(1) >= 1
