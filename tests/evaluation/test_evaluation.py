"""Which pairs count, what scores they get, and that the document holds what the metrics give; each against plain loops."""

import dataclasses
import io
import itertools
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.evaluate import evaluate
from pipeline.coattention.cameras import camera_statistics
from pipeline.coattention.cohort import Cohort
from pipeline.datasets.labelled import LabelledData
from pipeline.datasets.read import read_labelled
from pipeline.errors import UsageError
from pipeline.evaluation.as_searched import coattention_scores, prefilter_places, shortlisted
from pipeline.evaluation.baselines import (
    COSINE,
    METRIC,
    NORMALISED,
    baseline_scores,
    cohort_normalised,
    cosine_scores,
    metric_scores,
    video_means,
)
from pipeline.evaluation.evaluate import COATTENTION, ONE_QUERY, EvaluationSettings, evaluate_index
from pipeline.evaluation.judged_pairs import JudgedPairs, Split, judged_pairs
from pipeline.evaluation.metrics import identity_interval, query_figures, ranking_quality
from pipeline.evaluation.pair_scores import write_pair_scores
from pipeline.gallery.audit import read_records
from pipeline.gallery.gallery import Gallery, feature_matrix
from pipeline.index.build import build_index
from pipeline.index.versions import Index, open_index
from pipeline.search.local_partitions import LocalPartitions
from pipeline.search.partitions import Partitions, opened_partitions
from pipeline.search.search import search
from pipeline.search.shortlist import segmented
from pipeline.search.targets import gallery_target
from pipeline.segments import segment_frames, segment_starts
from pipeline.settings import IndexSettings, ScoreSettings, SearchSettings
from tests.conftest import toy_spec

FEW = EvaluationSettings(false_match_rate=0.01, shortlists=("5", "20%"), bootstrap=200)


def everything(videos: pa.Table) -> Split:
    return Split(None, None, frozenset(videos["source_id"].to_pylist()))


def opened(gallery: Gallery, cameras: str = "ignore") -> tuple[Index, Partitions, JudgedPairs]:
    index = build_index(gallery, IndexSettings(partition_videos=17, cameras=cameras))
    partitions = LocalPartitions(index, range(len(index.manifest["partitions"])))
    return index, partitions, judged_pairs(index.videos, [everything(index.videos)])


def features_of(gallery: Gallery) -> dict[str, np.ndarray]:
    """video id -> frame features in float64, each video read by itself."""
    return {
        row["video_id"]: feature_matrix(gallery.read_video(row)).astype(np.float64)
        for row in gallery.snapshot().videos.to_pylist()
    }


# ---- which pairs count


def random_videos(seed: int, count: int) -> pa.Table:
    rng = random.Random(seed)
    rows = [
        {
            "video_id": f"v{number:02d}",
            "source_id": f"s{number // 2}",
            "person_id": rng.choice(["a", "b", "c", None]),
            "camera_id": rng.choice(["1", "2", None]),
        }
        for number in rng.sample(range(count), count)  # the index keeps videos in the order of shards, not of ids
    ]
    return pa.Table.from_pylist(rows)


