"""An engine in a process of its own: what crashes or hangs there is a `DeviceError` here.

A bundle that verifies can still be hostile to its engine: the hashes are right, the model's file is not. The child gets frames
and gives answers through a mapped file, is killed when it takes too long, and is started again for the next frame.
"""

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.bundle import Bundle
from tasktok_edge.errors import DeviceError
from tasktok_edge.runtimes.child import length, places
from tasktok_edge.runtimes.engine import Device, Engine

OPEN_LIMIT_S = 120.0
GRACE_S = 2.0  # for a process whose end is in sight
MAX_MESSAGE = 64 * 1024


class Isolated:
    """An `Engine` whose bundles run in processes of their own; `limit_s` is what one call may take."""

    def __init__(self, inner: Engine, limit_s: float) -> None:
        self.TARGET, self.EXTRA = inner.TARGET, inner.EXTRA
        self.inner, self.limit_s = inner, limit_s

    def version(self) -> str:
        return self.inner.version()

    def devices(self) -> list[Device]:
        return self.inner.devices()

    def open(self, bundle: Bundle, device: Device, *, threads: int | None, tasks: Sequence[str]) -> "IsolatedRunning":
        return IsolatedRunning(bundle, device, threads=threads, tasks=tasks, limit_s=self.limit_s)


class IsolatedRunning:
    """A child process and the mapped file that frames and answers lie in."""

    def __init__(self, bundle: Bundle, device: Device, *, threads: int | None, tasks: Sequence[str], limit_s: float) -> None:
        self._specs = {f.name: f for f in bundle.manifest.functions if f.task in tasks}
        self._size, self._limit_s = bundle.manifest.input.size, limit_s
        self.effective_precision: str = bundle.manifest.precision
        self.effective_device = "not compiled"
        memory = Path("/dev/shm")  # elsewhere the file is one of the disk's cache, which is as fast
        self._folder = tempfile.TemporaryDirectory(
            prefix="tasktok-", dir=memory if os.access(memory, os.W_OK) else None, ignore_cleanup_errors=True
        )
        file = Path(self._folder.name, "frames")
        with file.open("w+b") as stream:
            stream.truncate(length(list(self._specs.values()), self._size))
            self._shared = mmap.mmap(stream.fileno(), 0)
        self._frame = np.frombuffer(self._shared, np.uint8, self._size**2 * 3).reshape(1, self._size, self._size, 3)
        job = {"bundle": str(bundle.path), "sha256": bundle.sha256, "device": asdict(device)}
        self._job: dict[str, object] = {**job, "threads": threads, "tasks": list(tasks), "shared": str(file)}
        self._child: _Child | None = None
        try:
            self._started()
        except BaseException:
            self.close()
            raise

    def run(self, functions: tuple[str, ...], batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        child = self._child or self._started()
        self._frame[:] = batch
        # The child compiles a set of functions when it is first asked for it.
        limit_s = self._limit_s if functions in child.asked else self._limit_s + OPEN_LIMIT_S
        answer = self._ask(child, {"functions": functions}, limit_s)
        child.asked.add(functions)
        self.effective_precision, self.effective_device = str(answer.get("precision")), str(answer.get("device"))
        found = {}
        for name, (at, shape) in places([self._specs[f] for f in functions], self._size).items():
            found[name] = np.frombuffer(self._shared, np.float32, int(np.prod(shape)), at).reshape(shape).copy()
        return found

    def placement(self, functions: tuple[str, ...]) -> dict[str, int]:
        child = self._child or self._started()
        told = self._ask(child, {"functions": functions, "placement": True}, OPEN_LIMIT_S).get("placement")
        return {str(name): int(count) for name, count in told.items()} if isinstance(told, dict) else {}

    def native(self, function: str, batch: NDArray[np.uint8]) -> Callable[[], object]:
        """The whole call: what bench holds the shim against includes the way to the other process."""
        return lambda: self.run((function,), batch)

    def close(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None
        self._folder.cleanup()

    def _started(self) -> "_Child":
        self._child = child = _Child()
        self._ask(child, self._job, OPEN_LIMIT_S)
        return child

    def _ask(self, child: "_Child", message: dict[str, object], limit_s: float) -> dict[str, object]:
        try:
            answer = child.ask(message, limit_s)
        except _EndedError as ended:
            self._child = None
            raise DeviceError(f"the engine's process {ended}; the next frame starts it again") from None
        if "error" in answer:
            raise DeviceError(str(answer["error"]))
        return answer


class _EndedError(Exception):
    """Why the child is no longer there."""


class _Child:
    def __init__(self) -> None:
        self.asked: set[tuple[str, ...]] = set()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tasktok_edge.runtimes.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.end = weakref.finalize(self, _end, self._process)  # with the session, or with whoever forgot to close it

    def ask(self, message: dict[str, object], limit_s: float) -> dict[str, object]:
        """Send a message and wait for the answer; past the limit the child is killed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        watch = threading.Timer(limit_s, stop)
        watch.daemon = True
        watch.start()
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline(MAX_MESSAGE)
            answer = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            answer = None
        finally:
            watch.cancel()
        if isinstance(answer, dict) and not late.is_set():
            return answer
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)  # it has closed its end, or said what it should not
        code = self._process.returncode
        self.end()
        raise _EndedError(f"took more than {limit_s:g} s and was ended" if late.is_set() else _how(code))


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()  # it holds nothing that would have to be written
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was still to be written finds no reader
                pipe.close()


def _how(code: int | None) -> str:
    if code is None:
        return "gave no answer that could be read"
    if code < 0:
        try:
            return f"crashed ({signal.Signals(-code).name})"
        except ValueError:
            return f"crashed (signal {-code})"
    return f"ended (exit code {code})"
