"""Indexes in object stores: what a search fetches of them, what stays on this machine, and when it goes."""

import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index import cached_files
from pipeline.index.build import build_index
from pipeline.index.cached_files import PartialFile, cached_folder, local_files, sweep
from pipeline.index.version_files import index_versions
from pipeline.index.versions import Index, open_index
from pipeline.retention.compact import compact
from pipeline.retention.forget import Selection, forget
from pipeline.scoring import pair_kernel
from pipeline.search.partitions import opened_partitions
from pipeline.search.results import SearchResult
from pipeline.search.search import search
from pipeline.search.targets import gallery_target
from pipeline.settings import IndexSettings, SearchSettings
from pipeline.storage.hashing import sha256
from pipeline.storage.location import resolve
from tests.conftest import add_videos, people_features, toy_spec
from tests.faulty_store import FaultyStore

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = SearchSettings(top=3, shortlist=3, shortlist_share=0, patience=None)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(cached_files, "_root", lambda: folder)
    return folder


def in_bucket(store: FaultyStore, name: str) -> Gallery:
    """40 videos in a bucket, in an index of 5 partitions."""
    place = f"s3://bucket/{name}?endpoint_override={store.endpoint}&region=us-east-1"
    gallery = Gallery.open_or_create(place, GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, people_features(10, 4, 24, seed=1), videos_a_shard=20)
    build_index(gallery, IndexSettings(partition_videos=9))
    return gallery


@pytest.fixture(scope="module")
def unchanged(store: FaultyStore) -> Gallery:
    """`in_bucket`, for tests that change nothing."""
    return in_bucket(store, "unchanged")


@pytest.fixture
def remote(unchanged: Gallery, cache: Path) -> Gallery:
    """`unchanged`, of which nothing is cached."""
    return unchanged


@pytest.fixture
def changing(store: FaultyStore, cache: Path, request: pytest.FixtureRequest) -> Gallery:
    """`in_bucket`, for one test."""
    return in_bucket(store, str(abs(hash(request.node.name))))


def found(gallery: Gallery, settings: SearchSettings = FEW) -> SearchResult:
    """A search as a process of its own makes it."""
    index = open_index(gallery)
    with opened_partitions(gallery, index, actors=0) as partitions:
        return search(gallery, index, partitions, gallery_target(gallery, "v005"), settings)


def leads(result: SearchResult) -> list[tuple[str, float, object]]:
    return [(lead.video.video_id, lead.score, lead.best_pairs) for lead in result.leads]


def fetched(store: FaultyStore, work: Callable[[], object]) -> tuple[int, int]:
    """(requests, bytes) of the index that some work asks the store for, listings included; not what it asks of the gallery."""
    store.sent.clear()
    store.asked.clear()
    work()
    return tuple(sum(n for path, n in counts.items() if "index" in path) for counts in (store.asked, store.sent))


def size_of(gallery: Gallery) -> int:
    return sum(info.size for _, info in gallery.location.join("index").infos(recursive=True))


def cached_of(gallery: Gallery, video_id: str) -> list[Path]:
    """Cached files that are features of a video, or stand beside some."""
    index = open_index(gallery)
    part = next(n for n in range(5) if video_id in index.partition_videos(n)["video_id"].to_pylist())
    return list(cached_folder(index.partition_location(part)).iterdir())


def test_a_second_search_fetches_next_to_nothing_and_finds_the_same(remote: Gallery, store: FaultyStore, cache: Path) -> None:
    first, second = [], []
    requests, content = fetched(store, lambda: first.append(found(remote)))
    again, anew = fetched(store, lambda: second.append(found(remote)))
    assert leads(first[0]) == leads(second[0])
    assert requests > 60 and content > 0.5 * size_of(remote)
    assert again <= 4 and anew < 5_000  # which versions there are
    everything = fetched(store, lambda: found(remote, SearchSettings(top=99, exact=True)))
    assert everything[0] <= 4


def opened_after_an_addition(
    gallery: Gallery, store: FaultyStore, damage: Callable[[Path], None]
) -> tuple[Index, set[str], set[str]]:
    """An index with more videos, opened where the one before is cached: it, the files that both have, and what was fetched."""
    before = open_index(gallery)
    add_videos(gallery, people_features(2, 2, 24, seed=9), first=40)
    version = build_index(gallery, base=before).version
    here, there = (cached_folder(gallery.location.join("index", name)) for name in (version, before.version))
    shutil.rmtree(here, ignore_errors=True)  # on this machine the new one was opened when it was made
    damage(there)
    store.sent.clear()
    after = open_index(gallery)
    assert after.version == version
    new = after.manifest["files"]
    for name, entry in new.items():
        content = (here / name).read_bytes()
        assert len(content) == entry["bytes"] and sha256(content) == entry["sha256"]
    of_version = {path.partition(f"/index/{version}/")[2].partition("?")[0] for path, size in store.sent.items() if size}
    both = {name for name, entry in new.items() if before.manifest["files"].get(name) == entry}
    return after, both, of_version - {"", "manifest.json"}


