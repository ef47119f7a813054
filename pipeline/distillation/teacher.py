"""The teacher: an OSNet in ONNX that shows its inner maps.

Inner maps are found by the graph's structure, so that exports of other origin, whatever their names, can teach as well.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pipeline.backbone.network import onnx_network
from pipeline.backbone.osnet import OSNetConfig
from pipeline.backbone.spec import find_backbone
from pipeline.errors import PipelineError, UsageError

TRUNK = {
    "stem": "MaxPool",
    "stage1a": "Relu",
    "stage1b": "Relu",
    "down1": "AveragePool",
    "stage2a": "Relu",
    "stage2b": "Relu",
    "down2": "AveragePool",
    "stage3a": "Relu",
    "stage3b": "Relu",
}
"""`OSNet.parts` up to the last block, and the operation that each ends with (a block: ReLU of a sum)."""
LAST, FEATURE = "last", "feature"


class Graph:
    """An ONNX graph by tensor: who makes it, who reads it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)

    def after(self, tensor: str, *operations: str) -> list[str]:
        """What comes out of every chain of these operations that starts at a tensor."""
        found = [tensor]
        for operation in operations:
            found = [node.output[0] for name in found for node in self.readers[name] if node.op_type == operation]
        return found

    def is_made_by(self, tensor: str, operation: str) -> bool:
        return tensor in self.maker and self.maker[tensor].op_type == operation


def find_hints(model: onnx.ModelProto) -> dict[str, str]:
    """Where the graph of an OSNet has what the modules of `OSNet.parts` make.

    Returns module -> tensor: the parts of the trunk ("stem", "stage1a", ...) and, inside of each block, "stage1a.reduce" and the
    layers of its streams, "stage1a.streams.2.0". Raises UsageError when the graph is not an OSNet's.
    """
    graph = Graph(model.graph)
    trunk = [
        (node.op_type, node.output[0])
        for node in graph.nodes
        if node.op_type in ("MaxPool", "AveragePool") or (node.op_type == "Relu" and graph.is_made_by(node.input[0], "Add"))
    ]
    pooled = [node.input[0] for node in graph.nodes if node.op_type == "GlobalAveragePool"]
    if [operation for operation, _ in trunk] != list(TRUNK.values()) or not pooled or len(model.graph.output) != 1:
        raise UsageError("the teacher's graph is not that of an OSNet with one output; its inner maps cannot teach")
    hints = dict(zip(TRUNK, (tensor for _, tensor in trunk), strict=True))
    before = dict(zip(list(TRUNK)[1:], TRUNK, strict=False))
    for block in [name for name in TRUNK if name.startswith("stage")]:
        hints |= {f"{block}.{name}": tensor for name, tensor in _inside(graph, hints[before[block]], block).items()}
    return hints | {LAST: pooled[-1], FEATURE: model.graph.output[0].name}


def _inside(graph: Graph, start: str, block: str) -> dict[str, str]:
    """The maps inside of a block that reads the tensor `start`."""
    reduced = graph.after(start, "Conv", "Relu")
    streams = []
    for reached in graph.after(reduced[0], "Conv", "Conv", "Relu") if len(reduced) == 1 else []:
        stream = [reached]
        while deeper := graph.after(stream[-1], "Conv", "Conv", "Relu"):
            stream += deeper
        streams.append(stream)
    streams.sort(key=len)
    if [len(stream) for stream in streams] != [1, 2, 3, 4]:
        raise UsageError(f"{block} of the teacher has no four streams of 1 to 4 convolutions; it is no OSNet")
    layers = {f"streams.{k}.{j}": tensor for k, stream in enumerate(streams) for j, tensor in enumerate(stream)}
    return {"reduce": reduced[0], **layers}


class HintTeacher:
    """An OSNet in ONNX Runtime that gives all its inner maps.

    path: an ONNX file with the sidecar of a backbone (`pipeline.backbone.spec`), which says how its pixels are prepared.
    threads: CPU threads; None: one a core. Raises UsageError when it is no OSNet, PipelineError when it cannot be loaded.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        import onnxruntime

        self.spec = find_backbone(str(path))
        if self.spec.path is None:
            raise UsageError(f"{path} is a name; a teacher is given as the path of its ONNX file")
        network = onnx_network(self.spec)
        try:
            model = onnx.load_from_string(network)
        except Exception as error:  # protobuf has a class of its own
            raise PipelineError(f"{path} is not an ONNX network") from error
        hints = find_hints(model)
        self.names = list(hints)
        _show(model, hints)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the student computes in between
        if threads is not None:
            options.intra_op_num_threads = threads
        offered = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in offered]
        try:
            self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
        except Exception as error:  # ONNX Runtime raises a family of classes of its own
            raise PipelineError(f"{path} is not an ONNX network that can be loaded: {error}") from error
        self.input = self.session.get_inputs()[0].name
        self.outputs = list(hints.values())

    def maps(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """pixels: float32 [n, 3, h, w], h and w multiples of 16 -> the maps of `find_hints`, float32 [n, c, ...], by module."""
        return dict(zip(self.names, self.session.run(self.outputs, {self.input: pixels}), strict=True))

    def student_sizes(self) -> OSNetConfig:
        """Sizes of a student of this teacher's channels."""
        maps = self.maps(np.zeros((1, 3, 64, 32), np.float32))
        first, second, third, fourth, features = (
            maps[name].shape[1] for name in ("stem", "stage1b", "stage2b", "stage3b", FEATURE)
        )
        return OSNetConfig((first, second, third, fourth), features)


def _show(model: onnx.ModelProto, hints: dict[str, str]) -> None:
    """Make tensors outputs of the network, and its height and width free."""
    kept = {output.name for output in model.graph.output}
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(t) for t in hints.values() if t not in kept)
    del model.graph.value_info[:]
    for axis, size in zip(("n", "height", "width"), [0, 2, 3], strict=True):
        model.graph.input[0].type.tensor_type.shape.dim[size].dim_param = axis
