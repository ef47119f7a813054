import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.coattention.network import Comparison
from pipeline.errors import UsageError
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.scoring.video_scores import video_score
from pipeline.settings import ScoreSettings
from pipeline.training.features import FeatureSet, Source, load_features, matched_people, split_identities
from pipeline.training.initial_head import StartSettings, identity_start
from pipeline.training.loop import learning_rate, train, validate
from pipeline.training.losses import attention_loss, pair_loss, ranking_loss, triplet_loss, video_logits
from pipeline.training.sampler import Sampler
from pipeline.training.settings import TrainingSettings
from pipeline.training.validation import coattention_scores, mean_scores, quality
from tests.conftest import add_videos, people_features, toy_spec

WIDTH = 32
SMALL = TrainingSettings(people=6, tracklets=3, segments=2, segment_length=4, batches=6, epochs=3)


def made_up_videos(people=24, cameras=4, seed=0, width=WIDTH):
    """Clusters a person plus an offset a camera; in hidden versions a stretch of frames collapses to a common point."""
    rng = np.random.default_rng(seed)
    centres, offsets = 0.5 * rng.normal(size=(people, width)), 0.3 * rng.normal(size=(cameras, width))
    block = 3.0 * rng.normal(size=width)
    parts, rows, hidden = [], [], []
    for person in range(people):
        for camera in range(cameras):
            frames = int(rng.integers(10, 25))
            clean = centres[person] + offsets[camera] + 0.5 * rng.normal(size=(frames, width))
            covered = np.zeros(frames, bool)
            length = int(rng.uniform(0.2, 0.8) * frames)
            start = int(rng.integers(0, frames - length + 1))
            covered[start : start + length] = True
            for version in (False, True):
                flags = covered & version
                parts.append(np.where(flags[:, None], block + 0.3 * rng.normal(size=clean.shape), clean))
                rows.append((person, camera, person * cameras + camera, version, frames))
                hidden.append(flags)
    person, camera, clip, version, frames = (np.array(column) for column in zip(*rows, strict=True))
    return FeatureSet(
        features=np.concatenate(parts).astype(np.float16),
        first_frame=np.cumsum(frames) - frames,
        frames=frames,
        person=person,
        camera=camera,
        clip=clip,
        hidden_version=version.astype(bool),
        hidden=np.concatenate(hidden),
        video_ids=tuple(f"v{i:04d}" for i in range(len(rows))),
        person_names=tuple(f"p{i:03d}" for i in range(people)),
    )


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def videos():
    return made_up_videos()


@pytest.fixture(scope="module")
def sides(videos):
    return split_identities(videos, 0.3)


def test_training_beats_its_start_and_mean_pooling_where_people_are_hidden(sides):
    learning, held_out = sides
    start = identity_start(learning, segment_length=4)
    head, history = train(learning, held_out, start, replace(SMALL, epochs=5, batches=20, learning_rate=1e-3))
    judged = validate(head, held_out, SMALL)
    assert judged["validation_map"] == max(epoch["validation_map"] for epoch in history)
    assert 1 - judged["hidden_map"] < (1 - history[0]["hidden_map"]) / 2  # half of what the start point missed
    assert judged["hidden_map"] > judged["hidden_mean_map"]
    assert judged["clean_map"] >= judged["clean_mean_map"] - 0.02


def test_the_same_seed_gives_the_same_head_and_another_seed_another(sides):
    start = identity_start(sides[0], segment_length=4)
    short = replace(SMALL, epochs=1, feature_dropout=0.1)
    torch.manual_seed(1)
    first, _ = train(sides[0], None, start, short)
    torch.manual_seed(2)  # the state of torch's own generator has no part in it
    again, _ = train(sides[0], None, start, short)
    other, _ = train(sides[0], None, start, replace(short, seed=1))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert not torch.equal(first.value.weight, other.value.weight)


def test_a_training_that_spoils_the_head_returns_the_start(sides):
    start = identity_start(sides[0], segment_length=4)
    wild = replace(SMALL, learning_rate=3.0, epochs=1)
    head, history = train(*sides, start, wild)
    assert history[1]["validation_map"] < history[0]["validation_map"]
    assert all(torch.equal(tensor, start.state_dict()[name]) for name, tensor in head.state_dict().items())


