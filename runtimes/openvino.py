"""OpenVINO: `model.xml` and `model.bin`, one graph with all functions as named outputs, on CPU, GPU and NPU.

Only devices that OpenVINO lists are tried, each by its own name: AUTO and HETERO raise when one of theirs is missing,
and would hide which device answers.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.bundle import Bundle
from tasktok_edge.errors import DeviceError
from tasktok_edge.runtimes.engine import Device, DeviceKind, first_line, missing
from tasktok_edge.runtimes.remembered import cache_folder

TARGET: Literal["openvino"] = "openvino"
EXTRA = "openvino"
KINDS: dict[str, DeviceKind] = {"CPU": "cpu", "GPU": "gpu", "NPU": "npu"}
PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}


def _openvino() -> Any:
    # `import openvino` reports to google-analytics.com; without this package it stays silent.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is Python's "do not import"
    try:
        import openvino
    except ImportError as error:
        raise missing("openvino", EXTRA, error) from None
    return openvino


@cache
def _core() -> Any:
    return _openvino().Core()


def version() -> str:
    return str(_openvino().__version__).split("-")[0]  # without the build's hash and branch


def devices() -> list[Device]:
    core = _core()
    found = []
    for native in core.available_devices:
        kind = KINDS.get(native.split(".")[0])
        if kind is not None:
            found.append(Device(TARGET, kind, native, str(core.get_property(native, "FULL_DEVICE_NAME"))))
    for native, kind in KINDS.items():
        if kind not in {d.kind for d in found}:
            found.append(Device(TARGET, kind, native, "-", usable=False, reason=_why_not(native)))
    return found


def _why_not(native: str) -> str:
    try:
        listed = _core().get_property(native, "AVAILABLE_DEVICES")
    except RuntimeError as error:
        return f"OpenVINO finds none: {first_line(error)}"
    return f"OpenVINO finds none: its {native} plugin lists {listed or 'no device'}"


def open(bundle: Bundle, device: Device, *, threads: int | None, tasks: Sequence[str]) -> "OpenVinoRunning":  # noqa: A001
    return OpenVinoRunning(bundle, device, threads=threads, tasks=tasks)


class OpenVinoRunning:
    """One sub-model is compiled for every set of functions that is asked for, so that nothing unasked is computed."""

    def __init__(self, bundle: Bundle, device: Device, *, threads: int | None, tasks: Sequence[str]) -> None:
        self._ov, self._device = _openvino(), device.native
        self._int8 = bundle.manifest.precision == "int8"
        self._functions = {f.name: f for f in bundle.manifest.functions if f.task in tasks}
        self._options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if device.kind == "cpu":
            # Without the hint a CPU that has bf16 computes in bf16, whatever the model says.
            self._options["INFERENCE_PRECISION_HINT"] = "f32"
            if threads is not None:
                self._options["INFERENCE_NUM_THREADS"] = threads
        elif device.kind == "gpu":
            self._options["INFERENCE_PRECISION_HINT"] = "f32" if bundle.manifest.precision == "fp32" else "f16"
        compiled = cache_folder(f"openvino/{bundle.sha256}")
        if compiled is not None:
            self._options["CACHE_DIR"] = str(compiled)  # a second start takes a third of the time to compile
        # An NPU computes in f16 and takes no other hint: whether that is enough, the golden frames tell.
        (file,) = {f.file for f in self._functions.values()}
        try:
            self._model = _core().read_model(str(bundle.path / file))
        except RuntimeError as error:
            raise DeviceError(f"OpenVINO cannot read {file}: {first_line(error)}") from None
        self._requests: dict[tuple[str, ...], tuple[Any, list[str]]] = {}
        self.effective_precision, self.effective_device = "not compiled", "not compiled"

    def _compile(self, functions: tuple[str, ...]) -> tuple[Any, list[str]]:
        names = [o.name for f in functions for o in self._functions[f].outputs]
        try:
            results = [self._model.output(name).get_node() for name in names]
            part = self._ov.Model(results, self._model.get_parameters(), "+".join(functions))
            compiled = _core().compile_model(part, self._device, self._options)
        except RuntimeError as error:
            raise DeviceError(f"OpenVINO cannot compile {', '.join(functions)}: {first_line(error)}") from None
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        precision = PRECISIONS.get(hint, hint)
        self.effective_precision = f"int8 and {precision}" if self._int8 else precision
        self.effective_device = ", ".join(compiled.get_property("EXECUTION_DEVICES"))
        self._requests[functions] = made = (compiled.create_infer_request(), names)
        return made

    def run(self, functions: tuple[str, ...], batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        request, names = self._requests.get(functions) or self._compile(functions)
        try:
            results = request.infer(batch, share_inputs=True)  # the frame is read in place; the answers are new arrays
        except RuntimeError as error:
            raise DeviceError(f"OpenVINO failed on {self._device}: {first_line(error)}") from None
        return dict(zip(names, results.values(), strict=True))

    def placement(self, functions: tuple[str, ...]) -> dict[str, int]:
        """Count the operators of functions by device and by the type they compute in, such as "CPU, i8"."""
        request, _ = self._requests.get(functions) or self._compile(functions)
        found: Counter[str] = Counter()
        for operator in request.get_compiled_model().get_runtime_model().get_ordered_ops():
            facts = {key: str(operator.get_rt_info()[key].value) for key in ("layerType", "runtimePrecision")}
            if facts["layerType"] not in ("Input", "Output", "Const"):
                found[f"{self._device}, {facts['runtimePrecision']}"] += 1
        return dict(found.most_common())

    def native(self, function: str, batch: NDArray[np.uint8]) -> Callable[[], object]:
        """The engine's own bare call for one function and batch: what bench holds the shim against."""
        request, _ = self._requests.get((function,)) or self._compile((function,))
        return lambda: request.infer(batch, share_inputs=True)

    def close(self) -> None:
        self._requests.clear()
        self._model = None
