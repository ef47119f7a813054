"""A search gives what the network of METHOD section 1 gives, pair by pair, over the whole gallery."""

import dataclasses
import functools
import resource
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.forgotten import Forgotten
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings, feature_matrix
from pipeline.gallery.video_ref import VideoRef
from pipeline.index.build import build_index
from pipeline.index.samples import sample_features
from pipeline.index.version_files import index_versions
from pipeline.index.versions import Index, open_index
from pipeline.search.local_partitions import FILES_A_PARTITION, LocalPartitions
from pipeline.search.partitions import opened_partitions
from pipeline.search.results import SearchResult
from pipeline.search.search import search
from pipeline.search.shortlist import segmented
from pipeline.search.targets import gallery_target
from pipeline.segments import segment_frames, segment_starts
from pipeline.settings import IndexSettings, ScoreSettings, SearchSettings
from pipeline.storage.seals import sealed, unsealed
from tests.conftest import add_videos, people_features, toy_spec

EVERYTHING = SearchSettings(top=100, shortlist=None)


@pytest.fixture
def toy_index(toy_gallery: Gallery) -> Index:
    return build_index(toy_gallery, IndexSettings(8, 4, partition_videos=9))


def leads(gallery: Gallery, index: Index, target: str = "v000", settings: SearchSettings = EVERYTHING) -> SearchResult:
    with opened_partitions(gallery, index, actors=0) as partitions:
        return search(gallery, index, partitions, gallery_target(gallery, target), settings)


def ids(result: SearchResult) -> list[str]:
    return [lead.video.video_id for lead in result.leads]


def cut(gallery: Gallery, row: dict) -> tuple[torch.Tensor, np.ndarray]:
    """A video's segments of 8 frames, 4 apart: their features [K, 8, D] and their frames [K, 8]."""
    features = feature_matrix(gallery.read_video(row)).astype(np.float32)
    frames = segment_frames(segment_starts(len(features), 8, 4), 8, len(features))
    return torch.from_numpy(features[frames]), frames


def lengths(frames: np.ndarray) -> torch.Tensor:
    """How many frames of each segment are distinct."""
    return torch.tensor([len(np.unique(numbers)) for numbers in frames])


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def softmax(heat: np.ndarray) -> np.ndarray:
    return np.exp(heat - heat.max()) / np.exp(heat - heat.max()).sum()


