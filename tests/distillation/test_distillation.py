"""Distillation: hints by a teacher's graph, losses, the pool, going on after a kill, the exported backbone, the command."""

import contextlib
import hashlib
import json
import shutil
import warnings
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import jobs.distil
from benchmarks.boxes_from_detector import Tracks, overlap
from benchmarks.boxes_from_detector import main as boxes_from_detector
from pipeline.backbone.export import export_backbone, largest_difference, scaled_features
from pipeline.backbone.osnet import OSNet, OSNetConfig
from pipeline.backbone.runtime import load_backbone
from pipeline.backbone.spec import find_backbone, normalise_pixels
from pipeline.catalog.inputs import read_catalog
from pipeline.decoding.boxes import read_boxes
from pipeline.decoding.sampling import Sampling
from pipeline.distillation.checkpoint import Checkpoints, claim
from pipeline.distillation.frame_augmentation import augment_frame
from pipeline.distillation.hints import channel_scales, divided, part_losses, whole_losses
from pipeline.distillation.loop import Distillation, DistillationSettings, HeldOut, hints_phase, run_phases, whole_phase
from pipeline.distillation.people import EvenlySpaced, gather_people
from pipeline.distillation.pool import build_pool, fill_rows
from pipeline.distillation.teacher import FEATURE, HintTeacher, find_hints
from pipeline.errors import PipelineError, UsageError
from pipeline.training.features import is_held_out
from tests.backbone.test_osnet import lively
from tests.conftest import SHARED

OSNET = SHARED / "models/osnet_x0_25_msmt17/osnet_x0_25_msmt17.onnx"
TEACHER = OSNetConfig((8, 16, 24, 32), 40)
SIDECAR = {
    "height": 256,
    "width": 128,
    "channels": "RGB",
    "scale": 255,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
SMALL = DistillationSettings((hints_phase(0.1, batch=4), whole_phase(0.1, batch=4)), note_every=2.0)
IMAGES = Sampling(rate=2.0)


pytestmark = pytest.mark.usefixtures("one_thread")


def save_teacher(network, path):
    """A network of one vector as the published export is: only the number of frames is free, and there is no normalisation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.parts,
            (torch.zeros(2, 3, 256, 128),),
            str(path),
            dynamo=False,
            input_names=["images"],
            output_names=["output"],
            dynamic_axes={"images": {0: "batch"}, "output": {0: "batch"}},
            opset_version=17,
        )
    path.with_suffix(".json").write_text(json.dumps({**SIDECAR, "dim": network.config.features}))
    return path


@pytest.fixture(scope="module")
def network():
    return lively(TEACHER)


@pytest.fixture(scope="module")
def teacher_path(network, tmp_path_factory):
    return save_teacher(network, tmp_path_factory.mktemp("teacher") / "tiny.onnx")


@pytest.fixture(scope="module")
def teacher(teacher_path):
    return HintTeacher(teacher_path, threads=1)


def pictures(count, seed=0):
    """Smooth pictures: uint8 [count, 256, 128, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 8, 4, 3), np.uint8)
    return np.stack([cv2.resize(image, (128, 256), interpolation=cv2.INTER_CUBIC) for image in coarse])


@pytest.fixture(scope="module")
def pool():
    return pictures(12)


