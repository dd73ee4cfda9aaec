"""ONNX: one graph whose named outputs are the functions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass

from tasktok_edge.export.graph import Deployed, Function, Place, Say, in_one, output_names
from tasktok_edge.export.int8 import in_codes
from tasktok_edge.model.tasktok import TaskTok

FILE = "model.onnx"
OPSET = 20  # the newest that ONNX Runtime, OpenVINO and the mobile providers all read

MAX_INLINE_BYTES = 512 << 20  # one file is handier; a protocol buffer ends at 2 GB, and who reads a part of it reads all


def build(model: TaskTok, functions: Sequence[Function], folder: Path, *, precision: str, say: Say) -> dict[Function, Place]:
    """Write `model.onnx`, large weights in a file beside it; `fp16` stores the weights so and computes in fp32.

    `int8` has QuantizeLinear and DequantizeLinear around each int8 layer, of which engines make layers of integers.
    """
    size = model.config.image_size
    frame = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    names = [name for f in functions for name in output_names(f, model.config.tasks[f.task].kind)]
    say("tracing and converting")
    whole = Deployed(model, functions).eval()
    exported = torch.onnx.export(
        in_codes(whole, "uint8") if precision == "int8" else whole, (frame,), dynamo=True, verbose=False, opset_version=OPSET,
        input_names=["frame"], output_names=names, optimize=False,
    )  # fmt: skip
    if exported is None:
        raise RuntimeError("torch.onnx.export gave no program")
    say("optimizing")
    # First one Transpose for each weight, however many tasks read it: the optimizer would fold each into a copy of its own.
    CommonSubexpressionEliminationPass()(exported.model)
    exported.optimize()
    RemoveUnusedNodesPass()(exported.model)  # with the weights that were transposed
    if precision != "fp32":
        store_in_fp16(exported.model, only_as_it_is=precision == "int8")
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # where in PyTorch it comes from: 2 MB for a small model
    say("saving and checking")
    weights = sum(v.const_value.nbytes for v in exported.model.graph.initializers.values() if v.const_value is not None)
    exported.save(folder / FILE, external_data=weights > MAX_INLINE_BYTES)
    onnx.checker.check_model(folder / FILE, full_check=True)
    return in_one(FILE, functions)


def store_in_fp16(model: ir.Model, *, only_as_it_is: bool = False) -> None:
    """Keep every float matrix, or every one that loses nothing by it, as fp16 behind a Cast, in place.

    ONNX Runtime's CPU folds the casts when it loads; a graph that computes in fp16 would be cast back and forth at every
    operator there, slower than fp32.
    """
    graph, casts = model.graph, []
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2:
            continue
        exact = tensor.numpy()
        values = exact.astype(np.float16)
        if only_as_it_is and not np.array_equal(values.astype(exact.dtype), exact):
            continue
        shape = ir.Shape(values.shape)
        half = ir.Value(name=f"{name}_fp16", shape=shape, type=ir.TensorType(ir.DataType.FLOAT16))
        half.const_value = ir.tensor(values, name=half.name)
        cast = ir.node("Cast", [half], attributes={"to": ir.DataType.FLOAT})
        restored = cast.outputs[0]
        value.replace_all_uses_with(restored)
        graph.initializers.pop(name)
        restored.name, restored.shape, restored.type = name, shape, ir.TensorType(ir.DataType.FLOAT)
        graph.initializers.add(half)
        casts.append(cast)
    if casts:
        graph.insert_before(graph[0], casts)
