"""Damaged galleries and indexes, manifests that want out of their folder, model files that want to run code."""

import hashlib
import json
import os
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.backbone.runtime import load_backbone
from pipeline.backbone.spec import BackboneSpec, find_backbone
from pipeline.catalog.inputs import read_catalog
from pipeline.coattention.head import load_head, save_head
from pipeline.coattention.network import Coattention, CoattentionConfig
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import Gallery
from tests.conftest import save_toy_backbone
from tests.damage import Witness, made_up_gallery, try_damage

SEED = 11


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return made_up_gallery(tmp_path_factory.mktemp("files") / "gallery")


@pytest.fixture(scope="module")
def witness() -> Iterator[Witness]:
    witness = Witness()
    yield witness
    witness.pool.shutdown()


def test_a_damaged_file_is_named_and_never_gives_other_leads_unnoticed(gallery: Gallery, witness: Witness) -> None:
    tried = try_damage(gallery, witness, 60, SEED)
    assert [damage.fault for damage in tried if damage.fault] == []
    unnoticed = [damage for damage in tried if damage.result == "same leads, seen by nothing"]
    assert len(unnoticed) < 12  # in commits and tables of videos, which have no checksums; it changes no lead


def test_what_only_the_check_can_notice_is_named_by_it(gallery: Gallery, witness: Witness) -> None:
    """One bit of a stored value: no search reads checksums, so it answers; the check names the file."""
    (path, *_) = sorted(Path(gallery.location.path).rglob("values.npy"))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 4]))
    answer = witness.answer(gallery.location.path)
    path.write_bytes(data)
    assert answer.leads is not None and [fault for fault in answer.faults if str(path) in fault and "checksum" in fault]


SECRET = "secret.mp4"
PARTS = (
    "..",
    ".",
    "",
    "a.mp4",
    "folder",
    "out",
    "in",
    "%2e%2e",
    "..%2f..",
    "%2E.",
    SECRET,
    "secret",
    "videos",
    "~",
    "\\..",
    " ..",
    "..;",
)
STARTS = (
    "",
    "/",
    "{root}/",
    "file://{root}/",
    "FILE://localhost{root}/",
    "file://{root}%2f",
    "{root}/../",
    "//",
    "s3://bucket/videos/",
)


class TestManifestsStayWithinTheRoots:
    @settings(
        deadline=None, max_examples=200, report_multiple_bugs=False, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.sampled_from(STARTS), st.lists(st.sampled_from(PARTS), min_size=1, max_size=6))
    def test_whatever_a_uri_spells(self, outside: Path, start: str, parts: list[str]) -> None:
        root = outside / "videos"
        uri = start.format(root=root) + "/".join(parts)
        (root / "m.jsonl").write_text(json.dumps({"uri": uri}))
        try:
            (row,) = read_catalog(root / "m.jsonl", roots=[root]).table.to_pylist()
        except UsageError:
            return
        really = os.path.realpath(row["uri"]) if row["uri"].startswith("/") else row["uri"]
        lies_inside = really == str(root) or really.startswith(f"{root}/")
        assert (row["reject_reason"] is None) == lies_inside, (uri, really)

    @pytest.mark.parametrize(
        "uri",
        [
            *("s3://bucket/videos/../secret/a.mp4", "s3://bucket/videos/./../secret.mp4", "s3://bucket/videos2/a.mp4"),
            *("s3://bucket/videos", "s3://Bucket/videos/a.mp4", "s3://other/videos/a.mp4", "gs://bucket/videos/a.mp4"),
            "s3://bucket/videos/a.mp4?endpoint_override=http://evil.example",
            "s3://bucket/videos/a.mp4?scheme=http&endpoint_override=evil.example",
        ],
    )
    def test_whatever_a_key_spells(self, tmp_path: Path, uri: str) -> None:
        (tmp_path / "m.jsonl").write_text(
            json.dumps({"uri": uri}) + "\n" + json.dumps({"uri": "s3://bucket/videos/in/%2e%2e/b.mp4"})
        )
        reasons = {
            row["uri"]: row["reject_reason"]
            for row in read_catalog(tmp_path / "m.jsonl", roots=["s3://bucket/videos/in"]).table.to_pylist()
        }
        assert reasons.pop("s3://bucket/videos/in/%2e%2e/b.mp4") is None  # a key is literal: these are no dots
        assert list(reasons.values()) == ["unnamed_endpoint" if "evil" in uri else "outside_roots"]

    @pytest.fixture
    def outside(self, tmp_path: Path) -> Path:
        """videos/ with a file, a folder and links, and secret/ beside it."""
        for name in ("videos/a.mp4", "videos/folder/a.mp4", f"secret/{SECRET}"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "videos/out").symlink_to(tmp_path / "secret")
        (tmp_path / "videos/in").symlink_to(tmp_path / "videos/folder")
        return tmp_path


