"""What the camera's loop and its page share: what was seen last, how it goes, and what somebody asked for meanwhile."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tasktok_edge.apps.show import drawn
from tasktok_edge.errors import UsageError, unknown_word
from tasktok_edge.runtimes import Session, load
from tasktok_edge.runtimes.sinks import line_of
from tasktok_edge.runtimes.stream import Event, Stream, Streamed

OWN, AUTO = "own", "auto"  # budgets: each task's own selection; whatever keeps up with --fps
RECENT_S = 5.0  # over which rates are taken
EVENTS = 30  # that are kept
SHOWN_SIDE, QUALITY = 512, 85  # pixels of a picture in the page at the most, and JPEG's quality


@dataclass(frozen=True, eq=False)
class Model:
    """An opened bundle: a session with each task's own selection of tokens, then one for each budget, falling."""

    path: Path
    sessions: tuple[Session, ...]

    @property
    def own(self) -> Session:
        return self.sessions[0]

    def of_budget(self, budget: str) -> tuple[Session, ...]:
        """`own`, `auto`, or a number of tokens; UsageError for another word."""
        if budget == AUTO:
            return self.sessions
        by_name = {OWN if s.tokens is None else str(s.tokens): s for s in self.sessions}
        if budget not in by_name:
            raise unknown_word("budget", budget, [*by_name, AUTO])
        return (by_name[budget],)

    def close(self) -> None:
        for session in self.sessions:
            session.close()


def open_model(path: Path, device: str, threads: int | None, *, tokens: int | None = None, budgets: bool = False) -> Model:
    """Open a bundle with `tokens`, or with `budgets` once for each budget that it was built with."""
    first = load(path, device, threads=threads, tokens=tokens)
    opened = [first]
    try:
        if budgets and tokens is None:
            most = max(len(task.selected_tokens) for task in first.bundle.manifest.tasks.values())
            smaller = [n for n in reversed(first.bundle.budgets) if n < most]
            opened += [load(path, device, threads=threads, tokens=n) for n in smaller]
        return Model(path, tuple(opened))
    except BaseException:
        for session in opened:
            session.close()
        raise


def prove(session: Session, task: str) -> None:
    """Run a first frame: it compiles and proves, and takes longer than others."""
    session.look(np.zeros((session.size, session.size, 3), np.uint8), task)


@dataclass(frozen=True)
class Wish:
    """What is to be used from the next frame on."""

    model: Model
    task: str
    budget: str


class Shown:
    """A result and its pictures as JPEG, each coded once, for all viewers, when the first of them asks."""

    def __init__(self, one: Streamed, told: dict[str, Any]) -> None:
        self.one, self.told = one, told
        self._lock = threading.Lock()
        self._coded: dict[str, bytes] = {}

    def pictures(self, *, answer: bool) -> tuple[bytes, bytes]:
        """The degraded frame, and the restored one with or without the answer drawn in."""
        right = "drawn" if answer else "restored"
        with self._lock:
            for name in {"frame", right} - set(self._coded):
                picture = drawn(self.one)[0] if name == "drawn" else self.one.frame if name == "frame" else self.one.restored
                self._coded[name] = _jpeg(picture)
            return self._coded["frame"], self._coded[right]


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    height, width = picture.shape[:2]
    share = SHOWN_SIDE / max(height, width)
    if share < 1:
        size = (max(round(width * share), 1), max(round(height * share), 1))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


