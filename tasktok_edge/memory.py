"""Memory: what there is, and what a piece of work took."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

SAMPLE_S = 0.05
GIB = 1 << 30


@dataclass
class Peak:
    """The highest resident size of this process while a block ran, memory-mapped weights included."""

    bytes: int = 0


@contextmanager
def measured() -> Iterator[Peak]:
    """Sample this process's resident size until the block ends."""
    process, peak, done = psutil.Process(), Peak(), threading.Event()

    def sample() -> None:
        while not done.is_set():
            peak.bytes = max(peak.bytes, process.memory_info().rss)
            done.wait(SAMPLE_S)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak.bytes = max(peak.bytes, process.memory_info().rss)


def available() -> int:
    """Bytes that can be had without swapping."""
    return int(psutil.virtual_memory().available)
