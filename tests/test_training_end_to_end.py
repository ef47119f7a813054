from dataclasses import replace

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from pipeline.augmentation import AugmentationSettings
from pipeline.errors import PipelineError
from pipeline.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings, frames_table
from pipeline.storage import resolve
from pipeline.training.checkpoint import RunFolder, newest_checkpoint
from pipeline.training.end_to_end import cache_frames, train_end_to_end
from pipeline.training.features import Source
from pipeline.training.settings import TrainingSettings
from pipeline.training.start import StartSettings
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


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    return cache_frames([Source(gallery)], tmp_path_factory.mktemp("cache"), 32, 16)


def test_cached_frames_are_those_of_the_videos_in_the_order_of_the_labels(gallery, frames):
    assert frames.frames.shape == (PEOPLE * CAMERAS * FRAMES, 32, 16, 3)
    rows = {row["video_id"]: row["uri"] for row in gallery.snapshot().videos.to_pylist()}
    for video in (0, 7, 19):
        uri = rows[frames.labels.video_ids[video].removeprefix("/")]
        for number in range(FRAMES):
            expected = cv2.imread(f"{uri}/{number:04d}.png")[..., ::-1]
            np.testing.assert_array_equal(frames.frames[frames.labels.first_frame[video] + number], expected)


def test_a_cache_is_used_again_and_an_unfinished_one_is_made_anew(gallery, tmp_path):
    cache_frames([Source(gallery)], tmp_path, 32, 16)
    first = (tmp_path / "frames.npy").stat().st_mtime_ns
    cache_frames([Source(gallery)], tmp_path, 32, 16)
    assert (tmp_path / "frames.npy").stat().st_mtime_ns == first
    assert cache_frames([Source(gallery)], tmp_path, 16, 8).frames.shape[1:] == (16, 8, 3)


def test_a_video_that_has_changed_since_its_ingest_is_named(gallery, tmp_path):
    rows = gallery.snapshot().videos.to_pylist()
    shorter = Gallery.open_or_create(tmp_path / "gallery", gallery.settings)
    shard = shorter.write_shard(frames_table(["a"], [3], np.arange(3), np.arange(3) / 10, np.ones((3, 8), np.float16)))
    row = rows[0] | {"video_id": "a", "source_id": "a", "sampled_frames": 3, "shard": shard, "first_row": 0}
    shorter.commit(pa.Table.from_pylist([row], schema=VIDEOS_SCHEMA), REJECTS_SCHEMA.empty_table())
    with pytest.raises(PipelineError, match="gave 6 frames and 3 when it was ingested"):
        cache_frames([Source(shorter)], tmp_path / "cache", 32, 16)


def test_the_backbone_learns_with_the_head_and_the_same_seed_gives_both_again(frames):
    before = tiny_network().state_dict()
    backbone, head, history = train_end_to_end(tiny_network(), SPEC, frames, SETTINGS, validation_share=0.4, start=START)
    again, _, _ = train_end_to_end(tiny_network(), SPEC, frames, SETTINGS, validation_share=0.4, start=START)
    assert len(history) == 3
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in backbone.state_dict().items())
    assert head.config.feature_width == 8
    last = train_end_to_end(tiny_network(), SPEC, frames, SETTINGS, validation_share=0.0, start=START)[0].state_dict()
    assert not torch.equal(last["layers.0.weight"], before["layers.0.weight"])


def test_a_backbone_that_may_not_move_stays(frames):
    still = replace(SETTINGS, backbone_rate=0.0, epochs=1)
    backbone, _, _ = train_end_to_end(tiny_network(), SPEC, frames, still, validation_share=0.0, start=START)
    assert torch.equal(backbone.layers[0].weight, tiny_network().layers[0].weight)


def test_occluded_frames_are_known_to_the_attention_loss(frames):
    _, _, off = train_end_to_end(
        tiny_network(), SPEC, frames, replace(SETTINGS, epochs=1, mix_share=0), validation_share=0.0, start=START,
        augmentation=AugmentationSettings(occluder=0.0),
    )  # fmt: skip
    _, _, on = train_end_to_end(
        tiny_network(), SPEC, frames, replace(SETTINGS, epochs=1, mix_share=0, batches=10), validation_share=0.0, start=START,
        augmentation=AugmentationSettings(occluder=1.0),
    )  # fmt: skip
    assert off[1]["loss_attention"] == 0
    assert on[1]["loss_attention"] > 0


def test_end_to_end_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(frames, tmp_path):
    whole, _, _ = train_end_to_end(tiny_network(), SPEC, frames, SETTINGS, validation_share=0.4, start=START)
    folder = RunFolder(resolve(tmp_path), {"settings": "the same"})
    trainings = []

    def stop(metrics):
        folder.save(trainings[-1], metrics)
        if metrics["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_end_to_end(
            tiny_network(), SPEC, frames, SETTINGS, validation_share=0.4, start=START, report=stop, begin=trainings.append
        )
    assert newest_checkpoint(resolve(tmp_path)).state["epoch"] == 1
    again = RunFolder(resolve(tmp_path), {"settings": "the same"})
    resumed, _, history = train_end_to_end(
        tiny_network(5), SPEC, frames, SETTINGS, validation_share=0.4, start=START, begin=lambda training: again.restore(training)
    )
    assert [metrics["epoch"] for metrics in history] == [2]
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())
