"""Hashes: what coreutils prints, whatever form the content comes in; and what is drawn by them."""

import hashlib
import io
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipeline.storage.hashing import content_hash, file_sha256, hash_number, hash_order, json_sha256, sha256, sha256_of
from pipeline.storage.location import resolve

CONTENT = "é".encode() + bytes(range(256)) * 5000


def printed(*paths: Path) -> str:
    """What sha256sum prints of files, run in their folder."""
    return subprocess.run(
        ["sha256sum", *(path.name for path in paths)], cwd=paths[0].parent, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    (tmp_path / "b c.bin").write_bytes(b"")
    return tmp_path


def test_a_hash_is_that_of_sha256sum_whatever_form_the_content_has(folder: Path) -> None:
    digest = printed(folder / "a.bin").split()[0]
    assert sha256(CONTENT) == sha256(memoryview(CONTENT)) == sha256(np.frombuffer(CONTENT, np.uint8)) == digest
    assert sha256("é", CONTENT[2:]) == sha256_of(iter([CONTENT[:7], b"", CONTENT[7:]])) == digest
    assert file_sha256(io.BytesIO(CONTENT)) == content_hash(resolve(folder / "a.bin")) == digest


def test_a_folder_has_the_hash_of_what_sha256sum_prints_of_it(folder: Path) -> None:
    lines = printed(folder / "a.bin", folder / "b c.bin")
    assert content_hash(resolve(folder), ["b c.bin", "a.bin"]) == hashlib.sha256(lines.encode()).hexdigest()


def test_json_is_hashed_as_it_is_written() -> None:
    assert json_sha256({"b": 1, "a": "é"}, sort_keys=True) == sha256(b'{"a": "\\u00e9", "b": 1}')


def test_what_is_drawn_of_names_does_not_depend_on_the_other_names() -> None:
    names = [f"person {number}" for number in range(2000)]
    order = hash_order(names)
    assert sorted(order) == list(range(2000))
    assert order == sorted(order, key=lambda place: hashlib.sha256(names[place].encode()).digest())
    assert hash_order(names, 50) == order[:50]
    kept = [name for place, name in enumerate(names) if place % 3]
    assert [kept[place] for place in hash_order(kept)] == [names[place] for place in order if place % 3]


def test_numbers_drawn_of_names_are_spread_evenly() -> None:
    assert hash_number("a") == int.from_bytes(hashlib.sha256(b"a").digest()[:8], "big")
    shares = np.array([hash_number(f"person {number}") / 2**64 for number in range(4000)])
    counts = np.histogram(shares, 10, (0, 1))[0]
    assert counts.sum() == 4000
    assert np.all(np.abs(counts - 400) < 5 * np.sqrt(400))
