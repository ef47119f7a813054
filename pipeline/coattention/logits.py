"""Scores on the scale of the logit, and back."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import PipelineError

Floats = NDArray[np.float64]
SATURATION = 2.0**-24  # a float32 sigmoid is 1 from here on; the logit of a score is cut there


def linear_scores(scores: ArrayLike, bounded: bool) -> Floats:
    """Scores [...] on the scale of the logit. Raises PipelineError for what is not finite, or not in 0..1 where it should be."""
    values = np.asarray(scores, np.float64)
    if not np.isfinite(values).all():
        raise PipelineError("video scores hold NaN or infinity and cannot be calibrated")
    if not bounded:
        return values
    if ((values < -1e-6) | (values > 1 + 1e-6)).any():
        raise PipelineError(f"video scores must lie in 0..1 here, not {values.min():.4g}..{values.max():.4g}")
    inside = np.clip(values, SATURATION, 1 - SATURATION)
    return np.log(inside) - np.log1p(-inside)


def sigmoid(values: Floats) -> Floats:
    return np.exp(np.minimum(values, 0)) / (1 + np.exp(-np.abs(values)))  # exact at both ends


def softplus(values: Floats) -> Floats:
    """log(1 + exp(values)), several times as fast as np.logaddexp."""
    return np.maximum(values, 0) + np.log1p(np.exp(-np.abs(values)))
