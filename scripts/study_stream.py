"""A day in short: 100 000 frames with faults through one stream, and whether memory, counts and order hold.

    python scripts/study_stream.py BUNDLE --frames 100000
    python scripts/study_stream.py BUNDLE --frames 30000 --slow 200      # and no result older than 400 ms

The source stalls, changes its size, sends damaged frames, and goes away and comes back; a sink's disk is full now and then; the
page has a viewer that asks and never reads; whoever takes the results rests. Every fault must be told once.
"""

import gc
import random
import socket
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import numpy as np
import psutil
import typer
from rich.console import Console

from tasktok_edge.apps.live import OWN, Live, Wish, open_model
from tasktok_edge.apps.serve import serving
from tasktok_edge.errors import VerdictError
from tasktok_edge.runtimes import stream as streams
from tasktok_edge.runtimes.answers import Answer
from tasktok_edge.runtimes.cameras import DamagedError, EndedError, Frame, LostError
from tasktok_edge.runtimes.session import Session
from tasktok_edge.runtimes.sinks import Sinks
from tasktok_edge.runtimes.stream import Streamed

FULL_EVERY, FULL_FOR = 7000, 300  # results after which the disk is full, and for how many
SHARES = {"stall": 0.0003, "size": 0.001, "damaged": 0.002, "gone": 0.0005}  # of frames
TOLD = {"lost": "gone", "stalled": "stall", "size": "size", "damaged": "damaged, told"}  # events by fault
STALL_S = 0.4
WARM_FRAMES = 5000  # before memory is looked at first


class Trouble:
    """A live source with faults drawn from a seed; counts what it did."""

    name, live, fps = "trouble", True, None

    def __init__(self, n: int, size: int, seed: int = 0) -> None:
        self.given = 0
        self._draw, self._frames, self._left = random.Random(seed), np.random.default_rng(seed), n
        self._shapes = [(size, size), (size, 2 * size), (size + 7, size + 3)]
        self._shape, self._gone, self._hurt = self._shapes[0], False, False
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
            self.done["damaged, told"] += not self._hurt  # those that follow one another are one fault
            self._hurt = True
            raise DamagedError("trouble sent half a frame")
        self._hurt = False
        if fault == "stall":
            time.sleep(STALL_S)
        if fault == "size":
            self._shape = self._draw.choice([s for s in self._shapes if s != self._shape])
        time.sleep(0.002)  # 500 frames a second
        self.given += 1
        return self._draw.choice(self._pool[self._shape])

    def close(self) -> None: ...


class Slow(Session):
    """A session that takes its time."""

    def __init__(self, session: Session, ms: float) -> None:
        self.__dict__ = session.__dict__
        self._slow_s = ms / 1e3

    def look(self, frame: Frame, task: str | None = None) -> tuple[Frame, Answer | None]:
        time.sleep(self._slow_s)
        return super().look(frame, task)


class FullDisk:
    """A sink whose disk is full from time to time."""

    name = "disk"

    def __init__(self) -> None:
        self.seen, self.outages, self.closed = 0, 0, False

    def write(self, _: Streamed) -> None:
        self.seen += 1
        if self.seen >= FULL_EVERY and self.seen % FULL_EVERY < FULL_FOR:
            self.outages += self.seen % FULL_EVERY == 0
            raise OSError(28, "No space left on device")

    def close(self) -> None:
        self.closed = True


def never_reads(address: str) -> socket.socket:
    """A viewer that has asked for a thousand results and looks at none."""
    url = urlsplit(address)
    viewer = socket.create_connection((url.hostname, url.port))
    ask = f"GET /api/live?after=-1 HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode()
    viewer.setblocking(False)
    with suppress(BlockingIOError):
        for _ in range(1000):
            viewer.send(ask)
    return viewer


def main(
    bundle: Annotated[Path, typer.Argument()],
    frames: Annotated[int, typer.Option(min=10000)] = 100_000,
    slow: Annotated[float, typer.Option(help="ms that the model takes longer, on purpose")] = 0,
) -> None:
    """Run it and print what was found; exit 3 where something does not hold."""
    console = Console()
    streams.STALL_S = STALL_S / 2
    streams.BACK_OFF_S = (0.01, 0.05)
    model, oldest_ms = open_model(bundle, "auto", 1), 0.0
    source, disk, task = Trouble(frames, model.own.size), FullDisk(), model.own.tasks[0]
    live = Live([bundle], lambda path: open_model(path, "auto", 1), Wish(model, task, OWN), source.name)
    first_mib, last, events = 0.0, -1, live.told
    with ExitStack() as stack:
        viewer = never_reads(stack.enter_context(serving(live, "0", None)))
        sinks = stack.enter_context(Sinks([live, disk], live.tell))
        results = stack.enter_context(
            streams.stream(
                Slow(model.own, slow) if slow else model.own,
                source,
                task=task,
                max_staleness_ms=2 * slow or None,
                on_event=live.tell,
            )
        )
        live.results = results
        for n, one in enumerate(results, 1):
            sinks.write(one)
            if one.index <= last:
                raise VerdictError(f"frame {one.index} came after {last}")
            last, oldest_ms = one.index, max(oldest_ms, one.end_to_end_ms)
            if not first_mib and one.index > WARM_FRAMES:
                first_mib = _mib()
            if n % 5000 == 0:
                time.sleep(1)  # nobody takes the results
        end_mib, begun = _mib(), time.monotonic()
        stack.close()
        closed_s = time.monotonic() - begun
        viewer.close()
    counts, grown, done = results.counts, end_mib / first_mib - 1, source.done
    console.print(f"faults: {dict(done)}, disk full {disk.outages}; events: {dict(events)}", highlight=False)
    console.print(f"oldest result {oldest_ms:.0f} ms; the source gave {source.given} whole frames", highlight=False)
    console.print(f"{counts}; {dict(sinks.missed)} not written; closed in {closed_s:.2f} s", highlight=False)
    console.print(
        f"memory {first_mib:.1f} MiB after {WARM_FRAMES} frames, {end_mib:.1f} at the end, {grown:+.1%}", highlight=False
    )
    total = counts.answered + counts.dropped + counts.stale + counts.refused + counts.damaged + counts.still
    wanted = {kind: done[fault] for kind, fault in TOLD.items()} | {"sink": disk.outages}
    wrong = [f"{kind} told {events[kind]} times, not {n}" for kind, n in wanted.items() if events[kind] != n]
    if total != counts.captured or counts.captured - counts.damaged != source.given or (slow and oldest_ms > 2 * slow):
        wrong.append("frames are not all counted, or a result was too old")
    if wrong or grown > 0.02 or closed_s > 1 or not disk.closed:
        raise VerdictError("; ".join(wrong) or "memory or the end are not as they must be")


def _mib() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


if __name__ == "__main__":
    typer.run(main)
