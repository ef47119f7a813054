"""Backbones by name and by path; what does not fit is refused in one sentence."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from pipeline.backbone.network import _exported
from pipeline.backbone.runtime import load_backbone
from pipeline.backbone.shipped import shipped_network
from pipeline.backbone.spec import DEFAULT, find_backbone, normalise_pixels, parse_input_size
from pipeline.errors import PipelineError, UsageError
from pipeline.storage.downloads import cache_folder
from tests.conftest import SHARED, TOY_SIDECAR, toy_spec

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


def test_a_network_on_a_cpu_is_loaded_without_torch_and_onnx() -> None:
    """torch takes more than a second to load and onnx 0.05 s, in every process of an ingest."""
    load = "import sys, pipeline.backbone.runtime as r, pipeline.backbone.spec as s; r.load_backbone(s.find_backbone(), 1, 'cpu')"
    loaded = subprocess.run(
        [sys.executable, "-c", f"{load}; print({{'torch', 'onnx'}} & set(sys.modules))"], check=True, capture_output=True
    )
    assert loaded.stdout.split() == [b"set()"]


IMAGES = ["n", 3, 8, 4]


def save_network(
    path: Path,
    nodes: list[onnx.NodeProto],
    shape: list[int | str] | None = IMAGES,
    pixels: int = TensorProto.FLOAT,
    more: dict[str, list[str]] | None = None,
    **constants: np.ndarray,
) -> Path:
    """An ONNX network from images to features, with a toy's sidecar. more: names of further inputs and outputs."""
    axes = onnx.numpy_helper.from_array(np.array([2, 3]), "axes")
    inputs = [helper.make_tensor_value_info("images", pixels, shape)]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in (more or {}).get("inputs", [])]
    outputs = [helper.make_tensor_value_info(name, pixels, None) for name in ["features", *(more or {}).get("outputs", [])]]
    held = [axes, *(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())]
    graph = helper.make_graph(nodes, "network", inputs, outputs, held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    path.with_suffix(".json").write_text(json.dumps(TOY_SIDECAR))
    return path


def mean(name: str) -> onnx.NodeProto:
    return helper.make_node("ReduceMean", ["images", "axes"], [name], keepdims=0)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_a_network_for_a_fixed_number_of_frames_embeds_any_number(tmp_path: Path, toy_backbone: Path, n: int) -> None:
    backbone = load_backbone(
        find_backbone(str(save_network(tmp_path / "fixed.onnx", [mean("features")], [n, 3, 8, 4]))), device="cpu"
    )
    free = load_backbone(find_backbone(str(toy_backbone)), device="cpu")
    for count in (0, 1, 4, 5, 16, 17):
        assert np.array_equal(backbone.embed(frames(8, 4, count)), free.embed(frames(8, 4, count)))


def test_a_network_of_half_precision_gets_its_pixels_so(tmp_path: Path, toy_backbone: Path) -> None:
    half = load_backbone(
        find_backbone(str(save_network(tmp_path / "half.onnx", [mean("features")], pixels=TensorProto.FLOAT16))), device="cpu"
    )
    single = load_backbone(find_backbone(str(toy_backbone)), device="cpu")
    assert np.abs(half.embed(frames(8, 4)) - single.embed(frames(8, 4))).max() < 5e-3


def test_a_network_that_does_not_say_its_shape_is_tried(tmp_path: Path) -> None:
    backbone = load_backbone(find_backbone(str(save_network(tmp_path / "any.onnx", [mean("features")], None))), device="cpu")
    assert backbone.embed(frames(8, 4, 9)).shape == (9, 3)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"shape": ["n", 8, 4, 3]}, "does not take 8 x 4 frames: its input is n x 8 x 4 x 3, not n x 3 x 8 x 4; correct"),
        ({"shape": ["n", 3, 4, 8]}, "its input is n x 3 x 4 x 8, not"),
        ({"shape": ["n", 3, "height", 8]}, "its input is n x 3 x height x 8, not"),
        ({"shape": [None, 1, 8, 4]}, "its input is free x 1 x 8 x 4, not"),
        ({"shape": [0, 3, 8, 4]}, "its input is 0 x 3 x 8 x 4, not"),
        ({"shape": ["n", 1, 3, 8, 4]}, "its input is n x 1 x 3 x 8 x 4, not"),
        ({"pixels": TensorProto.DOUBLE}, r"takes tensor\(double\); export it with an input of float32 or float16"),
        (
            {"more": {"inputs": ["camera"]}},
            r"has 2 inputs \('images', 'camera'\) and must have one; export it with that one alone",
        ),
        ({"more": {"outputs": ["logits"]}}, r"has 2 outputs \('features', 'logits'\) and must have one"),
    ],
)
def test_a_network_of_another_interface_is_refused(tmp_path: Path, network: dict, words: str) -> None:
    nodes = [
        mean("features"),
        *(helper.make_node("Identity", ["features"], [name]) for name in network.get("more", {}).get("outputs", [])),
    ]
    spec = find_backbone(str(save_network(tmp_path / "network.onnx", nodes, **network)))
    with pytest.raises(PipelineError, match=words):
        load_backbone(spec, device="cpu")


