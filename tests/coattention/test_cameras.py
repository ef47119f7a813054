import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch

from pipeline.coattention import cameras
from pipeline.coattention.cameras import CameraCoattention, CameraHeads, camera_statistics, can_measure_cameras, score_space
from pipeline.coattention.head import untrained_head
from pipeline.coattention.network import Coattention, CoattentionConfig

WIDTH = 12


def people_under_cameras(people, of_cameras, seed=0, changed=1.0):
    """x of each person under each camera, [people * cameras, WIDTH]: a camera stretches and shifts whoever it films."""
    rng = np.random.default_rng(seed)
    persons = rng.normal(size=(people, WIDTH))
    seen, names, who = [], [], []
    for number in range(of_cameras):
        stretch = np.eye(WIDTH) + changed * rng.normal(scale=0.25, size=(WIDTH, WIDTH))
        shift = changed * rng.normal(scale=1.5, size=WIDTH)
        seen.append(persons @ stretch + shift + rng.normal(scale=0.1, size=persons.shape))
        names += [f"c{number}"] * people
        who += range(people)
    return np.concatenate(seen), names, np.array(who)


def rank_1(vectors, names, who):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = unit @ unit.T
    other = np.array(names)[:, None] != np.array(names)
    best = np.where(other, scores, -np.inf).argmax(axis=1)
    return float(np.mean(who[best] == who))


def without_cameras(x, names):
    statistics = camera_statistics(x, names)
    rows = [statistics.row(name) for name in names]
    return np.stack(
        [(one - statistics.means[row]) @ statistics.maps[row].astype(float) for one, row in zip(x, rows, strict=True)]
    )


def counted_once(centred):
    """What each video counts for: those that look like it, itself among them, count for one."""
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return np.array([1 / sum(one @ other >= 0.7 for other in unit) for one in unit])


def textbook(x, names, camera):
    """Mean and map of one camera, by the formulae as the module states them."""
    names = np.array(["" if name is None else name for name in names])
    named = sorted(set(names) - {""})
    raw = x - x.mean(axis=0)
    for name in named:
        raw[names == name] = x[names == name] - x[names == name].mean(axis=0)
    counts = counted_once(raw)
    everybody = counts.sum()
    everything = np.average(x, axis=0, weights=counts) * everybody / (everybody + 100)
    people = {name: counted_once(raw[names == name]).sum() for name in named}
    centres = {
        name: everything + people[name] / (people[name] + 10) * (x[names == name].mean(axis=0) - everything) for name in named
    }
    off = np.array([one - centres.get(name, everything) for one, name in zip(x, names, strict=True)])
    pooled = sum(count * np.outer(one, one) for one, count in zip(off, counts, strict=True)) / everybody
    level = np.trace(pooled) / x.shape[1]
    pooled = (everybody * pooled + 100 * level * np.eye(x.shape[1])) / (everybody + 100)
    if camera is None:
        mean, covariance, seen = everything, pooled, everybody
    else:
        spread, seen = np.cov(x[names == camera].T, bias=True), people[camera]
        mean, covariance = centres[camera], (seen * spread + 20 * pooled) / (seen + 20)
    inner = covariance / level + 0.5 * np.eye(x.shape[1])
    return mean, scipy.linalg.fractional_matrix_power(inner, -(0.1 + 0.4 * seen / (seen + 20)))


@pytest.mark.parametrize("camera", ["c0", "c2", None])
def test_mean_and_map_of_a_camera_are_those_of_the_formulae(camera):
    x, names, _ = people_under_cameras(30, 3)
    x[5:9] = x[4] + np.random.default_rng(3).normal(scale=0.1, size=(4, WIDTH))  # the same person five times
    names = [*names[:-4], None, None, None, None]
    statistics = camera_statistics(x, names)
    mean, by = textbook(x, names, camera)
    row = statistics.row(camera)
    np.testing.assert_allclose(statistics.means[row], mean, atol=2e-3)
    np.testing.assert_allclose(statistics.maps[row], by, atol=2e-3)


def test_people_are_found_across_cameras_that_change_everybody():
    x, names, who = people_under_cameras(60, 3)
    before, after = rank_1(x, names, who), rank_1(without_cameras(x, names), names, who)
    assert before < 0.6 and after > before + 0.3


@pytest.mark.parametrize("people", [5, 12, 40])
def test_cameras_that_change_nothing_cost_nothing(people):
    x, names, who = people_under_cameras(people, 3, changed=0.0)
    assert rank_1(without_cameras(x, names), names, who) >= rank_1(x, names, who) - 0.02


