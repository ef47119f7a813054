"""The training as a job: checkpoints, going on after a kill, metrics, the head it leaves, and Ray Train around it."""

import contextlib
import csv
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from pipeline.backbone.spec import DEFAULT
from pipeline.coattention.head import load_head, read_description
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.storage.location import resolve
from pipeline.training.checkpoint import RunFolder, newest_checkpoint
from pipeline.training.checkpoint_files import metrics_table
from pipeline.training.features import Source
from pipeline.training.initial_head import StartSettings
from pipeline.training.run import TrainingPlan, run_training
from pipeline.training.settings import TrainingSettings
from tests.conftest import add_videos, people_features, toy_spec

ROOT = Path(__file__).parents[2]
SMALL = TrainingSettings(people=4, tracklets=2, segment_length=4, batches=3, epochs=3)
FLAGS = ["--epochs", "3", "--batches", "3", "--people", "4", "--tracklets", "2", "--segment-length", "4"]
FLAGS += ["--key-width", "8", "--value-width", "8"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    opened = Gallery.open_or_create(tmp_path_factory.mktemp("data") / "gallery", GallerySettings(toy_spec(), 10.0, None))
    add_videos(opened, people_features(24, 4, 24, seed=1))
    return opened


def plan_of(gallery, out, **changes):
    sources = (Source(gallery.location.uri, "0"),)
    return TrainingPlan(sources, str(out), start=StartSettings(8, 8), settings=replace(SMALL, **changes))


def command(gallery, out, *flags):
    return [sys.executable, "-m", "jobs.train", "--data", gallery.location.uri, "--out", str(out), *FLAGS, *flags]


def run_job(gallery, out, *flags):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command(gallery, out, *flags), cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def epochs_in(out):
    with (out / "metrics.csv").open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def events_in(folder):
    """(tag, step) of every scalar in the event files, read by their published layout: length, crc, record, crc."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found += [(value.tag, event.step) for value in event.summary.value]
            at += 16 + length
    return found


class KilledError(Exception):
    pass


def test_a_training_that_stops_goes_on_as_if_it_had_not(gallery, tmp_path):
    undisturbed = run_training(plan_of(gallery, tmp_path / "whole"))

    def stop_after_first_epoch(metrics):
        if metrics["epoch"] == 1:
            raise KilledError

    with pytest.raises(KilledError):
        run_training(plan_of(gallery, tmp_path / "parts"), stop_after_first_epoch)
    seen = []
    resumed = run_training(plan_of(gallery, tmp_path / "parts"), seen.append)
    assert [metrics["epoch"] for metrics in seen] == [2, 3]
    for part in ("head", "neck"):
        found, expected = getattr(resumed, part).state_dict(), getattr(undisturbed, part).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert all(torch.equal(tensor, undisturbed.best_tensors[name]) for name, tensor in resumed.best_tensors.items())
    assert resumed.best_epoch == undisturbed.best_epoch
    assert epochs_in(tmp_path / "parts") == [0, 1, 2, 3]


def test_a_killed_command_run_again_leaves_the_head_of_an_undisturbed_one(gallery, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(gallery, tmp_path / "parts"), cwd=ROOT, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not (tmp_path / "parts/run/epoch-0001.safetensors").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = newest_checkpoint(resolve(tmp_path / "parts")).state["epoch"]
    again = run_job(gallery, tmp_path / "parts")
    assert again.returncode == 0, again.stderr
    assert f"epoch {before}/3" not in again.stderr
    whole = run_training(plan_of(gallery, tmp_path / "whole"))
    last, head = newest_checkpoint(resolve(tmp_path / "parts")), load_head(tmp_path / "parts/head").state_dict()
    assert all(torch.equal(tensor, last.tensors[f"head.{name}"]) for name, tensor in whole.head.state_dict().items())
    assert all(torch.equal(tensor, head[name]) for name, tensor in whole.best_tensors.items())
    assert epochs_in(tmp_path / "parts") == [0, 1, 2, 3]
    scalars = events_in(tmp_path / "parts/run/tensorboard")
    assert len(scalars) == len(set(scalars))
    assert {step for tag, step in scalars if tag == "loss/all"} == {1, 2, 3}


def test_a_finished_training_run_again_does_nothing(gallery, tmp_path):
    run_training(plan_of(gallery, tmp_path))
    seen = []
    run_training(plan_of(gallery, tmp_path), seen.append)
    assert seen == []


def test_only_the_newest_checkpoints_stay_and_none_is_a_pickle(gallery, tmp_path):
    run_training(plan_of(gallery, tmp_path))
    names = sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_file())
    assert names == ["epoch-0002.safetensors", "epoch-0003.safetensors"]
    safetensors.torch.load_file(tmp_path / "run" / names[-1])


def test_a_folder_of_another_training_is_refused(gallery, tmp_path):
    run_training(plan_of(gallery, tmp_path))
    with pytest.raises(UsageError, match="a training of other settings; give another folder"):
        run_training(plan_of(gallery, tmp_path, learning_rate=1e-3))
    other = Gallery.open_or_create(tmp_path / "other", GallerySettings(toy_spec(), 10.0, None))
    add_videos(other, people_features(24, 4, 24, seed=2))
    with pytest.raises(UsageError, match="a training of other data"):
        run_training(plan_of(other, tmp_path))


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: b"\x05" + content[1:], lambda content: b""])
def test_a_damaged_checkpoint_is_one_sentence(gallery, tmp_path, damage):
    run_training(plan_of(gallery, tmp_path, epochs=1))
    path = tmp_path / "run/epoch-0001.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PipelineError, match=r"epoch-0001.safetensors is damaged: .*; delete it to go on"):
        run_training(plan_of(gallery, tmp_path, epochs=1))
    path.unlink()
    run_training(plan_of(gallery, tmp_path, epochs=1))


def test_the_best_head_of_a_checkpoint_is_that_of_the_best_epoch(gallery, tmp_path):
    training = run_training(plan_of(gallery, tmp_path))
    checkpoint = newest_checkpoint(resolve(tmp_path))
    assert checkpoint.best_epoch == max(checkpoint.history, key=lambda m: (m["validation_map"], -m["epoch"]))["epoch"]
    best = checkpoint.best_head()
    assert all(torch.equal(tensor, training.result().state_dict()[name]) for name, tensor in best.state_dict().items())


def test_metrics_become_columns_and_unknown_ones_stay_empty():
    table = metrics_table([{"epoch": 0.0, "clean_map": 0.5}, {"epoch": 1.0, "loss_all": 1 / 3, "clean_map": 1.0}])
    assert table == "epoch,clean_map,loss_all\n0,0.5,\n1,1,0.333333\n"


def test_the_job_leaves_a_head_with_backbone_recipe_and_figures(gallery, tmp_path):
    done = run_job(
        gallery, tmp_path, "--without", "identity", "--set", "warm_up=0.5", "--seed", "3", "--hidden", gallery.location.uri
    )
    assert done.returncode == 0, done.stderr
    assert "epoch 3/3" in done.stderr
    assert "at best" in done.stdout
    description = read_description(tmp_path / "head")
    assert description.backbone_hash == gallery.settings.backbone.identity
    recipe = description.info["recipe"]["training"]
    assert recipe == json.loads(json.dumps(asdict(replace(SMALL, identity_weight=0, warm_up=0.5, seed=3))))
    assert {"data", "command", "versions", "validation", "epoch"} <= description.info.keys()
    assert "hidden_map" in description.info["validation"]
    head = load_head(tmp_path / "head", gallery.settings.backbone.identity)
    assert head.config.negative_weight
    assert np.isfinite(head(torch.randn(2, 4, 24), torch.randn(2, 4, 24)).detach()).all()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--without", "magic"], "no term 'magic'"),
        (["--set", "magic=1"], "names no setting"),
        (["--set", "warm_up=soon"], "no value for warm_up"),
        (["--set", "centre=perhaps"], "no value for centre"),
        (["--people", "1"], "people must be at least 2"),
        (["--validation-share", "1"], "from 0 to below 1"),
        (["--hidden", "a", "--hidden", "b"], "--hidden is given 2 times"),
        (["--backbone", DEFAULT], "was made with the backbone toy"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(gallery, tmp_path, flags, words):
    import typer

    from jobs.train import train

    app = typer.Typer()
    app.command()(train)
    arguments = ["--data", gallery.location.uri, "--out", str(tmp_path), *FLAGS, *flags]
    outcome = CliRunner().invoke(app, arguments)
    assert isinstance(outcome.exception, UsageError)
    assert words in str(outcome.exception)
    assert "\n" not in str(outcome.exception)


def test_a_worker_that_comes_late_does_not_go_on_from_what_the_others_begin_with(gallery, tmp_path, monkeypatch):
    """Two workers in threads; what they do together waits for both, as torch's process group and Ray's report do."""
    together = threading.Barrier(2, timeout=60)
    restore, reported = RunFolder.restore, ([], [])

    def late(folder, training):
        if training.worker == 1:
            time.sleep(1)
        return restore(folder, training)

    def report(worker, metrics):
        reported[worker].append(metrics["epoch"])
        together.wait()

    def work(worker):
        plan = plan_of(gallery, tmp_path / "out", epochs=1)
        run_training(plan, partial(report, worker), worker=worker, workers=2, average=lambda gradients: together.wait())

    monkeypatch.setattr(RunFolder, "restore", late)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (0, 1)))
    assert reported == ([0, 1], [0, 1])


@pytest.mark.ray
@pytest.mark.timeout(900)  # Ray's workers start slowly on a busy machine
def test_two_workers_on_ray_train_a_head_of_their_own(gallery, tmp_path):
    done = run_job(gallery, tmp_path / "ray", "--workers", "2", "--epochs", "1")
    assert done.returncode == 0 and "epoch 1/1" in done.stderr, done.stderr
    run_training(plan_of(gallery, tmp_path / "here", epochs=1))
    here, ray = newest_checkpoint(resolve(tmp_path / "here")), newest_checkpoint(resolve(tmp_path / "ray"))
    assert not torch.equal(ray.tensors["head.value.weight"], here.tensors["head.value.weight"])
    assert epochs_in(tmp_path / "ray") == [0, 1]


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_one_worker_on_ray_trains_the_same_head_and_ends_when_it_is_interrupted(gallery, tmp_path):
    flags, endless = ("--workers", "1", "--epochs", "1000000"), tmp_path / "out"
    process = subprocess.Popen(command(gallery, endless, *flags), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    said = ""
    try:
        while not ((endless / "metrics.csv").exists() and epochs_in(endless)[-1] >= 3) and process.poll() is None:
            time.sleep(0.1)
        for _ in range(6):  # as a person does: Python drops one that arrives while it clears a weak reference away
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                _, said = process.communicate(timeout=60)
                break
    finally:
        process.kill()
    assert process.returncode == 130 and said.endswith("error: interrupted; run the same command again to go on\n"), said
    ray = newest_checkpoint(resolve(endless))
    last = ray.state["epoch"]

    def stop_there(metrics):
        if metrics["epoch"] == last:
            raise KilledError

    with pytest.raises(KilledError):
        run_training(plan_of(gallery, tmp_path / "here", epochs=1_000_000), stop_there)
    here = newest_checkpoint(resolve(tmp_path / "here"))
    assert last >= 3 and all(torch.equal(tensor, here.tensors[name]) for name, tensor in ray.tensors.items())


def test_the_sentence_of_a_worker_crosses_the_processes():
    from pipeline.training.distributed import _explained

    crossed = "Training failed\nray::_work()\nRuntimeError: UsageError: the folder holds a training of other settings\n"
    assert isinstance(_explained(RuntimeError(crossed)), UsageError)
    assert str(_explained(RuntimeError(crossed))) == "the folder holds a training of other settings"
    foreign = _explained(RuntimeError("worker died\ntorch.OutOfMemoryError: no memory left\n"))
    assert str(foreign).startswith("the training stopped: torch.OutOfMemoryError: no memory left; run the same command again")
