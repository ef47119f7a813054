"""Scores of many candidates at once: the numbers of `coattention`, without an encoding for each pair.

With a = attention that target segment n gives to the T frames of candidate segment j (so sum_t a_t = 1), and writing |x|^2 for
sum_d w_d x_d^2, the square in the score opens up:

    logit = c + |e_n - sum_t a_t v_t|^2 = c + sum_t a_t |e_n - v_t|^2 - 1/2 sum_tu a_t a_u D_tu,   D_tu = |v_t - v_u|^2

What touches a pair of target segment and candidate frame is two matrix products over candidate frames, and D belongs to the
candidate alone. The identity is exact. Agreement adds a multiple of |e_n - v_t|^2 to the heat of a frame, which is there already.
Where encodings are compared as unit vectors, values being unit vectors and every w_d the same -s, the length L of a candidate's
encoding sum_t a_t v_t follows from D, too: L^2 = 1 + 1/2 sum_tu a_t a_u D_tu / s. With the logit from above,

    logit of unit encodings = c + (s (1 + L^2) + logit - c) / L - 2 s

Distances between frames of one segment are small where its frames are alike, whatever the origin, so that they keep as float16
what products of values would lose. What pairs make of a video is in `scoring.video_scores`.

Sizes: N target segments, K candidate segments of T frames, F candidate frames, d_k and d_v width of a key and of a
value.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pipeline.coattention.network import Coattention
from pipeline.scoring import pair_kernel
from pipeline.scoring.frame_rows import FileRows

CPU_CHUNK = 1024  # the tables of a chunk stay in the cache: 1.5 times as fast as 16384 at 128-wide keys and values
GPU_CHUNK = 16384  # large enough to fill a GPU
LEAST_SQUARE = 1e-6  # of the length of an encoding that is compared as a unit vector; the kernel has it, too


@dataclass(frozen=True)
class TargetEncoding:
    """What scoring needs of a target; all tensors float32 on one device.

    query_vectors: [N, d_k]. encodings: e_n, [N, d_v]. attention: of the target's own frames, [N, T_p], 0 for padding.
    weight: the row w, [d_v]. bias: c, []. centre: [d_v], taken off both sides before any product. agreement: at least 0, see
    `Coattention`. unit: s where encodings are compared as unit vectors and w is -s throughout, 0 where they are not. slack: see
    `CoattentionConfig`. prices: [N], what a shortlist takes off the logit of each encoding; None for nothing.

    Only differences of encodings count, so any centre gives the same score; one near the values keeps the terms of the
    opened square small, so that float32 does not lose their difference.
    """

    query_vectors: Tensor
    encodings: Tensor
    attention: Tensor
    weight: Tensor
    bias: Tensor
    centre: Tensor
    agreement: float = 0.0
    unit: float = 0.0
    slack: float = 0.0
    prices: Tensor | None = None

    def to(self, device: torch.device | str) -> "TargetEncoding":
        """The same on another device."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: part.to(device) for name, part in parts.items() if isinstance(part, Tensor)}
        return replace(self, **moved)

    def only(self, segments: ArrayLike) -> "TargetEncoding":
        """Some of its segments, by numbers int64 [n]; a number may stand more than once."""
        some = torch.as_tensor(segments, device=self.encodings.device)
        query_vectors, encodings, attention = self.query_vectors[some], self.encodings[some], self.attention[some]
        return replace(self, query_vectors=query_vectors, encodings=encodings, attention=attention)


