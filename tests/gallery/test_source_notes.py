"""What a gallery says of its sources: damage, remarks and equal bytes."""

import time
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.gallery.gallery import VIDEOS_SCHEMA
from pipeline.gallery.source_notes import SourceNotes, equal_bytes, source_notes


def videos(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{"video_id": row["source_id"], **row} for row in rows], VIDEOS_SCHEMA)


def hashed(*pairs: tuple[str, str | None]) -> pa.Table:
    return videos(*({"source_id": source_id, "ingested_hash": digest} for source_id, digest in pairs))


class TestEqualBytes:
    def test_sources_of_one_hash_are_a_group_the_largest_first(self) -> None:
        groups = equal_bytes(hashed(("d", "x"), ("a", "y"), ("b", "x"), ("e", "y"), ("c", "x"), ("f", "z")))
        assert groups.to_pylist() == [
            {"ingested_hash": "x", "source_ids": ["b", "c", "d"]},
            {"ingested_hash": "y", "source_ids": ["a", "e"]},
        ]

    def test_tracks_of_one_source_and_sources_without_a_hash_are_no_copies(self) -> None:
        assert len(equal_bytes(hashed(("a", "x"), ("a", "x"), ("b", None), ("c", None)))) == 0

    def test_an_empty_gallery_has_none(self) -> None:
        assert len(equal_bytes(videos())) == 0

    @given(
        st.lists(st.tuples(st.sampled_from("abcdefgh"), st.just(None))), st.lists(st.sampled_from([None, "x", "y"]), min_size=8)
    )
    def test_it_finds_what_looking_at_each_pair_finds(self, names: list[tuple[str, None]], digests: list[str | None]) -> None:
        digest_of = dict(zip("abcdefgh", digests, strict=False))
        present = {name for name, _ in names}
        expected = {
            one: {other for other in present if digest_of[one] is not None and digest_of[other] == digest_of[one]}
            for one in present
        }
        groups = equal_bytes(hashed(*((name, digest_of[name]) for name, _ in names)))
        found = {one: set(group) for group in groups["source_ids"].to_pylist() for one in group}
        assert found == {one: group for one, group in expected.items() if len(group) > 1}

    def test_a_million_rows_take_a_fraction_of_a_second(self) -> None:
        ids = pa.array([f"video-{i}" for i in range(1_000_000)])
        digests = pa.array([f"{i // 2 if i < 1000 else i:064x}" for i in range(1_000_000)])
        table = pa.table({"source_id": ids, "ingested_hash": digests})
        begun = time.process_time()
        groups = equal_bytes(table)
        assert time.process_time() - begun < 2  # measured: 0.3 s; of processors, on which others work too
        assert len(groups) == 500


class TestNotes:
    def test_damage_counts_once_a_source_not_once_a_track(self) -> None:
        notes = source_notes(
            videos(
                {"source_id": "a", "passed_over": 3},
                {"source_id": "a", "passed_over": 3},
                {"source_id": "b", "passed_over": 0},
                {"source_id": "c", "passed_over": 4},
            )
        )
        assert (notes.passed_over, notes.damaged) == (7, 2)
        assert notes.lines() == ["  passed over   7 packets or images that cannot be decoded, of 2 inputs"]

    def test_remarks_that_differ_in_numbers_are_one_kind_and_the_most_frequent_comes_first(self) -> None:
        notes = source_notes(
            videos(
                {"source_id": "a", "remarks": ["no times; 25 frames a second are taken", "cut at 1.5 s"]},
                {"source_id": "a", "remarks": ["no times; 25 frames a second are taken", "cut at 1.5 s"]},
                {"source_id": "b", "remarks": ["no times; 29.97 frames a second are taken"]},
                {"source_id": "c", "remarks": ["no times; 5 frames a second are taken", "no times; 6 frames a second are taken"]},
                {"source_id": "d", "remarks": []},
                {"source_id": "e", "remarks": None},
            )
        )
        assert [(kind.text, kind.count, kind.example) for kind in notes.remarks] == [
            ("no times; N frames a second are taken", 3, "a"),
            ("cut at N s", 1, "a"),
        ]
        assert notes.lines()[1:] == [
            "        3 no times; N frames a second are taken (such as a)",
            "        1 cut at N s (such as a)",
        ]

    def test_of_many_kinds_and_copies_the_first_are_shown_and_the_rest_counted(self) -> None:
        words = ["zero", "one", "two", "three", "four", "five", "six"]
        rows = [
            {"source_id": f"{i}{copy}", "ingested_hash": word, "remarks": [word]}
            for i, word in enumerate(words)
            for copy in "abcde"[: 5 if i == 6 else 2]
        ]
        lines = source_notes(videos(*rows)).lines()
        assert lines[0].startswith("  remarks       7 kinds") and lines[1] == "        5 six (such as 6a)"
        assert lines[6] == "        4 of 2 other kinds"
        assert lines[7] == "  equal bytes   17 inputs have the same bytes as another one"
        assert lines[8:10] == ["    6a = 6b = 6c = 2 more", "    0a = 0b"]
        assert lines[-1] == "    and 2 more such groups"

    def test_of_some_sources_the_copies_among_the_others_are_told(self) -> None:
        table = videos(
            {"source_id": "new", "ingested_hash": "x", "passed_over": 1, "remarks": ["mended"]},
            {"source_id": "old", "ingested_hash": "x", "passed_over": 2, "remarks": ["guessed"]},
            {"source_id": "p", "ingested_hash": "y"},
            {"source_id": "q", "ingested_hash": "y"},
            {"source_id": "unhashed"},
        )
        notes = source_notes(table, pa.array(["new", "unhashed", "rejected"]))
        assert (notes.passed_over, [kind.text for kind in notes.remarks]) == (1, ["mended"])
        assert notes.copies["source_ids"].to_pylist() == [["new", "old"]]

    def test_a_gallery_of_older_versions_says_nothing(self) -> None:
        notes = source_notes(videos({"source_id": "a"}, {"source_id": "b"}))
        assert notes.lines() == SourceNotes().lines() == []
        assert source_notes(videos()).lines() == []

    def test_notes_of_a_large_gallery_take_seconds_at_most(self) -> None:
        rows = 1_000_000
        numbers = np.arange(rows)
        table = videos({"source_id": "a"}).slice(0, 0)
        columns = {
            "source_id": pa.array([f"video-{i}" for i in numbers]),
            "passed_over": pa.array(numbers % 2, pa.int32()),
            "remarks": pa.ListArray.from_arrays(
                pa.array(np.arange(rows + 1), pa.int32()), pa.array([f"cut at {i} s" for i in numbers])
            ),
        }
        table = pa.table({name: columns.get(name, pa.nulls(rows, VIDEOS_SCHEMA.field(name).type)) for name in table.schema.names})
        begun = time.process_time()
        notes = source_notes(table)
        assert time.process_time() - begun < 6
        assert (notes.damaged, notes.remarks[0].count) == (rows // 2, rows)