class Ticking:
    """A clock on which every look takes a second."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


# Hints


def test_every_hint_is_what_the_module_of_that_name_makes(network, teacher):
    pixels = torch.randn(
        2, 3, 64, 32, generator=torch.Generator().manual_seed(0)
    )  # another size than the teacher was exported for
    made = {}

    def note(name):
        def hook(module, inputs, output):
            made.setdefault(name, output.clone())  # and no value: what a hook returns takes the output's place

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in network.parts.named_modules()]
    with torch.inference_mode():
        network.parts(pixels)
    for hook in hooks:
        hook.remove()
    maps = teacher.maps(pixels.numpy())
    assert len(maps) == 11 + 6 * 11  # parts; in each of six blocks, one reduction and 1 + 2 + 3 + 4 layers
    assert np.mean([np.std(values) > 1e-4 for values in maps.values()]) > 0.9  # a few streams of so small a network are dead
    for name, values in maps.items():
        np.testing.assert_allclose(values, made[name].numpy(), atol=1e-4, err_msg=name)


@pytest.mark.shared
@pytest.mark.skipif(not OSNET.exists(), reason="../shared/models/osnet_x0_25_msmt17 is not there")
def test_hints_are_found_in_the_published_network():
    hints = find_hints(onnx.load(OSNET))
    assert hints["stem"] == "/maxpool/MaxPool_output_0" and hints["down2"] == "/conv3/conv3.2/conv3.2.1/AveragePool_output_0"
    assert hints["stage3b"] == "/conv4/conv4.1/Relu_output_0" and hints["last"] == "/conv5/relu/Relu_output_0"
    assert hints["stage2a.streams.0.0"] == "/conv3/conv3.0/conv2a/relu/Relu_output_0"
    assert hints["stage2a.streams.3.1"] == "/conv3/conv3.0/conv2d/conv2d.1/relu/Relu_output_0"
    assert hints["stage1b.reduce"] == "/conv2/conv2.1/conv1/relu/Relu_output_0" and hints[FEATURE] == "output"
    assert HintTeacher(OSNET).student_sizes() == OSNetConfig()


def test_a_network_of_another_kind_cannot_give_hints(toy_backbone, tmp_path):
    with pytest.raises(UsageError, match="not that of an OSNet"):
        HintTeacher(toy_backbone)
    shutil.copy(toy_backbone.with_suffix(".json"), tmp_path / "broken.json")
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(PipelineError, match="is not an ONNX network"):
        HintTeacher(tmp_path / "broken.onnx")


def test_a_teacher_has_the_weights_beside_it(teacher, teacher_path, tmp_path, monkeypatch):
    """In the current directory lies a file of their name, with zeros."""
    path, elsewhere = tmp_path / "there" / "teacher.onnx", tmp_path / "here"
    path.parent.mkdir()
    elsewhere.mkdir()
    onnx.save_model(onnx.load(teacher_path), path, save_as_external_data=True, location="weights", size_threshold=0)
    shutil.copy(teacher_path.with_suffix(".json"), path.with_suffix(".json"))
    (elsewhere / "weights").write_bytes(bytes((path.parent / "weights").stat().st_size))
    monkeypatch.chdir(elsewhere)
    pixels = np.random.default_rng(0).normal(size=(2, 3, 64, 32)).astype(np.float32)
    expected, found = teacher.maps(pixels)["stem"], HintTeacher(path, threads=1).maps(pixels)["stem"]
    assert np.array_equal(found, expected) and expected.any()


def as_tensors(maps):
    return {name: torch.from_numpy(values) for name, values in maps.items()}


def test_an_exact_copy_has_nothing_to_learn_and_a_changed_layer_is_blamed_alone(network, teacher):
    copy = OSNet(TEACHER).eval()
    copy.load_state_dict(network.state_dict())
    pixels = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    hints = as_tensors(teacher.maps(pixels.numpy()))
    with torch.no_grad():
        for losses in (part_losses(copy, pixels, hints), whole_losses(copy, pixels, hints)):
            assert all(abs(value.item()) < 1e-6 for value in losses.values())
        copy.parts.stage2a.streams[1][0][0].weight *= 1.5
        parts, whole = part_losses(copy, pixels, hints), whole_losses(copy, pixels, hints)
    assert {name for name, value in parts.items() if value > 1e-6} == {"stage2a.inside"}
    after = set(list(dict(network.parts.named_children()))[4:])
    blamed = {name for name, value in whole.items() if value > 1e-10 and "." not in name}
    assert {"stage2a", "stage2b", "down2", "stage3a"} <= blamed <= after


def test_scales_are_root_mean_squares_by_channel_and_added_streams_share_theirs(teacher):
    maps = teacher.maps(np.random.default_rng(0).normal(size=(3, 3, 64, 32)).astype(np.float32))
    scales = channel_scales(maps)
    for name in ("stem", "stage1a.streams.3.0", FEATURE):
        values = np.moveaxis(maps[name].astype(np.float64), 1, 0).reshape(maps[name].shape[1], -1)
        size = np.array([np.sqrt(np.mean(channel**2)) for channel in values])
        np.testing.assert_allclose(scales[name].numpy(), size + size.mean() / 10, rtol=1e-5)
    for other in ("1.1", "2.2", "3.3"):
        assert torch.equal(scales["stage2b.streams.0.0"], scales[f"stage2b.streams.{other}"])
    assert all((scale > 0).all() for scale in scales.values())


def rescaled(network, scales):
    """A copy that computes the divided maps: every layer takes its input's scale back and puts its own on."""
    copied = deepcopy(network)

    def carry(weights, normalisation, scale_in, scale_out):
        weights.mul_(scale_in.view(1, -1, *[1] * (weights.ndim - 2)))
        if normalisation is not None:
            normalisation.weight.div_(scale_out)
            normalisation.bias.div_(scale_out)

    before = torch.ones(3)
    with torch.no_grad():
        for name, part in copied.parts.named_children():
            after = scales[name]
            if name.startswith("stage"):
                carry(part.reduce[0].weight, part.reduce[1], before, scales[f"{name}.reduce"])
                for k, stream in enumerate(part.streams):
                    seen = scales[f"{name}.reduce"]
                    for j, layer in enumerate(stream):
                        carry(layer[0].weight, layer[2], seen, seen := scales[f"{name}.streams.{k}.{j}"])
                carry(part.gate[0].weight, None, seen, seen)  # all streams end on one scale
                carry(part.expand[0].weight, part.expand[1], seen, after)
                if not isinstance(part.shortcut, nn.Identity):
                    carry(part.shortcut[0].weight, part.shortcut[1], before, after)
            elif name == FEATURE:
                carry(part[2].weight, part[3], before, after)
            else:
                convolution = part if name == "last" else part[0]
                carry(convolution[0].weight, convolution[1], before, after)
            before = after
    return copied