@torch.no_grad()
def encode_target(
    head: Coattention, target_features: Tensor, centre: Tensor | None = None, lengths: Tensor | None = None
) -> TargetEncoding:
    """Query vectors and encodings of target segments, each under the attention of its own query vector [0044-0049].

    target_features: frame features [N, T_p, D], any floating type. centre: [d_v]; without it, the mean of the target's encodings.
    lengths: int64 [N], how many frames of each segment are real, the others repeating its last; without it, all are.
    Raises PipelineError for features of another width, ValueError for a head whose unit encodings the scores here cannot follow:
    values must be unit vectors and all weights the same number below 0.
    """
    target_features = target_features.to(head.feature_mean.device)
    query_vectors = head.query_vectors(target_features)  # [N, d_k]
    lengths = None if lengths is None else lengths.to(target_features.device)
    attention = head.attention(query_vectors, head.keys(target_features), lengths)  # [N, T_p]
    encodings = head.encode(attention, head.values(target_features))  # [N, d_v]
    weight, bias = head.score_row()
    centre = encodings.mean(dim=0) if centre is None else centre.to(encodings.device)
    parts = (query_vectors, encodings, attention, weight, bias, centre)
    copies = [part.detach().clone().float() for part in parts]  # copies, since weight and bias are the head's
    unit = _unit(head, weight) if head.config.unit_encodings else 0.0
    numbers = {"agreement": max(float(head.agreement), 0.0), "unit": unit, "slack": float(head.config.slack)}
    return TargetEncoding(*copies, **numbers)  # type: ignore[arg-type]


def _unit(head: Coattention, weight: Tensor) -> float:
    mean = float(weight.mean())
    same = torch.allclose(weight, weight.mean(), rtol=1e-5, atol=0)  # softplus of equal numbers differs in its last bits
    if not (head.config.normalise_values and same and mean < 0):
        raise ValueError("unit encodings are scored fast only with unit values and one weight below 0 for all dimensions")
    return -mean


