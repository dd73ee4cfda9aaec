"""What it costs: latency side by side, interleaved in one run, so that a noisy machine still gives a ratio."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.data.heldout import held_out
from tasktok_edge.export.graph import Function, model_functions
from tasktok_edge.frames import crop_resize, windows
from tasktok_edge.machine import cores, processor, versions
from tasktok_edge.model.checkpoint import load_checkpoint
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.plain import TOOLS, Export, Plain, plain_export
from tasktok_edge.progress import Doing
from tasktok_edge.published import candidates
from tasktok_edge.reference import Reference
from tasktok_edge.runtimes import Session, load
from tasktok_edge.starts import Start, start_of

WARM_UP = 5
BURST = 5  # counted calls of a turn, behind one that is not
OVERHEAD_RUNS = 60
# Before each call where engines have helper threads: ONNX Runtime's spin on after a call, and slow whoever comes next. With
# both on one core OpenVINO took 19 ms after rests of 0 to 50 ms, 15 ms after one of 100.
REST_S = 0.1


@dataclass(frozen=True)
class Ratio:
    """Of one candidate's times to another's, run by run: the median, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Latency:
    """Times of one candidate in milliseconds, and its ratio to the first candidate, pair by pair."""

    name: str
    p50_ms: float
    p90_ms: float
    ratio: float  # median of (this / first), run by run
    ratio_low: float  # 10th and 90th percentile of the same
    ratio_high: float
    to_peer: Ratio | None = None  # to the fastest of the peers, by its median


def measure(
    candidates: Mapping[str, Callable[[], object]],
    *,
    runs: int,
    peers: Sequence[str] = (),
    rest_s: float = 0.0,
    on_round: Callable[[int], None] = lambda _: None,
) -> list[Latency]:
    """Measure candidates in turn, A B C A B C …, with a rest before each turn, as a stream of frames finds them.

    A turn is one call that brings the candidate's weights back into the caches, then a few that count; their median is the
    turn's time. One call a turn would time the caches that the candidate before has emptied: of a small model that is two
    thirds. The first candidate is what the others are compared with, and where there are `peers`, the fastest of them too.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for done in _rounds(candidates, runs, times, rest_s):
        on_round(done)
    first = next(iter(times.values()))
    peer = min((times[name] for name in peers), key=statistics.median, default=None)
    return [_latency(name, values, first, peer) for name, values in times.items()]


def _rounds(
    candidates: Mapping[str, Callable[[], object]], runs: int, times: dict[str, list[float]], rest_s: float
) -> Iterator[int]:
    for run in candidates.values():
        for _ in range(WARM_UP):
            run()
    for done in range(1, runs + 1):
        for name, run in candidates.items():
            if rest_s:
                time.sleep(rest_s)
            run()
            times[name].append(statistics.median(_timed(run) for _ in range(BURST)))
        yield done


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def _latency(name: str, values: list[float], first: list[float], peer: list[float] | None) -> Latency:
    ratio = _ratio(values, first)
    return Latency(
        name,
        p50_ms=statistics.median(values),
        p90_ms=_percentile(sorted(values), 0.9),
        ratio=ratio.median,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        to_peer=_ratio(values, peer) if peer else None,
    )


def _ratio(values: list[float], others: list[float]) -> Ratio:
    ratios = sorted(v / o for v, o in zip(values, others, strict=True))
    return Ratio(statistics.median(ratios), _percentile(ratios, 0.1), _percentile(ratios, 0.9))


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


@dataclass(frozen=True)
class Overhead:
    """What the shim adds to a call of `restore` for a frame of the function's size."""

    bundle: str
    task: str  # the bundle's first
    engine_us: float  # median of the engine's own call, uint8 batch in, float arrays out
    shim_us: float  # what session.restore takes more, pair by pair: check, batch, finite test, rounding to uint8
    two_tasks: float | None  # restoring for the first two tasks in one call, against the first alone; None where there is one


@dataclass
class Comparison:
    """Latency by task, the server first; what the shim costs, by bundle. All with one number of threads."""

    threads: int
    latency: dict[str, list[Latency]] = field(default_factory=dict)
    overhead: list[Overhead] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    runs_on: dict[str, str] = field(default_factory=dict)  # candidate -> device, effective precision
    agreement_db: dict[str, dict[str, float]] = field(default_factory=dict)  # task -> plain export -> to the server, one frame
    core_share: float | None = None  # of its core's time that one thread got, the worst task; low: others spoiled the figures


def compare(
    bundles: Sequence[Path],
    *,
    server: str,
    device: str = "auto",
    runs: int,
    threads: Sequence[int],
    plain: bool = False,
) -> Iterator[Doing | list[Comparison]]:
    """Measure frame in, answer out of the server model, with `plain` of its plain exports too, and of every bundle.

    Yields what is done, and last a `Comparison` for each number of threads. Raises VerdictError where a plain export does
    not answer as the server does.
    """
    teacher = Reference(load_checkpoint(server).model)
    found = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # engines may map their files to the end
        exports: list[Export] = []  # made once, opened for every number of threads
        for n in threads:
            _set_threads(n)
            sessions = [load(bundle, device, threads=n, proof="measured") for bundle in bundles]
            functions = [_function(task, teacher.model, sessions) for task in teacher.tasks]
            if plain and not exports:
                for function, tool in product(functions, TOOLS):
                    yield Doing(f"plain export of {function.name}, {tool}")
                    exports.append(plain_export(tool, teacher.model, function, Path(folder)))
            found.append((yield from _compared(server, teacher, sessions, exports, functions, runs=runs, threads=n)))
            for session in sessions:
                session.close()
    yield found


