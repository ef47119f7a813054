"""Figures of probabilities, counted by hand on tables of a few pairs."""

import numpy as np
import pytest

from pipeline.coattention.calibration_quality import ReliabilityBin
from pipeline.coattention.gallery_calibration import NOT_TOLD_APART, STRONG, WEAK
from pipeline.evaluation.probabilities import StrengthFigures, probability_figures, strength_figures

SCORES = np.array([[0.0, 0.9, 0.1], [0.8, 0.0, 0.3], [0.1, 0.2, 0.0]])
VALID = ~np.eye(3, dtype=bool)
SAME = np.array([[True, True, False], [True, True, False], [False, False, True]])


class Said:
    """A calibration that says the score itself, and that nobody is there by how far the best is from 1."""

    def expected_matches(self, eligible: int) -> float:
        return eligible / 2

    def probabilities(self, scores: np.ndarray, eligible: int, expected: float) -> np.ndarray:
        assert expected == eligible / 2
        return scores

    def none_probability(self, scores: np.ndarray, eligible: int) -> float:
        assert len(scores) == eligible
        return 1 - float(scores.max(initial=0))

    def strengths(self, scores: np.ndarray, eligible: int) -> list[str]:
        return [STRONG if s > 0.5 else WEAK if s > 0.25 else NOT_TOLD_APART for s in scores]


def test_probabilities_are_judged_by_the_definitions() -> None:
    figures = probability_figures(SCORES, VALID, SAME, Said())  # type: ignore[arg-type]
    assert (figures.matches, figures.expected) == (2, pytest.approx(2.4))
    assert (figures.first, figures.first_right) == (pytest.approx((0.9 + 0.8 + 0.2) / 3), pytest.approx(2 / 3))
    # The matches of query 0 are left out, so that 0.1 is its best; query 1 keeps 0.8; query 2 has no match and no part in it.
    assert (figures.none_absent, figures.none_present) == (pytest.approx(0.9), pytest.approx(0.2))
    assert (figures.none, figures.absent) == (pytest.approx(0.55), 0.5)
    assert ReliabilityBin(pytest.approx(0.1), 0.0, pytest.approx(2 / 6), 2) in figures.reliability
    assert figures.ece == pytest.approx((0.1 + 0.1 + 0.3 + 0.2 + 0.2 + 0.1) / 6)


def test_words_are_counted_over_pairs_and_first_leads() -> None:
    figures = strength_figures(SCORES, VALID, SAME, Said())  # type: ignore[arg-type]
    assert figures == (
        StrengthFigures(STRONG, 2, 2, 2, 2),
        StrengthFigures(WEAK, 1, 0, 0, 0),
        StrengthFigures(NOT_TOLD_APART, 3, 0, 1, 0),
    )


def test_without_matches_there_is_no_absent_target() -> None:
    figures = probability_figures(SCORES[2:], VALID[2:], SAME[2:] & False, Said())  # type: ignore[arg-type]
    assert (figures.matches, figures.absent, figures.none) == (0, 0.0, 0.0)
