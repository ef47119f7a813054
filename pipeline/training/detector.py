"""Training of the small detector, on rendered recordings alone: scenes, samples, the loop, the export.

OUT/scenes/   what was rendered, a folder of `pipeline.rendering.recordings` a round
OUT/NAME.onnx and its sidecar, when all is done
"""

import io
import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from pipeline.errors import PipelineError, UsageError
from pipeline.footage.detector import GROUND, load_detector
from pipeline.rendering.recordings import RecordingArguments, render_recordings
from pipeline.storage.location import resolve
from pipeline.training.detector_network import Cells, DetectorNetwork, detector_loss

HEIGHT, WIDTH = 192, 320
LEAST_SEEN = 0.4  # of a box inside a sample: who shows less is unclear
LEAST_HEIGHT = 10.0  # pixels
AVERAGED = 0.998  # of the weights' moving average, which is what is kept
FIRST_SEED = 1000  # of scenes, so that none is a network that is rendered to be searched


@dataclass(frozen=True)
class DetectorTraining:
    """rounds: camera networks to be rendered, each of other people and cameras. samples: frames of a step. rate: of learning, the
    highest. seed: of all that is drawn. Raises UsageError.
    """

    rounds: int = 5
    steps: int = 1500
    samples: int = 8
    rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rounds, self.steps, self.samples) < 1 or not self.rate > 0:
            raise UsageError("rounds, steps, samples and the learning rate of a detector are above 0")


@dataclass(frozen=True)
class Scene:
    """One frame. picture: a JPEG of it, BGR; edges: float32 [m, 4], left, top, right, bottom of its people in pixels."""

    picture: np.ndarray
    edges: np.ndarray


def train_detector(
    out: Path,
    name: str,
    settings: DetectorTraining,
    processes: int = 1,
    report: Callable[[str, int, int, float], None] = lambda stage, done, total, loss: None,
) -> Path:
    """Render scenes, train, and write OUT/NAME.onnx with its sidecar; returns its path. Scenes that are there are used again.

    report: called with the stage ("scenes", "steps"), how far it is, how far it goes, and the mean loss.
    """
    scenes: list[Scene] = []
    for number in range(settings.rounds):
        scenes += list(_rendered(out / "scenes" / f"{number:03d}", FIRST_SEED + settings.seed + number, processes))
        report("scenes", number + 1, settings.rounds, 0.0)
    network = _trained(scenes, settings, report)
    path = out / f"{name}.onnx"
    _export(network, path, name, settings)
    return path


def _rendered(folder: Path, seed: int, processes: int) -> Iterator[Scene]:
    """Frames of a round: twelve people in eight cameras, one a second."""
    uris = render_recordings(folder, RecordingArguments(12, 8, seed, frame_rate=1, seconds=14.0), processes)
    for uri in uris:
        lines = (folder / uri).with_suffix(".boxes.txt").read_text().split()
        boxes = np.array([line.split(",") for line in lines], np.float32).reshape(-1, 6)
        with av.open(str(folder / uri)) as container:
            for number, frame in enumerate(container.decode(video=0), start=1):
                of_frame = boxes[boxes[:, 0] == number, 2:]
                edges = np.hstack([of_frame[:, :2], of_frame[:, :2] + of_frame[:, 2:]])
                yield Scene(cv2.imencode(".jpg", frame.to_ndarray(format="bgr24"))[1], edges)


def _trained(scenes: list[Scene], settings: DetectorTraining, report: Callable[[str, int, int, float], None]) -> DetectorNetwork:
    rng = np.random.default_rng(settings.seed)
    torch.manual_seed(settings.seed)
    network: DetectorNetwork = DetectorNetwork().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kept = {key: value.clone() for key, value in network.state_dict().items()}
    optimiser = torch.optim.AdamW(network.parameters(), settings.rate, weight_decay=0.02)
    cells, total = Cells.of(HEIGHT, WIDTH), 0.0
    for step in range(settings.steps):
        far = step / settings.steps
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * min(1, (step + 1) / 100) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * far)))
        drawn = [sample(scenes, rng, four=0.5 if far < 0.85 else 0.1) for _ in range(settings.samples)]
        frames = torch.from_numpy(np.stack([frame for frame, _, _ in drawn])).permute(0, 3, 1, 2).float() / 255
        raw = network.raw(frames.contiguous(memory_format=torch.channels_last))
        people, unclear = ([torch.from_numpy(one[part]) for one in drawn] for part in (1, 2))
        loss = detector_loss(raw, cells, people, unclear)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimiser.step()
        share = min(AVERAGED, (1 + step) / (20 + step))
        for key, value in network.state_dict().items():
            kept[key] = kept[key] * share + value * (1 - share) if value.is_floating_point() else value
        total += float(loss.detach())
        if (step + 1) % 50 == 0:
            report("steps", step + 1, settings.steps, total / 50)
            total = 0.0
    network.load_state_dict(kept)
    return network.eval()


