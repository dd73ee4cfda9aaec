"""What it costs: latency side by side, interleaved in one run, so that a noisy machine still gives a ratio."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.data.heldout import held_out
from tasktok_edge.frames import crop_resize, windows
from tasktok_edge.model.checkpoint import load_checkpoint
from tasktok_edge.progress import Doing
from tasktok_edge.published import candidates
from tasktok_edge.reference import Reference
from tasktok_edge.runtimes import Session, load

WARM_UP = 5
OVERHEAD_RUNS = 300


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


@dataclass(frozen=True)
class Overhead:
    """What the shim adds to a call of `restore` for a frame of the function's size."""

    bundle: str
    engine_us: float  # median of the engine's own call, uint8 batch in, float arrays out
    shim_us: float  # what session.restore takes more, pair by pair: check, batch, finite test, rounding to uint8


@dataclass(frozen=True)
class Comparison:
    """Latency by task, the server first; what the shim costs, by bundle."""

    latency: dict[str, list[Latency]]
    overhead: list[Overhead]


def compare(
    bundles: Sequence[Path], *, server: str, device: str = "auto", runs: int, threads: int
) -> Iterator[Doing | Comparison]:
    """Measure frame in, answer out of the server model and every bundle; yields what is done, the `Comparison` last."""
    import torch

    torch.set_num_threads(threads)
    teacher = Reference(load_checkpoint(server).model)
    sessions = [load(bundle, device, threads=threads, proof="measured") for bundle in bundles]
    held = next(held_out(1)).degraded
    latency: dict[str, list[Latency]] = {}
    for task in teacher.tasks:
        frame = crop_resize(held, windows(*held.shape[:2])[0], teacher.size)
        here = [session for session in sessions if task in session.tasks]
        # The answer where all give one; a model without task networks restores only.
        answers = task in teacher.model.task_nets and all(f"predict/{task}" in session.functions for session in here)
        named: list[tuple[str, Reference | Session]] = [(f"{server}, PyTorch", teacher)]
        named += [(s.bundle.manifest.name, s) for s in here]
        calls: dict[str, Callable[[], object]] = {
            name: partial(judged.predict if answers else judged.restore, frame, task) for name, judged in named
        }
        yield Doing(f"latency, {task}")
        latency[task] = measure(calls, runs=runs)
    overhead = []
    for session in sessions:
        yield Doing(f"shim, {session.bundle.manifest.name}")
        overhead.append(_overhead(session, held))
        session.close()
    yield Comparison(latency, overhead)


def compare_forms(checkpoint: str, *, runs: int, threads: int) -> Iterator[Doing | Comparison]:
    """Measure the published forward beside the rewritten graph that is exported, both in PyTorch, for the first task."""
    import torch

    torch.set_num_threads(threads)
    model = load_checkpoint(checkpoint).model
    task = next(iter(model.config.tasks))
    yield Doing(f"the forward of {model.config.preset} in two forms, restore/{task}")
    yield Comparison({task: measure(candidates(model, task), runs=runs)}, [])


def _overhead(session: Session, held: NDArray[np.uint8]) -> Overhead:
    """Time the whole call and the engine's share of it in turn.

    The shim is a fiftieth of a call: the median of the pairs' ratios tells it, the difference of two medians is noise.
    """
    task = session.tasks[0]
    frame = crop_resize(held, windows(*held.shape[:2])[0], session.size)
    bare = session.native_call(f"restore/{task}", frame[None])
    engine, whole = measure({"engine": bare, "whole": lambda: session.restore(frame, task)}, runs=OVERHEAD_RUNS)
    engine_us = 1e3 * engine.p50_ms
    return Overhead(session.bundle.manifest.name, engine_us, engine_us * (whole.ratio - 1))


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


if __name__ == "__main__":  # python -m tasktok_edge.bench
    from tasktok_edge.cli import verb

    verb("bench")()
