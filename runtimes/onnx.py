"""ONNX Runtime: `model.onnx`, one graph with all functions as named outputs, on every provider that is installed.

Providers are built in, or come in packages of their own (plug-ins), which are registered where they are installed.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.bundle import Bundle
from tasktok_edge.errors import DeviceError
from tasktok_edge.runtimes.engine import Device, DeviceKind, first_line, missing
from tasktok_edge.runtimes.onnx_parts import keep_outputs

TARGET: Literal["onnx"] = "onnx"
EXTRA = "onnx"
CPU = "CPUExecutionProvider"
# A provider that is not here is taken for a GPU's. Azure's sends frames to a server, so it is never used.
KINDS: dict[str, DeviceKind] = {
    CPU: "cpu",
    "XnnpackExecutionProvider": "cpu",
    "DnnlExecutionProvider": "cpu",
    "ACLExecutionProvider": "cpu",
    "OpenVINOExecutionProvider": "cpu",
    "CoreMLExecutionProvider": "npu",
    "QNNExecutionProvider": "npu",
    "NnapiExecutionProvider": "npu",
    "VitisAIExecutionProvider": "npu",
}
# Packages of plug-ins; each has get_library_path().
PLUGINS = ("onnxruntime_ep_openvino", "onnxruntime_qnn", "onnxruntime_ep_webgpu", "onnxruntime_ep_nv_tensorrt_rtx")


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing("onnxruntime", EXTRA, error) from None
    onnxruntime.disable_telemetry_events()  # only Windows builds have any
    return onnxruntime


def _errors() -> tuple[type[Exception], ...]:
    """List ONNX Runtime's exceptions: they have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [c for c in vars(state).values() if isinstance(c, type) and issubclass(c, Exception)]
    return (*own, RuntimeError, ValueError)


def version() -> str:
    return str(_onnxruntime().__version__)


@cache
def _registered() -> dict[str, str]:
    """Register the plug-ins that are installed, once; give what those said that could not be, by package."""
    faults = {}
    unusable: tuple[type[Exception], ...] = (*_errors(), ImportError, AttributeError, OSError)
    for package in PLUGINS:
        if find_spec(package) is not None:
            try:
                _onnxruntime().register_execution_provider_library(package, import_module(package).get_library_path())
            except unusable as error:
                faults[package] = first_line(error)
    return faults


def _plugged() -> dict[str, Any]:
    """The devices that plug-ins offer, by the names that are given to them here."""
    _registered()
    built_in = _onnxruntime().get_available_providers()
    offered = [d for d in _onnxruntime().get_ep_devices() if d.ep_name not in built_in or d.ep_name in PLUGINS]
    return {f"{d.ep_name}:{i}": d for i, d in enumerate(offered)}


def devices() -> list[Device]:
    faults = _registered()
    skipped = {"AzureExecutionProvider", *PLUGINS}
    names = [n for n in _onnxruntime().get_available_providers() if n not in skipped]
    found = [Device(TARGET, KINDS.get(n, "gpu"), n, f"ONNX Runtime's {n.removesuffix('ExecutionProvider')}") for n in names]
    for name, offered in _plugged().items():
        kind: DeviceKind = {"GPU": "gpu", "NPU": "npu"}.get(str(offered.device.type).rpartition(".")[2], "cpu")  # type: ignore[assignment]
        found.append(Device(TARGET, kind, name, f"ONNX Runtime's plug-in of {offered.ep_vendor}, on {offered.device.vendor}"))
    return found + [Device(TARGET, "cpu", name, "-", usable=False, reason=reason) for name, reason in faults.items()]


def open(bundle: Bundle, device: Device, *, threads: int | None, tasks: Sequence[str]) -> "OnnxRunning":  # noqa: A001
    return OnnxRunning(bundle, device, threads=threads, tasks=tasks)


class OnnxRunning:
    """One session for every set of functions that is asked for, on a model cut down to them (onnx_parts says why)."""

    def __init__(self, bundle: Bundle, device: Device, *, threads: int | None, tasks: Sequence[str]) -> None:
        self._ort, self._errors, self._device, self._threads = _onnxruntime(), _errors(), device.native, threads
        self._precision = bundle.manifest.precision
        self._functions = {f.name: f for f in bundle.manifest.functions if f.task in tasks}
        (file,) = {f.file for f in self._functions.values()}
        self._file = bundle.path / file
        self._sessions: dict[tuple[str, ...], tuple[Any, list[str]]] = {}
        self._nodes: dict[tuple[str, ...], dict[str, int]] = {}
        self.effective_precision, self.effective_device = "not compiled", "not compiled"

    def _compile(self, functions: tuple[str, ...]) -> tuple[Any, list[str]]:
        names = [o.name for f in functions for o in self._functions[f].outputs]
        options = self._ort.SessionOptions()
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        options.log_severity_level = 3  # what is a warning there is checked and said here
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._file.parent))
        plugged = _plugged().get(self._device)
        where: dict[str, Any] = {"providers": [self._device]} if plugged is None else {}
        try:
            if plugged is not None:
                options.add_provider_for_devices([plugged], {})
            session = self._ort.InferenceSession(
                keep_outputs(self._file.read_bytes(), names),
                options,
                enable_fallback=0,  # raise, where it would start again on the CPU without a word
                **where,
            )
        except self._errors as error:
            raise DeviceError(f"ONNX Runtime cannot open {', '.join(functions)}: {first_line(error)}") from None
        # get_providers() repeats the wish; only the assignment of the nodes tells what happened.
        nodes = Counter({CPU: 0})
        for part in session.get_provider_graph_assignment_info():
            nodes[part.ep_name] += len(part.get_nodes())
        if not nodes[self._device if plugged is None else plugged.ep_name]:
            raise DeviceError(f"ONNX Runtime put all nodes on the CPU, none on {self._device}")
        self._nodes[functions] = dict(nodes.most_common())
        self.effective_device = ", ".join(f"{n} ({count} nodes)" for n, count in nodes.most_common() if count)
        # The CPU provider has next to no fp16 kernels: it casts and computes in fp32.
        fp32 = self._device == CPU and self._precision == "fp16"
        self.effective_precision = "fp32" if fp32 else self._precision
        self._sessions[functions] = made = (session, names)
        return made

    def run(self, functions: tuple[str, ...], batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        session, names = self._sessions.get(functions) or self._compile(functions)
        try:
            return dict(zip(names, session.run(names, {"frame": batch}), strict=True))
        except self._errors as error:
            raise DeviceError(f"ONNX Runtime failed on {self._device}: {first_line(error)}") from None

    def placement(self, functions: tuple[str, ...]) -> dict[str, int]:
        """Count the nodes of functions by execution provider, as they were assigned."""
        if functions not in self._nodes:
            self._compile(functions)
        return {name: count for name, count in self._nodes[functions].items() if count}

    def native(self, function: str, batch: NDArray[np.uint8]) -> Callable[[], object]:
        """The engine's own bare call for one function and batch: what bench holds the shim against."""
        session, names = self._sessions.get((function,)) or self._compile((function,))
        return lambda: session.run(names, {"frame": batch})

    def close(self) -> None:
        self._sessions.clear()
