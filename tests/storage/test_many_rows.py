"""Tables of many rows lie in a mapped file, and are filtered and sorted as those in memory are."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage import many_rows
from pipeline.storage.faults import StorageError
from pipeline.storage.many_rows import filtered, gathered, holding, sorted_by, steps

SCHEMA = pa.schema([("name", pa.string()), ("number", pa.int64())])
PARTS = [
    pa.table({"name": [f"n{row}" for row in range(at, at + 4)], "number": range(at, at + 4)}, SCHEMA) for at in range(0, 40, 4)
]


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
        gathered(PARTS, SCHEMA)


@given(
    st.lists(st.lists(st.tuples(st.sampled_from("abcdefgh") | st.none(), st.integers(0, 3)), max_size=9), max_size=6),
    st.randoms(use_true_random=False),
)
def test_many_rows_are_chosen_and_sorted_as_few_are(parts: list[list[tuple[str | None, int]]], random: Any) -> None:
    tables = [pa.table({"name": [n for n, _ in part], "number": [i for _, i in part]}, SCHEMA) for part in parts]
    few = gathered(tables, SCHEMA)
    mask = np.array([random.random() < 0.7 for _ in range(len(few))], bool)
    wanted = pa.array(["a", "c", "h"])
    expected = few.filter(pa.array(mask)), few.sort_by("name"), few.filter(pc.is_in(few["name"], wanted))
    assert (filtered(few, mask), sorted_by(few, "name"), holding(few, name=wanted)) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many_rows, "IN_MEMORY", 5)
        patch.setattr(many_rows, "STEP_ROWS", 3)
        patch.setattr(steps, "__defaults__", (3,))
        many = gathered(tables, SCHEMA)
        assert (filtered(many, mask), sorted_by(many, "name"), holding(many, name=wanted)) == expected
        either = pc.or_(pc.is_in(few["name"], wanted), pc.equal(few["number"], 2))
        assert holding(many, name=wanted, number=pa.array([2])) == few.filter(either)


def test_many_rows_are_sorted_in_little_memory() -> None:
    """In a process of its own: 240 MB of text, of which pyarrow's own sorting holds more than twice as much."""
    code = """
import resource, sys
import numpy as np, pyarrow as pa
from pipeline.storage.many_rows import Gathering, sorted_by, steps
gathering = Gathering(pa.schema([("name", pa.string()), ("text", pa.string())]))
numbers = np.random.default_rng(0).permutation(1_200_000)
for part in np.split(numbers, 12):
    gathering.add(pa.table({"name": [f"{number:08d}" for number in part], "text": ["x" * 200] * len(part)}))
table = gathering.table()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ordered = sorted_by(table, "name")
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
names = [name for part in steps(ordered.select(["name"])) for name in part["name"].to_pylist()]
assert names == [f"{number:08d}" for number in range(1_200_000)]
print(grown)
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(run.stdout) < 200_000, "kB that its peak rose by"


def test_free_memory_is_given_back() -> None:
    """In a process of its own: what was taken in many small pieces goes back to the system, not only to the allocator."""
    code = """
import re
from pathlib import Path
from typing import Any
from pipeline.storage.many_rows import release_memory
def held():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
release_memory()
before = held()
pieces = [bytes(2000) for _ in range(100_000)]
kept = pieces[::2000]
full = held()
del pieces
release_memory()
print(full - before, held() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    full, after = map(int, run.stdout.split())
    assert full > 150_000 and after < full / 10, run.stdout