def test_the_start_scores_by_the_distance_of_means_with_uniform_attention(videos):
    start = identity_start(videos, StartSettings(value_width=WIDTH, key_width=8), segment_length=4)
    segments = torch.from_numpy(videos.features[: 6 * 4]).view(6, 4, WIDTH)
    compared = start.compare(segments, segments)
    torch.testing.assert_close(compared.target_attention, torch.full((6, 4), 0.25))
    means = F.normalize(segments.double() - start.feature_mean.double(), dim=-1).mean(dim=1)
    distance = torch.cdist(means, means).square()
    order = compared.logits.flatten().argsort(descending=True)
    assert (distance.flatten()[order].diff() > -1e-5).all()
    weight, _ = start.score_row()
    assert (weight < 0).all()


def test_the_query_map_of_the_start_has_a_gradient_though_it_is_zero(videos):
    start = identity_start(videos, segment_length=4).train()
    segments = torch.from_numpy(videos.features[: 6 * 4]).view(6, 4, WIDTH)
    start.pair_logits(segments, segments).square().sum().backward()
    assert not start.query.weight.any()
    assert start.query.weight.grad.abs().max() > 0
    assert start.query.bias.grad.abs().max() > 0


def test_the_uncentred_start_ranks_as_the_mean_of_unit_vectors(videos):
    start = identity_start(videos, StartSettings(centre=False, value_width=WIDTH), segment_length=4)
    assert not start.feature_mean.any()
    free = identity_start(videos, StartSettings(negative_weight=False), segment_length=4)
    torch.testing.assert_close(free.score_row()[0], identity_start(videos, segment_length=4).score_row()[0])


def test_a_batch_is_people_times_tracklets_of_different_cameras_times_segments(videos):
    sampler = Sampler(videos, SMALL)
    for batch in sampler.batches(np.random.default_rng(0), 5):
        assert batch.rows.shape == (6 * 3 * 2, 4)
        person = videos.person[batch.video].reshape(6, 6)
        assert (person == person[:, :1]).all()
        assert len(set(person[:, 0])) == 6
        for cameras in videos.camera[batch.video].reshape(6, 3, 2)[:, :, 0]:
            assert len(set(cameras)) == 3


def test_people_are_drawn_equally_often(videos):
    settings = replace(SMALL, people=7)  # does not divide 24
    drawn = [videos.person[batch.video] for batch in Sampler(videos, settings).batches(np.random.default_rng(0), 24)]
    times = np.bincount(np.concatenate(drawn)) / 6
    assert times.max() - times.min() <= 1


def test_mixed_frames_belong_to_people_outside_the_batch_and_all_others_to_the_video(videos):
    settings = replace(SMALL, mix_share=1.0, hidden_share=0.0, mix_stretch=(0.5, 0.5))
    owner = np.repeat(np.arange(len(videos)), videos.frames)
    for batch in Sampler(videos, settings).batches(np.random.default_rng(0), 5):
        assert (batch.hidden.sum(axis=1) == 2).all()
        people = set(videos.person[batch.video])
        assert not people & set(videos.person[owner[batch.rows[batch.hidden]]])
        assert (owner[batch.rows] == batch.video[:, None])[~batch.hidden].all()
        stretch = np.diff(np.pad(batch.hidden.astype(int), ((0, 0), (1, 1))), axis=1)
        assert ((stretch == 1).sum(axis=1) == 1).all()  # in one piece


def test_hidden_versions_are_drawn_by_their_share(videos):
    for share in (0.0, 1.0):
        settings = replace(SMALL, hidden_share=share)
        for batch in Sampler(videos, settings).batches(np.random.default_rng(0), 3):
            assert (videos.hidden_version[batch.video] == bool(share)).all()


def test_a_video_shorter_than_a_segment_repeats_its_last_frame(videos):
    short = videos.take(np.arange(len(videos)))
    object.__setattr__(short, "frames", np.full(len(videos), 2))
    batch = next(Sampler(short, replace(SMALL, mix_share=0)).batches(np.random.default_rng(0), 1))
    first = short.first_frame[batch.video]
    assert (batch.rows - first[:, None] == [0, 1, 1, 1]).all()


def test_the_split_has_no_person_in_common_and_stays_when_people_are_added(videos):
    learning, held_out = split_identities(videos, 0.3)
    assert not set(learning.person) & set(held_out.person)
    assert set(learning.person) | set(held_out.person) == set(range(24))
    more = made_up_videos(people=40)
    assert set(split_identities(more, 0.3)[1].person) & set(range(24)) == set(held_out.person)


def test_a_split_that_leaves_nobody_to_judge_is_refused():
    with pytest.raises(UsageError, match="validation side has 0 people"):
        split_identities(made_up_videos(people=3), 0.0001)
    with pytest.raises(UsageError, match="from 0 to below 1"):
        split_identities(made_up_videos(people=3), 1.0)
    one_camera = made_up_videos(people=4, cameras=1)
    assert len(matched_people(one_camera)) == 0
    with pytest.raises(UsageError, match="training side has 0 people"):
        split_identities(one_camera, 0.0)


