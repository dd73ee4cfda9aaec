"""What shrinking cost and gave: accuracy on held-out frames, size, multiply-adds, latency on every engine of this machine."""

import tempfile
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from tasktok_edge.data.heldout import HeldOut, held_out
from tasktok_edge.errors import DeviceError, PackageError
from tasktok_edge.export import TARGETS, Target
from tasktok_edge.frames import crop_resize, windows
from tasktok_edge.macs import function_macs
from tasktok_edge.manifest import Precision
from tasktok_edge.model.checkpoint import SHIPPED, Checkpoint, has_oracles, load_checkpoint, load_oracles, save_checkpoint
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.parity import export_verified
from tasktok_edge.progress import Doing
from tasktok_edge.quantize.shrink import RECIPES, Step, Wish, shrink
from tasktok_edge.reference import Reference
from tasktok_edge.runtimes import Session, load
from tasktok_edge.scores import Scores, ask, check_answers_scenes, rate, without_restoration
from tasktok_edge.timing import Latency, measure
from tasktok_edge.train.loop import Progress

TOLD = ("methods", "scope", "recipe", "steps", "sparsity", "level", "tokens", "keep_fp")
FAST_TARGETS: tuple[Target, ...] = tuple(t for t in TARGETS if t != "coreml")  # only macOS times a Core ML package


@dataclass(frozen=True)
class Row:
    """One model of the table; `macs` are of the exported graph for one frame, restoration and the task's network, by task."""

    name: str
    scores: Scores
    checkpoint_bytes: int
    parameters: int
    macs: Mapping[str, int]


@dataclass(frozen=True)
class EngineCost:
    """One engine: size of both bundles, and the latency of frame in, answer out of the second beside the first."""

    target: Target
    bytes_before: int
    bytes_after: int
    before: Latency
    after: Latency


@dataclass(frozen=True)
class Verdict:
    """Accuracy of clean and degraded frames without restoration, then of every model, on the same `n` frames."""

    tasks: tuple[str, ...]
    clean: Scores
    degraded: Scores
    rows: tuple[Row, ...]
    engines: tuple[EngineCost, ...]
    n: int


def shrink_and_weigh(
    first: Checkpoint, teacher: Checkpoint, wish: Wish, folder: Path, *, n: int, latency: bool
) -> Iterator[Progress | Doing | Verdict]:
    """Shrink, keep what each method gave (`folder/after-<method>`, the last one `folder/checkpoint`), judge all of it."""
    made: dict[str, TaskTok] = {}
    for step in shrink(first.model, wish, folder, teacher=teacher.model):
        if isinstance(step, Step):
            made[step.name] = step.model
        else:
            yield step
    facts = {
        "made_of_sha256": first.sha256,
        "teacher_sha256": teacher.sha256,
        "wish": {key: value for key, value in vars(wish).items() if key in TOLD},
        "shares": asdict(wish.shares),
        "recipes": {m: RECIPES[wish.recipe][m].model_dump() for m in wish.methods if m in RECIPES[wish.recipe]},
    }
    judged = {first.model.config.preset: first}
    for i, (name, model) in enumerate(made.items(), 1):
        path = folder / ("checkpoint" if i == len(made) else f"after-{name}")
        save_checkpoint(path, model, facts=facts)
        judged[f"after {name}"] = load_checkpoint(path)  # what is judged is what was saved
    yield from weigh(judged, n=n, latency=latency)


def weigh(
    checkpoints: Mapping[str, Checkpoint], *, n: int, latency: bool, runs: int = 30, threads: int = 1
) -> Iterator[Doing | Verdict]:
    """Judge models by name, the first of them is what the last is compared with; yields progress and the `Verdict` last."""
    first, *_, last = checkpoints.values()
    check_answers_scenes(first.model)
    held: list[HeldOut] = []
    for scene in held_out(n):
        held.append(scene)
        yield Doing("held-out frames", len(held), n)
    tasks = tuple(first.model.config.tasks)
    clean, degraded = [h.truth.image for h in held], [h.degraded for h in held]
    judge = first if has_oracles(first.path) else load_checkpoint(SHIPPED[0])
    oracle = without_restoration(load_oracles(judge.path), judge.model)
    answers = yield from ask("clean frames", oracle, clean, tasks)
    of_clean = rate("clean frames", answers, held)
    answers = yield from ask("degraded frames", oracle, degraded, tasks)
    of_degraded = rate("degraded frames", answers, held)
    rows = []
    for name, checkpoint in checkpoints.items():
        answers = yield from ask(name, Reference(checkpoint.model).predict, degraded, tasks)
        rows.append(_row(name, checkpoint, rate(name, answers, held)))
    engines = []
    if latency:
        with tempfile.TemporaryDirectory() as scratch:
            for target in FAST_TARGETS:
                cost = yield from _engine_cost(target, first, last, Path(scratch), held[0], runs=runs, threads=threads)
                engines += [] if cost is None else [cost]
    yield Verdict(tasks, of_clean, of_degraded, tuple(rows), tuple(engines), n)


def precision_of(model: TaskTok) -> Precision:
    """What a model is exported as: int8 where its layers compute so, else fp32."""
    return "int8" if model.config.int8 else "fp32"


def _row(name: str, checkpoint: Checkpoint, scores: Scores) -> Row:
    model = checkpoint.model
    macs = {task: function_macs(model, task)[1] for task in model.config.tasks}
    weights = sum(f.stat().st_size for f in checkpoint.path.glob("model.safetensors"))
    return Row(name, scores, weights, sum(p.numel() for p in model.parameters()), macs)


def _engine_cost(
    target: Target, first: Checkpoint, last: Checkpoint, scratch: Path, held: HeldOut, *, runs: int, threads: int
) -> Generator[Doing, None, EngineCost | None]:
    """Export both models for one task and time them in turn; None where the engine is not installed or has no device."""
    task = next(iter(first.model.config.tasks))
    sessions: list[Session] = []
    sizes = []
    try:
        for i, checkpoint in enumerate((first, last)):
            yield Doing(f"exporting for {target}", i + 1, 2)
            out = scratch / f"{i}-{target}"
            made = export_verified(checkpoint, target, out, tasks=(task,), precision=precision_of(checkpoint.model))
            sizes.append(made.bytes)
            sessions.append(load(out, threads=threads, proof="measured"))
    except (DeviceError, PackageError):
        return None
    frame = crop_resize(held.degraded, windows(*held.degraded.shape[:2])[0], sessions[0].size)
    before, after = measure(
        {name: partial(s.predict, frame, task) for name, s in zip(("before", "after"), sessions, strict=True)}, runs=runs
    )
    for session in sessions:
        session.close()
    return EngineCost(target, sizes[0], sizes[1], before, after)
