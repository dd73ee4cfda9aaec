"""A bundle opened on a device: frames in, frames and answers out."""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.bundle import Bundle, Kind
from tasktok_edge.errors import DeviceError, FrameError, UsageError, unknown_word
from tasktok_edge.frames import Window, blend, check_frame, crop_resize, resize, to_uint8, windows
from tasktok_edge.runtimes.answers import Answer, classification, detections, segmentation
from tasktok_edge.runtimes.engine import Device, Running
from tasktok_edge.runtimes.selection import Proof, Report, Trial, measure, shortfall

Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Result:
    """A restored frame (H, W, 3) uint8 and the task's answer."""

    frame: NDArray[np.uint8]
    answer: Answer


class Session:
    """Made by load(). One call a frame, any frame size; close it, or use it in a `with` block.

    Threads may share a session: a lock lets one of them into the engine at a time. For speed give each thread its own.
    A set of functions that was not run at load is compiled when it is first asked for, and proven on the golden frames
    before it answers; `warm_up()` does that beforehand.
    """

    def __init__(
        self, bundle: Bundle, running: Running, report: Report, *, tasks: tuple[str, ...], proof: Proof = "required"
    ) -> None:
        assert report.chosen is not None
        self.bundle, self.report, self.tasks = bundle, report, tasks
        self._chosen: Trial = report.chosen
        self._running: Running | None = running
        self._proof = proof
        self._lock = threading.RLock()
        self._functions = {f.name: f for f in bundle.manifest.functions if f.task in tasks}
        self._size = bundle.manifest.input.size
        self._shape = (1, self._size, self._size, 3)
        self._plans: dict[tuple[str | None, tuple[Kind, ...]], tuple[str, tuple[str, ...]]] = {}
        self._proven: set[tuple[str, ...]] = set()

    @property
    def device(self) -> Device:
        return self._chosen.device

    @property
    def engine(self) -> str:
        return self.report.engine

    @property
    def precision(self) -> str:
        """What it computes in, as the engine reports it."""
        return self._chosen.effective_precision or self.bundle.manifest.precision

    @property
    def size(self) -> int:
        """The side of the square that the functions work on."""
        return self._size

    def restore(self, frame: NDArray[np.uint8], task: str | None = None) -> NDArray[np.uint8]:
        """Restore a frame (H, W, 3) uint8 RGB for a task."""
        task, functions = self._plan(task, ("restore",))
        places, outputs = self._run(functions, frame)
        return self._frame(task, places, outputs, frame.shape)

    def predict(self, frame: NDArray[np.uint8], task: str | None = None) -> Answer:
        """Restore and look: the task's answer, in the frame's own pixels."""
        task, functions = self._plan(task, ("predict",))
        places, outputs = self._run(functions, frame)
        return self._answer(task, places, outputs, frame.shape)

    def __call__(self, frame: NDArray[np.uint8], task: str | None = None) -> Result:
        """Give both, in one call of the engine where it can."""
        task, functions = self._plan(task, ("restore", "predict"))
        places, outputs = self._run(functions, frame)
        shape = frame.shape
        return Result(self._frame(task, places, outputs, shape), self._answer(task, places, outputs, shape))

    def run_raw(self, functions: Sequence[str], batch: NDArray[np.uint8]) -> Outputs:
        """Run functions such as "restore/seg" on (1, size, size, 3) uint8; give new float arrays by output name.

        Nothing is proven, resized or rounded here: this is for those who measure.
        """
        names = functions if isinstance(functions, tuple) else tuple(functions)
        for name in names:
            if name not in self._functions:
                raise unknown_word("function", name, self._functions)
        if batch.shape != self._shape or batch.dtype != np.uint8:
            raise FrameError(f"a batch is {self._shape} uint8, this is {batch.shape} {batch.dtype}")
        with self._lock:
            return self._open().run(names, np.ascontiguousarray(batch))

    def native_call(self, function: str, batch: NDArray[np.uint8]) -> Callable[[], object]:
        """Give the engine's own bare call, without the shim; for bench alone."""
        with self._lock:
            return self._open().native(function, batch)

    def warm_up(self) -> None:
        """Compile and prove every way of calling, so that no frame has to wait for it."""
        kinds: tuple[tuple[Kind, ...], ...] = (("restore",), ("predict",), ("restore", "predict"))
        for task in self.tasks:
            for call in kinds:
                if all(f"{kind}/{task}" in self._functions for kind in call):
                    self._prove(self._plan(task, call)[1])

    def close(self) -> None:
        """Let go of the engine, and of the temporary folder of a zipped bundle."""
        with self._lock:
            if self._running is not None:
                self._running.close()
                self._running = None
                self.bundle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"{self.engine} on {self.device.native}" if self._running is not None else "closed"
        return f"Session({self.bundle.manifest.name!r}, {state}, {self.precision}, tasks={list(self.tasks)})"

    def _open(self) -> Running:
        if self._running is None:
            raise UsageError("this session is closed: load the bundle again")
        return self._running

    def _plan(self, task: str | None, kinds: tuple[Kind, ...]) -> tuple[str, tuple[str, ...]]:
        plan = self._plans.get((task, kinds))
        if plan is None:
            if task is None and len(self.tasks) > 1:
                raise UsageError(f"name the task, this bundle has {len(self.tasks)}: {', '.join(self.tasks)}")
            name = self.tasks[0] if task is None else task
            if name not in self.tasks:
                raise unknown_word("task", name, self.tasks)
            plan = name, tuple(self.bundle.function(kind, name).name for kind in kinds)
            self._plans[task, kinds] = plan
        return plan

    def _prove(self, functions: tuple[str, ...]) -> None:
        with self._lock:
            running = self._open()
            if self._proof == "required":
                figures = measure(running, self.bundle, functions, self.bundle.golden())
                wrong = shortfall(figures, self.report.parity)
                if wrong:
                    raise DeviceError(f"{self.device.native} {wrong}")
            self._proven.add(functions)

    def _run(self, functions: tuple[str, ...], frame: NDArray[np.uint8]) -> tuple[list[Window], list[Outputs]]:
        check_frame(frame)
        if functions not in self._proven:
            self._prove(functions)
        size = self._size
        places = windows(frame.shape[0], frame.shape[1])
        outputs = []
        for window in places:
            batch = crop_resize(frame, window, size)[None]
            with self._lock:
                found = self._open().run(functions, batch)
            for name, value in found.items():
                if not math.isfinite(float(value.sum())):
                    raise DeviceError(f"{self.device.native} gave NaN or infinity in {name} for this frame")
            outputs.append(found)
        return places, outputs

    def _frame(self, task: str, places: list[Window], outputs: list[Outputs], shape: tuple[int, ...]) -> NDArray[np.uint8]:
        name = f"restore_{task}"
        tiles = [resize(o[name][0], w.side, w.side) for o, w in zip(outputs, places, strict=True)]
        return to_uint8(blend(tiles, places, shape[0], shape[1]))

    def _answer(self, task: str, places: list[Window], outputs: list[Outputs], shape: tuple[int, ...]) -> Answer:
        spec = self.bundle.manifest.tasks[task]
        name = f"predict_{task}"
        if spec.kind == "cls":
            return classification([o[name] for o in outputs], spec.labels)
        if spec.kind == "seg":
            return segmentation([o[name] for o in outputs], places, shape[0], shape[1], spec.labels)
        found = [(o[f"{name}_boxes"], o[f"{name}_scores"]) for o in outputs]
        return detections(found, places, self._size, shape[0], shape[1], spec.labels)
