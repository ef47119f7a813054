"""The log's order decides and no clock, however it is checkpointed, whoever writes at the same time, whatever was before it."""

import itertools
import json
import os
import random
import shutil
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PipelineError, UsageError
from pipeline.gallery import checkpoints, entries, state
from pipeline.gallery import log as log_module
from pipeline.gallery.forgotten import Forgotten
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings
from pipeline.gallery.log import CHECKPOINT_COMMITS, Log
from pipeline.gallery.tables import MOVES_SCHEMA
from pipeline.retention.compact import compact
from pipeline.retention.verify import verify_gallery
from pipeline.storage import many_rows
from pipeline.storage.location import resolve
from pipeline.storage.seals import sealed, unsealed
from tests.conftest import add_videos, people_features, toy_spec
from tests.faulty_store import FaultyStore

FIXTURES = Path(__file__).parents[1] / "fixtures"
SETTINGS = GallerySettings(toy_spec(), 10.0, None)


def videos(*rows: dict[str, Any]) -> pa.Table:
    """Rows of VIDEOS_SCHEMA; an id stands for the source, too."""
    whole = [{"source_id": row["video_id"], "shard": "none.parquet", "first_row": 0, "sampled_frames": 1} | row for row in rows]
    return pa.Table.from_pylist(whole, schema=VIDEOS_SCHEMA)


def rejects(*ids: str) -> pa.Table:
    rows = [{"video_id": one, "source_id": one, "reason": "empty", "message": "is empty"} for one in ids]
    return pa.Table.from_pylist(rows, schema=REJECTS_SCHEMA)


def cameras(gallery: Gallery) -> dict[str, str | None]:
    table = gallery.snapshot().videos
    return dict(zip(table["video_id"].to_pylist(), table["camera_id"].to_pylist(), strict=True))


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    return Gallery.open_or_create(tmp_path / "gallery", SETTINGS)


# order


