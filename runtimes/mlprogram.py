"""Read a Core ML package of type ML program: its functions as operators over named values, its weights as arrays.

The format is MIL (Model Intermediate Language), described by coremltools' MIL.proto; weights lie in a blob file, version 2:
a header, and for each entry 64 bytes of metadata (sentinel, type, size, where the data begins). Everything is checked against
what it is declared to be: a package that is read is one whose numbers are meant.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.errors import DeviceError
from tasktok_edge.runtimes.engine import missing, quiet

MODEL = Path("Data", "com.apple.CoreML", "model.mlmodel")
WEIGHTS = Path("Data", "com.apple.CoreML")  # what @model_path stands for
SENTINEL = 0xDEADBEEF
METADATA = struct.Struct("<IIQQQ")  # sentinel, type, bytes, where the data begins, padding bits
# MIL.proto's DataType to NumPy's, and the numbers that blob files have for the same.
DTYPES: dict[str, Any] = {
    "BOOL": np.bool_, "FLOAT16": np.float16, "FLOAT32": np.float32,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32,
}  # fmt: skip
BLOB_TYPES = {"FLOAT16": 1, "FLOAT32": 2, "UINT8": 3, "INT8": 4, "INT16": 6, "UINT16": 7, "INT32": 14, "UINT32": 15}


@dataclass(frozen=True)
class Reference:
    """An earlier value, by its name."""

    name: str


Constant = NDArray[Any] | str


@dataclass(frozen=True)
class Typed:
    """A value's name, type (MIL's word) and shape, as they are declared."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """One operation: what it is given, by the parameter's name (concat's `values` are several), and what it makes."""

    type: str
    arguments: dict[str, list[Constant | Reference]]
    results: tuple[Typed, ...]

    def reads(self) -> Iterator[str]:
        """The names of the earlier values that it is given."""
        return (one.name for several in self.arguments.values() for one in several if isinstance(one, Reference))


@dataclass(frozen=True)
class Function:
    """A function of the program: what it takes, what it does in order, the names of what it gives."""

    name: str
    inputs: tuple[Typed, ...]
    operators: tuple[Operator, ...]
    outputs: tuple[str, ...]


class Package:
    """An .mlpackage. Raises DeviceError where it is no ML program, or is not what it declares."""

    def __init__(self, path: Path) -> None:
        try:
            with quiet():
                from coremltools.proto import MIL_pb2, Model_pb2
        except ImportError as error:
            raise missing("coremltools", "coreml", error) from None
        self._path, self._blobs = path, dict[str, NDArray[np.uint8]]()
        self._type_name = MIL_pb2.DataType.Name
        model = Model_pb2.Model()
        try:
            model.ParseFromString((path / MODEL).read_bytes())
        except Exception as error:  # noqa: BLE001  # protobuf's DecodeError, which its C and Python parts each define
            raise DeviceError(f"{MODEL} cannot be read: {error}") from None
        if model.WhichOneof("Type") != "mlProgram":
            raise DeviceError(f"{MODEL} holds a {model.WhichOneof('Type')}, not an ML program")
        self._functions = model.mlProgram.functions
        described = model.description  # of a package from before iOS 18 it is that of the one function
        self._described = {f.name: f for f in described.functions} or dict.fromkeys(self._functions, described)
        self.names = tuple(sorted(self._functions))

    def function(self, name: str) -> Function:
        """Read one function with its weights."""
        if name not in self._functions:
            raise DeviceError(f"the package has no function {name}, only {', '.join(self.names)}")
        found = self._functions[name]
        block = found.block_specializations[found.opset]
        inputs = tuple(self._typed(one) for one in found.inputs)
        known: dict[str, Constant] = {}
        made = {typed.name for typed in inputs}
        operators = []
        for operation in block.operations:
            if operation.type == "const":
                (result,) = operation.outputs
                known[result.name] = self._value(operation.attributes["val"])
                made.add(result.name)
                continue
            operator = self._operator(operation, known, made)
            made.update(one.name for one in operator.results)
            operators.append(operator)
        absent = [one for one in block.outputs if one not in made]
        if absent:
            raise DeviceError(f"function {name} gives {', '.join(absent)}, which nothing computes")
        return Function(name, inputs, tuple(operators), tuple(block.outputs))

    def image(self, name: str, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Bring RGB frames (1, S, S, 3) to what Core ML feeds a function whose input is an image: (1, 3, S, S), 0 to 255.

        The colours come in the order that the function's description asks for.
        """
        described = self._described.get(name)
        if described is None or len(described.input) != 1 or described.input[0].type.WhichOneof("Type") != "imageType":
            raise DeviceError(f"function {name} does not take one image")
        wanted = described.input[0].type.imageType
        order = {20: slice(None), 30: slice(None, None, -1)}.get(wanted.colorSpace)  # FeatureTypes.proto: RGB and BGR
        if order is None or (wanted.height, wanted.width) != batch.shape[1:3]:
            raise DeviceError(f"function {name} takes no colour image of {batch.shape[2]}x{batch.shape[1]} pixels")
        return np.asarray(batch[..., order].transpose(0, 3, 1, 2), np.float32)

    def _operator(self, operation: Any, known: dict[str, Constant], made: set[str]) -> Operator:
        arguments: dict[str, list[Constant | Reference]] = {}
        for parameter, argument in operation.inputs.items():
            given = arguments.setdefault(parameter, [])
            for one in argument.arguments:
                if one.WhichOneof("binding") == "value":
                    given.append(self._value(one.value))
                elif one.name in made:
                    given.append(known[one.name] if one.name in known else Reference(one.name))
                else:
                    raise DeviceError(f"{operation.type} reads {one.name}, which nothing computes before it")
        # The older operators for compressed weights have theirs as attributes.
        arguments |= {name: [self._value(value)] for name, value in operation.attributes.items() if name != "name"}
        return Operator(operation.type, arguments, tuple(self._typed(one) for one in operation.outputs))

    def _typed(self, named: Any) -> Typed:
        dtype, shape = self._tensor_type(named.type)
        return Typed(named.name, dtype, shape)

    def _tensor_type(self, declared: Any) -> tuple[str, tuple[int, ...]]:
        if declared.WhichOneof("type") != "tensorType":
            raise DeviceError(f"a value is a {declared.WhichOneof('type')}, only tensors are evaluated")
        tensor = declared.tensorType
        word = self._type_name(tensor.dataType)
        if word != "STRING" and word not in DTYPES:
            raise DeviceError(f"a value is of type {word}: this evaluator knows {', '.join(DTYPES)}")
        if any(d.WhichOneof("dimension") != "constant" for d in tensor.dimensions):
            raise DeviceError("a value has no fixed shape: export with fixed shapes")
        return word, tuple(d.constant.size for d in tensor.dimensions)

    def _value(self, value: Any) -> Constant:
        word, shape = self._tensor_type(value.type)
        if value.WhichOneof("value") == "blobFileValue":
            return self._blob(value.blobFileValue.fileName, value.blobFileValue.offset, word, shape)
        tensor = value.immediateValue.tensor
        kind = tensor.WhichOneof("value")
        values = getattr(tensor, kind).values
        if word == "STRING":
            return str(values[0])
        array = np.frombuffer(values, DTYPES[word]) if kind == "bytes" else np.asarray(list(values), DTYPES[word])
        if array.size != math.prod(shape):
            raise DeviceError(f"a constant has {array.size} values where its shape is {shape}")
        return array.reshape(shape)

    def _blob(self, name: str, offset: int, word: str, shape: tuple[int, ...]) -> NDArray[Any]:
        data = self._file(name)
        if offset + METADATA.size > data.size:
            raise DeviceError(f"{name} has {data.size} bytes, a weight's place is {offset}")
        sentinel, kind, size, start, _ = METADATA.unpack(data[offset : offset + METADATA.size].tobytes())
        dtype = np.dtype(DTYPES[word])
        if sentinel != SENTINEL or kind != BLOB_TYPES.get(word) or size != dtype.itemsize * math.prod(shape):
            raise DeviceError(f"{name} holds at {offset} no weight of {word} and shape {shape}")
        if start + size > data.size:
            raise DeviceError(f"{name} ends at {data.size}, within a weight")
        return np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)

    def _file(self, name: str) -> NDArray[np.uint8]:
        if name not in self._blobs:
            inside = (self._path / WEIGHTS / name.removeprefix("@model_path/")).resolve()
            if not name.startswith("@model_path/") or not inside.is_relative_to((self._path / WEIGHTS).resolve()):
                raise DeviceError(f"weights lie in {name!r}, which is outside the package")
            try:
                self._blobs[name] = np.memmap(inside, np.uint8, mode="r")
            except (OSError, ValueError) as error:
                raise DeviceError(f"{name} cannot be read: {error}") from None
        return self._blobs[name]
