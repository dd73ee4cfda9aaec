"""OpenVINO: one IR whose named outputs are the functions; the shim compiles the outputs that are asked for."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tasktok_edge.export.graph import Deployed, Function, Place, Say, in_one, output_names
from tasktok_edge.export.int8 import in_codes
from tasktok_edge.model.tasktok import TaskTok

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would phone home at import

import openvino as ov  # noqa: E402  # after the line above

FILE = "model.xml"


def build(model: TaskTok, functions: Sequence[Function], folder: Path, *, precision: str, say: Say) -> dict[Function, Place]:
    """Convert and write `model.xml` and `model.bin`.

    `fp16` stores weights so, the device decides what it computes in; `int8` stores codes, and devices compute in them.
    """
    size = model.config.image_size
    frame = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    say("tracing")
    whole = Deployed(model, functions).eval()
    exported = torch.export.export(in_codes(whole, "fake") if precision == "int8" else whole, (frame,))
    say("converting")
    converted = ov.convert_model(exported)
    names = [name for f in functions for name in output_names(f, model.config.tasks[f.task].kind)]
    converted.input(0).tensor.set_names({"frame"})
    for output, name in zip(converted.outputs, names, strict=True):
        output.tensor.set_names({name})
    say("saving")
    ov.save_model(converted, folder / FILE, compress_to_fp16=precision == "fp16")
    return in_one(FILE, functions)
