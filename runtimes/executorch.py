"""ExecuTorch: `model.pte`, one method per function, on the CPU through XNNPACK.

Its Python binding imports torch, so this is the one engine that needs it; a phone runs the same file without Python.
What runs where was decided at the export: a .pte names its delegates, and others cannot be chosen here. Ours name XNNPACK; the
registry's others are listed with the reason why they are not used.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.bundle import Bundle
from tasktok_edge.errors import DeviceError
from tasktok_edge.runtimes.engine import Device, DeviceKind, first_line, missing, quiet

TARGET: Literal["executorch"] = "executorch"
EXTRA = "executorch"
DELEGATE = "XnnpackBackend"
# Not offered even to a program that names it: it ends the process with a segmentation fault.
OTHERS: dict[str, tuple[DeviceKind, str]] = {
    "OpenvinoBackend": (
        "cpu",
        "its OpenVINO delegate ends the process with a segmentation fault: export --target openvino",
    )
}


def _runtime() -> Any:
    try:
        with quiet():
            import executorch.runtime as runtime
    except ImportError as error:
        raise missing("executorch", EXTRA, error) from None
    return runtime


def version() -> str:
    from importlib.metadata import version as installed

    _runtime()
    return installed("executorch")


def devices() -> list[Device]:
    registry = _runtime().Runtime.get().backend_registry
    usable = registry.is_available(DELEGATE)
    reason = None if usable else f"this build of ExecuTorch has no {DELEGATE}"
    found = [Device(TARGET, "cpu", DELEGATE, "XNNPACK", usable=usable, reason=reason)]
    for name in sorted(set(registry.registered_backend_names) - {DELEGATE}):
        kind, why = OTHERS.get(
            name, ("npu", f"bundles are lowered to {DELEGATE}, and a program's delegate cannot be changed here")
        )
        found.append(Device(TARGET, kind, name, "-", usable=False, reason=why))
    return found


def open(bundle: Bundle, device: Device, *, threads: int | None, tasks: Sequence[str]) -> "ExecuTorchRunning":  # noqa: A001
    return ExecuTorchRunning(bundle, device, threads=threads, tasks=tasks)


class ExecuTorchRunning:
    """Methods are loaded when they are first asked for. `threads` holds for the whole process, there is one pool."""

    def __init__(self, bundle: Bundle, device: Device, *, threads: int | None, tasks: Sequence[str]) -> None:
        runtime = _runtime()
        import torch

        if threads is not None:
            from executorch.extension.pybindings import portable_lib

            portable_lib._unsafe_reset_threadpool(threads)
        self._from_numpy = torch.from_numpy
        self._functions = {f.name: f for f in bundle.manifest.functions if f.task in tasks}
        (file,) = {f.file for f in self._functions.values()}
        self._file = bundle.path / file
        try:
            self._program = runtime.Runtime.get().load_program(self._file, verification=runtime.Verification.Minimal)
        except RuntimeError as error:
            raise DeviceError(f"ExecuTorch cannot read {file}: {first_line(error)}") from None
        self._methods: dict[str, tuple[Any, list[str]]] = {}
        # Both were fixed when the file was made; the runtime has nothing to ask.
        self.effective_precision = bundle.manifest.precision
        self.effective_device = f"{device.native} and portable kernels"

    def _load(self, function: str) -> tuple[Any, list[str]]:
        spec = self._functions[function]
        try:
            method = self._program.load_method(spec.entry)
        except (RuntimeError, KeyError) as error:
            raise DeviceError(f"ExecuTorch cannot load method {spec.entry!r}: {first_line(error)}") from None
        self._methods[function] = made = (method, [o.name for o in spec.outputs])
        return made

    def run(self, functions: tuple[str, ...], batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        # torch warns of arrays that may not be written, such as a decoded video's. Nothing writes, but a copy is cheap.
        frame = (self._from_numpy(batch if batch.flags.writeable else batch.copy()),)
        found: dict[str, NDArray[Any]] = {}
        for function in functions:
            method, names = self._methods.get(function) or self._load(function)
            try:
                outputs = method.execute(frame)
            except RuntimeError as error:
                raise DeviceError(f"ExecuTorch failed in {function}: {first_line(error)}") from None
            for name, output in zip(names, outputs, strict=True):
                found[name] = output.numpy()
        return found

    def placement(self, functions: tuple[str, ...]) -> dict[str, int]:
        """Count a program's instructions: parts that a delegate has taken whole, and calls of portable kernels."""
        from executorch.exir._serialize._program import deserialize_pte_binary
        from executorch.exir.schema import DelegateCall, KernelCall

        entries = {self._functions[f].entry for f in functions}
        found: Counter[str] = Counter()
        for plan in deserialize_pte_binary(self._file.read_bytes()).program.execution_plan:
            for instruction in (i.instr_args for chain in plan.chains for i in chain.instructions if plan.name in entries):
                if isinstance(instruction, DelegateCall):
                    found[f"{plan.delegates[instruction.delegate_index].id}, whole parts"] += 1
                elif isinstance(instruction, KernelCall):
                    found["portable kernels"] += 1
        return dict(found.most_common())

    def native(self, function: str, batch: NDArray[np.uint8]) -> Callable[[], object]:
        """The engine's own bare call for one function and batch: what bench holds the shim against."""
        method, _ = self._methods.get(function) or self._load(function)
        return lambda: method.execute((self._from_numpy(batch),))

    def close(self) -> None:
        self._methods.clear()
        self._program = None
