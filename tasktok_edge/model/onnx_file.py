"""An ONNX file as plain data: nodes, constants as tensors, one image input. Nothing of onnx is left behind it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import torch
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]  # comes with onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor
from torch import Tensor

from tasktok_edge.errors import UsageError

OPSETS = range(11, 25)  # before 11 operators mean other things; later ones were never compared
MAX_BYTES = 1 << 30  # of graph and weights: several times the largest network anyone runs beside a camera
MAX_NODES = 50_000
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_INTEGERS = (
    TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
    TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
)  # fmt: skip
# What damaged or hostile files make the readers raise.
_READ_ERRORS = (
    DecodeError, EncodeError, onnx.checker.ValidationError, OSError, ValueError, TypeError, LookupError, RuntimeError,
    OverflowError, AttributeError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One operator. An input or output without a name is one that was left out."""

    op: str  # "Conv", or with its domain "com.microsoft::FusedConv"
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, object]  # numbers, strings, lists of them, tensors


@dataclass(frozen=True)
class Graph:
    """A network of one image. Floating constants are float32, whole numbers int64, whatever width the file has."""

    opset: int
    input: str
    shape: tuple[int | None, ...]  # of the input; None where the file leaves it open
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: dict[str, Tensor]


def read_graph(path: Path) -> Graph:
    """Read an ONNX file and the weights beside it; UsageError says what is wrong, in one line.

    Weights outside the file are read from its own folder alone.
    """
    if not path.is_file():
        raise UsageError(f"no ONNX file at '{path}'")
    try:
        return _graph(_load(path))
    except UsageError as fault:
        raise UsageError(f"'{path}': {fault}") from None
    except _READ_ERRORS as fault:
        told = " ".join(str(fault).split())[:200] or type(fault).__name__
        raise UsageError(
            f"'{path}' is no whole and valid ONNX file ({told}): copy or export it again, with its .data file"
        ) from None


def _load(path: Path) -> ModelProto:
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"it is larger than {MAX_BYTES >> 20} MiB, which no task network here may be")
    model = onnx.load(path, load_external_data=False)
    for tensor in _outside(path, model):
        load_external_data_for_tensor(tensor, str(path.parent))
    onnx.checker.check_model(model)
    if model.functions:
        _check_functions(model)
        model = onnx.inliner.inline_local_functions(model)
    return model


def _outside(path: Path, model: ModelProto) -> Iterator[TensorProto]:
    """Give the weights that lie in other files, each after a check of where and how large it is."""
    folder, total = path.parent.resolve(), 0
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        info = ExternalDataInfo(tensor)
        file = (folder / info.location).resolve()
        if not info.location or not file.is_relative_to(folder):
            raise UsageError(f"a weight lies outside the file's folder, at {info.location!r}: nothing of it was read")
        if not file.is_file():
            raise UsageError(f"its weights are in {info.location!r}, which is not beside it: copy both files")
        wanted = prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        found = info.length if info.length is not None else file.stat().st_size - (info.offset or 0)
        if min(tensor.dims, default=0) < 0 or found != wanted:
            raise UsageError(f"{info.location!r} holds {found} bytes for the weight {tensor.name!r}, expected {wanted}")
        total += wanted
        if total > MAX_BYTES:
            raise UsageError(f"its weights are larger than {MAX_BYTES >> 20} MiB, which no task network here may be")
        yield tensor


def _check_functions(model: ModelProto) -> None:
    """Functions of the file's own are written out where they are called: a few that call each other twice can be any size."""
    calls = {(f.domain, f.name): [(n.domain, n.op_type) for n in _nodes(f.node)] for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    for name in TopologicalSorter(calls).static_order():
        sizes[name] = sum(sizes[called] for called in calls[name]) if name in calls else 1
    total = sum(sizes.get((node.domain, node.op_type), 1) for node in _nodes(model.graph.node))
    if total > MAX_NODES:
        raise UsageError(f"its functions written out are {total} nodes, at most {MAX_NODES} are taken")


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body.node)


def _graph(model: ModelProto) -> Graph:
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset not in OPSETS:
        raise UsageError(f"it is of opset {opset}, expected {OPSETS[0]} to {OPSETS[-1]}: export it with opset_version=20")
    graph = model.graph
    if len(graph.node) > MAX_NODES:
        raise UsageError(f"it has {len(graph.node)} nodes, at most {MAX_NODES} are taken")
    if graph.sparse_initializer:
        raise UsageError("it has sparse weights: export it with dense ones")
    constants = {tensor.name: to_tensor(tensor) for tensor in graph.initializer}
    images = [value for value in graph.input if value.name not in constants]
    if len(images) != 1:
        named = ", ".join(repr(value.name) for value in images[:4]) or "none"
        raise UsageError(f"it takes {len(images)} inputs ({named}), expected one image")
    return Graph(
        opset=opset,
        input=images[0].name,
        shape=_image_shape(images[0]),
        outputs=tuple(value.name for value in graph.output),
        nodes=tuple(_node(node) for node in graph.node),
        constants=constants,
    )


def _image_shape(value: ValueInfoProto) -> tuple[int | None, ...]:
    tensor = value.type.tensor_type
    if tensor.elem_type not in _FLOATS:
        kind = TensorProto.DataType.Name(tensor.elem_type) if tensor.elem_type else "no tensor"
        raise UsageError(f"its input {value.name!r} is {kind}, expected a FLOAT image in [0, 1]")
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)


def _node(node: NodeProto) -> Node:
    op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    attributes = {attribute.name: _value(attribute) for attribute in node.attribute}
    return Node(op, node.name, tuple(node.input), tuple(node.output), attributes)


def _value(attribute: AttributeProto) -> object:
    if attribute.type == AttributeProto.TENSOR:
        return to_tensor(attribute.t)
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if isinstance(value, list | tuple) or hasattr(value, "__len__") else value


def to_tensor(tensor: TensorProto) -> Tensor:
    """Turn a tensor of the file into float32, int64 or bool."""
    if tensor.data_location == TensorProto.EXTERNAL:
        raise UsageError(f"the constant {tensor.name!r} lies in another file, where only weights may")
    kinds = {TensorProto.BOOL: np.bool_} | dict.fromkeys(_FLOATS, np.float32) | dict.fromkeys(_INTEGERS, np.int64)
    if tensor.data_type not in kinds:
        name = TensorProto.DataType.Name(tensor.data_type)
        raise UsageError(f"the constant {tensor.name!r} is {name}: export the network in float32, not quantised")
    array = onnx.numpy_helper.to_array(tensor).astype(kinds[tensor.data_type])
    return torch.from_numpy(np.array(array, order="C"))  # a copy that owns its memory; 0-d stays 0-d
