"""Weights that lie in files beside a network: read there, hashed, and never taken from elsewhere."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper

from pipeline.backbone import onnx_file
from pipeline.backbone.onnx_file import read_onnx
from pipeline.backbone.runtime import load_backbone
from pipeline.backbone.spec import find_backbone
from pipeline.errors import PipelineError, UsageError
from tests.conftest import save_toy_backbone

FACTORS = np.array([2, 3, 5], np.float32)
OTHERS = np.array([7, 11, 13], np.float32)
FRAMES = np.random.default_rng(0).integers(0, 256, (5, 8, 4, 3), np.uint8)
MEANS = (FRAMES.astype(np.float64).mean((1, 2)) / 255 - [0.5, 0.25, 0]) / [0.5, 0.25, 1]  # what the toy backbone gives


def outside(name: str, location: str = "mean.onnx.data", **place: str) -> TensorProto:
    """FACTORS as a tensor whose content lies in a file."""
    tensor = TensorProto(name=name, dims=[3], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "4", "length": "12", **place}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def as_initializer(model: ModelProto, tensor: TensorProto) -> str:
    model.graph.initializer.append(tensor)
    return tensor.name


def as_attribute(model: ModelProto, tensor: TensorProto) -> str:
    model.graph.node.append(helper.make_node("Constant", [], ["constant"], value=tensor))
    return "constant"


def as_sparse_attribute(model: ModelProto, tensor: TensorProto) -> str:
    indices = helper.make_tensor("", TensorProto.INT64, [3], [0, 1, 2])
    sparse = onnx.SparseTensorProto(values=tensor, indices=indices, dims=[3])
    node = helper.make_node("Constant", [], ["constant"])
    node.attribute.append(AttributeProto(name="sparse_value", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse))
    model.graph.node.append(node)
    return "constant"


def _if(model: ModelProto, branch: GraphProto) -> str:
    model.graph.initializer.append(helper.make_tensor("true", TensorProto.BOOL, [], [True]))
    model.graph.node.append(helper.make_node("If", ["true"], ["chosen"], then_branch=branch, else_branch=branch))
    return "chosen"


def in_a_subgraph(model: ModelProto, tensor: TensorProto) -> str:
    out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [3])
    node = helper.make_node("Identity", [tensor.name], ["inner"])
    return _if(model, helper.make_graph([node], "branch", [], [out], [tensor]))


def in_an_attribute_of_a_subgraph(model: ModelProto, tensor: TensorProto) -> str:
    out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [3])
    return _if(model, helper.make_graph([helper.make_node("Constant", [], ["inner"], value=tensor)], "branch", [], [out]))


def in_a_function(model: ModelProto, tensor: TensorProto) -> str:
    body = [helper.make_node("Constant", [], ["given"], value=tensor)]
    model.functions.append(helper.make_function("own", "factors", [], ["given"], body, [helper.make_opsetid("", 18)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("factors", [], ["factors"], domain="own"))
    return "factors"


Place = Callable[[ModelProto, TensorProto], str]
PLACES = [as_initializer, as_attribute, as_sparse_attribute, in_a_subgraph, in_an_attribute_of_a_subgraph, in_a_function]


def save(path: Path, tensor: TensorProto, place: Place = as_initializer, data: np.ndarray = FACTORS) -> Path:
    """The toy backbone times a tensor, the tensor's file beside it: 4 other bytes before and after the data."""
    model = onnx.load(save_toy_backbone(path))
    mean = model.graph.node.pop()
    mean.output[0] = "means"
    factors = place(model, tensor)
    model.graph.node.extend([mean, helper.make_node("Mul", ["means", factors], ["features"])])
    path.write_bytes(model.SerializeToString())
    Path(f"{path}.data").write_bytes(b"\xff" * 4 + data.tobytes() + b"\xff" * 4)
    return path


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: it holds a file of the same name with other weights."""
    folder = tmp_path / "elsewhere"
    save(folder / "mean.onnx", outside("w"), data=OTHERS)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_weights_are_those_beside_the_network_wherever_the_network_names_them(
    tmp_path: Path, elsewhere: Path, place: Place
) -> None:
    spec = find_backbone(str(save(tmp_path / "models/mean.onnx", outside("w"), place)))
    features = load_backbone(spec, device="cpu").embed(FRAMES)
    assert np.abs(features - MEANS * FACTORS).max() < 1e-2


def test_large_exports_of_the_onnx_package_are_read(tmp_path: Path, elsewhere: Path) -> None:
    path = save(tmp_path / "models/mean.onnx", outside("w"))
    model = onnx.load(path)
    Path(f"{path}.data").unlink()
    Path(path.parent, "weights").mkdir()
    onnx.save_model(model, path, save_as_external_data=True, location="weights/all.bin", size_threshold=0)
    spec = find_backbone(str(path))
    assert np.abs(load_backbone(spec, device="cpu").embed(FRAMES) - MEANS * FACTORS).max() < 1e-2


def test_the_identity_covers_the_weights_files(tmp_path: Path) -> None:
    one = find_backbone(str(save(tmp_path / "one/mean.onnx", outside("w"))))
    same = find_backbone(str(save(tmp_path / "same/mean.onnx", outside("w"))))
    other = find_backbone(str(save(tmp_path / "other/mean.onnx", outside("w"), data=OTHERS)))
    assert (tmp_path / "one/mean.onnx").read_bytes() == (tmp_path / "other/mean.onnx").read_bytes()
    assert one.identity == same.identity != other.identity


def test_weights_that_changed_since_the_network_was_looked_up_are_refused(tmp_path: Path) -> None:
    spec = find_backbone(str(save(tmp_path / "mean.onnx", outside("w"))))
    save(tmp_path / "mean.onnx", outside("w"), data=OTHERS)
    with pytest.raises(PipelineError, match="its content differs"):
        load_backbone(spec, device="cpu")


def test_a_network_without_weights_beside_it_is_known_by_its_files_hash(toy_backbone: Path) -> None:
    """Galleries name backbones by it; also where the key of such files stands in the network as a mere word."""
    assert read_onnx(toy_backbone) == (toy_backbone.read_bytes(), hashlib.sha256(toy_backbone.read_bytes()).hexdigest())
    spec = find_backbone(str(toy_backbone))
    expected = load_backbone(spec, device="cpu").embed(FRAMES)
    model = onnx.load(toy_backbone)
    model.doc_string = "location"
    toy_backbone.write_bytes(model.SerializeToString())
    spec = replace(spec, weights_sha256=hashlib.sha256(toy_backbone.read_bytes()).hexdigest())
    assert find_backbone(str(toy_backbone)) == spec
    assert np.array_equal(load_backbone(spec, device="cpu").embed(FRAMES), expected)


def test_what_the_onnx_package_does_not_know_is_not_passed_on(toy_backbone: Path) -> None:
    """A tensor could lie in a field that only ONNX Runtime knows."""
    model = onnx.load(toy_backbone)
    model.doc_string = "location"
    unknown = bytes([(100 << 3 | 2) & 0x7F | 0x80, 100 >> 4, 4]) + b"abcd"  # field 100, 4 bytes long
    toy_backbone.write_bytes(model.SerializeToString() + unknown)
    network, digest = read_onnx(toy_backbone)
    assert network == model.SerializeToString() and digest == hashlib.sha256(toy_backbone.read_bytes()).hexdigest()


def test_a_link_to_a_network_finds_the_weights_beside_the_network(tmp_path: Path) -> None:
    path = save(tmp_path / "store/mean.onnx", outside("w"))
    for suffix in (".onnx", ".json"):
        (tmp_path / f"mine{suffix}").symlink_to(path.with_suffix(suffix))
    spec = find_backbone(str(tmp_path / "mine.onnx"))
    assert np.abs(load_backbone(spec, device="cpu").embed(FRAMES) - MEANS * FACTORS).max() < 1e-2


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../secret.bin", "only a file in its own folder is read"),
        ("sub/../../secret.bin", "only a file in its own folder is read"),
        ("{folder}/secret.bin", "only a file in its own folder is read"),
        ("{folder}/models/inside.bin", "only a file in its own folder is read"),
        ("/dev/zero", "only a file in its own folder is read"),
        ("link.bin", "is a link out of the folder"),
        ("out/secret.bin", "is a link out of the folder"),
        ("absent.bin", "is not beside it; copy that file there"),
        ("pipe", "is not beside it"),
        ("", "is not beside it"),
        ("sub", "is not beside it"),
        ("a\0b", "is not beside it"),
        ("*/_ORT_MEM_ADDR_/*", "is not beside it"),  # to ONNX Runtime: the offset is an address in its memory
    ],
)
def test_files_elsewhere_are_refused(tmp_path: Path, location: str, words: str) -> None:
    """Each of them holds the right weights where it can."""
    path = save(tmp_path / "models/mean.onnx", outside("w", location.format(folder=tmp_path)))
    (tmp_path / "models/sub").mkdir()
    for copy in ("secret.bin", "models/inside.bin"):
        shutil.copy(f"{path}.data", tmp_path / copy)
    (tmp_path / "models/link.bin").symlink_to(tmp_path / "secret.bin")
    (tmp_path / "models/out").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "models/pipe")
    with pytest.raises(UsageError, match=words):
        find_backbone(str(path))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"offset": "-4"}, "wants bytes -4 to 8 of 'mean.onnx.data', which has 20"),
        ({"offset": "12"}, "wants bytes 12 to 24 of 'mean.onnx.data', which has 20"),
        ({"length": "-1"}, "wants bytes 4 to 3 of"),
        ({"offset": "9" * 30}, "which has 20"),
        ({"offset": "four"}, "is not given in numbers"),
        ({"length": "9" * 5000}, "is not given in numbers"),
    ],
)
def test_places_outside_the_weights_file_are_refused(tmp_path: Path, place: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_backbone(str(save(tmp_path / "mean.onnx", outside("w", **place))))


def test_fewer_bytes_than_the_tensor_has_are_refused(tmp_path: Path) -> None:
    spec = find_backbone(str(save(tmp_path / "mean.onnx", outside("w", length="8"))))
    with pytest.raises(PipelineError, match="is not an ONNX network that can be loaded"):
        load_backbone(spec, device="cpu")


@pytest.mark.parametrize("copies", [1, 40])
def test_more_than_a_message_can_hold_is_refused_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    """One large file, or one small one that many tensors take whole."""
    path = save(tmp_path / "mean.onnx", outside("w"))
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer.extend(outside(f"w{i}") for i in range(1, copies))
    path.write_bytes(model.SerializeToString())
    assert find_backbone(str(path))
    monkeypatch.setattr(onnx_file, "MOST_BYTES", path.stat().st_size + (19 if copies == 1 else 40 * 12 - 1))
    with pytest.raises(UsageError, match="larger than 2 GiB together"):
        find_backbone(str(path))


def test_what_cannot_be_parsed_is_refused(toy_backbone: Path) -> None:
    toy_backbone.write_bytes(b"\xff location \xff")
    with pytest.raises(PipelineError, match=r"mean\.onnx is not an ONNX network that can be loaded: it cannot be parsed"):
        find_backbone(str(toy_backbone))


def test_the_format_of_onnx_runtime_itself_is_not_loaded(toy_backbone: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.optimized_model_filepath = str(toy_backbone.with_suffix(".ort"))
    onnxruntime.InferenceSession(toy_backbone.read_bytes(), options, providers=["CPUExecutionProvider"])
    toy_backbone.with_suffix(".ort").replace(toy_backbone)
    assert onnxruntime.InferenceSession(toy_backbone.read_bytes(), providers=["CPUExecutionProvider"])
    with pytest.raises(PipelineError, match="is not an ONNX network that can be loaded"):
        load_backbone(find_backbone(str(toy_backbone)), device="cpu")
