"""The shortlist is exactly what a brute-force search in the score's metric gives."""

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.index.prefilter import PrefilterMetric, PrefilterQuery, compressed_index, is_flat, shortlist
from pipeline.scoring.scores import TargetEncoding


def case(seed: int, signs: str) -> tuple[TargetEncoding, np.ndarray, np.ndarray]:
    """A target, mean segment values [S, d] and the video of each segment, ascending."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=6).astype(np.float32)
    weight = -np.abs(weight) if signs == "negative" else weight
    encodings = torch.from_numpy(rng.normal(size=(3, 6)).astype(np.float32))
    empty = torch.empty(0)
    prices = torch.tensor([0.0, 2.0, 0.5]) if seed % 2 else None
    target = TargetEncoding(empty, encodings, empty, torch.from_numpy(weight), torch.tensor(1.5), empty, prices=prices)
    video_of_segment = np.repeat(np.arange(50), rng.integers(1, 6, size=50))
    return target, rng.normal(size=(len(video_of_segment), 6)).astype(np.float32), video_of_segment


def brute_force(target: TargetEncoding, means: np.ndarray, video_of_segment: np.ndarray) -> np.ndarray:
    """The best logit of each video under uniform attention, written out."""
    encodings, weight = target.encodings.numpy().astype(float), target.weight.numpy().astype(float)
    prices = np.zeros(len(encodings)) if target.prices is None else target.prices.numpy()
    every = zip(encodings, prices, strict=True)
    logits = np.array([[1.5 - price + (weight * (e - m) ** 2).sum() for m in means.astype(float)] for e, price in every])
    return np.array([logits[:, video_of_segment == v].max() for v in range(video_of_segment[-1] + 1)])


@pytest.mark.parametrize("signs", ["negative", "mixed"])
@given(seed=st.integers(0, 10_000), count=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_it_is_the_exact_top_of_the_score_under_uniform_attention(signs: str, seed: int, count: int) -> None:
    target, means, video_of_segment = case(seed, signs)
    metric = PrefilterMetric.of_target(target)
    index = metric.empty_index()
    index.add(metric.stored(means))
    videos, logits = shortlist(index, PrefilterQuery(target), video_of_segment, count)
    truth = brute_force(target, means, video_of_segment)
    assert videos.tolist() == np.argsort(-truth)[:count].tolist()
    assert np.allclose(logits, truth[videos], atol=1e-4)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 60), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_a_filter_gives_the_top_of_what_it_allows_and_never_fewer(seed: int, count: int, share: float) -> None:
    target, means, video_of_segment = case(seed, "negative")
    allowed = np.random.default_rng(seed).random(50) < share
    metric = PrefilterMetric.of_target(target)
    index = metric.empty_index()
    index.add(metric.stored(means))
    videos, _ = shortlist(index, PrefilterQuery(target), video_of_segment, count, allowed)
    truth = np.where(allowed, brute_force(target, means, video_of_segment), -np.inf)
    assert videos.tolist() == np.argsort(-truth)[: min(count, allowed.sum())].tolist()


def test_equal_logits_at_the_end_of_the_list_are_all_returned() -> None:
    target, _, _ = case(0, "negative")
    metric = PrefilterMetric.of_target(target)
    index = metric.empty_index()
    index.add(metric.stored(np.zeros((30, 6))))
    videos, _ = shortlist(index, PrefilterQuery(target), np.arange(30), 5)
    assert videos.tolist() == list(range(30))


METRIC = PrefilterMetric(np.full(24, -0.5, np.float32), 1.5)


@pytest.fixture(scope="module")
def trained() -> faiss.Index:
    """An empty compressed index for `people(1, 1500)` under METRIC: training is what takes long."""
    means, _ = people(1, 1500)
    return compressed_index(METRIC, means, len(means))


def people(seed: int, videos: int, width: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Mean segment values [S, width] of people who are seen in several videos, and the video of each, ascending."""
    rng = np.random.default_rng(seed)
    persons = rng.normal(size=(videos // 5, width))
    video_of_segment = np.repeat(np.arange(videos), rng.integers(1, 10, size=videos))
    means = persons[video_of_segment % len(persons)] + 0.4 * rng.normal(size=(len(video_of_segment), width))
    return means.astype(np.float32), video_of_segment


def asked(means: np.ndarray, weight: np.ndarray) -> TargetEncoding:
    empty = torch.empty(0)
    return TargetEncoding(empty, torch.from_numpy(means), empty, torch.from_numpy(weight), torch.tensor(1.5), empty)


@pytest.mark.parametrize("signs", [1.0, -1.0])
def test_a_compressed_index_keeps_nearly_all_of_the_exact_shortlist(trained: faiss.Index, signs: float) -> None:
    means, video_of_segment = people(1, 1500)
    weight = METRIC.weight.copy()
    weight[0] *= signs
    metric = PrefilterMetric(weight, 1.5)
    exact = metric.empty_index()
    compressed = faiss.clone_index(trained) if signs > 0 else compressed_index(metric, means, len(means))
    exact.add(metric.stored(means))
    compressed.add(metric.stored(means))
    assert not is_flat(compressed)
    kept = []
    for video in range(30):
        target = asked(means[video_of_segment == video], weight)
        best, _ = shortlist(exact, PrefilterQuery(target), video_of_segment, 10)
        few, logits = shortlist(compressed, PrefilterQuery(target), video_of_segment, 100)
        assert (np.diff(logits) <= 0).all()
        kept.append(np.isin(best, few).mean())
    assert np.mean(kept) > 0.95


@pytest.mark.parametrize("share", [0.5, 0.02, 0.001])
def test_a_compressed_index_never_gives_fewer_than_the_filter_allows(trained: faiss.Index, share: float) -> None:
    means, video_of_segment = people(1, 1500)
    index = faiss.clone_index(trained)
    index.add(METRIC.stored(means))
    allowed = np.random.default_rng(3).random(1500) < share
    target = asked(means[:5], METRIC.weight)
    videos, _ = shortlist(index, PrefilterQuery(target), video_of_segment, 50, allowed)
    assert len(set(videos.tolist())) >= min(50, allowed.sum())
    assert allowed[videos].all()


def test_a_flat_index_is_asked_for_everything_as_for_a_part() -> None:
    means, video_of_segment = people(4, 300)
    index = METRIC.empty_index()
    index.add(METRIC.stored(means))
    target = asked(means[7:12], METRIC.weight)
    some, logits = shortlist(index, PrefilterQuery(target), video_of_segment, 20)
    everything, every_logit = shortlist(index, PrefilterQuery(target), video_of_segment, 300)
    assert everything[:20].tolist() == some.tolist()
    assert sorted(everything.tolist()) == list(range(300))
    assert np.allclose(every_logit[:20], logits, atol=1e-4)


def test_one_query_asks_several_inverted_files_as_faiss_itself_would(trained: faiss.Index) -> None:
    means, _ = people(1, 1500)
    query = PrefilterQuery(asked(means[:4], METRIC.weight))
    for part in np.array_split(means, 3):
        index = faiss.clone_index(trained)
        index.add(METRIC.stored(part))
        index.nprobe = min(index.nlist, 128)
        video_of_segment = np.arange(len(part))
        own, of_segment = index.search(query.vectors, 40)
        videos, logits = shortlist(index, query, video_of_segment, 10)
        best = np.full(len(part), -np.inf)
        np.maximum.at(best, of_segment, METRIC.logits(own, query.encodings))
        assert set(videos[:10].tolist()) <= set(of_segment.ravel().tolist())
        assert np.allclose(np.sort(best)[::-1][:10], logits[:10], atol=1e-5)