@given(st.integers(0, 10**6), st.integers(2, 24), st.data())
@settings(deadline=None)
def test_a_pair_counts_by_the_field_s_rule(seed: int, count: int, data: st.DataObject) -> None:
    videos = random_videos(seed, count)
    rows = {row["video_id"]: row for row in videos.to_pylist()}
    ids = st.lists(st.sampled_from([*sorted(rows), "absent"]), unique=True)
    splits = [
        Split(
            data.draw(st.none() | ids.map(tuple)),
            data.draw(st.none() | ids.map(frozenset)),
            frozenset(data.draw(st.lists(st.sampled_from([f"s{i}" for i in range(12)])))),
        )
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    expected, missing = [], set()
    for number, split in enumerate(splits):
        inside = {v for v, row in rows.items() if row["person_id"] is not None and row["source_id"] in split.sources}
        queries = sorted(inside) if split.queries is None else split.queries
        gallery = inside if split.gallery is None else split.gallery
        labelled = {v for v in (*queries, *gallery) if v in rows and rows[v]["person_id"] is not None}
        missing |= {v for v in (*queries, *gallery) if v not in labelled}
        for query in (v for v in queries if v in labelled):
            counted = {}
            for v in (v for v in gallery if v in labelled and v != query):
                q, g = rows[query], rows[v]
                same = q["person_id"] == g["person_id"]
                if not (same and q["camera_id"] == g["camera_id"] and q["camera_id"] is not None):
                    counted[v] = same
            expected.append((number, query, counted))
    if not any(True in counted.values() for _, _, counted in expected):
        with pytest.raises(UsageError, match="no query has a match in its ranking"):
            judged_pairs(videos, splits)
        return
    pairs = judged_pairs(videos, splits)
    order = videos["video_id"].to_pylist()
    columns = [order[row] for row in pairs.gallery_rows]
    assert columns == sorted(columns)
    found = [
        (int(number), order[row], {columns[g]: bool(pairs.same[q, g]) for g in np.flatnonzero(pairs.valid[q])})
        for q, (number, row) in enumerate(zip(pairs.splits, pairs.query_rows, strict=True))
    ]
    assert found == expected and pairs.missing == len(missing)
    assert pairs.persons.tolist() == [rows[query]["person_id"] for _, query, _ in expected]
    assert pairs.query_cameras.tolist() == [rows[query]["camera_id"] or "not given" for _, query, _ in expected]
    assert pairs.gallery_cameras.tolist() == [rows[v]["camera_id"] or "not given" for v in columns]


# ---- scores


def test_the_full_score_is_the_search_s(toy_gallery: Gallery) -> None:
    index, partitions, pairs = opened(toy_gallery)
    settings = ScoreSettings(ratio=0.1)
    queries = np.array([3, 30, 11])
    told: list[tuple[int, int]] = []
    scores = coattention_scores(
        toy_gallery, index, partitions, queries, pairs.gallery_rows, settings, lambda *state: told.append(state)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    ids = index.videos["video_id"].to_pylist()
    columns = {ids[row]: column for column, row in enumerate(pairs.gallery_rows)}
    for query, of_query in zip(queries, scores, strict=True):
        asked = SearchSettings(top=100, shortlist=None, evidence=False, score=settings)
        leads = search(toy_gallery, index, partitions, gallery_target(toy_gallery, ids[query]), asked).leads
        assert len(leads) == 39
        for lead in leads:
            assert of_query[columns[lead.video.video_id]] == pytest.approx(lead.score, abs=1e-6)


def test_the_baselines_are_the_formulae_on_each_video_s_mean(toy_gallery: Gallery) -> None:
    index, _, pairs = opened(toy_gallery)
    features = features_of(toy_gallery)
    weight = index.head.score_row()[0].detach().double()
    head = index.head.double()
    ids = index.videos["video_id"].to_pylist()
    scores = dict(baseline_scores(toy_gallery, open_index(toy_gallery), pairs))
    assert list(scores) == [COSINE, COSINE + NORMALISED, METRIC, METRIC + NORMALISED]
    values = {v: head.values(torch.from_numpy(frames)).mean(dim=0).detach() for v, frames in features.items()}
    for q, g in itertools.product((0, 7, 39), (1, 8, 20)):
        query, video = ids[pairs.query_rows[q]], ids[pairs.gallery_rows[g]]
        a, b = features[query].mean(axis=0), features[video].mean(axis=0)
        assert scores[COSINE][q, g] == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)), abs=1e-9)
        expected = float((weight * (values[query] - values[video]) ** 2).sum())
        assert scores[METRIC][q, g] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("sign", [-1.0, 1.0, None])
def test_the_learned_metric_takes_weights_of_any_sign(sign: float | None) -> None:
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(100, 1, (4, 6)), rng.normal(100, 1, (9, 6))
    weight = rng.normal(size=6) if sign is None else sign * rng.random(6)
    scores = metric_scores(queries, candidates, weight)
    for q, g in itertools.product(range(4), range(9)):
        expected = sum(w * (a - b) ** 2 for w, a, b in zip(weight, queries[q], candidates[g], strict=True))
        assert scores[q, g] == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([0.2, 1 / 3, 1.0]))
