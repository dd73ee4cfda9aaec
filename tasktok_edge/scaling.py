"""How a bundle's latency grows: with the frame, the batch, the tokens that are replaced, and with fewer or more threads."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tasktok_edge.data.heldout import held_out
from tasktok_edge.frames import resize
from tasktok_edge.progress import Doing
from tasktok_edge.runtimes import Session, load
from tasktok_edge.timing import measure

SHAPES = ((1, 1), (2, 2), (2, 4), (4, 4))  # height and width of frames, in sides of the function's square
BATCHES = (2, 4)


@dataclass(frozen=True)
class Scale:
    """One way of calling a bundle, and its time beside the plain one: a frame of the function's size, one thread."""

    bundle: str
    task: str
    what: str  # frame, batch, tokens or threads
    value: str
    p50_ms: float
    ratio: float
    noisy: bool


def scaling(bundles: Sequence[Path], *, device: str, runs: int) -> Iterator[Doing | list[Scale]]:
    """Measure each bundle's first task in all these ways, interleaved; yields progress, and the figures last."""
    found = []
    for bundle in bundles:
        yield Doing(f"scaling, {bundle.name}")
        with ExitStack() as stack:
            base = stack.enter_context(load(bundle, device, threads=1, proof="measured"))
            calls = _calls(base, bundle, device, stack)
            name, task = base.bundle.manifest.name, base.tasks[0]
            for (what, value), one in zip(
                calls, measure({f"{w} {v}": c for (w, v), c in calls.items()}, runs=runs), strict=True
            ):
                found.append(Scale(name, task, what, value, one.p50_ms, one.ratio, one.noisy))
    yield found


def _calls(base: Session, bundle: Path, device: str, stack: ExitStack) -> dict[tuple[str, str], Callable[[], object]]:
    side, task = base.size, base.tasks[0]
    held = next(held_out(1)).degraded
    square = resize(held, side, side)
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for height, width in SHAPES:
        frame = resize(held, height * side, width * side)
        calls["frame", f"{width * side}x{height * side}"] = partial(base.restore, frame, task)
    for n in BATCHES:
        calls["batch", str(n)] = partial(_batch, base, square, task, n)
    for tokens in base.bundle.manifest.budgets:
        session = stack.enter_context(load(bundle, device, threads=1, proof="measured", tokens=tokens))
        calls["tokens", str(tokens)] = partial(session.restore, square, task)
    for threads in range(2, (os.cpu_count() or 1) + 1):
        session = stack.enter_context(load(bundle, device, threads=threads, proof="measured"))
        calls["threads", str(threads)] = partial(session.restore, square, task)
    return calls


def _batch(session: Session, frame: object, task: str, n: int) -> None:
    for _ in range(n):  # what Session.batch does, restoring alone
        session.restore(frame, task)  # type: ignore[arg-type]
