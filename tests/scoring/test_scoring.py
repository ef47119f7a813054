import copy
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.coattention.head import untrained_head
from pipeline.coattention.network import Coattention, CoattentionConfig
from pipeline.errors import PipelineError
from pipeline.scoring import compiled, pair_kernel
from pipeline.scoring.scores import (
    TargetEncoding,
    attention_weights,
    candidate_logits,
    encode_target,
    frame_band,
    pair_logits,
    pair_scores,
    segment_distances,
)
from pipeline.segments import segment_frames, segment_starts
from tests.conftest import PROCESSORS, compile_for
from tests.oracle import Oracle

WIDTH, KEY_WIDTH, VALUE_WIDTH = 24, 12, 16
LENGTH, STRIDE = 8, 4


def random_head(seed=0, agreement=0.0, **settings):
    """Weights of the size that training leaves: attention far from uniform, scores on both sides of a half."""
    torch.manual_seed(seed)
    head = Coattention(CoattentionConfig(WIDTH, KEY_WIDTH, VALUE_WIDTH, **settings)).eval()
    with torch.no_grad():
        head.feature_mean.normal_()
        head.query.weight *= 20
        head.key.weight *= 3 if head.config.normalise_features else 0.2  # plain features are about 6 long
        head.classifier.weight.copy_(torch.randn(2, VALUE_WIDTH) * (1 if head.config.normalise_values else 3))
        head.agreement.fill_(agreement)
        if head.config.unit_encodings:
            head.classifier.weight.fill_(4.0)  # one weight for all dimensions: the fast form of cosines needs it
            head.classifier.bias[1] += 3.0
    return head


HEADS = {
    "w of both signs": random_head(),
    "w of both signs, softmax, unit values": random_head(1, normalisation="softmax", normalise_values=True),
    "negative w": random_head(2, negative_weight=True),
    "negative w, softmax": random_head(3, negative_weight=True, normalisation="softmax"),
    "plain features": random_head(4, normalise_features=False, normalise_values=True),
    "agreement": random_head(5, negative_weight=True, agreement=0.5),
    "agreement, w of both signs": random_head(6, agreement=1.5),
    "unit": random_head(7, negative_weight=True, normalise_values=True, unit_encodings=True),
    "unit, agreement": random_head(8, negative_weight=True, normalise_values=True, unit_encodings=True, agreement=0.5),
    "unit, agreement, slack": random_head(10, 0.5, negative_weight=True, normalise_values=True, unit_encodings=True, slack=1.0),
}
UNGUIDED = [name for name, head in HEADS.items() if head.agreement == 0]  # both sides attend alike to the same frames
ROOT = Path(__file__).parents[2]

every_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())


@pytest.fixture(params=["torch", *PROCESSORS])
def scorer(request, monkeypatch):
    """What scores stored candidates: torch, or the compiled kernel with vectors as this or a lesser processor has them."""
    if request.param == "torch":
        monkeypatch.setattr(pair_kernel, "available", lambda: False)
    else:
        compile_for(request.param, monkeypatch)


def oracle_of(head):
    weights = {name: tensor.double().numpy() for name, tensor in head.state_dict().items()}
    switches = ("normalise_features", "normalise_values", "normalisation", "negative_weight", "unit_encodings", "slack")
    return Oracle(weights, *(getattr(head.config, switch) for switch in switches))


def features(frames, seed):
    """Frame features of one video: a person, who changes a little from frame to frame."""
    generator = np.random.default_rng(seed)
    person = generator.normal(size=WIDTH)
    return (person + 0.7 * generator.normal(size=(frames, WIDTH))).astype(np.float32)


def overlapping_segments(lengths, length=LENGTH):
    """Frame numbers [K, T] of the segments of videos that lie one after the other."""
    first_rows = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    tables = [
        first + segment_frames(segment_starts(frames, length, STRIDE), length, frames)
        for first, frames in zip(first_rows, lengths, strict=True)
    ]
    return torch.from_numpy(np.concatenate(tables))


