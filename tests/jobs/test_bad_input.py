"""What the commands say of bad input: one sentence, and an exit code."""

import json
import pickle
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.coattention.head import save_head
from pipeline.gallery.audit import read_records
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.index.version_files import FORMAT
from tests.conftest import add_videos, people_features
from tests.decoding.test_video import write_video
from tests.jobs.commands import command, found, process


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the command lines of the table name: {t} a folder full of bad things, {g} a good gallery with an index."""
    t = tmp_path_factory.mktemp("bad")
    spec = find_backbone(DEFAULT, (64, 32))
    settings = GallerySettings(spec, 10.0, None)
    good, unindexed = (Gallery.open_or_create(t / name, settings) for name in ("gallery", "unindexed"))
    Gallery.open_or_create(t / "without videos", settings)
    add_videos(good, people_features(3, 4, spec.dim, seed=1))
    add_videos(unindexed, people_features(1, 2, spec.dim, seed=1))
    index = build_index(good)
    save_head(index.head, t / "foreign head", {}, "osnet@0123456789abcdef")
    (t / "head.pt").write_bytes(pickle.dumps({}))
    (t / "pickled head").mkdir()
    (t / "pickled head" / "model.pt").write_bytes(pickle.dumps({}))

    def copied(name: str, file: str, content: str) -> None:
        shutil.copytree(t / "gallery", t / name)
        next((t / name).glob(file)).write_text(content)

    copied("cut gallery", "gallery.json", (t / "gallery" / "gallery.json").read_text()[:80])
    copied("list gallery", "gallery.json", "[]")
    fields = json.loads((t / "gallery" / "gallery.json").read_text())
    copied("rateless gallery", "gallery.json", json.dumps({**fields, "rate": None}))
    copied("cut commit", "commits/*.json", '{"kind": "ing')
    copied("bare commit", "commits/*.json", "{}")
    copied("list commit", "commits/*.json", "[]")
    copied("list manifest", "index/*/manifest.json", "[]")
    copied("bare manifest", "index/*/manifest.json", json.dumps({"format": FORMAT, "version": index.version}))

    write_video(t / "good.mp4")
    (t / "text.mp4").write_text("not a video")
    (t / "empty.mp4").touch()
    (t / "good.csv").write_text("uri\ngood.mp4\n")
    (t / "folder").mkdir()
    (t / "texts").mkdir()
    (t / "texts" / "notes.txt").write_text("nothing")
    (t / "others").mkdir()
    (t / "others" / "mine.txt").write_text("keep")
    (t / "no uri.csv").write_text("video_id\na\n")
    (t / "no rows.csv").write_text("uri\n")
    (t / "same uri.csv").write_text("uri,video_id\na.mp4,a\na.mp4,b\n")
    (t / "same id.csv").write_text("uri,video_id\na.mp4,a\nb.mp4,a\n")
    (t / "time.csv").write_text("uri,start_time\na.mp4,yesterday\n")
    (t / "latin.csv").write_bytes("uri\nMüller.mp4\n".encode("latin-1"))
    (t / "json.jsonl").write_text('{"uri": "a.mp4"}\n{"uri"\n')
    (t / "damaged.parquet").write_bytes(b"PAR1 and then nothing PAR1")
    (t / "input.xyz").write_text("what is this")
    (t / "net.pth").write_bytes(pickle.dumps({}))
    (t / "junk.onnx").write_bytes(b"junk")
    sidecar = {"height": 64, "width": 32, "channels": "RGB", "scale": 255, "mean": [0, 0, 0], "std": [1, 1, 1], "dim": 3}
    (t / "junk.json").write_text(json.dumps(sidecar))
    for name in ("alone", "mean"):
        save_mean_network(t / f"{name}.onnx")
    (t / "mean.json").write_text(json.dumps({**sidecar, "dim": 7}))
    return {"t": str(t), "g": str(t / "gallery")}


def save_mean_network(path: Path) -> None:
    """An ONNX network whose 3 features are the mean of each channel."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 64, 32])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    node = helper.make_node("ReduceMean", ["images", "axes"], ["features"], keepdims=0)
    graph = helper.make_graph([node], "mean", [images], [features], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))