@settings(deadline=None)
def test_normalisation_is_the_formula_over_the_nearest_share(seed: int, size: int, part: float) -> None:
    rng = np.random.default_rng(seed)
    scores, of_queries, of_gallery = rng.normal(size=(3, 5)), rng.normal(size=(3, size)), rng.normal(size=(5, size))
    for cohort in (of_queries, of_gallery):  # a video never meets itself
        cohort[rng.integers(len(cohort)), rng.integers(size)] = np.nan

    def scale(row: np.ndarray) -> tuple[float, float]:
        known = sorted((x for x in row.tolist() if not math.isnan(x)), reverse=True)
        best = known[: max(1, math.ceil(part * len(known)))]
        if not best:
            return 0.0, 1.0
        mean = sum(best) / len(best)
        return mean, math.sqrt(sum((x - mean) ** 2 for x in best) / len(best)) or 1.0

    normalised = cohort_normalised(scores, of_queries, of_gallery, part)
    for q, g in itertools.product(range(3), range(5)):
        (mean_q, spread_q), (mean_g, spread_g) = scale(of_queries[q]), scale(of_gallery[g])
        expected = ((scores[q, g] - mean_q) / spread_q + (scores[q, g] - mean_g) / spread_g) / 2
        assert normalised[q, g] == pytest.approx(expected)


def test_a_video_that_is_like_everybody_gains_nothing_by_it() -> None:
    rng = np.random.default_rng(0)
    plain, cohort = rng.normal(size=(6, 8)), rng.normal(size=(8, 30))
    like_everybody = np.where(np.arange(8) == 3, 5.0, 0.0)
    of_queries = np.full((6, 30), np.nan)  # no statistics on this side: it passes scores on as they are
    before = cohort_normalised(plain, of_queries, cohort)
    after = cohort_normalised(plain + like_everybody, of_queries, cohort + like_everybody[:, None])
    np.testing.assert_allclose(after - before, np.broadcast_to(like_everybody / 2, (6, 8)), atol=1e-9)


def test_baselines_are_normalised_by_the_index_s_cohort_without_the_video_itself(toy_gallery: Gallery) -> None:
    index, _, pairs = opened(toy_gallery)
    index = dataclasses.replace(index, cohort=Cohort(index.cohort.means[:40], index.cohort.video[:40]))
    rows = sorted(set(index.cohort.video.tolist()))
    assert 8 < len(rows) < 40
    scores = dict(baseline_scores(toy_gallery, index, pairs))
    means, _ = video_means(toy_gallery, index)
    of_queries, of_gallery = (
        [[np.nan if row == c else cosine_scores(means[[row]], means[[c]])[0, 0] for c in rows] for row in side]
        for side in (pairs.query_rows, pairs.gallery_rows)
    )
    expected = cohort_normalised(scores[COSINE], of_queries, of_gallery)
    np.testing.assert_allclose(scores[COSINE + NORMALISED], expected, atol=1e-6)


def test_without_a_usable_cohort_baselines_stay_plain(toy_gallery: Gallery) -> None:
    index, _, pairs = opened(toy_gallery)
    index = dataclasses.replace(index, cohort=Cohort(index.cohort.means[:2], index.cohort.video[:2]))
    assert list(dict(baseline_scores(toy_gallery, index, pairs))) == [COSINE, METRIC]


def test_baselines_of_an_index_that_tells_cameras_apart_have_them_taken_off_too(toy_gallery: Gallery) -> None:
    index, _, pairs = opened(toy_gallery, "auto")
    features, ids = features_of(toy_gallery), index.videos["video_id"].to_pylist()
    cameras = index.videos["camera_id"].to_pylist()
    means = np.stack([features[video].mean(axis=0) for video in ids])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    statistics = camera_statistics(means, cameras)
    rows = [statistics.row(camera) for camera in cameras]
    changed = np.stack([(one - statistics.means[row]) @ statistics.maps[row] for one, row in zip(means, rows, strict=True)])
    changed /= np.linalg.norm(changed, axis=1, keepdims=True)
    scores = dict(baseline_scores(toy_gallery, index, pairs))
    expected = (changed @ changed.T)[pairs.query_rows][:, pairs.gallery_rows]
    np.testing.assert_allclose(scores[COSINE], expected, atol=1e-3)
    one, other = (
        index.heads.of(cameras[row]).values(torch.from_numpy(features[ids[row]]).float()).detach().double().mean(dim=0)
        for row in (int(pairs.query_rows[0]), int(pairs.gallery_rows[9]))
    )
    distance = float((one / one.norm() - other / other.norm()).square().sum())
    assert scores[METRIC][0, 9] == pytest.approx(-4 * distance, abs=1e-4)


