"""What it costs: latency side by side, interleaved in one run, so that a noisy machine still gives a ratio."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

WARM_UP = 5


@dataclass(frozen=True)
class Latency:
    """Times of one candidate in milliseconds, and its ratio to the first candidate, pair by pair."""

    name: str
    p50_ms: float
    p90_ms: float
    ratio: float  # median of (this / first), run by run
    ratio_low: float  # 10th and 90th percentile of the same
    ratio_high: float


def measure(
    candidates: Mapping[str, Callable[[], object]], *, runs: int, on_round: Callable[[int], None] = lambda _: None
) -> list[Latency]:
    """Measure candidates in turn, A B C A B C …; the first is what the others are compared with."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for done in _rounds(candidates, runs, times):
        on_round(done)
    first = next(iter(times.values()))
    return [_latency(name, values, first) for name, values in times.items()]


def _rounds(candidates: Mapping[str, Callable[[], object]], runs: int, times: dict[str, list[float]]) -> Iterator[int]:
    for run in candidates.values():
        for _ in range(WARM_UP):
            run()
    for done in range(1, runs + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3)
        yield done


def _latency(name: str, values: list[float], first: list[float]) -> Latency:
    ratios = sorted(v / f for v, f in zip(values, first, strict=True))
    return Latency(
        name,
        p50_ms=statistics.median(values),
        p90_ms=_percentile(sorted(values), 0.9),
        ratio=statistics.median(ratios),
        ratio_low=_percentile(ratios, 0.1),
        ratio_high=_percentile(ratios, 0.9),
    )


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def machine(threads: int) -> str:
    """The machine, its cores, the threads each candidate was given, and the versions, in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    versions = []
    for package in ("torch", "openvino", "onnxruntime", "executorch"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return f"{model}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)} each; {', '.join(versions)}"