@pytest.mark.parametrize(
    ("nodes", "constants", "words"),
    [
        (
            [helper.make_node("Reshape", ["means", "sizes"], ["features"])],
            {"sizes": np.array([1, 3])},
            "cannot embed 8 frames of 8 x 4 and one alone; export it with n free, or fixed at 1",
        ),
        (
            [helper.make_node("Reshape", ["means", "sizes"], ["features"])],
            {"sizes": np.array([1, -1])},
            r"gives features of shape \(1, 24\) for 8 frames, not \(8, 3\)",
        ),
        (
            [helper.make_node("Concat", ["means", "means"], ["features"], axis=0)],
            {},
            r"gives features of shape \(16, 3\) for 8 frames, not \(8, 3\)",
        ),
        (
            [helper.make_node("Unsqueeze", ["means", "one"], ["features"])],
            {"one": np.array([2])},
            r"gives features of shape \(8, 3, 1\) for 8 frames, not \(8, 3\)",
        ),
        ([helper.make_node("Log", ["means"], ["features"])], {}, "features that are not finite in float16 for ordinary frames"),
        (
            [helper.make_node("Mul", ["means", "factor"], ["features"])],
            {"factor": np.float32(1e6)},
            "features that are not finite in float16 for ordinary frames",
        ),
        (
            [helper.make_node("ReduceMean", ["means", "n"], ["all"]), helper.make_node("Sub", ["means", "all"], ["features"])],
            {"n": np.array([0])},
            "gives a frame other features alone than among 8; export it in eval mode, or with n fixed at 1",
        ),
        (  # the last is as it would be alone
            [helper.make_node("CumSum", ["means", "axis"], ["features"], reverse=1)],
            {"axis": np.int64(0)},
            "gives a frame other features alone than among 8",
        ),
        (  # the first is as it would be alone
            [helper.make_node("CumSum", ["means", "axis"], ["features"])],
            {"axis": np.int64(0)},
            "gives a frame other features alone than among 8",
        ),
        (  # as in a network left in training mode
            [
                helper.make_node("Dropout", ["images", "half", "training"], ["dropped"]),
                helper.make_node("ReduceMean", ["dropped", "axes"], ["features"], keepdims=0),
            ],
            {"half": np.float32(0.5), "training": np.bool_(True)},
            "gives a frame other features alone than among 8",
        ),
    ],
)
def test_a_network_is_tried_with_the_batch_that_is_used(
    tmp_path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], words: str
) -> None:
    constants = {name: np.asarray(value) for name, value in constants.items()}
    spec = find_backbone(str(save_network(tmp_path / "network.onnx", [mean("means"), *nodes], **constants)))
    with pytest.raises(PipelineError, match=words):
        load_backbone(spec, device="cpu")


