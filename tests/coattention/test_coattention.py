import itertools

import numpy as np
import pytest
import torch

from pipeline.coattention.network import DIFFERENT, SAME, Coattention, CoattentionConfig
from pipeline.errors import PipelineError, UsageError
from tests.oracle import Oracle

SWITCHES = list(itertools.product((True, False), (True, False), ("sigmoid", "softmax"), (True, False), (True, False), (0.0, 0.7)))


def random_head(seed=0, *, dtype=torch.float64, spread=0.4, agreement=0.7, **settings):
    """A head with Gaussian weights, so that gates, attention and scores are far from trivial."""
    config = CoattentionConfig(**{"feature_width": 7, "key_width": 5, "value_width": 6} | settings)
    generator = torch.Generator().manual_seed(seed)
    head = Coattention(config).to(dtype).eval()
    for tensor in head.state_dict().values():
        tensor.copy_(spread * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    head.agreement.data.fill_(agreement)
    return head


def oracle_of(head):
    weights = {name: tensor.double().numpy() for name, tensor in head.state_dict().items()}
    switches = ("normalise_features", "normalise_values", "normalisation", "negative_weight", "unit_encodings", "slack")
    return Oracle(weights, *(getattr(head.config, switch) for switch in switches))


def random_segments(count, length, width=7, seed=1, dtype=torch.float64):
    return torch.randn(count, length, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(
    ("normalise_features", "normalise_values", "normalisation", "negative_weight", "unit_encodings", "agreement"), SWITCHES
)
def test_scores_are_the_textbook_s_for_every_switch(
    normalise_features, normalise_values, normalisation, negative_weight, unit_encodings, agreement
):
    head = random_head(
        unit_encodings=unit_encodings,
        agreement=agreement,
        slack=agreement,  # with and without, as agreement
        normalise_features=normalise_features,
        normalise_values=normalise_values,
        normalisation=normalisation,
        negative_weight=negative_weight,
    )
    target, candidate = random_segments(3, 4, seed=1), random_segments(5, 4, seed=2)
    scores = head(target, candidate).detach().numpy()
    np.testing.assert_allclose(scores, oracle_of(head).scores(target.numpy(), candidate.numpy()), rtol=0, atol=1e-12)
    assert np.ptp(scores) > 0.01  # far from saturated and far above the tolerance


@pytest.mark.parametrize(("target_length", "candidate_length"), [(1, 1), (2, 9), (9, 2), (1, 6)])
def test_target_and_candidate_segments_may_differ_in_length(target_length, candidate_length):
    head = random_head(normalise_values=True)
    target, candidate = random_segments(2, target_length, seed=3), random_segments(4, candidate_length, seed=4)
    expected = oracle_of(head).scores(target.numpy(), candidate.numpy())
    np.testing.assert_allclose(head(target, candidate).detach().numpy(), expected, rtol=0, atol=1e-12)


def test_nothing_attends_to_the_padding_of_a_segment():
    head = random_head()
    target, candidate = random_segments(2, 5, seed=5), random_segments(3, 4, seed=6)
    target[0, 3:], candidate[0, 1:], candidate[2, 2:] = target[0, 2], candidate[0, 0], candidate[2, 1]
    compared = head.compare(target, candidate, torch.tensor([3, 5]), torch.tensor([1, 4, 2]))
    expected = oracle_of(head).scores(target.numpy(), candidate.numpy())
    np.testing.assert_allclose(compared.logits.sigmoid().detach().numpy(), expected, rtol=0, atol=1e-12)
    assert (compared.target_attention[0, 3:] == 0).all()
    assert (compared.candidate_attention[:, 2, 2:] == 0).all()
    torch.testing.assert_close(compared.candidate_attention.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    assert (head(target, candidate) - compared.logits.sigmoid()).abs().max() > 1e-3


def test_a_pair_s_score_does_not_depend_on_its_batch():
    head = random_head()
    target, candidate = random_segments(3, 4, seed=7), random_segments(6, 5, seed=8)
    together = head(target, candidate)
    for n, k in itertools.product(range(3), range(6)):
        torch.testing.assert_close(head(target[n : n + 1], candidate[k : k + 1])[0, 0], together[n, k])


def test_float32_scores_are_within_1e_5_of_float64():
    head = random_head(spread=0.5)
    target, candidate = random_segments(4, 8, seed=9), random_segments(20, 8, seed=10)
    expected = oracle_of(head).scores(target.numpy(), candidate.numpy())
    scores = head.float()(target.float(), candidate.float()).detach()
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores.numpy(), expected, rtol=0, atol=1e-5)


def test_float16_frame_features_are_computed_in_the_network_s_precision():
    head = random_head(dtype=torch.float32)
    target, candidate = random_segments(2, 3, seed=11).half(), random_segments(2, 3, seed=12).half()
    torch.testing.assert_close(head(target, candidate), head(target.float(), candidate.float()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("normalisation", "negative_weight", "unit_encodings"),
    itertools.product(("sigmoid", "softmax"), (True, False), (True, False)),
)
def test_gradients_reach_features_and_every_weight_and_are_right(normalisation, negative_weight, unit_encodings):
    head = random_head(
        feature_width=4, key_width=3, value_width=3, spread=0.6, normalisation=normalisation,
        negative_weight=negative_weight, normalise_values=True, unit_encodings=unit_encodings,
    )  # fmt: skip
    parameters = dict(head.named_parameters())
    features = random_segments(2, 3, 4, seed=13).requires_grad_(), random_segments(2, 2, 4, seed=14).requires_grad_()

    def scores(target, candidate, *tensors):
        return torch.func.functional_call(head, dict(zip(parameters, tensors, strict=True)), (target, candidate))

    assert torch.autograd.gradcheck(scores, (*features, *parameters.values()))
    head(*features).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters.values())


@pytest.mark.parametrize("normalisation", ["sigmoid", "softmax"])
def test_a_larger_difference_never_raises_the_score_when_weights_are_kept_negative(normalisation):
    for seed in range(20):
        weight, _ = random_head(seed, spread=10.0, normalisation=normalisation, negative_weight=True).score_row()
        assert (weight < 0).all()
    free, _ = random_head(0, normalisation=normalisation).score_row()
    assert (free > 0).any()
    assert (free < 0).any()


def test_the_second_output_is_the_one_for_the_same_person():
    head = random_head()
    target = random_segments(1, 3)
    before = head(target, target)
    with torch.no_grad():
        head.classifier.bias[SAME] += 1
    assert head(target, target) > before
    softmax = random_head(normalisation="softmax")
    before = softmax(target, target)
    with torch.no_grad():
        softmax.classifier.bias[DIFFERENT] += 1
    assert softmax(target, target) < before
    assert (DIFFERENT, SAME) == (0, 1)


def test_the_score_row_of_both_normalisations_gives_the_score():
    for normalisation in ("sigmoid", "softmax"):
        head = random_head(normalisation=normalisation)
        target, candidate = random_segments(1, 3, seed=15), random_segments(1, 3, seed=16)
        compared = head.compare(target, candidate)
        sides = zip((compared.target_attention, compared.candidate_attention[0]), (target, candidate), strict=True)
        encodings = [head.encode(attention, head.values(side)) for attention, side in sides]
        weight, bias = head.score_row()
        logit = bias + (weight * (encodings[0] - encodings[1]) ** 2).sum()
        torch.testing.assert_close(logit.sigmoid(), head(target, candidate)[0, 0])


def test_training_can_raise_agreement_from_0_and_below_0_it_is_0():
    head = random_head(agreement=0.0)
    target, candidate = random_segments(2, 3, seed=18), random_segments(3, 4, seed=19)
    plain = head(target, candidate)
    plain.sum().backward()
    assert head.agreement.grad.abs() > 1e-6
    head.agreement.data.fill_(-1.0)
    assert torch.equal(head(target, candidate), plain)


def test_agreement_draws_attention_to_the_frames_that_show_the_target():
    head = random_head(agreement=50.0, negative_weight=True)
    target = random_segments(1, 1, seed=20)
    candidate = torch.cat([random_segments(1, 3, seed=21), target, random_segments(1, 2, seed=22)], dim=1)
    compared = head.compare(target, candidate)
    assert compared.candidate_attention[0, 0].argmax() == 3
    assert compared.logits > random_head(agreement=0.0, negative_weight=True).compare(target, candidate).logits


def test_attention_sums_to_one_over_the_frames():
    head = random_head()
    attention = head.attention(head.query_vectors(random_segments(3, 4))[:, None], head.keys(random_segments(5, 6, seed=17)))
    assert attention.shape == (3, 5, 6)
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, 5, dtype=torch.float64))


def test_frame_features_of_another_backbone_are_refused_with_both_widths():
    with pytest.raises(PipelineError, match=r"width 7, not 9"):
        random_head()(random_segments(1, 2, 9), random_segments(1, 2, 9))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("feature_width", 0),
        ("key_width", -1),
        ("value_width", 1.5),
        ("key_width", True),
        ("normalisation", "relu"),
        ("normalise_values", "yes"),
        ("negative_weight", 1),
        ("unit_encodings", None),
        ("slack", -0.5),
        ("slack", True),
        ("slack", float("nan")),
    ],
)
def test_sizes_and_switches_that_cannot_be_meant_are_refused_by_name(setting, value):
    with pytest.raises(UsageError, match=setting):
        CoattentionConfig(**{"feature_width": 8} | {setting: value})