class Textbook:
    """An index's scores from the stored features by the formulae, a pair of segments at a time, each frame once."""

    def __init__(self, gallery: Gallery, index: Index) -> None:
        self.index, self.gallery = index, gallery
        row, self.bias = index.heads.score_row()
        self.row, self.beta = row.astype(np.float64), max(float(index.head.agreement.detach()), 0.0)
        self.slack = index.heads.of(None).config.slack
        self.rows = {row["video_id"]: row for row in gallery.snapshot().videos.to_pylist()}

    @functools.cache  # noqa: B019 # a textbook lives as long as its test
    def segments(self, video_id: str) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(query vector, keys [T, d_k], values [T, d_v]) of each segment, of its distinct frames."""
        features, frames = cut(self.gallery, self.rows[video_id])
        head = self.index.heads.of(self.rows[video_id]["camera_id"])
        queries, keys, values = array(head.query_vectors(features)), array(head.keys(features)), array(head.values(features))
        real = [len(np.unique(numbers)) for numbers in frames]
        return [(q, k[:n], v[:n]) for q, k, v, n in zip(queries, keys, values, real, strict=True)]

    def encoding(self, attention: np.ndarray, values: np.ndarray) -> np.ndarray:
        encoding = attention @ values
        return encoding / np.linalg.norm(encoding) if self.index.heads.unit_encodings else encoding

    def difference(self, one: np.ndarray, other: np.ndarray) -> float:
        return float(((one - other) ** 2) @ self.row)

    def against_the_cohort(self, encoding: np.ndarray, video_id: str) -> tuple[float, float]:
        """Mean and spread of a segment's logits against the nearest third of the cohort's segments of other videos."""
        others = self.index.cohort.video.numpy() != self.index.videos["video_id"].to_pylist().index(video_id)
        differences = encoding - self.index.cohort.means.double().numpy()[others]
        logits = np.sort(self.bias + differences**2 @ self.row)
        nearest = logits[-int(np.ceil(len(logits) / 3)) :]
        return float(np.mean(nearest)), float(np.std(nearest))

    def heat(self, query: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """What a query vector says of frames, as far as the warmest frame less the slack."""
        return np.minimum(keys @ query, (keys @ query).max() - self.slack)

    def logits(self, target: str, candidate: str, normalise: str) -> list[list[float]]:
        """Of each target segment against each candidate segment."""
        rows = []
        there = self.segments(candidate)
        for query, own_keys, own_values in self.segments(target):
            own = self.encoding(softmax(self.heat(query, own_keys)), own_values)
            a, b = self.against_the_cohort(own, target)
            rows.append([])
            for _, keys, values in there:
                heat = self.heat(query, keys) + self.beta * np.array([self.difference(own, value) for value in values])
                logit = self.bias + self.difference(own, self.encoding(softmax(heat), values))
                if normalise == "cohort":
                    c, d = self.against_the_cohort(self.encoding(np.full(len(values), 1 / len(values)), values), candidate)
                    logit = ((logit - a) / b + (logit - c) / d) / 2
                rows[-1].append(logit)
        return rows

    @functools.cache  # noqa: B019
    def visibility(self, video_id: str) -> tuple[np.ndarray, list[float], np.ndarray]:
        """Of each frame, of each segment, and the whole video's encoding by that of its frames."""
        features = torch.from_numpy(feature_matrix(self.gallery.read_video(self.rows[video_id])).astype(np.float32))
        head = self.index.heads.of(self.rows[video_id]["camera_id"])
        heat = array(head.keys(features)) @ self.index.query.astype(np.float64)
        frames = np.array([min(1.0, np.exp(h - (max(heat) - 1))) for h in heat])
        _, numbers = cut(self.gallery, self.rows[video_id])
        whole = self.encoding(frames / frames.sum(), array(head.values(features)))
        return frames, [np.mean(frames[np.unique(n)]) for n in numbers], whole

    def looked_for(self, video_id: str) -> list[np.ndarray]:
        """What the prefilter has of each segment: its visible frames, or its video's where it is hidden."""
        frames, shown, whole = self.visibility(video_id)
        features, numbers = cut(self.gallery, self.rows[video_id])
        values = array(self.index.heads.of(self.rows[video_id]["camera_id"]).values(features))
        weights = [np.concatenate([frames[np.unique(n)], np.zeros(len(n) - len(np.unique(n)))]) for n in numbers]
        means = [self.encoding(weight / weight.sum(), of_frames) for weight, of_frames in zip(weights, values, strict=True)]
        return [whole if visible < 0.3 else mean for visible, mean in zip(shown, means, strict=True)]

    def alike(self, one: str, other: str) -> float:
        """How two whole videos resemble each other, normalised, times 1.2."""
        mine, theirs = (self.visibility(video_id)[2] for video_id in (one, other))
        logit = self.bias + self.difference(mine, theirs)
        sides = map(self.against_the_cohort, (mine, theirs), (one, other))
        return 1.2 * sum((logit - mean) / spread / 2 for mean, spread in sides)

    def parts(self, video_id: str) -> list[np.ndarray]:
        """Encodings of two kinds of frames that have next to nothing in common; none where there are no such."""
        frames, _, _ = self.visibility(video_id)
        features = torch.from_numpy(feature_matrix(self.gallery.read_video(self.rows[video_id])).astype(np.float32))
        values = array(self.index.heads.of(self.rows[video_id]["camera_id"]).values(features))
        if len(frames) < 4 or not self.index.heads.unit_encodings:
            return []
        first = values[int(np.argmax(frames))]
        means = [first, values[int(np.argmin(values @ first))]]
        for _ in range(8):
            kinds = [
                [t for t in range(len(frames)) if (values[t] @ means[1] > values[t] @ means[0]) == second] for second in (0, 1)
            ]
            if not all(kinds):
                return []
            means = [self.encoding(frames[kind] / frames[kind].sum(), values[kind]) for kind in kinds]
        return means if means[0] @ means[1] < 0.2 else []

    def nearest(self, one: str, other: str) -> float:
        """How a whole video resembles another, or the likest part of it."""
        mine, found = self.visibility(one)[2], [self.alike(one, other)]
        for part in self.parts(other):
            logit = self.bias + self.difference(mine, part)
            sides = map(self.against_the_cohort, (mine, part), (one, other))
            found.append(1.2 * sum((logit - mean) / spread / 2 for mean, spread in sides) - 1.5)
        return max(found)


