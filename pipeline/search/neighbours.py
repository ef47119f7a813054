"""What the best leads, by default the best one, say of the others: a video that looks like them gains.

Somebody is on several videos of a gallery more often than not, and a video from behind may resemble another lead where it does
not resemble the target. The best leads, each by how far it is ahead, add their resemblance to every video's score (query
expansion, after Chum et al., "Total recall", ICCV 2007; by score and with all videos as they stand instead of a second search).

A lead speaks as a whole video, so its say is the part of its score that comes from the whole video and not from its segments, of
which the score is a soft maximum: where a track jumped from one person to another, the rest of it speaks of somebody else.
"""

import numpy as np

from pipeline.coattention.calibration import sigmoid
from pipeline.index.versions import Index
from pipeline.scoring.whole import WholeVideos, resemblance
from pipeline.search.partitions import Partitions
from pipeline.settings import ScoreSettings

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
    of_wholes = resemblance(target, whole, *index.heads.score_row())[0].astype(np.float64)
    says = ahead / ahead.sum() * np.exp(np.minimum(of_wholes - logits[best], 0))
    added = sum(say * row for say, row in zip(says, alike, strict=True))
    return sigmoid(logits + added)
