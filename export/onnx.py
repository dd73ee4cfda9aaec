"""ONNX: one graph whose named outputs are the functions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from tasktok_edge.export.graph import Deployed, Function, output_names
from tasktok_edge.model.tasktok import TaskTok

FILE = "model.onnx"
OPSET = 20  # the newest that ONNX Runtime, OpenVINO and the mobile providers all read


def build(model: TaskTok, functions: Sequence[Function], folder: Path, *, precision: str) -> None:
    """Export and write `model.onnx`; `fp16` stores the weights so and computes in fp32."""
    size = model.config.image_size
    frame = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    names = [name for f in functions for name in output_names(f, model.config.tasks[f.task].kind)]
    exported = torch.onnx.export(
        Deployed(model, functions).eval(), (frame,), dynamo=True, verbose=False, opset_version=OPSET,
        input_names=["frame"], output_names=names,
    )  # fmt: skip
    if exported is None:
        raise RuntimeError("torch.onnx.export gave no program")
    proto = exported.model_proto
    if precision == "fp16":
        store_in_fp16(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save_model(proto, folder / FILE)


def store_in_fp16(proto: onnx.ModelProto) -> None:
    """Keep every float matrix as fp16 behind a Cast, in place.

    ONNX Runtime's CPU folds the casts when it loads; a graph that computes in fp16 would be cast back and forth at every
    operator there, slower than fp32.
    """
    casts = []
    for initializer in proto.graph.initializer:
        if initializer.data_type != TensorProto.FLOAT or len(initializer.dims) < 2:
            continue
        name, half = initializer.name, f"{initializer.name}_fp16"
        values = numpy_helper.to_array(initializer).astype(np.float16)
        initializer.CopyFrom(numpy_helper.from_array(values, half))
        casts.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
