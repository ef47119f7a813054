"""The small detector: samples show people where their boxes are, cells answer for whom they should; what ships finds people."""

import json

import cv2
import numpy as np
import pytest
import torch

from pipeline.errors import UsageError
from pipeline.evaluation.true_boxes import overlap
from pipeline.footage.detector import load_detector
from pipeline.rendering.appearance import sample_appearance
from pipeline.rendering.camera import sample_camera_look
from pipeline.rendering.full_frame import render_full_frame
from pipeline.training import detector
from pipeline.training.detector import HEIGHT, WIDTH, DetectorTraining, Scene, sample, train_detector
from pipeline.training.detector_network import Cells, DetectorNetwork, detector_loss, overlaps


def scene_of_a_block() -> Scene:
    """A red block on blue ground, and its box."""
    picture = np.zeros((180, 320, 3), np.uint8)
    picture[..., 0] = 200
    picture[60:120, 100:130] = (0, 0, 255)
    return Scene(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 100])[1], np.array([[100, 60, 130, 120]], np.float32))


@pytest.mark.parametrize("four", [0.0, 1.0])
def test_a_sample_shows_people_where_their_boxes_are(four, monkeypatch):
    monkeypatch.setattr(detector, "_filmed", lambda canvas, rng: canvas)
    rng, seen = np.random.default_rng(0), 0
    for _ in range(40):
        frame, people, unclear = sample([scene_of_a_block()], rng, four)
        assert frame.shape == (HEIGHT, WIDTH, 3)
        red = frame[..., 2].astype(int) > frame[..., 0].astype(int) + 60
        covered = np.zeros_like(red)
        for left, top, right, bottom in np.vstack([people, unclear]):
            inside = red[int(top) + 2 : int(bottom) - 2, int(left) + 2 : int(right) - 2]
            assert inside.size == 0 or inside.mean() > 0.9
            covered[max(0, int(top) - 3) : int(bottom) + 4, max(0, int(left) - 3) : int(right) + 4] = True
            seen += 1
        assert (red & ~covered).sum() < 500  # pixels: of blocks of which less than a twentieth shows nobody is told
    assert seen > 30


def test_a_cell_answers_for_the_person_in_whose_middle_it_lies_and_for_nobody_elsewhere():
    cells = Cells.of(64, 96)
    people = torch.tensor([[10.0, 8.0, 30.0, 56.0], [60.0, 4.0, 90.0, 60.0]])
    who = cells.who(people)
    place = (cells.corner + 0.5) * cells.stride
    for cell in np.flatnonzero(who >= 0).tolist():
        left, top, right, bottom = people[who[cell]].tolist()
        assert left < place[cell, 0] < right and top < place[cell, 1] < bottom
    assert set(who.tolist()) == {-1, 0, 1}
    assert (cells.who(people[:0]) == -1).all()


def test_overlaps_are_those_of_a_count_of_pixels():
    one, other = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[5.0, 5.0, 15.0, 20.0]])
    masks = np.zeros((2, 20, 20), bool)
    masks[0, :10, :10] = masks[1, 5:20, 5:15] = True
    plain = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    generalised, found = overlaps(one, other)
    around = 15 * 20
    assert float(found) == pytest.approx(plain)
    assert float(generalised) == pytest.approx(plain - (around - (masks[0] | masks[1]).sum()) / around)


def test_boxes_that_fit_and_scores_that_know_it_cost_least():
    cells, person = Cells.of(64, 96), torch.tensor([[20.0, 8.0, 44.0, 56.0]])
    who = cells.who(person) >= 0
    right = torch.zeros(1, len(who), 5)
    middle, size = (person[0, :2] + person[0, 2:]) / 2, person[0, 2:] - person[0, :2]
    right[0, :, :2] = middle / cells.stride - cells.corner
    right[0, :, 2:4] = (size / cells.stride).log()
    right[0, :, 4] = torch.where(who, 12.0, -12.0)
    best = detector_loss(right, cells, [person], [person[:0]])
    assert float(best) < 1e-3
    for change in (right * torch.tensor([1, 1, 1, 1, -1]), right + torch.tensor([0.5, 0, 0, 0, 0])):
        assert detector_loss(change, cells, [person], [person[:0]]) > best + 0.1


def test_unclear_people_are_neither_right_nor_wrong():
    cells, nobody, person = Cells.of(64, 96), torch.zeros(0, 4), torch.tensor([[20.0, 8.0, 44.0, 56.0]])
    raw = torch.full((1, len(cells.stride), 5), -12.0)
    sure = raw.clone()
    sure[0, cells.inside(person), 4] = 12.0
    assert detector_loss(sure, cells, [nobody], [person]) == pytest.approx(float(detector_loss(raw, cells, [nobody], [person])))
    assert detector_loss(sure, cells, [nobody], [nobody]) > 1


def test_a_trained_detector_is_loaded_by_its_path_and_gives_what_torch_gives(tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(detector, "_rendered", lambda folder, seed, processes: [scene_of_a_block()])
    told = []
    path = train_detector(tmp_path, "blocks", DetectorTraining(1, 100, 4, seed=1), report=lambda *state: told.append(state))
    assert told[0][:3] == ("scenes", 1, 1) and told[1][3] > told[-1][3]  # it learns
    loaded = load_detector(str(path), device="cpu")
    assert json.loads(path.with_suffix(".json").read_text())["name"] == "blocks"
    cells = loaded.session.run(None, {loaded.input_name: np.zeros((1, 3, HEIGHT, WIDTH), np.float32)})[0]
    assert cells.shape == (1, len(Cells.of(HEIGHT, WIDTH).stride), 6) and (cells[..., 5] == 1).all()


def test_settings_that_train_nothing_are_refused():
    with pytest.raises(UsageError, match="above 0"):
        DetectorTraining(steps=0)


def test_the_network_has_a_cell_for_every_place():
    frames = torch.zeros(1, 3, 64, 96)
    assert DetectorNetwork().eval()(frames).shape == (1, len(Cells.of(64, 96).stride), 6)


def test_the_detector_that_ships_finds_rendered_people_whom_it_has_not_seen():
    """True boxes are around the whole person, of whom a quarter may show: YOLOX-nano has a best F1 of 0.70 on such scenes."""
    found = load_detector("rendered", device="cpu")
    right = wrong = missed = 0
    for seed in range(3):
        people = [sample_appearance(70 + seed, person) for person in range(5)]
        scene = render_full_frame(people, sample_camera_look(70 + seed, 1), seed, frame_rate=1, seconds=8.0)
        for number, detections in enumerate(found.detect(scene.frames), start=1):
            true = [np.array(row[2:], float) for row in scene.boxes.tolist() if row[0] == number]
            for box, score in zip(detections.boxes, detections.scores, strict=True):
                if score < 0.5:
                    continue
                overlaps_of = [overlap(box.astype(float), other) for other in true]
                if overlaps_of and max(overlaps_of) >= 0.5:
                    right += 1
                    true.pop(int(np.argmax(overlaps_of)))
                else:
                    wrong += 1
            missed += len(true)
    assert 2 * right / (2 * right + wrong + missed) > 0.65, (right, wrong, missed)
