"""Backbones and heads that ship, and published backbones: found by name, compared by content, the same on every machine."""

import hashlib
import io
import itertools
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from onnx import numpy_helper

from pipeline.backbone import published
from pipeline.backbone import shipped as weights
from pipeline.backbone.osnet_checkpoint import read_checkpoint
from pipeline.backbone.published import OSNET_X0_25, PUBLISHED, Published
from pipeline.backbone.runtime import load_backbone
from pipeline.backbone.spec import find_backbone, same_backbone
from pipeline.coattention.head import load_head, save_head, shipped_head, untrained_head
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.search.targets import gallery_backbone
from pipeline.storage.downloads import PinnedFile
from tests.conftest import SHARED, save_toy_backbone, toy_spec

OSNET = SHARED / "models/osnet_x0_25_msmt17/osnet_x0_25_msmt17.onnx"
needs_osnet = pytest.mark.skipif(not OSNET.exists(), reason="../shared/models/osnet_x0_25_msmt17 is not there")
REAL = weights.WEIGHTS
LIMIT = 25_000_000  # bytes of everything that ships


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that ships the backbone `toy` and a head for it; the head's folder says nothing of that."""
    folder = tmp_path / "site-packages" / "weights"
    save_toy_backbone(folder / "backbones" / "toy.onnx")
    monkeypatch.setattr(weights, "WEIGHTS", folder)
    head = untrained_head(np.random.default_rng(0).normal(size=(50, 3)))
    save_head(head, folder / "heads" / "another name", {}, find_backbone("toy").identity)
    return folder


