import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline.backbone.shipped import WEIGHTS
from pipeline.coattention.head import head_hash, load_head, read_description, save_head, untrained_head
from pipeline.coattention.network import Coattention, CoattentionConfig
from pipeline.errors import PipelineError, UsageError


@pytest.fixture
def head():
    torch.manual_seed(3)
    return Coattention(CoattentionConfig(6, 4, 5, normalise_values=True, normalisation="softmax")).eval()


@pytest.fixture
def saved(head, tmp_path):
    save_head(head, tmp_path / "head", {"rank1": 0.5}, backbone_hash="abc")
    return tmp_path / "head"


def sample(count=400, width=24, seed=0):
    """Frame features with a mean far from 0 and directions of unequal strength, as a backbone gives them."""
    generator = np.random.default_rng(seed)
    return (3 + generator.normal(size=(count, width)) * np.linspace(2, 0.2, width)).astype(np.float32)


def rewrite(folder, **entries):
    path = folder / "model.json"
    document = json.loads(path.read_text()) | entries
    path.write_text(json.dumps(document))


def replace_tensors(folder, change):
    """Other tensors under a checksum that matches them."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    payload = safetensors.torch.save(tensors)
    (folder / "model.safetensors").write_bytes(payload)
    rewrite(folder, sha256=hashlib.sha256(payload).hexdigest())


def test_a_saved_head_comes_back_with_the_same_scores_and_description(head, saved):
    again = load_head(saved, backbone_hash="abc")
    features = torch.randn(3, 4, 6)
    assert torch.equal(again(features, features), head(features, features))
    assert again.config == head.config
    assert not again.training
    assert read_description(saved).info == {"rank1": 0.5}
    assert read_description(saved).backbone_hash == "abc"
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "model.safetensors"]


def test_a_loaded_head_can_be_trained_further(saved):
    head = load_head(saved)
    head(torch.randn(2, 3, 6), torch.randn(2, 3, 6)).sum().backward()
    assert head.lstm.weight_ih_l0.grad.any()


def test_loading_draws_no_random_numbers(saved):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_head(saved)
    untrained_head(sample())
    assert torch.equal(torch.rand(3), expected)


def test_a_head_trained_in_float64_is_stored_and_loaded_as_float32(head, tmp_path):
    save_head(head.double(), tmp_path, {})
    assert {tensor.dtype for tensor in load_head(tmp_path).state_dict().values()} == {torch.float32}


def test_the_hash_follows_the_content_and_not_the_file(head, saved, tmp_path):
    save_head(head, tmp_path / "other", {"words": "other"}, backbone_hash="def")
    assert head_hash(load_head(saved)) == head_hash(load_head(tmp_path / "other")) == head_hash(head)
    changed = load_head(saved)
    with torch.no_grad():
        changed.query.bias[0] += 1
    assert head_hash(changed) != head_hash(head)
    sigmoid = Coattention(CoattentionConfig(6, 4, 5, normalise_values=True))
    sigmoid.load_state_dict(head.state_dict())
    assert head_hash(sigmoid) != head_hash(head)


@pytest.mark.parametrize("name", ["osnet_x0_25_distilled", "osnet_x0_25_msmt17"])
def test_shipped_heads_keep_the_hash_by_which_indexes_and_calibrations_name_them(name):
    head = load_head(WEIGHTS / "heads" / name)
    assert (float(head.agreement.detach()), head.config.unit_encodings) == (0.5, False)
    assert head_hash(head) == json.loads((WEIGHTS / "heads" / name / "calibration.json").read_text())["head"]


def test_agreement_and_unit_encodings_belong_to_the_hash_where_they_are_used(head):
    unit = Coattention(replace(head.config, unit_encodings=True))
    unit.load_state_dict(head.state_dict())
    agreeing = Coattention(head.config)
    agreeing.load_state_dict(head.state_dict() | {"agreement": torch.tensor(0.5)})
    assert len({head_hash(head), head_hash(unit), head_hash(agreeing)}) == 3


def test_a_head_of_format_1_has_no_agreement_and_compares_encodings_as_they_are(head, saved):
    replace_tensors(saved, lambda tensors: tensors.pop("agreement"))
    sizes = json.loads((saved / "model.json").read_text())["sizes"]
    del sizes["unit_encodings"]
    rewrite(saved, format="co-attention head 1", sizes=sizes)
    again = load_head(saved)
    assert (again.agreement, again.config.unit_encodings) == (0, False)
    assert head_hash(again) == head_hash(head)


def refusal(folder, **arguments):
    with pytest.raises(PipelineError) as caught:
        load_head(folder, **arguments)
    sentence = str(caught.value)
    assert str(folder) in sentence
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    assert f"{name} is missing" in refusal(saved)


def test_a_missing_folder_is_named(tmp_path):
    assert "not a folder" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.PKL"])
def test_pickled_weights_are_refused_unopened(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    assert "never opened" in refusal(tmp_path / name)


def test_a_folder_with_pickled_weights_instead_of_tensors_says_so(saved):
    (saved / "model.safetensors").unlink()
    (saved / "model.pt").write_bytes(b"anything")
    assert "model.pt" in refusal(saved)


@pytest.mark.parametrize("text", ["{", "", "\xff\x00"])
def test_damaged_json_is_refused(saved, text):
    (saved / "model.json").write_bytes(text.encode("latin-1"))
    assert "model.json is not JSON" in refusal(saved)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "something else"}'])
def test_json_that_describes_something_else_is_refused(saved, text):
    (saved / "model.json").write_text(text)
    assert "does not describe a co-attention head" in refusal(saved)


@pytest.mark.parametrize("entry", ["sizes", "backbone_hash", "info", "sha256"])
def test_an_entry_of_another_kind_is_named(saved, entry):
    rewrite(saved, **{entry: 7})
    assert f"no usable entry {entry}" in refusal(saved)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda sizes: sizes.pop("key_width"), "key_width"),
        (lambda sizes: sizes.update(heads=4), "heads"),
        (lambda sizes: sizes.update(value_width=-5), "value_width"),
        (lambda sizes: sizes.update(feature_width="6"), "feature_width"),
        (lambda sizes: sizes.update(normalisation="none"), "normalisation"),
    ],
)
def test_wrong_sizes_are_named(saved, change, word):
    sizes = json.loads((saved / "model.json").read_text())["sizes"]
    change(sizes)
    rewrite(saved, sizes=sizes)
    sentence = refusal(saved)
    assert "wrong sizes" in sentence
    assert word in sentence


def test_tensors_of_another_width_than_the_sizes_say_are_refused(saved):
    sizes = json.loads((saved / "model.json").read_text())["sizes"]
    rewrite(saved, sizes=sizes | {"value_width": 9})
    sentence = refusal(saved)
    assert "does not fit the sizes" in sentence
    assert "classifier.weight is [2, 5], not [2, 9]" in sentence


def test_one_flipped_bit_fails_the_checksum(saved):
    path = saved / "model.safetensors"
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)
    assert "checksum" in refusal(saved)


def test_a_file_that_is_no_safetensors_is_refused_even_under_its_own_checksum(saved):
    (saved / "model.safetensors").write_bytes(b"not tensors")
    rewrite(saved, sha256=hashlib.sha256(b"not tensors").hexdigest())
    assert "not a safetensors file" in refusal(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("key.bias"), "key.bias missing or unknown"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "extra missing or unknown"),
        (lambda tensors: tensors.update({"key.bias": tensors["key.bias"].half()}), "key.bias as torch.float16"),
        (lambda tensors: tensors["key.bias"].fill_(float("nan")), "key.bias that are not finite"),
    ],
)
def test_tensors_that_are_not_this_network_s_are_named(saved, change, words):
    replace_tensors(saved, change)
    assert words in refusal(saved)


def test_a_head_of_another_backbone_is_refused(saved):
    sentence = refusal(saved, backbone_hash="def")
    assert "abc" in sentence
    assert "def" in sentence


# The head that needs no training.


def rotation(head):
    return head.key.weight.detach().double().numpy()


def unit_features(head, features):
    return head.normalised(torch.from_numpy(features)).double().numpy()


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_keys_and_values_are_one_rotation_onto_the_sample_s_principal_directions(kind):
    features = sample().astype(kind)
    head = untrained_head(features, 10, 7)
    rows = rotation(head)
    np.testing.assert_allclose(rows @ rows.T, np.eye(10), atol=1e-6)
    np.testing.assert_array_equal(head.value.weight.detach().numpy(), head.key.weight.detach().numpy()[:7])
    centred = features.astype(np.float64) - features.astype(np.float64).mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs((rows * directions[:10]).sum(axis=1)), 1, atol=1e-6)
    assert (rows[np.arange(10), np.abs(rows).argmax(axis=1)] > 0).all()


def test_the_mean_of_a_large_float16_sample_does_not_stall():
    features = np.full((70_000, 4), 0.1, dtype=np.float16)  # a float16 sum would stop growing long before the end
    np.testing.assert_allclose(untrained_head(features).feature_mean, features[0], rtol=1e-6)


@pytest.mark.parametrize("length", [1, 4, 8, 30])
def test_the_lstm_accumulates_the_mean_key_within_one_per_cent(length):
    temperature = 0.25
    head = untrained_head(sample(), 16, 16, segment_length=length, temperature=temperature)
    features = sample(20 * length, seed=5).reshape(20, length, -1)
    means = np.array([(unit_features(head, segment) @ rotation(head).T).mean(axis=0) for segment in features])
    with torch.no_grad():
        query_vectors = head.query_vectors(torch.from_numpy(features)).double().numpy()
    error = np.linalg.norm(query_vectors * temperature - means, axis=1) / np.linalg.norm(means, axis=1)
    assert error.max() < 0.01


def test_the_lstm_accumulates_within_one_per_cent_even_when_all_frames_point_along_one_key():
    head = untrained_head(sample(), 16, 16)
    frame = head.feature_mean + 5 * head.key.weight[0].detach()  # the largest candidate that tanh can meet
    query_vector = head.query_vectors(frame.expand(1, 8, -1)).detach().numpy()[0] / 8
    np.testing.assert_allclose(query_vector, np.eye(16)[0], atol=0.01)


@pytest.mark.parametrize("length", [2, 16])
def test_attention_sharpens_in_proportion_to_a_segment_s_length(length):
    head = untrained_head(sample(), segment_length=8)
    frame = torch.from_numpy(sample(1, seed=6))
    usual, other = (head.query_vectors(frame.expand(1, count, -1)).detach() for count in (8, length))
    torch.testing.assert_close(other, usual * length / 8, rtol=0.01, atol=1e-3)


def test_attention_follows_the_mean_target_key_at_the_temperature():
    head = untrained_head(sample(), 16, 16, temperature=0.5)
    target, candidate = sample(8, seed=7)[None], sample(8, seed=8)
    keys = unit_features(head, candidate) @ rotation(head).T
    mean = (unit_features(head, target[0]) @ rotation(head).T).mean(axis=0)
    expected = np.exp(keys @ mean / 0.5) / np.exp(keys @ mean / 0.5).sum()
    with torch.no_grad():
        attention = head.attention(head.query_vectors(torch.from_numpy(target)), head.keys(torch.from_numpy(candidate))[None])
    np.testing.assert_allclose(attention[0], expected, rtol=0.01)


@pytest.mark.parametrize("temperature", [None, float("inf")])
def test_without_a_temperature_attention_is_uniform(temperature):
    head = untrained_head(sample(), temperature=temperature)
    features = torch.from_numpy(sample(16, seed=9)).reshape(2, 8, -1)
    attention = head.attention(head.query_vectors(features), head.keys(features)).detach()
    np.testing.assert_allclose(attention, 1 / 8, rtol=1e-6)


def test_scores_fall_with_the_distance_and_are_a_half_at_cosine_one_half():
    head = untrained_head(sample(width=12), 12, 12)
    axes = torch.eye(12)[:2]
    angles = torch.linspace(0, torch.pi, 13)  # the fifth is 60 degrees
    circle = angles.cos()[:, None] * axes[0] + angles.sin()[:, None] * axes[1] + head.feature_mean
    scores = head(circle[:1, None], circle[:, None])[0].detach().numpy()
    assert (np.diff(scores) < 0).all()
    assert scores[4] == pytest.approx(0.5, abs=1e-5)
    distances = 2 - 2 * angles.cos().numpy()
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(4 * distances - 4)), atol=1e-5)


def test_the_same_sample_gives_the_same_head():
    assert head_hash(untrained_head(sample())) == head_hash(untrained_head(sample()))
    assert head_hash(untrained_head(sample())) != head_hash(untrained_head(sample(seed=1)))


@pytest.mark.parametrize(
    "features", [sample(1), sample(3), np.repeat(sample(2), 5, axis=0), np.zeros((4, 24), np.float32), sample(400, 3)]
)
def test_a_sample_with_few_directions_still_gives_orthonormal_rows_and_finite_scores(features):
    head = untrained_head(features)
    width = features.shape[1]
    assert (head.config.key_width, head.config.value_width) == (width, width)
    rows = rotation(head)
    np.testing.assert_allclose(rows @ rows.T, np.eye(width), atol=1e-6)
    segments = torch.from_numpy(np.vstack([features[:1], sample(1, width, seed=2)]))[:, None]
    assert head(segments, segments).isfinite().all()


def test_few_directions_come_first_and_are_kept():
    features = sample(3)
    rows = rotation(untrained_head(features))
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(centred @ rows[:2].T @ rows[:2], centred, atol=1e-5)


@pytest.mark.parametrize("agreement", [0.0, 0.3])
def test_an_untrained_head_survives_its_file(tmp_path, agreement):
    head = untrained_head(sample(), agreement=agreement)
    assert head.agreement.item() == pytest.approx(agreement)
    save_head(head, tmp_path, {"trained": False})
    assert head_hash(load_head(tmp_path)) == head_hash(head)


def test_training_from_the_untrained_head_keeps_the_weights_negative():
    head = untrained_head(sample())
    with torch.no_grad():
        head.classifier.weight += 50 * torch.randn(head.classifier.weight.shape)
    assert (head.score_row()[0] <= 0).all()


@pytest.mark.parametrize("features", [np.zeros((0, 8)), np.zeros(8), np.full((2, 8), np.nan), np.full((2, 8), np.inf)])
def test_a_sample_that_is_empty_or_not_finite_is_refused(features):
    with pytest.raises(PipelineError, match="untrained head needs"):
        untrained_head(features)


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"temperature": -1.0}, {"segment_length": 0}, {"key_width": 0}, {"agreement": -0.1}]
)
def test_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(UsageError):
        untrained_head(sample(), **settings)