def textbook_logits(book: Textbook, target: str, normalise: str) -> dict[str, float]:
    """Every video's, the target's own left out."""
    found = {}
    for video_id in book.rows.keys() - {target}:
        total = weights = 0.0
        for of_target, row in zip(book.visibility(target)[1], book.logits(target, video_id, normalise), strict=True):
            for of_candidate, logit in zip(book.visibility(video_id)[1], row, strict=True):
                total += of_target**2 * of_candidate * np.exp(2 * logit)
                weights += of_target**2 * of_candidate
        found[video_id] = np.log(total / weights) / 2
        if normalise == "cohort":
            found[video_id] = np.log(np.exp(found[video_id]) + np.exp(book.nearest(target, video_id)))
    return found


def textbook_scores(gallery: Gallery, index: Index, target: str, normalise: str, neighbours: int) -> dict[str, float]:
    book = Textbook(gallery, index)
    logits = textbook_logits(book, target, normalise)
    best = sorted(logits, key=lambda v: -logits[v])[: neighbours if normalise == "cohort" else 0]
    odds = {video_id: np.exp(logit) for video_id, logit in logits.items()}
    for lead in best:
        tie = np.exp(book.alike(target, lead))
        alike = {other: np.exp(book.alike(lead, other)) for other in logits if other != lead}
        alike[lead] = max(alike.values())
        for other in logits:  # by way of the lead, as far as the lead's score is its whole video's
            odds[other] += min(tie / np.exp(logits[lead]), 1) / (1 / tie + 1 / alike[other])
    return {video_id: value / (1 + value) for video_id, value in odds.items()}


@pytest.mark.parametrize(
    ("cameras", "settings", "normalise", "neighbours"),
    [
        ("auto", EVERYTHING, "none", 3),
        ("auto", EVERYTHING, "cohort", 0),
        ("auto", EVERYTHING, "cohort", 3),
        ("auto", SearchSettings(top=100, shortlist=5, exact=True), "cohort", 1),
        ("ignore", EVERYTHING, "none", 3),
        ("ignore", EVERYTHING, "cohort", 1),
    ],
)
@pytest.mark.parametrize("target", ["v000", "v039"])
def test_scoring_everything_ranks_as_the_textbook_does(
    toy_gallery: Gallery,
    target: str,
    normalise: Literal["none", "cohort"],
    neighbours: int,
    cameras: str,
    settings: SearchSettings,
) -> None:
    toy_index = build_index(toy_gallery, IndexSettings(8, 4, partition_videos=9, cameras=cameras))
    everything = dataclasses.replace(settings, score=ScoreSettings(normalise=normalise, neighbours=neighbours))
    result = leads(toy_gallery, toy_index, target, everything)
    truth = textbook_scores(toy_gallery, toy_index, target, normalise, neighbours)
    found = {lead.video.video_id: lead.score for lead in result.leads}
    assert found.keys() == truth.keys()
    assert max(abs(found[v] - truth[v]) for v in truth) < 2e-3  # keys and values lie on disk in float16
    assert ids(result) == sorted(found, key=lambda v: (-found[v], v))
    assert [lead.rank for lead in result.leads] == list(range(1, 40))


