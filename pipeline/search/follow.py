"""One person across a gallery: search, join the confident leads, search with these too, until nothing new joins.

Every video that is in is a target of its own. A candidate's score is the mean, on the logit's scale, of its scores under all of
them (itself left out), over the union of their shortlists, so that each further view of the person counts. What a person
confirmed is in from the start, what a person rejected never joins, nor what scores no better than that.

A lead joins by itself if hardly a stranger can be expected to score as well (`expected_strangers`, which takes its scale from
this gallery's scores), and if it is mutual: searched for itself, it finds those that are in before all strangers but one. Mixing
two people is worse than leaving one in two.

Two cameras that show somebody at the same time do not show the same person: what would join and overlaps in time with something
better, elsewhere, is left out, and both are named for a person to decide. Cameras that see one place do show one person twice;
then the second is confirmed by hand.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import expit, logit

from pipeline.errors import UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.places import CameraPlace, read_places, with_right_time
from pipeline.gallery.video_ref import VideoRef, at_once
from pipeline.index.versions import Index
from pipeline.search.leads import leads
from pipeline.search.partitions import Partitions
from pipeline.search.results import Appearance, Followed, SearchResult
from pipeline.search.scored import Scored, score_shortlists
from pipeline.search.search import counted
from pipeline.search.shortlist import Question, Shortlist, questions, shortlist
from pipeline.search.targets import Target, gallery_target
from pipeline.settings import FollowSettings, ScoreSettings, SearchSettings
from pipeline.storage.uris import is_utf8

TESTED = 10  # best candidates of a round that may join
STRANGERS_AHEAD = 1  # that a candidate may find before those that are in
NO_DIFFERENCE = 0.25  # of the scale of the strangers' tail: who is ahead by less is not ahead
LEAST_CANDIDATES = 40  # fewer do not tell how strangers score
LOWER, UPPER = 0.75, 0.95  # quantiles that the tail of the strangers' scores is fitted to
SATURATION = 2.0**-24  # a float32 sigmoid is 1 from here on
LATEST = datetime.max.replace(tzinfo=UTC)


def follow(
    gallery: Gallery,
    index: Index,
    partitions: Partitions,
    target: Target,
    settings: SearchSettings,
    following: FollowSettings,
    further: Sequence[Target] = (),
) -> SearchResult:
    """The leads for a target, refined by those that are in, which are among them; `SearchResult.followed` says which. What was
    rejected is not, and its rank stays free.

    further: other targets that show the same person, in from the start. They are no leads either; filters, evidence and the
    times of the target are those of the first. Deterministic. Raises UsageError where the gallery lacks a video that is confirmed
    or rejected, where that is a target itself, and as `search` does.
    """
    began = time.monotonic()
    with counted(1):
        videos = gallery.snapshot().videos
        _check_named(gallery, (*following.confirmed, *following.rejected), (target, *further), videos)
        confirmed = [gallery_target(gallery, video_id, videos) for video_id in dict.fromkeys(following.confirmed)]
        scores = _Scores(gallery, index, partitions, settings, target, further)
        person = _Person(scores, following, videos, read_places(gallery))
        person.take_in(further, "target")
        person.take_in(confirmed, "confirmed")
        rounds = 0
        while rounds < following.rounds and following.join_by != "nobody" and person.join(rounds + 1):
            rounds += 1
        result = person.scores.leads(person.ids, settings.top, following.rejected, evidence=True)
        rule = person.rule or "nothing joined by itself"
        appearances = sorted(person.appearances, key=lambda one: (*(person.seen(one) or (LATEST, LATEST)), one.video.video_id))
        followed = Followed(tuple(appearances), tuple(person.apart), rounds, rule)
    others = tuple(one.video for one in further)
    return replace(result, followed=followed, further=others, seconds=time.monotonic() - began)


def expected_strangers(score: float, strangers: Sequence[np.ndarray]) -> float:
    """How many strangers are expected to score at least so, by the distribution of the others' scores.

    score: on the logit's scale. strangers: float64 [n] each, scores of the candidates under those that are in and under the lead
    itself. Their tails are taken to be exponential from the LOWER quantile on, fitted by that and the UPPER one, in the mean over
    the distributions: n (1 - LOWER) exp(-(score - lower) / scale). Matches among the candidates make the tail heavier and so the
    number larger. Infinity where there are fewer than LEAST_CANDIDATES or all score alike.

    >>> logits = np.random.default_rng(0).exponential(size=1000)
    >>> bool(0.5 < expected_strangers(np.log(1000), [logits]) < 2)
    True
    """
    count = min(map(len, strangers))
    if count < LEAST_CANDIDATES:
        return math.inf
    lower, scale = _tail(strangers)
    return math.inf if scale <= 0 else count * (1 - LOWER) * math.exp(-(score - lower) / scale)


def _tail(strangers: Sequence[np.ndarray]) -> tuple[float, float]:
    """The LOWER quantile of scores, and the scale of an exponential tail from there on; means over the distributions."""
    lower, upper = np.mean([np.quantile(scores, (LOWER, UPPER)) for scores in strangers], axis=0)
    return float(lower), float(upper - lower) / math.log((1 - LOWER) / (1 - UPPER))


def _check_named(gallery: Gallery, names: Sequence[str], targets: Sequence[Target], videos: pa.Table) -> None:
    """Raises UsageError for a video that a person has looked at and the gallery does not have, and for a target."""
    for target in targets:
        if target.video.video_id in names:
            raise UsageError(f"{target.video.video_id} is {'the' if len(targets) == 1 else 'a'} target; confirm and reject leads")
    if unknown := [name for name in names if not is_utf8(name)] or _without(names, videos):
        raise UsageError(f"{gallery.location.uri} has no video {unknown[0]!r}")


def _without(names: Sequence[str], videos: pa.Table) -> list[str]:
    """Ids that a gallery's videos do not have."""
    there = pc.is_in(pa.array(names, pa.string()), videos["video_id"].combine_chunks()).to_pylist()
    return [name for name, is_there in zip(names, there, strict=True) if not is_there]


