from dataclasses import replace

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from jobs.train import train
from jobs.train_end_to_end import NAME, train_end_to_end
from pipeline.backbone.runtime import load_backbone
from pipeline.backbone.shipped import read_network, shipped_network
from pipeline.backbone.spec import DEFAULT, find_backbone, normalise_pixels
from pipeline.coattention.head import load_head
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings, frames_table
from pipeline.storage.location import resolve
from pipeline.training.augmentation import AugmentationSettings
from pipeline.training.checkpoint import newest_checkpoint
from pipeline.training.end_to_end import run_end_to_end, start_training
from pipeline.training.features import Source
from pipeline.training.frames import cache_frames
from pipeline.training.initial_head import StartSettings
from pipeline.training.run import TrainingPlan
from pipeline.training.settings import TrainingSettings
from tests.conftest import toy_spec

SPEC = toy_spec(8)  # 32 x 16 pixels
PEOPLE, CAMERAS, FRAMES = 10, 2, 6
SETTINGS = TrainingSettings(
    people=4, tracklets=2, segments=1, segment_length=4, batches=4, epochs=2, learning_rate=2e-3, backbone_rate=1.0
)
START = StartSettings(8, 8)


class TinyNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 8)
        )

    def forward(self, frames):
        return self.layers(frames)


def tiny_network(seed=0):
    torch.manual_seed(seed)
    return TinyNetwork()


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """Folders of images, a person's shirt and trousers in their colours, under two cameras."""
    folder = tmp_path_factory.mktemp("footage")
    random = np.random.default_rng(0)
    opened = Gallery.open_or_create(folder / "gallery", GallerySettings(SPEC, 10.0, None))
    rows = []
    for person in range(PEOPLE):
        colours = random.integers(0, 256, (2, 3))
        for camera in range(CAMERAS):
            place = folder / f"p{person}_c{camera}"
            place.mkdir()
            for number in range(FRAMES):
                picture = np.empty((32, 16, 3), np.uint8)
                picture[:16], picture[16:] = colours
                picture = np.clip(picture * (0.8 + 0.2 * camera) + random.normal(0, 6, picture.shape), 0, 255)
                cv2.imwrite(str(place / f"{number:04d}.png"), picture.astype(np.uint8)[..., ::-1])
            rows.append({"video_id": place.name, "uri": str(place), "camera_id": f"c{camera}", "person_id": f"p{person}"})
    rows.sort(key=lambda row: row["video_id"])
    ids, numbers = [row["video_id"] for row in rows], np.tile(np.arange(FRAMES), len(rows))
    features = random.normal(size=(len(numbers), 8)).astype(np.float16)
    shard = opened.write_shard(frames_table(ids, [FRAMES] * len(rows), numbers, numbers / 10, features))
    for place, row in enumerate(rows):
        row |= {"sampled_frames": FRAMES, "shard": shard, "first_row": place * FRAMES, "source_id": row["video_id"]}
    opened.commit(pa.Table.from_pylist(rows, schema=VIDEOS_SCHEMA), REJECTS_SCHEMA.empty_table())
    return opened


@pytest.fixture(scope="module")
def frames(gallery, tmp_path_factory):
    return cache_frames([Source(gallery.location.uri)], tmp_path_factory.mktemp("cache"), 32, 16)


def test_cached_frames_are_those_of_the_videos_in_the_order_of_the_labels(gallery, frames):
    assert frames.frames.shape == (PEOPLE * CAMERAS * FRAMES, 32, 16, 3)
    rows = {row["video_id"]: row["uri"] for row in gallery.snapshot().videos.to_pylist()}
    for video in (0, 7, 19):
        uri = rows[frames.labels.video_ids[video].removeprefix("/")]
        for number in range(FRAMES):
            expected = cv2.imread(f"{uri}/{number:04d}.png")[..., ::-1]
            np.testing.assert_array_equal(frames.frames[frames.labels.first_frame[video] + number], expected)


def test_a_cache_is_used_again_and_an_unfinished_one_is_made_anew(gallery, tmp_path):
    cache_frames([Source(gallery.location.uri)], tmp_path, 32, 16)
    first = (tmp_path / "frames.npy").stat().st_mtime_ns
    cache_frames([Source(gallery.location.uri)], tmp_path, 32, 16)
    assert (tmp_path / "frames.npy").stat().st_mtime_ns == first
    assert cache_frames([Source(gallery.location.uri)], tmp_path, 16, 8).frames.shape[1:] == (16, 8, 3)