def test_the_divided_maps_are_those_of_an_equally_good_network(network, teacher):
    pixels = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    maps = teacher.maps(pixels.numpy())
    scales = {name: scale * torch.linspace(0.7, 1.4, len(scale)) for name, scale in channel_scales(maps).items()}
    hints = divided(maps, scales, torch.device("cpu"))
    with torch.no_grad():
        good, unscaled = part_losses(rescaled(network, scales), pixels, hints), part_losses(network, pixels, hints)
    assert all(abs(value.item()) < 1e-6 for value in good.values()) and sum(unscaled.values()) > 1


# Learning


def test_a_few_steps_of_either_phase_lower_its_losses(teacher, pool):
    """Means of four steps, since those of one depend on what it was shown, and on the processor's last bits."""
    for number in (0, 1):
        phase = replace(SMALL.phases[number], warm_up=1, batch=12, minutes=1.0, learning_rate=4e-3)
        work = Distillation(teacher, pool, replace(SMALL, phases=(phase,)))
        losses = [work.learn() for _ in range(16)]
        assert all(np.isfinite(list(step.values())).all() for step in losses)
        for loss in (lambda step: step["feature.cosine"], lambda step: sum(step.values())):
            assert np.mean([loss(step) for step in losses[-4:]]) < np.mean([loss(step) for step in losses[:4]])


def test_a_normalisation_keeps_its_statistics_once_it_has_seen_enough_of_them(teacher, pool, monkeypatch):
    monkeypatch.setattr("pipeline.distillation.loop.SETTLED", 2)
    work = Distillation(teacher, pool, SMALL)
    normalisation = work.student.parts.down1[0][1]
    means = []
    for number in (0, 1):
        work.number = number
        work.begin_phase()
        for _ in range(3):
            work.learn()
            means.append(normalisation.running_mean.clone())
    assert [torch.equal(one, two) for one, two in pairwise(means)] == [False, True, True, True, True]