def test_means_are_each_video_s_own_wherever_it_lies(toy_gallery: Gallery) -> None:
    index, _, _ = opened(toy_gallery)
    means, values = video_means(toy_gallery, index)
    features = features_of(toy_gallery)
    for row, video_id in enumerate(index.videos["video_id"].to_pylist()):
        np.testing.assert_allclose(means[row], features[video_id].mean(axis=0), atol=1e-9)
    assert values.shape == (40, index.head.config.value_width)
    np.testing.assert_allclose(np.diag(cosine_scores(means, means)), 1.0)


def test_shortlists_follow_the_best_segment_under_uniform_attention_and_then_the_best_lead(toy_gallery: Gallery) -> None:
    index, partitions, pairs = opened(toy_gallery)
    weight, bias = (tensor.detach().double().numpy() for tensor in index.head.score_row())
    ids = index.videos["video_id"].to_pylist()
    features = features_of(toy_gallery)

    def segments(video_id: str) -> np.ndarray:
        frames = features[video_id]
        return segment_frames(segment_starts(len(frames), 8, 4), 8, len(frames))

    values = {v: index.head.values(torch.from_numpy(features[v])).detach().double().numpy() for v in ids}
    means = {v: np.array([values[v][np.unique(numbers)].mean(axis=0) for numbers in segments(v)]) for v in ids}
    alone = np.random.default_rng(0).random(pairs.valid.shape)
    places = prefilter_places(toy_gallery, index, partitions, pairs, longest=6)
    asked = toy_gallery, index, partitions, pairs, places, alone
    six, share = shortlisted(*asked, ScoreSettings(neighbours=0), ("6", "15%"))
    beside, _ = shortlisted(*asked, ScoreSettings(neighbours=1), ("6", "15%"))
    whole = partitions.whole(pairs.gallery_rows).encodings.astype(np.float64)
    for q in (0, 13, 39):
        encodings = segmented(gallery_target(toy_gallery, ids[pairs.query_rows[q]]), index).encoding.encodings
        logits = {}
        for g in np.flatnonzero(pairs.valid[q]):
            difference = encodings.double().numpy()[:, None] - means[ids[pairs.gallery_rows[g]]]
            logits[g] = float((bias + difference**2 @ weight).max())
        best = sorted(logits, key=lambda g: -logits[g])[:6]
        assert places[q, best].tolist() == [1, 2, 3, 4, 5, 6] and (np.delete(places[q], best) == 41).all()
        assert set(np.flatnonzero(six[q])) == set(np.flatnonzero(share[q])) == set(best)
        lead = max(best, key=lambda g: alone[q, g])
        distances = {
            g: -float((bias + (whole[lead] - means[ids[pairs.gallery_rows[g]]]) ** 2 @ weight).max())
            for g in logits.keys() - set(best)
        }
        assert set(np.flatnonzero(beside[q])) == {*best, *sorted(distances, key=distances.__getitem__)[:2]}  # a fifth of six


# ---- the document