def test_a_track_of_two_people_is_found_by_either(tmp_path: Path) -> None:
    """A quarter of it is enough; scores are the textbook's, and those of an index without parts are lower."""
    gallery = Gallery.open_or_create(tmp_path / "g", GallerySettings(toy_spec(), 10.0, None))
    videos = [(person, np.resize(features, (24, 24))) for person, features in people_features(24, 2, 24, seed=5)]
    jumped = {2 * number: 2 * number + 11 for number in range(18)}
    for number, other in jumped.items():
        videos[number][1][6:] = videos[other][1][6:]
    add_videos(gallery, videos)
    index = build_index(gallery, IndexSettings(8, 4, partition_videos=30))
    book = Textbook(gallery, index)
    parted = [number for number in jumped if book.parts(f"v{number:03d}")]
    assert len(parted) >= 5
    alone = ScoreSettings(neighbours=0)
    for number in parted[:3]:
        target = f"v{number + 1:03d}"  # who is on the first quarter of the track
        found = {
            lead.video.video_id: lead.score
            for lead in leads(gallery, index, target, dataclasses.replace(EVERYTHING, score=alone)).leads
        }
        truth = textbook_scores(gallery, index, target, "cohort", 0)
        assert max(abs(found[v] - truth[v]) for v in truth) < 2e-3
    with opened_partitions(gallery, index, actors=0) as partitions:
        row = np.array([index.position(f"v{parted[0]:03d}")])
        target = segmented(gallery_target(gallery, f"v{parted[0] + 1:03d}"), index)
        (one,) = partitions.score(target, row, alone)
        for partition in partitions.opened.values():  # type: ignore[attr-defined]
            partition.parts = partition.whole.as_parts()
        (without,) = partitions.score(target, row, alone)
        assert one > without


def test_the_same_person_comes_first_on_separable_features(toy_gallery: Gallery, toy_index: Index) -> None:
    people = {f"v{i:03d}": person for i, (person, _) in enumerate(people_features(10, 4, 24, seed=1))}
    for target in people:
        same = {v for v in people if people[v] == people[target] and v != target}
        assert set(ids(leads(toy_gallery, toy_index, target))[:3]) == same


def test_the_cut_into_partitions_does_not_change_the_leads(toy_gallery: Gallery, toy_index: Index) -> None:
    whole = build_index(toy_gallery, IndexSettings(8, 4, partition_videos=1000), toy_index.head)
    for settings in (EVERYTHING, SearchSettings(top=5, shortlist=6)):
        split, joined = (leads(toy_gallery, index, "v005", settings) for index in (toy_index, whole))
        assert ids(split) == ids(joined)
        assert [lead.prefilter_rank for lead in split.leads] == [lead.prefilter_rank for lead in joined.leads]
        assert np.allclose([lead.score for lead in split.leads], [lead.score for lead in joined.leads], atol=1e-6)


@pytest.mark.parametrize("name", ["v005", "v011", "v030"])
@pytest.mark.parametrize(("top", "patience"), [(1, 1), (2, 3), (3, 4), (5, 9), (30, 2), (4, 100)])
def test_a_shortlist_is_scored_until_the_last_videos_bring_no_lead(
    toy_gallery: Gallery, toy_index: Index, name: str, top: int, patience: int
) -> None:
    whole = SearchSettings(top=100, shortlist=30, patience=None, score=ScoreSettings(neighbours=0))
    every = {lead.prefilter_rank: lead for lead in leads(toy_gallery, toy_index, name, whole).leads}
    assert every.keys() == set(range(1, 31))
    scores = np.array([every[rank].score for rank in range(1, 31)])

    def brings_a_lead(done: int) -> bool:
        """Whether one of the last videos is among the leads of the first `done`."""
        before, last = scores[: done - patience], scores[done - patience : done]
        return len(before) < top or last.max() >= np.sort(before)[-top]

    steps = [*range(2 * patience, 30, patience), 30]
    expected = next((done for done in steps if done >= 30 or not brings_a_lead(done)), 30)
    asked = dataclasses.replace(whole, top=top, patience=patience)
    result = leads(toy_gallery, toy_index, name, asked)
    assert (result.scored, result.passed_over) == (expected, 30 - expected)
    first = sorted((every[rank] for rank in range(1, expected + 1)), key=lambda lead: (-lead.score, lead.video.video_id))
    assert [(lead.video.video_id, lead.prefilter_rank) for lead in result.leads] == [
        (lead.video.video_id, lead.prefilter_rank) for lead in first[:top]
    ]
    whole_index = build_index(toy_gallery, IndexSettings(8, 4, partition_videos=1000), toy_index.head)
    assert ids(leads(toy_gallery, whole_index, name, asked)) == ids(result)