class TestModelFiles:
    """A model is data: it opens no file outside its folder and runs nothing but the operators of the runtime."""

    @staticmethod
    def save(path: Path, change: Callable[[onnx.ModelProto], None]) -> BackboneSpec:
        model = onnx.load(save_toy_backbone(path))
        change(model)
        path.write_bytes(model.SerializeToString())
        return find_backbone(str(path))

    @pytest.mark.parametrize("location", ["../secret.bin", "{folder}/secret.bin", "secret.bin", "/dev/zero"])
    def test_external_data_is_never_read_elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str) -> None:
        """The network's axes are said to lie in another file, which holds the right ones; so does the current directory."""
        (tmp_path / "secret.bin").write_bytes(np.array([2, 3], np.int64).tobytes())
        monkeypatch.chdir(tmp_path)

        def move_out(model: onnx.ModelProto) -> None:
            (axes,) = model.graph.initializer
            axes.ClearField("int64_data")
            axes.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", location.format(folder=tmp_path)), ("offset", "0"), ("length", "16")):
                entry = axes.external_data.add()
                entry.key, entry.value = key, value

        with pytest.raises(UsageError, match="keeps weights in"):
            self.save(tmp_path / "models/mean.onnx", move_out)

    @pytest.mark.parametrize("domain", ["evil.example", "ai.onnx.contrib", "com.microsoft.extensions"])
    def test_operators_of_others_are_refused(self, tmp_path: Path, domain: str) -> None:
        def own_operator(model: onnx.ModelProto) -> None:
            model.graph.node[0].domain, model.graph.node[0].op_type = domain, "PyOp"
            model.opset_import.add(domain=domain, version=1)

        with pytest.raises(PipelineError, match="is not an ONNX network that can be loaded"):
            load_backbone(self.save(tmp_path / "mean.onnx", own_operator), device="cpu")

    @pytest.mark.parametrize("size", [2**63 - 1, 2**64 - 1, 2**40, 100_000_001, 0])
    def test_a_safetensors_header_of_absurd_size_is_refused_at_once(self, tmp_path: Path, size: int) -> None:
        self.refused_head(tmp_path, struct.pack("<Q", size) + b"{}")

    @pytest.mark.parametrize(
        "tensor",
        [
            {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 16]},
            {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]},
            {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**60]},
            {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        ],
    )
    def test_tensors_larger_than_their_file_are_refused_at_once(self, tmp_path: Path, tensor: dict[str, Any]) -> None:
        header = json.dumps({"key.weight": tensor}).encode()
        self.refused_head(tmp_path, struct.pack("<Q", len(header)) + header + bytes(16))

    @staticmethod
    def refused_head(folder: Path, payload: bytes) -> None:
        """A head whose checksum is right and whose tensors are these bytes."""
        save_head(Coattention(CoattentionConfig(6, 4, 5)), folder, {})
        document = json.loads((folder / "model.json").read_text())
        (folder / "model.safetensors").write_bytes(payload)
        (folder / "model.json").write_text(json.dumps({**document, "sha256": hashlib.sha256(payload).hexdigest()}))
        tracemalloc.start()
        with pytest.raises(PipelineError, match="is not a safetensors file"):
            load_head(folder)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
        tracemalloc.stop()
