"""Which videos are worth scoring in full: FAISS over mean segment values, in the metric of the score itself.

Under uniform attention a candidate segment's encoding is its mean value m, its score sigmoid(c + sum_d w_d (e_d - m_d)^2). With
w <= 0 and x = sqrt(-w) * vector that is sigmoid(c - ||x(e) - x(m)||^2): the nearest neighbours in plain L2 are the segments of
the highest score. With w of both signs it is an inner product, <(-2 w * e, 1), (m, sum_d w_d m_d^2)>, plus what the target adds.
Cohort normalisation is left to the full scores.
"""

from dataclasses import dataclass

import faiss
import numpy as np

from pipeline.scoring import TargetEncoding


@dataclass(frozen=True)
class PrefilterMetric:
    """The space that segments and targets are compared in. weight: float32 [d_v]; bias: c."""

    weight: np.ndarray
    bias: float

    @classmethod
    def of_target(cls, target: TargetEncoding) -> "PrefilterMetric":
        return cls(target.weight.cpu().numpy(), float(target.bias.detach()))

    @property
    def is_distance(self) -> bool:
        """Whether plain L2 serves (no weight above 0); otherwise inner product."""
        return bool((self.weight <= 0).all())

    def empty_index(self) -> faiss.Index:
        """An exact FAISS index of this metric."""
        return faiss.IndexFlatL2(len(self.weight)) if self.is_distance else faiss.IndexFlatIP(len(self.weight) + 1)

    def stored(self, means: np.ndarray) -> np.ndarray:
        """What the index holds of mean segment values [S, d_v]: float32 [S, d_v], or [S, d_v + 1] for inner products."""
        means = np.asarray(means, np.float32)
        if self.is_distance:
            return means * np.sqrt(-self.weight)
        return np.column_stack([means, means**2 @ self.weight]).astype(np.float32)

    def queries(self, encodings: np.ndarray) -> np.ndarray:
        """What is asked for target encodings [N, d_v]: float32, as wide as `stored`."""
        if self.is_distance:
            return encodings * np.sqrt(-self.weight)
        return np.column_stack([-2 * self.weight * encodings, np.ones(len(encodings))]).astype(np.float32)

    def logits(self, found: np.ndarray, encodings: np.ndarray) -> np.ndarray:
        """FAISS's numbers [N, k] as logits under uniform attention [N, k]."""
        if self.is_distance:
            return self.bias - found
        return self.bias + (encodings**2 @ self.weight)[:, None] + found


def shortlist(
    index: faiss.Index, target: TargetEncoding, video_of_segment: np.ndarray, count: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` videos with the best segment: exactly those of the highest prefilter logit.

    video_of_segment: int [S], ascending from 0. allowed: bool [V], or None for all videos. Returns (videos int64 [m], logits
    float32 [m]), best first, equal ones by position; m = count unless fewer are allowed. Equal logits at the end of the list are
    all returned (m may exceed count), so that a merge of several partitions can order them by id.
    """
    segments_allowed = None if allowed is None else allowed[video_of_segment]
    total = len(video_of_segment) if segments_allowed is None else int(segments_allowed.sum())
    if total == 0 or count < 1:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    metric = PrefilterMetric.of_target(target)
    encodings = target.encodings.cpu().numpy()
    parameters = None
    if segments_allowed is not None:
        # FAISS keeps a pointer only: the bitmap must outlive the searches below.
        bitmap = np.packbits(segments_allowed, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(segments_allowed), faiss.swig_ptr(bitmap))
        parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
    queries = np.ascontiguousarray(metric.queries(encodings), np.float32)
    k = min(total, 4 * count)
    while True:
        found, segments = index.search(queries, k, params=parameters)
        logits = metric.logits(found, encodings)
        best = np.full(int(video_of_segment[-1]) + 1, -np.inf, np.float32)
        real = segments >= 0  # FAISS fills up with -1 where distances are not finite
        np.maximum.at(best, video_of_segment[segments[real]], logits[real])
        videos = np.flatnonzero(best > -np.inf)
        videos = videos[np.argsort(-best[videos], kind="stable")]
        unseen = logits[:, -1].max()  # no segment that was not returned has a higher logit
        if k == total or (len(videos) >= count and best[videos[count - 1]] > unseen):
            if len(videos) > count:
                videos = videos[best[videos] >= best[videos[count - 1]]]
            return videos, best[videos]
        k = min(total, 4 * k)
