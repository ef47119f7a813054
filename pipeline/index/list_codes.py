"""Codes of compressed inverted lists, made by a small C kernel: training their codebook, and adding vectors.

FAISS compares a vector's part of three numbers with one centre after another, or by a matrix product that is mostly writing; that
took some four tenths of the time to build an index of 100,000 videos. The codebook and the lists made here are FAISS's own.
Where the kernel is not compiled or the lists are of another kind, FAISS trains and adds for itself.
"""

import ctypes
from typing import Any

import faiss
import numpy as np

from pipeline.scoring import compiled

_NAME = "list_codes"
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = [*3 * [_SIZE], *3 * [_POINTER]]  # of the C function, as they stand there
BLOCK = 4096  # vectors that are compared with all centres of lists at a time
CENTRES = 256
TRAINED_ON = 256  # vectors a centre, at most
ROUNDS = 25  # of k-means; these two as FAISS has them


def train(index: faiss.Index, vectors: np.ndarray, seed: int) -> None:
    """Train an inverted file on vectors float32 [n, d], at least CENTRES of them."""
    found: Any = faiss.downcast_index(index)
    if not _is_known(found):
        index.train(vectors)
        return
    clustering: Any = faiss.Clustering(found.d, found.nlist, found.cp)
    clustering.train(vectors, found.quantizer)
    centres = trained_centres(vectors, found.pq.M, seed)
    faiss.copy_array_to_vector(centres.ravel(), found.pq.centroids)
    found.is_trained = True


def trained_centres(vectors: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """Centres float32 [parts, CENTRES, d / parts] of the parts of vectors float32 [n, d]: each part's by k-means of its own."""
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(vectors))[: TRAINED_ON * CENTRES]
    sample = np.ascontiguousarray(vectors[chosen], np.float32)
    numbers = sample.reshape(len(sample), parts, -1)
    centres = np.ascontiguousarray(numbers[:CENTRES].transpose(1, 0, 2))
    for _ in range(ROUNDS):
        codes = _encoded(sample, centres)
        for part in range(parts):
            members = np.bincount(codes[:, part], minlength=CENTRES)
            sums = [np.bincount(codes[:, part], column, CENTRES) for column in numbers[:, part].T]
            centres[part] = np.stack(sums, axis=1) / np.maximum(members, 1)[:, None]
            # A centre that nobody is near to goes to a vector of the largest groups, of which each gives one.
            largest = np.argsort(-members, kind="stable")[: np.count_nonzero(members)]
            for centre, group in zip(np.flatnonzero(members == 0), largest, strict=False):
                centres[part, centre] = numbers[random.choice(np.flatnonzero(codes[:, part] == group)), part]
    return centres


def add(index: faiss.Index, vectors: np.ndarray) -> None:
    """Add vectors float32 [n, d] to an index, as its next numbers."""
    found: Any = faiss.downcast_index(index)
    if not _is_known(found) or not len(vectors):
        index.add(vectors)
        return
    vectors = np.ascontiguousarray(vectors, np.float32)
    codes, lists = codes_of(found.pq, vectors), nearest_lists(found, vectors)
    ids = np.argsort(lists, kind="stable")
    ordered, starts = np.unique(lists[ids], return_index=True)
    codes, ends = codes[ids], np.append(starts[1:], len(ids))
    ids += index.ntotal
    for number, start, end in zip(ordered.tolist(), starts.tolist(), ends.tolist(), strict=True):
        found.invlists.add_entries(number, end - start, faiss.swig_ptr(ids[start:end]), faiss.swig_ptr(codes[start:end]))
    found.ntotal += len(ids)


def _is_known(index: Any) -> bool:
    if not isinstance(index, faiss.IndexIVFPQ) or index.metric_type != faiss.METRIC_L2 or index.by_residual:
        return False
    quantizer: Any = faiss.downcast_index(index.quantizer)
    lists: Any = index.invlists
    parts = index.pq.M
    if not isinstance(quantizer, faiss.IndexFlat) or index.pq.nbits != 8 or compiled.library(_NAME) is None:
        return False
    # What is read from a file may contradict itself; FAISS then says so.
    return parts * index.pq.dsub == index.d == quantizer.d and parts == index.code_size == lists.code_size


def codes_of(quantizer: Any, vectors: np.ndarray) -> np.ndarray:
    """Codes uint8 [n, M] of vectors float32 [n, d] by FAISS's product quantizer of 8 bits; the kernel is there."""
    return _encoded(vectors, faiss.vector_to_array(quantizer.centroids).reshape(quantizer.M, CENTRES, quantizer.dsub))


def _encoded(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest centre of each part, uint8 [n, parts]. vectors: [n, d], contiguous; centres: [parts, CENTRES, d / parts]."""
    parts, _, width = centres.shape
    if vectors.shape[1:] != (parts * width,):
        raise ValueError(f"vectors have {vectors.shape[1:]} numbers, the codebook {parts} parts of {width}")
    centres = np.ascontiguousarray(centres.transpose(0, 2, 1), np.float32)
    codes = np.empty((len(vectors), parts), np.uint8)
    library: Any = compiled.library(_NAME)
    encode = compiled.function(library, "encode", _ARGUMENTS, None)
    encode(len(vectors), parts, width, vectors.ctypes.data, centres.ctypes.data, codes.ctypes.data)
    return codes


def nearest_lists(index: Any, vectors: np.ndarray) -> np.ndarray:
    """The list of an inverted file of FAISS that each vector float32 [n, d] belongs to, int64 [n]."""
    centres = index.quantizer.reconstruct_n(0, index.nlist)
    half = (centres * centres).sum(axis=1) / 2
    blocks = [vectors[start : start + BLOCK] for start in range(0, len(vectors), BLOCK)]
    return np.concatenate([np.argmin(half - block @ centres.T, axis=1) for block in blocks])