class _Scores:
    """Scores of several targets against the union of their shortlists.

    targets: video id -> its row. videos: int64 [m] ascending, of the index; logits: float64 [n, m], on the scale on which scores
    are averaged, NaN where a target is the candidate itself.
    """

    def __init__(
        self,
        gallery: Gallery,
        index: Index,
        partitions: Partitions,
        settings: SearchSettings,
        target: Target,
        further: Sequence[Target],
    ) -> None:
        # The best leads are targets here, once they are in, so they say nothing of the others before that.
        settings = replace(settings, score=replace(settings.score, neighbours=0))
        self.gallery, self.index, self.partitions, self.settings = gallery, index, partitions, settings
        # Filters are the target's: what may be found does not depend on who else is asked for.
        self.unfiltered = replace(settings, cameras=(), other_cameras=False, after=None, before=None, between=None)
        self.rows: dict[str, int] = {}
        self.questions: list[Question] = []
        self.videos, self.logits = np.empty(0, np.int64), np.empty((0, 0))
        (question,) = questions(gallery, index, [target], settings)
        for one in further:
            question.allowed[index.rows_of(one.video)] = False  # a target is no lead
        (self.first,) = self._ask([replace(question, eligible=int(np.count_nonzero(question.allowed)))])

    def ask(self, targets: Sequence[Target]) -> None:
        """Further targets: they score the union, and their shortlists come into it."""
        if targets:
            allowed = self.questions[0].allowed
            asked = questions(self.gallery, self.index, targets, self.unfiltered)
            both = [one.allowed & allowed for one in asked]
            self._ask([replace(one, allowed=b, eligible=int(b.sum())) for one, b in zip(asked, both, strict=True)])

    def _ask(self, asked: Sequence[Question]) -> list[Shortlist]:
        shortlists = [shortlist(self.index, self.partitions, question, self.settings) for question in asked]
        scored = score_shortlists(self.index, self.partitions, shortlists, self.settings)
        found = [(one.shortlist.videos[: len(one.scores)], one.scores) for one in scored]
        self.questions += asked
        self.rows |= {question.target.video.video_id: len(self.rows) + i for i, question in enumerate(asked)}
        own = np.array([self.index.position(video_id) for video_id in self.rows], np.int64)
        own = own[own >= 0]
        own = own[self.questions[0].allowed[own]]  # so that those that are in have a score, too
        before, old = self.videos, self.logits
        self.videos = np.unique(np.concatenate([before, own, *(videos for videos, _ in found)]))
        self.logits = np.full((len(self.questions), len(self.videos)), np.nan)
        self.logits[: len(old), np.searchsorted(self.videos, before)] = old
        for row, (videos, scores) in zip(self.logits[len(old) :], found, strict=True):
            row[np.searchsorted(self.videos, videos)] = self._logits(scores)
        left = [
            self.videos[np.isnan(row) & question.allowed[self.videos]]
            for row, question in zip(self.logits, self.questions, strict=True)
        ]
        segments = [question.segments for question in self.questions]
        for row, videos, scores in zip(self.logits, left, self.partitions.score_many(segments, left, self.score), strict=True):
            row[np.searchsorted(self.videos, videos)] = self._logits(scores)
        return shortlists

    @property
    def score(self) -> ScoreSettings:
        return self.questions[0].score

    def _logits(self, scores: np.ndarray) -> np.ndarray:
        """Scores on the scale on which they are averaged: their logits; sums as they are."""
        return logit(np.clip(scores, SATURATION, 1 - SATURATION)) if self.score.aggregate == "mean" else scores

    def mean(self, targets: Sequence[str]) -> np.ndarray:
        """Of the logits under these targets, the candidate itself left out: float64 [m]."""
        return np.nanmean(self.logits[[self.rows[video_id] for video_id in targets]], axis=0)

    def own(self, video_id: str) -> np.ndarray:
        """The logits under one target that was asked: float64 [m]."""
        return self.logits[self.rows[video_id]]

    def place(self, video_id: str) -> int:
        """Where a video is among `videos`, -1 for one that is not."""
        row = self.index.position(video_id)
        place = int(np.searchsorted(self.videos, row))
        return place if row >= 0 and place < len(self.videos) and self.videos[place] == row else -1

    def places(self, video_ids: Sequence[str]) -> np.ndarray:
        """`place` of those that are there: int64."""
        found = np.array([self.place(video_id) for video_id in video_ids], np.int64)
        return found[found >= 0]

    def leads(self, targets: Sequence[str], top: int, without: Collection[str], *, evidence: bool) -> SearchResult:
        """The best by the mean over the targets: all of these, and so many others, without some."""
        mean, among = self.mean(targets), self.places(targets)
        scores = expit(mean) if self.score.aggregate == "mean" else mean
        if self.score.threshold:
            scores[np.isclose(mean, self._logits(np.zeros(1)))] = 0.0  # no pair reaches it under any target
        named = np.full(len(self.index.videos), -np.inf, np.float32)
        named[self.first.videos] = self.first.logits
        united = Scored(Shortlist(self.questions[0], self.videos, named[self.videos]), scores, scores)
        last = int(np.count_nonzero(mean >= mean[among].min(initial=math.inf)))  # of the targets
        settings = replace(self.settings, top=max(top + len(among) + len(without), last), evidence=False)
        found = leads(self.gallery, self.index, self.partitions, united, settings)
        others = {lead.rank for lead in [lead for lead in found.leads if lead.video.video_id not in {*targets, *without}][:top]}
        kept = [lead for lead in found.leads if lead.rank in others or lead.video.video_id in targets]
        if evidence and self.settings.evidence:
            videos = np.array([self.index.position(lead.video.video_id) for lead in kept], np.int64)
            pairs = self.partitions.evidence(self.questions[0].segments, videos, self.settings.pairs, self.score)
            kept = [replace(lead, best_pairs=tuple(of_lead)) for lead, of_lead in zip(kept, pairs, strict=True)]
        found = replace(found, leads=tuple(kept), settings=self.settings)
        return found if len(targets) == 1 else _without_worth(found)