def test_taken_videos_keep_their_own_frames(videos):
    chosen = np.array([5, 2, 9])
    part = videos.take(chosen)
    for place, video in enumerate(chosen):
        mine = part.features[part.first_frame[place] : part.first_frame[place] + part.frames[place]]
        first = videos.first_frame[video]
        np.testing.assert_array_equal(mine, videos.features[first : first + videos.frames[video]])


def test_galleries_load_with_their_labels_and_the_frames_that_differ_between_versions(tmp_path):
    made = people_features(5, 3, 24, seed=1)
    covered = [(person, features.copy()) for person, features in made]
    covered[4][1][1:3] = 7.0
    for name, content in (("clean", made), ("hidden", covered)):
        add_videos(Gallery.open_or_create(tmp_path / name, GallerySettings(toy_spec(), 10.0, None)), content)
    clean, hidden = str(tmp_path / "clean"), str(tmp_path / "hidden")
    loaded = load_features([Source(clean, "a"), Source(hidden, "a", hidden=True), Source(clean, "b")])
    assert len(loaded) == 45
    assert set(loaded.person_names) == {f"{network}/p{i:02d}" for network in "ab" for i in range(5)}
    np.testing.assert_array_equal(loaded.clip[:15], loaded.clip[15:30])  # one network: the same clips
    assert not set(loaded.clip[30:]) & set(loaded.clip[:30])
    for video in (3, 17, 44):
        first = loaded.first_frame[video]
        source = covered if 15 <= video < 30 else made
        np.testing.assert_array_equal(loaded.features[first : first + loaded.frames[video]], source[video % 15][1])
    first = loaded.first_frame[19]
    assert np.flatnonzero(loaded.hidden).tolist() == [first + 1, first + 2]
    assert not loaded.counts(np.array([4]), np.array([19])).any()  # two versions of one clip are no pair


def test_galleries_of_different_backbones_do_not_mix(tmp_path):
    one = Gallery.open_or_create(tmp_path / "one", GallerySettings(toy_spec(24), 10.0, None))
    other = Gallery.open_or_create(tmp_path / "other", GallerySettings(toy_spec(32), 10.0, None))
    with pytest.raises(UsageError, match="different backbones"):
        load_features([Source(one.location.uri), Source(other.location.uri)])
    with pytest.raises(UsageError, match="no video has a person_id"):
        load_features([Source(one.location.uri)])


def test_validation_agrees_with_the_textbook_scores_and_metrics(videos):
    part = videos.take(np.arange(0, 60, 2))
    head = identity_start(part, StartSettings(temperature=0.1), segment_length=4)
    scores = coattention_scores(head, part, segment_length=4, most_segments=100, ratio=0.2, normalise=False)
    segments = []
    for first, frames in zip(part.first_frame, part.frames, strict=True):
        starts = sorted({*range(0, frames - 3, 2), frames - 4})
        segments.append(torch.from_numpy(np.stack([part.features[first + s : first + s + 4] for s in starts])))
    with torch.no_grad():
        for a, b in ((0, 1), (4, 20), (29, 3)):
            expected = video_score(head(segments[a], segments[b]).numpy(), ScoreSettings(ratio=0.2))
            assert scores[a, b] == pytest.approx(expected, abs=1e-5)
    rankings = []
    for query in range(len(part)):
        counted = [
            c
            for c in range(len(part))
            if part.clip[c] != part.clip[query]
            and not (part.person[c] == part.person[query] and part.camera[c] == part.camera[query])
        ]
        counted.sort(key=lambda c: -scores[query, c])
        rankings.append(np.array([part.person[c] == part.person[query] for c in counted]))
    matched = [hits for hits in rankings if hits.any()]
    precisions = [np.mean([hits[: n + 1].mean() for n in np.flatnonzero(hits)]) for hits in matched]
    expected = (np.mean([hits[0] for hits in matched]), np.mean(precisions), len(matched))
    found = quality(scores, part)
    assert (found.cmc[1], found.mean_ap, found.queries) == pytest.approx(expected)
    assert np.allclose(np.diag(mean_scores(part)), 1)


