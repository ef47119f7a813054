"""What the best leads, by default the best one, say of the others: a video that looks like them gains.

Somebody is on several videos of a gallery more often than not, and a video from behind may resemble another lead where it does
not resemble the target. So a video is the target's person by itself, or by way of a lead: if the lead shows the target's person,
and the video the lead's. Of logits s, with r how alike two whole videos are,

    s'(v) = or( s(v), and( r(target, lead), r(lead, v) ) - max( s(lead) - r(target, lead), 0 ) )

where "or" is log(e^a + e^b) and "and" -log(e^-a + e^-b); several leads are several ways. (Query expansion, after Chum et al.,
"Total recall", ICCV 2007, with all videos as they stand instead of a second search.) A video that is like a lead stands no higher
by that than the lead's own tie to the target, so a lead that is not sure of itself changes little.

A lead speaks as a whole video. Where a track jumped from one person to another, its score is that of the segments that show the
target's, and the whole says less; by as much as that is, so does the way through it.

What only a lead resembles is hardly in a shortlist, which is of what resembles the target. So the prefilter is asked once more,
for what is near to the best leads (`near_leads`), and that is scored beside it.
"""

import math
from dataclasses import replace

import numpy as np
import torch

from pipeline.coattention.logits import sigmoid
from pipeline.index.versions import Index
from pipeline.scoring.scores import TargetEncoding
from pipeline.scoring.whole import WholeVideos, resemblance
from pipeline.search.partitions import Partitions
from pipeline.settings import ScoreSettings

LEAST_SCORE = 1e-13  # scores are cut there and at 1 less it, so that each has a logit
NEAR = 0.2  # of the number of videos that were scored, so many are scored besides that are near to the best leads


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
    logits = _logits(scores)
    best = _best(index, target, videos, logits, settings, silent)
    if target is None or not len(best):
        return scores
    whole = partitions.whole(videos[best])
    alike = partitions.resemblance(whole, videos).astype(np.float64)  # [count, m]
    count, heard = np.arange(len(best)), videos != silent
    alike[count, best] = -np.inf
    alike[count, best] = alike[:, heard].max(axis=1)  # itself: as alike as the likest other
    to_lead = resemblance(target, whole, *index.heads.score_row())[0].astype(np.float64)
    ways = -np.logaddexp(-to_lead[:, None], -alike) - np.maximum(logits[best] - to_lead, 0)[:, None]
    return sigmoid(np.logaddexp.reduce([logits, *ways]))


def near_leads(
    index: Index,
    partitions: Partitions,
    encoding: TargetEncoding,
    target: WholeVideos | None,
    videos: np.ndarray,
    scores: np.ndarray,
    settings: ScoreSettings,
    allowed: np.ndarray,
    silent: int = -1,
) -> np.ndarray:
    """Videos int64 that were not scored, and of those that are allowed, bool [V], are nearest to the best leads by the prefilter.

    encoding, target: of the target; the rest as for `with_neighbours`. A share NEAR of as many as were scored; none where leads
    have no say, or all that is allowed was scored.
    """
    left = allowed.copy()
    left[videos] = False
    best = _best(index, target, videos, _logits(scores), settings, silent)
    count = min(math.ceil(NEAR * len(videos)), int(np.count_nonzero(left)))
    if not len(best) or not count:
        return np.empty(0, np.int64)
    leads = torch.from_numpy(partitions.whole(videos[best]).encodings)
    found, logits = partitions.shortlist(replace(encoding, encodings=leads, prices=None), count, left)
    return found[np.lexsort((found, -logits))[:count]]


def _logits(scores: np.ndarray) -> np.ndarray:
    inside = np.clip(scores, LEAST_SCORE, 1 - LEAST_SCORE)
    return np.log(inside) - np.log1p(-inside)


def _best(
    index: Index, target: WholeVideos | None, videos: np.ndarray, logits: np.ndarray, settings: ScoreSettings, silent: int
) -> np.ndarray:
    """Places of the videos that have a say, best first; empty where none has one."""
    heard = np.flatnonzero(videos != silent)
    count = min(settings.neighbours, len(heard) - 1)
    normalised = settings.normalise == "cohort" and index.cohort.usable and index.has_whole_videos
    if count < 1 or not settings.all_pairs or not normalised or target is None:
        return np.empty(0, np.int64)
    return heard[np.lexsort((videos[heard], -logits[heard]))[:count]]
