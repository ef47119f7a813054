"""What stands as evidence of a video: the pairs of segments that count most in its score."""

import numpy as np
import pytest
import torch

from pipeline.coattention.cohort import CohortStatistics
from pipeline.scoring.candidates import Candidates, TargetSegments
from pipeline.scoring.frame_rows import FrameRows
from pipeline.scoring.scores import TargetEncoding
from pipeline.scoring.video_scores import SHARPNESS
from pipeline.settings import ScoreSettings


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
