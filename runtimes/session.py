"""A bundle opened on a device: frames in, frames and answers out."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.bundle import Bundle, Kind
from tasktok_edge.errors import DeviceError, FrameError, UsageError, unknown_word
from tasktok_edge.frames import Layout, Pixels, as_rgb, check_frame, lay_out, magnitude, to_uint8
from tasktok_edge.manifest import function_name, output_name
from tasktok_edge.runtimes.answers import Answer, answer_of
from tasktok_edge.runtimes.engine import Device, Running, Trial
from tasktok_edge.runtimes.selection import Proof, Report, measure, shortfall

Outputs = dict[str, NDArray[Any]]

Way = Literal["restore", "predict", "both"]
WAYS: dict[Way, tuple[Kind, ...]] = {"restore": ("restore",), "predict": ("predict",), "both": ("restore", "predict")}
UINT8 = np.dtype(np.uint8)
QUEUED = 4  # frames that wait or run after submit(): more would only be older when they are answered
MAX_CALLS = 256  # shapes of frames that are remembered


@dataclass(frozen=True, eq=False)
class Result:
    """A restored frame (H, W, 3) uint8 and the task's answer."""

    frame: NDArray[np.uint8]
    answer: Answer


@dataclass(frozen=True, slots=True)
class _Call:
    """What a call comes to for frames of one shape: checked, laid out and proven once, then looked up."""

    task: str
    functions: tuple[str, ...]
    layout: Layout
    restored: str  # the output that is the frame