def test_of_two_writers_the_later_commit_decides_though_its_clock_is_an_hour_behind(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Behind(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Behind":
            return super().now(tz) - timedelta(hours=1)

    gallery.commit(videos({"video_id": "a", "camera_id": "of the writer with the right time"}))
    behind = Gallery.open(gallery.location.uri)
    monkeypatch.setattr(log_module, "datetime", Behind)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    behind.commit(videos({"video_id": "a", "camera_id": "of the later commit"}))
    monkeypatch.undo()
    first, second = (json.loads((Path(gallery.location.path) / f"commits/000000000{i}.json").read_text()) for i in (1, 2))
    assert second["committed_at"] < first["committed_at"]
    assert cameras(gallery) == {"a": "of the later commit"}


def test_commits_of_many_writers_at_once_are_all_there_without_gaps(gallery: Gallery) -> None:
    def write(writer: int) -> None:
        opened = Gallery.open(gallery.location.uri)
        for number in range(15):
            opened.commit(videos({"video_id": f"{writer}-{number}"}))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cameras(gallery).keys() == {f"{writer}-{number}" for writer in range(4) for number in range(15)}
    assert gallery.position() == 60 and gallery.log.missing() == []


def test_a_checkpoint_that_cannot_be_written_costs_no_commit(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise PipelineError("the disk is full")

    monkeypatch.setattr(Log, "checkpoint", refuse)
    for number in range(2 * CHECKPOINT_COMMITS):
        gallery.commit(videos({"video_id": f"v{number}"}))
    assert len(cameras(gallery)) == 16 and gallery.log.checkpoints.newest() == 0
    assert "no checkpoint was written: the disk is full" in caplog.text
    monkeypatch.undo()
    for number in range(CHECKPOINT_COMMITS):
        gallery.commit(videos({"video_id": f"w{number}"}))
    assert len(cameras(gallery)) == 24 and gallery.log.checkpointed() == 24


class Model:
    """What a gallery must hold, kept as a newcomer would: a dictionary of sources and another of deletions."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.rejected: set[str] = set()
        self.forgotten: set[str] = set()
        self.stale: set[str] = set()

    def leaves(self, name: str) -> None:
        """What the gallery held of a source counts no more where it is."""
        if name in self.rows:
            self.stale.add(f"frames/{self.rows[name]['shard']}")

    def ingest(self, row: dict[str, Any]) -> None:
        self.leaves(row["video_id"])
        self.rejected.discard(row["video_id"])
        self.rows[row["video_id"]] = dict(row)
        self.forget(self.forgotten)

    def reject(self, name: str) -> None:
        self.leaves(name)
        self.rows.pop(name, None)
        self.rejected.add(name)

    def forget(self, names: set[str]) -> None:
        self.forgotten |= names
        for name in names:
            self.leaves(name)

    def held(self) -> dict[str, tuple]:
        alive = {name: row for name, row in self.rows.items() if name not in self.forgotten}
        return {name: (row["shard"], row["first_row"], row.get("camera_id"), row["ingested_at"]) for name, row in alive.items()}


@pytest.mark.parametrize("seed", range(6))
def test_a_gallery_holds_what_a_dictionary_would_whenever_it_is_checkpointed(
    gallery: Gallery, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, model = random.Random(seed), Model()
    start = datetime(2026, 3, 1, tzinfo=UTC)
    monkeypatch.setattr(log_module, "CHECKPOINT_COMMITS", chance.choice([2, 3, 5]))
    monkeypatch.setattr(entries, "INLINE_ROWS", chance.choice([0, 2, 256]))
    if seed % 2:  # as those of more rows than are held in memory
        monkeypatch.setattr(many_rows, "IN_MEMORY", 3)
        monkeypatch.setattr(many_rows, "STEP_ROWS", 2)
        monkeypatch.setattr(many_rows.steps, "__defaults__", (2,))
        monkeypatch.setattr(state, "COMPARED_ROWS", 4)
    for step in range(70):
        names = [f"v{chance.randrange(12)}" for _ in range(chance.randrange(1, 4))]
        there = sorted(model.rows)
        match chance.choice(["ingest", "ingest", "reject", "correct", "move", "forget", "checkpoint"]):
            case "ingest":
                rows = [
                    {"video_id": one, "shard": f"{step}.parquet", "first_row": i, "ingested_at": start + timedelta(seconds=step)}
                    for i, one in enumerate(dict.fromkeys(names))
                ]
                gallery.commit(videos(*rows))
                for row in rows:
                    model.ingest(row)
            case "reject":
                gallery.commit(None, rejects(*dict.fromkeys(names)))
                for one in names:
                    model.reject(one)
            case "correct" if there:
                row = model.rows[chance.choice(there)]
                if chance.random() < 0.3:  # of an ingest that has been replaced
                    gallery.commit(videos(row | {"camera_id": "late", "ingested_at": start - timedelta(1)}), kind="correct")
                    continue
                row["camera_id"] = f"cam{step}"
                gallery.commit(videos(row | {"shard": "elsewhere", "first_row": 99}), kind="correct")
            case "move" if there:
                row = model.rows[chance.choice(there)]
                move = {"folder": "frames", "id": row["video_id"], "shard": row["shard"], "to_first_row": 7}
                gone = move | {"shard": "replaced.parquet"}
                moves = [one | {"to_shard": f"moved{step}{i}.parquet"} for i, one in enumerate([move, gone, move])]
                gallery.commit(kind="compact", moves=pa.Table.from_pylist(moves, schema=MOVES_SCHEMA))
                model.leaves(row["video_id"])
                row |= {"shard": f"moved{step}0.parquet", "first_row": 7}
                model.stale |= {"frames/replaced.parquet", *(f"frames/moved{step}{i}.parquet" for i in (1, 2))}
                model.forget(model.forgotten)
            case "forget" if chance.random() < 0.2:
                gallery.commit(kind="forget", forgotten=Forgotten(frozenset(names)))
                model.forget(set(names))
            case "checkpoint":
                gallery.log.checkpoint(whole=chance.random() < 0.3)
        snapshot = Gallery.open(gallery.location.uri).snapshot()
        rows = snapshot.videos.to_pylist()
        found = {row["video_id"]: (row["shard"], row["first_row"], row["camera_id"], row["ingested_at"]) for row in rows}
        assert found == model.held()
        assert set(snapshot.rejects["video_id"].to_pylist()) == model.rejected and snapshot.forgotten == model.forgotten
        assert {name for name in snapshot.stale if name.startswith("frames/")} == model.stale


def test_a_checkpoint_that_was_overtaken_by_a_compaction_names_none_of_the_files_that_went(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((_, features),) = people_features(1, 1, 24, seed=1)
    for number in range(9):
        add_videos(gallery, [("p", features)], first=number)
    gallery.log.checkpoint()
    add_videos(gallery, [("p", features)], first=9)
    merge = checkpoints.merged

    def overtaken(*arguments: Any, **how: Any) -> Any:
        monkeypatch.setattr(checkpoints, "merged", merge)
        compact(Gallery.open(gallery.location.uri), timedelta(0))
        return merge(*arguments, **how)

    monkeypatch.setattr(checkpoints, "merged", overtaken)
    gallery.log.checkpoint()
    assert len(Gallery.open(gallery.location.uri).snapshot().videos) == 10 and verify_gallery(gallery) == []


def test_rows_that_left_a_shard_make_it_stale_and_the_rest_of_it_live(gallery: Gallery) -> None:
    gallery.commit(videos({"video_id": "a", "shard": "1"}, {"video_id": "b", "shard": "1"}, {"video_id": "c", "shard": "2"}))
    assert gallery.snapshot().stale == frozenset()
    gallery.commit(videos({"video_id": "a", "shard": "3"}))
    gallery.commit(kind="forget", forgotten=Forgotten(frozenset({"c"})))
    for whole in (None, False, True):
        if whole is not None:
            gallery.log.checkpoint(whole=whole)
        snapshot = gallery.snapshot()
        assert {name for name in snapshot.stale if name.startswith("frames/")} == {"frames/1", "frames/2"}
        assert snapshot.live == {"frames/1", "frames/3"}


def test_a_shard_that_a_compaction_is_about_to_delete_is_committed_by_nobody(gallery: Gallery) -> None:
    gallery.commit(videos({"video_id": "a", "shard": "1"}))
    seen = gallery.position()
    gallery.commit(kind="compact", retired=["frames/2"])
    with pytest.raises(PipelineError, match="frames/2 went away before it was committed; run the ingest again"):
        gallery.commit(videos({"video_id": "b", "shard": "2"}), checked=seen)
    gallery.commit(videos({"video_id": "b", "shard": "3"}), checked=seen)
    assert cameras(gallery).keys() == {"a", "b"}


def test_an_ingest_goes_on_through_a_compaction_unless_its_shards_went_with_it(gallery: Gallery) -> None:
    ((_, features),) = people_features(1, 1, 24, seed=1)
    for number in range(3):
        add_videos(gallery, [("p", features)], first=number)
    seen, there = gallery.position(), gallery.snapshot().videos
    written = gallery.write_shard(gallery.read_video(there.to_pylist()[0]))
    compact(Gallery.open(gallery.location.uri))
    gallery.commit(videos({"video_id": "b", "shard": written}), checked=seen)
    assert "b" in cameras(gallery)
    with pytest.raises(PipelineError, match=r"went away before it was committed; run the ingest again"):
        gallery.commit(there, checked=seen)


def test_two_first_ingests_do_not_mix_their_settings(tmp_path: Path, s3_options: str) -> None:
    for place in (str(tmp_path / "new"), f"s3://bucket/new{s3_options}"):
        refused: list[str] = []

        def create(rate: float, place: str = place, refused: list[str] = refused) -> None:
            try:
                Gallery.open_or_create(place, GallerySettings(toy_spec(), rate, None))
            except UsageError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=create, args=(float(rate),)) for rate in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refused) == 7 and 1 <= Gallery.open(place).settings.rate <= 8


# what older versions wrote


def write_old_commit(gallery: Path, at: int, rows: pa.Table, **fields: Any) -> str:
    """A commit as releases before the log wrote them; returns its name. at: nanoseconds."""
    name = f"{at:020d}-{uuid.uuid4().hex[:8]}"
    table = f"videos/{uuid.uuid4().hex}.parquet"
    (gallery / "videos").mkdir(exist_ok=True)
    pq.write_table(rows, gallery / table)
    document = {"kind": "ingest", "videos": [table], "rejects": [], **fields}
    (gallery / "commits").mkdir(exist_ok=True)
    (gallery / "commits" / f"{name}.json").write_bytes(sealed(document))
    return name


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A gallery of the first release."""
    return Path(shutil.copytree(FIXTURES / "0.1/gallery", tmp_path / "old"))


def test_an_old_gallery_is_read_without_being_changed_and_its_commits_come_before_new_ones(old: Path) -> None:
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    opened = Gallery.open(old)
    was = opened.snapshot().videos
    assert len(was) == 12 and not opened.has_changes_since(opened.position())
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
    row = was.to_pylist()[0]
    relabelled = pa.Table.from_pylist([row | {"person_id": "somebody else"}], schema=VIDEOS_SCHEMA)
    opened.commit(relabelled)
    after = {one["video_id"]: one for one in Gallery.open(old).snapshot().videos.to_pylist()}
    assert after == {one["video_id"]: one for one in was.to_pylist()} | {row["video_id"]: row | {"person_id": "somebody else"}}
    assert unsealed((old / "gallery.json").read_bytes())["format"] == 3, "older versions must not miss what is in the log"
    assert opened.has_changes_since([path.stem for path in before if path.parent.name == "commits"])
    add_videos(opened, people_features(2, 2, 16, seed=3), first=100)
    compact(opened, timedelta(0))
    assert len(opened.snapshot().videos) == 16 and verify_gallery(opened) == []
    assert not [path for path in before if path.parent.name in ("commits", "videos") and path.exists()]


def test_the_last_of_old_commits_is_the_one_by_time_and_compactions_come_first(gallery: Gallery) -> None:
    root = Path(gallery.location.path)
    (root / "gallery.json").write_bytes(sealed({**unsealed((root / "gallery.json").read_bytes()), "format": 1}))
    first = write_old_commit(root, 1, videos({"video_id": "a", "camera_id": "1"}, {"video_id": "b", "camera_id": "1"}))
    write_old_commit(root, 5, videos({"video_id": "b", "camera_id": "while it ran"}))
    write_old_commit(root, 9, videos({"video_id": "a", "camera_id": "9"}), kind="compact", supersedes=[first])
    write_old_commit(root, 7, videos({"video_id": "a", "camera_id": "corrected"}), kind="correct")
    for _ in range(3):
        assert cameras(Gallery.open(root)) == {"a": "corrected", "b": "while it ran"}
        Gallery.open(root).adopt()
        Gallery.open(root).log.checkpoint(whole=True)


def test_what_an_older_version_forgot_stays_forgotten(old: Path) -> None:
    opened = Gallery.open(old)
    known = opened.position()
    gone, *others = sorted(cameras(opened))
    write_old_commit(old, time.time_ns(), videos(), kind="forget", forgotten=[gone])
    for _ in range(2):
        opened = Gallery.open(old)
        assert opened.forgotten() == opened.forgotten(known) == {gone} and sorted(cameras(opened)) == others
        assert not opened.has_changes_since(opened.position()) and opened.log.is_newest(opened.position())
        opened.adopt()


def test_what_an_older_version_writes_into_the_log_s_gallery_is_found_and_taken_in(old: Path) -> None:
    opened = Gallery.open(old)
    opened.commit(rejects=rejects("x"))
    write_old_commit(old, time.time_ns(), videos({"video_id": "stray"}))
    assert "stray" not in cameras(opened)
    (fault,) = [one for one in verify_gallery(opened) if "older version" in one]
    assert fault.startswith("1 commits of an older version are not in the log") and "jobs.compact takes them in" in fault
    known = opened.position()
    opened.adopt()
    assert opened.has_changes_since(known) and not opened.has_changes_since(opened.position())
    assert "stray" in cameras(opened) and opened.log.strays() == [] and not opened.adopt()


def test_writers_that_migrate_at_once_adopt_once(old: Path) -> None:
    threads = [
        threading.Thread(target=lambda one=one: Gallery.open(old).commit(videos({"video_id": f"new{one}"}))) for one in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cameras(Gallery.open(old))) == 16
    kinds = [json.loads(path.read_text())["kind"] for path in sorted((old / "commits").glob("0000??????.json"))]
    assert sorted(kinds) == ["adopt", "ingest", "ingest", "ingest", "ingest"]


@pytest.mark.parametrize("writes", range(1, 6))
def test_a_migration_that_is_killed_is_gone_on_with(old: Path, writes: int) -> None:
    from pipeline.storage.location import Location

    child = os.fork()
    if not child:
        left = itertools.count(1)

        def killed(act: Any) -> Any:
            return lambda *arguments, **how: os._exit(9) if next(left) == writes else act(*arguments, **how)

        for name in ("write_atomically", "create"):
            setattr(Location, name, killed(getattr(Location, name)))
        try:
            Gallery.open(old).commit(videos({"video_id": "new"}))
        finally:
            os._exit(0)  # whatever was raised: another pytest must not go on from here
    os.waitpid(child, 0)
    assert len(cameras(Gallery.open(old)).keys() - {"new"}) == 12
    Gallery.open(old).commit(videos({"video_id": "new"}))
    assert len(cameras(Gallery.open(old))) == 13 and Gallery.open(old).log.strays() == []


# in a bucket


def copied(folder: Path, uri: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            resolve(uri).join(path.relative_to(folder).as_posix()).write_atomically(path.read_bytes())


@pytest.mark.parametrize("commits", [1, 40, 207])
def test_opening_a_gallery_in_a_bucket_costs_a_handful_of_requests_however_old_it_is(
    store: FaultyStore, gallery: Gallery, commits: int
) -> None:
    for number in range(commits):
        gallery.commit(videos({"video_id": f"v{number}"}), rejects(f"r{number}"))
    uri = f"s3://bucket/old{commits}?endpoint_override={store.endpoint}&region=us-east-1"
    copied(Path(gallery.location.path), uri)
    with store.failing():
        snapshot = Gallery.open(uri).snapshot()
        requests = store.requests
    assert (len(snapshot.videos), len(snapshot.rejects)) == (commits, commits) and requests <= 50
    known = snapshot.position
    with store.failing():
        assert Gallery.open(uri).forgotten(known) == frozenset()
        assert store.requests <= 4