def state_of(work):
    return {**work.student.state_dict(), **{f"scale.{name}": tensor for name, tensor in work.scales.items()}}


def test_a_distillation_that_was_killed_ends_as_if_nothing_had_been(teacher, pool, tmp_path):
    held_out = HeldOut(pool[:2], teacher.maps(normalise_pixels(pool[:2], teacher.spec))[FEATURE])

    def run(folder, notes):
        """To the end, or killed after that many checkpoints."""
        work, checkpoints, kept = Distillation(teacher, pool, SMALL), Checkpoints(folder), []
        checkpoints.restore(work)

        def keep(metrics):
            checkpoints.save(work, metrics)
            kept.append(metrics)
            if len(kept) == notes:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            run_phases(work, held_out, keep, Ticking())
        return work, checkpoints.history

    whole, history = run(tmp_path / "whole", 100)
    for _ in range(3):
        parts, parts_history = run(tmp_path / "parts", 2)
        assert len(list((tmp_path / "parts/run").iterdir())) == 2
    assert parts.finished and whole.finished and len(history) == 6
    assert [row["phase"] for row in history] == [1, 1, 1, 2, 2, 2] and [row["step"] for row in history] == [2, 4, 6] * 2
    assert parts_history == history and {"teacher", "images_per_second"} <= history[0].keys()
    assert (tmp_path / "parts/metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()
    theirs = state_of(whole)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in state_of(parts).items())


def test_a_damaged_checkpoint_is_named(teacher, pool, tmp_path):
    work = Distillation(teacher, pool, SMALL)
    Checkpoints(tmp_path).save(work, {"phase": 1})
    (file,) = (tmp_path / "run").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(PipelineError, match=rf"{file.name} is damaged: .*; delete it to go on from before"):
        Checkpoints(tmp_path).restore(work)


def test_losses_that_are_not_finite_are_said_and_not_learned_from(teacher, pool):
    work = Distillation(teacher, pool, SMALL)
    with torch.no_grad():
        work.student.parts.last[0].weight.fill_(float("inf"))
    before = {name: tensor.clone() for name, tensor in work.student.named_parameters()}
    with pytest.raises(PipelineError, match="step 0 of phase 1 diverged"):
        work.learn()
    assert work.step == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in work.student.named_parameters())


# People and pool


@pytest.fixture
def footage(tmp_path):
    """Six folders of 5 images of people a to f, of one colour each; one video cut short; and a folder with two tracks in it."""
    folder = tmp_path / "footage"
    lines = ["uri,video_id,person_id,boxes_uri"]
    for number, person in enumerate("abcdef"):
        (folder / person).mkdir(parents=True)
        for i in range(5):
            cv2.imwrite(str(folder / person / f"{i:03d}.png"), np.full((64, 32, 3), 40 * number, np.uint8))
        lines.append(f"{person},{person},{person},")
    (folder / "scene").mkdir()
    for i in range(5):
        scene = np.full((64, 96, 3), 200, np.uint8)
        scene[:, :48] = 100
        cv2.imwrite(str(folder / "scene" / f"{i:03d}.png"), scene)
    boxes = [f"{frame},{track},{x},4,24,48" for frame in range(1, 6) for track, x in ((3, 8), (7, 60))]
    (folder / "boxes.txt").write_text("\n".join(boxes) + "\n")
    (folder / "torn.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42")
    lines += ["scene,scene,,boxes.txt", "torn.mp4,torn,,"]
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def test_people_are_some_frames_of_each_candidate_tracks_included(footage, tmp_path):
    people = gather_people([read_catalog(footage)], tmp_path / "pool", IMAGES, 3)
    found = {c.candidate_id: (c.person_id, c.frames) for c in people.candidates}
    assert found == {**{p: (p, 3) for p in "abcdef"}, "scene#3": (None, 3), "scene#7": (None, 3)}
    assert sum(people.rejected.values()) == 1
    colours = {c.candidate_id: people.frame(place, 2) for place, c in enumerate(people.candidates)}
    for name, colour in {"a": 0, "f": 200, "scene#3": 100, "scene#7": 200}.items():
        assert colours[name].shape == (256, 128, 3) and (colours[name] == colour).all()


