"""What it costs: latency side by side, interleaved in one run, so that a noisy machine still gives a ratio."""

import json
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tasktok_edge.alternatives import Answering, ByTask, accuracy, alternatives
from tasktok_edge.costs import Cost, energy_j, peak_macs, peak_memory
from tasktok_edge.data.heldout import held_out
from tasktok_edge.errors import UsageError
from tasktok_edge.export.graph import Function, model_functions
from tasktok_edge.frames import crop_resize, windows
from tasktok_edge.machine import cores, governor, processor, versions
from tasktok_edge.macs import count
from tasktok_edge.manifest import function_name
from tasktok_edge.model.checkpoint import Checkpoint, load_checkpoint
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.plain import Export, Plain, plain_export
from tasktok_edge.progress import Doing
from tasktok_edge.published import candidates
from tasktok_edge.reference import Reference
from tasktok_edge.runtimes import Session, load
from tasktok_edge.runtimes.answers import Answer
from tasktok_edge.scaling import Scale
from tasktok_edge.scores import Predict, answers_scenes
from tasktok_edge.starts import Start, start_of
from tasktok_edge.timing import Latency, measure

OVERHEAD_RUNS = 60
WORSE = 1.05  # of a ratio, where --compare calls it slower
# Before each call where engines have helper threads: ONNX Runtime's spin on after a call, and slow whoever comes next. With
# both on one core OpenVINO took 19 ms after rests of 0 to 50 ms, 15 ms after one of 100.
REST_S = 0.1


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
    costs: list[Cost] = field(default_factory=list)
    macs: dict[str, dict[str, int]] = field(default_factory=dict)  # task -> candidate -> multiply-adds of its call
    peak_macs: dict[str, float] = field(default_factory=dict)  # precision -> multiply-adds a second of a square product
    parts: list[Latency] = field(default_factory=list)  # of the server in PyTorch, for the first task; the whole is the first
    part_macs: dict[str, int] = field(default_factory=dict)
    accuracy: ByTask = field(default_factory=dict)  # task -> candidate -> its metric
    accuracy_frames: int = 0
    core_share: float | None = None  # of its core's time that one thread got, the worst task; low: others spoiled the figures


def compare(
    bundles: Sequence[Path],
    *,
    server: str,
    device: str = "auto",
    runs: int,
    threads: Sequence[int],
    tools: Sequence[str] = (),
    accuracy_frames: int = 0,
) -> Iterator[Doing | list[Comparison]]:
    """Measure frame in, answer out of the server model, of what `tools` make of it, of alternatives, and of every bundle.

    With `accuracy_frames` everyone also answers so many held-out frames, once. Yields what is done, and last a `Comparison`
    for each number of threads. Raises VerdictError where a plain export does not answer as the server does.
    """
    checkpoint = load_checkpoint(server)
    teacher = Reference(checkpoint.model)
    others = alternatives(checkpoint)
    found: list[Comparison] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # engines may map their files to the end
        exports: list[Export] = []  # made once, opened for every number of threads
        for n in threads:
            _set_threads(n)
            sessions = [load(bundle, device, threads=n, proof="measured") for bundle in bundles]
            functions = [_function(task, teacher.model, sessions) for task in teacher.tasks]
            if tools and not exports:
                for function, tool in product(functions, tools):
                    yield Doing(f"plain export of {function.name}, {tool}")
                    exports.append(plain_export(tool, teacher.model, function, Path(folder)))
            one = yield from _compared(server, teacher, sessions, exports, others, functions, runs=runs, threads=n)
            if accuracy_frames and not found and answers_scenes(checkpoint.model):  # the number of threads changes no answer
                one.accuracy = yield from _accuracy(server, checkpoint, sessions, others, accuracy_frames)
                one.accuracy_frames = accuracy_frames
            found.append(one)
            for session in sessions:
                session.close()
    yield found


def _set_threads(n: int) -> None:
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
    others: Mapping[str, Predict],
    functions: Sequence[Function],
    *,
    runs: int,
    threads: int,
) -> Generator[Doing, None, Comparison]:
    held = next(held_out(1)).degraded
    found = Comparison(threads)
    first = f"{server}, PyTorch"
    found.runs_on[first] = "CPU, fp32"
    found.part_macs = {part.name: part.trained for part in count(teacher.model.config, {})}
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
        if function.kind == "predict":
            calls |= {name: partial(predict, frame, task) for name, predict in others.items()}
            found.runs_on |= dict.fromkeys(others, "CPU, fp32")
        found.macs[task] = _macs(found.part_macs, function, [first, *peers], sessions)
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
            yield Doing(f"memory and energy, {session.bundle.manifest.name}")
            found.costs.append(_cost(session, held, threads=threads))
    yield Doing("the parts of the server, and what products cost here")
    found.parts = _parts(teacher, frame, runs=runs)
    precisions = sorted({where.rpartition(" ")[2] for where in found.runs_on.values()})
    peaks = {p: peak_macs(p, threads=threads) for p in precisions}
    found.peak_macs = {precision: peak for precision, peak in peaks.items() if peak is not None}
    return found