def test_a_backbone_that_ships_goes_by_name_on_every_machine(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = Gallery.open_or_create(tmp_path / "gallery", GallerySettings(find_backbone("toy"), 10.0, None))
    assert "site-packages" not in (tmp_path / "gallery" / "gallery.json").read_text()
    frames = np.random.default_rng(1).integers(0, 256, (5, 8, 4, 3), np.uint8)
    by_path = load_backbone(find_backbone(str(shipped / "backbones" / "toy.onnx")), device="cpu").embed(frames)
    elsewhere = tmp_path / "another machine"
    shutil.move(shipped, elsewhere)
    monkeypatch.setattr(weights, "WEIGHTS", elsewhere)
    assert np.array_equal(gallery_backbone(Gallery.open(tmp_path / "gallery")).embed(frames), by_path)
    assert gallery_backbone(gallery, "toy").spec == gallery.settings.backbone


def test_a_gallery_of_another_version_of_what_ships_is_refused(shipped: Path) -> None:
    spec = find_backbone("toy")
    path = shipped / "backbones" / "toy.onnx"
    network = onnx.load(path)
    network.doc_string = "version 2"
    onnx.save(network, str(path))
    with pytest.raises(PipelineError, match="another version of toy ships with this installation"):
        load_backbone(spec, device="cpu")
    path.unlink()
    with pytest.raises(PipelineError, match="this installation has no backbone toy; say where it is with --backbone"):
        load_backbone(spec, device="cpu")


def test_a_head_is_found_by_the_content_of_its_backbone(shipped: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.onnx"
    for suffix in (".onnx", ".json"):
        shutil.copy(shipped / "backbones" / f"toy{suffix}", copy.with_suffix(suffix))
    identity = find_backbone(str(copy)).identity
    assert identity != find_backbone("toy").identity and same_backbone(identity, find_backbone("toy").identity)
    head = shipped / "heads" / "another name"
    assert shipped_head(identity) == head and shipped_head(identity.split("@")[1]) == head
    assert shipped_head(find_backbone("toy", (16, 8)).identity) is None  # other frames, other features
    assert shipped_head(toy_spec().identity) is None


def test_a_head_that_names_no_backbone_belongs_to_none(shipped: Path) -> None:
    description = shipped / "heads" / "another name" / "model.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "backbone_hash": ""}))
    assert shipped_head(find_backbone("toy").identity) is None
    description.write_text("{")
    with pytest.raises(PipelineError, match=r"another name/model\.json is not JSON"):
        shipped_head(find_backbone("toy").identity)


@pytest.mark.parametrize("name", weights.shipped_backbones())
def test_each_backbone_that_ships_loads(name: str) -> None:
    spec = find_backbone(name)
    assert json.loads((REAL / "backbones" / f"{name}.json").read_text()).get("name", name) == name
    load_backbone(spec, threads=1, device="cpu")


@pytest.mark.parametrize("folder", sorted(path.name for path in (REAL / "heads").glob("*")))
def test_each_head_that_ships_loads_and_names_a_backbone(folder: str) -> None:
    assert load_head(REAL / "heads" / folder).config.feature_width > 0
    description = json.loads((REAL / "heads" / folder / "model.json").read_text())
    assert shipped_head(description["backbone_hash"]) == REAL / "heads" / folder
    if folder in weights.shipped_backbones():
        assert same_backbone(description["backbone_hash"], find_backbone(folder).identity)


@pytest.mark.parametrize("name", [path.stem for path in (REAL / "backbones").glob("*.safetensors")])
def test_the_torch_network_that_ships_gives_the_numbers_of_its_onnx_file(name: str) -> None:
    frames = np.random.default_rng(0).normal(size=(4, 3, 256, 128)).astype(np.float32)
    session = onnxruntime.InferenceSession(REAL / "backbones" / f"{name}.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(None, {"frames": frames})[0]
    with torch.no_grad():
        features = weights.shipped_network(name)(torch.from_numpy(frames)).numpy()
    assert expected.std() > 0.01 and np.abs(features - expected).max() < 1e-4


def test_tensors_that_do_not_ship_or_are_damaged_are_one_sentence(shipped: Path) -> None:
    with pytest.raises(UsageError, match="no tensors of a backbone 'toy' ship"):
        weights.shipped_network("toy")
    for content in (b"no tensors", pickle.dumps({"weight": 1}), safetensors.torch.save({"weight": torch.zeros(1)})):
        (shipped / "backbones" / "toy.safetensors").write_bytes(content)
        with pytest.raises(PipelineError, match=r"toy\.safetensors does not hold the tensors of an OSNet"):
            weights.shipped_network("toy")


def test_what_ships_is_small() -> None:
    assert sum(path.stat().st_size for path in REAL.rglob("*") if path.is_file()) <= LIMIT


def test_published_weights_come_over_https_only() -> None:
    assert all(file.file.url is None or file.file.url.startswith("https://") for files in PUBLISHED.values() for file in files)
    with pytest.raises(ValueError, match="published under https"):
        Published("a", PinnedFile("a.onnx", "0" * 64, 1, "http://a/a.onnx"), 8, 4, (0.0,) * 3, (1.0,) * 3, 3)


@pytest.mark.shared
@needs_osnet
def test_a_copy_in_the_cache_is_the_published_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "co-attention-search" / "backbones"
    folder.mkdir(parents=True)
    shutil.copy(OSNET, folder / "from a colleague.onnx")
    spec = find_backbone("osnet_x0_25")
    assert spec == find_backbone("osnet_x0_25_msmt17") and spec.path is None
    assert spec.identity == find_backbone(str(OSNET)).identity  # and its sidecar
    assert load_backbone(spec, threads=1, device="cpu").embed(np.zeros((2, 256, 128, 3), np.uint8)).shape == (2, 512)


def test_without_a_copy_or_a_network_a_published_backbone_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # whatever the network here, nothing is reached
    with pytest.raises(PipelineError) as caught:
        find_backbone("osnet_x0_25")
    folder = tmp_path / "co-attention-search" / "backbones"
    for words in (
        OSNET_X0_25[1].file.url,
        "there is no connection",
        f"to {folder}/osnet_x0_25_msmt17.pth",
        "path of any .onnx file",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("osnet_ain_x1_0", "MODEL_ZOO; export it to ONNX, write a sidecar beside it, and give the path"),
        ("osnet_x0_25_market1501", "MODEL_ZOO"),
        ("person-reidentification-retail-0286", "OpenVINO IR at .*; convert it to ONNX"),
        (
            "osnet_x0_25_distiled",
            "a backbone is 'osnet_x0_25_distilled' or .*'osnet_x0_25' or .*the path of an .onnx file",
        ),
    ],
)
def test_a_name_without_weights_says_where_they_are(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_backbone(name)


@pytest.mark.shared
@needs_osnet
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_authors_checkpoint_becomes_the_network_that_it_was_exported_to(prefix: str) -> None:
    data = checkpoint_of(OSNET, prefix)
    pixels = np.random.default_rng(0).normal(size=(3, 3, 256, 128)).astype(np.float32)
    session = onnxruntime.InferenceSession(OSNET, providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: pixels})[0]
    with torch.no_grad():
        features = read_checkpoint(data, "it")(torch.from_numpy(pixels)).numpy()
    assert expected.std() > 0.1 and np.abs(features - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.shared
@needs_osnet
def test_a_checkpoint_in_the_cache_is_used_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = checkpoint_of(OSNET, "")
    file = PinnedFile("osnet.pth", hashlib.sha256(data).hexdigest(), len(data), None)
    monkeypatch.setattr(published, "PUBLISHED", {"osnet_x0_25": (published._osnet(file),)})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "co-attention-search" / "backbones"
    folder.mkdir(parents=True)
    (folder / "osnet.pth").write_bytes(data)
    frames = np.random.default_rng(0).integers(0, 256, (3, 256, 128, 3), np.uint8)
    spec = find_backbone("osnet_x0_25")
    expected = load_backbone(find_backbone(str(OSNET)), device="cpu").embed(frames)
    for _ in range(2):  # exported, then from the cache
        features = load_backbone(spec, device="cpu").embed(frames)
        assert np.abs(features.astype(np.float32) - expected).max() < 2e-3 * np.abs(expected).max()


def test_a_checkpoint_that_is_none_is_refused_and_runs_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    for content in (Trap(), {"conv1.conv.weight": torch.zeros(1)}, {"something.weight": torch.zeros(1)}, 5):
        data = io.BytesIO()
        torch.save(content, data)
        with pytest.raises(PipelineError, match=r"here\.pth is not a checkpoint of an OSNet"):
            read_checkpoint(data.getvalue(), "here.pth")
    assert not (tmp_path / "ran").exists()


def checkpoint_of(path: Path, prefix: str) -> bytes:
    """The tensors of an exported network under its authors' names, which its nodes carry: /conv2/conv2.0/conv1/conv/Conv.

    The export has folded each batch normalisation into the convolution before it; what is left of it is a shift.
    """
    network = onnx.load(path)
    arrays = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in network.graph.initializer}
    tensors = {f"{prefix}classifier.weight": torch.zeros(5, 512), f"{prefix}classifier.bias": torch.zeros(5)}
    for node in network.graph.node:
        given = [arrays[name] for name in node.input[1:] if name in arrays]
        if node.op_type not in ("Conv", "Gemm", "BatchNormalization"):
            continue
        *parents, layer, _ = node.name.strip("/").split("/")
        parents = [
            part for part, later in itertools.zip_longest(parents, parents[1:], fillvalue="") if not later.startswith(f"{part}.")
        ]
        if node.op_type == "BatchNormalization":
            names = ("weight", "bias", "running_mean", "running_var")
            tensors |= {f"{prefix}{layer}.{name}": value for name, value in zip(names, given, strict=True)}
        elif node.op_type == "Gemm":
            tensors |= {f"{prefix}{layer}.weight": given[0], f"{prefix}{layer}.bias": given[1]}
        elif "gate" in parents:
            layer = layer.split("_")[0]
            tensors |= {f"{prefix}{'.'.join([*parents, layer])}.{n}": v for n, v in zip(("weight", "bias"), given, strict=True)}
        else:
            tensors[f"{prefix}{'.'.join([*parents, layer])}.weight"] = given[0]
            if len(given) == 2:
                bn, ones = ".".join([*parents, "bn"]), torch.ones(len(given[1]))
                values = {"weight": ones, "bias": given[1], "running_mean": 0 * ones, "running_var": ones - 1e-5}
                tensors |= {f"{prefix}{bn}.{name}": value for name, value in values.items()}
    data = io.BytesIO()
    torch.save(tensors, data)
    return data.getvalue()