class Gallery:
    """Candidate frames with stored keys and values, as an index holds them; the third video is shorter than a segment."""

    def __init__(self, head, lengths=(21, 8, 5, 30), storage=torch.float32, seed=50, segment_length=LENGTH):
        self.length = segment_length
        self.after = torch.cat([torch.arange(frames - 1, -1, -1) for frames in lengths])
        self.features = np.concatenate([features(frames, seed + video) for video, frames in enumerate(lengths)])
        self.segments = overlapping_segments(lengths, segment_length)
        with torch.no_grad():
            self.keys = head.keys(torch.from_numpy(self.features)).to(storage)
            self.values = head.values(torch.from_numpy(self.features)).to(storage)

    @property
    def stored(self):
        return self.keys, self.values, self.segments

    def banded(self, head):
        """What `candidate_logits` takes."""
        weight = head.score_row()[0].detach()
        band = frame_band(weight, self.values, self.after, self.length).to(self.values.dtype)
        start = self.segments[:, 0]
        return self.keys, self.values, band, start, start + self.after[start], self.length

    @property
    def real(self):
        """How many frames of each segment are not padding, int64 [K]."""
        return 1 + (self.segments[:, 1:] != self.segments[:, :-1]).sum(dim=1)

    def oracle_segments(self):
        return self.features[self.segments.numpy()]


def targets(count, length=6, seed=90):
    """Target segments [N, T_p, D]; the first shows the person of the gallery's first video."""
    return np.stack([features(length, 50 if n == 0 else seed + n) for n in range(count)])


# The fast form against the textbook.


@every_head
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(("storage", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-4)])
def test_scores_of_overlapping_segments_are_the_textbook_s(head, count, storage, tolerance):
    gallery, target = Gallery(head, storage=storage), targets(count)
    scores = pair_scores(encode_target(head, torch.from_numpy(target)), *gallery.stored)
    expected = oracle_of(head).scores(target, gallery.oracle_segments())
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores.numpy(), expected, rtol=0, atol=tolerance)
    assert np.ptp(expected) > 0.02  # far above the tolerance


@pytest.mark.parametrize("temperature", [1 / 8, None])
def test_float16_storage_moves_the_untrained_head_s_scores_by_less_than_1e_4(temperature):
    head = untrained_head(np.concatenate([features(30, seed) for seed in range(40)]), temperature=temperature)
    gallery, target = Gallery(head, storage=torch.float16), targets(3)
    scores = pair_scores(encode_target(head, torch.from_numpy(target)), *gallery.stored)
    expected = oracle_of(head).scores(target, gallery.oracle_segments())
    assert np.ptp(expected) > 0.3
    np.testing.assert_allclose(scores.numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "shift"), [(name, 0.0) for name in UNGUIDED] + [("negative w", 100.0), ("w of both signs", 100.0)]
)
def test_a_target_found_again_scores_the_bias_exactly(name, shift):
    """The terms of the opened square cancel completely here; a shift of all values makes them 10 000 times larger."""
    shifted = copy.deepcopy(HEADS[name])
    with torch.no_grad():
        shifted.value.bias += shift
    gallery = Gallery(shifted)
    target = gallery.oracle_segments()
    scores = pair_scores(encode_target(shifted, torch.from_numpy(target), lengths=gallery.real), *gallery.stored)
    expected = oracle_of(shifted).scores(target, target)
    same = np.diag_indices(len(target))
    bias = shifted.score_row()[1].sigmoid().item()
    np.testing.assert_allclose(expected[same], bias, atol=1e-7)
    np.testing.assert_allclose(scores.numpy()[same], expected[same], rtol=0, atol=1e-5)


@pytest.mark.parametrize("storage", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["negative w", "unit", "unit, agreement"])
@pytest.mark.usefixtures("scorer")
def test_no_logit_exceeds_the_bias_when_no_weight_is_above_zero(name, storage):
    head = HEADS[name]
    gallery = Gallery(head, storage=storage)
    target = encode_target(head, torch.from_numpy(np.concatenate([gallery.oracle_segments(), targets(4, LENGTH)])))
    assert (pair_logits(target, *gallery.stored) <= target.bias).all()
    assert (candidate_logits(target, *gallery.banded(head)) <= target.bias).all()
    mixed = HEADS["w of both signs"]
    gallery = Gallery(mixed)
    target = encode_target(mixed, torch.from_numpy(targets(4)))
    assert (pair_logits(target, *gallery.stored) > target.bias).any()