class Session:
    """Made by load(). One call a frame, any frame size; close it, or use it in a `with` block.

    Threads may share a session: a lock lets one of them into the engine at a time. For speed give each thread its own.
    A set of functions that was not run at load is compiled when it is first asked for, and proven on the golden frames
    before it answers; `warm_up()` does that beforehand.
    """

    def __init__(
        self,
        bundle: Bundle,
        running: Running,
        report: Report,
        *,
        tasks: tuple[str, ...],
        proof: Proof = "required",
        pixels: Pixels = "rgb",
    ) -> None:
        assert report.chosen is not None
        self.bundle, self.report, self.tasks = bundle, report, tasks
        self._chosen: Trial = report.chosen
        self._running: Running | None = running
        self._proof, self._pixels = proof, pixels
        self._pool: ThreadPoolExecutor | None = None
        self._room = threading.BoundedSemaphore(QUEUED)
        self._lock = threading.Lock()
        self._functions = {f.name: f for f in bundle.manifest.functions if f.task in tasks}
        self._tokens = bundle.manifest.functions[0].tokens  # the same in all: Bundle.with_budget
        self._size = bundle.manifest.input.size
        self._shape = (1, self._size, self._size, 3)
        self._calls: dict[tuple[object, ...], _Call] = {}
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
    def tokens(self) -> int | None:
        """How many tokens each task replaces, as `load` was told; None: its own selection."""
        return self._tokens

    @property
    def functions(self) -> tuple[str, ...]:
        """What can be run, such as "restore/seg" ("restore/seg@8"); a bundle may hold no predict/<task> for some tasks."""
        return tuple(self._functions)

    def named(self, task: str | None) -> str:
        """Give the task that is meant, the only one where none is named; UsageError for what there is not."""
        if task is None and len(self.tasks) > 1:
            raise UsageError(f"name the task, this bundle has {len(self.tasks)}: {', '.join(self.tasks)}")
        name = self.tasks[0] if task is None else task
        if name not in self.tasks:
            raise unknown_word("task", name, self.tasks)
        return name

    def answers(self, task: str | None = None) -> bool:
        """Whether there is a network that looks at what is restored for a task; else only restore() is possible."""
        return function_name("predict", self.named(task), self._tokens) in self._functions

    def look(self, frame: NDArray[np.uint8], task: str | None = None) -> tuple[NDArray[np.uint8], Answer | None]:
        """Give the restored frame, and the task's answer where there is a network for it."""
        if not self.answers(task):
            return self.restore(frame, task), None
        found = self(frame, task)
        return found.frame, found.answer

    @property
    def size(self) -> int:
        """The side of the square that the functions work on."""
        return self._size

    def restore(self, frame: NDArray[np.uint8], task: str | None = None) -> NDArray[np.uint8]:
        """Restore a frame, (H, W, 3) uint8 or as `load` was told, for a task: RGB, and BGR where the frame is."""
        frame = self._rgb(frame)
        call = self._call("restore", frame, task)
        return self._frame(call, self._run(call, frame))

    @overload
    def predict(self, frame: NDArray[np.uint8], task: str | None = None) -> Answer: ...

    @overload
    def predict(self, frame: NDArray[np.uint8], *, tasks: Sequence[str]) -> dict[str, Answer]: ...

    def predict(
        self, frame: NDArray[np.uint8], task: str | None = None, *, tasks: Sequence[str] | None = None
    ) -> Answer | dict[str, Answer]:
        """Restore and look: the task's answer, in the frame's own pixels; with `tasks` those of several, by task.

        Several tasks share what they can: OpenVINO and ONNX Runtime encode the frame once and refine its tokens once.
        """
        frame = self._rgb(frame)
        if tasks is not None:
            return {name: self._answer(call, outputs) for name, call, outputs in self._several("predict", frame, task, tasks)}
        call = self._call("predict", frame, task)
        return self._answer(call, self._run(call, frame))

    @overload
    def __call__(self, frame: NDArray[np.uint8], task: str | None = None) -> Result: ...

    @overload
    def __call__(self, frame: NDArray[np.uint8], *, tasks: Sequence[str]) -> dict[str, Result]: ...

    def __call__(
        self, frame: NDArray[np.uint8], task: str | None = None, *, tasks: Sequence[str] | None = None
    ) -> Result | dict[str, Result]:
        """Give both, in one call of the engine where it can; with `tasks` those of several, by task."""
        frame = self._rgb(frame)
        if tasks is not None:
            several = self._several("both", frame, task, tasks)
            return {name: Result(self._frame(call, outputs), self._answer(call, outputs)) for name, call, outputs in several}
        call = self._call("both", frame, task)
        outputs = self._run(call, frame)
        return Result(self._frame(call, outputs), self._answer(call, outputs))

    def submit(self, frame: NDArray[np.uint8], task: str | None = None) -> "Future[Result]":
        """Queue a frame for what a call gives, in the order of submission; the frame is copied, its buffer may be used again.

        At most QUEUED frames wait or run: a further one waits here until one of them is done. What a call raises, the
        future's result() raises. close() waits for the frame that runs and cancels the others.
        """
        with self._lock:
            self._open()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="tasktok")
        self._room.acquire()
        try:
            future = self._pool.submit(self.__call__, np.array(frame), task)
        except BaseException as error:
            self._room.release()
            if isinstance(error, RuntimeError):  # closed meanwhile
                raise UsageError("this session is closed: load the bundle again") from None
            raise
        future.add_done_callback(lambda _: self._room.release())
        return future

    def batch(self, frames: Iterable[NDArray[np.uint8]], task: str | None = None) -> list[Result]:
        """Give what a call gives for each of several frames, which may differ in size: (N, H, W, 3) or a list.

        The functions hold one frame, so that frames go one after the other: no faster, and no more memory.
        """
        return [self(frame, task) for frame in frames]

    def placement(self, task: str | None = None) -> dict[str, int]:
        """Count where the operators of a task run, by the engine's own records, such as {"CPU, u8": 40, "CPU, f32": 97}."""
        name = self.named(task)
        functions = tuple(f for f in self._of("both", name) if f in self._functions)
        self._prove(functions)
        with self._lock:
            return self._open().placement(functions)

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
        return self._ask(names, np.ascontiguousarray(batch))

    def native_call(self, function: str, batch: NDArray[np.uint8]) -> Callable[[], object]:
        """Give the engine's own bare call, without the shim; for bench alone."""
        with self._lock:
            return self._open().native(function, batch)

    def warm_up(self) -> None:
        """Compile and prove every way of calling, so that no frame has to wait for it."""
        for task in self.tasks:
            for way in WAYS:
                functions = self._of(way, task)
                if all(f in self._functions for f in functions):
                    self._prove(functions)

    def close(self) -> None:
        """Let go of the engine, and of the temporary folder of a zipped bundle."""
        pool = self._pool
        if pool is not None:  # not below: what runs there needs the lock
            pool.shutdown(wait=True, cancel_futures=True)
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

    def _call(self, way: Way, frame: NDArray[np.uint8], task: str | None) -> _Call:
        # The engine's weights have just gone through the caches, and every line here costs several times what it costs alone:
        # what one frame showed is not asked again of the next of its shape.
        key = (way, task, frame.shape) if isinstance(frame, np.ndarray) and frame.dtype is UINT8 else ()
        return self._calls.get(key) or self._first_call(key, way, frame, task)

    def _first_call(self, key: tuple[object, ...], way: Way, frame: NDArray[np.uint8], task: str | None) -> _Call:
        name = self.named(task)
        functions = self._of(way, name)
        absent = [function for function in functions if function not in self._functions]
        if absent:
            raise self._lacks(absent[0])
        height, width = check_frame(frame).shape[:2]
        if functions not in self._proven:
            self._prove(functions)
        manifest = self.bundle.manifest
        framing = manifest.tasks[name].framing
        layout = lay_out(height, width, self._size, resize=manifest.input.resize, framing=framing)
        call = _Call(name, functions, layout, output_name("restore", name, self._tokens))
        if len(self._calls) >= MAX_CALLS:
            self._calls.clear()
        if key:
            self._calls[key] = call
        return call

    def _of(self, way: Way, task: str) -> tuple[str, ...]:
        return tuple(function_name(kind, task, self._tokens) for kind in WAYS[way])

    def _rgb(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return frame if self._pixels == "rgb" else as_rgb(frame, self._pixels)  # RGB is checked once for each shape

    def _several(
        self, way: Way, frame: NDArray[np.uint8], task: str | None, tasks: Sequence[str]
    ) -> Iterator[tuple[str, _Call, list[Outputs]]]:
        """Run several tasks on a frame, in one call of the engine where all see the frame in the same way."""
        if task is not None or isinstance(tasks, str) or not tasks:
            raise UsageError('give one task="seg", or several as tasks=("cls", "seg")')
        calls = {name: self._call(way, frame, name) for name in tasks}
        first = next(iter(calls.values()))
        if all(call.layout == first.layout for call in calls.values()):
            together = tuple(f for call in calls.values() for f in call.functions)
            if together not in self._proven:
                self._prove(together)
            outputs = self._run(replace(first, functions=together), frame)
            for name, call in calls.items():
                own = {o.name for f in call.functions for o in self._functions[f].outputs}
                yield name, call, [{n: v for n, v in found.items() if n in own} for found in outputs]
        else:
            for name, call in calls.items():
                yield name, call, self._run(call, frame)

    def _lacks(self, function: str) -> UsageError:
        """Make the error for a function that its task may have, and this bundle has not."""
        kind, task = function.partition("@")[0].split("/")
        instead, net = ("restore", " with a network for this task") if kind == "predict" else ("predict", "")
        return UsageError(
            f"this bundle holds no {function}, only {', '.join(self._functions)}: "
            f"call session.{instead}(frame, {task!r}), or export a checkpoint{net}"
        )

    def _prove(self, functions: tuple[str, ...]) -> None:
        with self._lock:
            running = self._open()
            if self._proof == "required":
                figures = measure(running, self.bundle, functions, self.bundle.golden())
                wrong = shortfall(figures, self.report.parity)
                if wrong:
                    raise DeviceError(f"{self.device.native} {wrong}")
            self._proven.add(functions)

    def _run(self, call: _Call, frame: NDArray[np.uint8]) -> list[Outputs]:
        if call.layout.is_plain:
            return [self._ask(call.functions, np.ascontiguousarray(frame)[None])]
        return [self._ask(call.functions, batch) for batch in call.layout.cut(frame)]

    def _ask(self, functions: tuple[str, ...], batch: NDArray[np.uint8]) -> Outputs:
        with self._lock:
            return (self._running or self._open()).run(functions, batch)

    def _frame(self, call: _Call, outputs: list[Outputs]) -> NDArray[np.uint8]:
        layout, name = call.layout, call.restored
        image = outputs[0][name][0] if layout.is_plain else layout.join([o[name][0] for o in outputs])
        try:
            return np.ascontiguousarray(to_uint8(image)[..., ::-1]) if self._pixels == "bgr" else to_uint8(image)
        except FrameError:
            raise self._not_finite(name) from None

    def _answer(self, call: _Call, outputs: list[Outputs]) -> Answer:
        for found in outputs:
            for name, value in found.items():
                if name.startswith("predict_") and not math.isfinite(magnitude(value)):
                    raise self._not_finite(name)
        spec = self.bundle.manifest.tasks[call.task]
        name = output_name("predict", call.task, self._tokens)
        return answer_of(spec.kind, name, outputs, call.layout, spec.labels, heat_map=spec.heat_map)

    def _not_finite(self, output: str) -> DeviceError:
        return DeviceError(f"{self.device.native} gave NaN or infinity in {output} for this frame")