@pytest.mark.parametrize("named", [True, False])
def test_people_who_are_on_many_videos_of_one_camera_are_told_apart_as_before(named):
    rng = np.random.default_rng(4)
    persons = rng.normal(size=(5, WIDTH)) * np.linspace(2, 0.3, WIDTH)
    who = np.repeat(np.arange(5), 10)
    x = persons[who] + rng.normal(scale=0.6, size=(50, WIDTH)) * np.linspace(0.6, 1, WIDTH)

    def found(vectors):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        scores = unit @ unit.T - 2 * np.eye(len(unit))
        order = np.argsort(-scores, axis=1)[:, :9]
        return float((who[order] == who[:, None]).mean())

    assert found(without_cameras(x, ["c0" if named else None] * 50)) >= found(x) - 0.02


def test_a_camera_of_few_videos_has_no_statistics_of_its_own():
    x, names, _ = people_under_cameras(cameras.LEAST_VIDEOS, 3)
    statistics = camera_statistics(x[:-1], names[:-1])
    assert (
        statistics.names == ("c0", "c1") and statistics.means.shape == (3, WIDTH) and statistics.maps.shape == (3, WIDTH, WIDTH)
    )
    assert [statistics.row(name) for name in ("c0", "c1", "c2", "elsewhere", None)] == [1, 2, 0, 0, 0]


def test_one_video_keeps_nearly_all_that_it_shows():
    x = np.random.default_rng(0).normal(size=(1, WIDTH))
    (changed,) = without_cameras(x, ["c0"])
    assert changed @ x[0] / np.linalg.norm(changed) / np.linalg.norm(x[0]) > 0.99


def test_no_videos_give_no_statistics():
    with pytest.raises(ValueError, match="no statistics"):
        camera_statistics(np.empty((0, WIDTH)), [])


@pytest.fixture
def head():
    return untrained_head(np.random.default_rng(1).normal(size=(50, 20)), key_width=6, value_width=8)


@pytest.fixture
def statistics(head):
    rng = np.random.default_rng(2)
    return camera_statistics(rng.normal(size=(40, 8)) + 1, ["a", "b"] * 20)


def test_values_under_a_camera_are_mapped_and_of_unit_length_and_keys_stay(head, statistics):
    frames = torch.randn(5, 20)
    under = CameraHeads(head, statistics).of("b")
    x = score_space(head, head.values(frames)).double()
    row = statistics.row("b")
    expected = (x - torch.from_numpy(statistics.means[row]).double()) @ torch.from_numpy(statistics.maps[row]).double()
    expected /= expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(under.values(frames).double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(under.keys(frames), head.keys(frames))
    torch.testing.assert_close(under.query_vectors(frames[None]), head.query_vectors(frames[None]))


def test_a_pair_under_cameras_scores_by_the_cosine_of_its_encodings(head, statistics):
    heads = CameraHeads(head, statistics)
    target, candidate = torch.randn(3, 4, 20), torch.randn(2, 4, 20)
    here, there = heads.of("a"), heads.of("b")
    found = here.compare(target, target)
    own = torch.nn.functional.normalize(torch.einsum("nt,ntd->nd", found.target_attention, here.values(target)), dim=-1)
    seen = there.compare(target, candidate).candidate_attention
    theirs = torch.nn.functional.normalize(torch.einsum("nkt,ktd->nkd", seen, there.values(candidate)), dim=-1)
    torch.testing.assert_close(found.target_encodings, own)
    weight, bias = heads.score_row()
    assert (weight == -4).all() and bias == 4
    logits = 4 - 4 * (2 - 2 * torch.einsum("nd,nkd->nk", there.compare(target, candidate).target_encodings, theirs))
    torch.testing.assert_close(there.pair_logits(target, candidate), logits, atol=1e-4, rtol=0)


def test_without_statistics_the_head_itself_serves_every_camera(head):
    heads = CameraHeads(head, None)
    assert heads.of("a") is head and heads.of(None) is head and not heads.unit_encodings


def test_a_head_with_weights_above_zero_takes_no_statistics():
    free = Coattention(dataclasses.replace(CoattentionConfig(20, 6, 8), negative_weight=False))
    with torch.no_grad():
        free.classifier.weight.fill_(1.0)
    assert not can_measure_cameras(free)
    with pytest.raises(ValueError, match="above 0"):
        CameraCoattention(free, torch.zeros(8), torch.eye(8))
