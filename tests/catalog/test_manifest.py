"""A manifest becomes catalog rows whatever its format, and one that cannot be meant is told in one sentence."""

import contextlib
import json
import time
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pipeline.catalog.inputs import (
    SOURCE_SCHEMA,
    default_video_id,
    read_catalog,
)
from pipeline.errors import UsageError
from tests.catalog.test_catalog import WRITERS, Source, every_format, rows, source_from_row, write_csv, write_parquet

LABEL = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
VIDEO_ID = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="#"), min_size=1, max_size=200).filter(
    str.strip
)
KEY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/.?"), min_size=1, max_size=30).filter(str.strip)
TIME = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
RECORDS = st.lists(
    st.tuples(KEY, VIDEO_ID, st.none() | LABEL, st.none() | TIME, st.none() | LABEL, st.none() | KEY),
    min_size=1,
    max_size=8,
    unique_by=(lambda record: record[0], lambda record: record[1]),
)
JSON_VALUES = st.one_of(
    st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,25})?", fullmatch=True),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5).map(json.dumps),
    st.sampled_from(["NaN", "Infinity", "-Infinity", '"\\ud800"', '"\\u0000"', "{}"]),
)


class TestManifests:
    @every_format
    @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(records=RECORDS)
    def test_ids_and_labels_come_back_as_written(self, tmp_path: Path, name: str, records: list[tuple[Any, ...]]) -> None:
        columns = ("uri", "video_id", "camera_id", "start_time", "person_id", "boxes_uri")
        written = [dict(zip(columns, record, strict=True)) for record in records]
        texts = [
            row | {"uri": f"s3://bucket/{row['uri']}", "start_time": row["start_time"] and row["start_time"].isoformat()}
            for row in written
        ]
        catalog = read_catalog(WRITERS[name](tmp_path / name, texts))
        assert catalog.table.schema == SOURCE_SCHEMA
        expected = [
            Source(
                source_id=row["video_id"],
                uri=f"s3://bucket/{row['uri']}",
                kind="auto",
                camera_id=row["camera_id"],
                start_time=row["start_time"],
                person_id=row["person_id"],
                boxes_uri=row["boxes_uri"] and f"{tmp_path}/{row['boxes_uri']}",
            )
            for row in sorted(written, key=lambda row: row["video_id"].encode())
        ]
        assert [source_from_row(row) for row in rows(catalog)] == expected

    @every_format
    def test_a_uri_is_enough_and_counts_from_the_manifest(self, tmp_path: Path, name: str) -> None:
        manifest = WRITERS[name](tmp_path / name, [{"uri": "clips/../a.mp4"}, {"uri": "file:///x/b%20c.mp4"}, {"uri": "/y/d"}])
        catalog = read_catalog(manifest)
        uris = [f"{tmp_path}/a.mp4", "/x/b c.mp4", "/y/d"]
        assert sorted(catalog.table["uri"].to_pylist()) == sorted(uris)
        assert sorted(catalog.table["source_id"].to_pylist()) == sorted(map(default_video_id, uris))
        assert set(catalog.table["kind"].to_pylist()) == {"auto"}
        assert catalog.root == str(tmp_path)

    @every_format
    def test_no_video_is_opened_or_looked_for(self, tmp_path: Path, name: str) -> None:
        manifest = WRITERS[name](tmp_path / name, [{"uri": "s3://no-such-bucket/a.mp4"}, {"uri": "gone.mp4"}])
        assert read_catalog(manifest).table["reject_reason"].null_count == 2

    @every_format
    def test_other_columns_are_listed_and_empty_text_is_none(self, tmp_path: Path, name: str) -> None:
        record = {
            "uri": "a.mp4",
            "video_id": "",
            "role": "query",
            "person_id": "",
            "camera_id": "NA",
            "boxes_uri": "",
            "start_time": "",
        }
        catalog = read_catalog(WRITERS[name](tmp_path / name, [record]))
        assert catalog.ignored_columns == ("role",)
        (row,) = rows(catalog)
        assert row["source_id"] == default_video_id(f"{tmp_path}/a.mp4")
        assert (row["person_id"], row["camera_id"], row["boxes_uri"], row["start_time"]) == (None, "NA", None, None)

    @every_format
    def test_the_table_is_sorted_by_id(self, tmp_path: Path, name: str) -> None:
        manifest = WRITERS[name](tmp_path / name, [{"uri": f"{i}.mp4", "video_id": v} for i, v in enumerate("cab")])
        assert read_catalog(manifest).table["source_id"].to_pylist() == ["a", "b", "c"]

    def test_the_layout_of_a_csv_does_not_matter(self, tmp_path: Path) -> None:
        (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbf\r\nperson_id, uri ,note\r\n3,a.mp4,\xe2\x98\x83\r\n\r\n,b.mp4,\r\n")
        labels = {row["uri"].rpartition("/")[2]: row["person_id"] for row in rows(read_catalog(tmp_path / "m.csv"))}
        assert labels == {"a.mp4": "3", "b.mp4": None}

    def test_time_grows_as_the_number_of_rows_does(self, tmp_path: Path) -> None:
        def seconds(count: int) -> float:
            lines = (f"cam{i % 99}/clip{i}.mp4,cam{i % 99},2026-05-01T12:{i % 60:02d}:00Z,{i % 1000}\n" for i in range(count))
            (tmp_path / "m.csv").write_text("uri,camera_id,start_time,person_id\n" + "".join(lines))
            begun = time.thread_time()
            assert read_catalog(tmp_path / "m.csv", roots=[tmp_path]).table.num_rows == count
            return time.thread_time() - begun

        seconds(1000)  # what is loaded and cached once
        assert seconds(200_000) < 25 * seconds(20_000)


class TestNumbersAsLabels:
    @pytest.mark.parametrize(
        "column",
        [
            pa.array([3, None, 12]),
            pa.array([3.0, None, 12.0]),
            pa.array([3.0, float("nan"), 12.0]),
            pa.array([Decimal("3.00"), None, Decimal("12.00")]),
            pa.array(["3", None, "12"], pa.large_string()),
            pa.array(["3", "", "12"]).dictionary_encode(),
            pa.array([3, None, 12], pa.uint8()).dictionary_encode(),
        ],
        ids=lambda column: str(column.type),
    )
    def test_in_parquet(self, tmp_path: Path, column: pa.Array) -> None:
        table = pa.table({"uri": ["a", "b", "c"], "video_id": ["1", "2", "3"], "person_id": column})
        parquet.write_table(table, tmp_path / "m.parquet")
        assert read_catalog(tmp_path / "m.parquet").table["person_id"].to_pylist() == ["3", None, "12"]

    def test_written_by_pandas_with_gaps(self, tmp_path: Path) -> None:
        frame = pd.DataFrame({"uri": ["a", "b"], "video_id": [1, 2], "camera_id": [3, None]})
        frame.to_parquet(tmp_path / "m.parquet")
        frame.to_csv(tmp_path / "m.csv", index=False)
        for name, camera in (("m.parquet", "3"), ("m.csv", "3.0")):  # in CSV pandas has written the text 3.0
            got = [(row["source_id"], row["camera_id"]) for row in rows(read_catalog(tmp_path / name))]
            assert got == [("1", camera), ("2", None)]

    def test_in_json(self, tmp_path: Path) -> None:
        (tmp_path / "m.jsonl").write_text(
            '{"uri": "a", "video_id": 7, "person_id": 3.0}\n\n{"uri": "b", "video_id": "8", "person_id": "x", "z": {}}\n'
            '{"uri": "c", "video_id": "9", "person_id": NaN}\n{"uri": "d", "video_id": "A", "person_id": 0.50}\n'
            '{"uri": "e", "video_id": "B", "person_id": 123456789012345678901234567890123}\n'
        )
        labels = [(row["source_id"], row["person_id"]) for row in rows(read_catalog(tmp_path / "m.jsonl"))]
        assert labels == [("7", "3"), ("8", "x"), ("9", None), ("A", "0.5"), ("B", "123456789012345678901234567890123")]


class TestFrameRates:
    @every_format
    @pytest.mark.parametrize(("value", "expected"), [("25", 25.0), ("29.97", 29.97), ("", None), (".5", 0.5), ("999.9", 999.9)])
    def test_text_is_a_number_of_frames_a_second(self, tmp_path: Path, name: str, value: str, expected: float | None) -> None:
        manifest = WRITERS[name](tmp_path / name, [{"uri": "a", "frame_rate": value}, {"uri": "b"} | {"frame_rate": "12"}])
        assert sorted(row["frame_rate"] or 0 for row in rows(read_catalog(manifest))) == sorted([expected or 0, 12.0])
        assert pa.types.is_float64(read_catalog(manifest).table["frame_rate"].type)

    @pytest.mark.parametrize("name", ["m.jsonl", "m.parquet"])
    def test_numbers_are_taken_as_they_are_and_a_gap_says_nothing(self, tmp_path: Path, name: str) -> None:
        values = [30000 / 1001, 25.0, None]
        manifest = WRITERS[name](
            tmp_path / name, [{"uri": f"{i}", "video_id": f"{i}", "frame_rate": v} for i, v in enumerate(values)]
        )
        assert read_catalog(manifest).table["frame_rate"].to_pylist() == values

    def test_without_the_column_nothing_is_said(self, tmp_path: Path) -> None:
        assert read_catalog(write_csv(tmp_path / "m.csv", [{"uri": "a"}])).table["frame_rate"].to_pylist() == [None]

    @every_format
    @pytest.mark.parametrize("value", ["0", "-25", "1000", "25 fps", "inf", "nan", "1_0", "٢٥", "30000/1001"])
    def test_another_value_is_named_with_its_row(self, tmp_path: Path, name: str, value: str) -> None:
        manifest = WRITERS[name](tmp_path / name, [{"uri": "a", "frame_rate": "25"}, {"uri": "b", "frame_rate": value}])
        with pytest.raises(UsageError, match=f"row 2 of .*: frame_rate '{value}' is not a number of frames a second above 0"):
            read_catalog(manifest)


class TestClockOffsets:
    @every_format
    @pytest.mark.parametrize(
        ("value", "seconds"), [("90", 90.0), ("-3600", -3600.0), ("+0.5", 0.5), ("1.5e2", 150.0), ("", None), ("0", 0.0)]
    )
    def test_seconds_that_a_clock_was_ahead_are_taken_off_the_time(
        self, tmp_path: Path, name: str, value: str, seconds: float | None
    ) -> None:
        said = {"uri": "a", "start_time": "2026-05-01T12:00:00Z", "clock_offset": value}
        (row,) = rows(read_catalog(WRITERS[name](tmp_path / name, [said])))
        assert row["clock_offset"] == seconds
        assert row["start_time"] == datetime(2026, 5, 1, 12, tzinfo=UTC) - timedelta(seconds=seconds or 0)

    def test_a_recording_without_a_time_keeps_its_clock(self, tmp_path: Path) -> None:
        manifest = write_csv(tmp_path / "m.csv", [{"uri": "a", "start_time": "", "clock_offset": "-7"}])
        assert [(row["start_time"], row["clock_offset"]) for row in rows(read_catalog(manifest))] == [(None, -7.0)]

    @every_format
    @pytest.mark.parametrize("value", ["fast", "nan", "inf", "1e30", "1_0", "00:01"])
    def test_another_value_is_named_with_its_row(self, tmp_path: Path, name: str, value: str) -> None:
        manifest = WRITERS[name](tmp_path / name, [{"uri": "a", "clock_offset": "1"}, {"uri": "b", "clock_offset": value}])
        with pytest.raises(UsageError, match=f"row 2 of .*: clock_offset '{value}' is no number of seconds"):
            read_catalog(manifest)

    def test_a_time_that_no_calendar_has_is_named_with_its_row(self, tmp_path: Path) -> None:
        said = {"uri": "a", "start_time": "0001-01-01T00:00:01Z", "clock_offset": "2"}
        with pytest.raises(UsageError, match=r"row 1 of .*: start_time lies outside the years 1 to 9999"):
            read_catalog(write_csv(tmp_path / "m.csv", [said]))


class TestLargeClaims:
    def test_more_rows_than_memory_has_room_for_are_refused_before_any_is_read(self, tmp_path: Path) -> None:
        column = pa.chunked_array([pa.nulls(1_000_000, pa.string())] * 150)
        parquet.write_table(pa.table({"uri": column}), tmp_path / "m.parquet")
        assert (tmp_path / "m.parquet").stat().st_size < 1_000_000
        begun = time.thread_time()
        with pytest.raises(UsageError, match=r"has 150000000 rows; at most 20000000 are read at once: split it into several"):
            read_catalog(tmp_path / "m.parquet")
        assert time.thread_time() - begun < 0.5

    @pytest.mark.parametrize(
        ("encoding", "texts"),
        [("dictionary", ["x" * 1_000_000] * 50_000), ("DELTA_BYTE_ARRAY", ["x" * 1_000_000 + f"{i:04d}" for i in range(100)])],
    )
    def test_a_small_file_of_long_texts_is_refused_before_they_are_written_out(
        self, tmp_path: Path, encoding: str, texts: list[str]
    ) -> None:
        column = pa.array(texts[:1]).dictionary_encode() if encoding == "dictionary" else pa.array(texts)
        if encoding == "dictionary":
            column = pa.DictionaryArray.from_arrays(pa.array([0] * len(texts), pa.int32()), column.dictionary)
            parquet.write_table(pa.table({"uri": column}), tmp_path / "m.parquet")
        else:
            parquet.write_table(
                pa.table({"uri": column}),
                tmp_path / "m.parquet",
                use_dictionary=False,
                column_encoding={"uri": encoding},
                write_statistics=False,
            )
        assert (tmp_path / "m.parquet").stat().st_size < 1_000_000
        before = pa.default_memory_pool().max_memory()
        with pytest.raises(UsageError, match=r"the column uri of .* holds a text of 10000\d\d bytes; at most 16384 are read"):
            read_catalog(tmp_path / "m.parquet")
        assert pa.default_memory_pool().max_memory() - before < 1 << 30  # written out, they are 50 GB

    def test_values_are_added_up_while_they_are_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        texts = ["y" * 10_000] * 1000  # 10 MB, of which the file says that it holds one text and 1,000 references to it
        parquet.write_table(pa.table({"uri": [f"{i}" for i in range(1000)], "camera_id": texts}), tmp_path / "m.parquet")
        assert len(read_catalog(tmp_path / "m.parquet").table) == 1000
        monkeypatch.setattr("pipeline.catalog.manifest.MOST_BYTES", 5 << 20)
        with pytest.raises(UsageError, match="has 9 MiB of values; at most 5 are read at once"):
            read_catalog(tmp_path / "m.parquet")

    @pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
    def test_texts_are_read_however_they_are_encoded(self, tmp_path: Path, encoding: str, kind: pa.DataType) -> None:
        uris = [f"/videos/{i:03d}.mp4" for i in range(200)]
        cameras = pa.array([None if i % 3 == 0 else f"cam{i % 4}" for i in range(200)])
        parquet.write_table(
            pa.table(
                {"uri": pa.array(uris).cast(kind), "camera_id": cameras.cast(kind), "person_id": cameras.dictionary_encode()}
            ),
            tmp_path / "m.parquet",
            use_dictionary=["camera_id", "person_id"],
            column_encoding={"uri": encoding},
            row_group_size=70,
        )
        table = read_catalog(tmp_path / "m.parquet").table.sort_by("uri")
        assert table["uri"].to_pylist() == uris
        assert table["camera_id"].to_pylist() == table["person_id"].to_pylist() == cameras.to_pylist()


class TestStartTimes:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("2026-05-01T12:00:06.200Z", datetime(2026, 5, 1, 12, 0, 6, 200_000, UTC)),
            ("2026-05-01T12:00:06+02:00", datetime(2026, 5, 1, 10, 0, 6, tzinfo=UTC)),
            ("2026-05-01 12:00", datetime(2026, 5, 1, 12, tzinfo=UTC)),
            ("2026-05-01", datetime(2026, 5, 1, tzinfo=UTC)),
        ],
    )
    def test_text_is_iso_8601_and_utc_without_a_zone(self, tmp_path: Path, text: str, expected: datetime) -> None:
        for name, write in WRITERS.items():
            (row,) = rows(read_catalog(write(tmp_path / name, [{"uri": "a", "start_time": text}])))
            assert source_from_row(row).start_time == expected

    @pytest.mark.parametrize(
        "value",
        [
            datetime(2026, 5, 1, 12, tzinfo=UTC),
            datetime(2026, 5, 1, 12),
            datetime(2026, 5, 1, 14, tzinfo=timezone(timedelta(hours=2))),
        ],
    )
    @pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
    def test_parquet_timestamps(self, tmp_path: Path, value: datetime, unit: str) -> None:
        times = pa.array(
            [None, value], pa.timestamp(unit, (str(value.tzinfo).removeprefix("UTC") or "UTC") if value.tzinfo else None)
        )
        parquet.write_table(pa.table({"uri": ["a", "b"], "video_id": ["a", "b"], "start_time": times}), tmp_path / "m.parquet")
        got = [source_from_row(row).start_time for row in rows(read_catalog(tmp_path / "m.parquet"))]
        assert got == [None, datetime(2026, 5, 1, 12, tzinfo=UTC)]

    def test_parquet_dates_and_nanoseconds(self, tmp_path: Path) -> None:
        for times, expected in (
            (pa.array([date(2026, 5, 1)]), datetime(2026, 5, 1, tzinfo=UTC)),
            (pa.array([1_000_000_001], pa.timestamp("ns")), datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)),
        ):
            parquet.write_table(pa.table({"uri": ["a"], "start_time": times}), tmp_path / "m.parquet")
            assert rows(read_catalog(tmp_path / "m.parquet"))[0]["start_time"] == expected

    @pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "12:00", "0001-01-01T00:00+02:00", "1767225600000"])
    def test_another_text_is_named_with_its_row(self, tmp_path: Path, text: str) -> None:
        for name, write in WRITERS.items():
            manifest = write(tmp_path / name, [{"uri": "a", "start_time": ""}, {"uri": "b", "start_time": text}])
            with pytest.raises(UsageError, match=f"row 2 .* start_time '{text.replace('+', '.')}' is not an ISO 8601 time"):
                read_catalog(manifest)

    @pytest.mark.parametrize(
        ("times", "sentence"),
        [
            (pa.array([5]), "start_time of .* is of type int64"),
            (pa.array([2**53], pa.timestamp("s")), "start_time of .* holds a time out of range"),
            (pa.array([2**60], pa.timestamp("us", "UTC")), "row 1 of .*: start_time lies outside the years"),
        ],
    )
    def test_impossible_columns_are_named(self, tmp_path: Path, times: pa.Array, sentence: str) -> None:
        parquet.write_table(pa.table({"uri": ["a"], "start_time": times}), tmp_path / "m.parquet")
        with pytest.raises(UsageError, match=sentence):
            read_catalog(tmp_path / "m.parquet")