INGEST = "ingest|{t}/good.csv|--gallery|{t}/new|--input-size|64x32"
SEARCH = "search|id:v000|--gallery|{g}"

# (command line with | between its words, exit code, words that the sentence has)
BAD_INPUT = [
    ("ingest|{t}/absent|--gallery|{t}/new", 2, "no file or folder {t}/absent"),
    ("ingest||--gallery|{t}/new", 2, "cannot be a path: it is empty"),
    ("ingest|{t}/folder|--gallery|{t}/new", 2, "{t}/folder holds no video"),
    ("ingest|{t}/texts|--gallery|{t}/new", 2, "{t}/texts holds no video"),
    ("ingest|{t}/input.xyz|--gallery|{t}/new", 2, "{t}/input.xyz is no input"),
    ("ingest|{t}/no uri.csv|--gallery|{t}/new", 2, "has no column uri"),
    ("ingest|{t}/no rows.csv|--gallery|{t}/new", 2, "has no rows"),
    ("ingest|{t}/same uri.csv|--gallery|{t}/new", 2, "1 uri values stand more than once"),
    ("ingest|{t}/same id.csv|--gallery|{t}/new", 2, "1 video_id values stand more than once"),
    ("ingest|{t}/time.csv|--gallery|{t}/new", 2, "row 1 of {t}/time.csv: start_time 'yesterday'"),
    ("ingest|{t}/latin.csv|--gallery|{t}/new", 2, "{t}/latin.csv is not UTF-8"),
    ("ingest|{t}/json.jsonl|--gallery|{t}/new", 2, "line 2 of {t}/json.jsonl is not JSON"),
    ("ingest|{t}/damaged.parquet|--gallery|{t}/new", 2, "{t}/damaged.parquet cannot be read as Parquet"),
    ("ingest|{t}/good.csv|--gallery|{t}/new|--backbone|resnet50", 2, "a backbone is 'osnet_x0_25_distilled' or"),
    ("ingest|{t}/good.csv|--gallery|{t}/new|--backbone|{t}/absent.onnx", 2, "backbone {t}/absent.onnx does not exist"),
    ("ingest|{t}/good.csv|--gallery|{t}/new|--backbone|{t}/net.pth", 2, "not '{t}/net.pth'; other formats are not loaded"),
    ("ingest|{t}/good.csv|--gallery|{t}/new|--backbone|{t}/alone.onnx", 2, "needs a sidecar alone.json"),
    ("ingest|{t}/good.csv|--gallery|{t}/new|--backbone|{t}/mean.onnx", 1, "features of shape (8, 3) for 8 frames, not (8, 7)"),
    ("ingest|{t}/good.csv|--gallery|{t}/new|--backbone|{t}/junk.onnx", 1, "{t}/junk.onnx is not an ONNX network"),
    ("ingest|{t}/good.csv|--gallery|{t}/new|--input-size|abc", 2, "HEIGHTxWIDTH in pixels, for example 256x128, not 'abc'"),
    ("ingest|{t}/good.csv|--gallery|{t}/new|--input-size|00x64", 2, "height must be a positive number"),
    (INGEST + "|--sample-rate|0", 2, "rate must be a positive number, not 0"),
    (INGEST + "|--sample-rate|-1", 2, "rate must be a positive number, not -1"),
    (INGEST + "|--sample-rate|nan", 2, "rate must be a positive number, not nan"),
    (INGEST + "|--image-rate|0", 2, "image rate must be a positive number"),
    (INGEST + "|--time-limit|0", 2, "time limit must be a positive number"),
    (INGEST + "|--memory-limit|0", 2, "memory limit must be a positive number"),
    (INGEST + "|--decoders|-1", 2, "decoders"),
    (INGEST + "|--embedders|0", 2, "embedders"),
    (INGEST + "|--shard-pieces|0", 2, "'--shard-pieces'"),
    ("ingest|{t}/good.csv", 2, "Missing option '--gallery'"),
    ("ingest|{t}/good.csv|--gallery|{t}/input.xyz", 2, "{t}/input.xyz is a file; a gallery is a folder"),
    ("ingest|{t}/good.csv|--gallery|{t}/input.xyz/gallery", 1, "{t}/input.xyz/gallery"),
    ("ingest|{t}/good.csv|--gallery|/proc/nothing/gallery", 1, "cannot write /proc/nothing/gallery"),
    ("ingest|{t}/good.csv|--gallery|{t}/others", 2, "{t}/others is not empty and not a gallery"),
    ("ingest|{t}/good.csv|--gallery|ftp://host/gallery", 2, "unknown scheme ftp://"),
    ("ingest|{t}/good.csv|--gallery|s3://key:secret@bucket/gallery", 2, "carries credentials"),
    ("ingest|{t}/good.csv|--gallery|{g}|--input-size|64x32|--sample-rate|5", 2, "sample rate 5.0 instead of 10.0"),
    ("ingest|{t}/good.csv|--gallery|{g}|--input-size|64x48", 2, "made with other settings: backbone osnet_x0_25_distilled@"),
    ("ingest|{t}/good.csv|--gallery|{t}/cut gallery|--input-size|64x32", 1, "{t}/cut gallery/gallery.json is damaged"),
    ("index|--gallery|{t}/absent", 2, "{t}/absent is not a gallery"),
    ("index|--gallery|{t}/without videos", 1, "has no videos yet; run jobs.ingest first"),
    ("index|--gallery|{g}|--segment-length|0", 2, "a segment needs at least 1 frame, not 0"),
    ("index|--gallery|{g}|--stride|-2", 2, "the stride between segments is at least 1 frame, not -2"),
    ("index|--gallery|{g}|--partition-videos|0", 2, "a partition holds at least 1 video"),
    ("index|--gallery|{g}|--head|{t}/absent", 1, "{t}/absent is not a folder: a head is a folder"),
    ("index|--gallery|{g}|--head|", 2, "'' cannot be a path"),
    ("index|--gallery|{g}|--head|{t}/foreign head", 1, "belongs to the backbone osnet@0123456789abcdef; the gallery has"),
    ("index|--gallery|{g}|--head|{t}/head.pt", 1, "pickled weights, which are never opened"),
    ("index|--gallery|{g}|--head|{t}/pickled head", 1, "there is model.pt, but pickled weights are never opened"),
    ("search|--gallery|{g}", 2, "Missing argument 'TARGET'"),
    ("search|id:v000|--gallery|{t}/absent", 2, "{t}/absent is not a gallery"),
    ("search|id:v000|--gallery|{t}/input.xyz", 2, "{t}/input.xyz is not a gallery"),
    ("search|id:v000|--gallery|{t}/unindexed", 2, "{t}/unindexed has no index yet; run jobs.index first"),
    ("search|id:v000|--gallery|{t}/cut gallery", 1, "{t}/cut gallery/gallery.json is damaged"),
    ("search|id:v000|--gallery|{t}/list gallery", 1, "{t}/list gallery/gallery.json is damaged"),
    ("search|id:v000|--gallery|{t}/rateless gallery", 1, "{t}/rateless gallery/gallery.json is damaged"),
    ("search|id:v000|--gallery|{t}/cut commit", 1, "the commit {t}/cut commit/commits/"),
    ("search|id:v000|--gallery|{t}/bare commit", 1, "the commit {t}/bare commit/commits/"),
    ("search|id:v000|--gallery|{t}/list commit", 1, "the commit {t}/list commit/commits/"),
    ("search|id:v000|--gallery|{t}/list manifest", 1, "the index {t}/list manifest/index/"),
    ("search|id:v000|--gallery|{t}/bare manifest", 1, "the index {t}/bare manifest/index/"),
    (SEARCH + "|--index-version|old", 2, "has no index version 'old'; it has "),
    ("search|id:v999|--gallery|{g}", 2, "has no video 'v999'"),
    ("search|{t}/absent.mp4|--gallery|{g}", 2, "the target cannot be used: {t}/absent.mp4 does not exist"),
    ("search|{t}/text.mp4|--gallery|{g}", 2, "the target cannot be used: {t}/text.mp4 is not in a video format"),
    ("search|{t}/empty.mp4|--gallery|{g}", 2, "the target cannot be used: {t}/empty.mp4 is an empty file"),
    ("search|{t}/folder|--gallery|{g}", 2, "the target cannot be used: {t}/folder has no frames"),
    ("search|{t}/good.mp4|--gallery|{g}|--backbone|{t}/alone.onnx", 2, "needs a sidecar alone.json"),
    (SEARCH + "|id:v000", 2, "the target v000 is given twice"),
    (SEARCH + "|--camera|cam9", 2, "the gallery has no camera 'cam9'; it has cam0, cam1"),
    (SEARCH + "|--after|2026-03-02|--before|2026-03-01", 2, "the time window is empty"),
    (SEARCH + "|--between|22-2", 2, "hours of the day are two times such as 22:00-02:00, not '22-2'"),
    (SEARCH + "|--between|10:00-25:00", 2, "hours of the day are two times such as 22:00-02:00, not '10:00-25:00'"),
    (SEARCH + "|--between|00:00-24:00", 2, "a daily window from 00:00 to 00:00 is empty; name two times"),
    (SEARCH + "|--zone|Mars/Olympus", 2, "'Mars/Olympus' is no time zone; name one of the time zone database"),
    (SEARCH + "|--zone|../etc/passwd", 2, "'../etc/passwd' is no time zone"),
    (SEARCH + "|--zone|", 2, "'' is no time zone"),
    (SEARCH + "|--after|nonsense", 2, "'nonsense' is not a time in ISO 8601"),
    (SEARCH + "|--after|0001-01-01T00:00:00+14:00", 2, "'0001-01-01T00:00:00+14:00' is not a time"),
    (SEARCH + "|--shortlist|0", 2, "--shortlist is a number of videos, a share such as 5%, or all, not '0'"),
    (SEARCH + "|--shortlist|" + 5000 * "1", 2, "--shortlist is a number of videos, a share such as 5%, or all, not '1"),
    (SEARCH + "|--time-limit|1e9", 2, "a time limit is at most 1000000 seconds, not 1e+09"),
    (SEARCH + "|--shortlist|-1", 2, "--shortlist is a number of videos, a share such as 5%, or all, not '-1'"),
    (SEARCH + "|--shortlist|abc", 2, "--shortlist is a number of videos, a share such as 5%, or all, not 'abc'"),
    (SEARCH + "|--patience|0", 2, "--patience is a number of videos of at least 1, or all, not '0'"),
    (SEARCH + "|--patience|some", 2, "--patience is a number of videos of at least 1, or all, not 'some'"),
    (SEARCH + "|--shortlist|²", 2, "--shortlist is a number of videos, a share such as 5%, or all, not '²'"),
    (SEARCH + "|--ratio|0", 2, "above 0 and at most 1, not 0.0"),
    (SEARCH + "|--ratio|2", 2, "above 0 and at most 1, not 2.0"),
    (SEARCH + "|--threshold|nan", 2, "threshold must be from 0 to 1, as scores are, not nan"),
    (SEARCH + "|--aggregate|max", 2, "by mean or sum, not by 'max'"),
    (SEARCH + "|--top|0", 2, "top"),
    (SEARCH + "|--top|many", 2, "'--top'"),
    (SEARCH + "|--pairs|0", 2, "pairs"),
    (SEARCH + "|--target-length|0", 2, "a segment needs at least 1 frame, not 0"),
    (SEARCH + "|--target-stride|0", 2, "the stride between segments is at least 1 frame, not 0"),
    (SEARCH + "|--actors|-1", 2, "actors"),
    (SEARCH + "|--time-limit|0", 2, "time limit must be a positive number"),
    (SEARCH + "|--out|{t}/input.xyz", 2, "{t}/input.xyz is a file"),
    (SEARCH + "|--out|/proc/nothing/out", 1, "/proc/nothing/out"),
    (SEARCH + "|--nonsense", 2, "No such option: --nonsense"),
    ("status|--gallery|{t}/absent", 2, "{t}/absent is not a gallery"),
    ("status|--gallery|{t}/rateless gallery", 1, "{t}/rateless gallery/gallery.json is damaged"),
    ("status|--gallery|{t}/list manifest|--verify", 1, "{t}/list manifest/index/"),
    ("forget|--gallery|{g}|--video-id|v000", 2, "a reason is needed: it goes into the audit log; nothing was forgotten"),
    ("forget|--gallery|{g}|--reason|x", 2, "say what to forget"),
    ("forget|--gallery|{g}|--reason|x|--video-id|v999", 2, "has no video 'v999'; nothing was forgotten"),
    ("forget|--gallery|{g}|--reason|x|--before|soon", 2, "'soon' is not a time in ISO 8601"),
    ("forget|--gallery|{g}|--reason| |--video-id|v000", 2, "reason"),
    ("forget|--gallery|{g}|--reason|x|--camera|cam1|--before|2000-01-01", 2, "one at a time; nothing was forgotten"),
    ("compact|--gallery|{t}/absent", 2, "{t}/absent is not a gallery"),
    ("compact|--gallery|{t}/unindexed|--orphan-hours|-1", 2, "orphan"),
    ("compact|--gallery|{t}/unindexed|--orphan-hours|nan", 2, "orphan"),
    ("status|--gallery|{g}|--audit-head|1:ab", 2, "--audit-head is compared with the log by --verify only"),
    ("render|s3://bucket/network", 2, "not into a bucket"),
    ("occlude|{t}|--out|s3://bucket/copies", 2, "not into a bucket"),
    ("render|{t}/others", 2, "{t}/others holds files that are not a rendered network"),
    ("render|{t}/input.xyz", 2, "{t}/input.xyz"),
    ("render|{t}/input.xyz/network", 1, "{t}/input.xyz/network"),
]


