"""ONNX models of a node or a few on one image, and the comparison of what we make of them with other runtimes."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from hypothesis import settings
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tasktok_edge.model.onnx_net import OnnxNet

onnxruntime.set_default_logger_severity(4)
Array = NDArray[Any]
SIZE = 9
EXAMPLES = settings(max_examples=25, deadline=None)


def model_of(nodes: list[onnx.NodeProto], constants: dict[str, Array], *, opset: int = 18, size: int = SIZE) -> onnx.ModelProto:
    """A model from image "x" (1, 3, S, S) to "y"."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, size, size))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def with_output(model: onnx.ModelProto, shape: Sequence[int]) -> onnx.ModelProto:
    """Declare the output's shape, as onnx's checker asks and the judges do not."""
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, shape))
    return model


def image(size: int = SIZE, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(1, 3, size, size)).astype(np.float32)


def answers(model: onnx.ModelProto, x: Array) -> Array:
    """What OnnxNet makes of it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        onnx.save(model, path)
        net = OnnxNet(path, image_size=x.shape[-1])
    with torch.no_grad():
        found = net(torch.from_numpy(x))
    assert isinstance(found, torch.Tensor)
    return found.numpy()


def check(
    op: str, constants: dict[str, Array] | None = None, *, opset: int = 18, judge: str = "onnx", **attributes: Any
) -> None:
    """Compare one node with the image as its first input."""
    constants = constants or {}
    model = model_of([helper.make_node(op, ["x", *constants], ["y"], **attributes)], constants, opset=opset)
    same(model, judge=judge)


def same(model: onnx.ModelProto, *, judge: str = "onnx") -> None:
    x = image()
    if judge == "onnx":
        (wanted,) = ReferenceEvaluator(model).run(None, {"x": x})
    else:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (wanted,) = session.run(None, {"x": x})
    found = answers(with_output(model, wanted.shape), x)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-4)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def floats(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