def pair_scores(
    target: TargetEncoding,
    keys: Tensor,
    values: Tensor,
    segment_frames: Tensor,
    *,
    distances: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Scores float32 [N, K] in 0..1 of target against candidate segments [0052]; arguments as in `pair_logits`."""
    return pair_logits(target, keys, values, segment_frames, distances=distances, chunk=chunk).sigmoid_()


@torch.no_grad()
def pair_logits(
    target: TargetEncoding,
    keys: Tensor,
    values: Tensor,
    segment_frames: Tensor,
    *,
    distances: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Logits float32 [N, K], of which the sigmoid is the score, computed in float32 on the device of `keys`.

    keys: [F, d_k], values: [F, d_v], one row a candidate frame, float16 or wider. segment_frames: int64 [K, T], rows
    of keys and values that make up each segment; a number equal to the one before it in its segment is padding, to which
    nothing attends. Segments may share frames and may come in any order, but segments that lie near each other in
    `segment_frames` are fastest when they do so in `keys`.
    distances: D, [K, T, T], from `segment_distances`; without it, it is computed here.
    chunk: candidate segments in work at once, by default 1024 on a CPU and 16384 elsewhere; beyond the result, about
    4 * chunk * T * (4 N + 3 d_v + d_k) bytes. Another chunk moves the last bits of a result at most, as matrix
    libraries round differently for different shapes.

    Where no weight is above 0, no logit exceeds the bias: rounding is cut off there.
    Raises ValueError for shapes that do not fit each other and frame numbers outside 0..F-1.
    """
    _check_shapes(target, keys, values, segment_frames, distances, chunk)
    target = target.to(keys.device)
    ceiling = torch.where((target.weight <= 0).all(), target.bias, math.inf)
    encodings = target.encodings - target.centre  # [N, d_v]
    constant = target.bias + (encodings * target.weight * encodings).sum(dim=1)  # [N]
    logits = torch.empty(len(encodings), len(segment_frames), device=keys.device)  # [N, K]
    for start, rows, segments in _chunks(segment_frames.to(keys.device), len(keys), chunk):
        centred = (values[rows] - target.centre).float()  # [f, d_v]
        cross = _cross(target, centred)[segments]  # [k, T, N]: rows of N, so that the gather copies runs
        heat = (keys[rows].float() @ target.query_vectors.T)[segments]  # [k, T, N]
        attention = _attention(target, heat, cross, segments)  # [k, T, N]
        if distances is None:
            table = _distances(target.weight, centred, segments)  # [k, T, T]
        else:
            table = distances[start : start + len(segments)].to(keys.device, torch.float32)
        spread = table @ attention / 2  # [k, T, N]
        found = constant + (attention * (cross - spread)).sum(dim=1)  # [k, N]
        if target.unit:
            square = (1 + (attention * spread).sum(dim=1) / target.unit).clamp_min(LEAST_SQUARE)  # [k, N], |e_nj|^2
            cosine = (target.unit * (1 + square) + found - target.bias) / square.sqrt()  # 2 s times it
            found = target.bias + cosine - 2 * target.unit
        logits[:, start : start + len(segments)] = torch.minimum(found, ceiling).T
    return logits


@torch.no_grad()
def candidate_logits(
    target: TargetEncoding, keys: Tensor, values: Tensor, band: Tensor, start: Tensor, last: Tensor, length: int
) -> Tensor:
    """`pair_logits` of segments of consecutive frames with stored distances, float32 [K, N], the fastest way there is.

    keys: [F, d_k], values: [F, d_v], band: [F, length - 1] from `frame_band`, all float16 or all float32 and on one device.
    start, last: int64 [K], ascending by start: a segment is the frames start .. start + length - 1, as far as `last`, its video's
    last frame. On a CPU this is the compiled kernel (`pipeline.scoring.pair_kernel`) where there is a
    compiler. Raises ValueError for shapes that do not fit and frame numbers outside 0..F-1.
    """
    count = len(start)
    if count == 0:
        return torch.empty(0, len(target.encodings), device=keys.device)
    if band.shape != (len(keys), length - 1) or last.shape != start.shape:
        raise ValueError(
            f"a band {list(band.shape)} and {list(last.shape)} ends do not fit {len(keys)} frames and {count} segments"
        )
    first, final = (part.cpu().numpy() for part in (start, last))  # torch's threads would spin on beside the kernel's
    lowest, highest = int(first.min()), int(final.max())
    if lowest < 0 or highest >= len(keys) or bool((final < first).any()):
        raise ValueError(f"segments name frames {lowest}..{highest}, but there are only 0..{len(keys) - 1}")
    if keys.device.type == "cpu" and keys.dtype in (torch.float16, torch.float32) and pair_kernel.available():
        _check_shapes(target, keys, values, segment_rows(start[:1], last[:1], length), None, None)
        if not keys.dtype == values.dtype == band.dtype or not all(part.is_contiguous() for part in (keys, values, band)):
            raise ValueError("keys, values and band must be contiguous and of one type")
        return pair_kernel.pair_logits(keys, values, band, length, start, last, _tables(target))
    rows = segment_rows(start, last, length)
    parts = []
    for begin in range(0, count, GPU_CHUNK):
        piece = rows[begin : begin + GPU_CHUNK]
        parts.append(pair_logits(target, keys, values, piece, distances=segment_distances(band, piece)).T)
    return torch.cat(parts)


@torch.no_grad()
def file_logits(
    target: TargetEncoding,
    rows: FileRows,
    first: NDArray[np.int64],
    frames: NDArray[np.int64],
    segments: NDArray[np.int64],
    length: int,
    stride: int,
) -> Tensor:
    """`candidate_logits` of all segments of videos in files, float32 [K, N], whether the page cache holds them or not.

    first, frames, segments: of each video, [m], its first row in its file, its rows, its segments of `length` frames, `stride`
    apart. Needs the compiled kernel. Raises ValueError for rows of other widths than the target's and more segments than rows,
    PipelineError for a file that cannot be read or has become too short.
    """
    widths = (target.query_vectors.shape[1], target.encodings.shape[1], length - 1)
    if rows.widths != widths:
        raise ValueError(f"keys, values and band of a frame have {rows.widths} numbers, not {widths}")
    if (segments > frames).any() or (segments < 1).any():
        raise ValueError("a video has at least one segment and not more of them than frames")
    return pair_kernel.file_logits(rows, first, frames, segments, _tables(target), length, stride)


def _tables(target: TargetEncoding) -> pair_kernel.TargetTables:
    target = target.to("cpu")
    encodings = target.encodings - target.centre
    weighted = encodings * target.weight
    constant = target.bias + (weighted * encodings).sum(dim=1)
    ceiling = float(target.bias) if bool((target.weight <= 0).all()) else math.inf
    return pair_kernel.TargetTables(
        target.query_vectors,
        *(-2 * weighted, constant, target.weight, target.centre),
        *(target.agreement, target.unit, target.slack, ceiling),
    )


def scores_of(logits: Tensor) -> NDArray[np.float32]:
    """Scores float32 of logits float32 of any shape. Not torch's on a CPU: there the last bit depends on a number's place."""
    if logits.device.type != "cpu":
        return logits.sigmoid().cpu().numpy()
    scores = -logits.numpy()
    with np.errstate(over="ignore"):  # 1 / inf is the 0 that is meant
        np.exp(scores, out=scores)
    scores += 1
    return np.reciprocal(scores, out=scores)


def segment_rows(start: Tensor, last: Tensor, length: int) -> Tensor:
    """Frame numbers int64 [K, length] of segments: consecutive from `start`, `last` repeated where a video is short."""
    return torch.minimum(start[:, None] + torch.arange(length, device=start.device), last[:, None])


@torch.no_grad()
def frame_band(weight: Tensor, values: Tensor, after: Tensor, length: int) -> Tensor:
    """D of each frame to the length - 1 frames after it, float32 [F, length - 1]: all that segments of `length` frames need.

    weight: w, [d_v]; values: [F, d_v]; after: int64 [F], frames that the frame's video has after it; entries beyond are 0.
    """
    weight = weight.to(values.device, torch.float32)
    band = torch.zeros(len(values), length - 1, device=values.device)
    for first in range(0, len(values), CPU_CHUNK):
        block = values[first : first + CPU_CHUNK + length - 1].float()
        rows = min(CPU_CHUNK, len(values) - first)
        for i in range(1, length):
            count = min(rows, len(block) - i)
            if count > 0:
                band[first : first + count, i - 1] = (block[i : i + count] - block[:count]).square() @ weight
    return band.masked_fill_(torch.arange(1, length, device=values.device) > after[:, None].to(values.device), 0.0)


@torch.no_grad()
def segment_distances(band: Tensor, segment_frames: Tensor) -> Tensor:
    """D of candidate segments, float32 [K, T, T], out of a `frame_band` [F, T - 1], float16 or wider.

    segment_frames: int64 [K, T], ascending rows of the band, the last repeated where a video is shorter than a segment.
    """
    first, second = segment_frames[:, :, None], segment_frames[:, None, :]
    gap, width = (second - first).abs(), band.shape[1]  # [K, T, T]
    if width == 0:
        return torch.zeros(gap.shape, device=band.device)
    cells = torch.minimum(first, second) * width + (gap - 1).clamp_min(0)
    return torch.where(gap > 0, band.reshape(-1)[cells].float(), 0.0)


@torch.no_grad()
def attention_weights(target: TargetEncoding, keys: Tensor, values: Tensor, segment_frames: Tensor) -> Tensor:
    """Attention float32 [N, T] that each target segment gives to the frames of one candidate segment [0046], 0 for padding.

    keys: [F, d_k], values: [F, d_v], as in `pair_logits`; segment_frames: int64 [N, T], of each target segment's own candidate
    segment. The target's own frames have theirs in `TargetEncoding.attention`. Raises ValueError for frame numbers outside
    0..F-1.
    """
    target, rows = target.to(keys.device), segment_frames.to(keys.device)
    _check_rows(rows, len(keys))
    centred = values[rows].float() - target.centre  # [N, T, d_v]
    weighted = (target.encodings - target.centre) * target.weight  # [N, d_v]
    cross = centred.square() @ target.weight - 2 * torch.einsum("ntd,nd->nt", centred, weighted)
    heat = torch.einsum("ntd,nd->nt", keys[rows].float(), target.query_vectors)
    return _attention(target, heat, cross, rows)


def _cross(target: TargetEncoding, centred: Tensor) -> Tensor:
    """|e_n - v|^2 less what belongs to the target alone, [f, N]; values [f, d_v] are less the centre."""
    weighted = (target.encodings - target.centre) * target.weight  # [N, d_v]
    return centred @ (-2 * weighted).T + (centred.square() @ target.weight)[:, None]


def _attention(target: TargetEncoding, heat: Tensor, cross: Tensor, segments: Tensor) -> Tensor:
    """Over T, of heat and cross [k, T] or [k, T, N]; segments: [k, T], where a number that repeats the one before is padding."""
    if target.slack:
        heat = torch.minimum(heat, heat.amax(dim=1, keepdim=True) - target.slack)
    if target.agreement:
        heat += target.agreement * cross
    repeated = segments[:, 1:] == segments[:, :-1]  # [k, T - 1]
    if repeated.any():
        heat[:, 1:].masked_fill_(repeated.reshape(*repeated.shape, *[1] * (heat.ndim - 2)), -math.inf)
    return heat.softmax(dim=1)


def _distances(weight: Tensor, values: Tensor, segments: Tensor) -> Tensor:
    gathered = values[segments]  # [k, T, d_v]
    products = (gathered * weight) @ gathered.mT  # [k, T, T]
    squares = products.diagonal(dim1=1, dim2=2)  # [k, T]
    return squares[:, :, None] + squares[:, None, :] - 2 * products


def _chunks(segment_frames: Tensor, frames: int, chunk: int | None) -> Iterator[tuple[int, slice | Tensor, Tensor]]:
    """Number of the first segment, the frame rows in use, and the segments [k, T] numbered within those rows."""
    chunk = chunk or (CPU_CHUNK if segment_frames.device.type == "cpu" else GPU_CHUNK)
    for start in range(0, len(segment_frames), chunk):
        segments = segment_frames[start : start + chunk]
        first, last = _check_rows(segments, frames)
        if last - first < segments.numel():
            yield start, slice(first, last + 1), segments - first
        else:  # scattered segments: computing the frames between them would cost more than finding the distinct ones
            rows, inverse = torch.unique(segments, return_inverse=True)
            yield start, rows, inverse


def _check_rows(segments: Tensor, frames: int) -> tuple[int, int]:
    """The least and the largest frame number of some segments. Raises ValueError for those outside of 0..frames - 1."""
    first, last = int(segments.min()), int(segments.max())
    if first < 0 or last >= frames:
        raise ValueError(f"segments name frames {first}..{last}, but there are only 0..{frames - 1}")
    return first, last


def _check_shapes(
    target: TargetEncoding, keys: Tensor, values: Tensor, segment_frames: Tensor, distances: Tensor | None, chunk: int | None
) -> None:
    widths = (target.query_vectors.shape[1], target.encodings.shape[1])
    if keys.ndim != 2 or values.ndim != 2 or len(keys) != len(values) or (keys.shape[1], values.shape[1]) != widths:
        raise ValueError(f"keys {list(keys.shape)} and values {list(values.shape)} must be [F, {widths[0]}] and [F, {widths[1]}]")
    if segment_frames.ndim != 2 or segment_frames.shape[1] < 1:
        raise ValueError(f"segment_frames must be [K, T] with T at least 1, not {list(segment_frames.shape)}")
    count, length = segment_frames.shape
    if distances is not None and distances.shape != (count, length, length):
        raise ValueError(f"distances must be {[count, length, length]}, not {list(distances.shape)}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"a chunk needs at least 1 segment, not {chunk}")