def test_gathering_goes_on_where_it_was_killed(footage, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.distillation.people.CHUNK", 3)
    catalogs = [read_catalog(footage)]
    decoded = []

    def killed(done, total, kept):
        decoded.append(done)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather_people(catalogs, tmp_path / "pool", IMAGES, 3, killed)
    (tmp_path / "pool" / "people-0003.npy").unlink()  # killed between the two files of a chunk
    people = gather_people(catalogs, tmp_path / "pool", IMAGES, 3, lambda done, total, kept: decoded.append(done))
    whole = gather_people(catalogs, tmp_path / "whole", IMAGES, 3)
    assert decoded == [1, 2, 3, 4, 4, 5, 6, 7, 8] and people.candidates == whole.candidates
    assert people.rejected == whole.rejected
    for place, candidate in enumerate(people.candidates):
        assert all(np.array_equal(people.frame(place, n), whole.frame(place, n)) for n in range(candidate.frames))


def test_nothing_to_learn_from_is_said_with_the_reasons(tmp_path):
    (tmp_path / "torn.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42")
    with pytest.raises(PipelineError, match=r"none of 1 videos gives a frame to learn from \(1 \w+\)"):
        gather_people([read_catalog(tmp_path / "torn.mp4")], tmp_path / "pool", IMAGES, 3)


@pytest.mark.parametrize("length", [0, 1, 4, 5, 9, 100, 1001])
def test_kept_frames_are_evenly_spaced_whatever_the_length(length):
    stream = EvenlySpaced(5)
    for item in range(length):
        stream.add(item)
    chosen = stream.chosen()
    gaps = np.diff(chosen)
    assert len(chosen) == min(5, length) and (length == 0 or chosen[0] == 0)
    assert length > 5 or chosen == list(range(length))
    assert length < 5 or (gaps.min() > 0 and chosen[-1] >= 0.8 * (length - 1) and gaps.max() <= 2 * gaps.min())


def test_a_person_is_held_out_wholly_and_for_ever():
    ids = [f"p{i}" for i in range(2000)]
    tenth = {i for i in ids if is_held_out(i, 0.1)}
    assert 150 < len(tenth) < 250 and tenth <= {i for i in ids if is_held_out(i, 0.2)}
    place = int(hashlib.sha256(b"p7").hexdigest()[:16], 16) / 2**64  # the same in every process
    assert is_held_out("p7", place + 1e-9) and not is_held_out("p7", place - 1e-9)
    assert not is_held_out(None, 0.999) and not any(is_held_out(i, 0) for i in ids)


def test_a_pool_follows_from_its_seed_and_leaves_held_out_people_out(footage, tmp_path, monkeypatch):
    people = gather_people([read_catalog(footage)], tmp_path / "pool", IMAGES, 3)
    places = {c.candidate_id: place for place, c in enumerate(people.candidates)}

    def build(name, seed, learning=(places["a"], places["f"]), count=6):
        (tmp_path / name).mkdir()
        return np.array(build_pool(people, learning, tmp_path / name, count, seed, [1.0], lambda done, total: None))

    one = build("one", 1)
    assert one.shape == (6, 256, 128, 3) and len({image.tobytes() for image in one}) == 6
    assert np.array_equal(one, build("again", 1)) and not np.array_equal(one, build("two", 2))
    assert np.array_equal(one[:4], build("short", 1, count=4))
    with pytest.raises(UsageError, match="no candidate to learn from"):
        build("none", 1, learning=())
    monkeypatch.setattr("pipeline.distillation.pool.augment_frame", lambda frame, other, random: frame)
    assert set(np.unique(build("plain", 1, count=40))) == {0, 200}  # the colours of a and f


def test_shares_of_the_pool_go_by_the_data_a_candidate_is_from(footage, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.distillation.pool.augment_frame", lambda frame, other, random: frame)
    catalogs = [read_catalog(footage.parent / "a"), read_catalog(footage)]
    catalogs[1] = replace(catalogs[1], table=catalogs[1].table.slice(1, 5))
    people = gather_people(catalogs, tmp_path / "pool", IMAGES, 3)
    places = range(len(people.candidates))
    pool = build_pool(people, places, tmp_path / "pool", 200, 0, [3.0, 1.0], lambda done, total: None)
    assert [c.data for c in people.candidates] == [0, 1, 1, 1, 1, 1]
    assert 0.65 < np.mean([image.max() == 0 for image in pool]) < 0.85


def test_rows_that_were_made_are_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.distillation.pool.BLOCK", 4)
    calls = []

    def rows(start, stop):
        calls.append((start, stop))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return np.arange(start, stop)[:, None]

    arguments = tmp_path / "rows.npy", (10, 1), np.dtype(np.int64), rows, lambda done, total: None
    with pytest.raises(KeyboardInterrupt):
        fill_rows(*arguments)
    assert fill_rows(*arguments)[:, 0].tolist() == list(range(10))
    assert calls == [(0, 4), (4, 8), (8, 10), (8, 10)]


def test_an_augmented_frame_is_another_one_and_leaves_its_source_alone():
    frame, other = pictures(2)
    kept, random = frame.copy(), np.random.default_rng(0)
    for _ in range(20):
        changed = augment_frame(frame, other, random)
        assert changed.shape == frame.shape and changed.dtype == np.uint8 and not np.array_equal(changed, frame)
    assert np.array_equal(frame, kept)


def test_a_folder_of_another_distillation_is_refused(tmp_path):
    claim(tmp_path, {"seed": 1, "teachers": ("a",)})
    claim(tmp_path, {"teachers": ("a",), "seed": 1})
    with pytest.raises(UsageError, match="was made with another seed; give another folder"):
        claim(tmp_path, {"seed": 2, "teachers": ("a",)})


# Export and command


def test_the_exported_backbone_gives_torchs_numbers_on_the_teachers_scale(network, teacher, tmp_path):
    student = lively(TEACHER, seed=3)
    scale = torch.linspace(0.2, 4, 40)
    merged = scaled_features(student, scale)
    frames = pictures(3)
    pixels = torch.from_numpy(normalise_pixels(frames, teacher.spec))
    with torch.inference_mode():
        plain = student.parts(pixels)
        torch.testing.assert_close(merged.parts(pixels), plain * scale)
    export_backbone(merged, teacher.spec, tmp_path / "student.onnx", {"name": "student"})
    backbone = load_backbone(find_backbone(str(tmp_path / "student.onnx")), device="cpu")
    expected = torch.nn.functional.normalize(plain * scale).numpy()
    np.testing.assert_allclose(backbone.embed(frames), expected, atol=2e-3)
    assert backbone.spec == replace(
        teacher.spec, name="student", path=backbone.spec.path, weights_sha256=backbone.spec.weights_sha256, dim=40
    )
    with torch.no_grad():
        merged.parts.last[0].weight += 0.1
    assert largest_difference(merged, (tmp_path / "student.onnx").read_bytes(), 64, 32) > 1e-3  # the check can fail


def test_an_export_that_gives_other_numbers_leaves_nothing(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.backbone.export.TOLERANCE", -1.0)
    with pytest.raises(PipelineError, match=r"the exported student.onnx differs by \S+ from the network"):
        export_backbone(lively(TEACHER), teacher.spec, tmp_path / "student.onnx", {})
    assert not list(tmp_path.glob("student*"))


def test_the_student_of_the_published_network_stays_below_10_mb(teacher, tmp_path):
    export_backbone(lively(OSNetConfig()), replace(teacher.spec, height=64, width=32), tmp_path / "student.onnx", {})
    assert (tmp_path / "student.onnx").stat().st_size < 10_000_000


def test_the_command_makes_a_backbone_and_run_again_goes_on_from_it(footage, teacher_path, tmp_path):
    out = tmp_path / "out"
    app = jobs.distil.typer.Typer()
    app.command()(jobs.distil.main)
    arguments = ["--data", str(footage), "--teacher", str(teacher_path), "--out", str(out)]
    arguments += ["--minutes-hints", "0.01", "--minutes-whole", "0.01", "--pool", "8", "--batch-hints", "4", "--batch-whole", "4"]
    arguments += ["--held-out-share", "0.4", "--frames", "2", "--threads", "1", "--name", "toy_student"]
    first = CliRunner().invoke(app, arguments, catch_exceptions=False)
    spec = find_backbone(str(out / "toy_student.onnx"))
    assert first.exit_code == 0 and spec.dim == 40 and spec.name == "toy_student" and (spec.height, spec.width) == (256, 128)
    held_out = sum(is_held_out(person, 0.4) for person in "abcdef")
    assert 0 < held_out < 6 and f"{8 - held_out} learned from, {held_out} held out" in first.output
    assert "held-out cosine with the teacher" in first.output
    assert "images/s" in first.output and "pool: 8 of 8" in first.output
    (out / "toy_student.onnx").unlink()
    again = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert again.exit_code == 0 and find_backbone(str(out / "toy_student.onnx")) == spec
    assert "images/s" not in again.output and "at the end    held-out cosine" in again.output
    with pytest.raises(UsageError, match="was made with another pool settings"):
        CliRunner().invoke(app, [*arguments, "--seed", "5"], catch_exceptions=False)
    with pytest.raises(UsageError, match="pool is memory-mapped"):
        CliRunner().invoke(app, [*arguments, "--out", "s3://bucket/out"], catch_exceptions=False)


# Footage without boxes


def test_boxes_are_linked_to_the_track_that_they_overlap_most():
    tracks = Tracks()
    left, right = np.array([10.0, 10, 50, 110]), np.array([200.0, 10, 240, 110])
    step = np.array([12.0, 0, 12, 0])
    assert tracks.link(0, np.stack([left, right])) == [1, 2]
    assert tracks.link(1, np.stack([right - step, left + step])) == [2, 1]
    assert tracks.link(4, np.stack([left + 2 * step])) == [1]  # two frames missed
    assert tracks.link(5, np.stack([left + 300])) == [3]
    assert tracks.link(10, np.stack([right - step])) == [4]  # out of sight for too long
    assert overlap(left, left + step) == pytest.approx(28 / 52) and overlap(left, right) == 0


def test_footage_of_a_detector_becomes_candidates(tmp_path, monkeypatch, capsys):
    for i in range(6):
        scene = np.zeros((120, 160, 3), np.uint8)
        scene[20:110, 10 + 6 * i : 50 + 6 * i] = (0, 0, 255)  # BGR
        cv2.imwrite(str(tmp_path / f"{i}.png"), scene)

    class RedPeople:
        """A detector: one box about what is red."""

        def input(self, number):
            return type("Port", (), {"shape": [1, 3, 60, 80]})

        def __call__(self, pixels):
            rows, columns = (pixels[0, 2] > 128).nonzero()
            edges = columns.min() / 80, rows.min() / 60, (columns.max() + 1) / 80, (rows.max() + 1) / 60
            return [np.array([[[[0, 1, 0.9, *edges], [0, 1, 0.3, 0, 0, 1, 1]]]], np.float32)]

    core = type("Core", (), {"compile_model": lambda self, path, device: RedPeople()})
    monkeypatch.setattr("benchmarks.boxes_from_detector._openvino", lambda: type("OpenVino", (), {"Core": core}))
    (tmp_path / "detector.xml").touch()
    boxes_from_detector(str(tmp_path), tmp_path / "detector.xml", tmp_path / "boxes.txt")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["tracks"] == 1
    (track,) = read_boxes((tmp_path / "boxes.txt").read_bytes()).items()
    assert track[0] == 1 and track[1].frames.tolist() == list(range(6))
    np.testing.assert_allclose(track[1].boxes, [[10 + 6 * i, 20, 40, 90] for i in range(6)], atol=0.1)