@pytest.mark.parametrize("partition_videos", [9, 1000])
@pytest.mark.parametrize("name", ["v005", "v030"])
def test_what_is_near_to_the_best_lead_is_scored_besides(toy_gallery: Gallery, name: str, partition_videos: int) -> None:
    index = build_index(toy_gallery, IndexSettings(8, 4, partition_videos=partition_videos))
    asked = SearchSettings(top=100, shortlist=11, patience=None, score=ScoreSettings(neighbours=0))
    plain = leads(toy_gallery, index, name, asked)
    result = leads(toy_gallery, index, name, dataclasses.replace(asked, score=ScoreSettings(neighbours=1)))
    assert (plain.scored, result.scored, result.passed_over) == (11, 14, 0)  # three are a fifth of eleven
    best, book = ids(plain)[0], Textbook(toy_gallery, index)
    there = book.visibility(best)[2]
    nearest = {
        other: max(book.difference(there, segment) for segment in book.looked_for(other))
        for other in book.rows.keys() - {name, *ids(plain)}
    }
    assert set(ids(result)) == {*ids(plain), *sorted(nearest, key=lambda v: -nearest[v])[:3]}
    ranks = {lead.video.video_id: lead.prefilter_rank for lead in result.leads}
    assert {ranks[v] for v in ids(plain)} == set(range(1, 12)) and {ranks[v] for v in ids(result)} == set(range(1, 15))


def test_patience_ends_no_search_of_everything(toy_gallery: Gallery, toy_index: Index) -> None:
    for settings in (SearchSettings(top=1, shortlist=None, patience=1), SearchSettings(top=1, exact=True, patience=1)):
        result = leads(toy_gallery, toy_index, settings=settings)
        assert (result.scored, result.passed_over) == (39, 0)


def test_a_threshold_that_no_pair_of_a_video_reaches_makes_it_no_lead(toy_gallery: Gallery, toy_index: Index) -> None:
    everything = leads(toy_gallery, toy_index, settings=dataclasses.replace(EVERYTHING, score=ScoreSettings(0.1)))
    best_pairs = {lead.video.video_id: lead.best_pairs[0].score for lead in everything.leads}
    threshold = float(np.median(list(best_pairs.values())))
    asked = dataclasses.replace(EVERYTHING, score=ScoreSettings(threshold=threshold))
    expected = {video_id for video_id, score in best_pairs.items() if score >= threshold}
    assert set(ids(leads(toy_gallery, toy_index, settings=asked))) == expected and 0 < len(expected) < 39
    assert leads(toy_gallery, toy_index, settings=dataclasses.replace(asked, score=ScoreSettings(threshold=1.0))).leads == ()


def test_places_in_the_shortlist_of_equal_videos_are_by_id(toy_gallery: Gallery) -> None:
    """Ten copies of one video and ten others: the copies share a place in the prefilter's order, told apart by their ids.

    Under another camera they would be others, so cameras are not told apart.
    """
    (_, features), *others = people_features(11, 1, 24, seed=2)
    gallery = Gallery.open_or_create(
        str(Path(toy_gallery.location.path).with_name("copies")), GallerySettings(toy_spec(), 10.0, None)
    )
    add_videos(gallery, [("p", features)] * 10 + others)
    index = build_index(gallery, IndexSettings(8, 4, cameras="ignore"))
    found = leads(gallery, index, target="v003", settings=SearchSettings(top=100, shortlist=100))
    copies = {lead.video.video_id: lead.prefilter_rank for lead in found.leads if lead.video.video_id < "v010"}
    assert [copies[video_id] for video_id in sorted(copies)] == list(range(1, 10))
    assert sorted(lead.prefilter_rank for lead in found.leads) == list(range(1, 20))


def test_a_share_of_the_videos_is_not_rounded_up_by_what_floats_leave_over(toy_gallery: Gallery, toy_index: Index) -> None:
    """28 % of 25 are 7, and 7.000000000000001 in floats."""
    first = datetime(2026, 3, 1, 12, 26, tzinfo=UTC)
    asked = SearchSettings(top=100, shortlist=1, shortlist_share=0.28, before=first, score=ScoreSettings(neighbours=0))
    found = leads(toy_gallery, toy_index, settings=asked)
    assert (found.eligible, len(found.leads)) == (25, 7)