class TestFaults:
    @pytest.mark.parametrize("column", ["uri", "frame_rate"])
    def test_a_column_of_another_type_is_named(self, tmp_path: Path, column: str) -> None:
        table = pa.table({"uri": ["a"]} | {column: pa.array([["a"]])})
        parquet.write_table(table, tmp_path / "m.parquet")
        with pytest.raises(UsageError, match=f"the column {column} of .* is of type list<.*>; text or numbers are needed"):
            read_catalog(tmp_path / "m.parquet")

    @every_format
    @pytest.mark.parametrize(
        ("wrong", "sentence"),
        [
            ({"uri": ""}, "row 2 of .* has a blank uri"),
            ({"uri": " \t"}, "row 2 of .* has a blank uri"),
            ({"uri": "http://host/a.mp4"}, "row 2 of .*, uri: .*unknown scheme http://"),
            ({"uri": "s3://KEY:secret@bucket/a"}, "row 2 of .*, uri: .*carries credentials"),
            ({"boxes_uri": "ftp://host/a"}, "row 2 of .*, boxes_uri: .*unknown scheme ftp://"),
            ({"boxes_uri": " "}, "row 2 of .* has a blank boxes_uri"),
            ({"video_id": "a#1"}, "row 2 of .*: video_id 'a#1' cannot be used"),
            ({"video_id": "a\nb"}, r"row 2 of .*: video_id 'a\\nb' cannot be used"),
            ({"video_id": "  "}, "row 2 of .*: video_id '  ' cannot be used"),
            ({"video_id": "x" * 201}, "row 2 of .*: video_id 'xxx.*' cannot be used"),
            ({"video_id": "first"}, "1 video_id values stand more than once in .*: 'first'"),
            ({"uri": "./x/../1.mp4"}, "1 uri values stand more than once in .*: '.*/1.mp4'"),
        ],
    )
    def test_a_wrong_row_is_named(self, tmp_path: Path, name: str, wrong: dict[str, str], sentence: str) -> None:
        good = {"uri": "1.mp4", "video_id": "first", "boxes_uri": "1.txt"}
        second = {"uri": "2.mp4", "video_id": "second", "boxes_uri": "2.txt"} | wrong
        with pytest.raises(UsageError, match=sentence):
            read_catalog(WRITERS[name](tmp_path / name, [good, second]))

    @every_format
    def test_up_to_five_duplicates_are_named(self, tmp_path: Path, name: str) -> None:
        manifest = WRITERS[name](tmp_path / name, [{"uri": f"{i // 2}.mp4"} for i in range(14)])
        with pytest.raises(
            UsageError, match=r"^7 uri values .*: '.*/0.mp4', .*/1.mp4', .*/2.mp4', .*/3.mp4', '.*/4.mp4', \.\.\.$"
        ):
            read_catalog(manifest)

    def test_an_explicit_id_may_not_be_another_videos_default_one(self, tmp_path: Path) -> None:
        taken = default_video_id(f"{tmp_path}/b.mp4")
        manifest = write_csv(tmp_path / "m.csv", [{"uri": "a.mp4", "video_id": taken}, {"uri": "b.mp4", "video_id": ""}])
        with pytest.raises(UsageError, match=taken):
            read_catalog(manifest)

    @pytest.mark.parametrize(
        ("name", "content", "sentence"),
        [
            ("m.csv", b"", "has no rows"),
            ("m.csv", b"uri,video_id\n", "has no rows"),
            ("m.jsonl", b"\n", "has no rows"),
            ("m.csv", b"url;video_id\na;b\n", r"has no column uri \(columns: url;video_id\)"),
            ("m.jsonl", b'{"url": "a"}\n', r"has no column uri \(columns: url\)"),
            ("m.csv", b"uri,uri\na,b\n", "has the column uri twice"),
            ("m.csv", b"uri,person_id\na,1\nb\n", "line 3 .* has 1 values, the header has 2 columns"),
            ("m.csv", b"uri,person_id\na,1,2\n", "line 2 .* has 3 values"),
            ("m.csv", b'uri,person_id\na,"1\nb,2\nc,3\n', "is not CSV: unexpected end of data"),
            ("m.csv", b"uri,person_id\na,caf\xe9\n", "is not UTF-8"),
            ("m.csv", "uri,person_id\na,b\n".encode("utf-16"), "is not UTF-8"),
            ("m.jsonl", b'{"uri": "caf\xe9"}\n', "is not UTF-8"),
            ("m.jsonl", b'{"uri": "a"}\n{"uri": "b"\n', "line 2 .* is not JSON"),
            ("m.jsonl", b'["uri"]\n', "line 1 .* is not a JSON object"),
            ("m.jsonl", b"[" * 100_000, "line 1 .* is not JSON"),
            ("m.jsonl", b'{"uri": "a", "person_id": ["x"]}\n', "person_id in line 1 .* text or a number is needed"),
            ("m.jsonl", b'{"uri": "a", "person_id": true}\n', "person_id in line 1 .* text or a number is needed"),
            ("m.jsonl", b'{"uri": "a", "person_id": 1e999999}\n', "too large or too small for a label"),
            ("m.jsonl", b'{"uri": "a", "note": 1e99999999999999999999}\n', "line 1 .* is not JSON"),
            ("m.jsonl", b'{"uri": "a", "person_id": "\\ud800"}\n', "lone surrogate"),
            ("m.jsonl", b'{"uri": "a\\u0000b"}\n', "row 1 .*, uri: .*NUL"),
            ("m.jsonl", b'{"uri": "a"}\n{"video_id": "b"}\n', "row 2 .* has a blank uri"),
            ("m.parquet", b"", "cannot be read as Parquet"),
            ("m.parquet", b"PAR1 is not enough PAR1", "cannot be read as Parquet"),
        ],
    )
    def test_damaged_manifests_have_one_clear_sentence(self, tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=sentence) as refused:
            read_catalog(tmp_path / name)
        assert name in str(refused.value)
        assert "\n" not in str(refused.value)

    @pytest.mark.parametrize(
        ("columns", "sentence"),
        [
            ({"url": ["a"]}, r"has no column uri \(columns: url\)"),
            ({"uri": pa.array([], pa.string())}, "has no rows"),
            ({"uri": ["a"], "person_id": [True]}, "column person_id of .* is of type bool"),
            ({"uri": ["a"], "person_id": [["x"]]}, "column person_id of .* is of type list"),
            ({"uri": ["a"], "person_id": [float("inf")]}, "too large or too small"),
        ],
    )
    def test_parquet_columns_that_cannot_be_meant(self, tmp_path: Path, columns: dict[str, Any], sentence: str) -> None:
        parquet.write_table(pa.table(columns), tmp_path / "m.parquet")
        with pytest.raises(UsageError, match=sentence):
            read_catalog(tmp_path / "m.parquet")

    def test_a_parquet_file_cut_short(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "m.parquet", [{"uri": f"{i}.mp4"} for i in range(100)])
        content = (tmp_path / "m.parquet").read_bytes()
        (tmp_path / "m.parquet").write_bytes(content[:-20])
        with pytest.raises(UsageError, match="cannot be read as Parquet"):
            read_catalog(tmp_path / "m.parquet")

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        noise=st.binary(min_size=1, max_size=12),
        place=st.floats(0, 1),
        over=st.integers(0, 12),
        name=st.sampled_from(sorted(WRITERS)),
    )
    def test_a_manifest_with_any_bytes_in_it_is_a_catalog_or_a_usage_error(
        self, tmp_path: Path, noise: bytes, place: float, over: int, name: str
    ) -> None:
        """The bytes are put anywhere into a sound manifest, before or over what is there."""
        records = [
            {"uri": f"{i}.mp4", "video_id": f"v{i}", "person_id": i, "start_time": "2026-05-01T12:00:00Z"} for i in range(3)
        ]
        sound = WRITERS[name](tmp_path / name, records).read_bytes()
        at = round(place * len(sound))
        (tmp_path / name).write_bytes(sound[:at] + noise + sound[at + over :])
        with contextlib.suppress(UsageError):
            assert read_catalog(tmp_path / name).table.num_rows

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(value=JSON_VALUES, column=st.sampled_from(["uri", "video_id", "start_time", "person_id", "note"]))
    def test_any_json_in_a_column_is_a_catalog_or_a_usage_error(self, tmp_path: Path, value: str, column: str) -> None:
        (tmp_path / "m.jsonl").write_text(f'{{"uri": "a.mp4"}}\n{{"uri": "b.mp4", "{column}": {value}}}\n', encoding="utf-8")
        with contextlib.suppress(UsageError):
            assert read_catalog(tmp_path / "m.jsonl").table.num_rows == 2