def test_a_batch_may_differ_by_what_half_precision_allows(tmp_path: Path) -> None:
    """Features that grow by a 2000th of themselves when others are beside them, as another order of sums does in float16."""
    nodes = [
        mean("means"),
        helper.make_node("Shape", ["means"], ["shape"], start=0, end=1),
        helper.make_node("Cast", ["shape"], ["n"], to=TensorProto.FLOAT),
        helper.make_node("Pow", ["n", "exponent"], ["factor"]),
        helper.make_node("Mul", ["means", "factor"], ["features"]),
    ]
    for factor, allowed in ((1.0005, True), (1.05, False)):
        exponent = np.float32(np.log(factor) / np.log(8))
        spec = find_backbone(str(save_network(tmp_path / "network.onnx", nodes, exponent=np.asarray(exponent))))
        if allowed:
            load_backbone(spec, device="cpu")
        else:
            with pytest.raises(PipelineError, match="other features alone"):
                load_backbone(spec, device="cpu")


@pytest.mark.parametrize("size", [(256, 128), (96, 48)])
def test_the_default_backbone_is_the_torch_network_that_ships(size: tuple[int, int]) -> None:
    spec = find_backbone(DEFAULT, size)
    pixels = frames(*size, n=3)
    with torch.no_grad():
        expected = shipped_network(DEFAULT)(torch.from_numpy(normalise_pixels(pixels, spec))).numpy()
    features = load_backbone(spec, device="cpu").embed(pixels)
    assert features.shape == (3, 512)
    assert np.abs(features - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="needs ONNX Runtime for CUDA")
def test_a_backbone_on_a_gpu_is_the_one_on_a_cpu() -> None:
    pixels = frames(256, 128, 40)
    on_gpu, on_cpu = (load_backbone(find_backbone(), device=device).embed(pixels) for device in ("cuda", "cpu"))
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
    with pytest.raises(
        PipelineError, match=r"gives features of shape \(8, 3\) for 8 frames, not \(8, 7\); correct dim in its sidecar"
    ):
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


def test_the_default_is_known_by_name_on_every_machine() -> None:
    assert find_backbone().path is None and find_backbone().name == DEFAULT


class TestExportedNetworks:
    """What is kept in the cache is what was exported, or it is exported anew."""

    @pytest.fixture
    def folder(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """An empty cache below the user's own (pytest's folders lie where all may write)."""
        below = cache_folder()
        below.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=below) as folder:
            monkeypatch.setenv("XDG_CACHE_HOME", folder)
            yield Path(folder, "co-attention-search", "exported")

    @staticmethod
    def exported(network: bytes) -> tuple[bytes, bool]:
        """(what the cache gives for the toy, whether `network` was exported for it)."""
        export = Mock(return_value=network)
        return _exported(toy_spec(), export), export.called

    def test_one_export_serves_all_that_follow(self, folder: Path) -> None:
        assert self.exported(b"network") == (b"network", True)
        assert self.exported(b"other") == (b"network", False)

    @pytest.mark.parametrize("content", [b"", b"net", b"Network", b"networks"])
    def test_a_changed_or_half_written_file_is_not_loaded(self, folder: Path, content: bytes) -> None:
        self.exported(b"network")
        (file,) = folder.iterdir()
        file.write_bytes(content)
        assert self.exported(b"network") == (b"network", True)
        assert file.read_bytes() == b"network"

    @pytest.mark.parametrize("place", [".", ".."])
    def test_a_folder_that_others_may_write_to_is_not_used(self, folder: Path, place: str) -> None:
        self.exported(b"network")
        (folder / place).chmod(0o777)
        assert self.exported(b"made anew") == (b"made anew", True)
        assert [file.read_bytes() for file in folder.iterdir()] == [b"network"]
