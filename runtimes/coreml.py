"""Core ML: `model.mlpackage`, one Core ML function per function, on a Mac's CPU, GPU and Neural Engine.

Not verified on hardware: written from coremltools 9.0's source and tested against a stand-in for it. The package takes
an RGB image named `frame`, so Pillow is needed too. Everywhere else there is REFERENCE, which evaluates the program in NumPy:
never chosen unless it is named, as it is slow, and no device.
"""

import platform
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.bundle import Bundle
from tasktok_edge.errors import DeviceError
from tasktok_edge.runtimes.engine import Device, DeviceKind, first_line, missing, quiet
from tasktok_edge.runtimes.evaluator import Evaluator
from tasktok_edge.runtimes.mlprogram import Package

TARGET: Literal["coreml"] = "coreml"
EXTRA = "coreml"
REFERENCE = "REFERENCE"
MACOS = 13  # the oldest that runs iOS 16 programs, the oldest that are exported
ALONE = "main"  # the one function of a package from before iOS 18, which is not asked for by name
# Core ML takes a set of units, not one: GPU and Neural Engine always come with the CPU for what they cannot do.
UNITS: dict[DeviceKind, tuple[str, str]] = {
    "npu": ("CPU_AND_NE", "MLNeuralEngineComputeDevice"),
    "gpu": ("CPU_AND_GPU", "MLGPUComputeDevice"),
    "cpu": ("CPU_ONLY", "MLCPUComputeDevice"),
}


def _coremltools() -> Any:
    try:
        with quiet():
            import coremltools
    except ImportError as error:
        raise missing("coremltools", EXTRA, error) from None
    return coremltools


def version() -> str:
    try:
        return metadata.version("coremltools")
    except metadata.PackageNotFoundError as error:
        raise missing("coremltools", EXTRA, error) from None


def _why_not() -> str | None:
    if sys.platform != "darwin":
        return f"Core ML runs on macOS {MACOS} or newer; this is {platform.system()}"
    release = platform.mac_ver()[0]
    if int(release.split(".")[0] or 0) < MACOS:
        return f"Core ML runs this on macOS {MACOS} or newer; this is macOS {release}"
    return None


def devices() -> list[Device]:
    reason = _why_not()
    evaluator = Device(TARGET, "cpu", REFERENCE, "the program evaluated in NumPy, to check it", by_name_alone=True)
    if find_spec("coremltools") is None:  # which has the format's description
        evaluator = replace(evaluator, usable=False, reason=f'coremltools is missing: pip install "tasktok-edge[{EXTRA}]"')
    if reason is not None:
        units = [Device(TARGET, kind, unit, "-", usable=False, reason=reason) for kind, (unit, _) in UNITS.items()]
        return [*units, evaluator]
    compute = _coremltools().models.compute_device
    here = {type(d).__name__ for d in compute.MLComputeDevice.get_all_compute_devices()}
    found = [
        Device(TARGET, kind, unit, name, name in here, None if name in here else "Core ML lists no such device")
        for kind, (unit, name) in UNITS.items()
    ]
    return [*found, evaluator]


def open(  # noqa: A001
    bundle: Bundle, device: Device, *, threads: int | None, tasks: Sequence[str]
) -> "CoreMlRunning | ReferenceRunning":
    if not device.usable:
        raise DeviceError(device.reason)
    if device.native == REFERENCE:
        return ReferenceRunning(bundle, tasks=tasks)
    return CoreMlRunning(bundle, device, tasks=tasks)  # Core ML has no setting for threads


