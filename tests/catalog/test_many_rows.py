"""Catalogs of any number of rows say the same, whether they lie in memory or in a mapped file."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalog import inputs, many_rows
from pipeline.catalog.inputs import read_catalog
from pipeline.catalog.many_rows import Gathering, gathered, steps
from pipeline.errors import UsageError
from pipeline.storage.faults import StorageError
from tests.conftest import touch

SCHEMA = pa.schema([("name", pa.string()), ("number", pa.int64())])
PARTS = [
    pa.table({"name": [f"n{row}" for row in range(at, at + 4)], "number": range(at, at + 4)}, SCHEMA) for at in range(0, 40, 4)
]


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 5 rows are many, and 3 are worked on at a time."""
    monkeypatch.setattr(many_rows, "IN_MEMORY", 5)
    monkeypatch.setattr(inputs, "SORTED_ROWS", 5)
    monkeypatch.setattr(inputs, "STEP_ROWS", 3)
    monkeypatch.setattr(steps, "__defaults__", (3,))
    monkeypatch.setattr("pipeline.catalog.manifest._CHUNK_ROWS", 3)


@pytest.mark.parametrize("count", [0, 1, 2, 10])
def test_parts_become_one_table_wherever_it_lies(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = gathered(PARTS[:count], SCHEMA)
    monkeypatch.setattr(many_rows, "IN_MEMORY", 5)
    mapped = gathered(PARTS[:count], SCHEMA)
    assert in_memory.equals(mapped) and in_memory.equals(pa.concat_tables([SCHEMA.empty_table(), *PARTS[:count]]))
    assert sum(map(len, steps(mapped, 7))) == 4 * count
    assert pa.concat_tables([SCHEMA.empty_table(), *steps(mapped, 7)]).equals(in_memory)


def test_a_file_has_no_name_and_its_pages_leave_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    large = pa.table({"name": ["x" * 1000] * 20_000, "number": range(20_000)}, SCHEMA)
    monkeypatch.setattr(many_rows, "IN_MEMORY", 5)
    table = gathered([large, large], SCHEMA)
    del large
    assert list(tmp_path.iterdir()) == []

    def held() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))

    before = held()
    assert sum(len(part["name"].to_pylist()) for part in steps(table, 1000)) == 40_000
    assert held() - before < 5_000  # kB, of 40,000


def test_where_the_temporary_folder_has_no_room_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_rows, "IN_MEMORY", 5)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(StorageError, match="no space is left on the device"):
        Gathering(SCHEMA).add(PARTS[0]) or gathered(PARTS, SCHEMA)


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
def test_a_long_manifest_has_the_rows_of_a_short_one(tmp_path: Path, name: str, request: pytest.FixtureRequest) -> None:
    uris = [f"cam{row % 3}/{row:02d}.mp4" for row in range(20)]
    write(tmp_path / name, uris)
    short = read_catalog(tmp_path / name, roots=[tmp_path])
    request.getfixturevalue("on_disk")
    long = read_catalog(tmp_path / name, roots=[tmp_path])
    assert [Path(uri).name for uri in long.table["uri"].to_pylist()] == [Path(uri).name for uri in uris]  # in their order
    assert long.table.sort_by("source_id").equals(short.table)


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
def test_faults_far_down_a_manifest_are_named_with_their_row(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, [f"{row}.mp4" for row in range(11)] + [" "])
    with pytest.raises(UsageError, match=r"row 12 of .* has a blank uri"):
        read_catalog(tmp_path / name)
    write(tmp_path / name, [*(f"{row}.mp4" for row in range(11)), "7.mp4", "./2.mp4"])
    with pytest.raises(UsageError, match=r"2 uri values stand more than once in .*/2\.mp4', '.*/7\.mp4'"):
        read_catalog(tmp_path / name)


def test_a_large_folder_has_the_sources_of_a_small_one(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    touch(
        tmp_path,
        *(f"cam{row % 3}/{row:02d}.mp4" for row in range(10)),
        *(f"tracks/p{p}/{i}.jpg" for p in range(4) for i in range(3)),
    )
    small = read_catalog(tmp_path)
    request.getfixturevalue("on_disk")
    large = read_catalog(tmp_path)
    assert large.table.sort_by("source_id").equals(small.table) and len(small.table) == 14


def write(path: Path, uris: list[str]) -> None:
    """A manifest of these uris."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"uri": uris}), path)
    elif path.suffix == ".csv":
        path.write_text("uri\n" + "".join(f'"{uri}"\n' for uri in uris))
    else:
        path.write_text("".join(f'{{"uri": "{uri}"}}\n' for uri in uris))