def _without_worth(found: SearchResult) -> SearchResult:
    """A result whose scores are of several targets, which nobody measured the worth of."""
    bare = tuple(replace(lead, probability=None, strength=None) for lead in found.leads)
    words = "scores are means over several videos of the person, and what these are worth was not measured"
    return replace(found, leads=bare, none_probability=None, expected_matches=None, calibration=words)


@dataclass
class _Person:
    """What is in so far: appearances, and pairs of videos that show somebody in two cameras at once, by clocks that are right."""

    scores: _Scores
    following: FollowSettings
    videos: pa.Table
    places: Mapping[str, CameraPlace]

    def __post_init__(self) -> None:
        self.appearances = [Appearance(self.scores.questions[0].target.video, "target")]
        self.apart: list[tuple[VideoRef, VideoRef]] = []
        self.rule = ""

    @property
    def ids(self) -> list[str]:
        return [one.video.video_id for one in self.appearances]

    def seen(self, appearance: Appearance) -> tuple[datetime, datetime] | None:
        """When somebody is first and last seen in an appearance."""
        return with_right_time(appearance.video, self.places).seen

    def _at_once(self, one: VideoRef, other: VideoRef) -> bool:
        return at_once(with_right_time(one, self.places), with_right_time(other, self.places))

    def take_in(self, targets: Sequence[Target], why: str) -> None:
        """Those that a person says show whom they follow are in, also where they are in two places at once; that is said."""
        self.scores.ask(targets)
        for target in targets:
            self.apart += [(one.video, target.video) for one in self.appearances if self._at_once(one.video, target.video)]
            self.appearances.append(Appearance(target.video, why))

    def join(self, number: int) -> bool:
        """Let the confident leads in that are not yet, best first; whether there were any."""
        barred = {*self.following.rejected, *(other.video_id for _, other in self.apart)}
        result = self.scores.leads(self.ids, TESTED, barred, evidence=False)
        self.rule = f"at most {self.following.most_strangers:g} strangers expected to score as well, and mutual"
        tested = [lead for lead in result.leads if lead.video.video_id not in self.ids]
        gone = _without([lead.video.video_id for lead in tested], self.videos)  # since the index was made
        tested = [lead for lead in tested if lead.video.video_id not in gone]
        new = [lead.video.video_id for lead in tested if lead.video.video_id not in self.scores.rows]
        self.scores.ask([gallery_target(self.scores.gallery, video_id, self.videos) for video_id in new])
        mean = self.scores.mean(self.ids)
        floor = max(mean[self.scores.places(self.following.rejected)], default=-math.inf)
        joined: list[Appearance] = []
        for lead in tested:
            own, strangers = self.scores.own(lead.video.video_id), self._strangers(lead.video.video_id)
            score = float(mean[self.scores.place(lead.video.video_id)])
            expected = expected_strangers(score, [mean[strangers], own[strangers]])
            if score <= floor or expected > self.following.most_strangers or not self._mutual(lead.video.video_id):
                continue
            if apart := [(one.video, lead.video) for one in self.appearances + joined if self._at_once(one.video, lead.video)]:
                self.apart += apart
                continue
            joined.append(Appearance(lead.video, "joined", number, lead.score, expected))
        self.appearances += joined
        return bool(joined)

    def _strangers(self, video_id: str) -> np.ndarray:
        """The candidates that are neither in nor this one: bool [m]."""
        others = np.ones(len(self.scores.videos), np.bool_)
        others[self.scores.places([*self.ids, video_id])] = False
        return others & np.isfinite(self.scores.own(video_id))

    def _mutual(self, video_id: str) -> bool:
        """Whether a lead finds at least half of those that are in before all strangers but STRANGERS_AHEAD, or no worse.

        Their scores are those that it has under them: they need not be in the index. Other videos of the person that are not in
        yet count as strangers; they are rarely ahead by more than NO_DIFFERENCE.
        """
        place, strangers = self.scores.place(video_id), self.scores.own(video_id)[self._strangers(video_id)]
        level = _tail([strangers])[1] * NO_DIFFERENCE if len(strangers) else 0.0
        ahead = [int(np.count_nonzero(strangers > self.scores.own(one)[place] + level)) for one in self.ids]
        return 2 * sum(number <= STRANGERS_AHEAD for number in ahead) >= len(ahead)