@every_head
def test_scores_are_the_network_s_own(head):
    gallery, target = Gallery(head), torch.from_numpy(targets(3))
    expected = head.compare(target, torch.from_numpy(gallery.oracle_segments()), candidate_lengths=gallery.real).logits.detach()
    logits = pair_logits(encode_target(head, target), *gallery.stored)
    torch.testing.assert_close(logits.sigmoid(), expected.sigmoid(), rtol=0, atol=1e-5)


@every_head
@pytest.mark.usefixtures("scorer")
@pytest.mark.parametrize("count", [3, 20])
def test_a_short_video_scores_as_its_frames_alone_whatever_segments_are_long(head, count):
    """As target and as candidate; the LSTM, which reads the padding, is left out by giving it the same target."""
    short, padded = (Gallery(head, (5, 5, 5), segment_length=length) for length in (5, LENGTH))
    assert padded.real.tolist() == [5, 5, 5]
    target = encode_target(head, torch.from_numpy(targets(count)))
    alone = candidate_logits(target, *short.banded(head))
    torch.testing.assert_close(candidate_logits(target, *padded.banded(head)), alone, rtol=1e-5, atol=1e-5)


def test_the_padding_of_a_target_takes_no_part_in_its_encoding():
    head = HEADS["negative w"]
    segments = targets(3)
    segments[0, 2:], segments[2, 4:] = segments[0, 1], segments[2, 3]
    target = encode_target(head, torch.from_numpy(segments), lengths=torch.tensor([2, 6, 4]))
    oracle = oracle_of(head)
    for n, segment in enumerate(segments):
        query_vector = oracle.query_vector(segment)
        np.testing.assert_allclose(target.attention[n], oracle.attention(query_vector, segment), atol=1e-5)
        np.testing.assert_allclose(target.encodings[n], oracle.encoding(query_vector, segment), atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_the_chunk_size_changes_nothing(chunk):
    head = HEADS["w of both signs"]
    gallery, target = Gallery(head), encode_target(HEADS["w of both signs"], torch.from_numpy(targets(3)))
    whole = pair_scores(target, *gallery.stored)
    torch.testing.assert_close(pair_scores(target, *gallery.stored, chunk=chunk), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunk", [3, 1000])
def test_the_order_of_candidates_changes_nothing(chunk):
    head = HEADS["w of both signs"]
    gallery, target = Gallery(head, (40, 33, 60)), encode_target(head, torch.from_numpy(targets(3)))
    whole = pair_scores(target, *gallery.stored)
    order = torch.randperm(len(gallery.segments), generator=torch.Generator().manual_seed(1))
    shuffled = pair_scores(target, gallery.keys, gallery.values, gallery.segments[order], chunk=chunk)
    torch.testing.assert_close(shuffled, whole[:, order], rtol=0, atol=1e-6)


def test_segments_far_apart_among_the_frames_score_the_same():
    head = HEADS["negative w"]
    gallery, target = Gallery(head, (200, 200)), encode_target(HEADS["negative w"], torch.from_numpy(targets(2)))
    whole = pair_scores(target, *gallery.stored)
    ends = torch.tensor([0, len(gallery.segments) - 1])
    few = pair_scores(target, gallery.keys, gallery.values, gallery.segments[ends])
    torch.testing.assert_close(few, whole[:, ends], rtol=0, atol=1e-6)


def test_stored_distances_give_the_same_scores():
    head, gallery = HEADS["negative w"], Gallery(HEADS["negative w"])
    target = encode_target(head, torch.from_numpy(targets(3)))
    band = frame_band(target.weight, gallery.values, gallery.after, LENGTH)
    distances = segment_distances(band, gallery.segments)
    expected = pair_scores(target, *gallery.stored)
    torch.testing.assert_close(pair_scores(target, *gallery.stored, distances=distances, chunk=5), expected, rtol=0, atol=1e-6)
    rows = gallery.values[gallery.segments[0]].double().numpy()
    plain = ((rows[:, None] - rows[None]) ** 2) @ target.weight.double().numpy()
    np.testing.assert_allclose(distances[0], plain, rtol=1e-4, atol=1e-5)


def test_a_band_holds_nothing_beyond_the_end_of_a_video():
    gallery = Gallery(HEADS["negative w"])
    band = frame_band(torch.full((VALUE_WIDTH,), -1.0), gallery.values, gallery.after, LENGTH)
    beyond = torch.arange(1, LENGTH) > gallery.after[:, None]
    assert (band[beyond] == 0).all()
    assert (band[~beyond] < 0).all()


@every_head
@pytest.mark.usefixtures("scorer")
@pytest.mark.parametrize("count", [1, 9, 33, 64])
@pytest.mark.parametrize(("storage", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-4)])
def test_stored_candidates_score_as_the_textbook_says(head, count, storage, tolerance):
    if storage == torch.float16 and not head.config.normalise_features:
        tolerance = 3e-4  # its keys are long, and float16 keeps a share of their length; heads that ship take unit features
    elif storage == torch.float16 and (head.agreement > 0 or head.config.unit_encodings):
        tolerance = 3e-4  # rounding keys and values moves the definition itself
    gallery = Gallery(head, (21, 8, 5, 1, 60), storage)
    scores = candidate_logits(encode_target(head, torch.from_numpy(targets(count))), *gallery.banded(head)).sigmoid()
    np.testing.assert_allclose(scores.T, textbook(head, (21, 8, 5, 1, 60), 64)[:count], rtol=0, atol=tolerance)


@cache
def textbook(head, lengths, count, segment_length=LENGTH):
    """The oracle's scores of `targets(count)` and of a `Gallery`, computed once for all that are compared with it."""
    gallery = Gallery(head, lengths, segment_length=segment_length)
    return oracle_of(head).scores(targets(count), gallery.oracle_segments())


@pytest.mark.usefixtures("scorer")
@pytest.mark.parametrize("length", [1, 2, 7, 100])
def test_segments_of_any_length_are_scored(length):
    head = HEADS["negative w"]
    gallery = Gallery(head, (21, 8, 5, 330), segment_length=length)
    scores = candidate_logits(encode_target(head, torch.from_numpy(targets(11))), *gallery.banded(head)).sigmoid()
    np.testing.assert_allclose(scores.T, textbook(head, (21, 8, 5, 330), 11, length), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("scorer")
@pytest.mark.parametrize("copies", [1, 300])
def test_frames_that_nearly_coincide_lose_nothing_to_rounding(copies):
    """The target's own frames as the candidate, far from the origin: distances are next to 0, products are large."""
    head = HEADS["negative w"]
    gallery = Gallery(head, (30,) * copies)
    own = torch.from_numpy(gallery.oracle_segments()[:3])
    target = encode_target(head, own)
    far = 50 * torch.ones(VALUE_WIDTH)
    target = replace(target, encodings=target.encodings + far, centre=target.centre + far)
    keys, _, band, start, last, length = gallery.banded(head)
    logits = candidate_logits(target, keys, gallery.values + far, band, start, last, length)
    np.testing.assert_allclose(logits.sigmoid().T, textbook_of_its_own(head, copies), rtol=0, atol=1e-5)
    assert (logits <= target.bias).all()


@cache
def textbook_of_its_own(head, copies):
    segments = Gallery(head, (30,) * copies).oracle_segments()
    return oracle_of(head).scores(segments[:3], segments)


@pytest.mark.parametrize("count", [3, 8, 17, 64])
@pytest.mark.parametrize(("key_width", "value_width"), [(128, 128), (5, 19)])
@pytest.mark.parametrize(("storage", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-4)])
@pytest.mark.parametrize(("agreement", "slack"), [(0.0, 0.0), (0.5, 0.0), (0.5, 1.0)])
@pytest.mark.usefixtures("scorer")
def test_keys_and_values_of_any_width_score_as_defined(count, key_width, value_width, storage, tolerance, agreement, slack):
    target, arrays = stored_at_random(count, key_width, value_width, storage, agreement, slack=slack)
    logits = candidate_logits(target, *arrays)
    keys, values, _, start, last, length = (part.double().numpy() if torch.is_tensor(part) else part for part in arrays)
    rows = np.minimum(start[:, None] + np.arange(length), last[:, None]).astype(int)
    heat = keys[rows] @ target.query_vectors.double().numpy().T  # [K, T, N]
    own = target.encodings.double().numpy()
    weight = target.weight.double().numpy()
    heat = np.minimum(heat, heat.max(axis=1, keepdims=True) - slack)
    heat += agreement * ((own - values[rows][:, :, None]) ** 2 @ weight)
    heat[:, 1:][rows[:, 1:] == rows[:, :-1]] = -np.inf  # padding
    attention = np.exp(heat - heat.max(axis=1, keepdims=True))
    attention /= attention.sum(axis=1, keepdims=True)
    encodings = np.einsum("ktn,ktd->nkd", attention, values[rows])
    expected = float(target.bias) + (own[:, None] - encodings) ** 2 @ weight  # [N, K]
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(logits.sigmoid().T, 1 / (1 + np.exp(-expected)), rtol=0, atol=tolerance)


@pytest.mark.parametrize("count", [8, 64])
@pytest.mark.parametrize("unit", [0.0, 4.0])
@pytest.mark.parametrize(("agreement", "slack"), [(0.0, 0.0), (0.5, 1.0)])
def test_vectors_of_every_width_agree(processor, count, unit, agreement, slack, monkeypatch):
    target, arrays = stored_at_random(count, 128, 128, torch.float16, agreement, unit, slack)
    logits = candidate_logits(target, *arrays)
    monkeypatch.setattr(compiled, "PROCESSOR", "native")
    torch.testing.assert_close(logits, candidate_logits(target, *arrays), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("level", "few", "many"), [("x86-64-v2", 4, 4), ("x86-64-v3", 8, 8), ("x86-64-v4", 8, 16)])
def test_vectors_are_as_wide_as_the_processor_s_registers(level, few, many, monkeypatch):
    """128 bits with SSE4.2, 256 with AVX2, 512 with AVX-512, of which up to 8 target segments take a half."""
    compile_for(level, monkeypatch)
    assert [pair_kernel.lanes(count) for count in (1, 8, 9, 64)] == [few, few, many, many]


@pytest.mark.parametrize("unit", [0.0, 4.0])
@pytest.mark.parametrize(("agreement", "slack"), [(0.0, 0.0), (0.5, 1.0)])
def test_a_logit_has_the_same_bits_whatever_stands_beside_it(processor, unit, agreement, slack):
    """Up to 8 target segments are scored by half vectors where there are the widest ones."""
    target, arrays = stored_at_random(29, 128, 131, torch.float16, agreement, unit, slack)
    together = candidate_logits(target, *arrays)
    for first, last in ((0, 1), (3, 8), (8, 16), (5, 29)):
        some = replace(target, query_vectors=target.query_vectors[first:last], encodings=target.encodings[first:last])
        assert torch.equal(candidate_logits(some, *arrays), together[:, first:last])


def stored_at_random(count, key_width, value_width, storage, agreement=0.0, unit=0.0, slack=0.0):
    """A target of `count` segments, and what `candidate_logits` takes of 12 videos of 1 to 70 frames.

    unit: s, for values and encodings that are unit vectors.
    """
    generator = torch.Generator().manual_seed(count)
    frames = torch.randint(1, 71, (12,), generator=generator)
    after = torch.cat([torch.arange(n - 1, -1, -1) for n in frames.tolist()])
    keys, queries = (torch.randn(n, key_width, generator=generator) / key_width**0.25 for n in (len(after), count))
    values, encodings = (torch.randn(n, value_width, generator=generator) / value_width**0.5 for n in (len(after), count))
    weight = -2 * torch.rand(value_width, generator=generator)
    if unit:
        values, encodings = (torch.nn.functional.normalize(side, dim=1) for side in (values, encodings))
        weight = torch.full((value_width,), -unit)
    keys, values, centre = keys.to(storage), values.to(storage), encodings.mean(dim=0)
    target = TargetEncoding(queries, encodings, torch.empty(0), weight, torch.tensor(1.0), centre, agreement, unit, slack)
    start = overlapping_segments(frames.tolist())[:, 0]
    band = frame_band(weight, values, after, LENGTH).to(storage)
    return target, (keys, values, band, start, start + after[start], LENGTH)


@pytest.mark.usefixtures("scorer")
def test_a_damaged_frame_shows_as_nan_in_its_segments_only():
    head = HEADS["negative w"]
    for array in ("keys", "values"):
        gallery = Gallery(head)
        arrays = gallery.banded(head)
        getattr(gallery, array)[10, 3] = torch.nan
        logits = candidate_logits(encode_target(head, torch.from_numpy(targets(2))), *arrays)
        holds = (gallery.segments == 10).any(dim=1)
        assert logits[holds].isnan().all()
        assert logits[~holds].isfinite().all()


@pytest.mark.parametrize(
    "change",
    [
        lambda k, v, b, s, e, n: (k, v, b[1:], s, e, n),
        lambda k, v, b, s, e, n: (k, v, b, s, e[1:], n),
        lambda k, v, b, s, e, n: (k, v, b, s, e + len(k), n),
        lambda k, v, b, s, e, n: (k, v, b, s - 1, e, n),
        lambda k, v, b, s, e, n: (k[:, 1:].contiguous(), v, b, s, e, n),
        lambda k, v, b, s, e, n: (k[:-1], v, b, s, e, n),
    ],
)
@pytest.mark.usefixtures("scorer")
def test_arrays_that_do_not_fit_are_refused(change):
    head = HEADS["negative w"]
    target = encode_target(head, torch.from_numpy(targets(2)))
    with pytest.raises(ValueError, match=r"fit|must be|frames"):
        candidate_logits(target, *change(*Gallery(head).banded(head)))


def test_a_machine_without_a_compiler_says_so_and_scores_in_torch(tmp_path):
    code = "from pipeline.scoring import pair_kernel; print(pair_kernel.available(), pair_kernel.why_not())"
    python = {"XDG_CACHE_HOME": str(tmp_path), "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=python, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False there is no C compiler; install gcc and libc6-dev\n"


@pytest.mark.parametrize("name", ["unit", "unit, agreement"])
def test_a_target_found_again_frame_by_frame_has_cosine_1(name):
    """Segments of one frame: the encoding is the frame's value, whatever attends."""
    head = HEADS[name]
    gallery = Gallery(head, segment_length=1)
    target = encode_target(head, torch.from_numpy(gallery.oracle_segments()))
    logits = candidate_logits(target, *gallery.banded(head))
    np.testing.assert_allclose(logits.diagonal(), target.bias, atol=1e-5)


@pytest.mark.usefixtures("scorer")
@pytest.mark.parametrize("count", [1, 9])
def test_opposite_frames_whose_mean_is_next_to_nothing_give_a_finite_logit_no_higher_than_the_bias(count):
    values = torch.zeros(2, 16)
    values[0, 0], values[1, 0] = 1.0, -1.0
    encodings = torch.nn.functional.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    weight = torch.full((16,), -4.0)
    queries = torch.zeros(count, 4)
    target = TargetEncoding(queries, encodings, torch.empty(0), weight, torch.tensor(1.0), torch.zeros(16), unit=4.0)
    band = frame_band(weight, values, torch.tensor([1, 0]), LENGTH)
    logits = candidate_logits(target, torch.zeros(2, 4), values, band, torch.tensor([0]), torch.tensor([1]), LENGTH)
    assert logits.isfinite().all()
    assert (logits <= 1.0).all()


@pytest.mark.parametrize("change", ["values", "weight", "sign"])
def test_unit_encodings_that_the_fast_form_cannot_follow_are_refused(change):
    settings = {"negative_weight": change != "sign", "normalise_values": change != "values", "unit_encodings": True}
    head = random_head(9, **settings)
    if change == "weight":
        head.classifier.weight.data[1, 3] += 0.01
    with pytest.raises(ValueError, match="unit values and one weight below 0"):
        encode_target(head, torch.from_numpy(targets(1)))


def test_a_target_keeps_its_numbers_on_another_device():
    target = encode_target(HEADS["unit, agreement"], torch.from_numpy(targets(1)))
    assert (target.agreement, target.unit) == (pytest.approx(0.5), pytest.approx(4.018, abs=1e-3))
    moved = target.to("meta")
    assert (moved.agreement, moved.unit, moved.weight.device.type) == (target.agreement, target.unit, "meta")


def test_the_centre_changes_nothing_but_rounding():
    head = HEADS["w of both signs"]
    gallery, segments = Gallery(head), torch.from_numpy(targets(3))
    usual = pair_scores(encode_target(head, segments), *gallery.stored)
    for centre in (torch.zeros(VALUE_WIDTH), torch.randn(VALUE_WIDTH)):
        torch.testing.assert_close(pair_scores(encode_target(head, segments, centre), *gallery.stored), usual, rtol=0, atol=1e-5)


@every_head
def test_attention_of_both_sides_is_the_textbook_s(head):
    gallery, segments = Gallery(head), targets(2)
    target = encode_target(head, torch.from_numpy(segments))
    count = len(gallery.segments)
    pairs = target.only(np.repeat([0, 1], count)), gallery.keys, gallery.values, gallery.segments.repeat(2, 1)
    weights = attention_weights(*pairs).numpy().reshape(2, count, -1)
    oracle = oracle_of(head)
    assert weights.shape == (2, *gallery.segments.shape)
    for n, segment in enumerate(segments):
        query_vector = oracle.query_vector(segment)
        np.testing.assert_allclose(target.attention[n], oracle.attention(query_vector, segment), atol=1e-5)
        encoding = oracle.encoding(query_vector, segment)
        expected = [oracle.attention(query_vector, candidate, encoding) for candidate in gallery.oracle_segments()]
        np.testing.assert_allclose(weights[n], expected, atol=1e-5)
    assert weights.max() > 2 / LENGTH


def test_a_gallery_without_segments_gives_no_scores():
    head = HEADS["negative w"]
    gallery, target = Gallery(head), encode_target(head, torch.from_numpy(targets(2)))
    assert pair_scores(target, gallery.keys, gallery.values, gallery.segments[:0]).shape == (2, 0)


@pytest.mark.parametrize("frame", [-1, 64])
def test_frame_numbers_outside_the_frames_are_refused(frame):
    head = HEADS["negative w"]
    gallery, target = Gallery(head), encode_target(head, torch.from_numpy(targets(1)))
    assert len(gallery.keys) == 64
    segments = gallery.segments.clone()
    segments[2, 3] = frame
    with pytest.raises(ValueError, match=r"0\.\.63"):
        pair_scores(target, gallery.keys, gallery.values, segments)
    with pytest.raises(ValueError, match=r"0\.\.63"):
        attention_weights(target.only([0] * len(segments)), gallery.keys, gallery.values, segments)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda keys, values, segments: (keys[:-1], values, segments), "keys"),
        (lambda keys, values, segments: (values, keys, segments), "keys"),
        (lambda keys, values, segments: (keys, values, segments[0]), "segment_frames"),
        (lambda keys, values, segments: (keys, values, segments[:, :0]), "segment_frames"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(change, word):
    head = HEADS["negative w"]
    target = encode_target(head, torch.from_numpy(targets(1)))
    with pytest.raises(ValueError, match=word):
        pair_scores(target, *change(*Gallery(head).stored))


def test_distances_of_other_segments_and_an_empty_chunk_are_refused():
    head = HEADS["negative w"]
    target, gallery = encode_target(head, torch.from_numpy(targets(1))), Gallery(head)
    with pytest.raises(ValueError, match="distances"):
        pair_scores(target, *gallery.stored, distances=torch.zeros(3, LENGTH, LENGTH))
    with pytest.raises(ValueError, match="chunk"):
        pair_scores(target, *gallery.stored, chunk=0)


def test_a_target_of_another_backbone_is_refused_with_both_widths():
    with pytest.raises(PipelineError, match="width 24, not 25"):
        encode_target(HEADS["negative w"], torch.zeros(1, 2, 25))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("storage", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["w of both signs", "unit, agreement"])
def test_a_gpu_gives_the_scores_of_the_cpu(name, storage):
    head = HEADS[name]
    gallery, target = Gallery(head, storage=storage), encode_target(head, torch.from_numpy(targets(3)))
    expected = pair_scores(target, *gallery.stored)
    scores = pair_scores(target, gallery.keys.cuda(), gallery.values.cuda(), gallery.segments)
    assert scores.is_cuda
    torch.testing.assert_close(scores.cpu(), expected, rtol=0, atol=1e-5)