def test_a_target_by_its_file_is_the_video_of_the_gallery(toy_gallery: Gallery, toy_index: Index) -> None:
    """Although it is there under another id: not among the leads, and not measured against itself."""
    known = gallery_target(toy_gallery, "v000")
    by_file = dataclasses.replace(known, video=VideoRef("0f3a", known.video.uri))
    with opened_partitions(toy_gallery, toy_index, actors=0) as partitions:
        one, other = (search(toy_gallery, toy_index, partitions, target, EVERYTHING) for target in (known, by_file))
    assert ids(one) == ids(other) and [lead.score for lead in one.leads] == [lead.score for lead in other.leads]


def test_a_target_that_is_a_copy_of_a_videos_file_finds_it_and_is_not_measured_against_it(toy_gallery: Gallery) -> None:
    videos = toy_gallery.snapshot().videos
    hashes = pa.array([f"file:{number:064x}" for number in range(len(videos))])
    known = videos.set_column(videos.schema.get_field_index("ingested_hash"), "ingested_hash", hashes)
    toy_gallery.commit(known, REJECTS_SCHEMA.empty_table())
    index = build_index(toy_gallery, IndexSettings(8, 4))
    place = toy_gallery.snapshot().videos["video_id"].to_pylist().index("v000")
    content = toy_gallery.snapshot().videos["ingested_hash"][place].as_py()
    target = gallery_target(toy_gallery, "v000")
    copy = dataclasses.replace(target, video=VideoRef("copy", "/elsewhere/copy.mp4"), content=content)
    with opened_partitions(toy_gallery, index, actors=0) as partitions:
        one, other = (search(toy_gallery, index, partitions, asked, EVERYTHING) for asked in (target, copy))
    scores = {lead.video.video_id: lead.score for lead in other.leads}
    assert scores.pop("v000") > 0.85
    assert scores == {lead.video.video_id: lead.score for lead in one.leads}


def test_a_shortlist_is_scored_like_everything(toy_gallery: Gallery, toy_index: Index) -> None:
    alone = ScoreSettings(neighbours=0)
    every = leads(toy_gallery, toy_index, settings=dataclasses.replace(EVERYTHING, score=alone))
    everything = {lead.video.video_id: lead.score for lead in every.leads}
    short = leads(toy_gallery, toy_index, settings=SearchSettings(top=100, shortlist=7, score=alone))
    assert short.scored == len(short.leads) == 7
    assert sorted(lead.prefilter_rank for lead in short.leads) == list(range(1, 8))
    assert all(lead.score == pytest.approx(everything[lead.video.video_id], abs=1e-6) for lead in short.leads)


def test_a_target_is_never_its_own_result(toy_gallery: Gallery, toy_index: Index) -> None:
    result = leads(toy_gallery, toy_index, "v004")
    assert result.target.video_id == "v004" and "v004" not in ids(result) and result.eligible == 39


def test_filters_choose_cameras_and_times(toy_gallery: Gallery, toy_index: Index) -> None:
    settings = dataclasses.replace(EVERYTHING, cameras=("cam1",), after=datetime(2026, 3, 1, 12, 10, tzinfo=UTC))
    settings = dataclasses.replace(settings, before=datetime(2026, 3, 1, 12, 20, tzinfo=UTC))
    result = leads(toy_gallery, toy_index, settings=settings)
    assert sorted(ids(result)) == ["v011", "v013", "v015", "v017", "v019"]
    with pytest.raises(UsageError, match="no camera 'cam7'; it has cam0, cam1"):
        leads(toy_gallery, toy_index, settings=dataclasses.replace(EVERYTHING, cameras=("cam7",)))
    elsewhere = leads(toy_gallery, toy_index, settings=dataclasses.replace(EVERYTHING, other_cameras=True))
    assert {lead.video.camera_id for lead in elsewhere.leads} == {"cam1"} and elsewhere.eligible == 20
    nothing = dataclasses.replace(EVERYTHING, after=datetime(2027, 1, 1, tzinfo=UTC))
    assert leads(toy_gallery, toy_index, settings=nothing).leads == ()


