"""From a camera's frames to results, all day: bounded everywhere, in order, and never an old frame shown as new.

    from tasktok_edge.runtimes import load
    from tasktok_edge.runtimes.cameras import camera
    from tasktok_edge.runtimes.stream import stream

    with load("bundle") as session, stream(session, camera("0"), task="seg", max_staleness_ms=200) as results:
        for one in results:
            show(one.result.frame, one.result.answer)

One thread reads the source; the caller's own answers, when it asks for the next result. Under `latest` there is room for one
frame: a newer one takes its place, and the older is counted as dropped. Under `every` the reader waits for room, so that a
file loses no frame; a live source should not be read so.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.errors import FrameError
from tasktok_edge.runtimes.cameras import EndedError, LostError, Source
from tasktok_edge.runtimes.session import Result, Session

Policy = Literal["latest", "every"]
EventKind = Literal["opened", "lost", "stalled", "size", "refused", "ended"]
ROOM: dict[Policy, int] = {"latest": 1, "every": 4}
STALL_S = 2.0  # without a frame, after which that is told
BACK_OFF_S = (0.5, 1, 2, 4, 8, 15, 30)  # before each attempt to open a lost source again; the last for all further ones
GOODBYE_S = 1.0  # what close() waits for a reader that a driver holds


@dataclass(frozen=True)
class Event:
    """Something that happened to the source; each is told once, when it begins."""

    kind: EventKind
    told: str


@dataclass(frozen=True, eq=False)
class Streamed:
    """A frame (H, W, 3) uint8 RGB as it was captured, its place in the stream, what came of it, and how long each step took."""

    index: int
    frame: NDArray[np.uint8]
    result: Result
    queue_ms: float  # from capture to the engine
    inference_ms: float
    end_to_end_ms: float  # from capture to here


@dataclass
class Counts:
    """Of frames. `captured` is all others together, and what still waits."""

    captured: int = 0
    dropped: int = 0  # a newer one took their place
    stale: int = 0  # older than allowed, before or behind the engine
    refused: int = 0  # no frames that the session takes, such as damaged pictures
    answered: int = 0


@dataclass(frozen=True, eq=False)
class _Captured:
    index: int
    frame: NDArray[np.uint8]
    at: float  # time.monotonic


def stream(
    session: Session,
    source: Source,
    *,
    task: str | None = None,
    policy: Policy = "latest",
    max_staleness_ms: float | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> "Stream":
    """Read `source` in the background and iterate over results; a context manager that closes the source, not the session.

    No result is given whose frame was captured more than `max_staleness_ms` ago. `on_event` is called by the reader's thread
    or the caller's, whichever finds out.
    """
    return Stream(session, source, task, policy, max_staleness_ms, on_event)


class Stream:
    """See `stream`. One thread may iterate; close() may be called from any, twice too."""

    def __init__(
        self,
        session: Session,
        source: Source,
        task: str | None,
        policy: Policy,
        max_staleness_ms: float | None,
        on_event: Callable[[Event], None],
    ) -> None:
        self.counts = Counts()
        self._session, self._source, self._task = session, source, task
        self._policy, self._max_s = policy, None if max_staleness_ms is None else max_staleness_ms / 1e3
        self._on_event = on_event
        self._waiting: deque[_Captured] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = self._stalled = False
        self._reader = threading.Thread(target=self._read, name="tasktok-camera", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading and let go of the source, within a second."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._reader.join(GOODBYE_S)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Streamed:
        while True:
            captured = self._next_captured()
            begun = time.monotonic()
            if self._old(captured, begun):
                self.counts.stale += 1
                continue
            try:
                result = self._session(captured.frame, self._task)
            except FrameError as error:
                self.counts.refused += 1
                self._on_event(Event("refused", f"frame {captured.index}: {error}"))
                continue
            done = time.monotonic()
            if self._old(captured, done):
                self.counts.stale += 1
                continue
            self.counts.answered += 1
            times = ((begun - captured.at), (done - begun), (done - captured.at))
            return Streamed(captured.index, captured.frame, result, *(1e3 * seconds for seconds in times))

    def _old(self, captured: _Captured, now: float) -> bool:
        return self._max_s is not None and now - captured.at > self._max_s

    def _next_captured(self) -> _Captured:
        with self._changed:
            while not self._waiting:
                if self._ended or self._closed:
                    raise StopIteration
                if not self._changed.wait(STALL_S) and not self._waiting and not self._stalled:
                    self._stalled = True
                    self._on_event(Event("stalled", f"{self._source.name} gave no frame for {STALL_S:g} s"))
            captured = self._waiting.popleft()
            self._changed.notify_all()
            return captured

    # The reader's thread.

    def _read(self) -> None:
        try:
            attempt = 0
            while not self._closed:
                try:
                    self._source.open()
                    self._on_event(Event("opened", self._source.name))
                    attempt = 0
                    self._read_on()
                except LostError as reason:
                    if attempt == 0:
                        self._on_event(Event("lost", str(reason)))
                    if not self._source.live:
                        return
                    self._sleep(BACK_OFF_S[min(attempt, len(BACK_OFF_S) - 1)])
                    attempt += 1
                except EndedError:
                    self._on_event(Event("ended", self._source.name))
                    return
                finally:
                    self._source.close()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _read_on(self) -> None:
        size, due = None, time.monotonic()
        while not self._closed:
            frame = self._source.read()
            if frame.size and size is not None and frame.shape[:2] != size:
                told = "{1}x{0}, not {3}x{2}".format(*frame.shape[:2], *size)
                self._on_event(Event("size", f"{self._source.name}: frames are {told} any more"))
            size = frame.shape[:2] if frame.size else size  # a damaged one has none
            if self._source.fps is not None and self._policy == "latest":
                due += 1 / self._source.fps  # a file is played at its own rate, as a camera would
                self._sleep(due - time.monotonic())
            self._put(frame)

    def _put(self, frame: NDArray[np.uint8]) -> None:
        with self._changed:
            while self._policy == "every" and len(self._waiting) >= ROOM["every"] and not self._closed:
                self._changed.wait()
            if self._policy == "latest" and len(self._waiting) >= ROOM["latest"]:
                self._waiting.popleft()
                self.counts.dropped += 1
            self._waiting.append(_Captured(self.counts.captured, frame, time.monotonic()))
            self.counts.captured += 1
            self._stalled = False
            self._changed.notify_all()

    def _sleep(self, seconds: float) -> None:
        with self._changed:
            if not self._closed and seconds > 0:
                self._changed.wait_for(lambda: self._closed, seconds)