def test_validation_looks_at_no_more_segments_than_it_is_told(videos):
    part = videos.take(np.arange(20))
    head = identity_start(part, segment_length=4)
    one = coattention_scores(head, part, segment_length=4, most_segments=1, ratio=1.0, normalise=False)
    with torch.no_grad():
        heads = torch.stack([torch.from_numpy(part.features[first : first + 4]) for first in part.first_frame])
        np.testing.assert_allclose(one, head(heads, heads).numpy(), atol=1e-5)


def test_the_pair_loss_weighs_both_classes_alike():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -3.0]])
    same = torch.tensor([[True, False, False], [False, False, False]])
    counts = torch.tensor([[True, True, True], [True, True, False]])
    positive = math.log(1 + math.exp(-2.0))
    negative = np.mean([math.log(1 + math.exp(x)) for x in (-1.0, 0.5, 0.0, 1.0)])
    assert float(pair_loss(logits, same, counts)) == pytest.approx((positive + negative) / 2)


def test_video_logits_are_the_mean_of_the_top_share_of_each_block():
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    for ratio, top in ((0.2, 1), (0.5, 2), (0.75, 3), (1.0, 4)):
        table = video_logits(logits, 2, ratio)
        block = logits[2:4, 4:6].flatten().sort(descending=True).values[:top]
        assert float(table[1, 2]) == pytest.approx(float(block.mean()))


def test_the_ranking_loss_is_cross_entropy_against_other_people_only():
    scores = torch.tensor([[9.0, 2.0, 1.0, 0.5], [2.0, 9.0, 0.0, 1.5], [1.0, 0.0, 9.0, 3.0], [0.5, 1.5, 3.0, 9.0]])
    person = torch.tensor([0, 0, 1, 1])
    counts = ~torch.eye(4, dtype=torch.bool)
    same = person[:, None] == person[None]
    expected = []
    for row, positive, negatives in ((0, 1, (2, 3)), (1, 0, (2, 3)), (2, 3, (0, 1)), (3, 2, (0, 1))):
        candidates = scores[row, [positive, *negatives]] / 0.5
        expected.append(F.cross_entropy(candidates[None], torch.tensor([0])))
    assert float(ranking_loss(scores, same, counts, 0.5)) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_the_triplet_loss_takes_the_hardest_of_each_side():
    encodings = torch.tensor([[0.0], [1.0], [3.0], [1.5], [4.0]])
    person = torch.tensor([0, 0, 0, 1, 1])
    counts = ~torch.eye(5, dtype=torch.bool)
    hardest = [(3.0, 1.5), (2.0, 0.5), (3.0, 1.0), (2.5, 0.5), (2.5, 1.0)]
    expected = np.mean([max(far - near + 0.3, 0) for far, near in hardest])
    assert float(triplet_loss(encodings, person, counts, 0.3)) == pytest.approx(expected)


def test_the_attention_loss_falls_as_visible_frames_get_more_attention():
    hidden = torch.tensor([[True, False], [False, False], [True, True]])
    same, counts = torch.ones(3, 3, dtype=torch.bool), ~torch.eye(3, dtype=torch.bool)

    def loss(share):
        own = torch.tensor([[1 - share, share]] * 3)
        pairs = own.expand(3, 3, 2)
        return float(attention_loss(Comparison(torch.zeros(3, 3), own, torch.zeros(3, 4), pairs), hidden, same, counts))

    assert loss(0.5) == pytest.approx(-math.log(0.5))  # only the first segment has both kinds
    assert loss(0.9) == pytest.approx(-math.log(0.9))


def test_losses_without_anything_to_judge_are_zero_and_differentiable():
    logits = torch.zeros(4, 4, requires_grad=True)
    nothing = torch.zeros(4, 4, dtype=torch.bool)
    total = pair_loss(logits, nothing, nothing) + ranking_loss(logits, nothing, nothing, 1.0)
    total = total + triplet_loss(logits, torch.arange(4), nothing, 0.3)
    total.backward()
    assert float(total.detach()) == 0
    assert logits.grad.isfinite().all()


def test_the_learning_rate_rises_then_falls_to_zero():
    settings = TrainingSettings(epochs=10, batches=10, warm_up=2.0, learning_rate=1.0)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[:20] == sorted(rates[:20])
    assert rates[20] == pytest.approx(1.0)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] < 0.01


@pytest.mark.parametrize(
    ("term", "value"),
    [("people", 1), ("hidden_share", 1.5), ("ratio", 0.0), ("noise", -1.0), ("mix_stretch", (0.7, 0.2)), ("learning_rate", 0.0)],
)
def test_settings_that_cannot_be_meant_are_refused(term, value):
    with pytest.raises(UsageError, match=term):
        TrainingSettings(**{term: value})
