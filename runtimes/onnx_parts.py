"""Cut an ONNX model down to what some of its outputs need, without the onnx package.

ONNX Runtime computes all outputs of a graph whichever are fetched: `RunOptions.only_execute_path_to_fetches` does
nothing in its inference builds (onnxruntime issue 16013, and measured with 1.31.1). So a device that wants one function
gets a model that holds no other. Protocol-buffer messages are lists of fields, and one that is not wanted can be left
out: nothing here needs to understand an operator. Field numbers are those of onnx/onnx.proto in the onnx repository.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tasktok_edge.errors import BundleError

MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_OUTPUT, GRAPH_VALUE_INFO = 1, 5, 12, 13
NODE_INPUT, NODE_OUTPUT, NODE_ATTRIBUTE = 1, 2, 5
ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS = 6, 11
TENSOR_NAME, VALUE_NAME = 8, 1
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    number: int
    whole: memoryview  # with its tag
    body: memoryview  # of a BYTES field, else empty


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: memoryview) -> Iterator[Field]:
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        body = data[0:0]
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                length, at = _varint(data, at)
                body = data[at : at + length]
                at += length
            case 5:
                at += 4
            case _:
                raise IndexError(f"wire type {tag & 7}")
        if at > len(data):
            raise IndexError("a field ends behind its message")
        yield Field(tag >> 3, data[start:at], body)


def _names(message: memoryview, number: int) -> list[str]:
    return [bytes(f.body).decode() for f in _fields(message) if f.number == number]


def _read_by(node: memoryview) -> set[str]:
    """Name what a node reads, with what the graphs in its attributes read from outside."""
    read: set[str] = set()
    for f in _fields(node):
        if f.number == NODE_INPUT:
            read.add(bytes(f.body).decode())
        elif f.number == NODE_ATTRIBUTE:
            for a in _fields(f.body):
                if a.number in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
                    for g in _fields(a.body):
                        if g.number == GRAPH_NODE:
                            read |= _read_by(g.body)
                        elif g.number == GRAPH_OUTPUT:
                            read.update(_names(g.body, VALUE_NAME))
    return read


def _graph(graph: memoryview, outputs: Sequence[str]) -> bytes:
    fields = list(_fields(graph))
    needed = set(outputs)
    kept: set[int] = set()
    for i, f in reversed(list(enumerate(fields))):  # nodes stand in topological order, as the format demands
        if f.number == GRAPH_NODE and needed.intersection(_names(f.body, NODE_OUTPUT)):
            needed |= _read_by(f.body)
            kept.add(i)
    for i, f in enumerate(fields):
        if f.number == GRAPH_OUTPUT:
            keep = _names(f.body, VALUE_NAME)[0] in outputs
        elif f.number == GRAPH_INITIALIZER:
            keep = _names(f.body, TENSOR_NAME)[0] in needed
        elif f.number == GRAPH_VALUE_INFO:
            keep = _names(f.body, VALUE_NAME)[0] in needed
        else:
            keep = f.number != GRAPH_NODE
        if keep:
            kept.add(i)
    return b"".join(f.whole for i, f in enumerate(fields) if i in kept)


def _encode(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def keep_outputs(model: bytes, outputs: Sequence[str]) -> bytes:
    """Give the model whose graph has only `outputs`, in the order of the old one, and only the nodes they need."""
    try:
        parts: list[bytes | memoryview] = []
        for f in _fields(memoryview(model)):
            if f.number == MODEL_GRAPH:
                graph = _graph(f.body, outputs)
                parts += [_encode(MODEL_GRAPH << 3 | BYTES), _encode(len(graph)), graph]
            else:
                parts.append(f.whole)
        return b"".join(parts)
    except (IndexError, UnicodeDecodeError) as error:
        raise BundleError(f"the ONNX model is not well formed: {error}") from None