def files_below(folder: str) -> dict[Path, float]:
    return {path: path.stat().st_mtime for path in Path(folder).rglob("*") if "audit" not in path.parts and path.is_file()}


@pytest.mark.parametrize(("line", "code", "words"), BAD_INPUT, ids=[line for line, _, _ in BAD_INPUT])
def test_bad_input_is_told_in_one_sentence(places: dict[str, str], line: str, code: int, words: str) -> None:
    name, *arguments = line.format(**places).split("|")
    before = files_below(places["t"])
    ended = command(name, *arguments)
    assert "Traceback" not in ended.err, ended.err
    assert ended.code == code
    assert words.format(**places) in ended.sentence
    if ended.err.startswith("Usage:"):
        assert ended.sentence.startswith("Error: ") and len(ended.err.splitlines()) <= 4
    else:
        assert ended.sentence.startswith("error: ") and len(ended.err.splitlines()) <= 3
    assert ended.out == "" or code == 1
    assert files_below(places["t"]) == before, "something was written or deleted"


def test_hours_of_the_day_and_times_are_of_the_zone_and_stand_in_the_audit_log(places: dict[str, str], tmp_path: Path) -> None:
    # v000 to v011 begin a minute apart from 12:00 UTC on: 21:00 in Tokyo.
    for flags, inside in (
        (("--between", "21:03-21:05"), {"v003", "v004"}),
        (("--between", "21:10-24:00"), {"v010", "v011"}),
        (("--after", "2026-03-01T21:09"), {"v009", "v010", "v011"}),
        (("--after", "2026-03-01T12:10Z"), {"v010", "v011"}),
    ):
        asked = ("id:v000", "--gallery", places["g"], "--zone", "Asia/Tokyo", *flags, "--out", str(tmp_path), "--no-report")
        ended = command("search", *asked, "--shortlist", "all")
        assert ended.code == 0 and {row["video_id"] for row in found(tmp_path)} == inside
        assert f"2026-03-01 21:{max(inside)[2:]}:00 JST" in ended.out
        record = read_records(Gallery.open(places["g"]))[-1]
        assert (record["untimed"], record["settings"]["zone"]) == (0, "Asia/Tokyo")
        assert [name for name in ("after", "between") if record["settings"][name]] == [flags[0].removeprefix("--")]
    assert command("search", "id:v000", "--gallery", places["g"]).code == 0
    assert read_records(Gallery.open(places["g"]))[-1]["untimed"] is None


@pytest.mark.parametrize("line", ["ingest|{t}/absent|--gallery|{t}/new", SEARCH + "|--shortlist|abc", "search|--gallery|{g}"])
def test_a_process_ends_as_the_command_within_this_one_does(places: dict[str, str], line: str) -> None:
    name, *arguments = line.format(**places).split("|")
    here, there = command(name, *arguments), process(name, *arguments)
    assert (here.code, here.out) == (there.code, there.out)
    assert here.sentence == there.sentence and len(here.err.splitlines()) == len(there.err.splitlines())