def test_the_document_holds_what_the_metrics_give(toy_gallery: Gallery) -> None:
    index, partitions, pairs = opened(toy_gallery)
    keep: dict[str, np.ndarray] = {}
    document = evaluate_index(toy_gallery, index, partitions, pairs, ScoreSettings(), FEW, keep)
    assert json.loads(json.dumps(document, allow_nan=False))
    baselines = [COSINE, COSINE + NORMALISED, METRIC, METRIC + NORMALISED]
    assert list(document["methods"]) == list(keep) == [COATTENTION, ONE_QUERY, *baselines]
    assert (document["queries"], document["gallery"], document["persons"], document["splits"]) == (40, 40, 10, 1)
    for name, method in document["methods"].items():
        figures = query_figures(keep[name], pairs.valid, pairs.same)
        quality = ranking_quality(figures)
        assert method["cmc"] == quality.cmc and (method["mean_ap"], method["mean_inp"]) == (quality.mean_ap, quality.mean_inp)
        assert [method["curve"][rank - 1] for rank in (1, 5, 10, 20)] == list(quality.cmc.values())
        assert method["intervals"]["mean_ap"] == identity_interval(figures.average_precision, pairs.persons, 200, 0)
        assert sum(method["histogram"]["same"]) == pytest.approx(1) == pytest.approx(sum(method["histogram"]["different"]))
        assert [point["asked"] for point in method["verification"]] == [0.1, 0.01, 0.001]  # 1440 pairs cannot show 0.0001
        assert {(pair["query_camera"], pair["gallery_camera"]) for pair in method["camera_pairs"]} == {
            ("cam0", "cam1"),
            ("cam1", "cam0"),
        }
    mine, other = (query_figures(keep[name], pairs.valid, pairs.same) for name in (COATTENTION, COSINE))
    difference = mine.average_precision - other.average_precision
    assert document["difference"]["mean_ap"] == {
        "value": pytest.approx(difference.mean()),
        "interval": identity_interval(difference, pairs.persons, 200, 0),
    }
    assert [recall["size"] for recall in document["shortlists"]] == ["5", "20%"]


def test_splits_are_pooled_and_reported_one_by_one(toy_gallery: Gallery) -> None:
    index = build_index(toy_gallery)
    people = index.videos.to_pylist()
    sources = frozenset(index.videos["source_id"].to_pylist())
    splits = []
    for half in (0, 1):
        chosen = [row for row in people if int(row["person_id"][1:]) % 2 == half]
        queries = sorted(row["video_id"] for row in chosen if row["camera_id"] == "cam0")
        gallery = frozenset(row["video_id"] for row in chosen if row["camera_id"] == "cam1")
        splits.append(Split(tuple(queries), gallery, sources))
    with opened_partitions(toy_gallery, index, actors=0) as partitions:
        documents = [
            evaluate_index(toy_gallery, index, partitions, judged_pairs(index.videos, chosen), ScoreSettings(), FEW)
            for chosen in (splits, splits[:1], splits[1:])
        ]
    pooled, *alone = (document["methods"][COSINE] for document in documents)
    assert documents[0]["splits"] == 2 and pooled["queries"] == 20
    assert pooled["by_split"]["mean_ap"] == pytest.approx([one["mean_ap"] for one in alone])
    assert pooled["mean_ap"] == pytest.approx(sum(one["mean_ap"] for one in alone) / 2)
    assert pooled["verification"][0]["different"] == sum(one["verification"][0]["different"] for one in alone)


