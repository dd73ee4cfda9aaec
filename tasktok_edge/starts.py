"""How long it takes until a bundle gives its first answer, the first time on a machine and every time after."""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasktok_edge.runtimes import load
from tasktok_edge.runtimes.remembered import VARIABLE

STARTS = 3


@dataclass(frozen=True)
class Start:
    """Seconds from `load` to the answer to a first frame for the first of all tasks; the engine was imported before."""

    bundle: str
    first_s: float  # nothing is known yet: every device is compiled for, proven and timed
    second_s: float  # the choice is remembered, and what the engine compiled where it keeps that


def start_of(bundle: Path, device: str, *, threads: int) -> Start:
    """Measure the medians of a few first and second starts, each pair with a cache of its own."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _cache(folder):
            for kept in times:
                start = time.perf_counter()
                with load(bundle, device, threads=threads) as session:
                    session.restore(np.zeros((session.size, session.size, 3), np.uint8), session.tasks[0])
                    kept.append(time.perf_counter() - start)
                    name = session.bundle.manifest.name
    first, second = map(statistics.median, times)
    return Start(name, first, second)


@contextmanager
def _cache(folder: str) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