@dataclass
class Live:
    """A sink of results and events; the loop calls `obey` between frames, everybody else reads and wishes."""

    bundles: Sequence[Path]
    opening: Callable[[Path], Model]
    now: Wish
    source: str
    max_staleness_ms: float | None = None
    still: float | None = None  # levels
    name: str = "page"
    on_result: Callable[[Streamed | None], None] = lambda _: None  # None: there will be no more
    results: Stream | None = None
    events: deque[tuple[float, Event]] = field(default_factory=lambda: deque(maxlen=EVENTS))
    told: Counter[str] = field(default_factory=Counter)  # events by kind
    shown: Shown | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _wish: Wish | None = None
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=1000))

    def write(self, one: Streamed) -> None:
        now = time.monotonic()
        self._recent.append(now)
        while now - self._recent[0] > RECENT_S:
            self._recent.popleft()
        self.shown = Shown(one, line_of(one))
        self.on_result(one)

    def tell(self, event: Event) -> None:
        self.told[event.kind] += 1
        self.events.append((time.time(), event))

    def close(self) -> None:
        self.on_result(None)
        self.now.model.close()
        with self._lock:
            if self._wish is not None and self._wish.model is not self.now.model:
                self._wish.model.close()

    def age_s(self) -> float | None:
        """Seconds since the frame that was shown last was captured; None before the first."""
        return None if self.shown is None else time.monotonic() - self.shown.one.captured_s

    def wish(self, *, task: str | None = None, budget: str | None = None, bundle: int | None = None) -> None:
        """Ask for another task, budget of tokens or bundle (its place in `bundles`); UsageError for what there is not.

        A bundle is opened, and proven, here and now; frames go on meanwhile.
        """
        with self._lock:
            wanted = self._wish or self.now
            model = wanted.model
            if bundle is not None:
                if not 0 <= bundle < len(self.bundles):
                    raise UsageError(f"there is no bundle {bundle}, only 0 to {len(self.bundles) - 1}")
                if self.bundles[bundle] != model.path:
                    model = self.opening(self.bundles[bundle])
            try:
                changed = model is not wanted.model
                named = model.own.named(task or (wanted.task if wanted.task in model.own.tasks else model.own.tasks[0]))
                sessions = model.of_budget(named_budget := budget or (OWN if changed else wanted.budget))
                for session in sessions:
                    prove(session, named)
            except BaseException:
                if model is not wanted.model:
                    model.close()
                raise
            if wanted.model not in (model, self.now.model):
                wanted.model.close()  # was opened, and never used
            self._wish = Wish(model, named, named_budget)

    def obey(self) -> None:
        """Use what was asked for; between frames, in the thread that iterates."""
        if self._wish is None or self.results is None:
            return
        if not self._lock.acquire(blocking=False):
            return  # somebody asks for more, which may take a while: frames go on
        before, self.now, self._wish = self.now, self._wish, None
        self._lock.release()
        self.results.use(self.now.model.of_budget(self.now.budget), self.now.task)
        if before.model is not self.now.model:
            before.model.close()

    def state(self) -> dict[str, Any]:
        """All numbers, as JSON takes them."""
        now, one = self.now, self.shown.one if self.shown else None
        session = now.model.own if one is None else one.session
        manifest = now.model.own.bundle.manifest
        task = manifest.tasks[now.task]
        rate = len(self._recent) / RECENT_S if self._recent and time.monotonic() - self._recent[-1] < RECENT_S else 0.0
        age = self.age_s()
        return {
            "source": self.source,
            "bundle": next(i for i, path in enumerate(self.bundles) if path == now.model.path),
            "bundles": [path.name for path in self.bundles],
            "name": manifest.name,
            "engine": f"{session.report.engine} {session.report.engine_version}",
            "device": session.device.native,
            "precision": session.precision,
            "task": now.task,
            "tasks": list(now.model.own.tasks),
            "budget": now.budget,
            "budgets": [OWN if s.tokens is None else str(s.tokens) for s in now.model.sessions],
            "tokens": len(task.selected_tokens) if session.tokens is None else session.tokens,
            "n_tokens": task.n_tokens,
            "selected": list(task.selected_tokens) if session.tokens is None else None,
            "counts": asdict(self.results.counts) if self.results else {},
            "fps": round(rate, 1),
            "age_s": None if age is None else round(age, 3),
            "max_staleness_ms": self.max_staleness_ms,
            "still_levels": self.still,
            "ended": self.results is None or self.results.ended,
            "events": [{"at": round(at, 3), "kind": e.kind, "told": e.told} for at, e in list(self.events)],
        }