def test_forgotten_videos_are_in_no_result_from_now_on(toy_gallery: Gallery, toy_index: Index) -> None:
    gone = ids(leads(toy_gallery, toy_index))[0]
    toy_gallery.commit(
        VIDEOS_SCHEMA.empty_table(), REJECTS_SCHEMA.empty_table(), kind="forget", forgotten=Forgotten(frozenset({gone}))
    )
    assert gone not in ids(leads(toy_gallery, toy_index))


@torch.no_grad()
def test_evidence_is_the_best_pairs_with_the_attention_that_the_network_gives(toy_gallery: Gallery) -> None:
    """The best pair, then the best of the segments that are left on both sides, as long as there are any."""
    index = build_index(toy_gallery, IndexSettings(8, 4, partition_videos=9, cameras="ignore"))
    plain = dataclasses.replace(EVERYTHING, score=ScoreSettings(normalise="none"))
    rows = {row["video_id"]: row for row in toy_gallery.snapshot().videos.to_pylist()}
    target, target_frames = cut(toy_gallery, rows["v000"])
    for lead in leads(toy_gallery, index, settings=plain).leads[:8]:
        candidate, candidate_frames = cut(toy_gallery, rows[lead.video.video_id])
        network = index.head.compare(target, candidate, lengths(target_frames), lengths(candidate_frames))
        left = network.logits.sigmoid()
        assert len(lead.best_pairs) == min(plain.pairs, *left.shape)
        for pair in lead.best_pairs:
            n, k = divmod(int(left.argmax()), left.shape[1])
            assert pair.score == pytest.approx(float(left[n, k]), abs=5e-4)
            of_target, of_candidate = network.target_attention[n], network.candidate_attention[n, k]
            for side, frames, weights in (
                (pair.target, target_frames[n], of_target),
                (pair.candidate, candidate_frames[k], of_candidate),
            ):
                assert side.frame_index == tuple(frames)
                assert side.attention == pytest.approx(weights.tolist(), abs=1e-3)
                assert side.time_s == pytest.approx([i / 10 for i in frames])
            left[n], left[:, k] = -1, -1


def test_a_score_is_what_its_settings_say(toy_gallery: Gallery, toy_index: Index) -> None:
    by_sum = leads(toy_gallery, toy_index, settings=dataclasses.replace(EVERYTHING, score=ScoreSettings(1.0, None, "sum")))
    by_mean = leads(toy_gallery, toy_index, settings=dataclasses.replace(EVERYTHING, score=ScoreSettings(1.0)))
    rows = {row["video_id"]: row for row in toy_gallery.snapshot().videos.to_pylist()}
    pairs = {v: len(segment_starts(row["sampled_frames"], 8, 4)) * by_sum.target_segments for v, row in rows.items()}
    means = {lead.video.video_id: lead.score for lead in by_mean.leads}
    assert all(lead.score == pytest.approx(means[lead.video.video_id] * pairs[lead.video.video_id]) for lead in by_sum.leads)


def test_an_index_can_be_opened_again_and_an_old_search_keeps_its_version(toy_gallery: Gallery, toy_index: Index) -> None:
    before = leads(toy_gallery, toy_index)
    add_videos(toy_gallery, people_features(10, 1, 24, seed=9), first=40)
    newer = build_index(toy_gallery)
    assert index_versions(toy_gallery) == [toy_index.version, newer.version]
    assert open_index(toy_gallery).version == newer.version and len(newer.videos) == 50
    assert leads(toy_gallery, open_index(toy_gallery, toy_index.version)).leads == before.leads


def test_an_index_without_its_manifest_is_not_there(toy_gallery: Gallery, toy_index: Index) -> None:
    Path(toy_index.location.path, "manifest.json").unlink()
    with pytest.raises(UsageError, match="no index yet"):
        open_index(toy_gallery)


def test_the_untrained_head_depends_on_the_videos_and_not_on_their_shards(toy_gallery: Gallery, tmp_path: Path) -> None:
    other = Gallery.open_or_create(tmp_path / "other", GallerySettings(toy_spec(), 10.0, None))
    add_videos(other, people_features(10, 4, 24, seed=1), videos_a_shard=3)
    samples = [sample_features(gallery, gallery.snapshot().videos) for gallery in (toy_gallery, other)]
    assert np.array_equal(*samples)
    assert build_index(toy_gallery).manifest["head"] == build_index(other).manifest["head"]


