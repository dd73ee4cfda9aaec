"""From a camera's frames to results, all day: bounded everywhere, in order, and never an old frame shown as new.

    from tasktok_edge.runtimes import load
    from tasktok_edge.runtimes.cameras import camera
    from tasktok_edge.runtimes.stream import stream

    with load("bundle") as session, stream(session, camera("0"), task="seg", max_staleness_ms=200) as results:
        for one in results:
            show(one.restored, one.answer)

One thread reads the source; the caller's own answers, when it asks for the next result. Under `latest` there is room for one
frame: a newer one takes its place, and the older is counted as dropped. Under `every` the reader waits for room, so that a
file loses no frame; a live source should not be read so.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.errors import FrameError, UsageError
from tasktok_edge.runtimes.answers import Answer
from tasktok_edge.runtimes.cameras import DamagedError, EndedError, LostError, Source
from tasktok_edge.runtimes.pace import Pace
from tasktok_edge.runtimes.session import Session
from tasktok_edge.runtimes.still import Still

Policy = Literal["latest", "every"]
EventKind = Literal["opened", "lost", "stalled", "size", "damaged", "refused", "slow", "pace", "sink", "ended"]
ROOM: dict[Policy, int] = {"latest": 1, "every": 4}
STALL_S = 2.0  # without a frame, after which that is told
BACK_OFF_S = (0.5, 1, 2, 4, 8, 15, 30)  # before each attempt to open a lost source again; the last for all further ones
GOODBYE_S = 0.9  # what close() waits for a reader that a driver holds


@dataclass(frozen=True)
class Event:
    """Something that happened; each is told once, when it begins, and again only after it was over."""

    kind: EventKind
    told: str


@dataclass(frozen=True, eq=False)
class Streamed:
    """A frame as it was captured and as it was restored, both (H, W, 3) uint8 RGB, its place in the stream, the task's answer,
    None where the bundle has no network for the task, and how long each step took.
    """

    index: int
    frame: NDArray[np.uint8]
    restored: NDArray[np.uint8]
    answer: Answer | None
    captured_s: float  # time.monotonic
    capture_ms: float  # what the source took to give it, waiting for a camera included
    queue_ms: float  # from capture to the engine
    inference_ms: float  # 0 where the scene is still
    end_to_end_ms: float  # from capture to here
    change: float | None  # of the scene, in levels of 255; None where that is not asked for, or this is the first
    still: bool  # nothing has changed since an earlier frame, whose result this is
    session: Session  # that answered


@dataclass
class Counts:
    """Of frames. `captured` is all others together, and what still waits."""

    captured: int = 0
    dropped: int = 0  # a newer one took their place
    stale: int = 0  # older than allowed, before or behind the engine
    damaged: int = 0  # came damaged
    refused: int = 0  # not what the session takes, such as of a shape that it does not
    still: int = 0  # answered by the result of a frame before
    answered: int = 0  # went through the model


_Result = tuple[NDArray[np.uint8], Answer | None]


@dataclass(frozen=True, eq=False)
class _Captured:
    index: int
    frame: NDArray[np.uint8]
    took: float  # s
    at: float  # time.monotonic


def stream(
    session: Session | Sequence[Session],
    source: Source,
    *,
    task: str | None = None,
    policy: Policy = "latest",
    max_staleness_ms: float | None = None,
    still: float | None = None,
    fps: float | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> "Stream":
    """Read `source` in the background and iterate over results; a context manager that closes the source, not the session.

    No result is given whose frame was captured more than `max_staleness_ms` ago. With `still`, in levels of 255, a frame that
    differs by less from the one restored last is not restored (still.py says how that is measured; LEVELS there is a good
    start). With `fps` the first of several sessions, from the best to the fastest, that keeps up with so many frames a second
    is used, what the caller does with a result included: budgets of tokens, `load(path, tokens=8)`, or smaller models.
    `on_event` is called by the reader's thread or the caller's, whichever finds out.
    """
    return Stream(session, source, task, policy, max_staleness_ms, still, fps, on_event)


class Stream:
    """See `stream`. One thread may iterate; close() may be called from any, twice too."""

    def __init__(
        self,
        session: Session | Sequence[Session],
        source: Source,
        task: str | None,
        policy: Policy,
        max_staleness_ms: float | None,
        still: float | None,
        fps: float | None,
        on_event: Callable[[Event], None],
    ) -> None:
        self.counts = Counts()
        self._source, self._policy = source, policy
        self._max_s = None if max_staleness_ms is None else max_staleness_ms / 1e3
        self._levels, self._fps, self._on_event = still, fps, on_event
        self.use(session, task)
        self._waiting: deque[_Captured] = deque()
        self._changed = threading.Condition()
        self._over = self._closed = self._stalled = False
        self._damaged = self._refused = self._slow = False
        self._came = False  # a frame, since the source was opened
        self._failure: Exception | None = None  # of the source, other than those it may have
        self._heard = time.monotonic()  # when a frame came last
        self._given: float | None = None  # when work on the last frame began that went through the model
        self._reader = threading.Thread(target=self._read, name="tasktok-camera", daemon=True)
        self._reader.start()

    def use(self, session: Session | Sequence[Session], task: str | None) -> None:
        """Answer with these, for this task, from the next frame on; for the thread that iterates."""
        self._sessions = tuple(session) if isinstance(session, Sequence) else (session,)
        if not self._sessions:
            raise UsageError("a stream needs a session, or several from the best to the fastest")
        self._task = task
        self._pace = Pace(len(self._sessions), 1e3 / self._fps) if self._fps else None
        self._still = Still()
        self._last: _Result | None = None

    @property
    def ended(self) -> bool:
        """Whether there is no frame any more, and none will come."""
        return self._closed or (self._over and not self._waiting and self._failure is None)

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
        while not self.ended:
            one = self.poll(STALL_S)
            if one is not None:
                return one
        raise StopIteration

    def poll(self, seconds: float) -> Streamed | None:
        """Give the next result, or None where none came in time or the stream has ended: for loops with other work too."""
        until = time.monotonic() + seconds
        self._note_pace()
        while (captured := self._next_captured(until)) is not None:
            one = self._answer(captured)
            if one is not None:
                return one
            self._note_pace()
            if time.monotonic() >= until:  # frames that give nothing may go on for ever
                break
        return None

    def _answer(self, captured: _Captured) -> Streamed | None:
        begun = time.monotonic()
        if self._old(captured, begun):
            self.counts.stale += 1
            return None
        session = self._sessions[self._pace.way if self._pace else 0]
        change = self._still.change(captured.frame) if self._levels is not None else None
        if self._last is not None and self._levels is not None and change is not None and change <= self._levels:
            self.counts.still += 1
            return _streamed(captured, self._last, begun, time.monotonic(), session, change, still=True)
        try:
            result = session.look(captured.frame, self._task)
        except FrameError as error:
            self.counts.refused += 1
            if not self._refused:
                self._on_event(Event("refused", f"frame {captured.index}: {error}"))
            self._refused = True
            return None
        self._refused, self._given = False, begun
        done = time.monotonic()
        if self._levels is not None:
            self._still.keep()
            self._last = result
        if self._old(captured, done):
            self.counts.stale += 1
            if not self._slow and self._max_s is not None and done - begun > self._max_s:
                took = f"the model took {1e3 * (done - begun):.0f} ms"
                self._on_event(Event("slow", f"{took}, longer than a result may be old, {1e3 * self._max_s:.0f} ms"))
                self._slow = True
            return None
        self._slow = False
        self.counts.answered += 1
        return _streamed(captured, result, begun, done, session, change, still=False)

    def _note_pace(self) -> None:
        """The last frame is done with: the caller is back for the next, or had nothing of it."""
        begun, self._given = self._given, None
        if self._pace is not None and begun is not None and self._pace.saw(1e3 * (time.monotonic() - begun)):
            self._last = None  # another session's
            session = self._sessions[self._pace.way]
            name = session.bundle.manifest.name + ("" if session.tokens is None else f" with {session.tokens} tokens")
            told = f"{name}, {self._pace.way + 1} of {len(self._sessions)} ways, for {self._fps:g} frames a second"
            self._on_event(Event("pace", told))

    def _old(self, captured: _Captured, now: float) -> bool:
        return self._max_s is not None and now - captured.at > self._max_s

    def _next_captured(self, until: float) -> _Captured | None:
        with self._changed:
            while not self._waiting or self._closed:
                now = time.monotonic()
                if self._failure is not None:
                    failure, self._failure = self._failure, None
                    raise failure
                if self._over or self._closed or now >= until:
                    return None
                silent = now - self._heard
                if silent >= STALL_S:
                    self._tell_stalled()
                self._changed.wait(until - now if self._stalled else min(until - now, max(STALL_S - silent, 0.001)))
            captured = self._waiting.popleft()
            self._changed.notify_all()
            return captured

    def _tell_stalled(self) -> None:
        if not self._stalled:
            self._stalled = True
            self._on_event(Event("stalled", f"{self._source.name} gave no frame for {STALL_S:g} s"))

    # The reader's thread.

    def _tell_opened(self) -> None:
        if not self._came:
            self._came = True
            self._on_event(Event("opened", self._source.name))

    def _read(self) -> None:
        try:
            attempt = 0
            while not self._closed:
                self._came = False
                try:
                    self._source.open()
                    self._heard, self._stalled = time.monotonic(), False
                    self._read_on()
                except LostError as reason:
                    self._stalled = True  # that no frame comes is told by this
                    attempt = 0 if self._came else attempt  # to be opened is not to be there
                    if attempt == 0:
                        self._on_event(Event("lost", f"{reason}; it is tried again" if self._source.live else str(reason)))
                    if not self._source.live:
                        return
                    self._sleep(BACK_OFF_S[min(attempt, len(BACK_OFF_S) - 1)])
                    attempt += 1
                except EndedError:
                    self._on_event(Event("ended", self._source.name))
                    return
                finally:
                    self._source.close()
        except Exception as failure:  # noqa: BLE001 a mistake in a source is for whoever iterates
            self._failure = failure
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _read_on(self) -> None:
        size, due = None, time.monotonic()
        while not self._closed:
            asked = time.monotonic()
            try:
                frame = self._source.read()
            except DamagedError as reason:
                self._tell_opened()
                self.counts.captured += 1
                self.counts.damaged += 1
                if not self._damaged:
                    self._on_event(Event("damaged", str(reason)))
                self._damaged = True
                continue
            took = time.monotonic() - asked
            self._tell_opened()
            self._damaged = False
            if size is not None and frame.shape[:2] != size:
                told = "{1}x{0}, not {3}x{2}".format(*frame.shape[:2], *size)
                self._on_event(Event("size", f"{self._source.name}: frames are {told} any more"))
            size = frame.shape[:2]
            if self._source.fps is not None and self._policy == "latest":
                due += 1 / self._source.fps  # a file is played at its own rate, as a camera would
                self._sleep(due - time.monotonic())
            self._put(frame, took)

    def _put(self, frame: NDArray[np.uint8], took: float) -> None:
        with self._changed:
            if time.monotonic() - self._heard >= STALL_S:
                self._tell_stalled()  # nobody was there to find out while it lasted
            while self._policy == "every" and len(self._waiting) >= ROOM["every"] and not self._closed:
                self._changed.wait()
            if self._policy == "latest" and len(self._waiting) >= ROOM["latest"]:
                self._waiting.popleft()
                self.counts.dropped += 1
            self._heard = time.monotonic()
            self._waiting.append(_Captured(self.counts.captured, frame, took, self._heard))
            self.counts.captured += 1
            self._stalled = False
            self._changed.notify_all()

    def _sleep(self, seconds: float) -> None:
        with self._changed:
            if not self._closed and seconds > 0:
                self._changed.wait_for(lambda: self._closed, seconds)


def _streamed(
    captured: _Captured,
    result: _Result,
    begun: float,
    done: float,
    session: Session,
    change: float | None,
    *,
    still: bool,
) -> Streamed:
    return Streamed(
        captured.index,
        captured.frame,
        *result,
        captured_s=captured.at,
        capture_ms=1e3 * captured.took,
        queue_ms=1e3 * (begun - captured.at),
        inference_ms=0.0 if still else 1e3 * (done - begun),
        end_to_end_ms=1e3 * (done - captured.at),
        change=change if change is not None and math.isfinite(change) else None,
        still=still,
        session=session,
    )
