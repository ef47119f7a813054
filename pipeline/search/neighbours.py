"""What the best leads, by default the best one, say of the others: a video that looks like them gains.

Somebody is on several videos of a gallery more often than not, and a video from behind may resemble another lead where it does
not resemble the target. The best leads, each by how far it is ahead, add their resemblance to every video's score (query
expansion, after Chum et al., "Total recall", ICCV 2007; by score and with all videos as they stand instead of a second search).

A lead speaks as a whole video, so it has its say as far as the whole video bears out what its best segments say: where a track
jumped from one person to another, the rest of it speaks of somebody else.
"""

import numpy as np

from pipeline.coattention.calibration import sigmoid
from pipeline.index.versions import Index
from pipeline.scoring.candidates import WHOLE_WEIGHT
from pipeline.scoring.whole import WholeVideos, resemblance
from pipeline.search.partitions import Partitions
from pipeline.settings import ScoreSettings

WEIGHT = 0.5  # of their resemblance, on the scale of the logit
STEEPNESS, LEEWAY = 3.0, 1.0  # a whole video that says less than its segments by the leeway, a logit, has half of its say
LEAST_SCORE = 1e-13  # scores are cut there and at 1 less it, so that each has a logit


def with_neighbours(
    index: Index,
    partitions: Partitions,
    target: WholeVideos | None,
    videos: np.ndarray,
    scores: np.ndarray,
    settings: ScoreSettings,
    silent: int = -1,
) -> np.ndarray:
    """Scores float64 [m] of one target's videos, int64 [m], with what the best `settings.neighbours` of them add.

    target: as one video, `TargetSegments.whole`. silent: a video that has no say, a copy of the target; -1 for none. The same
    scores where there are no others, where pairs are not all counted, or where nothing can be normalised.
    """
    heard = np.flatnonzero(videos != silent)
    count = min(settings.neighbours, len(heard) - 1)
    normalised = settings.normalise == "cohort" and index.cohort.usable and index.has_whole_videos
    if count < 1 or not settings.all_pairs or not normalised or target is None:
        return scores
    inside = np.clip(scores, LEAST_SCORE, 1 - LEAST_SCORE)
    logits = np.log(inside) - np.log1p(-inside)
    best = heard[np.lexsort((videos[heard], -logits[heard]))[:count]]
    whole = partitions.whole(videos[best])
    alike = partitions.resemblance(whole, videos).astype(np.float64)  # [count, m]
    alike[np.arange(count), best] = -np.inf
    alike[np.arange(count), best] = alike[:, heard].max(axis=1)  # itself: as alike as the likest other
    ahead = np.exp(logits[best] - logits[best[0]])
    as_a_whole = resemblance(target, whole, *index.heads.score_row())[0].astype(np.float64)
    by_segments = logits[best] - WHOLE_WEIGHT * as_a_whole
    says = ahead / ahead.sum() * sigmoid(STEEPNESS * (as_a_whole - by_segments + LEEWAY))
    added = sum(say * row for say, row in zip(says, alike, strict=True))
    return sigmoid(logits + WEIGHT * added)