def test_damage_and_misuse_are_said_in_one_sentence(toy_gallery: Gallery, toy_index: Index, tmp_path: Path) -> None:
    folder = Path(toy_index.location.path)
    with pytest.raises(UsageError, match="no index version 'old'"):
        open_index(toy_gallery, "old")
    with pytest.raises(UsageError, match="no video 'v999'"):
        gallery_target(toy_gallery, "v999")
    Path(toy_index.partition_location(0).path, "keys.npy").write_bytes(b"nonsense")
    with pytest.raises(PipelineError, match=r"keys\.npy is damaged"):
        leads(toy_gallery, toy_index)
    manifest = folder / "manifest.json"
    manifest.write_bytes(sealed({**unsealed(manifest.read_bytes()), "format": 99}))
    with pytest.raises(PipelineError, match=r"the index .* has format 99"):
        open_index(toy_gallery)
    empty = Gallery.open_or_create(tmp_path / "empty", GallerySettings(toy_spec(), 10.0, None))
    with pytest.raises(PipelineError, match="has no videos yet"):
        build_index(empty)


@pytest.mark.parametrize("name", ["visibility", "video_encodings", "video_mean"])
def test_arrays_of_other_videos_are_said_in_one_sentence(toy_gallery: Gallery, toy_index: Index, name: str) -> None:
    file = Path(toy_index.partition_location(0).path, f"{name}.npy")
    np.save(file, np.load(file)[1:])
    with pytest.raises(PipelineError, match=rf"is damaged: {name} holds float\d\d \[.*; run jobs\.index --rebuild"):
        leads(toy_gallery, toy_index)


def test_a_query_vector_of_another_head_is_said_in_one_sentence(toy_gallery: Gallery, toy_index: Index) -> None:
    np.save(Path(toy_index.location.path, "cohort/query.npy"), np.zeros(3, np.float32))
    with pytest.raises(PipelineError, match=r"query\.npy holds float32 \[3\] instead of float32 \[24\]"):
        open_index(toy_gallery)


@pytest.mark.parametrize("wrong", [{"top": 0}, {"shortlist": 0}, {"pairs": 0}])
def test_settings_that_cannot_be_meant_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        SearchSettings(**wrong)


def test_one_long_video_does_not_drown_the_others_in_the_untrained_head_s_sample(tmp_path: Path) -> None:
    gallery = Gallery.open_or_create(tmp_path / "g", GallerySettings(toy_spec(), 10.0, None))
    videos = people_features(6, 1, 24, seed=3)
    videos.insert(0, ("long", np.ones((5000, 24), np.float16)))
    add_videos(gallery, videos)
    sample = sample_features(gallery, gallery.snapshot().videos)
    assert (sample == 1).all(axis=1).mean() < 0.5


def test_segments_that_cannot_be_meant_are_refused(toy_gallery: Gallery, toy_index: Index) -> None:
    with pytest.raises(UsageError, match="at most 1024 frames"):
        IndexSettings(10**12, 4)
    with pytest.raises(UsageError, match="at most 1024 frames"):
        leads(toy_gallery, toy_index, settings=dataclasses.replace(EVERYTHING, target_length=10**12))


def test_a_partition_opens_as_many_files_as_are_reckoned_with(toy_index: Index) -> None:
    partitions, before = LocalPartitions(toy_index, [0]), len(list(Path("/proc/self/fd").iterdir()))
    partitions.open(0)
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= FILES_A_PARTITION


@pytest.mark.parametrize("raised", [True, False])
def test_more_partitions_than_files_may_be_open(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch, raised: bool) -> None:
    """A mapped array keeps its file open: under the usual limit of 1,024 a search of three million videos would stop."""
    index = build_index(toy_gallery, IndexSettings(8, 4, partition_videos=2))
    wanted = leads(toy_gallery, index).leads
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not raised:
        monkeypatch.setattr("pipeline.search.local_partitions._allow_open_files", lambda more: None)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 40, limits[1]))
    try:
        if raised:
            assert leads(toy_gallery, index).leads == wanted
        else:
            with pytest.raises(PipelineError, match="more open files than the system allows"):
                leads(toy_gallery, index)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