def _set_threads(n: int) -> None:
    import torch

    torch.set_num_threads(n)


def _function(task: str, model: TaskTok, sessions: Sequence[Session]) -> Function:
    """What all are asked for: the answer where all give one; a model without task networks restores only."""
    predict = Function("predict", task)
    everyone = predict in model_functions(model.config) and all(
        predict.name in session.functions for session in sessions if task in session.tasks
    )
    return predict if everyone else Function("restore", task)


def _compared(
    server: str,
    teacher: Reference,
    sessions: Sequence[Session],
    exports: Sequence[Export],
    functions: Sequence[Function],
    *,
    runs: int,
    threads: int,
) -> Generator[Doing, None, Comparison]:
    held = next(held_out(1)).degraded
    found = Comparison(threads)
    first = f"{server}, PyTorch"
    found.runs_on[first] = "CPU, fp32"
    for session in sessions:
        found.runs_on[session.bundle.manifest.name] = f"{session.device.kind.upper()}, {session.precision}"
    for function in functions:
        task = function.task
        yield Doing(f"latency, {task}, {threads} thread{'s' * (threads > 1)}")
        frame = crop_resize(held, windows(*held.shape[:2])[0], teacher.size)
        named: dict[str, Reference | Session] = {first: teacher}
        for export in exports:
            if export.function == function:
                rival = Plain(teacher.model, export, threads=threads)
                name = f"{server}, plain {rival.tool}, {rival.precision}"
                named[name], found.runs_on[name] = rival, f"CPU, {rival.precision}"
                found.agreement_db.setdefault(task, {})[name] = rival.agreement_db(teacher, frame[None])
        peers = list(found.agreement_db.get(task, ()))
        named |= {s.bundle.manifest.name: s for s in sessions if task in s.tasks}
        calls: dict[str, Callable[[], object]] = {
            name: partial(judged.predict if function.kind == "predict" else judged.restore, frame, task)
            for name, judged in named.items()
        }
        wall, cpu = time.perf_counter(), time.process_time()
        found.latency[task] = measure(calls, runs=runs, peers=peers, rest_s=REST_S if threads > 1 else 0.0)
        if threads == 1:
            share = (time.process_time() - cpu) / (time.perf_counter() - wall)
            found.core_share = min(share, found.core_share or share)
    for session in sessions:
        yield Doing(f"shim, {session.bundle.manifest.name}")
        found.overhead.append(_overhead(session, held))
        if (
            session.report.chosen is not None and session.report.chosen.reason is None
        ):  # one that answers wrongly starts nowhere
            yield Doing(f"starts, {session.bundle.manifest.name}")
            found.starts.append(start_of(session.bundle.source, session.device.native, threads=threads))
    return found


def compare_forms(checkpoint: str, *, runs: int, threads: Sequence[int]) -> Iterator[Doing | list[Comparison]]:
    """Measure the published forward beside the rewritten graph that is exported, both in PyTorch, for the first task."""
    model = load_checkpoint(checkpoint).model
    task = next(iter(model.config.tasks))
    found = []
    for n in threads:
        _set_threads(n)
        yield Doing(f"the forward of {model.config.preset} in two forms, restore/{task}")
        found.append(Comparison(n, {task: measure(candidates(model, task), runs=runs, rest_s=REST_S if n > 1 else 0.0)}))
    yield found


def _overhead(session: Session, held: NDArray[np.uint8]) -> Overhead:
    """Time the whole call and the engine's share of it in turn.

    The shim is a fiftieth of a call: the median of the pairs' ratios tells it, the difference of two medians is noise.
    """
    task = session.tasks[0]
    frame = crop_resize(held, windows(*held.shape[:2])[0], session.size)
    bare = session.native_call(f"restore/{task}", frame[None])
    engine, whole = measure({"engine": bare, "whole": lambda: session.restore(frame, task)}, runs=OVERHEAD_RUNS)
    engine_us, two_tasks = 1e3 * engine.p50_ms, None
    if len(session.tasks) > 1:
        one, other = (f"restore/{name}" for name in session.tasks[:2])
        batch = frame[None]
        calls = {"one": lambda: session.run_raw((one,), batch), "two": lambda: session.run_raw((one, other), batch)}
        two_tasks = measure(calls, runs=OVERHEAD_RUNS)[1].ratio
    return Overhead(session.bundle.manifest.name, task, engine_us, engine_us * (whole.ratio - 1), two_tasks)


def save(found: Sequence[Comparison], file: Path, *, server: str, runs: int) -> None:
    """Write the figures as JSON, with what they were measured on."""
    measured_on = {"processor": processor(), "cores": cores(), "versions": versions()}
    whole = {"server": server, "runs": runs, **measured_on, "tables": [asdict(one) for one in found]}
    file.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":  # python -m tasktok_edge.bench
    from tasktok_edge.cli import verb

    verb("bench")()