def test_a_video_that_has_changed_since_its_ingest_is_named(gallery, tmp_path):
    rows = gallery.snapshot().videos.to_pylist()
    shorter = Gallery.open_or_create(tmp_path / "gallery", gallery.settings)
    shard = shorter.write_shard(frames_table(["a"], [3], np.arange(3), np.arange(3) / 10, np.ones((3, 8), np.float16)))
    row = rows[0] | {"video_id": "a", "source_id": "a", "sampled_frames": 3, "shard": shard, "first_row": 0}
    shorter.commit(pa.Table.from_pylist([row], schema=VIDEOS_SCHEMA), REJECTS_SCHEMA.empty_table())
    with pytest.raises(PipelineError, match="gave 6 frames and 3 when it was ingested"):
        cache_frames([Source(shorter.location.uri)], tmp_path / "cache", 32, 16)


def trained(frames, settings, validation_share=0.0, **options):
    """(backbone and head of the best epoch, the metrics of all epochs) of a training from the tiny network."""
    plan = TrainingPlan((), "", validation_share, START, settings)
    training = start_training(plan, frames, tiny_network(), SPEC, **options)
    history = [training.start_point(), *(training.run_epoch() for _ in range(settings.epochs))]
    training.backbone.load_state_dict(training.best_backbone)
    return training.backbone, training.result(), history


def test_the_backbone_learns_with_the_head_and_the_same_seed_gives_both_again(frames):
    before = tiny_network().state_dict()
    backbone, head, history = trained(frames, SETTINGS, validation_share=0.4)
    again, _, _ = trained(frames, SETTINGS, validation_share=0.4)
    assert len(history) == 3
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in backbone.state_dict().items())
    assert head.config.feature_width == 8
    last = trained(frames, SETTINGS)[0].state_dict()
    assert not torch.equal(last["layers.0.weight"], before["layers.0.weight"])


def test_a_backbone_that_may_not_move_stays(frames):
    still = replace(SETTINGS, backbone_rate=0.0, epochs=1)
    backbone, _, _ = trained(frames, still)
    assert torch.equal(backbone.layers[0].weight, tiny_network().layers[0].weight)


@pytest.mark.parametrize("running", [True, False])
def test_batch_normalisation_keeps_its_running_statistics_unless_told_otherwise(frames, running):
    settings = replace(SETTINGS, epochs=1, batches=1)
    backbone, _, _ = trained(frames, settings, running_statistics=running)
    before = tiny_network().layers[1].running_mean
    assert torch.equal(backbone.layers[1].running_mean, before) == running
    assert not torch.equal(backbone.layers[1].weight, torch.ones(8))  # its own parameters learn in either case


def test_occluded_frames_are_known_to_the_attention_loss(frames):
    unmixed = replace(SETTINGS, epochs=1, mix_share=0)
    _, _, off = trained(frames, unmixed, augmentation=AugmentationSettings(occluder=0.0))
    _, _, on = trained(frames, replace(unmixed, batches=10), augmentation=AugmentationSettings(occluder=1.0))
    assert off[1]["loss_attention"] == 0
    assert on[1]["loss_attention"] > 0


@pytest.mark.parametrize("last", [0, 1])
def test_end_to_end_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(gallery, tmp_path, last):
    def plan(name):
        return TrainingPlan((Source(gallery.location.uri),), str(tmp_path / name), 0.0, START, SETTINGS)

    def stop(metrics):
        if metrics["epoch"] == last:
            raise KeyboardInterrupt

    whole = run_end_to_end(plan("whole"), tiny_network(), SPEC)
    with pytest.raises(KeyboardInterrupt):
        run_end_to_end(plan("parts"), tiny_network(), SPEC, stop)
    assert newest_checkpoint(resolve(tmp_path / "parts")).state["epoch"] == last
    seen = []
    resumed = run_end_to_end(plan("parts"), tiny_network(), SPEC, seen.append)
    assert [metrics["epoch"] for metrics in seen] == list(range(last + 1, 3))
    assert not torch.equal(whole.layers[0].weight, tiny_network().layers[0].weight)
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())
    heads = [newest_checkpoint(resolve(tmp_path / name)).best_head().state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(tensor, heads[1][name]) for name, tensor in heads[0].items())
    assert [row.split(",")[0] for row in (tmp_path / "parts/metrics.csv").read_text().splitlines()] == ["epoch", "0", "1", "2"]
    with pytest.raises(UsageError, match="holds a training of other batch normalisation"):
        run_end_to_end(plan("parts"), tiny_network(), SPEC, running_statistics=False)


