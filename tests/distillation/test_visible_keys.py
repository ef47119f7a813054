"""Keys taught by covering people: what a head's heat becomes, what it learns from, and the command."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from jobs.train_keys import main as train_keys
from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.coattention.head import load_head, read_description, save_head, shipped_head
from pipeline.coattention.network import Coattention, CoattentionConfig
from pipeline.distillation.people import Candidate, People
from pipeline.distillation.visible_keys import COPIES, OLD, kept, teach_keys, told_apart, with_judgement
from pipeline.errors import UsageError
from pipeline.rendering.encoding import write_video
from tests.conftest import save_toy_backbone

STRIPS = 16
DIM = 3 * STRIPS
pytestmark = pytest.mark.usefixtures("one_thread")


class Colours:
    """A backbone: the mean colours of STRIPS strips of a frame."""

    spec = SimpleNamespace(dim=DIM)

    def embed(self, frames: np.ndarray) -> np.ndarray:
        strips = frames.reshape(len(frames), STRIPS, -1, frames.shape[2], 3).mean(axis=(2, 3)).reshape(len(frames), -1) - 127.5
        return (strips / np.linalg.norm(strips, axis=1, keepdims=True)).astype(np.float16)


def head(seed: int = 0) -> Coattention:
    torch.manual_seed(seed)
    return Coattention(CoattentionConfig(DIM, 6, 8)).eval()


def people(count: int, labels: bool = True) -> People:
    """People of six frames each, who have more in common with each other than with what covers them."""
    random = np.random.default_rng(1)
    common, frames = random.integers(60, 196, (STRIPS, 1, 3)), []
    for _ in range(count):
        own = common + random.integers(-50, 51, (STRIPS, 1, 3))
        looks = np.repeat(own, 256 // STRIPS, axis=0) + np.zeros((256, 128, 3), int)
        frames += [np.clip(looks + random.integers(-8, 9, looks.shape), 0, 255).astype(np.uint8) for _ in range(6)]
    candidates = [Candidate(f"v{number}", f"p{number}" if labels else None, 0, 6) for number in range(count)]
    return People(candidates, chunks=[np.stack(frames)])


def test_every_heat_under_the_query_gains_the_judgement() -> None:
    old, random = head().double(), np.random.default_rng(0)
    weight, query = random.normal(size=DIM), random.normal(size=6)
    taught = with_judgement(old, weight, 0.7, query)
    features = torch.from_numpy(random.normal(size=(20, DIM)))
    with torch.no_grad():
        before, after = (one.keys(features).numpy() @ query for one in (old, taught))
        judged = old.normalised(features).numpy() @ weight + 0.7
    np.testing.assert_allclose(after, OLD * before + judged, rtol=1e-10)
    assert all(torch.equal(old.state_dict()[name], tensor) for name, tensor in taught.state_dict().items() if "key" not in name)


def test_what_is_kept_is_the_cosine_with_the_uncovered_frame_between_its_bounds() -> None:
    angles = np.arccos([1.0, 0.9, 0.675, 0.2])
    features = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)[None]
    np.testing.assert_allclose(kept(features), [[1, 1, 0.5, 0]], atol=1e-5)


def test_what_it_learns_holds_for_people_held_out_and_is_the_same_again() -> None:
    some = people(40)
    taught = teach_keys(head(), some, Colours(), 0.25)  # type: ignore[arg-type] # all that is asked of a backbone
    assert taught.before is not None and taught.after is not None
    assert taught.after > max(0.75, taught.before)  # covered by another person they cannot be told apart
    learning, _ = some.split(0.25)
    assert taught.frames == 6 * len(learning)
    again = teach_keys(head(), some, Colours(), 0.25)  # type: ignore[arg-type]
    assert all(torch.equal(again.head.state_dict()[name], tensor) for name, tensor in taught.head.state_dict().items())


def test_a_head_that_knows_nothing_tells_half_of_the_pairs_apart() -> None:
    blind = head()
    with torch.no_grad():
        blind.key.weight.zero_()
    features = np.random.default_rng(0).normal(size=(30, COPIES, DIM)).astype(np.float32)
    assert told_apart(blind, features) == 0.0  # all are equal, none is better
    assert 0.3 < told_apart(head(), features) < 0.7


def test_without_labels_nothing_is_held_out_and_one_candidate_is_too_few() -> None:
    taught = teach_keys(head(), people(3, labels=False), Colours())  # type: ignore[arg-type]
    assert taught.before is None and taught.after is None
    with pytest.raises(UsageError, match="at least two candidates"):
        teach_keys(head(), people(1), Colours())  # type: ignore[arg-type]


def test_a_head_that_has_no_query_is_refused() -> None:
    uniform = head()
    with torch.no_grad():
        uniform.query.weight.zero_()
        uniform.query.bias.zero_()
    with pytest.raises(UsageError, match="train it first"):
        teach_keys(uniform, people(4, labels=False), Colours())  # type: ignore[arg-type]


def test_the_command_writes_a_head_that_says_how_it_was_taught(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    rows = ["uri,video_id,person_id"]
    for number in range(4):
        looks = np.kron(random.integers(0, 256, (8, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        write_video(tmp_path / f"v{number}.mp4", np.stack([looks] * 8), 10, 20)
        rows.append(f"v{number}.mp4,v{number},p{number}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    flags = ["--data", str(tmp_path / "manifest.csv"), "--out", str(tmp_path / "keys"), "--held-out-share", "0"]
    app = typer.Typer()
    app.command()(train_keys)
    result = CliRunner().invoke(app, flags, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert f"head: {tmp_path / 'keys'}, learned from 16 frames of 4 candidates" in result.output
    identity = find_backbone(DEFAULT).identity
    shipped = shipped_head(identity)
    assert shipped is not None
    old, new, described = (
        load_head(shipped, identity),
        load_head(tmp_path / "keys", identity),
        read_description(tmp_path / "keys"),
    )
    assert described.info["keys"]["frames"] == 16 and described.info["data"] == read_description(shipped).info["data"]
    changed = {name for name, tensor in new.state_dict().items() if not torch.equal(tensor, old.state_dict()[name])}
    assert changed == {"key.weight", "key.bias"}


def test_frames_are_as_large_as_the_backbone_takes_them(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in/a.mp4", np.full((4, 80, 40, 3), 200, np.uint8), 10, 20)
    write_video(tmp_path / "in/b.mp4", np.full((4, 80, 40, 3), (90, 30, 60), np.uint8), 10, 20)
    spec = find_backbone(str(save_toy_backbone(tmp_path / "toy.onnx")))  # 8 x 4 pixels
    torch.manual_seed(0)
    save_head(Coattention(CoattentionConfig(spec.dim, 2, 2)), tmp_path / "head", {}, spec.identity)
    app = typer.Typer()
    app.command()(train_keys)
    flags = ["--backbone", str(tmp_path / "toy.onnx"), "--head", str(tmp_path / "head"), "--data", str(tmp_path / "in")]
    result = CliRunner().invoke(app, [*flags, "--out", str(tmp_path / "keys")], catch_exceptions=False)
    assert result.exit_code == 0 and "of 2 candidates" in result.output
    assert load_head(tmp_path / "keys", spec.identity).config.feature_width == spec.dim