def test_what_a_new_version_has_in_common_with_an_earlier_one_is_not_fetched(changing: Gallery, store: FaultyStore) -> None:
    after, both, came = opened_after_an_addition(changing, store, lambda folder: None)
    assert {"cohort/means.npy", "cameras/maps.npy"} <= both
    assert came == after.manifest["files"].keys() - both


def flipped(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def without_sense(path: Path) -> None:
    path.write_bytes(b"{")


def of_another_kind(path: Path) -> None:
    path.write_bytes(b'{"files": []}')


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("cohort/means.npy", flipped),
        ("cohort/means.npy", Path.unlink),
        ("manifest.json", without_sense),
        ("manifest.json", of_another_kind),
    ],
    ids=["a file with another bit", "a file that was swept", "a manifest without sense", "a manifest of another kind"],
)
def test_what_an_earlier_version_s_cache_cannot_give_comes_from_the_store(
    changing: Gallery, store: FaultyStore, name: str, how: Callable[[Path], None]
) -> None:
    after, both, came = opened_after_an_addition(changing, store, lambda folder: how(folder / name))
    lost = both if name == "manifest.json" else {name}
    assert came == after.manifest["files"].keys() - both | lost


def test_tables_of_videos_are_mapped_so_that_processes_share_them(remote: Gallery, cache: Path) -> None:
    index = open_index(remote)
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(cache) in line}
    tables = {str(cached_folder(index.partition_location(number)) / "videos.arrow") for number in range(5)}
    assert tables <= mapped and index.videos.get_total_buffer_size() > 0


def test_leads_and_evidence_are_those_of_a_local_index(remote: Gallery, tmp_path: Path) -> None:
    for file in remote.location.list(recursive=True):
        resolve(tmp_path / "local" / file.path[len(remote.location.path) + 1 :]).write_atomically(file.read_bytes())
    local = Gallery.open(tmp_path / "local")
    for settings in (FEW, SearchSettings(top=99, exact=True)):
        assert leads(found(remote, settings)) == leads(found(local, settings))


