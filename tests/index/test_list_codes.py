"""Codes and codebooks of compressed lists are as good as FAISS's own, and the lists are those that FAISS makes."""

from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.index import list_codes
from pipeline.index.prefilter import PrefilterMetric, compressed_index
from pipeline.scoring import compiled

WIDTH = 24
METRIC = PrefilterMetric(np.full(WIDTH, -0.5, np.float32), 1.5)

needs_compiler = pytest.mark.skipif(
    compiled.library("list_codes") is None, reason=f"no compiled kernel: {compiled.why_not('list_codes')}"
)


def people(seed: int, count: int) -> np.ndarray:
    """Vectors float32 [count, WIDTH], several of each person."""
    rng = np.random.default_rng(seed)
    persons = rng.normal(size=(max(count // 8, 1), WIDTH))
    return (persons[rng.integers(0, len(persons), size=count)] + 0.4 * rng.normal(size=(count, WIDTH))).astype(np.float32)


def empty_index(lists: int = 16) -> tuple[faiss.Index, Any]:
    """One of FAISS that is not trained, and the same as what it is."""
    index = faiss.index_factory(WIDTH, f"IVF{lists},PQ8x8")
    found: Any = faiss.downcast_index(index)
    found.by_residual, found.cp.seed = False, 1
    return index, found


def error(quantizer: Any, vectors: np.ndarray) -> float:
    """Mean squared distance of vectors from what their codes stand for."""
    return float(((quantizer.decode(quantizer.compute_codes(vectors)) - vectors) ** 2).sum(axis=1).mean())


@needs_compiler
@pytest.mark.parametrize("processor", ["native", "x86-64-v3", "x86-64"])
@given(data=st.data())
def test_no_centre_is_nearer_than_the_one_of_the_code(processor: str, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "PROCESSOR", processor)
        if compiled.library("list_codes") is None:
            pytest.skip(f"nothing is compiled for {processor} here: {compiled.why_not('list_codes')}")
        count, parts, width = (data.draw(st.integers(1, most)) for most in (70, 5, 9))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        scale = data.draw(st.sampled_from([1e-12, 1.0, 1e12]))
        vectors, centres = (rng.normal(size=size) * scale for size in ((count, parts, width), (parts, 256, width)))
        codes = list_codes._encoded(vectors.reshape(count, -1).astype(np.float32), centres.astype(np.float32))
        distances = ((vectors.astype(np.float32)[:, :, None] - centres.astype(np.float32).astype(float)) ** 2).sum(axis=3)
        chosen = np.take_along_axis(distances, codes[..., None].astype(int), axis=2)[..., 0]
        np.testing.assert_allclose(chosen, distances.min(axis=2), rtol=1e-5)


@needs_compiler
def test_lists_are_as_faiss_makes_them() -> None:
    index, found = empty_index()
    vectors = people(0, 3000)
    list_codes.train(index, vectors, 1)
    own, other = faiss.clone_index(index), faiss.clone_index(index)
    for start, stop in ((0, 1), (1, 1), (1, 1200), (1200, 3000)):
        list_codes.add(own, vectors[start:stop])
        other.add(vectors[start:stop])
    assert own.ntotal == other.ntotal == 3000
    filled: list[Any] = [faiss.downcast_index(one) for one in (own, other)]
    lists = [one.invlists for one in filled]
    for number in range(found.nlist):
        sizes = [one.list_size(number) for one in lists]
        ids = [faiss.rev_swig_ptr(one.get_ids(number), size) for one, size in zip(lists, sizes, strict=True)]
        assert ids[0].tolist() == ids[1].tolist()  # in the order in which they came
    codes = [one.sa_encode(vectors) for one in (own, other)]
    assert codes[0].tolist() == codes[1].tolist()
    stored = [faiss.downcast_index(one).search(vectors[:50], 5)[1] for one in (own, other)]
    assert (stored[0] == stored[1]).mean() > 0.99  # a sum's last bit may choose the other one of two centres


@needs_compiler
def test_a_codebook_is_as_good_as_that_of_faiss() -> None:
    vectors, others = people(0, 4000), people(1, 2000)
    (own, found), (other, of_faiss) = empty_index(), empty_index()
    list_codes.train(own, vectors, 1)
    other.train(vectors)
    assert own.is_trained
    for some in (vectors, others):
        assert error(found.pq, some) < 1.02 * error(of_faiss.pq, some)
    assert np.array_equal(found.quantizer.reconstruct_n(0, 16), of_faiss.quantizer.reconstruct_n(0, 16))


@needs_compiler
def test_vectors_of_another_width_are_not_read() -> None:
    index, _ = empty_index()
    list_codes.train(index, people(0, 1000), 1)
    with pytest.raises(ValueError, match="23"):
        list_codes.add(index, people(0, 10)[:, :23])
    assert index.ntotal == 0


@needs_compiler
def test_the_same_seed_trains_the_same_codebook() -> None:
    vectors = people(2, 1000)
    books = [list_codes.trained_centres(vectors, 8, seed) for seed in (5, 5, 6)]
    assert np.array_equal(books[0], books[1]) and not np.array_equal(books[0], books[2])


@needs_compiler
@pytest.mark.parametrize("distinct", [1, 3, 255, 256])
def test_few_distinct_vectors_are_met_exactly(distinct: int) -> None:
    vectors = np.repeat(people(3, distinct), 1000 // distinct + 1, axis=0)[:1000]
    centres = list_codes.trained_centres(vectors, 8, 1)
    assert np.isfinite(centres).all()
    codes = list_codes._encoded(vectors, centres)
    met = np.take_along_axis(centres, codes.T[..., None].astype(int), axis=1).transpose(1, 0, 2).reshape(vectors.shape)
    assert np.abs(met - vectors).max() < (1e-5 if distinct < 100 else 1)


@pytest.mark.parametrize(
    "weight", [np.full(WIDTH, -0.5), np.linspace(-1, 1, WIDTH), np.full(WIDTH, -0.5)[:23]], ids=["L2", "IP", "SQ"]
)
@pytest.mark.parametrize("compiles", [True, False])
def test_every_kind_of_index_is_filled(weight: np.ndarray, compiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiles:
        monkeypatch.setattr(list_codes.compiled, "library", lambda name: None)
    metric = PrefilterMetric(weight.astype(np.float32), 1.5)
    means = people(4, 800)[:, : len(weight)]
    for index in (metric.empty_index(), compressed_index(metric, means, len(means))):
        list_codes.add(index, metric.stored(means))
        found: Any = faiss.downcast_index(index)
        if isinstance(found, faiss.IndexIVF):
            found.nprobe = found.nlist
        assert index.ntotal == 800
        _, nearest = index.search(metric.queries(means[:40]), 5)
        exact = metric.bias + ((means[:40, None] - means) ** 2 @ metric.weight)
        best = np.argsort(-exact, axis=1, kind="stable")[:, :1]
        assert (nearest == best).any(axis=1).mean() > 0.8