def job(*arguments, command=train_end_to_end):
    """(what it printed, None) or ("", the error) of a command."""
    app = typer.Typer()
    app.command()(command)
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(outcome.exception, PipelineError | SystemExit | None), outcome.exception
    return outcome.output, outcome.exception


FLAGS = ["--epochs", "2", "--batches", "2", "--people", "4", "--segment-length", "4"]
FLAGS += ["--key-width", "8", "--value-width", "8", "--input-size", "32x32"]


def test_the_job_leaves_a_backbone_that_ingest_takes_and_a_head_for_it(gallery, tmp_path):
    flags = ["--data", gallery.location.uri, *FLAGS, "--validation-share", "0"]
    output, error = job(*flags, "--out", tmp_path / "one", "--set", "backbone_rate=1", "--name", "mine")
    assert error is None
    path = tmp_path / "one/backbone/mine.onnx"
    assert f"jobs.ingest INPUT --backbone {path}" in output
    assert f"jobs.index --gallery GALLERY --head {tmp_path / 'one/head'}" in output
    spec = find_backbone(str(path))
    assert (spec.name, spec.height, spec.width, spec.dim) == ("mine", 32, 32, 512)
    head = load_head(tmp_path / "one/head", spec.identity)
    assert head.config.feature_width == 512
    with pytest.raises(PipelineError):
        load_head(tmp_path / "one/head", gallery.settings.backbone.identity)

    trained = read_network(path.with_suffix(".safetensors"))
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    with torch.no_grad():
        pixels = torch.from_numpy(normalise_pixels(frames, spec))
        expected, before = trained(pixels).numpy(), shipped_network(DEFAULT)(pixels).numpy()
    features = load_backbone(spec, 1, "cpu").embed(frames)
    assert np.abs(features - expected).max() < 1e-3 < np.abs(expected - before).max()

    assert job(*flags, "--out", tmp_path / "one", "--set", "backbone_rate=1", "--name", "mine")[1] is None
    assert find_backbone(str(path)).identity == spec.identity  # a finished training run again changes nothing

    still = ["--set", "backbone_rate=0", "--epochs", "1", "--batches", "1", "--from", tmp_path / "one", "--out", tmp_path / "two"]
    assert job(*flags, *still)[1] is None
    again = read_network(tmp_path / f"two/backbone/{NAME}.safetensors").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in trained.state_dict().items())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([*FLAGS, "--name", "a/b"], "no file name"),
        ([*FLAGS, "--name", DEFAULT], "a backbone of that name ships"),
        ([*FLAGS, "--input-size", "50x32"], "multiples of 16 pixels and at least 32"),
        ([*FLAGS, "--input-size", "32x16"], "multiples of 16 pixels and at least 32"),
        ([*FLAGS, "--from", "nowhere"], "nowhere is no folder of one finished end-to-end training"),
    ],
)
def test_what_cannot_be_trained_end_to_end_is_one_sentence(gallery, tmp_path, flags, words):
    _, error = job("--data", gallery.location.uri, "--out", tmp_path, *flags)
    assert isinstance(error, UsageError)
    assert words in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (train_end_to_end, ["--backbone", DEFAULT]),
        (train_end_to_end, ["--workers", "2"]),
        (train, ["--input-size", "32x32"]),
        (train, ["--batch-statistics"]),
    ],
)
def test_a_flag_of_the_other_training_is_not_passed_over(gallery, tmp_path, command, flags):
    _, error = job("--data", gallery.location.uri, "--out", tmp_path, *flags, command=command)
    assert isinstance(error, SystemExit) and error.code == 2
    assert not list(tmp_path.iterdir())