def sample(scenes: list[Scene], rng: np.random.Generator, four: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A frame as a camera may show it, uint8 [HEIGHT, WIDTH, 3], and edges [m, 4] of its people and of the unclear ones.

    Scenes are mirrored, made smaller or larger, shifted, lit and coloured otherwise, blurred, noisy, badly encoded. four: the
    share of samples that are put together of four.
    """
    canvas = np.full((HEIGHT, WIDTH, 3), GROUND, np.uint8)
    parts = [(0, 0, WIDTH, HEIGHT)]
    if rng.random() < four:
        x, y = int(WIDTH * rng.uniform(0.3, 0.7)), int(HEIGHT * rng.uniform(0.3, 0.7))
        parts = [(0, 0, x, y), (x, 0, WIDTH, y), (0, y, x, HEIGHT), (x, y, WIDTH, HEIGHT)]
    people, unclear = [], []
    for part in parts:
        edges, shown = _placed(scenes[rng.integers(len(scenes))], canvas, part, rng)
        clear = (shown >= LEAST_SEEN) & (edges[:, 3] - edges[:, 1] >= LEAST_HEIGHT)
        people.append(edges[clear])
        unclear.append(edges[~clear & (shown > 0.05)])
    return _filmed(canvas, rng), np.concatenate(people), np.concatenate(unclear)


def _placed(
    scene: Scene, canvas: np.ndarray, part: tuple[int, int, int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene into a part of the canvas; returns edges float32 [m, 4] inside it and how much of each shows, [m]."""
    picture, edges = np.asarray(cv2.imdecode(scene.picture, cv2.IMREAD_COLOR)), scene.edges.copy()
    left, top, right, bottom = part
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
        edges[:, [0, 2]] = picture.shape[1] - edges[:, [2, 0]]
    zoom = min(WIDTH / picture.shape[1], HEIGHT / picture.shape[0]) * math.exp(rng.uniform(math.log(0.6), math.log(2.2)))
    width, height = (
        max(8, round(side)) for side in (picture.shape[1] * zoom * math.exp(rng.uniform(-0.12, 0.12)), picture.shape[0] * zoom)
    )
    edges *= np.array([width / picture.shape[1], height / picture.shape[0]] * 2, np.float32)
    shift = [int(rng.integers(min(0, room), max(0, room) + 1)) for room in (right - left - width, bottom - top - height)]
    edges += np.array([left + shift[0], top + shift[1]] * 2, np.float32)
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
    x, y = left + max(0, shift[0]), top + max(0, shift[1])
    shown = resized[max(0, -shift[1]) :, max(0, -shift[0]) :][: bottom - y, : right - x].astype(np.float32)
    shown = shown * rng.uniform(0.6, 1.4) + rng.uniform(-25, 25)
    grey = shown.mean(axis=2, keepdims=True)
    shown = (grey + (shown - grey) * rng.uniform(0.3, 1.4)) * rng.uniform(0.9, 1.1, 3)
    canvas[y : y + shown.shape[0], x : x + shown.shape[1]] = np.clip(shown, 0, 255)
    inside = np.clip(edges, [x, y] * 2, [x + shown.shape[1], y + shown.shape[0]] * 2).astype(np.float32)
    area = np.prod(edges[:, 2:] - edges[:, :2], axis=1)
    return inside, np.prod(inside[:, 2:] - inside[:, :2], axis=1) / np.maximum(area, 1e-6)


def _filmed(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 1.2))
    if rng.random() < 0.3:
        canvas = np.clip(canvas + rng.normal(0, rng.uniform(2, 10), canvas.shape), 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        encoded = cv2.imencode(".jpg", canvas, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 80))])[1]
        canvas = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    if rng.random() < 0.1:
        canvas = np.repeat(cv2.cvtColor(canvas, cv2.COLOR_BGR2GRAY)[..., None], 3, axis=2)
    return canvas


def _export(network: DetectorNetwork, path: Path, name: str, settings: DetectorTraining) -> None:
    """Write the network and its sidecar, and look whether it can be loaded."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
            (torch.zeros(1, 3, HEIGHT, WIDTH),),
            content,  # type: ignore[arg-type]  # it takes files as well
            dynamo=False,
            input_names=["frames"],
            output_names=["cells"],
            opset_version=17,
        )
    sidecar = {"decode": "yolox", "height": HEIGHT, "width": WIDTH, "channels": "BGR", "scale": 255.0, "name": name}
    about = {"license": "Apache-2.0", "source": f"trained on rendered people alone: {json.dumps(asdict(settings))}"}
    resolve(path).write_atomically(content.getvalue())
    resolve(path.with_suffix(".json")).write_atomically((json.dumps(sidecar | about, indent=1) + "\n").encode())
    try:
        load_detector(str(path), device="cpu")
    except UsageError as error:
        raise PipelineError(f"the trained detector cannot be used: {error}") from error
