"""Catalogs of any number of rows say the same, whether they lie in memory or in a mapped file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalog import inputs
from pipeline.catalog.inputs import read_catalog
from pipeline.errors import UsageError
from pipeline.storage import many_rows
from pipeline.storage.many_rows import steps
from tests.conftest import touch


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 5 rows are many, and 3 are worked on at a time."""
    monkeypatch.setattr(many_rows, "IN_MEMORY", 5)
    monkeypatch.setattr(inputs, "SORTED_ROWS", 5)
    monkeypatch.setattr(inputs, "STEP_ROWS", 3)
    monkeypatch.setattr(steps, "__defaults__", (3,))
    monkeypatch.setattr("pipeline.catalog.manifest._CHUNK_ROWS", 3)


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
