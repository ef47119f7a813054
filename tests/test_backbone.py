"""Backbones by name and by path; what does not fit is refused in one sentence."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.backbone import (
    DEFAULT,
    EFFICIENTNET,
    BackboneSpec,
    TorchBackbone,
    efficientnet_lite0,
    find_backbone,
    load_backbone,
    normalise_pixels,
    parse_input_size,
)
from pipeline.errors import PipelineError, UsageError
from tests.conftest import SHARED, TOY_SIDECAR

OSNET = SHARED / "models/osnet_x0_25_msmt17/osnet_x0_25_msmt17.onnx"


def frames(height: int, width: int, n: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), np.uint8)


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_a_file_gets_its_pixels_as_its_sidecar_says(toy_backbone: Path, channels: str) -> None:
    toy_backbone.with_suffix(".json").write_text(json.dumps({**TOY_SIDECAR, "channels": channels}))
    pixels = frames(8, 4)
    given = pixels.astype(np.float64).mean(axis=(1, 2))[:, :: 1 if channels == "RGB" else -1] / 255
    expected = (given - [0.5, 0.25, 0]) / [0.5, 0.25, 1]
    features = load_backbone(find_backbone(str(toy_backbone)), device="cpu").embed(pixels)
    assert features.dtype == np.float16 and np.abs(features - expected).max() < 2e-3


def test_any_number_of_frames_is_embedded_like_one(toy_backbone: Path) -> None:
    backbone = load_backbone(find_backbone(str(toy_backbone)), device="cpu")
    pixels = frames(8, 4, 71)
    assert np.array_equal(backbone.embed(pixels), np.concatenate([backbone.embed(pixels[i : i + 1]) for i in range(71)]))
    assert backbone.embed(pixels[:0]).shape == (0, 3)


def test_a_network_on_a_cpu_is_loaded_without_torch() -> None:
    """torch takes more than a second to load, in every process of an ingest."""
    load = "import sys, pipeline.backbone as b; b.load_backbone(b.find_backbone(), 1, 'cpu')"
    loaded = subprocess.run([sys.executable, "-c", f"{load}; print('torch' in sys.modules)"], check=True, capture_output=True)
    assert loaded.stdout.split() == [b"False"]


@pytest.mark.parametrize("size", [(256, 128), (96, 48)])
def test_efficientnet_in_onnx_runtime_is_the_one_in_torch(size: tuple[int, int]) -> None:
    spec = find_backbone(EFFICIENTNET, size)
    pixels = frames(*size, n=3)
    with torch.no_grad():
        expected = efficientnet_lite0()(torch.from_numpy(normalise_pixels(pixels, spec))).numpy()
    features = load_backbone(spec, device="cpu").embed(pixels)
    assert features.shape == (3, 1280)
    assert np.abs(features - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_efficientnet_on_a_gpu_is_the_one_on_a_cpu() -> None:
    spec = find_backbone(EFFICIENTNET)
    pixels = frames(256, 128, 40)
    on_gpu, on_cpu = TorchBackbone(spec, "cuda").embed(pixels), load_backbone(spec, device="cpu").embed(pixels)
    assert np.abs(on_gpu.astype(np.float32) - on_cpu.astype(np.float32)).max() < 1e-2 * np.abs(on_cpu).max()


@pytest.mark.shared
@pytest.mark.skipif(not OSNET.exists(), reason="../shared/models/osnet_x0_25_msmt17 is not there")
def test_a_published_re_identification_network_loads_by_path() -> None:
    backbone = load_backbone(find_backbone(str(OSNET)), device="cpu")
    features = backbone.embed(frames(256, 128, 2))
    assert features.shape == (2, 512) and np.isfinite(features).all()


def test_identity_follows_weights_and_preprocessing_and_not_the_path(toy_backbone: Path, tmp_path: Path) -> None:
    spec = find_backbone(str(toy_backbone))
    moved = tmp_path / "elsewhere" / "mean.onnx"
    moved.parent.mkdir()
    shutil.copy(toy_backbone, moved)
    shutil.copy(toy_backbone.with_suffix(".json"), moved.with_suffix(".json"))
    assert find_backbone(str(moved)).identity == spec.identity
    moved.with_suffix(".json").write_text(json.dumps({**TOY_SIDECAR, "mean": [0.5, 0.5, 0.5]}))
    assert find_backbone(str(moved)).identity != spec.identity


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": None}, "lacks 'dim'"),
        ({"channels": "GRAY"}, "channels is RGB or BGR"),
        ({"std": [0, 1, 1]}, "mean and std are three numbers"),
        ({"height": "tall"}, "cannot be understood"),
        ({"scale": 0}, "sizes and scale are positive"),
    ],
)
def test_an_unusable_sidecar_is_refused(toy_backbone: Path, change: dict, words: str) -> None:
    fields = {name: value for name, value in {**TOY_SIDECAR, **change}.items() if value is not None}
    toy_backbone.with_suffix(".json").write_text(json.dumps(fields))
    with pytest.raises(UsageError, match=words):
        find_backbone(str(toy_backbone))


def test_what_is_not_a_usable_network_is_refused(toy_backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="other formats are not loaded, since they can run code"):
        find_backbone(str(tmp_path / "weights.pth"))
    with pytest.raises(UsageError, match="does not exist"):
        find_backbone(str(tmp_path / "absent.onnx"))
    toy_backbone.with_suffix(".json").write_text(json.dumps({**TOY_SIDECAR, "dim": 7}))
    with pytest.raises(PipelineError, match=r"gives features of shape \(3,\); its sidecar says 7"):
        load_backbone(find_backbone(str(toy_backbone)), device="cpu")
    with pytest.raises(PipelineError, match="does not take 16 x 16 frames"):
        load_backbone(find_backbone(str(toy_backbone), (16, 16)), device="cpu")
    spec = find_backbone(str(toy_backbone))
    toy_backbone.write_bytes(b"changed")
    with pytest.raises(PipelineError, match="its content differs"):
        load_backbone(spec, device="cpu")
    with pytest.raises(PipelineError, match="is not an ONNX network"):
        load_backbone(find_backbone(str(toy_backbone)), device="cpu")
    toy_backbone.with_suffix(".json").unlink()
    with pytest.raises(UsageError, match=r"needs a sidecar mean\.json"):
        find_backbone(str(toy_backbone))


@pytest.mark.parametrize("text", ["256", "256x", "0x9", "-1x5", "256 x 128", "99999x128"])
def test_an_input_size_that_cannot_be_meant_is_refused(text: str) -> None:
    assert parse_input_size("256x128") == (256, 128)
    with pytest.raises(UsageError, match="HEIGHTxWIDTH"):
        parse_input_size(text)


def test_a_spec_names_every_field_that_changes_features() -> None:
    spec = find_backbone(EFFICIENTNET)
    assert isinstance(spec, BackboneSpec) and (spec.height, spec.width, spec.dim) == (256, 128, 1280)


def test_the_default_is_known_by_name_on_every_machine() -> None:
    assert find_backbone().path is None and find_backbone().name == DEFAULT
