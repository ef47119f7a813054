"""A full disk is one sentence and leaves nothing behind: on a small file system of its own, where this user may mount one."""

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.coattention.head import save_head
from pipeline.coattention.network import Coattention, CoattentionConfig
from pipeline.gallery.gallery import Gallery, frames_table
from pipeline.index.build import build_index
from pipeline.index.versions import open_index
from pipeline.settings import IndexSettings
from pipeline.storage.faults import StorageError
from pipeline.storage.local_writes import new_array
from pipeline.storage.location import resolve
from tests.jobs.commands import ROOT, command

PAGE = 4096


class SmallDisk:
    """A file system in memory that takes so many bytes more than it holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def leave(self, room: int) -> None:
        """From here on there is room for so many bytes."""
        usage = shutil.disk_usage(self.folder)
        size = (usage.used + room) // PAGE * PAGE or PAGE  # 0 would be without a limit
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)

    def files(self) -> dict[str, int]:
        """Sizes of all files."""
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"this user may not mount a small file system: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def gallery(toy_gallery: Gallery, disk: SmallDisk) -> Gallery:
    """The toy gallery on the small disk."""
    shutil.copytree(toy_gallery.location.path, disk.folder / "gallery")
    return Gallery.open(disk.folder / "gallery")


def built_bytes(gallery: Gallery, disk: SmallDisk) -> int:
    """What an index of a copy takes."""
    before = shutil.disk_usage(disk.folder).used
    copy = disk.folder / "copy"
    shutil.copytree(gallery.location.path, copy)
    copied = shutil.disk_usage(disk.folder).used
    build_index(Gallery.open(copy), IndexSettings(8, 4, partition_videos=20))
    took = shutil.disk_usage(disk.folder).used - copied
    shutil.rmtree(copy)
    assert shutil.disk_usage(disk.folder).used == before
    return took


def test_an_index_build_on_a_full_disk_ends_with_a_sentence_and_leaves_whole_partitions_alone(
    gallery: Gallery, disk: SmallDisk
) -> None:
    before, needed = disk.files(), built_bytes(gallery, disk)
    arguments = ["--gallery", gallery.location.path, "--partition-videos", "20"]
    for share in (0, 0.05, 0.3, 0.5, 0.7, 0.95):
        shutil.rmtree(Path(gallery.location.path, "index"), ignore_errors=True)
        disk.leave(int(share * needed))
        ended = command("index", *arguments)
        assert ended.code == 1
        assert ended.sentence.startswith("error: cannot write ")
        assert ended.sentence.endswith("no space is left on the device")
        assert "Traceback" not in ended.err
        left = {name for name in disk.files().keys() - before.keys() if not name.startswith("gallery/index/builds/")}
        assert all(name.startswith("gallery/index/partitions/") for name in left)
        partitions = {name.rpartition("/")[0] for name in left}
        assert partitions == {name.rpartition("/")[0] for name in left if name.endswith("/videos.arrow")}
    disk.leave(2 * needed)
    assert command("index", *arguments).code == 0
    assert len(open_index(gallery).videos) == 40


def test_the_process_of_an_index_build_is_not_killed_by_a_full_disk(gallery: Gallery, disk: SmallDisk) -> None:
    disk.leave(built_bytes(gallery, disk) // 2)
    ended = subprocess.run(
        [sys.executable, "-m", "jobs.index", "--gallery", gallery.location.path], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1].endswith("no space is left on the device")


def _shard(gallery: Gallery) -> None:
    rows = np.arange(20_000)
    features = np.random.default_rng(0).normal(size=(len(rows), 24)).astype(np.float16)
    gallery.write_shard(frames_table(["v"], [len(rows)], rows.astype(np.int32), rows.astype(np.float32), features))


WRITERS: dict[str, Callable[[Gallery], object]] = {
    "shard": _shard,
    "bytes": lambda gallery: gallery.location.join("big").write_atomically(bytes(2 << 20)),
    "array": lambda gallery: gallery.location.join("big").write_atomically(
        lambda sink: np.lib.format.write_array(sink, np.ones(1 << 18))
    ),
    "head": lambda gallery: save_head(
        Coattention(CoattentionConfig(feature_width=512, key_width=256, value_width=256)), gallery.location.path + "/head", {}
    ),
    "map": lambda gallery: new_array(Path(gallery.location.path, "map.npy"), np.uint8, (2 << 20,)),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("room", [0, 65_536])
def test_whatever_is_written_to_a_full_disk_is_whole_or_absent(gallery: Gallery, disk: SmallDisk, writer: str, room: int) -> None:
    torch.manual_seed(0)
    before = disk.files()
    disk.leave(room)
    with pytest.raises(StorageError, match="no space is left on the device") as caught:
        WRITERS[writer](gallery)
    assert caught.value.kind == "no_space"
    assert disk.files() == before


def test_results_and_reports_on_a_full_disk_are_one_sentence(toy_gallery: Gallery, disk: SmallDisk) -> None:
    build_index(toy_gallery, IndexSettings(8, 4))
    disk.leave(PAGE)
    out = disk.folder / "results"
    ended = command("search", "id:v000", "--gallery", toy_gallery.location.path, "--out", str(out))
    assert ended.code == 1
    assert ended.sentence.startswith("error: cannot write ")
    assert "no space is left on the device" in ended.sentence
    assert "Traceback" not in ended.err
    assert disk.files() == {}


def test_an_audit_record_that_cannot_be_written_keeps_a_search_from_being_told(gallery: Gallery, disk: SmallDisk) -> None:
    build_index(gallery, IndexSettings(8, 4))
    before = disk.files()
    disk.leave(0)
    ended = command("search", "id:v000", "--gallery", gallery.location.path)
    assert ended.code == 1
    assert "no space is left on the device" in ended.sentence
    assert "v001" not in ended.out
    assert disk.files() == before


def test_a_map_takes_its_space_before_it_is_written(disk: SmallDisk) -> None:
    array = new_array(disk.folder / "map.npy", np.uint8, (1 << 20,))
    disk.leave(0)
    array[:] = 1  # ends the process where the space was not taken
    with contextlib.closing(resolve(disk.folder / "map.npy").open_input()) as file:
        assert file.read()[-(1 << 20) :] == b"\1" * (1 << 20)


def test_a_partition_whose_folder_cannot_be_synced_is_not_published(
    toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(toy_gallery, IndexSettings(8, 4))
    before = {path for path in Path(toy_gallery.location.path).rglob("*") if path.is_file()}
    real = os.fsync

    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(StorageError, match="does not answer: Input/output error"):
        build_index(toy_gallery, IndexSettings(8, 4))
    assert {path for path in Path(toy_gallery.location.path).rglob("*") if path.is_file()} == before
