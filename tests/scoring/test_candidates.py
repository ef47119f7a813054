"""What stands as evidence of a video: the pairs of segments that count most in its score."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.coattention.cohort import CohortStatistics
from pipeline.scoring.candidates import Candidates, TargetSegments
from pipeline.scoring.frame_rows import FrameRows
from pipeline.scoring.scores import TargetEncoding
from pipeline.scoring.video_scores import SHARPNESS
from pipeline.scoring.whole import WholeVideos
from pipeline.settings import ScoreSettings


def test_candidates_are_looked_for_by_the_whole_and_by_each_segment_at_the_price_of_what_hides_it() -> None:
    rng = np.random.default_rng(0)
    segments, whole = rng.normal(size=(3, 5)).astype(np.float32), rng.normal(size=(1, 5)).astype(np.float16)
    empty, frames = torch.empty(0), np.zeros((3, 8), np.int32)
    encoding = TargetEncoding(empty, torch.from_numpy(segments), *[empty] * 4)
    ones = np.ones(1, np.float32)
    target = TargetSegments(encoding, frames, frames.astype(np.float32), np.array([1, 0.5, 1e-38], np.float32))
    assert target.for_prefilter is encoding  # of an earlier format
    sought = replace(target, whole=WholeVideos(whole, ones, ones)).for_prefilter
    assert np.array_equal(sought.encodings.numpy(), np.concatenate([whole.astype(np.float32), segments]))
    assert sought.prices is not None and sought.prices.tolist() == pytest.approx([0, 0, np.log(2), 38 * np.log(10)], abs=1e-5)


def test_evidence_begins_with_the_pairs_that_make_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.array([[4.0, 1.0, 0.5], [2.0, 5.5, 3.9]], np.float32)
    of_target, of_video = np.array([1, 0.2], np.float32), np.array([1, 1, 0.5], np.float32)
    monkeypatch.setattr(Candidates, "pair_logits", lambda *_: torch.from_numpy(logits))
    empty, frames = torch.empty(0), np.zeros((2, 8), np.int32)
    target = TargetSegments(TargetEncoding(*[empty] * 6), frames, frames.astype(np.float32), of_target)
    lies, no_cohort = map(np.array, ([0], [16], [3])), CohortStatistics(torch.zeros(3), torch.ones(3))
    video = Candidates(FrameRows(empty, empty, empty), *lies, no_cohort, of_video, 8, 4)
    shares = of_target[:, None] ** 2 * of_video * np.exp(SHARPNESS * logits)  # of the sum in the score
    (found,) = video.best_pairs(target, ScoreSettings(), 3)
    assert [pair[:2] for pair in found] == [(0, 0), (1, 1)]
    assert shares.argmax() == 0 and shares[1].argmax() == 1 and logits.argmax() == 4
    assert [pair[2] for pair in found] == pytest.approx([1 / (1 + np.exp(-4.0)), 1 / (1 + np.exp(-5.5))])
