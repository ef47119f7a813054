from dataclasses import fields, replace

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.training.augmentation import AugmentationSettings, augment

OFF = AugmentationSettings(**{field.name: 0.0 for field in fields(AugmentationSettings)})
ALL = AugmentationSettings(
    **{field.name: 1.0 for field in fields(AugmentationSettings)} | {"light": 0.3, "cast": 0.1, "crop": 0.1}
)


@pytest.fixture
def frames():
    """One picture six times: whatever differs between frames afterwards was not decided once a segment."""
    random = np.random.default_rng(0)
    picture = np.kron(random.integers(0, 256, (8, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    return np.stack([picture] * 6)


def of(frames, seed=0, **settings):
    return augment(frames, np.random.default_rng(seed), replace(OFF, **settings))


def test_everything_off_changes_nothing(frames):
    out, hidden = of(frames)
    np.testing.assert_array_equal(out, frames)
    assert not hidden.any()


@pytest.mark.parametrize("size", [(64, 32), (256, 128), (7, 5)])
def test_the_same_seed_gives_the_same_frames_of_the_same_shape_and_leaves_the_input_alone(size):
    frames = np.random.default_rng(1).integers(0, 256, (5, *size, 3)).astype(np.uint8)
    before = frames.copy()
    for seed in range(30):
        first, hidden = augment(frames, np.random.default_rng(seed), ALL, frames)
        again, _ = augment(frames, np.random.default_rng(seed), ALL, frames)
        assert first.shape == frames.shape
        assert first.dtype == np.uint8
        assert hidden.shape == (5,)
        np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(frames, before)
    assert (first != augment(frames, np.random.default_rng(99), ALL, frames)[0]).any()


@pytest.mark.parametrize("name", ["crop", "flip", "erase", "light", "cast", "blur", "resolution", "compression"])
def test_a_change_is_decided_once_a_segment(frames, name):
    changed = 0
    for seed in range(8):
        out, hidden = of(frames, seed, **{name: 1.0 if name not in ("crop", "light", "cast") else 0.2})
        assert (out == out[:1]).all()
        assert not hidden.any()
        changed += (out != frames).any()
    assert changed >= 7


def test_a_flip_mirrors(frames):
    np.testing.assert_array_equal(of(frames, flip=1.0)[0], frames[:, :, ::-1])


def test_crop_jitter_by_whole_pixels_is_a_shift(frames, monkeypatch):
    class Fixed:
        def __init__(self):
            self.draws = iter([np.zeros(2), np.array([0.125, 0.0])])  # scales, then shifts: 4 of 32 pixels to the right

        def uniform(self, *_):
            return next(self.draws)

    out, _ = augment(frames, Fixed(), replace(OFF, crop=0.2))
    np.testing.assert_array_equal(out[:, :, 4:], frames[:, :, :-4])
    np.testing.assert_array_equal(out[:, :, :4], np.repeat(frames[:, :, :1], 4, axis=2))


def test_erasing_takes_a_rectangle_of_4_to_25_percent(frames):
    for seed in range(20):
        different = (of(frames, seed, erase=1.0)[0][0] != frames[0]).any(axis=-1)
        rows, columns = np.flatnonzero(different.any(axis=1)), np.flatnonzero(different.any(axis=0))
        box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) / different.size
        assert 0.02 < box < 0.3
        assert different.sum() > 0.9 * box * different.size


def test_an_occluder_moves_smoothly_and_says_where_it_hides_the_person():
    frames = np.full((12, 64, 32, 3), 128, np.uint8)
    others = np.full((1, 64, 32, 3), 255, np.uint8)
    person = (slice(None), slice(12, 64), slice(6, 26))
    moved, hid = 0, 0
    for seed in range(60):
        out, hidden = augment(frames, np.random.default_rng(seed), replace(OFF, occluder=1.0), others)
        different = (out != frames).any(axis=-1)
        share = different[person].mean(axis=(1, 2))
        assert (share[hidden] > 0.4).all()
        assert (share[~hidden] < 0.6).all()
        assert (hidden[1:] != hidden[:-1]).sum() <= 2  # it comes and it goes, once
        assert np.abs(np.diff(different.mean(axis=(1, 2)))).max() < 0.35
        moved += (out != out[:1]).any()
        hid += hidden.any()
    assert moved > 30
    assert hid > 10


def test_settings_outside_0_to_1_are_refused():
    with pytest.raises(UsageError, match="the augmentation blur is from 0"):
        AugmentationSettings(blur=1.5)
