"""jobs.follow as a person runs it: the path in the terminal, in tables and in the report, ids from flags and files."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.gallery.audit import read_records
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.search.results import PATH_SCHEMA
from tests.conftest import add_videos, people_features, toy_spec
from tests.jobs.commands import command


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """v040 to v043 show one person, in two cameras in turn, a minute apart."""
    opened = Gallery.open_or_create(tmp_path_factory.mktemp("data") / "gallery", GallerySettings(toy_spec(), 10.0, None))
    add_videos(opened, people_features(20, 4, 24, seed=3), videos_a_shard=40)
    build_index(opened)
    return opened


def test_a_person_is_followed_into_a_path(gallery: Gallery, tmp_path: Path) -> None:
    out = tmp_path / "r"
    asked = ("--gallery", gallery.location.uri, "--out", str(out))
    ended = command("follow", "id:v041", *asked, "--top", "3", "--case", "17")
    assert ended.code == 0, ended.err
    assert "path of v041: 4 appearances in 2 cameras, joined in 1 round (at most 0.5 strangers" in ended.out
    lines = [line.split() for line in ended.out.partition("path of")[2].splitlines()[2:6]]
    assert [(line[0], line[-1] if line[-1] == "target" else "joined") for line in lines] == [
        ("1", "joined"),
        ("2", "target"),
        ("3", "joined"),
        ("4", "joined"),
    ]
    table = pq.read_table(out / "path.parquet")
    assert table.schema.equals(PATH_SCHEMA)
    assert table["video_id"].to_pylist() == ["v040", "v041", "v042", "v043"]
    assert table["why"].to_pylist() == ["joined", "target", "joined", "joined"]
    assert (out / "path.csv").read_text().count("\n") == 5
    assert len(pq.read_table(out / "results.parquet")) == 6  # the three that are in, and three more
    report = (out / "report.html").read_text()
    assert "4 appearances" in report and "No clip: /videos/v040.mp4 does not exist" in report
    record = read_records(gallery)[-1]
    assert (record["action"], record["case"], set(record["path"]["in"])) == ("follow", "17", {"v040", "v041", "v042", "v043"})
    assert command("follow", "id:v041", *asked, "--no-clips").code == 0
    assert "No clip" not in (out / "report.html").read_text()
    assert command("search", "id:v041", *asked, "--no-report").code == 0
    assert sorted(path.name for path in out.iterdir()) == ["results.csv", "results.parquet"]  # nothing of the follow is left


def test_ids_come_from_flags_and_from_files(gallery: Gallery, tmp_path: Path) -> None:
    (tmp_path / "seen.txt").write_text("v043\n\n id:v042 \n")
    asked = ("--gallery", gallery.location.uri, "--join-by", "nobody", "--reject", "id:v040")
    ended = command("follow", "id:v041", *asked, "--confirm", f"@{tmp_path / 'seen.txt'}", "--confirm", "v009")
    assert ended.code == 0, ended.err
    assert [line.split()[-2] for line in ended.out.splitlines() if line.endswith(("confirmed", "target"))][-4:] == [
        "v009",
        "v041",
        "v042",
        "v043",
    ]
    assert "v040" not in ended.out


def test_several_targets_show_one_person(gallery: Gallery) -> None:
    ended = command("follow", "id:v041", "id:v042", "--gallery", gallery.location.uri, "--join-by", "nobody", "--top", "3")
    assert ended.code == 0, ended.err
    assert [line.split()[-2:] for line in ended.out.splitlines() if line.endswith("target")] == [
        ["v041", "target"],
        ["v042", "target"],
    ]
    record = read_records(gallery)[-1]
    assert (record["target"], [one["target"] for one in record["further_targets"]]) == ("v041", ["v042"])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--confirm", "nope"), "has no video 'nope'"),
        (("--confirm", "@/nowhere"), "/nowhere is no file; @FILE names one with the id of a video on each line"),
        (("--confirm", "v042", "--reject", "v042"), "v042 is both confirmed and rejected"),
        (("--join-by", "magic"), "leads join by one of strangers, nobody, not by 'magic'"),
        (("--rounds", "0"), "a follow has at least 1 round"),
    ],
)
def test_bad_usage_is_one_sentence(gallery: Gallery, flags: tuple[str, ...], sentence: str) -> None:
    ended = command("follow", "id:v041", "--gallery", gallery.location.uri, *flags)
    assert ended.code == 2 and sentence in ended.sentence and ended.out == ""
