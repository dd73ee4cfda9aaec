"""What a user would do instead: the model through each tool's own documented line, with nothing of ours in it."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasktok_edge.errors import VerdictError
from tasktok_edge.export.graph import Function
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.reference import RawOutputs, Reference, raw_answer
from tasktok_edge.runtimes.openvino import PRECISIONS
from tasktok_edge.runtimes.selection import peak_of, psnr_db

# dB that a plain export must keep to the model in PyTorch: whether it is broken, not whether it is good.
FLOORS_DB = {"fp32": 60.0, "fp16": 40.0, "bf16": 20.0}

Call = Callable[[NDArray[np.uint8]], Sequence[NDArray[Any]]]  # a frame (1, S, S, 3) to the graph's outputs
Open = Callable[[int], tuple[str, Call]]  # threads to the precision that the engine computes in, and its call


class FrameIn(nn.Module):
    """A frame (1, S, S, 3) uint8 to what the unmodified model gives for a task; all three tools take it as it is."""

    def __init__(self, model: TaskTok, function: Function) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, frame: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        image = frame.permute(0, 3, 1, 2).float() / 255
        if self.function.kind == "restore":
            return self.model.restore(image, self.function.task)
        return self.model(image, self.function.task)


def _onnx(module: FrameIn, frame: Tensor, folder: Path) -> Open:
    import onnxruntime as ort

    file = folder / f"{module.function.entry}.onnx"
    program = torch.onnx.export(module, (frame,), dynamo=True, verbose=False)
    assert program is not None
    program.save(file)

    def opened(threads: int) -> tuple[str, Call]:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return "fp32", lambda batch: session.run(None, {name: batch})

    return opened


def _openvino(module: FrameIn, frame: Tensor, folder: Path) -> Open:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would phone home at import
    import openvino as ov

    # With the shape given: without it all dimensions stay open, a weaker peer (16.8 ms beside 15.0, on a busy core).
    model = ov.convert_model(module, example_input=frame, input=list(frame.shape))

    def opened(threads: int) -> tuple[str, Call]:
        compiled = ov.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads})
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()  # with no wish: bf16 where a CPU has it
        return PRECISIONS.get(hint, hint), lambda batch: list(compiled(batch).values())

    return opened


def _executorch(module: FrameIn, frame: Tensor, folder: Path) -> Open:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    file = folder / f"{module.function.entry}.pte"
    exported = torch.export.export(module, (frame,))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    file.write_bytes(lowered.buffer)

    def opened(threads: int) -> tuple[str, Call]:
        portable_lib._unsafe_reset_threadpool(threads)  # before anything is loaded: a delegate keeps the pool it met
        program = Runtime.get().load_program(file)
        method = program.load_method("forward")

        def call(batch: NDArray[np.uint8], owner: object = program) -> list[NDArray[Any]]:  # which must outlive its method
            return [output.numpy() for output in method.execute([torch.from_numpy(batch)])]

        return "fp32", call

    return opened


def _compiled(module: FrameIn, frame: Tensor, folder: Path) -> Open:
    def opened(threads: int) -> tuple[str, Call]:
        torch.set_num_threads(threads)
        torch.compiler.reset()
        compiled = torch.compile(module)  # by Inductor, which needs a C++ compiler

        @torch.inference_mode()
        def call(batch: NDArray[np.uint8]) -> list[NDArray[Any]]:
            found = compiled(torch.from_numpy(batch))
            return [output.numpy() for output in (found if isinstance(found, tuple) else (found,))]

        return "fp32", call

    return opened


COMPILED = "torch.compile"
TOOLS: dict[str, Callable[[FrameIn, Tensor, Path], Open]] = {
    "ONNX Runtime": _onnx,
    "OpenVINO": _openvino,
    "ExecuTorch": _executorch,
    COMPILED: _compiled,
}
AGAINST = {"plain": ("ONNX Runtime", "OpenVINO", "ExecuTorch"), "compiled": (COMPILED,)}


@dataclass(frozen=True)
class Export:
    """What one tool made of one function; opened anew for every number of threads."""

    tool: str
    function: Function
    opened: Open


def plain_export(tool: str, model: TaskTok, function: Function, folder: Path) -> Export:
    """Export a function of the model by one of TOOLS; files go to `folder` and must outlive the result."""
    frame = torch.zeros(1, model.config.image_size, model.config.image_size, 3, dtype=torch.uint8)
    return Export(tool, function, TOOLS[tool](FrameIn(model, function).eval(), frame, folder))


class Plain(Reference):
    """A plain export in the place of the model's forward; everything around it is what the model in PyTorch gets."""

    def __init__(self, model: TaskTok, export: Export, *, threads: int) -> None:
        super().__init__(model)
        self.tool, self.function = export.tool, export.function
        self.precision, self._call = export.opened(threads)

    @torch.inference_mode()
    def run_raw(self, functions: Sequence[str], batch: NDArray[np.uint8]) -> RawOutputs:
        """Run the one function that was exported, whatever is asked; outputs named as the model's are."""
        found = tuple(torch.from_numpy(output) for output in self._call(batch))
        if self.function.kind == "restore":
            return {self.function.entry: found[0].permute(0, 2, 3, 1).numpy()}
        answer = found if len(found) > 1 else found[0]
        return raw_answer(answer, self.function, self.model.config.tasks[self.function.task])

    def agreement_db(self, reference: Reference, batch: NDArray[np.uint8]) -> float:
        """PSNR of its worst output to the model's for a frame (1, S, S, 3); VerdictError where it is a broken peer."""
        wanted, found = (judged.run_raw((self.function.name,), batch) for judged in (reference, self))
        worst = min(psnr_db(found[name], want, peak_of(self.function.kind, want)) for name, want in wanted.items())
        floor = FLOORS_DB[self.precision]
        if worst < floor:
            told = f"{self.function.name} of plain {self.tool} ({self.precision}) is {worst:.1f} dB from the model in PyTorch"
            raise VerdictError(f"{told}, at least {floor:g} asked: it is no fair peer, bench without --against")
        return worst
