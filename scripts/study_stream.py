"""A day in short: 100 000 frames with faults through one stream, and whether memory, counts and order hold.

    python scripts/study_stream.py BUNDLE --frames 100000

The source stalls, changes its size, sends frames that are none, and goes away and comes back; the viewer rests now and then.
"""

import gc
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer
from rich.console import Console

from tasktok_edge.errors import VerdictError
from tasktok_edge.runtimes import load
from tasktok_edge.runtimes import stream as streams
from tasktok_edge.runtimes.cameras import EndedError, Frame, LostError

SHARES = {"stall": 0.0003, "size": 0.001, "damaged": 0.002, "gone": 0.0005}  # of frames
STALL_S = 0.4
WARM_FRAMES = 5000  # before memory is looked at first


class Trouble:
    """A live source with faults drawn from a seed; counts what it did."""

    name, live, fps = "trouble", True, None

    def __init__(self, n: int, size: int, seed: int = 0) -> None:
        self._draw, self._frames, self._left = random.Random(seed), np.random.default_rng(seed), n
        self._shapes = [(size, size), (size, 2 * size), (size + 7, size + 3)]
        self._shape, self._gone = self._shapes[0], False
        self.done: Counter[str] = Counter()
        self._pool = {s: [self._frames.integers(0, 256, (*s, 3), np.uint8) for _ in range(4)] for s in self._shapes}

    def open(self) -> None:
        if self._gone and self._draw.random() < 0.5:
            raise LostError("trouble is not there yet")
        self._gone = False

    def read(self) -> Frame:
        if not self._left:
            raise EndedError
        self._left -= 1
        drawn, fault = self._draw.random(), None
        for name, share in SHARES.items():
            drawn -= share
            if drawn < 0:
                fault = name
                break
        if fault is not None:
            self.done[fault] += 1
        if fault == "gone":
            self._gone = True
            raise LostError("trouble went away")
        if fault == "damaged":
            return np.zeros((0, 0, 3), np.uint8)
        if fault == "stall":
            time.sleep(STALL_S)
        if fault == "size":
            self._shape = self._draw.choice([s for s in self._shapes if s != self._shape])
        time.sleep(0.002)  # 500 frames a second
        return self._draw.choice(self._pool[self._shape])

    def close(self) -> None: ...


def main(
    bundle: Annotated[Path, typer.Argument()],
    frames: Annotated[int, typer.Option(min=10000)] = 100_000,
) -> None:
    """Run it and print what was found; exit 3 where something does not hold."""
    console = Console()
    streams.STALL_S = STALL_S / 2
    streams.BACK_OFF_S = (0.01, 0.05)
    events: Counter[str] = Counter()
    with load(bundle, threads=1) as session:
        source = Trouble(frames, session.size)
        task = session.tasks[0]
        first_mib, last = 0.0, -1
        with streams.stream(session, source, task=task, on_event=lambda e: events.update([e.kind])) as results:
            for one in _with_rests(results):
                if one.index <= last:
                    raise VerdictError(f"frame {one.index} came after {last}")
                last = one.index
                if not first_mib and one.index > WARM_FRAMES:
                    first_mib = _mib()
            counts = results.counts
            begun = time.monotonic()
        closed_s = time.monotonic() - begun
    grown = _mib() / first_mib - 1
    console.print(f"source: {dict(source.done)}; events: {dict(events)}", highlight=False)
    console.print(f"{counts}; closed in {closed_s:.2f} s", highlight=False)
    console.print(
        f"memory {first_mib:.1f} MiB after {WARM_FRAMES} frames, {_mib():.1f} at the end, {grown:+.1%}", highlight=False
    )
    total = counts.answered + counts.dropped + counts.stale + counts.refused
    if total != counts.captured or grown > 0.02 or closed_s > 1 or events["lost"] != source.done["gone"]:
        raise VerdictError("counts, memory, events or the end are not as they must be")


def _with_rests(results: streams.Stream) -> Iterator[streams.Streamed]:
    for n, one in enumerate(results, 1):
        yield one
        if n % 5000 == 0:
            time.sleep(1)  # a viewer that does not look


def _mib() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


if __name__ == "__main__":
    typer.run(main)