def test_pair_scores_come_back_as_rows(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    index, _, pairs = opened(toy_gallery)
    tables = {"one": np.arange(1600.0).reshape(40, 40), "two": -np.ones((40, 40))}
    sink = io.BytesIO()
    monkeypatch.setattr("pipeline.evaluation.pair_scores.PARQUET_ROWS", 130)  # several row groups
    write_pair_scores(tables, index, pairs, sink)
    rows = pq.read_table(io.BytesIO(sink.getvalue())).to_pylist()
    ids = index.videos["video_id"].to_pylist()
    expected = [
        {
            "split": 0,
            "query_id": ids[pairs.query_rows[q]],
            "video_id": ids[pairs.gallery_rows[g]],
            "same": bool(pairs.same[q, g]),
            "one": 40.0 * q + g,
            "two": -1.0,
        }
        for q, g in itertools.product(range(40), range(40))
        if pairs.valid[q, g]
    ]
    assert rows == expected


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"false_match_rate": 0.0}, "false-match-rate is a share between 0 and 1"),
        ({"false_match_rate": 1.0}, "false-match-rate is a share between 0 and 1"),
        ({"false_alarm_rate": math.nan}, "false-alarm-rate is a share between 0 and 1, not nan"),
        ({"shortlists": ("many",)}, "not 'many'"),
        ({"bootstrap": -1}, "bootstrap and seed must be 0 or more"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        EvaluationSettings(**wrong)  # type: ignore[arg-type]


# ---- the command


@pytest.fixture
def manifest(toy_gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest of the toy gallery, which lies where the command makes its gallery in `tmp_path`: nothing is left to ingest."""
    monkeypatch.setattr("jobs.evaluate.find_backbone", lambda *_: toy_spec())
    pq.write_table(toy_gallery.snapshot().videos.select(["uri", "video_id", "camera_id", "person_id"]), tmp_path / "data.parquet")
    return tmp_path / "data.parquet"


def test_the_command_prints_and_writes_the_same_figures(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = manifest.parent
    evaluate(str(manifest), str(out), false_match_rate=0.01, shortlists="5, 20%", bootstrap=100, save_scores=True)
    document = json.loads((out / "evaluation.json").read_text())
    quality = document["methods"][COATTENTION]
    said = capsys.readouterr().out
    assert said.splitlines()[0].endswith(
        "40 queries, 0 without a match elsewhere, 10 persons, 40 videos in the gallery, 0 inputs rejected"
    )
    for name, method in document["methods"].items():
        line = next(line for line in said.splitlines() if re.match(re.escape(name) + r" +[01]\.", line))
        figures = [*method["cmc"].values(), method["mean_ap"], method["mean_inp"]]
        assert re.findall(r"(?<![(\u2013.\d])\d\.\d{3}", line) == [f"{figure:.3f}" for figure in figures]
    point = next(point for point in quality["verification"] if point["asked"] == 0.01)
    assert f"threshold for a false-match rate of 0.01: {point['threshold']:.6g}; it passes" in said
    assert "cam0 to cam1" in said and "20%" in said
    assert "<html" in (out / "evaluation.html").read_text()
    scores = pq.read_table(out / "scores.parquet")
    assert scores.column_names == ["split", "query_id", "video_id", "same", *document["methods"]]
    passed = np.asarray(scores[COATTENTION])[~np.asarray(scores["same"])] >= point["threshold"]
    assert np.mean(passed) == pytest.approx(point["false_match_rate"])
    record = read_records(Gallery.open(out / "gallery"))[-1]
    assert (record["action"], record["queries"], record["index_version"]) == ("evaluate", 40, document["index_version"])


def test_all_splits_of_data_without_splits_are_one(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(str(manifest), str(manifest.parent), split="all", shortlists="", bootstrap=0)
    document = json.loads((manifest.parent / "evaluation.json").read_text())
    assert document["splits"] == 1 and document["queries"] == 40 and document["shortlists"] == []
    assert document["difference"]["rank_1"]["interval"] is None and "95 %" not in capsys.readouterr().out


def test_the_splits_of_a_data_set_are_judged_together(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(data: str, *, split: int, **_: object) -> LabelledData:
        labelled = read_labelled(data)
        queries = tuple(f"v{4 * person:03d}" for person in range(10) if person != split)
        return LabelledData("ten splits", labelled.catalog, queries, None, ("a note",))

    monkeypatch.setattr("jobs.evaluate.read_labelled", read)
    evaluate(str(manifest), str(manifest.parent), split="all", bootstrap=0)
    document = json.loads((manifest.parent / "evaluation.json").read_text())
    assert document["splits"] == 10 and document["queries"] == 90 and document["notes"] == ["a note"]
    assert len(document["methods"][COSINE]["by_split"]["mean_ap"]) == 10
    said = capsys.readouterr().out
    assert "over 10 splits" in said and "note: a note" in said


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"split": "10"}, "--split is a number from 0 to 9 or all, not '10'"),
        ({"normalise": "all"}, "scores are normalised by cohort or by none, not by 'all'"),
        ({"false_match_rate": 2.0}, "false-match-rate is a share between 0 and 1, not 2.0"),
        ({"shortlists": "10,ten"}, "a shortlist is a number of videos or a share such as 5%, not 'ten'"),
        ({"aggregate": "median"}, "scores are aggregated by mean or sum, not by 'median'"),
        ({"part": "dev"}, "'dev' is no part of a data set"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(manifest: Path, wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        evaluate(str(manifest), str(manifest.parent), **wrong)


def test_a_folder_that_is_a_file_and_data_without_matches_are_one_sentence(manifest: Path) -> None:
    with pytest.raises(UsageError, match="is a file; an evaluation is written into a folder"):
        evaluate(str(manifest), str(manifest))
    one = pq.read_table(manifest).slice(0, 1)
    pq.write_table(one, manifest)
    with pytest.raises(UsageError, match="no query has a match in its ranking"):
        evaluate(str(manifest), str(manifest.parent))