def test_without_a_kernel_rows_are_there_too(remote: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    with_kernel = found(remote)
    monkeypatch.setattr(pair_kernel, "available", lambda: False)
    without = found(remote)
    assert [lead.video.video_id for lead in without.leads] == [lead.video.video_id for lead in with_kernel.leads]


def test_of_rows_only_blocks_that_are_needed_are_fetched(store: FaultyStore, cache: Path) -> None:
    place = resolve(f"s3://bucket/index/partitions/rows?endpoint_override={store.endpoint}&region=us-east-1")
    content = np.random.default_rng(3).bytes(10 * cached_files.BLOCK + 77)
    place.join("rows.npy").write_atomically(content)
    file = PartialFile(place.join("rows.npy"), {"bytes": len(content)}, cached_folder(place))
    block = cached_files.BLOCK

    def held() -> bytes:
        return Path(file.here.path).read_bytes()[: len(content)]

    def asked(*ranges: tuple[int, int]) -> tuple[int, int]:
        store.sent.clear()
        store.asked.clear()
        first, end = np.array(ranges, np.int64).T
        file.need(first, end)
        return sum(store.asked.values()), sum(store.sent.values())

    assert asked((3 * block + 5, 3 * block + 6)) == (1, block)
    assert held()[3 * block : 4 * block] == content[3 * block : 4 * block] and held()[5 * block : 6 * block] == bytes(block)
    assert asked((3 * block, 4 * block), (100, 200)) == (0, 0)
    assert asked((2 * block, 5 * block), (10 * block + 1, len(content))) == (
        3,
        2 * block + 4096,
    )  # 2, 4 and the last, which is short
    again = PartialFile(place.join("rows.npy"), {"bytes": len(content)}, cached_folder(place))
    asked((0, len(content)))
    assert held() == content
    store.asked.clear()
    again.need(np.array([0]), np.array([len(content)]))
    assert not store.asked
    with pytest.raises(PipelineError, match="instead of 5"):
        PartialFile(place.join("rows.npy"), {"bytes": 5}, cached_folder(place.join("other")))


def test_many_that_fetch_at_once_find_what_is_there(store: FaultyStore, cache: Path) -> None:
    place = resolve(f"s3://bucket/index/partitions/many?endpoint_override={store.endpoint}&region=us-east-1")
    content = np.random.default_rng(4).bytes(20 * cached_files.BLOCK)
    place.join("rows.npy").write_atomically(content)
    wrong: list[int] = []

    def read(seed: int) -> None:
        file = PartialFile(place.join("rows.npy"), {"bytes": len(content)}, cached_folder(place))
        for at in np.random.default_rng(seed).integers(0, len(content) - 9, 15):
            file.need(np.array([at]), np.array([at + 9]))
            wrong.append(os.pread(file.descriptor, 9, at) != content[at : at + 9])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 90 and not any(wrong)


def test_of_processes_that_want_the_same_files_one_fetches_them(remote: Gallery, store: FaultyStore) -> None:
    manifest = open_index(remote).manifest
    part = manifest["partitions"][0]
    place = remote.location.join("index", "partitions", part["id"])
    names = {name: entry for name, entry in part["files"].items() if name != "videos.arrow"}  # these are there already

    def fetch() -> None:
        threads = [threading.Thread(target=local_files, args=(place, names)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    requests, content = fetched(store, fetch)
    assert requests <= 2 * len(names) and content == sum(entry["bytes"] for entry in names.values())


def test_a_file_that_is_not_as_the_manifest_says_is_not_kept(remote: Gallery, cache: Path) -> None:
    entry = {"bytes": 3, "sha256": "0" * 64}
    place = remote.location.join("index", "partitions", "0" * 32)
    place.join("band.npy").write_atomically(b"abc")
    with pytest.raises(PipelineError, match=r"band\.npy.* is damaged: its checksum differs"):
        local_files(place, {"band.npy": entry})
    assert {path.name for path in cache.rglob("*") if path.is_file()} == {".lock"}


# what goes


def test_what_was_forgotten_leaves_the_cache_with_its_version(changing: Gallery, cache: Path) -> None:
    found(changing)
    of_v003, of_v039 = cached_of(changing, "v003"), cached_of(changing, "v039")
    assert of_v003 and of_v039
    forget(changing, Selection(("v003",)), "a test")
    compact(changing)
    assert not any(path.exists() for path in of_v003) and all(path.exists() for path in of_v039)


def test_another_machine_s_cache_is_rid_of_it_by_its_next_search(
    changing: Gallery, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(changing)
    held = cached_of(changing, "v003")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(cached_files, "_root", lambda: tmp_path / "elsewhere")
        forget(changing, Selection(("v003",)), "a test")
        compact(changing)
    assert all(path.exists() for path in held)
    found(changing)
    assert not any(path.exists() for path in held)
    kept = {path.name for path in cached_folder(changing.location.join("index", "any")).parent.iterdir()}
    index = open_index(changing)
    assert kept == {*index_versions(changing), *(part["id"] for part in index.manifest["partitions"])}


def test_what_was_used_longest_ago_goes_first_and_what_was_used_lately_stays(cache: Path) -> None:
    now = time.time()
    for name, hours in (("old", 3), ("older", 4), ("newer", 2), ("now", 0)):
        (cache / name).write_bytes(bytes(4096))
        os.utime(cache / name, (now - 3600 * hours,) * 2)
    sweep(2 * 4096)
    assert {path.name for path in cache.iterdir()} == {"newer", "now"}
    sweep(0)
    assert {path.name for path in cache.iterdir()} == {"now"}


def test_the_limit_is_what_the_environment_says(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, days in (("old", 29), ("older", 31)):
        (cache / name).write_bytes(bytes(4096))
        os.utime(cache / name, (time.time() - 86_400 * days,) * 2)
    sweep()
    assert [path.name for path in cache.iterdir()] == ["old"]  # unused for a month, whatever there is room for
    monkeypatch.setenv(cached_files.LIMIT, "1")
    sweep()
    assert not (cache / "old").exists()
    monkeypatch.setenv(cached_files.LIMIT, "a lot")
    with pytest.raises(UsageError, match="COATTENTION_CACHE_BYTES is a number of bytes, not 'a lot'"):
        sweep()


def test_the_cache_is_private_or_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_files, "check_private", lambda folder: None)  # tests run below /tmp, where others may write
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached_files._root.cache_clear()
    folder = cached_files._root()
    assert folder == tmp_path / "co-attention-search" / "index" and stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tmp_path.chmod(0o777)
    cached_files._root.cache_clear()
    assert tmp_path not in cached_files._root().parents
    cached_files._root.cache_clear()