class CoreMlRunning:
    """One MLModel per function, loaded when it is first asked for."""

    def __init__(self, bundle: Bundle, device: Device, *, tasks: Sequence[str]) -> None:
        self._tools = _coremltools()
        try:
            from PIL import Image
        except ImportError as error:
            raise missing("Pillow", EXTRA, error) from None
        self._image, self._units, self._path = Image.fromarray, device.native, bundle.path
        self._functions = {f.name: f for f in bundle.manifest.functions if f.task in tasks}
        self._models: dict[str, Any] = {}
        self.effective_precision = bundle.manifest.precision  # fixed in the program
        self.effective_device = f"{device.native} (Core ML places each operation)"

    def _load(self, function: str) -> Any:
        spec = self._functions[function]
        try:
            self._models[function] = model = self._tools.models.MLModel(
                str(self._path / spec.file),
                compute_units=getattr(self._tools.ComputeUnit, self._units),
                function_name=None if spec.entry == ALONE else spec.entry,
            )
        except (RuntimeError, ValueError) as error:
            raise DeviceError(f"Core ML cannot load {function}: {first_line(error)}") from None
        return model

    def run(self, functions: tuple[str, ...], batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        image = self._image(batch[0])
        found: dict[str, NDArray[Any]] = {}
        for function in functions:
            model = self._models.get(function) or self._load(function)
            try:
                outputs = model.predict({"frame": image})
            except (RuntimeError, ValueError) as error:
                raise DeviceError(f"Core ML failed in {function}: {first_line(error)}") from None
            for spec in self._functions[function].outputs:
                found[spec.name] = np.asarray(outputs[spec.name], np.float32)
        return found

    def placement(self, functions: tuple[str, ...]) -> dict[str, int]:
        """Count the operations of functions by the device that Core ML's compute plan (macOS 14.4) prefers for them."""
        from coremltools.models.compute_plan import MLComputePlan

        found: Counter[str] = Counter()
        for function in functions:
            model = self._models.get(function) or self._load(function)
            units = getattr(self._tools.ComputeUnit, self._units)
            plan = MLComputePlan.load_from_path(path=model.get_compiled_model_path(), compute_units=units)
            for operation in plan.model_structure.program.functions[self._functions[function].entry].block.operations:
                usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
                if usage is not None:  # constants have none
                    found[type(usage.preferred_compute_device).__name__] += 1
        return dict(found.most_common())

    def native(self, function: str, batch: NDArray[np.uint8]) -> Callable[[], object]:
        """The engine's own bare call for one function and batch: what bench holds the shim against."""
        return lambda: self.run((function,), batch)

    def close(self) -> None:
        self._models.clear()


class ReferenceRunning:
    """The package's functions in NumPy: what the program says, not what a device makes of it."""

    def __init__(self, bundle: Bundle, *, tasks: Sequence[str]) -> None:
        self._functions = {f.name: f for f in bundle.manifest.functions if f.task in tasks}
        self._packages = {file: Package(bundle.path / file) for file in {f.file for f in self._functions.values()}}
        self._ready: dict[str, Evaluator] = {}
        self.effective_precision, self.effective_device = bundle.manifest.precision, REFERENCE

    def evaluator(self, function: str) -> Evaluator:
        if function not in self._ready:
            spec = self._functions[function]
            self._ready[function] = Evaluator(self._packages[spec.file].function(spec.entry))
        return self._ready[function]

    def run(self, functions: tuple[str, ...], batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {}
        for function in functions:
            spec = self._functions[function]
            outputs = self.evaluator(function)({"frame": self._packages[spec.file].image(spec.entry, batch)})
            for output in spec.outputs:
                if output.name not in outputs:
                    raise DeviceError(f"{function} gives {', '.join(outputs)}, not {output.name}")
                found[output.name] = outputs[output.name].astype(np.float32)
        return found

    def placement(self, functions: tuple[str, ...]) -> dict[str, int]:
        """Count the operators by the type that the first of their results is rounded to."""
        operators = [o for f in functions for o in self.evaluator(f).function.operators]
        found = Counter(f"{REFERENCE}, {o.results[0].dtype.lower()}" for o in operators)
        return dict(found.most_common())

    def native(self, function: str, batch: NDArray[np.uint8]) -> Callable[[], object]:
        """The bare call: what bench holds the shim against."""
        return lambda: self.run((function,), batch)

    def close(self) -> None:
        self._ready.clear()