def _accuracy(
    server: str, checkpoint: Checkpoint, sessions: Sequence[Session], others: Mapping[str, Predict], n: int
) -> Generator[Doing, None, ByTask]:
    """Everyone's metrics; plain exports answer as the server does, to the decibels that were asked of them."""
    teacher, config = Reference(checkpoint.model), checkpoint.model.config
    named: dict[str, Answering] = {
        f"{server}, PyTorch": lambda frame, tasks: {t: r.answer for t, r in teacher(frame, tasks).items()},
        **{s.bundle.manifest.name: partial(_session_answers, s) for s in sessions},
        **{
            name: lambda frame, tasks, predict=predict: {t: predict(frame, t) for t in tasks}  # type: ignore[misc]
            for name, predict in others.items()
        },
    }
    kinds = {task: part.kind for task, part in config.tasks.items()}
    return (yield from accuracy(named, list(kinds), kinds, n=n))


def _session_answers(session: Session, frame: NDArray[np.uint8], tasks: Sequence[str]) -> Mapping[str, Answer]:
    answering = {f.task for f in session.bundle.manifest.functions if f.kind == "predict"}
    asked = [task for task in tasks if task in session.tasks and task in answering]
    return session.predict(frame, tasks=asked) if asked else {}


def _macs(parts: Mapping[str, int], function: Function, ours: Sequence[str], sessions: Sequence[Session]) -> dict[str, int]:
    """Of the server and its plain exports, as trained; of bundles, by their manifests."""
    trained = sum(cost for name, cost in parts.items() if not name.endswith(" network"))
    trained += parts.get(f"{function.task} network", 0) if function.kind == "predict" else 0
    found = dict.fromkeys(ours, trained)
    for session in sessions:
        name = function_name(function.kind, function.task, session.tokens)
        macs = next((f.macs for f in session.bundle.manifest.functions if f.name == name), 0)
        found |= {session.bundle.manifest.name: macs} if macs else {}
    return found


def _cost(session: Session, held: NDArray[np.uint8], *, threads: int) -> Cost:
    manifest, frame = session.bundle.manifest, crop_resize(held, windows(*held.shape[:2])[0], session.size)
    return Cost(
        manifest.name,
        bytes=session.bundle.bytes,
        peak_memory_bytes=peak_memory(session.bundle.source, session.device.native, threads=threads),
        macs={f.name: f.macs for f in manifest.functions},
        energy_j=energy_j(lambda: session.restore(frame, session.tasks[0])),
    )


def _parts(teacher: Reference, frame: NDArray[np.uint8], *, runs: int) -> list[Latency]:
    """The parts of the model in PyTorch for its first task, each by itself, beside the whole."""
    model, task = teacher.model, teacher.tasks[0]
    with torch.inference_mode():
        image = torch.from_numpy(frame[None]).permute(0, 3, 1, 2).float() / 255
        picture = model.prerestorer(image)
        z = model.tokens(picture)
        replaced = model.replace_selected(z, task)
        seen = model.shown(replaced, task)[1]
        calls: dict[str, Callable[[], object]] = {
            "whole": lambda: model.restore(image, task),
            "pre-restorer": lambda: model.prerestorer(image),
            "encoder": lambda: model.tokens(picture),
            "refiner": lambda: model.replace_selected(z, task),
            "decoder": lambda: model.decode(replaced),
        }
        if task in model.task_nets:
            calls["whole"] = lambda: model(image, task)
            calls[f"{task} network"] = lambda: model.task_net(task)(seen)
        return measure(calls, runs=runs)


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


def save(found: Sequence[Comparison], file: Path, *, server: str, runs: int, scales: Sequence[Scale] = ()) -> None:
    """Write the figures as JSON, with what they were measured on."""
    measured_on = {"processor": processor(), "cores": cores(), "governor": governor(), "versions": versions()}
    tables = {"tables": [asdict(one) for one in found], "scaling": [asdict(one) for one in scales]}
    file.write_text(json.dumps({"server": server, "runs": runs, **measured_on, **tables}, indent=2) + "\n", encoding="utf-8")


def regressions(old: Path, found: Sequence[Comparison]) -> list[str]:
    """What is slower than in a file of before, told by each candidate's ratio to the first, which a slower machine keeps.

    A regression is a ratio whose 10th percentile lies above the old 90th, by 5 % or more. Raises UsageError for another file.
    """
    try:
        tables = {table["threads"]: table["latency"] for table in json.loads(old.read_text(encoding="utf-8"))["tables"]}
        before = {
            (threads, task, one["name"]): (float(one["ratio"]), float(one["ratio_high"]))
            for threads, latency in tables.items()
            for task, figures in latency.items()
            for one in figures[1:]
        }
    except FileNotFoundError:
        raise UsageError(f"there is no file {old} to compare with: bench --out writes one") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{old} holds no figures of bench: {error!r}") from None
    slower = []
    for table in found:
        for task, figures in table.latency.items():
            for one in figures[1:]:
                ratio, high = before.get((table.threads, task, one.name), (0.0, float("inf")))
                if one.ratio_low > high * WORSE:
                    told = f"{one.name}, {task}, {table.threads} thread{'s' * (table.threads > 1)}"
                    slower.append(f"{told}: {one.ratio:.2f} of the first, was {ratio:.2f}")
    return slower


if __name__ == "__main__":  # python -m tasktok_edge.bench
    from tasktok_edge.cli import verb

    verb("bench")()
